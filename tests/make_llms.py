"""nbs/llms.txt from the notebooks: the site's pages and the package's modules, a line each, in the
form of https://llmstxt.org. `python tests/make_llms.py` writes it."""

import ast
import json
import re
from configparser import ConfigParser
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]


def output_file(notebook):
    "The page of a notebook, as nbdev names it: 06_fusion.ipynb -> fusion.html."
    return notebook.with_name(re.sub(r"^\d+[a-z0-9]*_", "", notebook.stem.lower()) + ".html")


def address(site, notebook):
    "The page's address on the web, for a notebook's path below nbs/."
    return site + output_file(Path(notebook)).as_posix()


def title_of(notebook):
    "(title, description) from a notebook's title cell."
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "markdown":
            title, description = re.match(r"# (.+)\n+> (.+)", "".join(cell["source"])).groups()
            return title, " ".join(description.split())
    raise ValueError(f"{notebook} has no title cell")


def sections(contents, name="Start"):
    "(section, its notebooks) of the sidebar, what stands in no section first."
    loose = [entry for entry in contents if isinstance(entry, str)]
    if loose:
        yield name, loose
    for entry in contents:
        if isinstance(entry, dict):
            yield from sections(entry["contents"], entry["section"])


def modules(site):
    "A line for each module: its page, and the first line of its docstring."
    for notebook in sorted((ROOT / "nbs").glob("*.ipynb")):
        exported = re.search(r"#\| default_exp (\w+)", notebook.read_text(encoding="utf-8"))
        if exported:
            code = (ROOT / "promptsg" / f"{exported[1]}.py").read_text(encoding="utf-8")
            first = ast.get_docstring(ast.parse(code)).splitlines()[0]
            yield f"- [promptsg.{exported[1]}]({address(site, notebook.name)}): {first}"


def render():
    "The text of llms.txt."
    settings = ConfigParser(delimiters=["="], interpolation=None)
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    project = settings["DEFAULT"]
    site = f"{project['doc_host']}{project['doc_baseurl']}/"
    sidebar = yaml.safe_load((ROOT / "nbs/sidebar.yml").read_text(encoding="utf-8"))
    lines = [
        f"# {project['title']}",
        "",
        f"> {project['description']}.",
        "",
        f"Every page is a notebook: {project['git_url']} holds it under nbs/. The notebooks export "
        "the package.",
    ]
    for section, notebooks in sections(sidebar["website"]["sidebar"]["contents"]):
        lines += ["", f"## {section}", ""]
        for notebook in notebooks:
            title, description = title_of(ROOT / "nbs" / notebook)
            lines.append(f"- [{title}]({address(site, notebook)}): {description}")
    return "\n".join([*lines, "", "## Modules", "", *modules(site)]) + "\n"


if __name__ == "__main__":
    (ROOT / "nbs/llms.txt").write_text(render(), encoding="utf-8")
