"The commands as a user types them: exit codes, one-sentence errors, and what they leave behind."
import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest

COMMAND = [sys.executable, "-c", "from promptsg.cli import main; main()"]


def promptsg(*arguments, code=0):
    done = subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done


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
        assert "mAP" in promptsg("evaluate", "--run", run, "--data", hands, "--protocol", protocol).stdout
        record = json.loads((run / f"evaluation-{protocol}" / "result.json").read_text())
        assert record["protocol"]["name"] == protocol and record["config_hash"] and record["data_hash"] and record["versions"]["torch"]


def test_zero_shot_needs_no_run(hands, config, tmp_path):
    promptsg("evaluate", "--config", config, "--data", hands, "--out", tmp_path / "zero")
    assert len(pd.read_csv(tmp_path / "zero" / "per_split.csv")) == 3


def test_search_finds_the_same_person_first_or_not_but_never_the_query(run, hands, tmp_path):
    query = sorted((hands / "Hands").glob("*.jpg"))[0]
    promptsg("search", "--run", run, "--query", query, "--gallery", hands, "--top", 5, "--out", tmp_path)
    table = pd.read_csv(tmp_path / "nearest.csv")
    assert len(table) == 5 and table.similarity.is_monotonic_decreasing and query.name not in set(table.image)
    assert (tmp_path / "nearest.png").stat().st_size > 5000


def test_figures_of_a_run_say_how_their_queries_were_chosen(run, hands):
    from promptsg.cli import measure, ranked_lists, read_data, splits_of, steps_figure
    from promptsg.training import load_run
    model = load_run(run)
    splits = splits_of(model.config, read_data(hands))
    _, embeddings = measure(model, splits, progress=False)
    assert "3 queries of the first split, drawn at random (seed 7)" in ranked_lists(embeddings, splits, queries=3, seed=7).get_supxlabel()
    figure = steps_figure(model, embeddings, splits, top=2)
    said = [text.get_text().replace("\n", " ") for ax in figure.axes for text in ax.texts]
    assert said == [model.prompt.template.text.replace("s*", "$s^*$")]
    assert f"{model.prompt.width} numbers" in [ax.get_xlabel() for ax in figure.axes]


def test_embed(run, hands, tmp_path):
    promptsg("embed", "--run", run, "--data", hands, "--out", tmp_path / "e.npz")
    assert (tmp_path / "e.npz").exists()


def test_doctor_says_what_is_there(hands):
    text = promptsg("doctor", "--data", hands).stdout
    assert "hand-vit-tiny" in text and "people" in text


def broken(kind, run, hands, config, tmp_path):
    "Arguments that hit one kind of bad input, and a word that its sentence must hold."
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
        pd.read_csv(data / "HandInfo.csv").drop(columns="aspectOfHand").to_csv(data / "HandInfo.csv", index=False)
        return ["evaluate", "--run", copy, "--data", data], "aspectOfHand"
    if kind == "misspelt key":
        (tmp_path / "c.yml").write_text("epohcs: 3")
        return ["train", "--config", tmp_path / "c.yml", "--data", data, "--out", tmp_path / "new"], "epochs"
    if kind == "missing weight file":
        return ["evaluate", "--run", copy, "--data", data, "--set", "pretrained=nowhere.safetensors"], "nowhere.safetensors"
    return ["evaluate", "--run", copy, "--data", data, "--set", "model=hand-rn-tiny"], "does not match"


@pytest.mark.parametrize("kind", ["truncated checkpoint", "corrupt JPEG", "CSV without a column", "misspelt key", "missing weight file",
                                  "another backbone"])
def test_bad_input_is_one_sentence_and_exit_2(kind, run, hands, config, tmp_path):
    arguments, word = broken(kind, run, hands, config, tmp_path)
    error = promptsg(*arguments, code=2).stderr.strip().splitlines()
    said = [line for line in error if line.startswith("promptsg:")]
    assert len(said) == 1 and word in said[0] and "Traceback" not in "".join(error)


def test_a_killed_training_goes_on(hands, config, run, tmp_path):
    "SIGKILL after the first epoch was saved; --resume ends with the weights of the run that was not killed."
    from promptsg.training import read_checkpoint
    out = tmp_path / "run"
    train = ["train", "--config", str(config), "--data", str(hands), "--out", str(out)]
    process = subprocess.Popen([*COMMAND, *train], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.time() + 120
    while not (out / "last" / "checkpoint.safetensors").exists() and time.time() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    promptsg("train", "--data", hands, "--out", out, "--resume")
    (one, _), (other, _) = read_checkpoint(out / "last"), read_checkpoint(run / "last")
    assert one.keys() == other.keys() and all(one[k].equal(other[k]) for k in one)


@pytest.mark.parametrize("arguments", [["serch"], ["train", "--dat", "x"], ["search", "--run", "x"], ["synth", "--out", "x", "--images", "1"]])
def test_a_mistyped_command_is_exit_2_without_a_traceback(arguments):
    done = promptsg(*arguments, code=2)
    assert "Traceback" not in done.stderr and "Error" in done.stderr
