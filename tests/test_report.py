"A report is finished once, whatever happens to it in between, and says what failed."

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from promptsg.cli import spread_values, wrapped_table
from promptsg.config import PromptSGError
from promptsg.evaluation import holm, paired_difference
from promptsg.files import UNFINISHED, held
from promptsg.looking import LOOKING
from promptsg.report import (
    LOGGED,
    Report,
    Run,
    _looking_rows,
    add_trainings,
    compare,
    control_differences,
    control_table,
    differences,
    in_words,
    load_report,
    looking_page,
    looking_rows,
    make_report,
    pair_lines,
    parse_pairs,
    plan_runs,
    read_metrics,
    read_published,
    report_figures,
    report_page,
    results_table,
    shipped_reference,
    summary,
    train_table,
)
from promptsg.versions import VERSIONS, chain_table

FAST = dict(epochs=2, steps_per_epoch=2, batch_size=16, num_splits=2)
VIT = "hand-vit-tiny"
COMMAND = [sys.executable, "-c", "from promptsg.cli import main; main()"]


def small(out, data, **options):
    "v1 and image_only, two seeds, one backbone, no controls."
    return make_report(
        out,
        **{
            **dict(
                backbones=[VIT],
                versions=["v1"],
                seeds=(0, 1),
                data=data,
                changes=FAST,
                progress=False,
                controls=False,
            ),
            **options,
        },
    )


@pytest.fixture(scope="module")
def done(hands, tmp_path_factory):
    return small(tmp_path_factory.mktemp("report"), hands)


def written(folder):
    "name -> bytes of everything a report writes about its runs."
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in sorted(folder.glob("*"))
        if file.is_file()
    }


def times(folder):
    return {file: file.stat().st_mtime_ns for file in folder.glob("*/*/*/evaluation-*/*")} | {
        file: file.stat().st_mtime_ns for file in folder.glob("*/*/*/metrics.csv")
    }


def test_the_tidy_table_has_every_run_protocol_and_split_once(done):
    table = pd.read_csv(done.folder / "results.csv")
    assert list(table) == [
        "backbone",
        "aspect",
        "version",
        "seed",
        "protocol",
        "split",
        "rank1",
        "rank5",
        "rank10",
        "mAP",
        "mINP",
    ]
    rows = {
        (version, seed, protocol, split)
        for version, seeds in (("zero-shot", (-1,)), ("image_only", (0, 1)), ("v1", (0, 1)))
        for seed in seeds
        for protocol in ("clipfh", "mba")
        for split in (0, 1)
    }
    assert set(
        table.fillna({"seed": -1})[["version", "seed", "protocol", "split"]].itertuples(
            index=False, name=None
        )
    ) == rows and len(table) == len(rows)
    assert table[["rank1", "rank5", "rank10", "mAP", "mINP"]].stack().between(0, 1).all()


def test_seeds_train_differently_on_the_same_splits(done):
    one, other = (done.evaluations[Run(VIT, "dorsal_r", "v1", seed), "clipfh"] for seed in (0, 1))
    assert list(one.per_query.path) == list(other.per_query.path) and not one.per_query.ap.equals(
        other.per_query.ap
    )
    assert one.record["data_hash"] == other.record["data_hash"] and [
        one.record["config"]["seed"],
        other.record["config"]["seed"],
    ] == [0, 1]


def test_groups_side_by_side_say_what_each_summary_says(done):
    results, gains = (
        pd.read_csv(done.folder / f"{name}.csv") for name in ("results", "differences")
    )
    groups = {"easy": (VIT, "dorsal_r", "clipfh"), "hard": (VIT, "dorsal_r", "mba")}
    table = results_table(results, gains, groups).set_index("version")
    assert table.seeds.to_dict() == {"zero-shot": "", "image_only": 2, "v1": 2}
    for label, group in groups.items():
        own = summary(done, group).set_index("version")
        for column, beside in (
            ("Rank-1", "Rank-1"),
            ("mAP", "mAP"),
            ("− image_only", "mAP − image_only"),
        ):
            assert table[f"{label}: {column}"].to_dict() == own[beside].to_dict()


def test_page_and_figures(done):
    page = (done.folder / "report.md").read_text(encoding="utf-8")
    for word in (
        "zero-shot",
        "image_only",
        "v1",
        "clipfh",
        "mba",
        "weights: hand-vit-tiny: embedded",
        "command: `promptsg report --backbone hand-vit-tiny",
        done.evaluations[Run(VIT, "dorsal_r", "v1", 0), "mba"].record["data_hash"],
    ):
        assert word in page
    figures = {file.name for file in (done.folder / "figures").iterdir()}
    assert figures == {
        f"{VIT}-dorsal_r-{name}.png"
        for name in (
            "clipfh-cmc",
            "mba-cmc",
            "clipfh-differences",
            "mba-differences",
            "curves",
            "losses",
        )
    } | {"dorsal_r-versions.png"}


