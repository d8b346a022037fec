"Optimizer groups, schedules, selection on train people, checkpoints, caching."

import ast
import os
import pickle
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator

from promptsg import training
from promptsg.checkpoints import load_run, read_checkpoint
from promptsg.config import Config, PromptSGError
from promptsg.controls import gradient_table
from promptsg.embedding import Embedder
from promptsg.heads import Whitening
from promptsg.images import load_image
from promptsg.model import PromptSG
from promptsg.training import Trainer, learning_rate, loss_terms, parameter_groups
from promptsg.versions import version


@pytest.fixture(scope="module")
def run(quick, splits, tmp_path_factory):
    return Trainer(quick, splits, tmp_path_factory.mktemp("runs") / "run", progress=False).fit()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        dict(classifier="arcface", bnneck_reduction=True),
        dict(language=False),
        dict(unfreeze_blocks=1),
    ],
)
def test_every_trainable_parameter_is_in_one_group(quick, changes):
    model = PromptSG(quick.replace(**changes), 5)
    grouped = [id(p) for g in parameter_groups(model, quick) for p in g["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad) and len(
        set(grouped)
    ) == len(grouped)


def test_schedules():
    cosine = Config(schedule="cosine", warmup_epochs=1, epochs=11, eta_min=1e-7)
    assert learning_rate(cosine, 1e-3, 0.5) == pytest.approx(5e-4, rel=1e-3)
    assert learning_rate(cosine, 1e-3, 6) == pytest.approx((1e-3 + 1e-7) / 2)
    assert learning_rate(cosine, 1e-3, 11) == pytest.approx(1e-7)
    assert learning_rate(Config(schedule="none"), 1e-3, 50) == 1e-3
    assert learning_rate(Config(), 1.0, 40) == pytest.approx(0.01)


def test_clip_handids_schedule_is_its_definition():
    "Linear from 1 % over 10 epochs, then times 0.5 after 40 and after 60."
    config = version("handid", "vitb16")
    for base in (config.lr_clip_visual, config.lr_modules):
        for epoch in range(config.epochs):
            share = (
                0.01 + 0.99 * epoch / 10 if epoch < 10 else 0.5 ** ((epoch >= 40) + (epoch >= 60))
            )
            assert learning_rate(config, base, epoch) == pytest.approx(share * base, rel=1e-6)
    assert [learning_rate(config, 1.0, epoch) for epoch in (39.99, 40.0)] == [1.0, 0.5]


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_weight_decay_is_of_the_optimizer_that_is_named(quick, splits, tmp_path, name):
    trainer = Trainer(
        quick.replace(optimizer=name, weight_decay=0.1), splits, tmp_path, progress=False
    )
    trainer.set_up()
    weight = trainer.model.head.classifier.weight
    before = weight.detach().clone()
    weight.grad = torch.full_like(weight, 1e-3)
    trainer._set_learning_rates(5)
    rate = next(
        group["lr"]
        for group in trainer.optimizer.param_groups
        if any(p is weight for p in group["params"])
    )
    trainer.optimizer.step()
    # the first step of both is the gradient's sign; Adam's gradient has the decay in it
    gradient = 1e-3 + 0.1 * before if name == "adam" else torch.full_like(before, 1e-3)
    kept = before if name == "adam" else before * (1 - rate * 0.1)
    assert torch.allclose(weight, kept - rate * gradient / (gradient.abs() + 1e-8), atol=1e-7)


def test_a_run_folder_is_complete(run, quick):
    assert Config.from_yaml(run / "config.yml") == quick
    lines = (run / "metrics.csv").read_text().splitlines()
    assert len(lines) == 3 and {"loss_id", "loss_triplet", "loss_supcon", "val_mAP"} <= set(
        lines[0].split(",")
    )
    assert (run / "best" / "checkpoint.safetensors").exists() and (
        run / "last" / "state.json"
    ).exists()


def test_test_people_are_never_seen_in_training(quick, splits, tmp_path, monkeypatch):
    seen = set()
    load = load_image
    # an empty one: every image that is used is decoded
    monkeypatch.setenv("PROMPTSG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("promptsg.data.load_image", lambda path: (seen.add(path), load(path))[1])
    Trainer(quick.replace(epochs=1), splits, tmp_path / "run", progress=False).fit()
    assert seen and not seen & set(splits.test.path)


def test_clipping_comes_before_the_step(quick, splits, tmp_path, monkeypatch):
    calls = []
    clip, step = Accelerator.clip_grad_norm_, torch.optim.AdamW.step
    monkeypatch.setattr(
        Accelerator, "clip_grad_norm_", lambda *a, **k: (calls.append("clip"), clip(*a, **k))[1]
    )
    monkeypatch.setattr(
        torch.optim.AdamW, "step", lambda *a, **k: (calls.append("step"), step(*a, **k))[1]
    )
    Trainer(quick.replace(epochs=1, clip_norm=1.0), splits, tmp_path / "run", progress=False).fit()
    assert (
        calls
        and calls[::2] == ["clip"] * (len(calls) // 2)
        and calls[1::2] == ["step"] * (len(calls) // 2)
    )


def test_resume_equals_an_uninterrupted_run(run, quick, splits, tmp_path, monkeypatch):
    epoch = Trainer._train_epoch

    def killed(self, number):
        if number == 1:
            raise KeyboardInterrupt
        return epoch(self, number)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "_train_epoch", killed)
        Trainer(quick, splits, tmp_path / "run", progress=False).fit()
    Trainer(quick, splits, tmp_path / "run", progress=False).fit(resume=True)
    (first, state), (second, again) = (
        read_checkpoint(run / "last"),
        read_checkpoint(tmp_path / "run" / "last"),
    )
    assert first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)
    assert state["history"] == again["history"]


def test_resume_with_workers_draws_the_same_augmentation(quick, splits, tmp_path, monkeypatch):
    config = quick.replace(num_workers=1, crop_padding=4, erasing=0.5, flip=0.5, steps_per_epoch=2)
    whole = Trainer(config, splits, tmp_path / "whole", progress=False).fit()
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(
            Trainer,
            "_train_epoch",
            lambda self, epoch, train=Trainer._train_epoch: (
                train(self, epoch) if not epoch else 1 / 0
            ),
        )
        Trainer(config, splits, tmp_path / "run", progress=False).fit()
    Trainer(config, splits, tmp_path / "run", progress=False).fit(resume=True)
    assert (whole / "metrics.csv").read_text() == (tmp_path / "run" / "metrics.csv").read_text()


def test_cached_pixels_train_to_the_same_bit(run, quick, splits, tmp_path, monkeypatch):
    monkeypatch.setenv("PROMPTSG_CACHE", str(tmp_path / "cache"))
    config = quick.replace(crop_padding=4, erasing=0.5, steps_per_epoch=2, epochs=1)
    runs = [
        Trainer(config.replace(cache_pixels=on), splits, tmp_path / str(on), progress=False).fit()
        for on in (False, True)
    ]
    (decoded, _), (cached, _) = (read_checkpoint(one / "last") for one in runs)
    assert all(torch.equal(decoded[name], cached[name]) for name in decoded)
    assert len(list((tmp_path / "cache").rglob("*.npy"))) >= splits.train.path.nunique()
    model = load_run(run)
    first, second = (
        Embedder(model, model.config.replace(cache_pixels=on), progress=False)
        .embed(splits.test)
        .of(splits.test)
        for on in (False, True)
    )
    assert torch.equal(first, second)


def test_a_cache_that_cannot_be_written_is_one_sentence(quick, splits, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PROMPTSG_CACHE", str(tmp_path / "file"))
    model = PromptSG(quick, 2)
    with pytest.raises(PromptSGError, match="PROMPTSG_CACHE"):
        Embedder(model, quick, progress=False).embed(splits.test)


# --- options that change nothing
def loss_and_gradients(config, prepare=lambda model: None):
    "One step's loss, every gradient and every buffer."
    torch.manual_seed(0)
    model = PromptSG(config, 4).train()
    prepare(model)
    images, labels = torch.randn(8, 3, *model.backbone.image_size), torch.arange(8) // 2
    loss = sum(training.Objective(model, config)(labels, images).values())
    loss.backward()
    return (
        loss,
        {name: p.grad for name, p in model.named_parameters() if p.grad is not None},
        dict(model.named_buffers()),
    )


def check_same(config, prepare):
    (loss, gradients, buffers), (other, others, theirs) = (
        loss_and_gradients(config),
        loss_and_gradients(config, prepare),
    )
    assert gradients.keys() == others.keys() and len(gradients) > 20
    torch.testing.assert_close(other, loss, rtol=1e-5, atol=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            others[name],
            gradient,
            rtol=1e-3,
            atol=1e-4 * max(1e-2, gradient.abs().max().item()),
            msg=name,
        )
    for name, buffer in buffers.items():
        torch.testing.assert_close(theirs[name], buffer, msg=name)


@pytest.mark.parametrize("changes", [{}, dict(unfreeze_blocks=1), dict(model="hand-rn-tiny")])
def test_checkpointed_blocks_run_again_and_change_nothing(quick, changes):
    runs = []

    def prepare(model):
        model.backbone.checkpoint_blocks = True
        model.backbone.blocks[-1].register_forward_pre_hook(lambda *a: runs.append(1))

    check_same(quick.replace(**changes), prepare)
    assert len(runs) == 2


@pytest.mark.parametrize("model", ["hand-vit-tiny", "hand-rn-tiny"])
def test_compiled_parts_change_nothing(quick, model):
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    backend = CompileCounterWithBackend("aot_eager")
    check_same(quick.replace(model=model), lambda model: training.compile_parts(model, backend))
    assert backend.frame_count >= 2


def test_config_options_reach_the_model(quick, splits, tmp_path, monkeypatch):
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, **options: setattr(self, "compiled", options)
    )
    trainer = Trainer(
        quick.replace(compile=True, checkpoint_blocks=True),
        splits,
        tmp_path / "run",
        progress=False,
    )
    trainer.set_up()
    assert trainer.model.backbone.checkpoint_blocks and trainer.model.fusion.compiled == dict(
        backend="inductor"
    )
    assert all(block.compiled for block in trainer.model.backbone.blocks)


# --- trackers
def test_tensorboard_gets_a_row_an_epoch(quick, splits, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = Trainer(
        quick.replace(tracker="tensorboard", steps_per_epoch=1),
        splits,
        tmp_path / "run",
        progress=False,
    ).fit()
    events = EventAccumulator(str(out / quick.experiment)).Reload()
    assert [event.step for event in events.Scalars("val_mAP")] == [
        1,
        2,
    ] and "lr_modules" in events.Tags()["scalars"]


def test_a_missing_tracker_is_one_sentence(quick, splits, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(PromptSGError, match="pip install wandb"):
        Trainer(quick.replace(tracker="wandb"), splits, tmp_path / "run", progress=False).fit()
    assert not (tmp_path / "run").exists()


def test_early_stop(quick, splits, tmp_path, monkeypatch):
    scores = iter([0.5, 0.4, 0.3, 0.9])
    monkeypatch.setattr(
        Trainer, "validate", lambda self: {"val_rank1": 0.0, "val_mAP": next(scores)}
    )
    out = Trainer(
        quick.replace(epochs=4, steps_per_epoch=1, early_stop_patience=2),
        splits,
        tmp_path / "run",
        progress=False,
    ).fit()
    assert (
        read_checkpoint(out / "last")[1]["epoch"] == 3
        and read_checkpoint(out / "best")[1]["epoch"] == 1
    )


def test_a_loss_that_is_not_finite_names_step_and_term(quick, splits, tmp_path, monkeypatch):
    monkeypatch.setattr(
        training, "supcon", lambda *a: torch.tensor(float("nan"), requires_grad=True)
    )
    with pytest.raises(PromptSGError, match="supcon is not finite at step 0"):
        Trainer(quick, splits, tmp_path / "run", progress=False).fit()


@pytest.mark.parametrize("log_frequency", [1, 1000])
def test_nothing_bad_is_saved_however_rarely_the_losses_are_looked_at(
    quick, splits, tmp_path, monkeypatch, log_frequency
):
    calls, supcon = [], training.supcon

    def later(*a):
        calls.append(1)
        return supcon(*a) * (float("nan") if len(calls) == 6 else 1)

    monkeypatch.setattr(training, "supcon", later)
    config = quick.replace(steps_per_epoch=4, log_frequency=log_frequency)
    with pytest.raises(PromptSGError, match="loss term supcon is not finite at step 5"):
        Trainer(config, splits, tmp_path / "run", progress=False).fit()
    assert len(calls) == (6 if log_frequency == 1 else 8)
    tensors, state = read_checkpoint(tmp_path / "run" / "last")
    assert state["epoch"] == 1 and all(t.isfinite().all() for t in tensors.values())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        dict(classifier="arcface"),
        dict(model="hand-rn-tiny", classifier="bnneck"),
        dict(text_queries="words"),
    ],
)
def test_a_step_waits_for_no_device(quick, monkeypatch, changes):
    monkeypatch.setattr(torch, "autocast", lambda *a, **k: nullcontext())  # knows no "meta"
    config = quick.replace(clip_norm=1.0, **changes)
    # tensors without values: whatever reads one, raises
    model = PromptSG(config, 4).to("meta").train()
    optimizer = torch.optim.AdamW(parameter_groups(model, config))
    images, labels = (
        torch.empty(8, 3, *model.backbone.image_size, device="meta"),
        torch.empty(8, dtype=torch.int64, device="meta"),
    )
    record = training.LossRecord(2)
    for _ in range(2):
        terms = training.Objective(model, config)(labels, images)
        sum(terms.values()).backward()
        torch.nn.utils.clip_grad_norm_(
            [p for p in model.parameters() if p.requires_grad], config.clip_norm
        )
        optimizer.step()
        record.add(terms)
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        record.latest()


def test_cached_features_train_and_embed_like_images(quick, splits, tmp_path):
    few = quick.replace(unfreeze_blocks=2, epochs=1)
    whole = Trainer(few, splits, tmp_path / "images", progress=False).fit()
    cached = Trainer(
        few.replace(cache_frozen=True), splits, tmp_path / "cached", progress=False
    ).fit()
    embeddings = [
        Embedder(load_run(run), load_run(run).config, tmp_path / "cache", progress=False)
        .embed(splits.test)
        .of(splits.test)
        for run in (whole, cached)
    ]
    # half precision on disk
    assert torch.nn.functional.cosine_similarity(*embeddings).min() > 0.999
    made = [
        array
        for array in map(np.load, (tmp_path / "cache").rglob("*.npy"))
        if array.dtype == np.float16
    ]
    assert [len(array) for array in made] == [len(splits.test)]


def test_a_changed_image_is_not_taken_from_the_cache(quick, splits, tmp_path):
    from PIL import Image

    model = PromptSG(quick.replace(unfreeze_blocks=1, cache_frozen=True), 2).eval()
    frame = splits.test.head(2).copy()
    frame["path"] = [str(tmp_path / name) for name in frame.image]
    for path, source in zip(frame.path, splits.test.path):
        Image.open(source).save(path)
    first = Embedder(model, model.config, tmp_path / "cache", progress=False).embed(frame).of(frame)
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(frame.path.iloc[0])
    second = (
        Embedder(model, model.config, tmp_path / "cache", progress=False).embed(frame).of(frame)
    )
    assert not torch.allclose(first[0], second[0], atol=1e-3) and torch.allclose(
        first[1], second[1], atol=1e-5
    )


def test_broken_checkpoints_are_one_sentence_and_stay(run, quick, tmp_path):
    import shutil

    copy = shutil.copytree(run, tmp_path / "run")
    file = copy / "best" / "checkpoint.safetensors"
    half = file.read_bytes()[:-100]
    file.write_bytes(half)
    with pytest.raises(PromptSGError, match="not a complete checkpoint"):
        load_run(copy)
    assert file.read_bytes() == half and load_run(copy, "last")
    file.write_bytes(pickle.dumps({"model": 1}))
    with pytest.raises(PromptSGError, match="not a complete checkpoint"):
        load_run(copy)


def test_another_backbone_or_other_frozen_weights_are_refused(run, quick, splits, tmp_path):
    with pytest.raises(PromptSGError, match="does not match"):
        load_run(run, model="hand-rn-tiny")
    few = Trainer(
        quick.replace(unfreeze_blocks=1, epochs=1), splits, tmp_path / "few", progress=False
    ).fit()
    with pytest.raises(PromptSGError, match="other frozen weights"):
        load_run(few, pretrained="random")


def test_a_folder_with_a_run_is_not_overwritten(run, quick, splits):
    before = (run / "last" / "checkpoint.safetensors").read_bytes()
    with pytest.raises(PromptSGError, match="--resume"):
        Trainer(quick, splits, run, progress=False).fit()
    with pytest.raises(PromptSGError, match="another epochs"):
        Trainer(quick.replace(epochs=5), splits, run, progress=False).fit(resume=True)
    assert (run / "last" / "checkpoint.safetensors").read_bytes() == before


# --- many processes
PROCESSES = """
import sys, torch
from pathlib import Path
from promptsg.config import Config
from promptsg.data import make_splits, read_11k
from promptsg.checkpoints import load_run
from promptsg.distributed import SharedBatchNorm, processes
from promptsg.embedding import Embedder
from promptsg.training import Trainer
hands, out, configs = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
splits = make_splits(read_11k(hands), "dorsal_r", n_splits=3)
for file in configs:
    run = Trainer(Config.from_yaml(file), splits, out / Path(file).stem, progress=False).fit()
    model = load_run(run)
    embedder, few = Embedder(model, model.config, progress=False), splits.test.head(13)
    found = embedder.embed(few).of(few)
    torch.save(found, run / f"embedded{processes()[0]}.pt")
rank, world = processes()
torch.manual_seed(0)
x, target = torch.randn(6, 5, 4).double() * 3 + 1, torch.randn(6, 5, 4).double()
norm = torch.nn.BatchNorm1d(5).double()
own, norm = x[3 * rank:][:3].requires_grad_(), SharedBatchNorm(norm)
y = norm(own)
(y * target[3 * rank:][:3]).sum().backward()
found = [y.detach(), own.grad, norm.weight.grad, norm.bias.grad]
found += [norm.running_mean, norm.running_var]
torch.save(found, out / f"norm{rank}.pt")
"""


@pytest.fixture(scope="module")
def pair(quick, hands, splits, tmp_path_factory):
    "{name: (run by this process, run by two)} for a few configs, and the folder of the two."
    folder = tmp_path_factory.mktemp("pair")
    base = quick.replace(steps_per_epoch=3)
    # Adam blows rounding up where a gradient is nearly nothing
    slow = dict(lr_modules=1e-5, lr_clip_visual=1e-6)
    configs = dict(
        vit=base,
        neck=base.replace(classifier="arcface", model="hand-rn-tiny", **slow),
        # parameters without a gradient
        part=base.replace(use_composed_prompt=False, unfreeze_blocks=1, cache_frozen=True),
        plain=base.replace(language=False, classifier="bnneck", checkpoint_blocks=True, **slow),
    )
    for name, config in configs.items():
        (folder / f"{name}.yml").write_text(config.to_yaml())
    (folder / "run.py").write_text(PROCESSES)
    start = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(folder / "run.py"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PROMPTSG_CACHE": str(folder / "cache")}
    done = subprocess.run(
        [
            *start,
            str(hands),
            str(folder / "two"),
            *(str(folder / f"{name}.yml") for name in configs),
        ],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "two", {
        name: (
            Trainer(config, splits, folder / "one" / name, progress=False).fit(),
            folder / "two" / name,
        )
        for name, config in configs.items()
    }


@pytest.mark.parametrize("name", ["vit", "neck", "part", "plain"])
def test_two_processes_train_and_embed_like_one(pair, splits, name):
    runs = pair[1][name]
    (one, state), (two, other) = (read_checkpoint(run / "last") for run in runs)
    losses = [[row["loss"] for row in record["history"]] for record in (state, other)]
    # ArcFace's loss is about 35, and on the ResNet another number of threads alone moves it by 1e-4
    tolerance = dict(rel=1e-5) if name == "neck" else dict(abs=1e-4)
    assert losses[1] == pytest.approx(losses[0], **tolerance) and losses[0][0] != losses[0][1]
    assert [row["val_mAP"] for row in other["history"]] == pytest.approx(
        [row["val_mAP"] for row in state["history"]], abs=1e-6
    )
    running = [key for key in one if "running_" in key]
    assert running and all(
        torch.allclose(one[key], two[key], rtol=1e-3, atol=1e-3) for key in running
    )
    first, second = (torch.load(runs[1] / f"embedded{rank}.pt") for rank in (0, 1))
    model, few = load_run(runs[0]), splits.test.head(13)
    alone = Embedder(model, model.config, progress=False).embed(few).of(few)
    # in the frame's order
    assert torch.equal(first, second) and (first * alone).sum(1).min() > 0.9999


def test_batch_norm_over_two_processes_is_the_whole_batchs(pair):
    torch.manual_seed(0)
    x, target, norm = (
        torch.randn(6, 5, 4).double() * 3 + 1,
        torch.randn(6, 5, 4).double(),
        torch.nn.BatchNorm1d(5).double(),
    )
    y = norm(x.requires_grad_())
    (y * target).sum().backward()
    shares = zip(*(torch.load(pair[0] / f"norm{rank}.pt") for rank in (0, 1)))
    for expected, how, (first, second) in zip(
        (y, x.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var),
        (torch.cat, torch.cat, sum, sum, None, None),
        shares,
    ):
        torch.testing.assert_close(
            how([first, second]) if how else first, expected.detach(), rtol=1e-12, atol=1e-12
        )
        assert how or torch.equal(first, second)


def test_a_batch_that_processes_cannot_share_is_refused():
    from promptsg.data import PKSampler

    whole, *shares = [
        list(PKSampler(list("aabbccdd"), 4, 2, share=share)) for share in ((0, 1), (0, 2), (1, 2))
    ]
    assert whole == [one + other for one, other in zip(*shares)]
    with pytest.raises(PromptSGError, match="multiple of instances x 3"):
        PKSampler(list("aabbccdd"), 4, 2, share=(0, 3))


def test_which_epoch_is_kept(splits, quick, tmp_path, monkeypatch):
    falling = iter([0.9, 0.1] * 2)
    monkeypatch.setattr(
        Trainer, "validate", lambda self: {"val_rank1": 0.5, "val_mAP": next(falling)}
    )
    for select, epoch in (("best", 1), ("last", 2)):
        Trainer(quick.replace(select=select), splits, tmp_path / select, progress=False).fit()
        assert read_checkpoint(tmp_path / select / "best")[1]["epoch"] == epoch
    with pytest.raises(PromptSGError, match="select: last"):
        quick.replace(select="last", early_stop_patience=2)


@pytest.mark.parametrize("capability, warns", [("AVX2", True), ("AVX512", False)])
def test_bf16_on_a_processor_without_it_is_said(quick, monkeypatch, capability, warns):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    with pytest.warns(UserWarning, match="no bfloat16") if warns else nullcontext():
        training.make_accelerator(quick.replace(precision="bf16"))


def test_the_kept_epoch_is_whitened_by_the_train_people_once(quick, splits, tmp_path, monkeypatch):
    config, out, train = quick.replace(whiten=True, epochs=1), tmp_path / "run", splits.train
    with monkeypatch.context() as killed:
        killed.setattr(Trainer, "_whiten", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            Trainer(config, splits, out, progress=False).fit()
    Trainer(config, splits, out, progress=False).fit(resume=True)
    whole, plain = load_run(out), load_run(out, "last")
    assert (
        torch.equal(plain.whitening.matrix, torch.eye(plain.head.out_dim))
        and not plain.whitening.mean.any()
    )
    seen = lambda model, frame: Embedder(model, config, progress=False).embed(frame).of(frame)
    whitening = Whitening(plain.head.out_dim)
    whitening.fit(seen(plain, train), torch.from_numpy(train.identity.factorize()[0]))
    torch.testing.assert_close(
        seen(whole, splits.test),
        F.normalize(whitening(seen(plain, splits.test))),
        rtol=0,
        atol=1e-5,
    )
    before = (out / "best" / "checkpoint.safetensors").read_bytes()
    Trainer(config, splits, out, progress=False).fit(resume=True)
    assert (out / "best" / "checkpoint.safetensors").read_bytes() == before
    whole.save_pretrained(tmp_path / "shared")
    torch.testing.assert_close(
        seen(PromptSG.from_pretrained(tmp_path / "shared"), splits.test), seen(whole, splits.test)
    )


def test_whitening_needs_two_images_of_a_person_and_says_so_before_training(
    quick, splits, tmp_path
):
    single = replace(splits, train=splits.train.drop_duplicates("identity"))
    with pytest.raises(PromptSGError, match="set whiten to false"):
        Trainer(quick.replace(whiten=True), single, tmp_path / "run", progress=False).fit()
    assert not (tmp_path / "run").exists()


def test_gradients_of_terms_are_those_of_a_backward_pass(run, quick, splits):
    table = gradient_table(run, splits, "last", steps=1)
    assert list(table) == ["id", "triplet", "supcon", "cosine"] and list(table.index) == [
        "image tower",
        "inversion MLP",
        "fusion",
        "head",
    ]
    trainer = Trainer(quick, splits, run, progress=False)
    trainer.set_up()
    training.load_weights(trainer.model, *read_checkpoint(run / "last"), run / "last")
    batch = next(iter(trainer.loader))
    terms = trainer.prepared(batch["label"], batch["image"], progress=1.0)
    for name in ("id", "supcon"):
        trainer.model.zero_grad()
        terms[name].backward(retain_graph=True)
        for part, module in (
            ("image tower", trainer.model.backbone),
            ("inversion MLP", trainer.model.inversion),
            ("head", trainer.model.head),
        ):
            params = [p for p in module.parameters() if p.requires_grad]
            norm = lambda values: (
                sum(v.square().sum() for v in values if v is not None).sqrt()
                if any(v is not None for v in values)
                else torch.zeros(())
            )
            assert table.loc[part, name] == pytest.approx(
                (norm([p.grad for p in params]) / norm(params)).item(), rel=1e-3
            )
    assert table.loc["head", "supcon"] == 0 and np.isnan(table.loc["fusion", "cosine"])


@pytest.mark.parametrize("sign", [1, -1])
def test_the_cosine_says_whether_terms_agree(run, splits, sign):
    def same(output, labels, config, progress):
        term = loss_terms(
            output, labels, config.replace(supcon_loss_weight=0.0, loss_id_weight=0.0)
        )["triplet"]
        return {"triplet": term, "supcon": 2 * sign * term}

    table = gradient_table(run, splits, "last", steps=1, losses=same)
    assert table.cosine[["image tower", "fusion"]].tolist() == pytest.approx([sign, sign]) and (
        table.supcon / table.triplet
    ).dropna().tolist() == pytest.approx([2] * 3)


def test_a_detached_term_does_not_reach_the_tower(run, splits):
    away = lambda output, *rest: loss_terms(replace(output, visual=output.visual.detach()), *rest)
    own, detached = (
        gradient_table(run, splits, steps=1),
        gradient_table(run, splits, steps=1, losses=away),
    )
    assert detached.loc["image tower", "supcon"] < own.loc[
        "image tower", "supcon"
    ] and detached.loc["inversion MLP", "supcon"] == pytest.approx(
        own.loc["inversion MLP", "supcon"]
    )


# --- averaged weights
@pytest.fixture(scope="module")
def averaged(quick, splits, tmp_path_factory):
    "A run whose weights are averaged, and the weights after each of its steps."
    steps, step = [], Trainer._step

    def watched(self, *arguments):
        found = step(self, *arguments)
        steps.append(
            {
                name: p.detach().clone()
                for name, p in self.model.named_parameters()
                if p.requires_grad
            }
        )
        return found

    out = tmp_path_factory.mktemp("averaged") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_step", watched)
        Trainer(quick.replace(weight_average=0.7, select="last"), splits, out, progress=False).fit()
    return out, steps


def test_the_average_is_the_equations(averaged, quick):
    out, steps = averaged
    torch.manual_seed(quick.seed)
    first = PromptSG(quick, len(read_checkpoint(out / "best")[1]["classes"])).state_dict()
    best, last = (read_checkpoint(out / name)[0] for name in ("best", "last"))
    for name, end in steps[-1].items():
        average = first[name].double()
        for t, weights in enumerate(steps, 1):
            keep = min(0.7, (1 + t) / (10 + t))
            average = keep * average + (1 - keep) * weights[name].double()
        assert torch.allclose(best[f"model/{name}"].double(), average, atol=1e-6), name
        assert torch.equal(last[f"model/{name}"], end)
        assert torch.equal(last[f"average/{name}"], best[f"model/{name}"])


def test_last_is_measured_by_its_average_too(averaged):
    out, _ = averaged
    for (name, one), other in zip(
        load_run(out, "last").named_parameters(), load_run(out).parameters()
    ):
        assert torch.equal(one, other), name


def test_a_run_with_an_average_resumes_as_if_uninterrupted(
    averaged, quick, splits, tmp_path, monkeypatch
):
    out, _ = averaged
    config, epoch = quick.replace(weight_average=0.7, select="last"), Trainer._train_epoch
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(
            Trainer,
            "_train_epoch",
            lambda self, number: (
                epoch(self, number) if number == 0 else (_ for _ in ()).throw(KeyboardInterrupt)
            ),
        )
        Trainer(config, splits, tmp_path / "run", progress=False).fit()
    Trainer(config, splits, tmp_path / "run", progress=False).fit(resume=True)
    for name in ("best", "last"):
        whole, resumed = read_checkpoint(out / name)[0], read_checkpoint(tmp_path / "run" / name)[0]
        assert whole.keys() == resumed.keys() and all(
            torch.equal(whole[key], resumed[key]) for key in whole
        )


def test_an_average_of_another_model_is_refused(averaged, quick, splits, tmp_path):
    import shutil

    from promptsg.backbone import read_tensors, save_tensors

    out, _ = averaged
    shutil.copytree(out, tmp_path / "run")
    file = tmp_path / "run" / "last" / "checkpoint.safetensors"
    tensors, about = read_tensors(file)
    lost = next(name for name in tensors if name.startswith("average/"))
    save_tensors(
        file, {name: t for name, t in tensors.items() if name != lost}, state=about["state"]
    )
    with pytest.raises(PromptSGError, match="no proper average of the weights"):
        Trainer(
            quick.replace(weight_average=0.7, select="last"),
            splits,
            tmp_path / "run",
            progress=False,
        ).fit(resume=True)


# --- a whitening of mirror images
def test_the_whitening_sees_mirror_images_as_other_people(quick, splits, tmp_path):
    config = quick.replace(
        whiten=True, whiten_mirrored=True, epochs=1, select="last", language=False
    )
    Trainer(config, splits, tmp_path / "run", progress=False).fit()
    found = load_run(tmp_path / "run").whitening
    plain = PromptSG(
        config.replace(whiten=False, whiten_mirrored=False), len(splits.train.identity.unique())
    ).eval()
    own = {
        name: t
        for name, t in load_run(tmp_path / "run").state_dict().items()
        if not name.startswith("whitening")
    }
    plain.load_state_dict(own)
    embedder, train = Embedder(plain, plain.config, progress=False), splits.train
    flip = embedder.transform.transforms[:-1] + [
        lambda image: image.flip(-1),
        embedder.transform.transforms[-1],
    ]
    twin = Embedder(plain, plain.config, progress=False)
    twin.transform = lambda image: [image := step(image) for step in flip][-1]
    rows = torch.cat([embedder.embed(train).of(train), twin.embed(train).of(train)])
    labels = training.pd.factorize(train.identity)[0]
    expected = Whitening(rows.shape[1])
    expected.fit(rows, torch.from_numpy(np.r_[labels, labels + labels.max() + 1]))
    assert torch.allclose(found.matrix, expected.matrix, atol=1e-3 * expected.matrix.abs().max())
    without = Whitening(rows.shape[1])
    without.fit(rows[: len(train)], torch.from_numpy(labels))
    assert not torch.allclose(found.matrix, without.matrix, atol=1e-2 * expected.matrix.abs().max())


def test_a_module_imports_no_module_that_comes_later():
    flow = (
        "config data backbone distributed model caches metrics evaluation embedding checkpoints "
        "training versions plots explorer cli"
    ).split()
    package = Path(training.__file__).parent
    for place, name in enumerate(flow):
        tree = ast.parse((package / f"{name}.py").read_text())
        imported = {
            node.module.removeprefix("promptsg.")
            for node in tree.body
            if isinstance(node, ast.ImportFrom) and (node.level or node.module.startswith("prom"))
        }
        assert not imported & set(flow[place + 1 :]), name


def test_names_that_moved_are_still_here():
    from promptsg import caches, checkpoints, distributed, embedding

    assert training.Feed is embedding.Embedder and training.measure is embedding.measure
    assert training.load_run is checkpoints.load_run
    assert training.FrozenFeatures is caches.FrozenFeatures
    assert training.processes is distributed.processes


def test_the_plain_loop_gives_the_losses_of_the_trainer(quick, splits, tmp_path):
    from torch.utils.data import DataLoader

    from promptsg.caches import Datasets
    from promptsg.data import PKSampler, class_index, mixed_seed

    config = quick.replace(epochs=1, steps_per_epoch=3, flip=0.5, warmup_epochs=1)
    run = Trainer(config, splits, tmp_path / "run", progress=False)
    run.fit()
    classes = class_index(splits.train)
    torch.manual_seed(config.seed)
    model = PromptSG(config, len(classes)).train()
    images = Datasets(model, config, progress=False).training(splits.train, classes)
    sampler = PKSampler(splits.train.identity, 4, 4, config.seed, 3, numbered=True)
    loader = DataLoader(images, batch_sampler=sampler, generator=torch.Generator())
    optimizer = torch.optim.AdamW(parameter_groups(model, config), weight_decay=0)
    torch.manual_seed(mixed_seed(config.seed, 0, 0))
    losses = []
    for step, batch in enumerate(loader):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, group["base_lr"], step / 3)
        output = model(batch["image"], labels=batch["label"], aspects=batch["aspect"])
        loss = sum(loss_terms(output, batch["label"], config).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert run.history[0]["loss"] == pytest.approx(np.mean(losses), rel=1e-5)


def test_tower_gives_what_the_backbone_gives(quick, splits):
    model, rows = PromptSG(quick, 3).eval(), splits.test.head(5)
    embedder = Embedder(model, quick, progress=False)
    found = embedder.tower(rows, batch_size=2)
    images = torch.stack([row["image"] for row in embedder.evaluation(rows)])
    with torch.no_grad():
        features = model.backbone(images)
    assert torch.allclose(found["embedding"], features.embedding, atol=1e-5)
    assert torch.allclose(found["patches"], features.patches, atol=1e-5)
    assert found["aspects"].tolist() == [row["aspect"] for row in embedder.evaluation(rows)]


def test_an_empty_frame_is_one_sentence(quick, splits):
    embedder = Embedder(PromptSG(quick, 3).eval(), quick, progress=False)
    with pytest.raises(PromptSGError, match="no image to embed"):
        embedder.embed(splits.test.head(0))
