"Component notebooks read as lessons: a picture first, one set of equation numbers, exercises."

import re

import pytest
from notebooks import ROOT, read

# tools without an exercise: a config, files, commands, and pages of results
TOOLS = ("00_config", "00a_files", "16_cli", "18_report", "19_bench", "20_sharing", "24_sheet")
LESSONS = [p for p in sorted((ROOT / "nbs").glob("[0-9]*.ipynb")) if p.stem not in TOOLS]
text = lambda cell: "".join(cell["source"])
lessons = pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)


def has_picture(cell):
    return any(
        kind.startswith("image/") for output in cell["outputs"] for kind in output.get("data", {})
    )


@lessons
def test_a_picture_stands_in_the_first_screen(path):
    cells = read(path)["cells"]
    first = next(
        index for index, cell in enumerate(cells) if "outputs" in cell and has_picture(cell)
    )
    assert first <= 5, "at most title, a sentence and imports stand before it"


@lessons
def test_two_exercises_have_answers_that_run_folded(path):
    cells = read(path)["cells"]
    answers = [cell for cell in cells if 'code-summary: "Answer to exercise' in text(cell)]
    assert len(answers) == 2
    for number, cell in enumerate(answers, 1):
        before = text(cells[cells.index(cell) - 1])
        assert f"**Exercise {number}.**" in before
        assert "#| code-fold: true" in text(cell) and "assert" in text(cell).lower()
        assert cell["metadata"] == {"jupyter": {"source_hidden": True}}
        assert "#| export" not in text(cell) and "#| eval: false" not in text(cell)


@lessons
def test_the_last_cell_names_the_next_notebook(path):
    last = read(path)["cells"][-1]
    assert text(last).startswith("Next: ") and ".ipynb" in text(last)


@lessons
def test_equations_are_numbered_by_their_notebook(path):
    number = re.sub(r"^0(?=\d)", "", path.stem.split("_")[0])
    everything = "\n".join(text(cell) for cell in read(path)["cells"])
    tags = re.findall(r"\\tag\{([^}]*)\}", everything)
    assert tags == [f"{number}.{i}" for i in range(1, len(tags) + 1)]
