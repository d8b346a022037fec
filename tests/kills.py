"""Run a scenario again and again, ending it at each of its file operations, and say what was left:
`python tests/kills.py SCENARIO FOLDER [KILL FULL]`.

An operation is anything that changes what lies below FOLDER/out: a file opened for writing, a
rename, a deletion, a folder made. It ends by `kill` (SIGKILL just before the operation) or `full`
(the operation fails as on a full disk). After each, the scenario runs once more, undisturbed, and
its files must be, byte for byte, those of a run that nothing disturbed, and nothing else may lie
there. Prints a JSON object with the failures. KILL 3 kills at each third operation only, and FULL 5
fails each fifth; else every one is tried. Every try is a fork of one process, so that the imports
are paid for once."""

import errno
import hashlib
import json
import os
import shutil
import signal
import sys
import traceback
from importlib import import_module
from pathlib import Path

CHANGES = {
    "os.rename": 1,
    "os.remove": 0,
    "os.mkdir": 0,
    "os.rmdir": 0,
    "os.chmod": 0,
    "os.link": 1,
    "os.symlink": 1,
    "os.truncate": 0,
}


def changed_path(event, args):
    "The path that an audit event is about to change, else None."
    if event == "open":
        path, mode, flags = args
        writes = (
            flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if isinstance(flags, int)
            else any(c in (mode or "") for c in "wax+")
        )
        return path if writes else None
    return args[CHANGES[event]] if event in CHANGES else None


def watch(out, act):
    "Call `act(event)` before each operation below `out`, numbered from 0."
    root = os.fspath(out)

    def hook(event, args):
        if event == "open" or event in CHANGES:
            path = changed_path(event, args)
            if isinstance(path, (str, bytes, os.PathLike)) and os.path.abspath(
                os.fsdecode(path)
            ).startswith(root):
                act(event)

    sys.addaudithook(hook)


class Disturb:
    "Ends the process, or fails, at operation `at`."

    def __init__(self, how, at, counter):
        self.how, self.at, self.count, self.counter = how, at, 0, counter

    def __call__(self, event):
        number, self.count = self.count, self.count + 1
        with open(self.counter, "w") as opened:  # lies beside `out`, so it is not watched
            opened.write(str(self.count))
        if number == self.at:
            if self.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if event not in ("os.remove", "os.rmdir"):  # a full disk still deletes
                raise OSError(errno.ENOSPC, "No space left on device")


def attempt(scenario, folder, how=None, at=-1):
    """(exit status, number of operations) of the scenario in a fork: 0 done, 2 one sentence, 1 a
    traceback."""
    counter, said = folder / "count", folder / "said"
    counter.unlink(missing_ok=True)
    child = os.fork()
    if not child:
        status = 1
        try:
            with open(said, "w") as stream:
                os.dup2(stream.fileno(), 1), os.dup2(stream.fileno(), 2)
            import torch

            torch.set_num_threads(1)
            from promptsg.config import PromptSGError

            watch(folder / "out", Disturb(how, at, counter))
            try:
                SCENARIOS[scenario](folder)
                status = 0
            except PromptSGError as error:
                print(error)
                status = 2
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    _, status = os.waitpid(child, 0)
    return status, int(counter.read_text()) if counter.exists() else 0


def tree(folder):
    "name -> hash of every file below the folder."
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(Path(folder).rglob("*"))
        if file.is_file()
    }


