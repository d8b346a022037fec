"Image towers of open_clip that are not CLIP's own: SigLIP's, EVA's, CoCa's, CLIPA's, ConvNeXt's."

import open_clip
import pytest
import torch

from promptsg.backbone import bare_visual, load_towers, save_bank, save_tensors
from promptsg.checkpoints import load_run
from promptsg.config import Config, PromptSGError
from promptsg.embedding import measure
from promptsg.model import PromptSG
from promptsg.training import Trainer

TEXT = dict(context_length=77, vocab_size=49408, width=32, heads=2, layers=1)
SIGLIP_TEXT = TEXT | dict(hf_tokenizer_name="timm/ViT-B-16-SigLIP", no_causal_mask=True)
VIT = dict(image_size=32, patch_size=16, width=32, head_width=16, layers=3)


def timm(name, pool, proj, size):
    return dict(timm_model_name=name, timm_pool=pool, timm_proj=proj, image_size=size)


# the architectures of open_clip, as small as they come
TINY = {
    "tiny-siglip": (64, timm("test_vit", "map", "none", 160), SIGLIP_TEXT),
    "tiny-eva": (48, timm("eva02_tiny_patch14_224", "token", None, 224), TEXT),
    "tiny-pe": (48, timm("vit_pe_core_tiny_patch16_384", "map", None, 384), TEXT),
    "tiny-convnext": (48, timm("test_convnext", "", "linear", 160), TEXT),
    "tiny-gap": (48, timm("test_vit3", "", "linear", 160), TEXT),
    "tiny-coca": (48, VIT | dict(attentional_pool=True, attn_pooler_heads=4), SIGLIP_TEXT),
    "tiny-clipa": (48, VIT | dict(pool_type="avg", final_ln_after_pool=True), SIGLIP_TEXT),
    "tiny-avg": (48, VIT | dict(pool_type="avg"), TEXT),
}
HAS_TEXT = [name for name, (*_, text) in TINY.items() if text is TEXT]


@pytest.fixture(autouse=True)
def known(monkeypatch):
    for name, (dim, vision, text) in TINY.items():
        config = dict(embed_dim=dim, vision_cfg=vision, text_cfg=text)
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, config)


