"""The fast code of the benchmark gives the same numbers as its baselines, and the table is
complete."""

import json
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch

from promptsg.bench import (
    CASES,
    GOALS,
    _market_features,
    _row,
    operations,
    plain_ranking,
    read_bench,
    roofline,
    run_bench,
    side_by_side,
)
from promptsg.config import PromptSGError
from promptsg.metrics import evaluate_features


def test_every_case_runs_and_is_written(tmp_path):
    table = run_bench(out=tmp_path / "bench.json", quick=True, progress=False)
    assert set(table.case) == set(GOALS) and len(table) == len(GOALS)
    assert (table.ours_s > 0).all() and table.ratio.notna().all()
    timed = table.dropna(subset=["baseline_s"])
    assert (
        (table.low <= table.ratio) & (table.ratio <= table.high) & (table.low > 0)
    ).all() and len(timed) > 10
    for row in timed.itertuples():  # a bound on each round is a bound on the medians
        whole = (
            row.baseline_s / row.ours_s
            if GOALS[row.case][1] == "speed"
            else row.ours_s / row.baseline_s
        )
        assert row.low * (1 - 1e-9) <= whole <= row.high * (1 + 1e-9)
    assert (table.difference.dropna() < 1e-4).all() and table.difference.notna().sum() == 7
    assert json.loads((tmp_path / "bench.json").read_text())["machine"]["quick"] is True
    read = read_bench(tmp_path / "bench.json")
    pd.testing.assert_frame_equal(
        read.set_index("case").loc[table.case], table.set_index("case"), check_dtype=False
    )
    assert (read.peak_flop_per_s > 0).all()
    # a case that is measured again replaces its row; the others are kept
    again = run_bench(["text"], out=tmp_path / "bench.json", quick=True, progress=False)
    merged = read_bench(tmp_path / "bench.json").set_index("case")
    assert (
        list(merged.index) == list(GOALS)
        and merged.ours_s["text"]
        == pytest.approx(again.ours_s[0], rel=1e-6)
        != read.set_index("case").ours_s["text"]
    )
    assert merged.ours_s["step"] == read.set_index("case").ours_s["step"]


def test_the_import_prints_nothing():
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, promptsg.bench; print('torch.utils.cpp_extension' in sys.modules)",
        ],
        capture_output=True,
        text=True,
    )
    # this module warns if CUDA is installed only in part
    assert (done.stdout.strip(), done.stderr) == ("False", "")


def test_side_by_side_takes_turns_and_measures():
    calls = []
    took = side_by_side(
        {"a": lambda: calls.append("a") or time.sleep(0.02), "b": lambda: calls.append("b")},
        rounds=3,
    )
    assert calls == ["a", "b", "b", "a"] * 2  # the first round is a warm-up
    assert len(took["a"].times) == 3 and took["a"].median >= 0.02 > took["b"].median


def test_operations_of_a_product():
    assert operations(lambda: torch.randn(5, 7) @ torch.randn(7, 3)) == 2 * 5 * 7 * 3


def test_plain_ranking_by_hand():
    # the first gallery image has the camera of the query
    similarities = np.array([[1.0, 0.9, 0.8, 0.0]])
    ap, curve = plain_ranking(
        similarities, ([1], [0]), (np.array([1, 2, 1, 1]), np.array([0, 1, 1, 1]))
    )
    assert ap == pytest.approx((1 / 2 + 2 / 3) / 2) and curve.tolist() == [0.0] + [1.0] * 19


def test_plain_ranking_agrees_with_the_library():
    (q, *query), (g, *gallery) = _market_features(50, 400)
    ap, curve = plain_ranking((q @ g.T).numpy(), query, gallery)
    ours = evaluate_features(q, g, query[0], gallery[0], query[1], gallery[1])
    assert (
        0.01 < ap < 0.99
        and abs(ours["mAP"] - ap) < 1e-6
        and np.abs(np.array(ours["cmc_curve"]) - curve).max() < 1e-6
    )


