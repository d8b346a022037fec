"A control is the model with one part removed or replaced; everything else is unchanged."

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from promptsg import controls
from promptsg.backbone import save_bank
from promptsg.checkpoints import load_run
from promptsg.config import PromptSGError
from promptsg.controls import (
    BASELINES,
    CONTROLS,
    controls_of,
    least_similar_sentences,
    measure_controls,
    slug,
)
from promptsg.data import read_11k
from promptsg.embedding import Embedder, measure
from promptsg.evaluation import Result, paired_difference, ranked_images
from promptsg.heads import Whitening
from promptsg.model import PromptSG, untrained
from promptsg.prompt import PLAIN_SENTENCES
from promptsg.splits import make_splits
from promptsg.training import Trainer
from promptsg.tune import measure_parts, train_people, word_parts
from promptsg.versions import version

TEXT = ["no text", "s* of another image", "another sentence"]
VIT = "hand-vit-tiny"


@pytest.fixture(scope="module")
def two(hands):
    return make_splits(read_11k(hands), "dorsal_r", n_splits=2)


def built(config, seed=0):
    "A model whose new modules are as they were drawn, but whose text matters."
    torch.manual_seed(seed)
    model = PromptSG(config.replace(cache_pixels=False), 8).eval()
    if config.language and config.fusion != "pool":
        for layer in model.fusion.cross:
            torch.nn.init.normal_(layer.out.weight, std=0.3)
        if model.inversion is not None:  # s* as different as words are
            with torch.no_grad():
                model.inversion.layers[-1].running_var.fill_(1e-4)
    return model


@pytest.fixture(scope="module")
def paper():
    return built(version("paper", VIT))


@pytest.fixture(scope="module")
def free(two, tmp_path_factory):
    "A run of `training_free`."
    config = version("training_free", VIT).replace(num_splits=2, train_aspects=())
    run = Trainer(config, two, tmp_path_factory.mktemp("free") / "run", progress=False).fit()
    return load_run(run)


def measured(model, splits, names=None, **options):
    found = measure_controls(model, splits, ("clipfh",), names, progress=False, **options)
    return {name: results["clipfh"] for name, results in found.items()}


def own(model, splits):
    return measure(model, splits, ("clipfh",), progress=False)[0]["clipfh"]


def equal(one, other):
    return np.allclose(
        one.per_query.ap, other.per_query.ap, atol=1e-6
    ) and one.per_query.path.equals(other.per_query.path)


# --- which there are
@pytest.mark.parametrize(
    "name, more",
    [
        ("image_only", ["whitened"]),
        ("paper", ["whitened", *TEXT]),
        ("paper_whitened", TEXT),
        ("simplified", ["whitened", "no text", "another sentence"]),
        ("v10", ["whitened", "no text", "another sentence"]),
        ("training_free", ["no word", "another word", "random direction", "without the tokens"]),
    ],
)
def test_controls_of_each_version(name, more):
    config = version(name, VIT)
    assert controls_of(config) == [*BASELINES, *more] and set(controls_of(config)) <= set(CONTROLS)
    assert controls_of(SimpleNamespace(config=config)) == controls_of(config)


def test_without_the_tokens_needs_a_linear_head():
    config = version("training_free", VIT).replace(classifier="bnneck")
    assert "without the tokens" not in controls_of(config)


def test_names_are_different_folders():
    assert len({slug(name) for name in CONTROLS}) == len(CONTROLS)
    assert slug("s* of another image") == "s-of-another-image" and slug("v3-logged") == "v3-logged"


@pytest.mark.parametrize("name", ["no word", "nothing", "", "zero-shot "])
def test_an_unknown_control_is_one_sentence(paper, two, name):
    with pytest.raises(PromptSGError, match="this model has no control .*choose from zero-shot"):
        measured(paper, two, ["zero-shot", name])


# --- what they are
def test_a_fusion_that_ignores_text_has_difference_0(two):
    model = built(version("paper", VIT))
    with torch.no_grad():
        for layer in model.fusion.cross:
            layer.out.weight.zero_(), layer.out.bias.zero_()
    result, found = own(model, two), measured(model, two, TEXT)
    for name in TEXT:
        assert paired_difference(found[name], result)[:4] == (0, 0, 0, 1)


