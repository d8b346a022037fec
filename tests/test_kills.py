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
# each third operation is killed, each fifth fails, and so on: as many as take half a minute
STEPS = {
    "train": (3, 5),
    "free": (4, 5),
    "evaluate": (4, 5),
    "export": (4, 5),
    "report": (13, 17),
    "controls": (11, 13),
}


@pytest.mark.parametrize("scenario", list(LEAST))
def test_any_file_operation_may_be_the_last(scenario, tmp_path):
    "`python tests/kills.py SCENARIO FOLDER` tries each operation."
    command = [sys.executable, Path(__file__).with_name("kills.py"), scenario, tmp_path]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PROMPTSG_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        list(map(str, [*command, *STEPS[scenario]])),
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["operations"] >= LEAST[scenario] and found["wrong"] == []