def test_published_figures_are_drawn_beside_the_backbones_that_have_them(done, tmp_path):
    names = lambda report: [
        name
        for name, _ in report_figures(
            report,
            pd.DataFrame(columns=["backbone", "aspect", "protocol", "by"]),
            read_published(shipped_reference()),
        )
        if "published" in name
    ]
    for file in done.folder.rglob("metrics.csv"):  # the same runs as if a ViT-B/16 had made them
        copy = tmp_path / "vitb16-cpu" / file.relative_to(done.folder / VIT)
        copy.parent.mkdir(parents=True)
        copy.write_bytes(file.read_bytes())
    theirs = Report(
        tmp_path,
        {
            (run._replace(backbone="vitb16-cpu"), protocol): result
            for (run, protocol), result in done.evaluations.items()
        },
        {},
        {},
    )
    assert names(theirs) == ["vitb16-cpu-published"] and names(done) == []
    assert read_published(shipped_reference()).query(
        "backbone == 'rn50' and version == 'v4'"
    ).rank1.mean() == pytest.approx(0.519, abs=5e-4)
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    with pytest.raises(PromptSGError, match="published results"):
        read_published(tmp_path / "bad.csv")


def test_the_summary_is_mean_and_spread_over_splits_and_seeds(done):
    table, values = (
        summary(done, (VIT, "dorsal_r", "clipfh")).set_index("version"),
        done.results.query("version == 'v1' and protocol == 'clipfh'"),
    )
    assert (
        table.loc["v1", "mAP"] == f"{100 * values.mAP.mean():.2f} ± {100 * values.mAP.std():.2f}"
        and len(values) == 4
    )
    gain = compare(done, "image_only", "v1", protocol="clipfh")
    text = f"{gain.difference:+.2f} [{gain.low:+.2f}, {gain.high:+.2f}]"
    assert table.loc["v1", "mAP − image_only"].removesuffix(" *") == text
    found = done.of(VIT, "dorsal_r", "clipfh")
    assert (
        gain.trainings == 2
        and gain == paired_difference(found["image_only"], found["v1"])
        and compare(done, "v1", "image_only", protocol="clipfh").difference == -gain.difference
    )


def test_a_pair_is_compared_beside_image_only(done):
    group, pair = (VIT, "dorsal_r", "clipfh"), *parse_pairs(["zero-shot:v1"])
    table, gain = differences(done, [pair]), compare(done, *pair, protocol="clipfh")
    row = table.query(
        "a == 'zero-shot' and protocol == 'clipfh' and measure == 'mAP' and by == 'identity'"
    )
    assert row[["b", *gain._fields]].values.tolist() == [["v1", *gain]]
    (line,) = pair_lines(table, group)
    assert line.startswith("- v1 − zero-shot: Rank-1 ")
    assert line.endswith("mAP " + in_words(row.iloc[0]))
    alike = lambda rows: (
        rows.query("a == 'image_only'").reset_index(drop=True).drop(columns="p_holm")
    )
    assert line in report_page(done, table) and alike(table).equals(alike(differences(done)))


def test_a_star_stands_for_what_holm_leaves(done):
    table = differences(done, parse_pairs(["zero-shot:v1"]))
    for _, column in table.groupby(["protocol", "measure", "by"]):
        assert len(column) == 3 and column.p_holm.tolist() == pytest.approx([*holm(column.p)])
    gain = dict(difference=1.0, low=0.5, high=1.5)
    words = [in_words(pd.Series({**gain, "p": 0.01, "p_holm": p})) for p in (0.04, 0.05)]
    assert words == ["+1.00 [+0.50, +1.50] *", "+1.00 [+0.50, +1.50]"]
    assert compare(done, "image_only", "v1", protocol="clipfh")._fields[:4] == (
        "difference",
        "low",
        "high",
        "p",
    )


def test_trainings_are_added_to_a_table_over_people(done):
    """From a table as it once was, and each seed's mean, comes the interval of Eq. (3)."""
    whole = differences(done)
    units = int(whole.query("by == 'identity'").units.iloc[0])
    stored = pd.DataFrame(
        [
            dict(
                backbone=VIT,
                aspect="dorsal_r",
                protocol="clipfh",
                a="image_only",
                b="v1",
                measure="mAP",
                by="identity",
                difference=2.0,
                low=1.0,
                high=3.0,
            )
        ]
    )
    seeds = done.results.query("protocol == 'clipfh'").groupby(["version", "seed"]).mAP.mean()
    spread = 100 * (seeds["v1"] - seeds["image_only"]).to_numpy()
    added = add_trainings(stored, done.results, {"dorsal_r": units}).iloc[0]
    t = scipy.stats.t.ppf(0.975, [units - 1, 1])
    reach = np.sqrt((t[0] / 1.96) ** 2 + t[1] ** 2 * spread.var(ddof=1) / 2)
    assert added.high == pytest.approx(min(100, added.difference + reach)) and added.trainings == 2
    assert add_trainings(whole, done.results, {}) is whole
    with pytest.raises(PromptSGError, match="no v9 for"):
        add_trainings(stored.assign(b="v9"), done.results, {"dorsal_r": units})