def test_targets_are_reached_or_not():
    assert _row("composed", 0.95, 1.0)["reached"] and not _row("composed", 0.94, 1.0)["reached"]
    assert _row("step", 1.0, 1.1)["reached"] and not _row("step", 1.0, 1.11)["reached"]
    assert _row("memory", amount=1.0)["reached"] and not _row("memory", amount=1.1)["reached"]


def test_a_ratio_is_taken_within_each_round():
    # the speed of the machine changes, for both sides
    row = _row("composed", [1.0, 2.0, 9.0], [1.0, 4.0, 10.0])
    assert (row["ratio"], row["low"], row["high"], row["baseline_s"], row["ours_s"]) == (
        0.9,
        0.5,
        1.0,
        2.0,
        4.0,
    ) and row["reached"] is False
    assert _row("step", [2.0, 1.0], [2.0, 1.2])["ratio"] == pytest.approx(1.1)


def test_roofline_is_operations_over_rate():
    table = pd.DataFrame(
        [
            _row("composed", 0.9, 1.0, baseline_flop=8e9, ours_flop=10e9),
            _row("step", 1.0, 1.1, baseline_flop=8e9, ours_flop=10e9),
            _row("memory", amount=1.0),
        ]
    )
    table["peak_flop_per_s"] = 20e9
    roof = roofline(table)
    assert (
        roof.floor_s.tolist() == [0.5, 0.5]
        and roof.floor_ratio.tolist() == pytest.approx([0.8, 1.25])
        and roof.share[0] == 0.5
    )


def test_memory_growth_is_measured():
    program = """
import torch
from promptsg.bench import _peak_memory, ranking_memory
before = _peak_memory(reset=True)
block = torch.ones(30_000_000)  # 120 MB
print(_peak_memory() - before, ranking_memory(128, 4096)[0])
"""  # a new process: the peak of this one is higher, and not every kernel resets it
    seen, ranking = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()
    assert 0.1e9 < int(seen) < 0.3e9 and float(ranking) < 1


def test_the_command_prints_the_table_and_writes_it(tmp_path):
    command = [sys.executable, "-c", "from promptsg.cli import main; main()", "bench"]
    done = subprocess.run(
        [*command, "text", "ranking", "--quick", "--out", tmp_path / "bench.json"],
        capture_output=True,
        text=True,
        check=True,
    )
    head, *rows = done.stdout.splitlines()
    assert head.split() == [
        "case",
        "baseline_s",
        "ours_s",
        "ratio",
        "low",
        "high",
        "target",
        "reached",
    ]
    stored = read_bench(tmp_path / "bench.json")
    assert (
        [row.split()[0] for row in rows]
        == ["text", "ranking", "ranking/weaker", "ranking/untrained", "ranking/features"]
        == list(stored.case)
    )
    assert [row.split()[-1] for row in rows] == [str(reached) for reached in stored.reached]
    wrong = subprocess.run([*command, "txt"], capture_output=True, text=True)
    assert (
        wrong.returncode == 2
        and "embedding" in wrong.stderr.strip().splitlines()[-1]
        and "Traceback" not in wrong.stderr
    )


def test_the_rankings_come_from_a_strong_a_weaker_and_an_almost_random_model():
    found = [
        evaluate_features(q[0], g[0], q[1], g[1], q[2], g[2])
        for q, g in (_market_features(500, 19_732, noise) for noise in (1.9, 2.1, 4.0))
    ]
    assert (
        0.59 < found[0]["mINP"] < 0.66 and 0.2 < found[1]["mINP"] < 0.3 and found[2]["mAP"] < 0.03
    )


def test_bad_input_is_one_sentence(tmp_path):
    with pytest.raises(PromptSGError, match="embedding"):
        run_bench(["embeding"])
    (tmp_path / "half.json").write_text('{"rows": [')
    for name in ("none.json", "half.json"):
        with pytest.raises(PromptSGError, match="promptsg bench"):
            read_bench(tmp_path / name)
    assert "embedding" in CASES
