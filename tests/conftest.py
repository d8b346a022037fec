"Data shared by the tests: a handful of synthetic people, written once a session."

import os
import shutil
import signal
import sys
import tempfile
from types import SimpleNamespace

import pytest
from notebooks import is_trained, notebooks
from xdist.scheduler import LoadScopeScheduling

os.environ.setdefault("PROMPTSG_CACHE", tempfile.mkdtemp(prefix="promptsg-cache-"))

from promptsg.config import Config

# their tests take minutes and share no fixture
ALONE = "test_kills.py", "test_notebooks.py"


class Groups(LoadScopeScheduling):
    """What one process of `pytest -n` runs: a file's tests, because they share fixtures; of `ALONE`
    each test. The notebooks that share the runs of a long training are one group."""

    trained = {path.stem for path in notebooks() if is_trained(path)}

    def _split_scope(self, nodeid):
        file, _, test = nodeid.partition("::")
        if not file.endswith(ALONE):
            return file
        stem = test.partition("[")[2].rstrip("]")
        return f"{file}::trained" if stem in self.trained else nodeid


def pytest_xdist_make_scheduler(config, log):
    return Groups(config, log)


@pytest.fixture(scope="session")
def hands(tmp_path_factory):
    "A folder in 11K Hands' layout with 14 train and 6 test people."
    from promptsg.synth import write_hands

    root = tmp_path_factory.mktemp("hands")
    write_hands(root, n_train=14, n_test=6, images_per_aspect=4, seed=3, progress=False)
    return root


@pytest.fixture(scope="session")
def splits(hands):
    from promptsg.data import make_splits, read_11k

    return make_splits(read_11k(hands), "dorsal_r", n_splits=3)


@pytest.fixture(scope="session")
def quick():
    "A config that trains in seconds."
    return Config(
        model="hand-vit-tiny",
        attention_heads=4,
        batch_size=16,
        epochs=2,
        lr_clip_visual=1e-4,
        lr_modules=1e-3,
        num_splits=3,
    )


@pytest.fixture(scope="session")
def chromium():
    "A headless Chromium (playwright `Browser`), for tests that look at pages as a person does."
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium") or shutil.which("google-chrome")
    assert program, (
        "no Chromium is on the PATH: `make browser` installs Debian's; the tests of pages need it "
        "and are not skipped"
    )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def promptsg(capfd, monkeypatch):
    """`promptsg(*arguments, code=0)`: a command as a user types it, in this process; returns what
    it printed."""
    from promptsg.cli import main

    before = signal.getsignal(signal.SIGTERM)

    def run(*arguments, code=0):
        monkeypatch.setattr(sys, "argv", ["promptsg", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capfd.readouterr()
        assert ended.value.code == code, said.err
        return SimpleNamespace(stdout=said.out, stderr=said.err)

    yield run
    signal.signal(signal.SIGTERM, before)