def test_a_pair_that_is_none_is_one_sentence(done, tmp_path):
    with pytest.raises(PromptSGError, match="'v1' is not a pair of versions"):
        parse_pairs(["v1"])
    with pytest.raises(PromptSGError, match="no version v8 for a comparison"):
        small(tmp_path, None, pairs=[("v1", "v8")])
    assert not any(tmp_path.iterdir())


def test_tables_in_the_reference_format(done):
    evaluation = pd.read_csv(done.folder / f"stage3_{VIT}_eval_table.csv").set_index("version")
    splits = (
        done.results.query("version == 'v1' and protocol == 'clipfh'").groupby("split").rank1.mean()
    )
    assert (
        list(evaluation)[:5] == ["Remarks", "split1_R1", "split1_R5", "split1_R10", "split1_mAP"]
        and list(evaluation)[-1] == "final_mAP"
    )
    assert evaluation.loc["stage3-v1", ["split1_R1", "split2_R1"]].tolist() == pytest.approx(
        100 * splits, abs=0.005
    )
    training = pd.read_csv(done.folder / f"stage3_{VIT}_train_table.csv")
    assert list(training) == [
        "version",
        "epoch",
        "train_loss",
        "loss_id",
        "loss_triplet",
        "loss_center",
        "loss_i2t",
        "loss_t2i",
        "val_rank1",
        "val_rank5",
        "val_rank10",
        "val_mAP",
        "is_best",
        "model",
    ]
    assert training.groupby("model").is_best.sum().eq(1).all() and training.loss_i2t.isna().all()
    for model, rows in training.groupby("model"):
        assert (
            rows[rows.is_best].val_mAP.item() == rows.val_mAP.max()
            and (done.folder / model / "checkpoint.safetensors").exists()
        )


def test_a_finished_report_trains_and_measures_nothing_again(done, hands, monkeypatch):
    before, stamps = written(done.folder), times(done.folder)

    def never(*arguments, **options):
        raise AssertionError("repeated")

    monkeypatch.setattr("promptsg.report._Ticking.fit", never)
    monkeypatch.setattr("promptsg.report.measure", never)
    small(done.folder, hands)
    assert written(done.folder) == before and times(done.folder) == stamps


