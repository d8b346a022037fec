"""Whatever place a command dies in, and wherever the disk is full: going on ends with the files of
an undisturbed run, and nothing else lies there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# operations that there are
LEAST = {"train": 40, "free": 15, "evaluate": 12, "export": 8, "report": 60, "controls": 30}
# others: each second; 1: each of them
STEPS = {
    ("train", "kill"): 1,
    ("train", "full"): 3,
    ("report", "kill"): 9,
    ("report", "full"): 13,
    ("controls", "kill"): 5,
    ("controls", "full"): 7,
}


@pytest.mark.parametrize("how", ["kill", "full"])
@pytest.mark.parametrize("scenario", list(LEAST))
def test_any_file_operation_may_be_the_last(scenario, how, tmp_path):
    """`python tests/kills.py SCENARIO HOW FOLDER` tries each operation; here so many that it takes
    seconds."""
    step = STEPS.get((scenario, how), 2)
    command = [sys.executable, Path(__file__).with_name("kills.py"), scenario, how, tmp_path, step]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PROMPTSG_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["operations"] >= LEAST[scenario] and found["wrong"] == []
