"""Each notebook runs from top to bottom, and its stored outputs are what it gives now."""

import base64
import io

import pytest
from notebooks import ROOT, compare, is_trained, keep, notebooks, read, same_text, stale, tidy
from PIL import Image


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    "One folder for the runs that the analysis notebooks share."
    return tmp_path_factory.mktemp("analysis")


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)
def test_stored_outputs_are_fresh(path, trained, monkeypatch):
    if is_trained(path):  # a training of a step in place of hours: only the kinds are compared
        monkeypatch.setenv("PROMPTSG_QUICK", "1")
        monkeypatch.setenv("PROMPTSG_ANALYSIS", str(trained))
    assert stale(path) == [], (
        f"run `make notebooks PATHS={path.relative_to(ROOT)}`, then look at them"
    )


@pytest.mark.parametrize(
    "stored, fresh, same",
    [
        ("cosine 0.949", "cosine -0.025", False),
        ("cosine 0.949", "cosine 0.951", True),
        ("3 images, 83.10 mAP", "3 images, 83.6 mAP", True),
        ("3 images, 83.10 mAP", "3 images, 70.1 mAP", False),
        ("took 3.1 s in /tmp/abc/x", "took 19 s in /tmp/q/y", True),
        ("std 2.3", "std 2.7", True),
        ("3 images", "4 images", False),
        ("a hand", "a foot", False),
        ("11,659 pairs", "11,660 pairs", True),
        ("1 2 3", "1 2", False),
    ],
)
def test_texts_are_compared_by_words_and_by_numbers_within_a_tolerance(stored, fresh, same):
    assert same_text(stored, fresh) == same


def notebook(source, *outputs):
    cell = dict(cell_type="code", id="a", source=source, outputs=[*outputs], metadata={})
    return dict(cells=[cell | {"execution_count": 7}], metadata={"widgets": {}}, nbformat=4)


def printed(text):
    return dict(output_type="stream", name="stdout", text=text)


def picture(grey, size=(80, 60)):
    file = io.BytesIO()
    Image.new("L", size, grey).save(file, "PNG")
    data = {"image/png": base64.b64encode(file.getvalue()).decode(), "text/plain": "<Figure>"}
    return dict(output_type="display_data", data=data, metadata={})


def test_pictures_are_compared_by_what_they_show():
    for stored, fresh, same in (
        (picture(100), picture(103), True),
        (picture(100), picture(160), False),
        (picture(100), picture(100, (80, 90)), False),
        (picture(100), printed("nothing"), False),
    ):
        assert (compare(notebook("x", stored), notebook("x", fresh)) == []) == same
    # of a long training only the kinds of output are compared
    assert compare(notebook("x", picture(9)), notebook("x", picture(200)), numbers=False) == []


def test_a_saved_notebook_keeps_bytes_of_outputs_that_are_the_same():
    stored = tidy(notebook("print(1)", printed("1.00 in 3 s\n")))
    again = notebook(
        "print(1)", printed("1.00 in"), printed(" 4 s\n"), dict(printed("w"), name="stderr")
    )
    assert keep(stored, again) == stored
    other = keep(stored, notebook("print(1)", printed("9.00 in 3 s\n")))
    assert other["cells"][0]["outputs"][0]["text"] == "9.00 in 3 s\n"
    # other code: its own output
    edited = keep(stored, notebook("print(1) ", printed("1.01 in 3 s\n")))
    assert edited["cells"][0]["outputs"][0]["text"] == "1.01 in 3 s\n"


def test_every_notebook_in_git_is_tidy():
    for path in notebooks():
        assert tidy(read(path)) == read(path), f"run nbdev_clean on {path}"
