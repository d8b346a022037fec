"""The site's pages without Quarto: nbdev's own pre-processing, then pandoc. `python
tests/render_site.py FOLDER` writes them.

Quarto adds search, themes and its navigation; what a notebook puts on its page (text, code, tables,
figures, links) is the same."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from html import escape
from pathlib import Path

import pypandoc
import yaml
from make_llms import output_file

ROOT = Path(__file__).resolve().parents[1]
# Quarto's
OPTION = re.compile(
    r"#\|\s*(echo|eval|output|include|label|warning|code-fold|code-summary|fig-alt|fig-cap):\s*(.*)\n?"
)
IMAGES = {"image/png": "png", "image/jpeg": "jpg", "image/svg+xml": "svg"}
MATH = {"block": "display", "inline": "inline"}
FENCE = "~" * 8
READER = "markdown-smart+lists_without_preceding_blankline"


def copy_project(folder):
    """What nbdev needs of the project, in `folder`: its pre-processing writes into the tree it
    works on."""
    for name in ("nbs", "promptsg"):
        shutil.copytree(
            ROOT / name,
            folder / name,
            ignore=shutil.ignore_patterns(".ipynb_checkpoints", "__pycache__"),
        )
    for name in ("settings.ini", "setup.py", "_quarto.yml", "README.md"):
        shutil.copy(ROOT / name, folder)
    (folder / "README.md").touch()  # newer than the index, so that nbdev_docs leaves it as it is
    return folder


def run(*command, cwd):
    "A command of nbdev in the copy; its output is the message when it fails."
    environment = {
        **os.environ,
        "PYTHONPATH": str(cwd),
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "Agg",
    }
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def preprocess():
    "nbdev_proc_nbs in the current folder, without its attempt to install Quarto."
    import nbdev.quarto

    nbdev.quarto._ensure_quarto = lambda: None
    nbdev.quarto.nbdev_proc_nbs.__wrapped__(n_workers=0)  # all imports once
    sys.stdout.flush()
    os._exit(0)  # else IPython's clean-up of a shell for each notebook takes as long again


def fenced(text, language=""):
    return f"{FENCE}{language}\n{text.rstrip()}\n{FENCE}"


def figure(data, kind, alt, name, folder):
    "Writes an output's picture beside the page; the Markdown that shows it."
    path = folder / f"{name}.{IMAGES[kind]}"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(data[kind])
    path.write_bytes(text.encode() if kind == "image/svg+xml" else base64.b64decode(text))
    return f'<img src="{path.parent.name}/{path.name}" alt="{escape(alt)}">'


def display(out, alt, name, folder):
    "One output of a cell, the richest form first, as Quarto does it."
    data = out.get("data", {})
    if "text/html" in data:
        return fenced("".join(data["text/html"]), "{=html}")
    for kind in IMAGES:
        if kind in data:
            return figure(data, kind, alt, name, folder)
    if "text/markdown" in data:
        return "".join(data["text/markdown"])
    return fenced("".join(out.get("traceback") or out.get("text") or data.get("text/plain", [])))


def options(source):
    """A cell's leading Quarto options and the rest; what is no option of Quarto's stays, so that it
    shows on the page."""
    found = {}
    while match := OPTION.match(source):
        found[match[1]] = match[2].strip().strip("\"'")
        source = source[match.end() :]
    return found, source


def code(cell, name, folder):
    "A code cell and its outputs as Markdown, with Quarto's options for echo, output and alt text."
    option, source = options("".join(cell["source"]))
    if option.get("include") == "false":
        return
    if source.strip() and option.get("echo") != "false":
        yield fenced(source, "python")
    for i, out in enumerate(cell["outputs"] if option.get("output") != "false" else []):
        shown = display(out, option.get("fig-alt", ""), f"{name}-{i}", folder)
        kind = "display" if "data" in out else out.get("name", "error")
        yield (
            shown
            if option.get("output") == "asis"
            else f"::: {{.cell-output .cell-output-{kind}}}\n{shown}\n:::"
        )


def markdown(cells, folder):
    "A pre-processed notebook, its front matter first, as pandoc's Markdown."
    for i, cell in enumerate(cells):
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            yield from code(cell, f"cell-{i}", folder)
        else:
            yield source.strip()


def as_quarto(page):
    """Links to notebooks made links to pages; formulas in the spans that Quarto puts around them,
    which styles.css names."""
    page = re.sub(r'href="([^":]+\.ipynb)(#[^"]*)?"', link, page)
    return re.sub(
        r'<math display="(block|inline)".*?</math>',
        lambda m: f'<span class="math {MATH[m[1]]}">{m[0]}</span>',
        page,
        flags=re.S,
    )


def link(match):
    "A link to a notebook, made one to its page."
    return f'href="{output_file(Path(match[1])).as_posix()}{match[2] or ""}"'


def navigation(contents, up):
    "The sidebar as HTML lists; `up` leads from the page to the site's root."
    for entry in [contents] if isinstance(contents, str) else contents:
        if isinstance(entry, dict):
            inside = "".join(navigation(entry["contents"], up))
            yield f"<li>{entry['section']}<ul>{inside}</ul></li>"
        else:
            for path in sorted((ROOT / "nbs").glob(entry)):
                page = output_file(path.relative_to(ROOT / "nbs"))
                yield f'<li><a href="{up}{page.as_posix()}">{page.stem}</a></li>'


def render_page(source, site, work):
    "One pre-processed notebook as a page of `site`."
    name = source.relative_to(work / "_proc")
    target = site / output_file(name)
    cells = json.loads(source.read_text(encoding="utf-8"))["cells"]
    text = "\n\n".join(markdown(cells, target.with_name(target.stem + "_files")))
    # MathJax, which Quarto uses, knows \tag; pandoc's MathML does not
    text = re.sub(r"\\tag\{([\w.]+)\}", r"\\qquad(\1)", text)
    up = "../" * (len(name.parts) - 1)
    sidebar = yaml.safe_load((ROOT / "nbs/sidebar.yml").read_text())["website"]["sidebar"][
        "contents"
    ]
    command = [
        pypandoc.get_pandoc_path(),
        f"--from={READER}",
        "--to=html5",
        "--mathml",
        "--section-divs",
        "--wrap=none",
        "--fail-if-warnings",
        f"--lua-filter={work / '_proc/run_links.lua'}",
        f"--metadata=notebook:{name.as_posix()}",
        f"--template={ROOT / 'tests/page.html'}",
        f"--variable=up={up}",
        f"--variable=sidebar={''.join(navigation(sidebar, up))}",
    ]
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    assert done.returncode == 0, f"{name}: {done.stderr}"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(as_quarto(done.stdout), encoding="utf-8")


def render_site(work):
    "All pages, made from the copy of the project in `work`; the folder that holds them."
    run(sys.executable, __file__, cwd=work)
    site = work / "_site"
    unpublished = shutil.ignore_patterns("*.ipynb", "*.yml", "*.lua")
    shutil.copytree(work / "_proc", site, ignore=unpublished)
    with ThreadPoolExecutor(2) as pool:
        list(
            pool.map(
                lambda source: render_page(source, site, work),
                sorted((work / "_proc").rglob("*.ipynb")),
            )
        )
    return site


def build_site(work):
    "The real site, by Quarto."
    run(Path(sys.executable).with_name("nbdev_docs"), "--n_workers", "2", cwd=work)
    return work / "_docs"


if __name__ == "__main__" and len(sys.argv) == 1:
    preprocess()
elif __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(render_site(copy_project(Path(folder))), sys.argv[1], dirs_exist_ok=True)