def test_killed_and_started_again_it_ends_with_the_same_tables(done, hands, tmp_path):
    "SIGKILL in the middle of the third training."
    sets = [word for key, value in FAST.items() for word in ("--set", f"{key}={value}")]
    command = [
        *COMMAND,
        "report",
        "--backbone",
        VIT,
        "--versions",
        "v1",
        "--seeds",
        "0",
        "1",
        "--data",
        str(hands),
        "--out",
        str(tmp_path),
        "--no-controls",
        *sets,
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    sign = tmp_path / VIT / "dorsal_r" / "image_only-seed1" / "last" / "checkpoint.safetensors"
    deadline = time.time() + 300
    while not sign.exists() and process.poll() is None and time.time() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert sign.exists() and not (tmp_path / "results.csv").exists()
    stamps = times(tmp_path)
    # zero-shot and both versions of seed 0 are measured under two protocols, four files each
    assert len(stamps) >= 3 * 2 * 4 + 2
    small(tmp_path, hands)
    kept = {
        file: stamp
        for file, stamp in times(tmp_path).items()
        if file in stamps and "seed1" not in file.as_posix()
    }
    assert kept == {file: stamp for file, stamp in stamps.items() if "seed1" not in file.as_posix()}
    assert written(tmp_path) == written(done.folder)


def test_a_trained_run_without_evaluation_is_only_measured(done, hands, monkeypatch):
    evaluation = done.folder / Run(VIT, "dorsal_r", "v1", 0).folder / "evaluation-mba"
    before = written(done.folder)
    (evaluation / "result.json").unlink()

    def never(self, epoch):
        raise AssertionError("trained again")

    monkeypatch.setattr("promptsg.training.Trainer._train_epoch", never)
    stamp = (evaluation.parent / "evaluation-clipfh" / "result.json").stat().st_mtime_ns
    small(done.folder, hands)
    assert (
        written(done.folder) == before
        and stamp == (evaluation.parent / "evaluation-clipfh" / "result.json").stat().st_mtime_ns
    )


def test_a_run_that_fails_is_named_and_stops_nobody(hands, tmp_path, monkeypatch):
    from promptsg import training

    forward = training.Objective.forward

    def spoil(self, *batch):
        return {
            name: value * (float("nan") if self.config.variant == "v1" else 1)
            for name, value in forward(self, *batch).items()
        }

    with monkeypatch.context() as patch:
        patch.setattr(training.Objective, "forward", spoil)
        report = small(tmp_path, hands, versions=["v1", "paper"], seeds=(0,))
    ((run, sentence),) = report.failures.items()
    assert (
        run.version == "v1"
        and "not finite" in sentence
        and {run.version for run, _ in report.evaluations} == {"zero-shot", "image_only", "paper"}
    )
    row = next(
        line
        for line in (tmp_path / "report.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| v1 |")
    )
    assert sentence in row and "| failed | failed |" in row
    # tried again
    assert small(tmp_path, hands, versions=["v1", "paper"], seeds=(0,)).failures == {}


def test_another_config_or_other_data_in_the_folder_is_refused(done, hands, tmp_path):
    with pytest.raises(PromptSGError, match="epochs 2, not 3"):
        small(done.folder, hands, changes={**FAST, "epochs": 3})
    from promptsg.synth import write_hands

    write_hands(
        tmp_path / "others", n_train=14, n_test=6, images_per_aspect=4, seed=4, progress=False
    )
    with pytest.raises(PromptSGError, match="other data"):
        small(done.folder, tmp_path / "others")


@pytest.mark.parametrize(
    "options, word",
    [
        (dict(versions=["v12"]), "v12"),
        (dict(backbones=["resnet"]), "resnet"),
        (dict(protocols=["market"]), "market"),
        (dict(changes={"aspect": "palmar_r"}), "--aspect"),
        (dict(changes={"epohcs": 3}), "epochs"),
        (dict(aspects=["sole"]), "sole"),
        (dict(seeds=()), "seed"),
    ],
)
def test_bad_input_is_named_before_anything_is_trained(options, word, hands, tmp_path):
    with pytest.raises(PromptSGError, match=word):
        small(tmp_path, hands, **options)
    assert not list(tmp_path.rglob("config.yml"))


def test_what_is_not_there_is_named(done, tmp_path):
    with pytest.raises(PromptSGError, match="holds no report"):
        load_report(tmp_path)
    for arguments, word in ((("image_only", "v2"), "v2"), (("image_only", "v1"), "2 tables")):
        with pytest.raises(PromptSGError, match=word):
            compare(done, *arguments, protocol="clipfh" if word == "v2" else None)


def test_planned_runs():
    runs = plan_runs(["hand-rn-tiny", VIT], ["all"], (0, 1))
    assert len(runs) == 2 * (2 + 2 * len(VERSIONS)) and len(set(runs)) == len(runs)
    for controls, untrained in (
        (True, ["zero-shot", "zero-shot, whitened"]),
        (False, ["zero-shot"]),
    ):
        planned = plan_runs([VIT], ["logged"], controls=controls)
        assert [run.version for run in planned] == [*untrained, "image_only", *LOGGED]
    assert plan_runs([VIT], ["zero-shot", "zero-shot, whitened"]) == plan_runs(
        [VIT], ["image_only"]
    )
    assert Run(VIT, "dorsal_r", "zero-shot, whitened", None).folder.name == "zero-shot-whitened"
    assert all(
        Run.of("runs" / run.folder) == run for run in runs + plan_runs([VIT], ["v3-logged"], (12,))
    )


def test_options_take_several_values():
    assert list(
        spread_values(["--seeds", "0", "1", "--out", "x", "--seeds", "2"], {"--seeds"})
    ) == ["--seeds", "0", "--seeds", "1", "--out", "x", "--seeds", "2"]
    assert list(spread_values(["a", "--out", "x", "y"], {"--seeds"})) == ["a", "--out", "x", "y"]


def test_the_chain_fits_a_terminal_and_nothing_is_cut():
    table = chain_table("rn50")
    done = subprocess.run(
        [*COMMAND, "versions", "--backbone", "rn50"], capture_output=True, text=True, check=True
    ).stdout
    assert max(map(len, done.splitlines())) <= 120
    assert all(word in done for text in table.changed for word in text.split())
    assert (
        wrapped_table(pd.DataFrame({"a": ["one two"], "b": ["x"]}), {"a": 4, "b": 2})
        == "a    b\n\none  x\ntwo\n"
    )


# --- whatever happened to the folder
@pytest.fixture
def copied(done, tmp_path, monkeypatch):
    "A copy of the finished report, to do harm to; made again it draws nothing, for speed."
    monkeypatch.setattr("promptsg.report.report_figures", lambda *_: ())
    return shutil.copytree(done.folder, tmp_path / "report")


def run_folder(folder, version="v1", seed=0):
    return folder / Run(VIT, "dorsal_r", version, seed).folder


def test_what_does_not_change_results_may_be_given_anew(copied, hands):
    before = times(copied)
    small(
        copied, hands, changes={**FAST, "num_workers": 1, "log_frequency": 3, "save_frequency": 2}
    )
    assert times(copied) == before


def test_a_second_process_is_told_and_leftovers_are_swept(copied, hands):
    left = [
        copied / f"{UNFINISHED}1.csv",
        run_folder(copied) / "best" / f"{UNFINISHED}2.safetensors",
    ]
    for file in left:
        file.write_bytes(b"half")
    with held(copied.parent / "elsewhere"):
        small(copied, hands)
    assert not any(file.exists() for file in left)
    with held(copied), pytest.raises(PromptSGError, match="another process is writing into"):
        small(copied, hands)


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"\xff\xfe\x00",
        b"epoch,loss\n1,2\n",
        b"epoch,loss,val_rank1,val_mAP\n",
        b"epoch,loss,val_rank1,val_mAP\n2,1,1,1\n",
        b"epoch,loss,val_rank1,val_mAP\n1,x,0.5,0.5\n",
    ],
)
def test_a_training_table_that_is_none_is_one_sentence(tmp_path, content):
    if content is not None:
        (tmp_path / "metrics.csv").write_bytes(content)
    with pytest.raises(PromptSGError, match="metrics.csv"):
        read_metrics(tmp_path)


