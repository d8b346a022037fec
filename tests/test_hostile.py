"""Every bad input ends in one sentence, soon, in little memory, and with nothing written; its
harmless look-alikes work."""

import json
import re
import resource
import signal
import sys
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from shutil import copytree

import pandas as pd
import pytest
from hostile import COMMANDS, RUN, Place, cases
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from promptsg.cli import parse_sets
from promptsg.config import Config, PromptSGError, one_line, read_yaml
from promptsg.evaluation import Result
from promptsg.splits import Splits, read_stored
from promptsg.synth import write_hands

SECONDS, BYTES, LETTERS = 10, 2 * 2**30, 1500
CASES = list(cases())


@pytest.fixture(scope="module")
def shared(tmp_path_factory, quick):
    "(data folder, a measured run on it, a report of that run)."
    from promptsg.checkpoints import load_run
    from promptsg.embedding import measure, splits_of
    from promptsg.readers import read_data
    from promptsg.training import Trainer

    root = tmp_path_factory.mktemp("shared")
    write_hands(
        root / "hands",
        n_train=8,
        n_test=3,
        images_per_aspect=2,
        seed=3,
        size=(96, 96),
        progress=False,
    )
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
    used = (
        int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        if sys.platform == "linux"
        else 0
    )
    if used:
        resource.setrlimit(resource.RLIMIT_AS, (used + 6 * 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def peak(anew=False):
    """The most memory, in bytes, that this process had since it was asked `anew` (on Linux;
    elsewhere: ever)."""
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
    return {
        path: (found.st_ino, found.st_size, found.st_mtime_ns) if not path.is_dir() else None
        for path, found in status.items()
    }


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
ids = lambda found: [
    f"{case.kind}-{case.name}".encode("ascii", "backslashreplace").decode() for case in found
]


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


# --- whatever is written there
TEXT = st.text(st.characters() | st.sampled_from("=:{}[]&*!|>'\"%@`#,-? \n\t"), max_size=30)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
FIELD = st.sampled_from(sorted(Config.model_fields))
quick_look = settings(
    max_examples=100,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def or_a_sentence(make):
    "What `make()` gives; None where it ends in a sentence on one line."
    try:
        return make()
    except PromptSGError as error:
        assert str(error) and str(error) == one_line(error)


@quick_look
@given(st.lists(st.builds(str.__add__, FIELD.map("{}=".format) | TEXT, TEXT), max_size=3))
def test_any_setting_is_read_or_refused(pairs):
    changes = or_a_sentence(lambda: parse_sets(pairs))
    if changes is not None:
        or_a_sentence(lambda: Config().replace(**changes))


@quick_look
@given(TEXT)
def test_any_yaml_is_read_or_refused(text):
    or_a_sentence(lambda: read_yaml(text))


@quick_look
@given(st.dictionaries(FIELD | TEXT, JSON, max_size=3))
def test_any_config_is_whole_or_refused(values):
    config = or_a_sentence(lambda: Config(**values))
    if config is not None:
        assert Config(**read_yaml(config.to_yaml())) == config


def changed_somewhere(data, value):
    "The JSON value with one of its parts, at any depth, replaced by another."
    if isinstance(value, (dict, list)) and value and data.draw(st.integers(0, 3)):
        key = data.draw(
            st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value)))
        )
        part = changed_somewhere(data, value[key])
        if isinstance(value, dict):
            return {**value, key: part}
        return [*value[:key], part, *value[key + 1 :]]
    return data.draw(JSON)


@quick_look
@given(data=st.data())
def test_any_splits_are_read_or_refused(shared, tmp_path, data):
    from promptsg.readers import read_data

    stored = changed_somewhere(data, json.loads((shared[1] / "splits.json").read_text()))
    (tmp_path / "splits.json").write_text(json.dumps(stored))
    if or_a_sentence(lambda: read_stored(tmp_path / "splits.json")) is not None:
        splits = or_a_sentence(lambda: Splits.load(tmp_path / "splits.json", read_data(shared[0])))
        assert splits is None or len(splits.queries) == len(splits.galleries) > 0


@quick_look
@given(data=st.data())
def test_any_result_is_read_or_refused(shared, tmp_path, data):
    folder = copytree(shared[1] / "evaluation-clipfh", tmp_path / "result", dirs_exist_ok=True)
    record = changed_somewhere(data, json.loads((folder / "result.json").read_text()))
    (folder / "result.json").write_text(json.dumps(record))
    result = or_a_sentence(lambda: Result.load(folder))
    if result is not None:
        assert (
            len(result.summary)
            and result.cmc.shape[0] == len(result.per_split) == result.record["splits"]
        )


@quick_look
@given(data=st.data())
def test_any_state_is_read_or_refused(shared, data):
    from promptsg.checkpoints import _checked_state

    state = changed_somewhere(data, json.loads((shared[1] / "last" / "state.json").read_text()))
    try:
        found = _checked_state(state)
    except ValueError:  # `read_checkpoint` makes a sentence of it
        return
    assert len(found["history"]) == found["epoch"] and all(
        row["val_mAP"] is not None for row in found["history"]
    )


# --- what is written for others to open
def test_names_in_a_search_are_no_formulas(place, promptsg):
    names = ["=1+1", "@x", "+1", "-1", "\uff1d1"]
    for name, source in zip(names, sorted((place.hands / "Hands").iterdir())):
        place.file(f"data/{name}/{name}.jpg", source.read_bytes())
    promptsg(
        "search",
        "--run",
        place.trained,
        "--data",
        place.folder / "data",
        "--query",
        place.picture,
        "--out",
        place.folder / "found",
    )
    table = pd.read_csv(place.folder / "found" / "nearest.csv", dtype=str)
    cells = [cell for column in ("image", "identity", "path") for cell in table[column]]
    assert len(table) == 4 and not any(cell.startswith(tuple("=+-@\uff1d")) for cell in cells)


def test_planted_links_are_not_followed(place, promptsg):
    victim = place.file("victim", b"precious")
    out = place.run()
    for name in (
        "config.yml",
        "metrics.csv",
        "splits.json",
        "last/state.json",
        "evaluation-clipfh/result.json",
    ):
        for planted in (f"{name}.part", f"{name}.tmp", f".{name.split('/')[-1]}.part"):
            (out / planted).parent.mkdir(exist_ok=True)
            (out / planted).unlink(missing_ok=True)
            (out / planted).symlink_to(victim)
    for name in ("metrics.csv", "last/state.json"):
        (out / name).unlink()
        (out / name).symlink_to(victim)
    promptsg("train", "--resume", "--data", place.hands, "--out", out)
    promptsg("evaluate", "--run", out, "--data", place.hands)
    assert victim.read_bytes() == b"precious" and not (out / "metrics.csv").is_symlink()
