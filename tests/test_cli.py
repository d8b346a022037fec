"The commands as a user types them: exit codes, one-sentence errors and written files."

import io
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pandas as pd
import pytest

from promptsg.data import make_splits
from promptsg.training import Trainer

COMMAND = [sys.executable, "-c", "from promptsg.cli import main; main()"]


def promptsg(*arguments, code=0, **options):
    """A command as a user types it, in this process; with `options` (of subprocess.run) in one of
    its own."""
    if options:
        done = subprocess.run(
            [*COMMAND, *map(str, arguments)], capture_output=True, text=True, **options
        )
        assert done.returncode == code, done.stderr
        return done
    from promptsg.cli import main

    out, err, on_term = io.StringIO(), io.StringIO(), signal.getsignal(signal.SIGTERM)
    try:
        with (
            patch.object(sys, "argv", ["promptsg", *map(str, arguments)]),
            redirect_stdout(out),
            redirect_stderr(err),
            pytest.raises(SystemExit) as ended,
        ):
            main()
    finally:
        signal.signal(signal.SIGTERM, on_term)
    assert ended.value.code == code, err.getvalue()
    return SimpleNamespace(stdout=out.getvalue(), stderr=err.getvalue())


@pytest.fixture(scope="module")
def config(quick, tmp_path_factory):
    file = tmp_path_factory.mktemp("config") / "quick.yml"
    file.write_text(quick.to_yaml())
    return file


@pytest.fixture(scope="module")
def run(hands, config, tmp_path_factory):
    out = tmp_path_factory.mktemp("cli") / "run"
    promptsg("train", "--config", config, "--data", hands, "--out", out)
    return out


def test_evaluate_writes_table_and_record(run, hands):
    for protocol in ("clipfh", "mba"):
        said = promptsg("evaluate", "--run", run, "--data", hands, "--protocol", protocol).stdout
        assert "mAP" in said and said.startswith("percent, mean") and "mINP: " in said
        assert set(pd.read_csv(run / f"evaluation-{protocol}" / "summary.csv").unit) == {"percent"}
        record = json.loads((run / f"evaluation-{protocol}" / "result.json").read_text())
        assert (
            record["protocol"]["name"] == protocol
            and record["config_hash"]
            and record["data_hash"]
            and record["versions"]["torch"]
        )


def test_zero_shot_needs_no_run(hands, config, tmp_path):
    promptsg("evaluate", "--config", config, "--data", hands, "--out", tmp_path / "zero")
    assert len(pd.read_csv(tmp_path / "zero" / "per_split.csv")) == 3


def test_search_never_returns_the_query(run, hands, tmp_path):
    query = sorted((hands / "Hands").glob("*.jpg"))[0]
    promptsg(
        "search", "--run", run, "--query", query, "--gallery", hands, "--top", 5, "--out", tmp_path
    )
    table = pd.read_csv(tmp_path / "nearest.csv")
    assert (
        len(table) == 5
        and table.similarity.is_monotonic_decreasing
        and query.name not in set(table.image)
    )
    assert (tmp_path / "nearest.png").stat().st_size > 5000