@pytest.mark.parametrize("lines", [None, [0, 2]])
def test_a_damaged_training_table_is_made_again(copied, hands, lines, monkeypatch):
    file = run_folder(copied) / "metrics.csv"
    before = file.read_bytes()
    file.unlink()
    if lines:
        file.write_bytes(b"".join(before.splitlines(keepends=True)[n] for n in lines))

    def never(self, epoch):
        raise AssertionError("trained again")

    monkeypatch.setattr("promptsg.training.Trainer._train_epoch", never)
    assert small(copied, hands).failures == {} and file.read_bytes() == before


def test_a_table_that_nobody_can_make_again_is_a_failure_of_its_run_alone(copied, hands):
    for name in ("metrics.csv", "last/checkpoint.safetensors"):
        (run_folder(copied) / name).write_bytes(b"torn")
    report = small(copied, hands)
    ((run, sentence),) = report.failures.items()
    assert (run.version, run.seed) == ("v1", 0) and "not a complete checkpoint" in sentence
    assert list(report.metrics(VIT, "dorsal_r")["v1"]) == [1]
    (run_folder(copied) / "failed.txt").unlink()
    assert "metrics.csv" in load_report(copied).failures[run] and len(
        load_report(copied).evaluations
    ) == len(report.evaluations)


def test_a_damaged_evaluation_is_a_failure_when_read_and_measured_again_when_made(
    copied, hands, done
):
    file = run_folder(copied) / "evaluation-mba" / "per_query.csv"
    before = file.read_bytes()
    file.write_bytes(before[:-100])
    report = load_report(copied)
    ((run, sentence),) = report.failures.items()
    assert (run.version, run.seed) == ("v1", 0) and "no whole evaluation result" in sentence
    assert small(copied, hands).failures == {} and file.read_bytes() == before


def test_other_measurements_of_a_run_are_not_the_reports(copied, done):
    for name in (
        "evaluation-clipfh-1a2b3c4d",
        "cross-others",
        "evaluation-market",
        "config-12345678",
    ):
        shutil.copytree(run_folder(copied) / "evaluation-mba", run_folder(copied) / name)
    shutil.copytree(
        run_folder(copied) / "evaluation-mba", run_folder(copied) / "cross-x" / "evaluation-mba"
    )
    assert list(load_report(copied).evaluations) == list(done.evaluations)


@pytest.mark.parametrize(
    "content",
    [
        b"[]",
        b"{",
        b"\xff",
        b'{"command": 3, "data_hash": "x"}',
        b'{"command": "x", "data_hash": {}}',
        b'{"x": 1}',
    ],
)
def test_a_damaged_report_json_is_one_sentence(copied, hands, content):
    (copied / "report.json").write_bytes(content)
    for call in (lambda: load_report(copied), lambda: small(copied, hands)):
        with pytest.raises(PromptSGError, match="report.json.*delete it"):
            call()


def test_a_note_of_any_bytes_is_read(copied):
    (run_folder(copied) / "failed.txt").write_bytes(b"caf\xe9 | `x`\r\nmore")
    (run_folder(copied, seed=1) / "failed.txt").write_bytes(b"")
    first, second = load_report(copied).failures.values()
    assert (
        first.startswith("caf") and first.endswith("| `x`") and second == "failed without a message"
    )


def test_nothing_breaks_out_of_the_page(done):
    why = "a | b `c\nd` <img src=x onerror=y>"
    about = dict(done.about, command="promptsg report --data '``` <b>'")
    page = report_page(
        Report(done.folder, done.evaluations, {Run(VIT, "dorsal_r", "v1", 1): why}, about),
        differences(done),
    )
    row = next(line for line in page.splitlines() if line.startswith("| v1 |"))
    assert (
        "a \\| b \\`c d\\` &lt;img src=x onerror=y&gt;" in row
        and len(row.replace("\\|", "").split("|")) == 9
    )
    assert (
        "```` promptsg report --data '``` <b>' ````" in page
        and "- images left out: dorsal_r:" in page
    )


def test_changed_pixels_of_the_same_size_are_other_data(copied, hands, tmp_path):
    others = shutil.copytree(hands, tmp_path / "hands")
    small(copied, others)  # the same content elsewhere is the same data
    picture = sorted((others / "Hands").glob("*.*"))[0]
    content = bytearray(picture.read_bytes())
    content[-20] ^= 1
    picture.write_bytes(content)
    with pytest.raises(PromptSGError, match="holds a report on other data"):
        small(copied, others)