def images(size, batch=2):
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", TINY)
@torch.no_grad()
def test_it_embeds_as_open_clip_does(name):
    towers = load_towers(name, "random")
    backbone = towers.backbone.eval()
    given = images(backbone.image_size)
    whole, theirs = backbone(given), backbone.visual(given)
    theirs = theirs[0] if isinstance(theirs, tuple) else theirs
    torch.testing.assert_close(whole.embedding, theirs, atol=1e-5, rtol=1e-4)
    rows, columns = backbone.grid
    assert (
        whole.patches.shape == (2, rows * columns, towers.dim) == (2, rows * columns, TINY[name][0])
    )
    assert whole.pooled.shape == (2, backbone.width) and (towers.text is not None) == (
        name in HAS_TEXT
    )
    if backbone.blocks:
        assert [state.shape for state in whole.states] == [(2, backbone.width)] * 3
        backbone.unfreeze(1)
        torch.testing.assert_close(backbone(given).embedding, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", TINY)
@torch.no_grad()
def test_a_patch_is_projected_as_an_image_of_it_alone(name):
    backbone = load_towers(name, "random").backbone.eval()
    x = backbone.stem(images(backbone.image_size, 1))
    if backbone.blocks:
        one = torch.randn(1, 1, backbone.width, generator=torch.Generator().manual_seed(1))
        same = one.expand(-1, x.shape[1], -1)
    else:
        one = torch.randn(1, backbone.width, 1, 1, generator=torch.Generator().manual_seed(1))
        same = one.expand_as(x)
    embedding, patches, _ = backbone.end(same, None)
    torch.testing.assert_close(patches, embedding[:, None].expand_as(patches), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["tiny-siglip", "tiny-pe", "tiny-convnext"])
def test_another_image_size(name):
    backbone = load_towers(name, "random", (64, 96)).backbone.eval()
    assert backbone.image_size == (64, 96)
    seen = backbone(images((64, 96)))
    assert seen.patches.shape[1] == backbone.grid[0] * backbone.grid[1]


def test_pixels_are_brought_to_what_the_weights_know():
    assert load_towers("tiny-eva", "random").mean == open_clip.OPENAI_DATASET_MEAN
    from promptsg.backbone import _pixels

    assert _pixels("ViT-B-16-SigLIP", "random") == ((0.5,) * 3, (0.5,) * 3)
    assert _pixels("ViT-B-16-SigLIP", "webli") == ((0.5,) * 3, (0.5,) * 3)
    assert _pixels("ViT-B-16", "random")[0] == open_clip.OPENAI_DATASET_MEAN


@pytest.mark.parametrize(
    "name, changes",
    [
        ("tiny-siglip", dict(language=False)),
        ("tiny-eva", dict(image_size=(56, 56), text_queries="words")),
        ("tiny-gap", dict(image_size=(32, 32), unfreeze="lora", lora_rank=2)),
        ("tiny-coca", dict(language=False)),
    ],
)
def test_it_trains_and_is_handed_on(quick, splits, tmp_path, name, changes):
    config = quick.replace(
        **dict(model=name, pretrained="random", image_size=(32, 32), unfreeze_blocks=2)
        | dict(cache_frozen=True, epochs=1, steps_per_epoch=1)
        | changes
    )
    Trainer(config, splits, tmp_path / "run", progress=False).fit()
    model = load_run(tmp_path / "run")
    assert measure(model, splits, progress=False)[0]["clipfh"].record
    model.save_pretrained(tmp_path / "model")
    given = images(model.backbone.image_size)
    torch.testing.assert_close(
        PromptSG.from_pretrained(tmp_path / "model").embed(given), model.embed(given)
    )


def test_a_bank_stands_for_a_text_tower_that_is_left_out(quick, tmp_path):
    sentences = ("A photo of a person's dorsal right hand.", "a ring", "a nail")
    vectors = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    save_bank(tmp_path / "bank.safetensors", sentences, vectors)
    config = dict(model="tiny-siglip", pretrained="random", image_size=(32, 32))
    config |= dict(fusion="pool", use_composed_prompt=False, eval_prompt="simplified")
    config |= dict(supcon_loss_weight=0, words=sentences[1:])
    with pytest.raises(PromptSGError, match="no text tower"):
        PromptSG(quick.replace(**config), 2)
    text = str(tmp_path / "bank.safetensors")
    model = PromptSG(quick.replace(**config, text_pretrained=text), 2).eval()
    assert model(images((32, 32))).attention.shape == (2, 2, 4)


def test_weights_come_from_a_file(tmp_path):
    tower = bare_visual("tiny-siglip").eval()
    prefixed = {f"visual.{name}": t for name, t in tower.state_dict().items()}
    save_tensors(tmp_path / "tower.safetensors", tower.state_dict())
    save_tensors(tmp_path / "model.safetensors", prefixed | {"text.other": torch.ones(2)})
    for file in ("tower", "model"):
        towers = load_towers("tiny-siglip", str(tmp_path / f"{file}.safetensors"))
        own = towers.backbone.visual.state_dict()
        assert towers.text is None
        assert all(torch.equal(t, own[name]) for name, t in tower.state_dict().items())


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(model="swin_base_patch4_window7_224"), "register a backbone of your own"),
        (dict(model="tiny-siglip", image_size=(33, 32)), "multiple of the patch size"),
        (dict(model="tiny-siglip", language=True), "no text tower"),
        (dict(model="tiny-siglip", patch_stride=8), "patch_stride"),
        (dict(model="tiny-avg", language=True, patch_tokens="dense"), "no dense tokens"),
        (dict(model="ViT-B-16-SigLIP", pretrained="openai"), "webli"),
    ],
)
def test_what_a_tower_cannot_give_is_one_sentence(changes, words):
    fields = {"language": False, "pretrained": "random"} | changes
    with pytest.raises(PromptSGError, match=words):
        PromptSG(Config(**fields), 2)