def test_search_says_how_many_gallery_images_the_model_knows(run, hands, config, tmp_path):
    known = json.loads((run / "splits.json").read_text())
    trained = {place for part in ("train", "val_query", "val_gallery") for place in known[part]}
    query = next((hands / "Hands").glob("*.jpg"))
    ways = {"run": len(trained), "config": 0}
    own = any(Path(known["images"][place][0]).name == query.name for place in trained)
    for way, number in ways.items():
        source = run if way == "run" else config
        arguments = (f"--{way}", source, "--query", query, "--gallery", hands)
        said = promptsg("search", *arguments, "--out", tmp_path / way).stderr
        number -= own and way == "run"  # the query itself is no gallery image
        assert (f"trained on: {number} gallery images of" in said) == (way == "run")
        record = json.loads((tmp_path / way / "search.json").read_text())
        assert record["trained on"] == number


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({}, "2 epochs of 5 steps, validated on 2 held-out identities"),
        ({"val_type": "images"}, "validated on other images of the trained people"),
        ({"val_type": "none", "select": "last"}, "validated nowhere"),
        ({"epochs": 0, "whiten": True, "val_type": "images"}, "no gradient steps"),
    ],
)
def test_a_training_says_its_steps_and_what_it_is_validated_on(settings, sentence, quick, splits):
    config = quick.replace(steps_per_epoch=5, **settings)
    own = make_splits(
        pd.concat([splits.known, splits.test]).drop_duplicates("path"),
        "dorsal_r",
        3,
        val=config.val_type,
    )
    trainer = Trainer(config, own, "unused", progress=False)
    trainer.set_up()
    number = own.train.identity.nunique()
    assert f"{number} identities ({len(own.train)} images)" in trainer.plan()
    assert sentence in trainer.plan()


def test_figures_state_how_their_queries_were_chosen(run, hands):
    from promptsg.checkpoints import load_run
    from promptsg.cli import ranked_lists, steps_figure
    from promptsg.data import read_data
    from promptsg.embedding import measure, splits_of

    model = load_run(run)
    splits = splits_of(model.config, read_data(hands))
    _, embeddings = measure(model, splits, progress=False)
    assert (
        "3 queries of the first split, drawn at random (seed 7)"
        in ranked_lists(embeddings, splits, queries=3, seed=7).get_supxlabel()
    )
    figure = steps_figure(model, embeddings, splits, top=2)
    said = [text.get_text().replace("\n", " ") for ax in figure.axes for text in ax.texts]
    assert said == [model.prompt.template.text.replace("s*", "$s^*$")]
    assert f"{model.prompt.width} numbers" in [ax.get_xlabel() for ax in figure.axes]


@pytest.fixture(scope="module")
def own(hands, tmp_path_factory):
    "Six people, a folder each, two to four pictures in it."
    import shutil

    from promptsg.data import read_11k

    folder, frame = tmp_path_factory.mktemp("own"), read_11k(hands)
    for _, row in frame[
        (frame.aspect == "dorsal_r") & frame.pid.isin(sorted(set(frame.pid))[:6])
    ].iterrows():
        (folder / f"person {row.pid}").mkdir(exist_ok=True)
        shutil.copy(row.path, folder / f"person {row.pid}")
    return folder


def test_a_folder_is_searched_without_training(own, tmp_path):
    query = sorted(own.rglob("*.jpg"))[0]
    promptsg(
        "search",
        "--data",
        own,
        "--query",
        query,
        "--config",
        "paper@hand-vit-tiny",
        "--top",
        3,
        "--out",
        tmp_path,
    )
    table = pd.read_csv(tmp_path / "nearest.csv")
    assert (
        len(table) == 3
        and table.similarity.is_monotonic_decreasing
        and query.name not in {name.split("/")[-1] for name in table.image}
    )
    promptsg("embed", "--data", own, "--config", "paper@hand-vit-tiny", "--out", tmp_path / "e.npz")
    assert (tmp_path / "e.npz").exists()
    for both in ([], ["--run", "x", "--config", "paper@hand-vit-tiny"]):
        assert (
            "give either --run"
            in promptsg("search", "--data", own, "--query", query, *both, code=2).stderr
        )
    error = promptsg(
        "search", "--data", own, "--query", "nope.jpg", "--config", "paper@hand-vit-tiny", code=2
    ).stderr
    assert "the picture nope.jpg does not exist" in error and os.path.abspath("nope.jpg") in error