def test_people_of_the_train_side_are_never_ranked_after_the_data_changed(copied, hands, tmp_path):
    """report.json is gone, so only the runs themselves know what they were trained on; one test
    person left the data."""
    fewer = shutil.copytree(hands, tmp_path / "fewer")
    table = pd.read_csv(fewer / "HandInfo.csv", dtype=str)
    table[table.id != table.id.max()].to_csv(fewer / "HandInfo.csv", index=False)
    (copied / "report.json").unlink()
    before = times(copied)
    report = small(copied, fewer)
    assert {run.version for run in report.failures} == {"zero-shot", "image_only", "v1"} and times(
        copied
    ) == before
    assert all(
        word in report.failures[Run(VIT, "dorsal_r", "v1", 0)]
        for word in ("the data is not what", "missing")
    )
    for (run, _), result in report.evaluations.items():
        if run.seed is not None:
            stored = json.loads(
                (run_folder(copied, run.version, run.seed) / "splits.json").read_text()
            )
            known = {
                stored["images"][place][1]
                for name in ("train", "val", "val_query", "val_gallery")
                for place in stored[name]
            }
            assert known and not known & set(result.per_query.identity)


@pytest.mark.parametrize("select, best", [("best", 1), ("last", 3)])
def test_the_kept_epoch_is_the_configs(done, tmp_path, select, best):
    run = Run(VIT, "dorsal_r", "v1", 0)
    (tmp_path / run.folder).mkdir(parents=True)
    metrics = (
        pd.read_csv(done.folder / run.folder / "metrics.csv")
        .iloc[[0, 0, 0]]
        .assign(epoch=[1, 2, 3], val_mAP=[0.9, 0.5, 0.6])
    )
    metrics.to_csv(tmp_path / run.folder / "metrics.csv", index=False)
    result = done.evaluations[run, "clipfh"]
    result = type(result)(
        result.per_split,
        result.per_query,
        result.cmc,
        {**result.record, "config": {**result.record["config"], "select": select}},
    )
    table = train_table(Report(tmp_path, {(run, "clipfh"): result}, {}, {}), VIT, "dorsal_r")
    assert table[table.is_best].epoch.tolist() == [best]


