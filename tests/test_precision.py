"Eight bits on a CPU: the same tokens, near enough; and what refuses them."

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from promptsg import int8
from promptsg.checkpoints import load_run
from promptsg.config import Config, PromptSGError
from promptsg.embedding import Embedder, measure
from promptsg.int8 import Int8Block, Int8Linear, channel_ranges, drawn_images, int8_model
from promptsg.model import PromptSG
from promptsg.training import Trainer
from promptsg.versions import without_training


@pytest.fixture(autouse=True)
def pays(monkeypatch, tmp_path):
    "Int8 is taken, however fast this machine is; with a cache of the test's own."
    monkeypatch.setattr(int8, "_verdicts", {})
    monkeypatch.setattr(int8, "_slower", lambda *arguments: "")
    monkeypatch.setenv("PROMPTSG_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def free(quick):
    return without_training(quick).replace(precision="int8")


def cosines(one, other):
    return F.cosine_similarity(one, other, dim=-1)


def test_a_product_is_as_near_as_eight_bits_allow():
    generator = torch.Generator().manual_seed(0)
    weight, bias, x = (
        torch.randn(*shape, generator=generator) for shape in ((24, 40), (24,), (2, 7, 40))
    )
    weight[3] = 0  # a row that says nothing
    exact = F.linear(x, weight, bias)
    product = Int8Linear(weight, bias, x.min(), x.max())
    found = product(x / product.step + product.offset)
    step = (x.max() - x.min()) / 255
    # half a step of each side's rounding, for each of 40 addends at most
    most = 40 * (
        0.5 * step * weight.abs().max() + 0.5 * weight.abs().amax() / 127 * (x.abs().max() + step)
    )
    assert (found - exact).abs().max() < most / 4 and cosines(found, exact).min() > 0.999
    torch.testing.assert_close(found[..., 3], bias[3].expand(2, 7), atol=1e-6, rtol=0)


def test_rows_and_inputs_on_the_grid_are_exact():
    weight = torch.tensor([[127.0, -3, 0], [1, 2, -127]]) / 64
    x = torch.arange(-6, 6).view(4, 3).float() / 2
    product = Int8Linear(weight, torch.zeros(2), -3, -3 + 255 / 2)
    assert (product.step, product.zero) == (0.5, 6)
    torch.testing.assert_close(
        product(x / product.step + product.offset), x @ weight.T, atol=1e-5, rtol=0
    )
    beyond = product(torch.tensor([[-400.0, 20, 500]]))  # cut off at the ends of the range
    torch.testing.assert_close(
        beyond, torch.tensor([[-3.0, 7, 124.5]]) @ weight.T, atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("most, levels", [(10**9, 255), (2 * 127 * 127, 127), (100, 0)])
def test_a_processor_that_cuts_products_off_gets_smaller_ones(monkeypatch, most, levels):
    "As AVX2 does: two neighbouring products are added, and cut off at `most`."

    def product(x, step, zero, packed, steps, *rest):
        pairs = (x.int()[:, None] * packed.int()).unflatten(2, (-1, 2)).sum(3).clamp(max=most)
        return pairs.sum(2) * step * steps

    monkeypatch.setattr(torch.ops.onednn, "qlinear_prepack", lambda weight, shape: weight)
    monkeypatch.setattr(torch.ops.onednn, "qlinear_pointwise", product)
    assert int8.input_levels.__wrapped__() == levels


def test_seven_bits_are_near_too(quick, tmp_path, monkeypatch):
    model = PromptSG(quick, 2).eval()
    images = drawn_images(model.backbone.image_size, model.mean, model.std, 6)
    near = []
    for levels in (255, 127):
        monkeypatch.setattr(int8, "input_levels", lambda: levels)
        near.append(cosines(int8_model(model, tmp_path).embed(images), model.embed(images)).mean())
    assert 1 > near[0] > near[1] > 0.98


@pytest.mark.parametrize("tokens", [("patches",), ("dense",), ("patches", "dense")])
def test_all_that_the_fusion_reads_is_there(quick, splits, tmp_path, tokens):
    model = PromptSG(quick, 2).eval()
    model.backbone.tokens = tokens
    images = drawn_images(model.backbone.image_size, model.mean, model.std, 6)
    with torch.no_grad():
        exact, found = model.backbone(images), int8_model(model, tmp_path).backbone(images)
    for name in ("embedding", "patches", "dense"):
        if getattr(exact, name) is None:
            assert getattr(found, name) is None
        else:
            assert cosines(getattr(found, name), getattr(exact, name)).mean() > 0.99, name
    assert (
        len(found.states) == len(exact.states)
        and cosines(found.states[0], exact.states[0]).mean() > 0.99
    )


@pytest.mark.parametrize(
    "changes", [{}, dict(language=False), dict(fusion="text"), dict(unfreeze_blocks=2)]
)
def test_embeddings_in_int8_are_near(quick, splits, changes):
    torch.manual_seed(0)
    model = PromptSG(quick.replace(**changes), 3).eval()
    exact, near = (
        Embedder(model, model.config.replace(precision=name), progress=False)
        .embed(splits.test)
        .of(splits.test)
        for name in ("no", "int8")
    )
    assert 0.98 < cosines(near, exact).mean() < 0.999999  # eight bits, and really so


def test_an_image_does_not_depend_on_its_batch(quick, splits):
    model = PromptSG(quick, 3).eval()
    embedder = Embedder(
        model, quick.replace(precision="int8", cache_embeddings=False), progress=False
    )
    whole = embedder.embed(splits.test).of(splits.test)
    alone = embedder.embed(splits.test, batch_size=1).of(splits.test)
    # a float32 sum may round to the next step
    torch.testing.assert_close(alone, whole, atol=2e-3, rtol=0)
    assert cosines(alone, whole).min() > 0.9999


def test_a_version_without_training_is_trained_measured_and_kept_in_int8(
    free, splits, tmp_path, capsys
):
    run = Trainer(free, splits, tmp_path / "run", progress=False).fit()
    results, rows = measure(load_run(run), splits, progress=False)
    plain, others = measure(load_run(run, precision="no"), splits, progress=False)
    assert (
        results["clipfh"].record["precision"] == "int8"
        and plain["clipfh"].record["precision"] == "float32"
    )
    # each has a place of its own in the cache
    assert not torch.equal(rows.features, others.features)
    again, _ = measure(load_run(run), splits, progress=False)
    assert again["clipfh"].per_query.equals(results["clipfh"].per_query)


def test_ranges_are_taken_once_and_made_again_when_damaged(quick, tmp_path, monkeypatch):
    model, calls = PromptSG(quick, 2).eval(), []
    monkeypatch.setattr(
        int8, "channel_ranges", lambda *given: calls.append(1) or channel_ranges(*given)
    )
    rows = [int8_model(model, tmp_path).backbone.blocks[0].attn.qkv.step for _ in range(2)]
    [file] = tmp_path.glob("int8-*.safetensors")
    assert len(calls) == 3  # 24 hands, 8 at a time
    file.write_bytes(file.read_bytes()[:-5])
    rows.append(int8_model(model, tmp_path).backbone.blocks[0].attn.qkv.step)
    assert len(calls) == 6 and len(set(rows)) == 1
    next(model.backbone.parameters()).data.mul_(1.1)
    int8_model(model, tmp_path)
    assert len(calls) == 9 and len(list(tmp_path.glob("int8-*.safetensors"))) == 2


def test_ranges_need_no_folder_that_can_be_written(quick, tmp_path):
    (tmp_path / "file").write_text("")
    assert isinstance(
        int8_model(PromptSG(quick, 2).eval(), tmp_path / "file").backbone.blocks[0], Int8Block
    )


def test_the_model_itself_stays_float32(quick, tmp_path):
    model = PromptSG(quick, 2).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    twin = int8_model(model, tmp_path)
    assert not any(isinstance(module, Int8Linear) for module in model.modules())
    assert twin.fusion is model.fusion and twin.prompt is model.prompt
    after = model.state_dict()
    assert before.keys() == after.keys() and all(
        torch.equal(before[name], after[name]) for name in before
    )


# --- refused, or not taken
def test_training_by_gradient_refuses_int8(quick, splits, tmp_path):
    with pytest.raises(PromptSGError, match="int8 is for embedding.*--set precision=int8"):
        Trainer(quick.replace(precision="int8"), splits, tmp_path / "run", progress=False).fit()
    assert not (tmp_path / "run").exists()


def test_a_resnet_refuses_int8(quick):
    model = PromptSG(quick.replace(model="hand-rn-tiny", precision="int8"), 2).eval()
    with pytest.raises(PromptSGError, match="hand-rn-tiny is none; set precision to no"):
        Embedder(model, model.config, progress=False)


def test_kept_outputs_of_frozen_blocks_refuse_int8():
    with pytest.raises(PromptSGError, match="set cache_frozen to false"):
        Config(precision="int8", cache_frozen=True, unfreeze_blocks=1)


def test_where_it_is_slower_float32_is_taken_and_that_is_said_once(
    quick, splits, monkeypatch, capsys
):
    monkeypatch.setattr(
        int8, "_slower", lambda *arguments: "slower here, 2.0 ms a block against 1.0"
    )
    model = PromptSG(quick, 3).eval()
    feeds = [
        Embedder(model, quick.replace(precision=name, cache_embeddings=False), progress=False)
        for name in ("int8", "int8", "no")
    ]
    assert [embedder.precision for embedder in feeds] == ["float32"] * 3
    assert (
        capsys.readouterr().err
        == "int8: slower here, 2.0 ms a block against 1.0; float32 is taken\n"
    )
    assert feeds[0].embed(splits.test).features.equal(feeds[2].embed(splits.test).features)


SLOWER = int8._slower


def test_a_block_is_timed_against_its_own(quick, monkeypatch):
    model, clock = PromptSG(quick, 2).eval(), [0.0]
    block = model.backbone.blocks[0]

    def passing(seconds, forward):
        def run(self, x):
            clock[0] += seconds
            return forward(self, x)

        return run

    monkeypatch.setattr(int8, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(type(block), "forward", passing(0.002, type(block).forward))
    for seconds, said in ((0.001, ""), (0.003, "slower here, 3.0 ms a block against 2.0")):
        with monkeypatch.context() as patch:
            patch.setattr(Int8Block, "forward", passing(seconds, Int8Block.forward))
            assert SLOWER(block, 17, model.backbone.width, "cpu") == said
    assert "the model is on cuda" in SLOWER(block, 17, model.backbone.width, "cuda")
    monkeypatch.setattr(
        int8, "Int8Block", lambda *arguments: torch.ops.onednn.there_is_no_such_product
    )
    assert "no int8 products for this processor (AttributeError)" in SLOWER(
        block, 17, model.backbone.width, "cpu"
    )


def test_evaluating_a_finished_run_in_int8_has_a_place_of_its_own(
    quick, hands, splits, tmp_path, promptsg
):
    run = Trainer(
        quick.replace(epochs=1, steps_per_epoch=1), splits, tmp_path / "run", progress=False
    ).fit()
    promptsg("evaluate", "--run", run, "--data", hands)
    said = promptsg("evaluate", "--run", run, "--data", hands, "--set", "precision=int8").stdout
    assert "config-" in said and len(list(run.rglob("result.json"))) == 2
    out = tmp_path / "rows.npz"
    promptsg("embed", "--run", run, "--data", hands, "--out", out, "--set", "precision=int8")
    assert '"precision": "int8"' in str(np.load(out)["record"])