def test_six_people_are_enough_to_train(own, config, tmp_path):
    from promptsg.checkpoints import load_run
    from promptsg.config import Config

    train = [
        "train",
        "--config",
        config,
        "--data",
        own,
        "--out",
        tmp_path / "run",
        "--set",
        "epochs=1",
    ]
    assert "--set batch_size=8" in promptsg(*train, code=2).stderr
    promptsg(*train, "--set", "batch_size=8", "--set", "precision=no")
    recorded = Config.from_yaml(tmp_path / "run" / "config.yml")
    assert (recorded.dataset, recorded.aspect, recorded.precision) == ("folders", "hand", "no")
    assert load_run(tmp_path / "run").prompt.template.text == "A photo of a s* person's hand."


@pytest.mark.parametrize("cached", ["true", "false"])
def test_damaged_images_are_found_before_training(own, config, tmp_path, cached):
    import shutil

    data = shutil.copytree(own, tmp_path / "own")
    images = list(data.rglob("*.jpg"))
    for image in images:
        image.write_bytes(image.read_bytes()[:-200])
    error = promptsg(
        "train",
        "--config",
        config,
        "--data",
        data,
        "--out",
        tmp_path / "run",
        "--set",
        "batch_size=8",
        "--set",
        f"cache_pixels={cached}",
        code=2,
    ).stderr
    assert (
        f"{len(images)} images cannot be read" in error
        and f"and {len(images) - 3} more" in error
        and not (tmp_path / "run").exists()
    )


def test_embed(run, hands, tmp_path):
    promptsg("embed", "--run", run, "--data", hands, "--out", tmp_path / "e.npz")
    assert (tmp_path / "e.npz").exists()


def test_doctor_lists_the_data(hands):
    from promptsg.data import read_11k

    text = promptsg("doctor", "--data", hands).stdout
    assert (
        "hand-vit-tiny" in text
        and f"{len(read_11k(hands))} images of 20 people in 4 aspects" in text
    )


def test_doctor_exits_2_if_a_check_fails(tmp_path):
    assert "1 check failed (data)" in promptsg("doctor", "--data", tmp_path, code=2).stderr
    (tmp_path / "anna").mkdir()
    (tmp_path / "anna" / "1.jpg").write_bytes(b"no image")
    done = promptsg("doctor", "--data", tmp_path, code=2)
    assert (
        "1 image of 1 person in 1 aspect (folders)\n" in done.stdout
        and "1.jpg cannot be read" in done.stdout
        and "Traceback" not in done.stderr
    )


def broken(kind, run, hands, config, tmp_path):
    "(arguments with one kind of bad input, a word that the error must contain)."
    import shutil

    copy = shutil.copytree(run, tmp_path / "run")
    data = shutil.copytree(hands, tmp_path / "hands")
    if kind == "truncated checkpoint":
        file = copy / "best" / "checkpoint.safetensors"
        file.write_bytes(file.read_bytes()[:1000])
        return ["evaluate", "--run", copy, "--data", data], "checkpoint"
    if kind == "corrupt JPEG":
        image = sorted((data / "Hands").glob("*.jpg"))[0]
        for image in (data / "Hands").glob("*.jpg"):
            image.write_bytes(image.read_bytes()[:300])
        return ["evaluate", "--run", copy, "--data", data], ".jpg"
    if kind == "CSV without a column":
        pd.read_csv(data / "HandInfo.csv").drop(columns="aspectOfHand").to_csv(
            data / "HandInfo.csv", index=False
        )
        return ["evaluate", "--run", copy, "--data", data], "aspectOfHand"
    if kind == "misspelt key":
        (tmp_path / "c.yml").write_text("epohcs: 3")
        words = ["train", "--config", tmp_path / "c.yml", "--data", data]
        return [*words, "--out", tmp_path / "new"], "epochs"
    words = ["evaluate", "--run", copy, "--data", data, "--set"]
    if kind == "missing weight file":
        return [*words, "pretrained=nowhere.safetensors"], "nowhere.safetensors"
    return [*words, "model=hand-rn-tiny"], "does not match"