def test_a_folder_that_cannot_be_written_is_said_before_the_work(hands, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr(
        "promptsg.report.read_data", lambda *_: pytest.fail("the data was read first")
    )
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(PromptSGError, match="is a file, so nothing can be written below it"):
            small(out, hands)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_disk_that_fills_is_one_sentence_and_keeps_the_old_tables(copied, hands, monkeypatch):
    before = written(copied)
    write = type(copied).write_bytes

    def full(self, data):
        if UNFINISHED in self.name and b"backbone" in data[:20]:
            raise OSError(28, "No space left on device")
        return write(self, data)

    monkeypatch.setattr(type(copied), "write_bytes", full)
    with pytest.raises(
        PromptSGError,
        match="results.csv cannot be written .No space left on device.*Nothing that was saved "
        "before",
    ):
        small(copied, hands)
    assert written(copied) == before


# --- controls
CONTROLLED = dict(
    versions=["paper"],
    protocols=("clipfh", "mba"),
    controls=True,
    changes={**FAST, "cache_pixels": False},
)
OF_PAPER = {"whitened", "no text", "s* of another image", "another sentence"}


@pytest.fixture(scope="module")
def controlled(hands, tmp_path_factory):
    "paper and image_only, two seeds, with controls."
    return small(tmp_path_factory.mktemp("controlled"), hands, **CONTROLLED)


@pytest.fixture
def copied_controls(controlled, tmp_path, monkeypatch):
    monkeypatch.setattr("promptsg.report.report_figures", lambda *_: ())
    return shutil.copytree(controlled.folder, tmp_path / "report")


def control_files(folder):
    return {
        file.relative_to(folder).as_posix(): file.stat().st_mtime_ns
        for file in folder.glob("*/*/*/controls/*/*/*")
    }


def test_the_first_seed_of_our_versions_has_its_controls(controlled):
    found = {
        run: set(names)
        for (run, protocol), names in controlled.controls.items()
        if protocol == "mba"
    }
    assert found == {
        Run(VIT, "dorsal_r", "paper", 0): OF_PAPER,
        Run(VIT, "dorsal_r", "image_only", 0): {"whitened"},
    }
    assert {run for run, _ in controlled.controls} == set(found) and controlled.failures == {}
    white = controlled.evaluations[
        Run(VIT, "dorsal_r", "zero-shot, whitened", None), "clipfh"
    ].record
    assert (
        white["config"]["whiten"]
        and not white["config"]["language"]
        and white["control"] == "zero-shot, whitened"
    )
    assert all(run.version != "v1" for run, _ in controlled.controls)


def test_the_page_says_what_a_version_has_over_each_control(controlled):
    group, page = (
        (VIT, "dorsal_r", "clipfh"),
        (controlled.folder / "report.md").read_text(encoding="utf-8"),
    )
    table = control_table(controlled, group, control_differences(controlled)).set_index(
        ["version", "control"]
    )
    run = Run(VIT, "dorsal_r", "paper", 0)
    own, without = (
        controlled.evaluations[run, "clipfh"],
        controlled.controls[run, "clipfh"]["no text"],
    )
    gain = paired_difference(without, own)
    row = table.loc["", "no text"].squeeze()  # paper's alone: image_only has no text
    text = f"{gain.difference:+.2f} [{gain.low:+.2f}, {gain.high:+.2f}]"
    assert row["mAP: version − control"].removesuffix(" *") == text
    assert row["mAP"] == f"{without.summary.loc['mAP', 'mean']:.2f}"
    assert table.loc["paper, seed 0", ""]["mAP"] == f"{own.summary.loc['mAP', 'mean']:.2f}"
    assert list(table.loc[""].index) == ["zero-shot", "zero-shot, whitened", "whitened"] + [
        "zero-shot",
        "zero-shot, whitened",
        "whitened",
        "no text",
        "s* of another image",
        "another sentence",
    ]
    assert page.count("### Controls") == 2 and "- no text: the text tokens are zero" in page
    assert "| zero-shot, whitened | the same, whitened" in page
    saved = pd.read_csv(controlled.folder / "controls.csv")
    assert saved[saved.protocol == "clipfh"].set_index(
        ["version", "control", "measure"]
    ).difference["paper", "no text", "mAP"] == pytest.approx(gain.difference)
    assert len(saved) == 2 * 2 * (3 + 6)


def test_without_controls_there_are_none(done):
    page = (done.folder / "report.md").read_text(encoding="utf-8")
    assert (
        done.controls == {}
        and "Controls" not in page
        and not (done.folder / "controls.csv").exists()
    )
    assert (
        "--no-controls" in page
        and not list(done.folder.rglob("controls"))
        and "whitened" not in set(done.results.version)
    )


def test_finished_controls_are_not_measured_again(copied_controls, hands, monkeypatch):
    before, files = written(copied_controls), control_files(copied_controls)
    assert len(files) == 5 * 2 * 4  # five controls, two protocols, four files each

    def never(*arguments, **options):
        raise AssertionError("repeated")

    for name in ("_Ticking.fit", "measure", "measure_controls", "load_run"):
        monkeypatch.setattr(f"promptsg.report.{name}", never)
    small(copied_controls, hands, **CONTROLLED)
    assert control_files(copied_controls) == files
    assert written(copied_controls) == before


@pytest.mark.parametrize("harm", ["cut", "gone", "torn"])
def test_a_damaged_control_is_measured_again_and_nothing_else(
    copied_controls, hands, monkeypatch, harm
):
    place = (
        run_folder(copied_controls, "paper") / "controls" / "s-of-another-image" / "evaluation-mba"
    )
    before, files = (
        {file.name: file.read_bytes() for file in place.iterdir()},
        control_files(copied_controls),
    )
    if harm == "cut":
        (place / "per_query.csv").write_bytes(before["per_query.csv"][:-100])
        ((run, sentence),) = load_report(copied_controls).failures.items()
        assert (run.version, run.seed) == ("paper", 0) and "no whole evaluation result" in sentence
    elif harm == "gone":
        shutil.rmtree(place)
    else:
        (place / "result.json").write_text("torn")

    def never(*arguments, **options):
        raise AssertionError("repeated")

    for name in ("_Ticking.fit", "measure"):
        monkeypatch.setattr(f"promptsg.report.{name}", never)
    assert small(copied_controls, hands, **CONTROLLED).failures == {}
    assert {file.name: file.read_bytes() for file in place.iterdir()} == before
    changed = {
        name for name, stamp in control_files(copied_controls).items() if files.get(name) != stamp
    }
    assert {name.split("controls/")[1].rsplit("/", 1)[0] for name in changed} == {
        "s-of-another-image/evaluation-mba"
    }


def test_controls_can_be_added_to_a_report_without(done, hands, tmp_path):
    out = shutil.copytree(done.folder, tmp_path / "report")
    before = times(out)
    report = small(out, hands, controls=True)
    assert {file: stamp for file, stamp in times(out).items() if file in before} == before
    assert list(report.controls) == [
        (Run(VIT, "dorsal_r", "image_only", 0), name) for name in ("clipfh", "mba")
    ]
    assert small(out, hands).controls.keys() == report.controls.keys()  # what is there is shown


def test_a_control_that_fails_says_so_and_leaves_the_run(hands, tmp_path, monkeypatch):
    def fails(*arguments, **options):
        raise PromptSGError("no person has two different ones")

    monkeypatch.setattr("promptsg.report.measure_controls", fails)
    report = small(tmp_path, hands, seeds=(0,), versions=["image_only"], controls=True)
    said = {run.version: why for run, why in report.failures.items()}
    assert said == {
        "zero-shot, whitened": "no person has two different ones",
        "image_only": "its controls: no person has two different ones",
    }
    assert {run.version for run, _ in report.evaluations} == {"zero-shot", "image_only"}


def test_a_control_of_another_config_is_not_shown(copied_controls):
    file = (
        run_folder(copied_controls, "paper")
        / "controls"
        / "no-text"
        / "evaluation-mba"
        / "result.json"
    )
    file.write_text(json.dumps(json.loads(file.read_text()) | {"config_hash": "other"}))
    report = load_report(copied_controls)
    run = Run(VIT, "dorsal_r", "paper", 0)
    assert (
        set(report.controls[run, "mba"]) == OF_PAPER - {"no text"}
        and set(report.controls[run, "clipfh"]) == OF_PAPER
    )


# --- where it looks
def test_maps_are_measured_once_for_the_first_seed_of_versions_with_language(done):
    table = pd.read_csv(done.folder / "looking.csv")
    assert list(table) == [*Run._fields, *LOOKING]
    assert table[["version", "seed", "map"]].values.tolist() == [
        ["v1", 0, kind] for kind in ("relevance", "attention", "contrast")
    ]
    assert (
        (table["mask"] == "drawn").all()
        and table.auc.between(0, 1).all()
        and (table["images"] > 1).all()
    )
    assert len(list(done.folder.glob("*/*/*/looking.json"))) == 1
    page = (done.folder / "report.md").read_text(encoding="utf-8")
    assert page.count("### Where it looks") == 1 and "| v1, seed 0 | relevance |" in page


def test_maps_that_were_measured_are_kept_and_damaged_ones_made_again(done, hands, tmp_path):
    out = tmp_path / "again"
    shutil.copytree(done.folder, out)
    (file,) = out.glob("*/*/*/looking.json")
    before, evaluated = file.read_bytes(), times(out)
    stamp = file.stat().st_mtime_ns
    small(out, hands)
    assert file.stat().st_mtime_ns == stamp
    for damage in (
        b"{",
        b'{"about": {}, "rows": []}',
        before.replace(b'"relevance"', b'"nothing"').replace(b'"auc"', b'"area"'),
    ):
        file.write_bytes(damage)
        assert Run(VIT, "dorsal_r", "v1", 0) not in load_report(out).looking or damage.startswith(
            b'{"about"'
        )
        small(out, hands)
        assert json.loads(file.read_bytes()) == json.loads(before) and times(out) == evaluated
    made = small(out, hands, looking=4)  # on fewer queries
    assert set(made.looking[Run(VIT, "dorsal_r", "v1", 0)]["images"]) == {4}
    assert "--looking 4" in json.loads((out / "report.json").read_text())["command"]


def test_maps_can_be_left_out(hands, tmp_path):
    made = small(tmp_path, hands, seeds=(0,), looking=0)
    assert made.looking == {} and not (tmp_path / "looking.csv").exists()
    assert "Where it looks" not in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert looking_rows(made).empty and looking_page(made, VIT, "dorsal_r").empty
    with pytest.raises(PromptSGError, match="looking is -1"):
        small(tmp_path, hands, looking=-1)


def test_a_ratio_without_bound_is_stored_and_read(done):
    run = Run(VIT, "dorsal_r", "v1", 0)
    row = dict.fromkeys(LOOKING, 0.5) | {
        "map": "word",
        "mask": "drawn",
        "fill": "blur",
        "images": 3,
        "ratio": "inf",
        "low": None,
        "high": "inf",
    }
    table = _looking_rows({"rows": [row]})
    assert table.ratio[0] == float("inf") and table.low.isna().all() and table["images"][0] == 3
    shown = looking_page(
        Report(done.folder, done.evaluations, {}, {}, looking={run: table}), VIT, "dorsal_r"
    )
    assert shown.ratio[0] == "inf [nan, inf]" and shown["mask"][0] == "drawn, 3 queries"


def test_steps_after_the_embedding_stand_beside_their_run(hands, tmp_path):
    from promptsg.report import after_differences, after_table

    made = small(tmp_path / "report", hands, seeds=(0,), after=("augment", "z"))
    keys = {(run.version, protocol) for run, protocol in made.after}
    assert keys == {
        (name, protocol)
        for name in ("zero-shot", "image_only", "v1")
        for protocol in ("clipfh", "mba")
    }
    assert all(list(found) == ["augment", "z"] for found in made.after.values())
    table = pd.read_csv(made.folder / "after.csv")
    assert len(table) == 6 * 2 * 2 and len(after_differences(made)) == len(table)
    shown = after_table(made, made.groups[0])
    assert list(shown.step[:3]) == ["none", "augment", "z"]
    page = (made.folder / "report.md").read_text()
    assert "### Steps after the embedding" in page and "z: z-norm: scores normalised" in page
    assert "--after augment z" in page
    # nothing is measured twice, and what is lost is measured again
    before = times(made.folder)
    lost = next(made.folder.glob("*/*/v1-seed0/after/z/evaluation-mba/result.json"))
    lost.unlink()
    again = small(tmp_path / "report", hands, seeds=(0,), after=("augment", "z"))
    assert (
        lost.exists() and times(made.folder) == before and again.after.keys() == made.after.keys()
    )
    with pytest.raises(PromptSGError, match="no step 'nonsense'"):
        small(tmp_path / "other", hands, after=("nonsense",))
    assert not (tmp_path / "other").exists()
