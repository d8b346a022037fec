"What works without an installation: the environment of Binder, the badges, and llms.txt."

import json
import re
from configparser import ConfigParser

from make_llms import ROOT
from make_llms import render as render_llms
from make_readme import BADGES
from notebooks import notebooks
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

BINDER = ROOT / ".binder"


def lines_of(path):
    "A requirements file's lines without comments."
    lines = (line.split("#")[0].strip() for line in path.read_text().splitlines())
    return [line for line in lines if line]


def pins_of(lines):
    "{name: version} of the lines that name a package."
    wanted = [Requirement(line) for line in lines if not line.startswith("-")]
    return {canonicalize_name(one.name): str(one.specifier) for one in wanted}


def test_binder_installs_the_package_with_the_projects_pins():
    lines = lines_of(BINDER / "requirements.txt")
    (constraints,) = [line.split()[1] for line in lines if line.startswith("-c ")]
    assert (BINDER / constraints).resolve() == ROOT / "constraints.txt"
    assert "-e ." in lines
    own, pins = pins_of(lines), pins_of(lines_of(ROOT / "constraints.txt"))
    assert own and {name: pins[name] for name in own} == own


def test_binder_has_the_python_of_the_pins():
    settings = ConfigParser(delimiters=["="], interpolation=None)
    settings.read(ROOT / "settings.ini")
    least = settings["DEFAULT"]["min_python"]
    assert (BINDER / "runtime.txt").read_text().strip() == f"python-{least}"
    assert f"(Python {least})" in (ROOT / "constraints.txt").read_text()


def test_binder_installs_what_the_notebooks_import():
    "Every package that a cell imports is one of the package's requirements or of Binder's own."
    settings = ConfigParser(delimiters=["="], interpolation=None)
    settings.read(ROOT / "settings.ini")
    dev = {
        canonicalize_name(Requirement(x).name)
        for x in settings["DEFAULT"]["dev_requirements"].split()
    }
    lines = lines_of(BINDER / "requirements.txt")
    known = {"scikit-learn": "sklearn", "faiss-cpu": "faiss", "pypandoc-binary": "pypandoc"}
    missing = {known.get(name, name.replace("-", "_")) for name in dev - set(pins_of(lines))}
    missing -= {"ipykernel", "jupyterlab"}  # Binder brings them
    for path in notebooks():
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        imports = set(re.findall(r"^(?:from|import) (\w+)", code, re.M))
        assert imports & missing == set(), path


def test_badges_open_a_notebook_that_exists():
    assert BADGES in (ROOT / "README.md").read_text(encoding="utf-8")
    for path in re.findall(r"nbs(?:/|%2F)[\w.]+", BADGES):
        assert (ROOT / path.replace("%2F", "/")).is_file()
    start = (ROOT / "nbs/tutorials/start.ipynb").read_text(encoding="utf-8")
    assert "!pip install git+https://github.com/" in start


def test_llms_txt_is_in_step_with_the_notebooks():
    assert (ROOT / "nbs/llms.txt").read_text(encoding="utf-8") == render_llms(), "run `make readme`"


def test_llms_txt_has_the_form_of_llmstxt_org():
    title, blank, quote, *rest = render_llms().splitlines()
    assert title.startswith("# ") and not blank and quote.startswith("> ")
    body = [line for line in rest if line]
    assert not body[0].startswith("#")
    assert all(re.fullmatch(r"## \w.*|- \[.+\]\(https://\S+\): .+", line) for line in body[1:])
    links = [line for line in body if line.startswith("- ")]
    assert len(links) == len(notebooks()) + sum(
        "#| default_exp" in path.read_text(encoding="utf-8") for path in notebooks()
    )