@pytest.mark.parametrize(
    "config",
    [
        dict(),
        dict(fusion="text"),
        dict(text_queries="words", prompt_aspect="run"),
        dict(patch_tokens="dense"),
        dict(eval_prompt="simplified"),
    ],
)
def test_each_control_changes_a_model_that_uses_text(two, config):
    model, rows = built(version("paper", VIT).replace(**config)), two.test.head(6)
    names = [name for name in TEXT if name in controls_of(model)]
    embedder = Embedder(model, model.config, progress=False)
    looked = controls._rows(model, ["whitened", *names], rows, embedder, 4)
    unit = {name: F.normalize(found, dim=1) for name, found in looked.items()}
    assert torch.allclose(unit["whitened"], embedder.embed(rows).of(rows), atol=1e-5)
    for name in names:
        assert (unit[name] - unit["whitened"]).norm(dim=1).min() > 1e-4, name


def test_the_same_text_gives_the_same_result(two, monkeypatch):
    "Another sentence that is the model's own; another image's s* where all images have the same."
    sentence = "A photo of a dorsal right hand."
    model = built(
        version("paper", VIT).replace(
            prompt_template="A photo of a {} dorsal right hand.", simplified_prompt=sentence
        )
    )
    with torch.no_grad():
        last = [
            module for module in model.inversion.modules() if isinstance(module, torch.nn.Linear)
        ][-1]
        last.weight.zero_()
    monkeypatch.setattr(controls, "least_similar_sentences", lambda prompt, said: [sentence])
    found, result = measured(model, two, TEXT), own(model, two)
    assert equal(found["another sentence"], result) and equal(found["s* of another image"], result)
    assert not equal(found["no text"], result)


