"Low-rank adapters on the image tower: what trains, what stays, and what is handed on."

import sys

import pytest
import torch

from promptsg.backbone import LinearAttention, load_towers
from promptsg.checkpoints import load_run
from promptsg.config import Config, PromptSGError
from promptsg.model import PromptSG, untrained
from promptsg.training import Trainer, parameter_groups

LORA = dict(unfreeze="lora", unfreeze_blocks=2, lora_rank=4)
VIT = "timm:test_vit"


def made(config, **changes):
    torch.manual_seed(0)
    return PromptSG(config.replace(**changes), 5).eval()


def noise(model, batch=3):
    return torch.randn(
        batch, 3, *model.backbone.image_size, generator=torch.Generator().manual_seed(1)
    )


def moved(model):
    "The model with adapters that change what it computes."
    with torch.no_grad():
        for name, p in model.backbone.named_parameters():
            if "lora_B" in name:
                p.normal_(0, 0.05, generator=torch.Generator().manual_seed(2))
    return model


@pytest.fixture
def no_peft(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        dict(unfreeze_blocks=None),
        dict(fusion="pool", patch_tokens="dense", use_composed_prompt=False)
        | dict(eval_prompt="simplified", supcon_loss_weight=0),
        dict(model=VIT, pretrained="random", language=False, image_size=(64, 64)),
    ],
)
def test_before_the_first_step_it_is_the_frozen_model(quick, changes):
    model = made(quick, **LORA | changes)
    frozen = made(quick, **changes | dict(unfreeze_blocks=0))
    assert torch.equal(model.embed(noise(model)), frozen.embed(noise(model)))
    # beside the adapters, nothing else is drawn otherwise
    own, other = model.merged().state_dict(), frozen.state_dict()
    assert [*own] == [*other] and all(torch.equal(own[name], other[name]) for name in own)
    with torch.enable_grad():
        torch.testing.assert_close(
            model(noise(model)).embedding, frozen(noise(model)).embedding, atol=1e-5, rtol=1e-5
        )


