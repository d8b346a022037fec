"""Runs notebooks, and compares the outputs stored in them with fresh ones.

    python tests/notebooks.py check [PATH ...]   # lists stored outputs that are stale
    python tests/notebooks.py write [PATH ...]   # stores fresh outputs where the old ones are stale

Without PATH: all notebooks. JupyterLab, as `make lab` starts it, saves by `keep` below: an
output that is the same within the tolerances keeps its stored bytes, so that running a notebook
leaves git clean.
"""

import argparse
import base64
import copy
import io
import json
import multiprocessing
import os
import re
import sys
from multiprocessing import forkserver
from pathlib import Path
from unittest.mock import patch
from uuid import uuid4

import nbformat
import numpy as np
from jupyter_client import AsyncKernelManager
from jupyter_client.provisioning import LocalProvisioner
from nbclient import NotebookClient
from nbdev.clean import clean_nb
from nbdev.config import get_config
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
# Notebooks that name it train for minutes or hours, or, where it is set, for a step.
TRAINED = "PROMPTSG_QUICK"
# two processors round differently, and a training doubles that
RELATIVE, ABSOLUTE, TRAINED_SLACK = 0.05, 0.02, 1.0
# of a picture's grey levels, 0..1, at 48 x 48: other fonts or antialiasing stay below
PICTURES = 0.03
# an output's form that is compared: the first that it has
SHOWN = ("image/png", "image/jpeg", "text/markdown", "text/plain")
WIDGET = "application/vnd.jupyter.widget-view+json"
_NUMBER = re.compile(r"(?<![\w.])[-+−]?\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?")
# what differs from run to run: durations, speeds, addresses, temporary folders, the machine
_VARIES = re.compile(
    r"\d[\d.,]*(?:e[-+]?\d+)? ?(?:ms|s|min|minutes|seconds|h|MB|GB|KiB|MiB|it/s|images/s)\b"
    r"|\d[\d.,]* (?:times (?:as fast|faster)|images a second)\b"
    r"|platform \S+, processor [^,]+, cpus \d+"
    r"|0x[0-9a-f]{6,}|/tmp/[\w./-]*|/var/folders/[\w./-]*"
)


def notebooks():
    "Every notebook of the project, the landing page last."
    found = [path for path in sorted((ROOT / "nbs").rglob("*.ipynb")) if "runs" not in path.parts]
    return [path for path in found if not any(part.startswith(".") for part in path.parts[-3:])]


def tidy(notebook):
    """Takes out what no reader needs, in place: progress bars and warnings (stderr), views of
    widgets and their state, numbers of executions, and metadata."""
    notebook["metadata"].pop("widgets", None)
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        hidden = "#| output: false" in "".join(cell["source"])
        cell["outputs"] = [
            output
            for output in cell["outputs"]
            if not (hidden or output.get("name") == "stderr" or WIDGET in output.get("data", {}))
        ]
    config = get_config(path=ROOT)
    allowed = config.get("allowed_cell_metadata_keys").split()
    clean_nb(notebook, allowed_cell_metadata_keys=allowed, clean_ids=config.clean_ids)
    return notebook


# What nearly every notebook imports; a kernel is forked from a process that has it. Not pandas: as
# it is imported, it asks whether it is in a kernel, and then shows tables in another way.
IMPORTED = (
    "ipykernel.kernelapp",
    "torch",
    "open_clip",
    "matplotlib.pyplot",
    "scipy.stats",
    "pydantic",
)
INLINE = "module://matplotlib_inline.backend_inline"


def serve(arguments, folder, environment):
    "A kernel in this process, which was forked for it."
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    multiprocessing.set_start_method(None, force=True)  # the platform's, for a DataLoader's workers
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what a kernel says of itself
    from ipykernel.kernelapp import launch_new_instance

    launch_new_instance(argv=arguments)


class Forked(LocalProvisioner):
    """Starts a kernel as a fork of a process with `IMPORTED`, so that these imports, seconds each
    time, are made once. All else is as JupyterLab does it."""

    async def launch_kernel(self, cmd, cwd=None, env=None, **_):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(IMPORTED))
        with patch.dict(os.environ, MPLBACKEND=INLINE):
            forkserver.ensure_running()  # the first time: Matplotlib reads this once
        arguments = (cmd[cmd.index("-f") :], cwd or os.getcwd(), dict(env or os.environ))
        child = context.Process(target=serve, args=arguments)
        child.start()
        self.process = _Popen(child)
        self.pid = self.pgid = child.pid
        self.cwd = cwd
        return self.connection_info


class ForkedManager(AsyncKernelManager):
    "nbclient's way to start and stop a kernel, with `Forked` in it."

    async def _async_pre_start_kernel(self, **options):
        self.kernel_id = str(uuid4())
        self.provisioner = Forked(
            kernel_id=self.kernel_id, kernel_spec=self.kernel_spec, parent=self
        )
        return await super()._async_pre_start_kernel(**options)


class _Popen:
    "A process of multiprocessing with the methods of subprocess that a provisioner calls."

    stdin = stdout = stderr = None

    def __init__(self, child):
        self.child, self.pid = child, child.pid
        self.kill, self.terminate = child.kill, child.terminate

    def poll(self):
        return self.child.exitcode

    def wait(self):
        self.child.join()
        return self.child.exitcode

    def send_signal(self, number):
        os.kill(self.pid, number)


