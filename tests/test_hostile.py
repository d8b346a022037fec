"Every bad input ends in one sentence, soon, in little memory, and with nothing written; its harmless look-alikes work."
import re
import resource
import signal
import sys
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from shutil import copytree

import pytest
from hostile import COMMANDS, RUN, Place, cases

from promptsg.config import PromptSGError, one_line
from promptsg.synth import write_hands

SECONDS, BYTES, LETTERS = 10, 2 * 2 ** 30, 1500
CASES = list(cases())


@pytest.fixture(scope="module")
def shared(tmp_path_factory, quick):
    "(data folder, a measured run on it, a report of that run)."
    from promptsg.readers import read_data
    from promptsg.training import Trainer, load_run, measure, splits_of
    from promptsg.versions import version
    root = tmp_path_factory.mktemp("shared")
    write_hands(root / "hands", n_train=8, n_test=3, images_per_aspect=2, seed=3, size=(96, 96), progress=False)
    config = quick.replace(epochs=1, steps_per_epoch=1, batch_size=4, instances=2, num_splits=2)
    splits = splits_of(config, read_data(root / "hands"))
    run = Trainer(config, splits, root / "run", progress=False).fit()
    results, _ = measure(load_run(run), splits, progress=False)
    results["clipfh"].save(run / "evaluation-clipfh")
    copytree(run, root / "report" / RUN)
    (root / "report" / "report.json").write_text('{"command": "promptsg report", "data_hash": "x"}')
    return root / "hands", run, root / "report"


@pytest.fixture(scope="module")
def explorer(shared):
    from promptsg.explorer import Explorer
    from promptsg.readers import read_data
    return Explorer(shared[1], read_data(shared[0]), progress=False)


@pytest.fixture(scope="module", autouse=True)
def bounded():
    "No case may take the machine along: the address space has an end for this module."
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if sys.platform == "linux" else 0
    if used:
        resource.setrlimit(resource.RLIMIT_AS, (used + 6 * 2 ** 30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def peak(anew=False):
    "The most memory, in bytes, that this process had since it was asked `anew` (on Linux; elsewhere: ever)."
    if sys.platform != "linux":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if anew:
        Path("/proc/self/clear_refs").write_text("5")
    return 1024 * int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1])


class TooLong(BaseException):
    pass


@contextmanager
def limited():
    "The block ends within `SECONDS` of work, and never hangs."
    def stop(*_):
        raise TooLong
    before, began, start = signal.signal(signal.SIGALRM, stop), time.process_time(), peak(anew=True)
    signal.setitimer(signal.ITIMER_REAL, 2.5 * SECONDS)  # other processes may have the processor
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert time.process_time() - began < SECONDS and peak() - start < BYTES


def snapshot(folder):
    "What lies in a folder, and whether it is as it was."
    status = {path: path.lstat() for path in folder.rglob("*")}
    return {path: (found.st_ino, found.st_size, found.st_mtime_ns) if not path.is_dir() else None for path, found in status.items()}


def one_sentence(said):
    "The sentence on stderr: the last line, and the only one that begins so."
    lines = said.rstrip("\n").split("\n")
    found = [line for line in lines if line.startswith(("promptsg: ", "Error: "))]
    assert len(found) == 1 and lines[-1] == found[0] and "Traceback" not in said, said
    return found[0]


@pytest.fixture
def place(shared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Place(tmp_path, *shared)


def called(made, request):
    "What a case's function does; some want the explorer."
    needs = made.__code__.co_argcount - len(made.__defaults__ or ())
    return made(request.getfixturevalue("explorer")) if needs else made()


bad, good = [case for case in CASES if not case.good], [case for case in CASES if case.good]
ids = lambda found: [f"{case.kind}-{case.name}".encode("ascii", "backslashreplace").decode() for case in found]


@pytest.mark.parametrize("case", bad, ids=ids(bad))
def test_bad_input_is_one_sentence(case, place, promptsg, request):
    made = case.make(place)
    if callable(made) and made.__code__.co_argcount - len(made.__defaults__ or ()):
        request.getfixturevalue("explorer")
    before = snapshot(place.folder)
    with limited():
        if callable(made):
            with pytest.raises(PromptSGError) as error:
                called(made, request)
            said = str(error.value)
        else:
            said = one_sentence(promptsg(*made, code=2).stderr)
    assert said and said == one_line(said, LETTERS), ascii(said)
    assert re.search(re.escape(case.words).replace(r"\|", "|"), said), said
    made = [file for file in snapshot(place.folder).items() if file not in before.items()]
    assert not made and snapshot(place.folder).keys() == before.keys()


@pytest.mark.parametrize("case", good, ids=ids(good))
def test_what_only_looks_bad_works(case, place, promptsg, request):
    made = case.make(place)
    with limited():
        said = called(made, request) if callable(made) else promptsg(*made).stdout
    assert not case.words or re.search(case.words, said)


def test_there_are_enough_of_every_kind():
    counts = Counter(case.kind for case in bad)
    assert len(bad) >= 300 and len(good) >= 20 and min(counts.values()) >= 10
    assert len({(case.kind, case.name) for case in CASES}) == len(CASES)
    assert {name.split(":")[0] for kind, name, *_ in CASES if kind == "options"} >= set(COMMANDS)
