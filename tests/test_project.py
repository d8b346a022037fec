"The project as a whole: notebooks, package, README and builds are in step."

import ast
import json
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml
from make_readme import ROOT, render
from notebooks import notebooks

NOTEBOOKS = sorted(path.relative_to(ROOT) for path in notebooks())


def package_files(folder):
    "name -> bytes of everything in the package that is not made by Python itself."
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".pyc"
    }


def run(*command, cwd):
    done = subprocess.run([sys.executable, *command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    "The notebooks and what the package holds beside exported modules, elsewhere."
    folder = tmp_path_factory.mktemp("copy")
    shutil.copy(ROOT / "settings.ini", folder)
    shutil.copytree(
        ROOT / "nbs", folder / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints")
    )
    (folder / "promptsg").mkdir()
    shutil.copy(ROOT / "promptsg/__init__.py", folder / "promptsg")
    return folder


def test_package_is_what_the_notebooks_export(copy):
    run("-c", "from nbdev.doclinks import nbdev_export; nbdev_export()", cwd=copy)
    exported = package_files(copy / "promptsg")
    package = {
        name: text
        for name, text in package_files(ROOT / "promptsg").items()
        if name.endswith(".py")
    }
    assert set(package) == set(exported), "run `make export`"
    assert [name for name in package if package[name] != exported[name]] == [], (
        "edit the notebooks, then run `make export`"
    )


def test_readme_is_made_from_the_index():
    assert (ROOT / "README.md").read_text(encoding="utf-8") == render(ROOT / "nbs/index.ipynb"), (
        "run `make readme`"
    )


@pytest.mark.parametrize("check", [["check"], ["format", "--check"]])
def test_code_is_formatted_and_fits_100_columns(check):
    run("-m", "ruff", *check, "nbs", "tests", "setup.py", cwd=ROOT)  # rules: ruff.toml


def test_no_message_has_a_line_break_where_its_code_has_one():
    for file in sorted((ROOT / "promptsg").glob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        docstrings = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
            and isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and id(node) not in docstrings:
                assert "\n    " not in str(node.value), f"{file.name}:{node.lineno}"


def test_outputs_in_git_are_small():
    for path in NOTEBOOKS:
        for cell in json.loads((ROOT / path).read_text())["cells"]:
            for output in cell.get("outputs", []):
                assert len(json.dumps(output)) < 100_000, f"an output of {path} is too large"


def test_sidebar_lists_every_notebook_once():
    def files(contents):
        for entry in [contents] if isinstance(contents, str) else contents:
            if isinstance(entry, dict):
                yield from files(entry["contents"])
            else:
                yield from (ROOT / "nbs").glob(entry) if "*" in entry else [ROOT / "nbs" / entry]

    sidebar = yaml.safe_load((ROOT / "nbs/sidebar.yml").read_text())["website"]["sidebar"]
    listed = [path.relative_to(ROOT) for path in files(sidebar["contents"])]
    assert sorted(listed) == NOTEBOOKS


def test_constraints_fit_what_is_asked_for():
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = [
        line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if not line.startswith("#")
    ]
    pins = {
        canonicalize_name(Requirement(line).name): str(Requirement(line).specifier).removeprefix(
            "=="
        )
        for line in lines
    }
    settings = ConfigParser(delimiters=["="], interpolation=None)
    settings.read(ROOT / "settings.ini")
    for text in " ".join(
        settings["DEFAULT"][name]
        for name in (
            "requirements",
            "dev_requirements",
            "export_requirements",
            "heic_requirements",
            "lora_requirements",
        )
    ).split():
        wanted = Requirement(text)
        assert wanted.specifier.contains(pins[canonicalize_name(wanted.name)]), (
            f"constraints.txt does not fit {text}"
        )


def test_importing_is_quick_and_loads_nothing_heavy():
    code = (
        "import sys, promptsg; print([m for m in ('torch', 'open_clip', 'torchvision', "
        "'pandas') if m in sys.modules])"
    )
    assert run("-c", code, cwd=ROOT).strip() == "[]"

    def seconds(code):
        times = []
        for _ in range(5):
            start = time.perf_counter()
            run("-c", code, cwd=ROOT)
            times.append(time.perf_counter() - start)
        return min(times)

    assert seconds("import promptsg") - seconds("pass") < 0.2


def test_builds_carry_the_package_and_its_weights(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in (
        "setup.py",
        "settings.ini",
        "README.md",
        "LICENSE",
        "MANIFEST.in",
        "constraints.txt",
    ):
        shutil.copy(ROOT / name, source)
    shutil.copytree(
        ROOT / "promptsg", source / "promptsg", ignore=shutil.ignore_patterns("__pycache__")
    )
    # the wheel is built from the sdist
    run("-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(source), cwd=tmp_path)
    expected = {f"promptsg/{name}" for name in package_files(ROOT / "promptsg")}
    assert any(name.endswith(".safetensors") for name in expected)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
        info = {
            name.split("/", 1)[1]: wheel.read(name).decode()
            for name in names
            if ".dist-info/" in name
        }
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert (
        "promptsg = promptsg.cli:main" in info["entry_points.txt"]
        and "Requires-Dist: torch>=2.4" in info["METADATA"]
    )
    assert any(name.endswith("LICENSE") for name in info)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as sdist:
        assert {f"{Path(name).parts[0]}/settings.ini" for name in sdist.getnames()} <= set(
            sdist.getnames()
        )
