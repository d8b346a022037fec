"Optimizer groups, schedules, selection on train people, checkpoints, caching."
import pickle

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from promptsg import training
from promptsg.config import Config, PromptSGError
from promptsg.model import PromptSG
from promptsg.training import Feed, Trainer, learning_rate, load_run, parameter_groups, read_checkpoint


@pytest.fixture(scope="module")
def run(quick, splits, tmp_path_factory):
    return Trainer(quick, splits, tmp_path_factory.mktemp("runs") / "run", progress=False).fit()


@pytest.mark.parametrize("changes", [{}, dict(classifier="arcface", bnneck_reduction=True), dict(language=False), dict(unfreeze_blocks=1)])
def test_every_trainable_parameter_is_in_one_group(quick, changes):
    model = PromptSG(quick.replace(**changes), 5)
    grouped = [id(p) for g in parameter_groups(model, quick) for p in g["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad) and len(set(grouped)) == len(grouped)


def test_schedules():
    cosine = Config(schedule="cosine", warmup_epochs=1, epochs=11, eta_min=1e-7)
    assert learning_rate(cosine, 1e-3, 0.5) == pytest.approx(5e-4, rel=1e-3)
    assert learning_rate(cosine, 1e-3, 6) == pytest.approx((1e-3 + 1e-7) / 2)
    assert learning_rate(cosine, 1e-3, 11) == pytest.approx(1e-7)
    assert learning_rate(Config(schedule="none"), 1e-3, 50) == 1e-3
    assert learning_rate(Config(), 1.0, 40) == pytest.approx(0.01)


def test_a_run_folder_is_complete(run, quick):
    assert Config.from_yaml(run / "config.yml") == quick
    lines = (run / "metrics.csv").read_text().splitlines()
    assert len(lines) == 3 and {"loss_id", "loss_triplet", "loss_supcon", "val_mAP"} <= set(lines[0].split(","))
    assert (run / "best" / "checkpoint.safetensors").exists() and (run / "last" / "state.json").exists()


def test_test_people_are_never_seen_in_training(quick, splits, tmp_path, monkeypatch):
    seen = set()
    load = training.load_image
    monkeypatch.setattr("promptsg.data.load_image", lambda path: (seen.add(path), load(path))[1])
    Trainer(quick.replace(epochs=1), splits, tmp_path / "run", progress=False).fit()
    assert seen and not seen & set(splits.test.path)


def test_clipping_comes_before_the_step(quick, splits, tmp_path, monkeypatch):
    calls = []
    clip, step = Accelerator.clip_grad_norm_, torch.optim.AdamW.step
    monkeypatch.setattr(Accelerator, "clip_grad_norm_", lambda *a, **k: (calls.append("clip"), clip(*a, **k))[1])
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *a, **k: (calls.append("step"), step(*a, **k))[1])
    Trainer(quick.replace(epochs=1, clip_norm=1.0), splits, tmp_path / "run", progress=False).fit()
    assert calls and calls[::2] == ["clip"] * (len(calls) // 2) and calls[1::2] == ["step"] * (len(calls) // 2)


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
    (first, state), (second, again) = read_checkpoint(run / "last"), read_checkpoint(tmp_path / "run" / "last")
    assert first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)
    assert state["history"] == again["history"]


def test_early_stop(quick, splits, tmp_path, monkeypatch):
    scores = iter([0.5, 0.4, 0.3, 0.9])
    monkeypatch.setattr(Trainer, "validate", lambda self: {"val_rank1": 0.0, "val_mAP": next(scores)})
    out = Trainer(quick.replace(epochs=4, steps_per_epoch=1, early_stop_patience=2), splits, tmp_path / "run", progress=False).fit()
    assert read_checkpoint(out / "last")[1]["epoch"] == 3 and read_checkpoint(out / "best")[1]["epoch"] == 1


def test_a_loss_that_is_not_finite_names_step_and_term(quick, splits, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "supcon", lambda *a: torch.tensor(float("nan"), requires_grad=True))
    with pytest.raises(PromptSGError, match="supcon is not finite at step 0"):
        Trainer(quick, splits, tmp_path / "run", progress=False).fit()


def test_cached_features_train_and_embed_like_images(quick, splits, tmp_path):
    few = quick.replace(unfreeze_blocks=2, epochs=1)
    whole = Trainer(few, splits, tmp_path / "images", progress=False).fit()
    cached = Trainer(few.replace(cache_frozen=True), splits, tmp_path / "cached", progress=False).fit()
    embeddings = [Feed(load_run(run), load_run(run).config, tmp_path / "cache", progress=False).embed(splits.test).of(splits.test) for run in (whole, cached)]
    assert torch.nn.functional.cosine_similarity(*embeddings).min() > 0.999  # half precision on disk
    assert len(list((tmp_path / "cache").rglob("*.npy"))) >= len(splits.test)


def test_a_changed_image_is_not_taken_from_the_cache(quick, splits, tmp_path):
    from PIL import Image
    model = PromptSG(quick.replace(unfreeze_blocks=1, cache_frozen=True), 2).eval()
    frame = splits.test.head(2).copy()
    frame["path"] = [str(tmp_path / name) for name in frame.image]
    for path, source in zip(frame.path, splits.test.path):
        Image.open(source).save(path)
    first = Feed(model, model.config, tmp_path / "cache", progress=False).embed(frame).of(frame)
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(frame.path.iloc[0])
    second = Feed(model, model.config, tmp_path / "cache", progress=False).embed(frame).of(frame)
    assert not torch.allclose(first[0], second[0], atol=1e-3) and torch.allclose(first[1], second[1], atol=1e-5)


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
    few = Trainer(quick.replace(unfreeze_blocks=1, epochs=1), splits, tmp_path / "few", progress=False).fit()
    with pytest.raises(PromptSGError, match="other frozen weights"):
        load_run(few, pretrained="random")


def test_a_folder_with_a_run_is_not_overwritten(run, quick, splits):
    before = (run / "last" / "checkpoint.safetensors").read_bytes()
    with pytest.raises(PromptSGError, match="--resume"):
        Trainer(quick, splits, run, progress=False).fit()
    with pytest.raises(PromptSGError, match="another epochs"):
        Trainer(quick.replace(epochs=5), splits, run, progress=False).fit(resume=True)
    assert (run / "last" / "checkpoint.safetensors").read_bytes() == before