@pytest.mark.parametrize(
    "kind",
    [
        "truncated checkpoint",
        "corrupt JPEG",
        "CSV without a column",
        "misspelt key",
        "missing weight file",
        "another backbone",
    ],
)
def test_bad_input_is_one_sentence_and_exit_2(kind, run, hands, config, tmp_path):
    arguments, word = broken(kind, run, hands, config, tmp_path)
    error = promptsg(*arguments, code=2).stderr.strip().splitlines()
    said = [line for line in error if line.startswith("promptsg:")]
    assert len(said) == 1 and word in said[0] and "Traceback" not in "".join(error)


def test_a_killed_training_continues(hands, config, run, tmp_path):
    """SIGKILL after the first epoch was saved; --resume ends with the weights of the run that was
    not killed."""
    from promptsg.checkpoints import read_checkpoint

    out = tmp_path / "run"
    train = ["train", "--config", str(config), "--data", str(hands), "--out", str(out)]
    process = subprocess.Popen(
        [*COMMAND, *train], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.time() + 120
    while not (out / "last" / "checkpoint.safetensors").exists() and time.time() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    promptsg("train", "--data", hands, "--out", out, "--resume")
    (one, _), (other, _) = read_checkpoint(out / "last"), read_checkpoint(run / "last")
    assert one.keys() == other.keys() and all(one[k].equal(other[k]) for k in one)


@pytest.mark.parametrize(
    "arguments",
    [
        ["serch"],
        ["train", "--dat", "x"],
        ["search", "--run", "x"],
        ["synth", "--out", "x", "--images", "1"],
    ],
)
def test_a_mistyped_command_is_exit_2_without_a_traceback(arguments):
    done = promptsg(*arguments, code=2)
    assert "Traceback" not in done.stderr and "Error" in done.stderr


def test_resuming_a_missing_run_is_one_sentence(hands, tmp_path):
    error = promptsg(
        "train", "--resume", "--data", hands, "--out", tmp_path / "none", code=2
    ).stderr
    assert "there is no run in" in error and "YAML" not in error


def test_help_is_complete_in_a_narrow_terminal():
    from promptsg.cli import app

    narrow = dict(env={**os.environ, "COLUMNS": "80", "TERMINAL_WIDTH": "80"})
    words = lambda text: " ".join(text.split())
    listed = words(promptsg("--help", **narrow).stdout)
    for command in app.registered_commands:
        assert words(command.callback.__doc__) in listed
    said = promptsg("train", "--help", **narrow).stdout
    assert (
        "..." not in said
        and max(map(len, said.splitlines())) <= 80
        and "Change a config field: FIELD=VALUE. May be repeated." in words(said)
    )


def test_versions_explains_its_columns():
    legend, _, columns, *_ = promptsg("versions").stdout.splitlines()
    assert (
        legend.startswith("loss: weights; schedule: ")
        and len(legend) <= 120
        and columns.startswith("version")
    )


def test_the_command_line_is_imported_by_no_other_module():
    import re
    from pathlib import Path

    import promptsg.cli

    modules = [
        file for file in Path(promptsg.cli.__file__).parent.glob("*.py") if file.name != "cli.py"
    ]
    assert (
        len(modules) > 15
        and [
            file.name for file in modules if re.search(r"(promptsg)?\.cli import", file.read_text())
        ]
        == []
    )


def test_look_prints_and_writes_every_map_and_with_hide_the_curves(run, hands, tmp_path):
    out = tmp_path / "look.csv"
    said = promptsg(
        "look",
        "--run",
        run,
        "--data",
        hands,
        "--images",
        6,
        "--hide",
        "--fill",
        "mean",
        "--out",
        out,
    ).stdout
    for kind in ("relevance", "attention", "contrast"):
        assert (
            f"{kind}: 6 images, area under the ROC 0." in said
            and f"{kind}: area under deletion" in said
        )
    assert "(true mask)" in said and "hidden: mean; gallery images are unchanged" in said
    table, curves = pd.read_csv(out), pd.read_csv(tmp_path / "look-curves.csv")
    assert table.groupby("map").size().to_dict() == {"relevance": 6, "attention": 6, "contrast": 6}
    assert set(curves.order) == {"relevance", "attention", "contrast", "random"} and set(
        curves["mode"]
    ) == {"deletion", "insertion"}
    assert (
        "random"
        not in promptsg(
            "look", "--run", run, "--data", hands, "--images", 3, "--map", "relevance"
        ).stdout
    )


def test_look_rejects_an_unknown_map_or_fill(run, hands):
    assert (
        "no map 'word'; it has relevance, attention, contrast"
        in promptsg(
            "look", "--run", run, "--data", hands, "--images", 2, "--map", "word", code=2
        ).stderr
    )
    assert (
        "--fill is 'red'; choose one of blur, ground, mean"
        in promptsg("look", "--run", run, "--data", hands, "--fill", "red", code=2).stderr
    )


def test_steps_after_the_embedding_are_compared_with_none(run, hands):
    said = promptsg(
        "evaluate", "--run", run, "--data", hands, "--after", "rerank-few", "max", "z"
    ).stdout
    assert "steps after the embedding" in said and "seconds" in said and "no effect here" in said
    plain = json.loads((run / "evaluation-clipfh" / "result.json").read_text())
    assert plain.get("control") is None
    for name in ("rerank-few", "max", "z"):
        record = json.loads((run / f"evaluation-clipfh-{name}" / "result.json").read_text())
        assert record["control"] == name and record["data_hash"] == plain["data_hash"]
    table = pd.read_csv(run / "evaluation-clipfh-after.csv").set_index(["step", "measure"])
    assert len(table) == 6 and "seconds" not in table
    assert table.difference["max", "mAP"] == 0 and table.value["max", "mAP"] == pytest.approx(
        plain["summary"]["mAP"]["mean"] / 100
    )
    from promptsg.sharing import read_record

    # no card shows a step's figure
    assert all(one.record.get("control") is None for one in read_record(run)["results"])


def test_mirror_has_its_own_results_folder(run, hands):
    before = promptsg("evaluate", "--run", run, "--data", hands).stdout
    said = promptsg("evaluate", "--run", run, "--data", hands, "--set", "mirror=true").stdout
    assert "mirror image's" in said and "mirror image's" not in before
    records = [
        json.loads(file.read_text()) for file in run.glob("config-*/evaluation-clipfh/result.json")
    ]
    assert [one["config"]["mirror"] for one in records] == [True]


def test_another_data_sets_whitening_is_a_second_row(run, own, hands, tmp_path):
    from promptsg.synth import write_hands

    write_hands(
        tmp_path / "other", n_train=4, n_test=4, images_per_aspect=3, seed=70, progress=False
    )
    said = promptsg(
        "evaluate", "--run", run, "--data", tmp_path / "other", "--cross", "--whiten", "data"
    ).stdout
    assert (
        "no whitening" in said
        and "whitened by this data's train people" in said
        and "over 4 people" in said
    )
    (file,) = run.glob("cross-other-*/evaluation-clipfh-whiten-data/result.json")
    record = json.loads(file.read_text())
    assert record["cross"] is True and record["gallery"] == 4 and "whitened" in record["control"]
    assert (file.parents[1] / "evaluation-clipfh" / "result.json").exists()


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--after", "best"], "no step 'best'"),
        (["--cross", "--after", "z"], "needs a cohort"),
        (["--whiten", "data"], "data needs --cross"),
        (["--cross", "--whiten", "mine"], "own or data"),
        (["--cross", "--whiten", "data", "--after", "max"], "excludes --after"),
    ],
)
def test_options_that_exclude_each_other_are_one_sentence(run, hands, words, sentence):
    error = promptsg("evaluate", "--run", run, "--data", hands, *words, code=2).stderr
    assert sentence in error and error.count("\n") == 1