def test_adapters_come_from_the_seed_alone(quick):
    first = lambda model: next(p for n, p in model.named_parameters() if "lora_A" in n)
    torch.manual_seed(1)
    one = first(PromptSG(quick.replace(**LORA), 5))
    torch.manual_seed(2)
    same, other = (first(PromptSG(quick.replace(**LORA, seed=seed), 5)) for seed in (0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)


@pytest.mark.parametrize("model", [None, VIT, "timm:eva02_tiny_patch14_224"])
def test_every_adapter_gets_a_gradient(quick, model):
    "A layer whose weight is read, and which is not called, would leave its adapter out."
    changes = dict(model=model, pretrained="random", language=False) if model else {}
    model = moved(made(quick, image_size=(112, 112), **LORA | changes)).train()
    model(noise(model), labels=torch.arange(3)).embedding.square().sum().backward()
    adapters = [p for name, p in model.named_parameters() if "lora_" in name]
    assert len(adapters) >= 2 * 4 * 2
    assert all(p.grad is not None and p.grad.any() for p in adapters)


@pytest.mark.parametrize("cached", [False, True])
def test_a_training_changes_adapters_and_modules_alone(quick, splits, tmp_path, cached):
    config = quick.replace(**LORA, epochs=1, steps_per_epoch=2, cache_frozen=cached)
    trainer = Trainer(config, splits, tmp_path / "run", progress=False)
    trainer.set_up()
    tower = trainer.model.backbone
    before = {name: p.detach().clone() for name, p in tower.named_parameters()}
    grouped = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    training = [p for p in trainer.model.parameters() if p.requires_grad]
    assert sorted(map(id, grouped)) == sorted(map(id, training))
    visual = next(g for g in parameter_groups(trainer.model, config) if g["name"] == "visual")
    assert sum(p.numel() for p in visual["params"]) == 2 * 4 * (4 + 2 + 5 + 5) * tower.width
    trainer._train_epoch(0)
    changed = {n for n, p in tower.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {name for name in before if "lora_" in name}


def test_a_resumed_run_ends_as_one_that_was_not_stopped(quick, splits, tmp_path, monkeypatch):
    config = quick.replace(**LORA, steps_per_epoch=2, lora_alpha=2, weight_average=0.5)
    whole = Trainer(config, splits, tmp_path / "whole", progress=False).fit()
    train, stop = Trainer._train_epoch, [True]

    def once(trainer, epoch):
        if epoch == 1 and stop.pop():
            raise KeyboardInterrupt
        return train(trainer, epoch)

    monkeypatch.setattr(Trainer, "_train_epoch", once)
    run = Trainer(config, splits, tmp_path / "run", progress=False)
    with pytest.raises(KeyboardInterrupt):
        run.fit()
    stop.append(False)
    Trainer(config, splits, tmp_path / "run", progress=False).fit(resume=True)
    one, other = (load_run(tmp_path / name, "last") for name in ("whole", "run"))
    assert whole == tmp_path / "whole" and one.config == config
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_what_is_handed_on_is_merged_and_needs_no_peft(quick, tmp_path, monkeypatch):
    model = moved(made(quick, **LORA, lora_alpha=2))
    frozen, images = made(quick, unfreeze_blocks=0), noise(model)
    embedded = model.embed(images)
    assert (embedded - frozen.embed(images)).abs().max() > 1e-4
    model.save_pretrained(tmp_path)
    monkeypatch.setitem(sys.modules, "peft", None)
    again = PromptSG.from_pretrained(tmp_path)
    assert again.config == model.config.replace(unfreeze="weights")
    assert [*again.state_dict()] == [*frozen.state_dict()]
    torch.testing.assert_close(again.embed(images), embedded, atol=1e-5, rtol=0)
    assert torch.equal(model.embed(images), embedded)  # it keeps its adapters


def test_onnx_has_the_adapters(quick, tmp_path):
    pytest.importorskip("onnxruntime")
    from promptsg.sharing import TOLERANCE, export_onnx

    model = moved(made(quick, **LORA))
    assert export_onnx(model, tmp_path / "model.onnx") < TOLERANCE


def test_int8_has_the_adapters(quick, tmp_path):
    from promptsg.int8 import input_levels, int8_model

    if not input_levels():
        pytest.skip("this processor has no int8 products")
    model = moved(made(quick, **LORA))
    images = noise(model)
    found = int8_model(model, tmp_path).embed(images)
    assert torch.nn.functional.cosine_similarity(found, model.embed(images)).min() > 0.99
    plain = int8_model(made(quick, unfreeze_blocks=0), tmp_path).embed(images)
    assert not torch.allclose(found, plain, atol=1e-3)


def test_the_attention_is_the_tower_s(quick):
    attn = load_towers("hand-vit-tiny").backbone.blocks[0].attn.eval()
    x = torch.randn(2, 7, attn.embed_dim, generator=torch.Generator().manual_seed(0))
    ours = LinearAttention(attn)
    torch.testing.assert_close(ours(x, x, x, attn_mask=None)[0], attn(x, x, x)[0])
    again = ours.plain()
    assert again.in_proj_weight is attn.in_proj_weight and torch.equal(
        again(x, x, x)[0], attn(x, x, x)[0]
    )


def test_embeddings_of_a_tower_with_adapters_are_kept(quick):
    from promptsg.caches import embedding_kind, foreign_code
    from promptsg.data import eval_transform

    model = made(quick, **LORA)
    assert foreign_code(model) == ""
    still = eval_transform(model.backbone.image_size, model.mean, model.std)
    scaled = made(quick, **LORA, lora_alpha=1)
    kinds = {embedding_kind(one, still) for one in (model, scaled, moved(made(quick, **LORA)))}
    assert len(kinds) == 3


def test_the_tower_alone_needs_no_peft(quick, no_peft):
    assert not untrained(quick.replace(**LORA)).backbone.adapted


def test_where_peft_is_missing(quick, no_peft):
    with pytest.raises(PromptSGError, match=r"pip install 'promptsg\[lora\]'"):
        made(quick, **LORA)


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(model="hand-rn-tiny"), "no transformer blocks"),
        (dict(unfreeze_blocks=99), "unfreeze_blocks is 99"),
        (dict(lora_rank=1000), "1000"),
    ],
)
def test_a_tower_that_takes_no_adapters(quick, changes, words):
    with pytest.raises(PromptSGError, match=words):
        made(quick, **LORA | changes)


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(unfreeze="lora", unfreeze_blocks=0), "give at least 1"),
        (dict(unfreeze="lora", lora_rank=0), "lora_rank must be at least 1"),
        (dict(unfreeze="lora", lora_alpha=0), "lora_alpha must be above 0"),
    ],
)
def test_fields_that_do_not_go_together(changes, words):
    with pytest.raises(PromptSGError, match=words):
        Config(**changes)
    assert Config(**LORA).hash != Config(**LORA | dict(lora_rank=5)).hash