def test_no_text_is_the_fusion_on_zeros(two, paper):
    rows = two.test.head(4)
    looked = controls._rows(
        paper, ["no text"], rows, Embedder(paper, paper.config, progress=False), 2
    )
    embedder = Embedder(paper, paper.config, progress=False).evaluation(rows)
    with torch.no_grad():
        seen = paper.backbone(torch.stack([row["image"] for row in embedder]))
        fused = paper.fusion(
            torch.zeros(4, 1, seen.embedding.shape[1]), seen.patches, seen.embedding
        )
        expected = F.normalize(paper.head(fused.embedding).embedding, dim=1)
    assert torch.allclose(F.normalize(looked["no text"], dim=1), expected, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_each_image_gets_another_images_pseudo_word(two, paper, monkeypatch, batch):
    "Each image's s* goes to exactly one other image, whatever the batches are."
    rows, given = two.test.head(7).reset_index(drop=True), []

    def look(seen):
        given.append((seen.features.embedding, seen.other))
        return seen.features.embedding

    monkeypatch.setitem(CONTROLS, "s* of another image", controls.Control("", lambda model: look))
    controls._rows(
        paper, ["s* of another image"], rows, Embedder(paper, paper.config, progress=False), batch
    )
    embedding, other = (torch.cat(parts) for parts in zip(*given))
    # the first image came again at the end
    embedding, other = embedding[:-1], torch.cat([other[-1:], other[1:-1]])
    with torch.no_grad():
        s = paper.inversion(embedding)
    giver = torch.cdist(other, s).argmin(1)
    assert torch.allclose(other, s[giver], atol=1e-4)
    assert giver.tolist() == [6, 0, 1, 2, 3, 4, 5]


def test_results_do_not_depend_on_batches_or_other_controls(two, paper):
    few, all_of_them = measured(paper, two, TEXT, batch_size=5), measured(paper, two)
    assert all(
        few[name].per_query.first_hit.equals(all_of_them[name].per_query.first_hit) for name in TEXT
    )


@pytest.mark.parametrize("name", ["paper", "training_free"])
def test_all_controls_share_one_pass(two, name, monkeypatch):
    model, looked = built(version(name, VIT)), []
    before = model.backbone.features_before
    monkeypatch.setattr(
        model.backbone,
        "features_before",
        lambda images: looked.append(len(images)) or before(images),
    )
    names = controls_of(model) if name == "training_free" else controls_of(model)[2:]
    found = measured(model, two, names)
    images = pd.concat([train_people(two), ranked_images(two, ("clipfh",))]).path.nunique()
    assert sum(looked) == images and list(found) == names


# --- the tower alone, and whitening
def test_zero_shot_is_the_pretrained_tower(two):
    "Also where the version's own tower was trained."
    model = built(version("image_only", VIT))
    zero = own(untrained(model.config), two)
    with torch.no_grad():
        for p in model.backbone.parameters():
            p.mul_(1 + 0.3 * torch.rand_like(p))
    assert not equal(own(model, two), zero) and equal(
        measured(model, two, ["zero-shot"])["zero-shot"], zero
    )


@pytest.mark.parametrize("blocks", [0, 1, None])
@pytest.mark.parametrize("cached", [False, True])
def test_zero_shot_continues_from_the_frozen_blocks(two, blocks, cached):
    if cached and blocks is None:
        return  # nothing is frozen, so there is nothing to cache
    config = version("image_only", VIT).replace(
        unfreeze_blocks=blocks, cache_frozen=cached, flip=0.0, crop_padding=0, erasing=0.0
    )
    model = built(config)
    zero = own(untrained(config), two)
    assert np.allclose(
        measured(model, two, ["zero-shot"])["zero-shot"].summary, zero.summary, atol=0.1
    )


def test_the_row_whitened_equals_a_whitened_version(two):
    "The same weights with the whitening that `Trainer` fits, to the images trained on."
    model = built(version("image_only", VIT))
    white = PromptSG(model.config.replace(whiten=True), 8).eval()
    white.load_state_dict(model.state_dict(), strict=False)
    found = Embedder(model, model.config, progress=False).embed(two.train).of(two.train)
    white.whitening.fit(found, torch.from_numpy(pd.factorize(two.train.identity)[0]))
    assert equal(measured(model, two, ["whitened"])["whitened"], own(white, two))
    assert "whitened" not in controls_of(white)


def test_each_control_has_its_own_whitening(two):
    "By hand: the fused rows without text, whitened by those of the images trained on."
    model = built(version("paper_whitened", VIT))
    frame = pd.concat([two.train, ranked_images(two, ("clipfh",))]).drop_duplicates("path")
    frame = frame.reset_index(drop=True)
    looked = controls._rows(
        model, ["no text"], frame, Embedder(model, model.config, progress=False), 32
    )
    rows, whitening = F.normalize(looked["no text"], dim=1), Whitening(model.head.out_dim)
    whitening.fit(rows[: len(two.train)], torch.from_numpy(pd.factorize(two.train.identity)[0]))
    parts = {"no text": F.normalize(whitening(rows), dim=1)}
    by_hand = measure_parts(parts, frame, two, {"no text": ["no text"]}, ("clipfh",), whiten=False)
    assert equal(measured(model, two, ["no text"])["no text"], by_hand["no text"]["clipfh"])


# --- words that pool
def test_pooling_controls_equal_measure_parts(free, two):
    frame = pd.concat([train_people(two), ranked_images(two, ("clipfh",))]).drop_duplicates("path")
    (far,) = least_similar_sentences(free.prompt, [free.config.simplified_prompt])
    parts = word_parts(free, frame, [far], controls=True, progress=False)
    base = ["class token", "patches"]
    made_of = {
        "no word": [*base, "no word"],
        "random direction": [*base, "random"],
        "without the tokens": base,
        "another word": [*base, far],
        "zero-shot, whitened": ["class token"],
    }
    expected, found = measure_parts(parts, frame, two, made_of, ("clipfh",)), measured(free, two)
    for name in made_of:
        assert equal(found[name], expected[name]["clipfh"]), name
    assert equal(found["zero-shot"], own(untrained(free.config), two))


def test_another_word_with_the_same_sentence_changes_nothing(free, two, monkeypatch):
    monkeypatch.setattr(controls, "least_similar_sentences", lambda prompt, said: said)
    model = free
    if model.config.prompt_aspect == "image":  # one sentence for all, as the control has
        model = built(
            free.config.replace(prompt_aspect="run", simplified_prompt="A photo of a hand.")
        )
        people = train_people(two)
        plain = built(model.config.replace(whiten=False))
        rows = Embedder(plain, plain.config, progress=False).embed(people).of(people)
        model.whitening.fit(rows, torch.from_numpy(pd.factorize(people.identity)[0]))
    assert equal(measured(model, two, ["another word"])["another word"], own(model, two))


def test_all_words_are_replaced(two):
    model = built(version("training_free", VIT).replace(words=("hand", "ring"), whiten=False))
    looked = controls._rows(
        model,
        ["no word", "without the tokens"],
        two.test.head(3),
        Embedder(model, model.config, progress=False),
        2,
    )
    base, word, again = looked["no word"].unflatten(1, (4, -1)).split([2, 1, 1], 1)
    assert torch.allclose(word, again, atol=1e-6)
    assert torch.allclose(
        F.normalize(base.flatten(1), dim=1),
        F.normalize(looked["without the tokens"], dim=1),
        atol=1e-6,
    )


# --- sentences
def test_the_other_sentence_has_the_least_similar_direction(paper):
    said = [paper.config.simplified_prompt]
    cosines = (paper.prompt.directions_of(said) @ paper.prompt.directions_of(PLAIN_SENTENCES).T)[0]
    assert least_similar_sentences(paper.prompt, said) == [PLAIN_SENTENCES[int(cosines.argmin())]]
    several = least_similar_sentences(paper.prompt, [*said, *said, "a ring"])
    assert len(set(several)) == 3 and several[0] == least_similar_sentences(paper.prompt, said)[0]


def bank(tmp_path, vectors):
    "A model that pools a bank's sentence."
    width = built(version("image_only", VIT)).head.out_dim
    rows = {
        name: F.pad(torch.tensor(v, dtype=torch.float32), (0, width - len(v)))
        for name, v in vectors.items()
    }
    save_bank(tmp_path / "bank.safetensors", tuple(rows), torch.stack([*rows.values()]))
    config = version("training_free", VIT).replace(
        text_pretrained=str(tmp_path / "bank.safetensors"),
        simplified_prompt="a hand",
        prompt_aspect="run",
        whiten=False,
    )
    return built(config)


def test_a_bank_gives_one_of_its_own_sentences(tmp_path, two):
    model = bank(
        tmp_path, {"a hand": [1.0, 0, 0], "a palm": [1.0, 0.1, 0], "a car": [-1.0, 0.2, 0.1]}
    )
    assert least_similar_sentences(model.prompt, ["a hand"]) == ["a car"]
    found = measured(model, two)
    assert list(found) == controls_of(model) and all(
        isinstance(one, Result) for one in found.values()
    )


def test_a_bank_with_too_few_sentences_is_one_sentence(tmp_path, two):
    model = bank(tmp_path, {"a hand": [1.0, 0, 0], "a ring": [0, 1.0, 0]})
    with pytest.raises(PromptSGError, match="the bank has 0 sentences beside .* needs 2"):
        least_similar_sentences(model.prompt, ["a hand", "a ring"])
    with pytest.raises(PromptSGError, match="the bank has no sentence"):
        least_similar_sentences(model.prompt, ["a nail"])


def test_sentences_of_other_aspects_are_not_chosen(tmp_path):
    model = bank(
        tmp_path,
        {
            "a hand": [1.0, 0, 0],
            "a dorsal right hand": [1.0, 1.0, 0],
            "a dorsal left hand": [-1.0, -1.0, 0],
            "a palmar right hand": [0, 1.0, 0],
            "a palmar left hand": [0, -1.0, 0],
            "a car": [0.5, 0, 1.0],
        },
    )
    model.prompt.aspect = "dorsal right"
    assert least_similar_sentences(model.prompt, ["a {aspect} hand"]) in (["a car"], ["a hand"])


# --- records
def test_a_control_is_never_saved_over_another(paper, two, tmp_path):
    found = measured(paper, two, ["no text", "another sentence"])
    for name, result in found.items():
        result.save(tmp_path / slug(name))
        again = Result.load(tmp_path / slug(name))
        assert again.record["control"] == name and again.record["config_hash"] == paper.config.hash
    with pytest.raises(PromptSGError, match="a result of another control"):
        found["no text"].save(tmp_path / slug("another sentence"))
    with pytest.raises(PromptSGError, match="a result of another control"):
        own(paper, two).save(tmp_path / slug("no text"))


def test_no_training_person_is_ranked(free, hands):
    "The model knows the images of its train side; splits that rank them are refused."
    from dataclasses import replace

    splits = make_splits(read_11k(hands), "dorsal_r", n_splits=2)
    people = train_people(splits)
    known = people.drop_duplicates("identity")
    swapped = replace(
        splits, queries=[people.drop(known.index)] * 2, galleries=[known] * 2, test=people
    )
    with pytest.raises(PromptSGError, match="train"):
        measured(free, swapped, ["no word"])


def test_the_model_keeps_its_mode(two, paper):
    paper.train()
    try:
        measured(paper, two, ["no text"])
        assert paper.training
        with pytest.raises(PromptSGError):
            measure_controls(paper, two, ("market",), ["no text"], progress=False)
        assert paper.training
    finally:
        paper.eval()


def test_controls_of_best_use_mirror_images(two, monkeypatch):
    """The version itself in a control's place is measured as the version is, with and without
    mirrors."""
    from promptsg.tune import measure_configs

    itself = controls.Control("itself", controls._itself)
    monkeypatch.setitem(controls.CONTROLS, "no word", itself)
    configs = {
        on: version("best", VIT).replace(whiten_mirrored=on, cache_pixels=False)
        for on in (True, False)
    }
    expected = measure_configs(configs, two, ("clipfh",), progress=False)
    for on, config in configs.items():
        found = measured(PromptSG(config, 1).eval(), two, ["no word"])["no word"]
        assert equal(found, expected[on]["clipfh"])
    assert not equal(expected[True]["clipfh"], expected[False]["clipfh"])