def check_all(scenario, folder, kill=1, full=1):
    """A list of what went wrong, and the number of operations that there are; each `kill`-th and
    each `full`-th is tried."""
    folder, wrong = Path(folder).absolute(), []
    out, kept = folder / "out", folder / "before"
    for action in PREPARE[scenario]:
        _in_fork(action)(folder)
    if out.exists():
        shutil.copytree(out, kept)
    status, operations = attempt(scenario, folder)
    assert status == 0, (folder / "said").read_text()
    whole = tree(out)
    tries = [("kill", at) for at in range(0, operations, int(kill))]
    tries += [("full", at) for at in range(0, operations, int(full))]
    for how, at in tries:
        shutil.rmtree(out)
        if kept.exists():
            shutil.copytree(kept, out)
        before = tree(out) if out.exists() else {}
        status, _ = attempt(scenario, folder, how, at)
        said = (folder / "said").read_text()
        if how == "full":
            text = [line for line in said.splitlines() if line.strip()]
            if os.waitstatus_to_exitcode(status) not in (0, 2) or "Traceback" in said:
                wrong.append([how, at, "no sentence", said[-600:]])
            lost = [name for name in before if name not in tree(out) and name in whole]
            if lost:
                wrong.append([how, at, "lost", lost, text])
        if out.exists() and tree(out) == whole:
            continue  # it was only going to tidy up
        again, _ = attempt(scenario, folder)
        if again:
            wrong.append([how, at, "does not go on", (folder / "said").read_text()[-600:]])
        elif tree(out) != whole:
            wrong.append([how, at, "other files", sorted({*tree(out).items()} ^ {*whole.items()})])
    return wrong, operations


# --- scenarios: what runs in `folder`, writing into folder/out
def _splits(folder):
    from promptsg.data import make_splits, read_data

    return make_splits(read_data(folder / "hands"), "dorsal_r", n_splits=2)


SETTINGS = dict(
    batch_size=8,
    instances=2,
    epochs=2,
    steps_per_epoch=1,
    num_splits=2,
    cache_pixels=False,
    unfreeze_blocks=1,
)


def _train_into(folder, out):
    from promptsg.config import Config
    from promptsg.training import Trainer

    config = Config(
        model="hand-vit-tiny",
        attention_heads=4,
        transformer_layers=1,
        lr_modules=1e-3,
        whiten=True,
        **SETTINGS,
    )
    Trainer(config, _splits(folder), out, progress=False).fit(resume=(out / "config.yml").exists())


def train(folder):
    _train_into(folder, folder / "out")


def free(folder):
    "Nothing is trained by gradient."
    from promptsg.training import Trainer
    from promptsg.versions import version

    config, out = (
        version("training_free", "hand-vit-tiny").replace(
            num_splits=2, cache_pixels=False, train_aspects=()
        ),
        folder / "out",
    )
    Trainer(config, _splits(folder), out, progress=False).fit(resume=(out / "config.yml").exists())


def evaluate(folder):
    from promptsg.cli import evaluate_command

    evaluate_command(folder / "hands", run=folder / "out")


def export(folder):
    from promptsg.sharing import export_run

    export_run(folder / "run", folder / "out")


def report(folder, controls=False):
    "Its pictures are empty: drawing takes seconds, and they are written like any other."
    import matplotlib.pyplot as plt

    from promptsg import report

    report.report_figures = lambda *_: [("nothing", plt.figure())]
    settings = SETTINGS | dict(epochs=1, whiten=False, early_stop_patience=None)
    report.make_report(
        folder / "out",
        ["hand-vit-tiny"],
        ["image_only"],
        data=folder / "hands",
        protocols=("clipfh",),
        changes=settings,
        progress=False,
        controls=controls,
    )
    plt.close("all")


def controls(folder):
    "A report that has all but its controls."
    report(folder, controls=True)


def _hands(folder):
    from promptsg.synth import write_hands

    write_hands(folder / "hands", n_train=7, n_test=3, images_per_aspect=2, seed=5, progress=False)


def _in_fork(action):
    "Run it in a fork, so that this process has never computed anything when it is forked again."

    def forked(folder):
        child = os.fork()
        if not child:
            try:
                action(folder)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
            os._exit(1)
        assert os.waitpid(child, 0)[1] == 0

    return forked


SCENARIOS = {
    "train": train,
    "free": free,
    "evaluate": evaluate,
    "export": export,
    "report": report,
    "controls": controls,
}
PREPARE = {
    "train": [_hands],
    "free": [_hands],
    "evaluate": [_hands, lambda folder: _train_into(folder, folder / "out")],
    "export": [_hands, lambda folder: _train_into(folder, folder / "run")],
    "report": [_hands],
    "controls": [_hands, report],
}

if __name__ == "__main__":
    for name in ("cli", "controls", "report", "sharing", "synth", "training"):
        import_module(f"promptsg.{name}")  # once, before the forks
    found, tried = check_all(*sys.argv[1:])
    print(json.dumps({"wrong": found, "operations": tried}))