def run(path, timeout=1200):
    "The notebook with fresh outputs, tidied. Raises nbclient's error, which names cell and line."
    notebook = nbformat.read(path, as_version=4)
    runs = copy.deepcopy(notebook)
    runs.cells = [cell for cell in runs.cells if "#| eval: false" not in cell.source]
    folder = {"metadata": {"path": str(Path(path).resolve().parent)}}
    NotebookClient(
        runs, timeout=timeout, resources=folder, kernel_manager_class=ForkedManager
    ).execute()
    fresh = {cell.id: cell for cell in runs.cells}
    notebook.cells = [fresh.get(cell.id, cell) for cell in notebook.cells]
    return tidy(json.loads(nbformat.writes(notebook)))


def text_of(value):
    return "".join(value) if isinstance(value, list) else value


def near(stored, fresh):
    """Whether two numbers, as text, are the same on another processor: within 5 % and 0.02, and,
    where they have decimals and are above 1, as percentages and losses after a training, within
    1."""
    one, other = (float(text.replace(",", "").replace("−", "-")) for text in (stored, fresh))
    trained = "." in stored and max(abs(one), abs(other)) > 1
    slack = max(TRAINED_SLACK if trained else ABSOLUTE, RELATIVE * abs(one))
    return abs(one - other) <= slack


def same_text(stored, fresh):
    "Whether two texts are the same but for numbers within the tolerances, and what always varies."
    texts = [_VARIES.sub("~", text_of(text)) for text in (stored, fresh)]
    words = [_NUMBER.sub("0", text).split() for text in texts]
    return words[0] == words[1] and all(map(near, *map(_NUMBER.findall, texts)))


def same_picture(stored, fresh):
    "Whether two PNG or JPEG files, in base64, look alike: sizes within a tenth, grey levels near."
    opened = [Image.open(io.BytesIO(base64.b64decode(text_of(x)))) for x in (stored, fresh)]
    if not np.allclose(*(image.size for image in opened), rtol=0.1):
        return False
    grey = [np.asarray(image.convert("L").resize((48, 48)), float) / 255 for image in opened]
    return np.abs(grey[0] - grey[1]).mean() < PICTURES


def flat(outputs):
    "Outputs as a list of (kind, value), neighbouring prints joined; one kind an output."
    found = []
    for output in outputs:
        data = output.get("data", {})
        kind = next((k for k in SHOWN if k in data), None)
        if output["output_type"] == "stream":
            if found and found[-1][0] == "print":
                found[-1] = ("print", found[-1][1] + text_of(output["text"]))
            else:
                found.append(("print", text_of(output["text"])))
        else:
            kind = kind or next(iter(data), output["output_type"])
            found.append((kind, data.get(kind, output.get("traceback", ""))))
    return found


def same_outputs(stored, fresh, numbers=True):
    "Whether two lists of a cell's outputs show the same; without `numbers` only the same kinds."
    pairs = flat(stored), flat(fresh)
    if [kind for kind, _ in pairs[0]] != [kind for kind, _ in pairs[1]]:
        return False
    return not numbers or all(
        (same_picture if kind.startswith("image/") and "svg" not in kind else same_text)(old, new)
        for (kind, old), (_, new) in zip(*pairs)
    )


def compare(stored, fresh, numbers=True):
    "The ids of the cells whose stored outputs are stale."
    fresh = {cell["id"]: cell for cell in fresh["cells"]}
    return [
        cell["id"]
        for cell in stored["cells"]
        if cell["cell_type"] == "code"
        and not same_outputs(cell["outputs"], fresh[cell["id"]]["outputs"], numbers)
    ]


def keep(stored, fresh):
    "`fresh`, tidied, with the stored bytes of each cell whose code and outputs are the same."
    old = {cell.get("id"): cell for cell in stored["cells"] if cell["cell_type"] == "code"}
    for cell in tidy(fresh)["cells"]:
        before = old.get(cell.get("id"))
        same_code = before and text_of(before["source"]) == text_of(cell["source"])
        if same_code and same_outputs(before["outputs"], cell["outputs"]):
            cell["outputs"] = before["outputs"]
    return fresh


def read(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def write(path, notebook):
    text = json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    Path(path).write_text(text, encoding="utf-8")


def is_trained(path):
    "Whether the stored outputs come from a long training that a check does not repeat."
    return TRAINED in Path(path).read_text(encoding="utf-8")


def stale(path):
    "The ids of the cells of a notebook whose stored outputs differ from fresh ones."
    quick = is_trained(path) and bool(os.environ.get(TRAINED))
    return compare(read(path), run(path), numbers=not quick)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["check", "write"])
    parser.add_argument("paths", nargs="*", type=Path, default=notebooks())
    arguments = parser.parse_args()
    failed = False
    for path in arguments.paths:
        if arguments.what == "write":
            write(path, keep(read(path), run(path)))
            continue
        found = stale(path)
        failed |= bool(found)
        print(f"{path}: {'stale: ' + ', '.join(found) if found else 'up to date'}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
