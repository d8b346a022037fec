"Each image is embedded once, whatever command asks, and however often a process is killed."

import os
import signal
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
from open_clip.transformer import VisionTransformer

from promptsg import caches, packs
from promptsg.caches import FrozenFeatures, aspects_named
from promptsg.checkpoints import load_run
from promptsg.config import Config, PromptSGError
from promptsg.data import eval_transform
from promptsg.embedding import Embedder, measure
from promptsg.model import PromptSG, untrained
from promptsg.packs import Packs
from promptsg.training import Trainer
from promptsg.versions import without_training


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    "A cache of the test's own."
    monkeypatch.setenv("PROMPTSG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def free(quick):
    return without_training(quick)


@pytest.fixture
def seen(monkeypatch):
    "How many images the tower has seen, in a list of one number."
    count, embeds = [0], VisionTransformer._embeds

    def counting(self, x):
        count[0] += len(x)
        return embeds(self, x)

    # it changes nothing: the model is not taken for code of one's own
    counting.__module__ = embeds.__module__
    monkeypatch.setattr(VisionTransformer, "_embeds", counting)
    return count


def embedded(model, frame, **changes):
    "Rows of a frame by a new `Embedder`."
    return Embedder(model, model.config.replace(**changes), progress=False).embed(frame).of(frame)


# --- embedded once
def test_training_and_evaluating_twice_embeds_each_image_once(free, splits, tmp_path, seen, capsys):
    run = Trainer(free, splits, tmp_path / "run", progress=False).fit()
    trained = seen[0]
    assert trained == distinct(splits.train, splits.val_query, splits.val_gallery)
    first, _ = measure(load_run(run), splits, ("clipfh", "mba"), progress=False)
    assert seen[0] == trained + distinct(splits.test, *splits.galleries_all)
    capsys.readouterr()
    before = seen[0]
    second, found = measure(load_run(run), splits, ("clipfh", "mba"))
    assert seen[0] == before and len(found.features) == before - trained
    assert (
        f"{before - trained} embeddings: {before - trained} from the cache, 0 made"
        in capsys.readouterr().err
    )
    assert first["mba"].per_query.equals(second["mba"].per_query)
    assert found.trained_on is not None  # who may not be ranked is not forgotten
    plain = embedded(load_run(run), splits.test, cache_embeddings=False)
    torch.testing.assert_close(found.of(splits.test), plain, atol=1e-6, rtol=0)
    assert seen[0] == before + len(splits.test)


def distinct(*frames):
    return len({path for frame in frames for path in frame.path})


@pytest.mark.parametrize(
    "changes",
    [
        {},
        dict(language=False),
        dict(classifier="bnneck"),
        dict(whiten=True),
        dict(unfreeze_blocks=1, cache_frozen=True),
        dict(prompt_aspect="image"),
    ],
)
def test_a_kept_embedding_is_a_fresh_one(quick, splits, changes, seen):
    torch.manual_seed(0)
    model = PromptSG(quick.replace(**changes), 3).eval()
    if model.whitening is not None:
        model.whitening.fit(torch.randn(40, model.head.out_dim), torch.arange(40) // 4)
    fresh = embedded(model, splits.test, cache_embeddings=False)
    made = embedded(model, splits.test)
    before = seen[0]
    mixed = splits.test.sample(frac=1, random_state=1)
    kept = embedded(model, mixed)
    assert seen[0] == before
    torch.testing.assert_close(made, fresh, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        kept, made[torch.tensor([*map(splits.test.index.get_loc, mixed.index)])], atol=0, rtol=0
    )


def test_a_whitening_fitted_later_takes_the_same_rows(quick, splits, seen):
    model = PromptSG(quick.replace(whiten=True), 3).eval()
    embedded(model, splits.test)
    before = seen[0]
    model.whitening.fit(torch.randn(40, model.head.out_dim), torch.arange(40) // 4)
    kept = embedded(model, splits.test)
    assert seen[0] == before
    torch.testing.assert_close(
        kept, embedded(model, splits.test, cache_embeddings=False), atol=1e-5, rtol=0
    )


def test_another_number_of_people_asks_the_same_question(quick, splits, seen):
    "A classifier makes no embedding."
    for classes in (3, 7):
        torch.manual_seed(0)
        model = PromptSG(quick.replace(language=False), classes).eval()
        embedded(model, splits.test)
    assert seen[0] == len(splits.test)


OTHERS = {
    "weights": lambda model: next(model.backbone.parameters()).data.mul_(1.01),
    "statistics of a batch norm": lambda model: model.head.neck.norm.running_mean.add_(0.1),
    "sentence": lambda model: model.prompt.set_prompt(template="A picture of a {} hand."),
    "tokens": lambda model: setattr(model.backbone, "tokens", ("patches", "dense")),
}


@pytest.mark.parametrize("what", OTHERS)
def test_another_question_is_another_place(quick, splits, what, seen):
    model = PromptSG(quick.replace(classifier="bnneck"), 3).eval()
    first = embedded(model, splits.test)
    OTHERS[what](model)
    second = embedded(model, splits.test)
    assert seen[0] == 2 * len(splits.test) and not torch.allclose(first, second, atol=1e-4)
    torch.testing.assert_close(
        second, embedded(model, splits.test, cache_embeddings=False), atol=1e-6, rtol=0
    )


def test_prompt_and_mirror_image_are_part_of_the_question(quick, splits, seen):
    model = PromptSG(quick, 3).eval()
    embedder = Embedder(model, quick, progress=False)
    rows = [
        embedder.embed(splits.test).of(splits.test),
        embedder.embed(splits.test, prompt="simplified").of(splits.test),
        embedder.mirrored().embed(splits.test).of(splits.test),
    ]
    assert seen[0] == 3 * len(splits.test)
    assert all(not torch.allclose(rows[0], other, atol=1e-4) for other in rows[1:])
    embedder.embed(splits.test, prompt="composed")
    assert seen[0] == 3 * len(splits.test)


def test_bfloat16_is_another_question(quick, splits, seen):
    model = PromptSG(quick.replace(language=False), 3).eval()
    embedded(model, splits.test)
    with torch.autocast("cpu", torch.bfloat16):
        embedded(model, splits.test)
    assert seen[0] == 2 * len(splits.test)


def test_an_aspect_counts_where_the_sentence_names_it(quick, splits, seen):
    frame = splits.test[:4]
    other = frame.assign(aspect="palmar_l")
    for changes, times in (
        (dict(prompt_aspect="image"), 2),
        (dict(prompt_aspect="run"), 1),
        (dict(language=False), 1),
        (dict(prompt_aspect="image", prompt_template="A {} hand."), 1),
    ):
        model, before = PromptSG(quick.replace(**changes), 3).eval(), seen[0]
        for one in (frame, other):
            embedded(model, one)
        assert seen[0] - before == 4 * times, changes


def test_the_runs_own_aspect_is_said_where_an_image_has_none(quick, splits):
    model = PromptSG(quick.replace(prompt_aspect="image"), 3)
    frame = splits.test[:2].assign(aspect=["palmar_l", ""])
    assert aspects_named(model, frame) == ["palmar left", "dorsal right"]


def test_every_field_that_is_not_part_of_a_question_is_there(quick):
    assert set(Config.model_fields) >= caches._NOT_EMBEDDED


def test_a_picture_that_changes_is_embedded_again(quick, splits, tmp_path, seen):
    from PIL import Image

    model, frame = PromptSG(quick, 3).eval(), splits.test[:3].copy()
    frame["path"] = [str(tmp_path / name) for name in frame.image]
    for path, source in zip(frame.path, splits.test.path):
        Image.open(source).save(path)
    first = embedded(model, frame)
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(frame.path.iloc[1])
    second = embedded(model, frame)
    assert (
        seen[0] == 4
        and torch.equal(first[[0, 2]], second[[0, 2]])
        and not torch.allclose(first[1], second[1], atol=1e-3)
    )


def test_equal_pictures_are_embedded_once(quick, splits, tmp_path, seen):
    frame = splits.test[:2].copy()
    (tmp_path / "copy.jpg").write_bytes(Path(frame.path.iloc[0]).read_bytes())
    frame["path"] = [frame.path.iloc[0], str(tmp_path / "copy.jpg")]
    rows = embedded(PromptSG(quick, 3).eval(), frame)
    assert seen[0] == 1 and torch.equal(rows[0], rows[1])


# --- where none is kept
def test_weights_that_change_are_not_kept(quick, splits, tmp_path, cache):
    Trainer(
        quick.replace(epochs=1, steps_per_epoch=1), splits, tmp_path / "run", progress=False
    ).fit()
    kept = [
        file for file in cache.rglob("*.npy") if np.load(file, mmap_mode="r").dtype == np.float32
    ]
    assert not kept
    Trainer(
        quick.replace(epochs=1, steps_per_epoch=1, whiten=True, select="last"),
        splits,
        tmp_path / "white",
        progress=False,
    ).fit()
    assert (
        sum(
            len(np.load(file))
            for file in cache.rglob("*.npy")
            if np.load(file, mmap_mode="r").ndim == 2
        )
        == splits.train.path.nunique()
    )


class Doubled(PromptSG):
    "A model of one's own."

    def retrieval(self, embedding):
        return 2 * super().retrieval(embedding)


def test_code_of_ones_own_is_not_kept_and_that_is_said(quick, splits, seen, capsys, cache):
    hooked = PromptSG(quick, 3).eval()
    hooked.backbone.visual.ln_post.register_forward_hook(lambda module, inputs, output: -output)
    for model, name in ((Doubled(quick, 3).eval(), "Doubled"), (hooked, "LayerNorm")):
        before, embedder = seen[0], Embedder(model, quick, progress=False)
        for _ in range(2):
            embedder.embed(splits.test)
        assert seen[0] - before == 2 * len(splits.test)
        assert (
            capsys.readouterr().err
            == f"embeddings are not cached: {name} is custom code, which the hash of a cache "
            "does not cover\n"
        )


def test_commands_work_where_nothing_can_be_written(quick, splits, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PROMPTSG_CACHE", str(tmp_path / "file"))
    model = untrained(quick.replace(cache_pixels=False))
    rows = embedded(model, splits.test)
    said = capsys.readouterr().err
    assert said.startswith("embeddings are not cached: the cache folder") and said.count("\n") == 1
    assert rows.equal(embedded(model, splits.test, cache_embeddings=False))


def test_a_disk_that_fills_up_costs_no_embedding(quick, splits, monkeypatch, capsys):
    def full(*arguments):
        raise PromptSGError("the disk is full; free space there")

    monkeypatch.setattr(Packs, "_write", full)
    rows = embedded(untrained(quick), splits.test)
    assert (
        len(rows) == len(splits.test)
        and capsys.readouterr().err == "embeddings are not cached: the disk is full\n"
    )


# --- killed
def in_fork(action, *arguments):
    "The number of a process that does something: a fork, so that imports are paid for once."
    child = os.fork()
    if not child:
        status = 1
        try:
            torch.set_num_threads(1)
            action(*arguments)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return child


def ended(child):
    "Its exit code; minus the signal that killed it."
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def train_until(config, splits, out, counts, most):
    """Trains, and is killed by the batch that goes beyond `most` images; each batch's size is a
    line of `counts`."""
    packs.PACK_SECONDS, embed = -1, Embedder.embed  # a pack a batch, as on a slow machine
    Embedder.embed = lambda self, frame, **more: embed(self, frame, batch_size=4, **more)
    seen, embeds = [0], VisionTransformer._embeds

    def counting(self, x):
        seen[0] += len(x)
        with open(counts, "a") as opened:
            print(len(x), file=opened)
        if seen[0] > most:
            os.kill(os.getpid(), signal.SIGKILL)
        return embeds(self, x)

    counting.__module__ = embeds.__module__
    VisionTransformer._embeds = counting
    Trainer(config, splits, out, progress=False).fit(resume=(out / "config.yml").exists())


def test_a_killed_training_embeds_nothing_twice(free, splits, tmp_path):
    out, counts = tmp_path / "run", []
    for number, (most, code) in enumerate(
        [(18, -signal.SIGKILL), (13, -signal.SIGKILL), (10**6, 0)]
    ):
        file = tmp_path / f"counts{number}"
        assert ended(in_fork(train_until, free, splits, out, file, most)) == code
        counts.append([*map(int, file.read_text().split())])
    images = distinct(splits.train, splits.val_query, splits.val_gallery)
    # the last batch of a killed process is the pack in work; the other 4 + 3 batches are not made
    # again
    assert [sum(one[:-1]) for one in counts[:2]] == [16, 12] and sum(counts[2]) == images - 28
    assert load_run(out).whitening is not None


def test_killed_frozen_features_go_on_where_they_were(quick, splits, monkeypatch, cache):
    monkeypatch.setattr(packs, "PACK_SECONDS", -1)
    model = PromptSG(quick.replace(unfreeze_blocks=1, cache_frozen=True), 2).eval()
    made, before = [], model.backbone.features_before

    def stops(images):
        if sum(made) >= 16:
            raise KeyboardInterrupt
        made.append(len(images))
        return before(images)

    still = eval_transform(model.backbone.image_size)
    monkeypatch.setattr(model.backbone, "features_before", stops)
    with pytest.raises(KeyboardInterrupt):
        FrozenFeatures(model, splits.test, still, cache, 4, progress=False)
    made.append(-(10**6))  # goes on
    FrozenFeatures(model, splits.test, still, cache, 4, progress=False)
    made.remove(-(10**6))
    assert sum(made) == len(splits.test)


# --- packs
def rows_of(numbers):
    return {f"row {n}": np.full(5, n, np.float32) for n in numbers}


def filled(folder, numbers, each=1):
    "A new process's view of a folder, after packs of `each` rows."
    made, numbers = Packs(folder, "kind", "float32"), list(numbers)
    for start in range(0, len(numbers), each):
        part = rows_of(numbers[start : start + each])
        made.add(part, np.stack([*part.values()]))
        made.flush()
    return made


def same(found, numbers):
    wanted = rows_of(numbers)
    assert found.keys() == wanted.keys() and all(
        np.array_equal(found[key], row) for key, row in wanted.items()
    )


def test_many_small_packs_become_few(tmp_path):
    folder = filled(tmp_path, range(40)).folder
    assert len(list(folder.glob("*.npy"))) == 40
    again = Packs(tmp_path, "kind", "float32")
    assert len(list(folder.iterdir())) == 2
    same(again.read(f"row {n}" for n in range(40)), range(40))


def test_a_damaged_pack_is_not_put_together_and_is_said_once(tmp_path, capsys):
    folder = filled(tmp_path, range(20)).folder
    file = min(folder.glob("*.npy"))
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    again = Packs(tmp_path, "kind", "float32")
    found = again.read(f"row {n}" for n in range(20))
    assert len(found) == 19 and "1 entry not as written, made again" in capsys.readouterr().err
    assert len(again.read(f"row {n}" for n in range(20))) == 19 and capsys.readouterr().err == ""


def test_a_full_pack_is_closed(tmp_path, monkeypatch):
    monkeypatch.setattr(packs, "PACK_BYTES", 60)
    made = Packs(tmp_path, "kind", "float32")
    for n in range(7):
        made.add(rows_of([n]), np.stack([*rows_of([n]).values()]))
    assert (
        len(made.read(f"row {n}" for n in range(7))) == 6
        and len(list(made.folder.glob("*.npy"))) == 2
    )


def test_what_another_process_is_writing_is_left_alone(tmp_path, capsys):
    folder = filled(tmp_path, range(3)).folder
    part = folder / ".promptsg-half.json"
    part.write_text('{"rows": {"row 9"')
    same(Packs(tmp_path, "kind", "float32").read(["row 0", "row 9"]), [0])
    assert part.exists() and capsys.readouterr().err == ""


def test_a_pack_that_another_process_put_into_a_larger_one_is_found_there(tmp_path, capsys):
    reader = filled(tmp_path, range(30))
    lists = iter([reader._indices()])

    def listed(indices=reader._indices):
        now = next(lists, None)
        if now:
            Packs(tmp_path, "kind", "float32")  # puts them together: what `now` names is gone
        return now or indices()

    reader._indices = listed
    same(reader.read(["row 3", "row 29"]), [3, 29])
    assert capsys.readouterr().err == ""


def test_frozen_features_follow_a_pack_into_a_larger_one(quick, splits, cache, monkeypatch):
    monkeypatch.setattr(packs, "PACK_SECONDS", -1)
    model = PromptSG(quick.replace(unfreeze_blocks=1, cache_frozen=True), 2).eval()
    still = eval_transform(model.backbone.image_size)
    features = FrozenFeatures(model, splits.test, still, cache, 1, progress=False)
    right = [features.load(path) for path in splits.test.path]
    FrozenFeatures(model, splits.test[:1], still, cache, 1, progress=False)  # opens the folder
    assert len(list(features.folder.glob("*.npy"))) == 1
    assert all(features.load(path).equal(row) for path, row in zip(splits.test.path, right))


def write_and_read(folder, number):
    for turn in range(12):
        made = Packs(folder, "kind", "float32")
        for n in range(5):
            key = 1000 * number + 5 * turn + n
            made.add([f"row {key}"], np.full((1, 5), key, np.float32))
            made.flush()
        mine = {f"row {1000 * number + n}" for n in range(5 * turn + 5)}
        assert made.read(mine).keys() == mine


def test_processes_that_write_at_once_lose_nothing(tmp_path, capfd):
    started = [in_fork(write_and_read, tmp_path, number) for number in range(3)]
    assert [ended(child) for child in started] == [0, 0, 0] and capfd.readouterr().err == ""
    numbers = [1000 * process + n for process in range(3) for n in range(60)]
    same(Packs(tmp_path, "kind", "float32").read(f"row {n}" for n in numbers), numbers)
