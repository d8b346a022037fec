"""A run knows who it was trained on: its own splits are measured, nobody of its train side is ever
ranked, and no result is written over."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from promptsg.checkpoints import load_run, read_checkpoint
from promptsg.config import PromptSGError
from promptsg.data import Splits, TrainSide, cross_splits, make_splits, read_data, run_splits
from promptsg.embedding import measure
from promptsg.evaluation import Embeddings, Result, evaluate, paired_difference
from promptsg.files import check_writable, held
from promptsg.splits import check_unchanged, read_stored, train_side
from promptsg.training import Trainer

MAIN = [sys.executable, "-c", "from promptsg.cli import main; main()"]


@pytest.fixture(scope="module")
def small(quick):
    return quick.replace(epochs=1, steps_per_epoch=1, batch_size=8, instances=2)


@pytest.fixture(scope="module")
def run(hands, splits, small, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    return Trainer(small, splits, out, progress=False).fit()


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    "A folder with nine people of three images each, whose bytes say who they are."
    root = tmp_path_factory.mktemp("people")
    for person in range(9):
        (root / f"p{person}").mkdir()
        for image in range(3):
            (root / f"p{person}" / f"{image}.jpg").write_bytes(f"{person} {image}".encode())
    return root


def random_embeddings(frame, trained_on=None):
    paths = list(dict.fromkeys(frame.path))
    features = torch.randn(len(paths), 4, generator=torch.Generator().manual_seed(0))
    return Embeddings(
        {path: row for row, path in enumerate(paths)},
        torch.nn.functional.normalize(features),
        trained_on,
    )


# --- splits
def test_stored_splits_come_back_and_say_who_everybody_is(splits, hands, tmp_path):
    splits.save(tmp_path / "splits.json")
    again = Splits.load(tmp_path / "splits.json", read_data(hands))
    for name in ("train", "val", "val_query", "val_gallery", "test"):
        assert list(getattr(again, name).path) == list(getattr(splits, name).path)
    for name in ("queries", "galleries", "galleries_all"):
        assert [list(part.path) for part in getattr(again, name)] == [
            list(part.path) for part in getattr(splits, name)
        ]
    side = train_side(tmp_path / "splits.json")
    assert side.people == set(splits.known.pid) and not side.people & set(splits.test.pid)
    assert len(side.images) == splits.known.path.nunique()
    check_unchanged(tmp_path / "splits.json", splits)


@pytest.mark.parametrize(
    "kind, words",
    [
        ("removed", "1 image is missing (p0/0.jpg)"),
        ("new person", "3 images are new (p9/0.jpg first)"),
        ("other content", "1 image is changed in content (p0/0.jpg)"),
        ("other identity", "1 image is now of another identity (p0/0.jpg)"),
    ],
)
def test_what_changed_since_a_run_was_started_is_named(people, tmp_path, kind, words):
    frame = read_data(people)
    make_splits(frame, "hand", n_splits=2).save(tmp_path / "splits.json")
    root = shutil.copytree(people, tmp_path / "people")
    if kind == "removed":
        (root / "p0" / "0.jpg").unlink()
    if kind == "new person":
        shutil.copytree(root / "p0", root / "p9")
    if kind == "other content":
        (root / "p0" / "0.jpg").write_bytes(b"0 9")  # of the same size
    changed = read_data(root)
    if kind == "other identity":
        changed.loc[changed.image == "p0/0.jpg", ["pid", "identity"]] = ["p1", "p1:hand"]
    with pytest.raises(PromptSGError) as error:
        check_unchanged(tmp_path / "splits.json", make_splits(changed, "hand", n_splits=2))
    assert words in str(error.value)


def test_other_settings_divide_otherwise(people, tmp_path):
    frame = read_data(people)
    make_splits(frame, "hand", n_splits=2).save(tmp_path / "splits.json")
    with pytest.raises(PromptSGError, match="divided otherwise"):
        check_unchanged(tmp_path / "splits.json", make_splits(frame, "hand", n_splits=2, seed=1))


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[]",
        "nonsense",
        '{"format": 2}',
        '{"format": 2, "images": 3}',
        '{"train": ["a"]}',
        '{"format": 2, "aspect": "hand", "source": "", "cross": false, "excluded": {}, '
        '"people": [], "images": [["a", "a:hand", "0"]], "train": [1], "val": [], '
        '"val_query": [], "val_gallery": [], "test": [], '
        '"queries": [], "galleries": [], "galleries_all": []}',
    ],
)
def test_a_damaged_list_of_splits_is_one_sentence(tmp_path, text):
    (tmp_path / "splits.json").write_text(text)
    with pytest.raises(PromptSGError, match="splits.json"):
        read_stored(tmp_path / "splits.json")


def test_an_image_that_is_listed_twice_is_refused(splits, hands):
    frame = read_data(hands)
    for column in ("image", "path"):
        doubled = pd.concat(
            [
                frame,
                frame.iloc[:1].assign(
                    **({"image": "other.jpg"} if column == "path" else {"path": "other.jpg"})
                ),
            ]
        )
        with pytest.raises(PromptSGError, match=f"lists the {column} .* twice"):
            make_splits(doubled.reset_index(drop=True), "dorsal_r")


def test_the_data_sets_own_queries_and_galleries_are_taken(people):
    frame = read_data(people)
    frame["side"] = np.where(frame.pid < "p4", "train", "test")
    test = frame[frame.side == "test"]
    pairs = [
        (
            [name for name in test.image if not name.endswith(f"{k}.jpg")],
            [name for name in test.image if name.endswith(f"{k}.jpg")],
        )
        for k in range(2)
    ]
    frame.attrs |= {
        "pairs": {"hand": pairs},
        "val": {"hand": ["p0/1.jpg", "p1/0.jpg", "p2/2.jpg", "p3/0.jpg"]},
    }
    splits = make_splits(frame, "hand", n_splits=2, val="images")
    assert [
        (list(query.image), list(gallery.image))
        for query, gallery in zip(splits.queries, splits.galleries)
    ] == pairs
    assert list(splits.val.image) == frame.attrs["val"]["hand"] and not set(
        splits.train.image
    ) & set(splits.val.image)
    with pytest.raises(PromptSGError, match="num_splits to at most 2"):
        make_splits(frame, "hand", n_splits=3)


# --- nobody of the train side is ranked
history = st.lists(
    st.one_of(
        st.tuples(st.just("remove"), st.integers(0, 8)),
        st.tuples(st.just("add"), st.integers(9, 14)),
        st.tuples(st.just("rename"), st.integers(0, 8)),
        st.tuples(st.just("swap"), st.integers(0, 7)),
    ),
    max_size=4,
)


@given(history=history, seed=st.integers(0, 3), draws_anew=st.booleans())
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_whatever_happens_to_the_folder_nobody_trained_on_is_ranked(
    people, tmp_path_factory, history, seed, draws_anew
):
    folder = tmp_path_factory.mktemp("history")
    make_splits(read_data(people), "hand", n_splits=2).save(folder / "splits.json")
    side = train_side(folder / "splits.json")
    trained = {
        path.read_bytes() for path in people.rglob("*.jpg") if path.parent.name in side.people
    }
    root = Path(shutil.copytree(people, folder / "people"))
    for what, who in history:
        one, other = root / f"p{who}", root / f"p{who + 1}"
        if what == "remove":
            shutil.rmtree(one, ignore_errors=True)
        if what == "add" and not one.exists():
            one.mkdir()
            for image in range(2):
                (one / f"{image}.jpg").write_bytes(f"{who} {image}".encode())
        if what == "rename" and one.exists():
            one.rename(root / f"renamed{who}{len(os.listdir(root))}")
        if what == "swap" and one.exists() and other.exists():
            one.rename(root / "middle"), other.rename(one), (root / "middle").rename(other)
    try:
        frame = read_data(root)
        splits = (
            make_splits(frame, "hand", n_splits=2, seed=seed)
            if draws_anew
            else run_splits(folder, frame)
        )
        result = evaluate(random_embeddings(splits.all, side), splits)
    except PromptSGError:
        return
    ranked = {
        Path(path).read_bytes() for part in (splits.test, *splits.galleries) for path in part.path
    }
    assert not ranked & trained and not set(result.per_query.identity) & {
        f"{who}:hand" for who in side.people
    }


def test_a_new_person_changes_no_number_and_is_counted(people, tmp_path):
    frame = read_data(people)
    splits = make_splits(frame, "hand", n_splits=3)
    splits.save(tmp_path / "splits.json")
    root = Path(shutil.copytree(people, tmp_path / "people"))
    (root / "p9").mkdir()
    (root / "p9" / "0.jpg").write_bytes(b"9 0")
    (root / "p0" / "3.jpg").write_bytes(b"0 3")
    later = run_splits(tmp_path, read_data(root))
    assert [list(part.image) for part in later.queries] == [
        list(part.image) for part in splits.queries
    ]
    assert (
        later.excluded["of a person whom the run does not know"] == 1
        and later.excluded["added since the run was started"] == 1
    )


def test_the_library_refuses_splits_that_were_drawn_anew(run, hands, splits):
    model = load_run(run)
    assert model.trained_on == train_side(run / "splits.json")
    frame = read_data(hands)
    frame.loc[:, "side"] = ""  # so the seed divides the people
    other = make_splits(frame, "dorsal_r", n_splits=3, seed=1)
    with pytest.raises(PromptSGError, match="trained on"):
        measure(model, other, progress=False)
    measure(model, splits, progress=False)


def test_the_same_picture_on_both_sides_is_found_before_the_training(people, small, tmp_path):
    from PIL import Image

    root, rng = tmp_path / "people", np.random.default_rng(0)
    for person in range(8):
        (root / f"p{person}").mkdir(parents=True)
        for image in range(2):
            Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(
                root / f"p{person}" / f"{image}.png"
            )
    splits = make_splits(read_data(root), "hand", n_splits=1)
    shutil.copy(splits.train.path.iloc[0], splits.test.path.iloc[0])
    with pytest.raises(PromptSGError, match="1 image of those to be ranked"):
        Trainer(
            small.replace(aspect="hand", batch_size=4), splits, tmp_path / "run", progress=False
        ).fit()
    assert not (tmp_path / "run" / "config.yml").exists()


def test_mbas_gallery_may_hold_the_other_hand_of_somebody_trained_on_but_no_identity(splits):
    side = TrainSide(frozenset(splits.galleries_all[0].pid) - frozenset(splits.test.pid))
    side.check(splits, splits.galleries_all)
    with pytest.raises(PromptSGError, match="identit"):
        TrainSide(identities=frozenset(splits.galleries_all[0].identity[-1:])).check(
            splits, splits.galleries_all
        )


# --- commands
def test_a_run_is_measured_on_its_own_splits_and_tells_of_others(run, hands, promptsg, tmp_path):
    before = promptsg("evaluate", "--run", run, "--data", hands).stdout
    data = shutil.copytree(hands, tmp_path / "hands")
    table = pd.read_csv(data / "HandInfo.csv", dtype=str)
    new = table[table.aspectOfHand == "dorsal right"].tail(3)
    names = [f"new{number}.jpg" for number in range(3)]
    for name in names:
        shutil.copy(data / "Hands" / sorted(os.listdir(data / "Hands"))[0], data / "Hands" / name)
    pd.concat([table, new.assign(id="1999999", imageName=names, accessories="0")]).to_csv(
        data / "HandInfo.csv", index=False
    )
    said = promptsg("evaluate", "--run", run, "--data", data)
    assert (
        said.stdout.splitlines()[:3] == before.splitlines()[:3]
        and "3 left out: of a person whom the run does not know" in said.stderr
    )
    record = json.loads((run / "evaluation-clipfh" / "result.json").read_text())
    assert record["left_out"]["of a person whom the run does not know"] == 3
    for setting in ("split_seed=1", "num_splits=2", "aspect=dorsal_l"):
        assert (
            "belongs to the run"
            in promptsg("evaluate", "--run", run, "--data", hands, "--set", setting, code=2).stderr
        )


def test_each_measurement_has_its_own_folder(run, hands, promptsg, tmp_path):
    promptsg("evaluate", "--run", run, "--data", hands)
    first = (run / "evaluation-clipfh" / "result.json").read_bytes()
    promptsg("evaluate", "--run", run, "--data", hands, "--set", "eval_prompt=simplified")
    others = list(run.glob("config-*/evaluation-clipfh/result.json"))
    assert len(others) == 1 and (run / "evaluation-clipfh" / "result.json").read_bytes() == first
    error = promptsg(
        "evaluate",
        "--run",
        run,
        "--data",
        hands,
        "--set",
        "eval_prompt=simplified",
        "--out",
        run / "evaluation-clipfh",
        code=2,
    ).stderr
    assert "another" in error and (run / "evaluation-clipfh" / "result.json").read_bytes() == first


def test_another_data_set_is_measured_whole_and_the_record_says_so(run, hands, promptsg, tmp_path):
    from promptsg.synth import write_hands

    other = tmp_path / "other"
    write_hands(other, n_train=2, n_test=2, images_per_aspect=3, seed=77, progress=False)
    promptsg("evaluate", "--run", run, "--data", other, "--cross")
    (file,) = run.glob("cross-other-*/evaluation-clipfh/result.json")
    record = json.loads(file.read_text())
    # the train side of the other data set too
    assert record["cross"] is True and record["gallery"] == 4
    assert (
        "trained on"
        in promptsg("evaluate", "--run", run, "--data", hands, "--cross", code=2).stderr
    )
    assert (
        "--run"
        in promptsg(
            "evaluate", "--config", "paper@hand-vit-tiny", "--data", other, "--cross", code=2
        ).stderr
    )


def test_a_run_of_random_weights_is_read_back(hands, splits, small, promptsg, tmp_path):
    config = small.replace(pretrained="random", language=False, seed=3)
    out = Trainer(config, splits, tmp_path / "run", progress=False).fit()
    torch.manual_seed(99)
    assert load_run(out).config.pretrained == "random"
    promptsg("evaluate", "--run", out, "--data", hands)


def test_a_search_leaves_out_the_querys_own_picture_whatever_its_name(
    run, hands, promptsg, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    frame = read_data(hands)
    link, copy = tmp_path / "link.jpg", tmp_path / "=copy.jpg"
    link.symlink_to(frame.path[0])
    shutil.copy(frame.path[0], copy)
    for query in (frame.path[0], link, copy, os.path.relpath(frame.path[0])):
        said = promptsg(
            "search", "--run", run, "--query", query, "--gallery", hands, "--top", 4
        ).stdout
        picture = said.strip().splitlines()[-1].removeprefix("picture: ").split(";")[0]
        folder = Path(picture).parent
        table = pd.read_csv(folder / "nearest.csv")
        assert list(table["rank"]) == [1, 2, 3, 4] and frame.image[0] not in set(table.image)
        assert json.loads((folder / "search.json").read_text())["left out as the query itself"] == 1
    assert len(list((tmp_path / "search").iterdir())) == 4  # a folder for each search
    error = promptsg(
        "search", "--run", run, "--query", copy, "--gallery", hands, "--out", folder, code=2
    ).stderr
    assert "has another search" in error


def test_embeddings_lie_under_the_name_that_was_given(run, hands, promptsg, tmp_path):
    said = promptsg("embed", "--run", run, "--data", hands, "--out", tmp_path / "feats").stdout
    assert f"are in {tmp_path / 'feats'}\n" in said and os.listdir(tmp_path) == ["feats"]
    with np.load(tmp_path / "feats") as stored:
        record = json.loads(str(stored["record"]))
        assert (
            len(stored["features"]) == len(read_data(hands))
            and sum(record["left_out"].values()) > 0
        )


@pytest.mark.parametrize(
    "command", ["train", "evaluate", "embed", "search", "report", "demo", "export"]
)
def test_a_file_where_a_folder_belongs_is_one_sentence_before_the_work(
    command, run, hands, promptsg, tmp_path
):
    (tmp_path / "file").write_text("mine")
    out = tmp_path / "file" / "out"
    more = {
        "train": ["--config", "paper@hand-vit-tiny", "--data", hands],
        "evaluate": ["--run", run, "--data", hands],
        "embed": ["--run", run, "--data", hands],
        "search": ["--run", run, "--query", read_data(hands).path[0], "--gallery", hands],
        "report": ["--data", hands],
        "demo": ["--data", hands],
        "export": ["--run", run],
    }
    error = promptsg(command, *more[command], "--out", out, code=2).stderr
    assert (
        "is a file" in error
        and len([line for line in error.splitlines() if line.startswith("promptsg:")]) == 1
    )
    assert (tmp_path / "file").read_text() == "mine"


def test_one_training_holds_the_folder(splits, small, tmp_path):
    with held(tmp_path / "run"), pytest.raises(PromptSGError, match="another process is writing"):
        Trainer(small, splits, tmp_path / "run", progress=False).fit()
    assert not (tmp_path / "run").exists()


def test_leftovers_of_a_killed_process_are_swept_away(splits, small, run, tmp_path):
    own = {
        "config.yml",
        "splits.json",
        "metrics.csv",
        *(
            f"{which}/{name}"
            for which in ("best", "last")
            for name in ("checkpoint.safetensors", "state.json")
        ),
    }
    copy = tmp_path / "run"
    for name in own:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(run / name, copy / name)
    (copy / "last" / ".promptsg-0123.safetensors").write_bytes(b"half")
    Trainer(small, splits, copy, progress=False).fit(resume=True)
    assert {path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file()} == own


def test_a_checkpoint_whose_bytes_changed_is_refused(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    file = copy / "best" / "checkpoint.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 64
    file.write_bytes(content)
    with pytest.raises(PromptSGError, match="not a complete checkpoint"):
        read_checkpoint(copy / "best")


def test_resuming_ignores_what_changes_no_number(run, splits, small, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    Trainer(
        small.replace(num_workers=1, log_frequency=3, cache_pixels=False),
        splits,
        copy,
        progress=False,
    ).fit(resume=True)
    with pytest.raises(PromptSGError, match="started with another lr_modules"):
        Trainer(small.replace(lr_modules=0.5), splits, copy, progress=False).fit(resume=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_training_says_where_it_stands(number, hands, quick, tmp_path):
    (tmp_path / "c.yml").write_text(quick.replace(epochs=500, batch_size=8).to_yaml())
    command = [
        *MAIN,
        "train",
        "--config",
        tmp_path / "c.yml",
        "--data",
        hands,
        "--out",
        tmp_path / "run",
    ]
    process = subprocess.Popen(
        list(map(str, command)),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        # a shell's background job, as the tests may be, ignores SIGINT
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        wait_for(lambda: (tmp_path / "run" / "metrics.csv").exists(), process)
        process.send_signal(number)
        said = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert (
        process.returncode == 130
        and "promptsg: stopped at epoch" in said
        and "continue with --resume" in said
        and "Traceback" not in said
    )


def wait_for(ready, process, seconds=120):
    import time

    end = time.time() + seconds
    while not ready() and time.time() < end and process.poll() is None:
        time.sleep(0.05)
    assert ready()


def test_a_disk_that_cannot_be_written_is_found_before_the_work(tmp_path, monkeypatch):
    check_writable(tmp_path / "new" / "folder")
    assert os.listdir(tmp_path) == []

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(PromptSGError, match="No space left on device"):
        check_writable(tmp_path / "new")


def test_fp16_is_refused_where_float32_would_run(splits, small, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("a GPU trains in fp16")
    with pytest.raises(PromptSGError, match="fp16 needs a GPU"):
        Trainer(small.replace(precision="fp16"), splits, tmp_path / "run", progress=False).fit()


def test_the_loss_scale_is_kept(run, splits, small, tmp_path):
    "fp16's, which only a GPU has; here a stand-in of it."
    scaler = SimpleNamespace(
        state_dict=lambda: {"scale": 1024.0, "growth_tracker": 3},
        load_state_dict=lambda state: loaded.append(state),
    )
    loaded, copy = [], shutil.copytree(run, tmp_path / "run")
    trainer = Trainer(small, splits, copy, progress=False)
    trainer.set_up()
    trainer.accelerator.scaler = scaler
    trainer._resume()
    trainer._save_last(0)
    assert (
        read_checkpoint(copy / "last")[1]["scaler"] == {"scale": 1024.0, "growth_tracker": 3}
        and loaded == []
    )
    trainer._resume()
    trainer.accelerator.scaler = None  # accelerate keeps one state a process
    assert loaded == [{"scale": 1024.0, "growth_tracker": 3}]


def test_a_name_that_the_terminal_cannot_show_costs_nothing(hands, tmp_path):
    folder = tmp_path / "\u624b"
    for person in ("\u4e00", "\u4e8c"):
        (folder / person).mkdir(parents=True)
        for image in sorted((hands / "Hands").glob("*.jpg"))[:2]:
            shutil.copy(image, folder / person)
    done = subprocess.run(
        [
            *MAIN,
            "embed",
            "--config",
            "paper@hand-vit-tiny",
            "--data",
            str(folder),
            "--out",
            str(tmp_path / "\u624b.npz"),
        ],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"},
    )
    assert (
        done.returncode == 0
        and b"Traceback" not in done.stderr
        and b"\\u624b.npz" in done.stdout
        and (tmp_path / "\u624b.npz").exists()
    )


def test_one_identity_alone_is_not_measured(people):
    frame = read_data(people)
    with pytest.raises(PromptSGError, match="one identity of hand alone"):
        cross_splits(frame[frame.pid == "p1"].reset_index(drop=True), "hand")


def test_two_methods_are_compared_over_people_and_trainings(hands, small, promptsg, tmp_path):
    (tmp_path / "small.yml").write_text(small.to_yaml())
    for name, change in (("a", "lr_modules=0.001"), ("b", "lr_modules=0.01")):
        for seed in (0, 1):
            run = tmp_path / f"{name}{seed}"
            sets = ("--set", f"seed={seed}", "--set", change)
            config = ("--config", tmp_path / "small.yml")
            promptsg("train", *config, *sets, "--data", hands, "--out", run)
            promptsg("evaluate", "--run", run, "--data", hands)
    runs = [tmp_path / name for name in ("a0", "a1", "b0", "b1")]
    # another seed is another training of the same people, measured on the same splits
    assert len({(run / "splits.json").read_text() for run in runs}) == 1
    assert len({(run / "metrics.csv").read_text() for run in runs}) == 4
    shown = promptsg("compare", "--runs", *runs[:2], "--with", *runs[2:]).stdout
    gap = paired_difference(
        *([Result.load(run / "evaluation-clipfh") for run in side] for side in (runs[:2], runs[2:]))
    )
    assert f"{gap.difference:+.1f} [{gap.low:+.1f}, {gap.high:+.1f}]" in shown
    assert "2 and 2 trainings" in shown and f"{gap.units} people" in shown
    alone = promptsg("compare", "--runs", runs[0], "--with", runs[2]).stdout
    assert "one training a side compares two models" in alone
    other = ("--set", "split_seed=1")
    promptsg("train", *config, *other, "--data", hands, "--out", tmp_path / "c")
    promptsg("evaluate", "--run", tmp_path / "c", "--data", hands)
    with pytest.raises(PromptSGError, match="other splits"):
        paired_difference(
            Result.load(runs[0] / "evaluation-clipfh"),
            Result.load(tmp_path / "c" / "evaluation-clipfh"),
        )
