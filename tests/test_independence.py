"""An image's embedding depends on the image alone: every version, every way to embed."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from promptsg.config import PromptSGError
from promptsg.embedding import Embedder
from promptsg.evaluation import batch_dependence
from promptsg.int8 import int8_model
from promptsg.model import PromptSG, untrained
from promptsg.readers import read_data
from promptsg.synth import write_hands
from promptsg.versions import VERSIONS, version

ROUNDING = 2e-5  # sums of float32 in another order
TOWERS = ("hand-vit-tiny", "hand-rn-tiny")


def shaken(config):
    "A model whose batch norms, fusion and whitening have left their neutral start."
    torch.manual_seed(0)
    model = PromptSG(config, 5)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.running_mean.normal_(0, 0.1)
                layer.running_var.uniform_(0.5, 2)
        for p in model.fusion.parameters() if config.looks else ():
            p.add_(0.05 * torch.randn_like(p))
        if model.whitening is not None:
            rows = torch.randn(12, model.whitening.matrix.shape[1])
            model.whitening.fit(rows, torch.arange(12) // 3)
    return model.eval()


def inputs(model, count=5):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, 3, *model.backbone.image_size, generator=generator)
    return images, torch.arange(count) % 4


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("name", VERSIONS)
def test_no_version_looks_at_its_neighbours(name, tower):
    model = shaken(version(name, tower))
    images, aspects = inputs(model)
    assert batch_dependence(model.embed, images) < ROUNDING
    own_sentence = lambda x, aspect: model.embed(x, aspects=aspect)
    assert batch_dependence(own_sentence, images, aspects) < ROUNDING


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize(
    "changes, prompts",
    [
        ({}, ("composed", "simplified")),
        (dict(fusion="text"), ("composed", "simplified")),
        (dict(text_queries="words", prompt_aspect="run"), ("composed",)),
        (dict(patch_tokens="dense"), ("composed",)),
        (dict(whiten=True, classifier="linear"), ("composed",)),
        (dict(classifier="arcface"), ("composed",)),
    ],
    ids=str,
)
def test_no_way_to_embed_does(changes, prompts, tower):
    model = shaken(version("paper", tower).replace(**changes))
    images, _ = inputs(model)
    for prompt in prompts:
        assert batch_dependence(lambda x: model.embed(x, prompt=prompt), images) < ROUNDING
    kept = model.backbone.features_before(images)
    assert batch_dependence(lambda x: model.embed(frozen=x), kept) < ROUNDING
    assert batch_dependence(untrained(model.config).embed, images) < ROUNDING


def test_words_that_pool_do_not_and_maps_neither():
    config = version("best", "hand-vit-tiny").replace(
        words=("A photo of a ring.", "A photo of nails.")
    )
    model = shaken(config)
    images, _ = inputs(model)
    assert batch_dependence(model.embed, images) < ROUNDING
    assert batch_dependence(lambda x: model.attention_maps(x).flatten(1), images) < ROUNDING


def test_a_tower_in_eight_bits_does_not(tmp_path):
    """Its ranges are the weights', not the batch's: one taken from each batch would let it."""
    model = shaken(version("paper", "hand-vit-tiny"))
    images, _ = inputs(model)
    small = int8_model(model, tmp_path)
    assert batch_dependence(small.embed, images) < ROUNDING
    assert (small.embed(images) - model.embed(images)).abs().max() > 1e-4  # it is another one


def test_a_feed_gives_the_same_rows_in_any_order_and_batch(tmp_path):
    write_hands(tmp_path, n_train=2, n_test=2, images_per_aspect=2, seed=0, progress=False)
    frame = read_data(tmp_path)
    model = shaken(version("paper", "hand-vit-tiny"))
    rows = lambda some, size: Embedder(model, model.config, tmp_path / "cache", False).embed(
        some, batch_size=size
    )
    whole = rows(frame, 64).of(frame)
    for some, size in (
        (frame.iloc[::-1], 64),
        (frame.sample(frac=1, random_state=0), 3),
        (frame[:5], 1),
    ):
        assert torch.allclose(
            rows(some, size).of(some), whole[torch.tensor(some.index)], atol=ROUNDING
        )


class Across(nn.Module):
    "A part that mixes a batch."

    def forward(self, x):
        return x + 0.1 * (F.normalize(x, dim=1) @ F.normalize(x, dim=1).T).softmax(-1) @ x


def test_a_part_that_mixes_the_batch_is_found():
    """Without this the tests above could pass by measuring nothing."""
    model = shaken(version("image_only", "hand-vit-tiny"))
    images, _ = inputs(model)
    across, centred = Across(), lambda x: x - x.mean(0)
    for part in (across, lambda x: centred(across(x)) + x):
        assert batch_dependence(lambda x: part(model.embed(x)), images) > 0.01
    with pytest.raises(PromptSGError, match="at least two"):
        batch_dependence(model.embed, images[:1])
