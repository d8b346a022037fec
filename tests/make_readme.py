"""README.md from nbs/index.ipynb: its text, code and printed output. `python tests/make_readme.py`
writes it.

Quarto can do this too, but the README has to be right wherever the tests run."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COLAB, BINDER = "https://colab.research.google.com", "https://mybinder.org"
REPOSITORY = "promptsg/promptsg"
# they open the explorer's notebook
BADGES = (
    f"[![Open in Colab]({COLAB}/assets/colab-badge.svg)]"
    f"({COLAB}/github/{REPOSITORY}/blob/main/nbs/15_explorer.ipynb)\n"
    f"[![Open in Binder]({BINDER}/badge_logo.svg)]"
    f"({BINDER}/v2/gh/{REPOSITORY}/main?labpath=nbs%2F15_explorer.ipynb)"
)
DIRECTIVE = re.compile(r"#\|\s*(\w+)\s*:?\s*(\w*)")
# a box of the site's grid; GitHub shows it as an item of a list
ENTRY = re.compile(r'<div class="entry">\s*(.+?)\s*</div>\s*', re.S)
# legible at this size, and the commands below it are still on the first screen
PICTURE, WIDTH = re.compile(r"^!\[(.+)\]\((\S+)\)$", re.M), 560
RELATIVE_LINK = re.compile(r"(\]\(|src=\")(?![a-z]+:|#|/|\.\./)")


def from_root(text):
    """Links that are right beside the notebook, made right one folder up; boxes as a list,
    and the picture smaller."""
    text = re.sub(
        r'<div class="entries">\s*(.+</div>)\s*</div>',
        lambda boxes: ENTRY.sub(r"- \1\n", boxes[1]).rstrip(),
        text,
        flags=re.S,
    )
    text = PICTURE.sub(rf'<p><img src="\2" width="{WIDTH}" alt="\1"></p>', text)
    text = RELATIVE_LINK.sub(r"\1nbs/", text)
    return re.sub(r"(\]\(|src=\")\.\./", r"\1", text)


def output(out):
    "One output of a cell as Markdown, or nothing where the README cannot show it."
    data = out.get("data", {})
    if "text/markdown" in data:
        return from_root("".join(data["text/markdown"])).strip()
    text = "".join(out.get("text") or data.get("text/plain", [])).rstrip()
    if not text or any(kind.startswith("image/") for kind in data):
        return ""
    return "\n".join(f"    {line}".rstrip() for line in text.splitlines())


def code(cell):
    "A code cell and its outputs; `hide`, `echo: false` and `output: false` are honoured."
    lines = "".join(cell["source"]).splitlines()
    found = dict(DIRECTIVE.match(line).groups() for line in lines if DIRECTIVE.match(line))
    source = "\n".join(line for line in lines if not DIRECTIVE.match(line)).strip()
    if {"hide", "export"} & set(found):
        return []
    shown = [f"```python\n{source}\n```"] if source and found.get("echo") != "false" else []
    return shown + (
        [output(out) for out in cell["outputs"]] if found.get("output") != "false" else []
    )


def render(notebook):
    "The notebook file as the README's text."
    parts = ["<!-- made from nbs/index.ipynb by `make readme`; edit that -->"]
    for cell in json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "markdown":
            parts.append(from_root("".join(cell["source"])).strip())
            parts += [BADGES] if parts[-1].startswith("# ") else []
        elif cell["cell_type"] == "code":
            parts += code(cell)
    return "\n\n".join(part for part in parts if part) + "\n"


if __name__ == "__main__":
    (ROOT / "README.md").write_text(render(ROOT / "nbs/index.ipynb"), encoding="utf-8")
