"""A result sheet says what was measured, in HTML and PDF alike, and what cannot be claimed."""

from datetime import date
from html.parser import HTMLParser

import pandas as pd
import pytest
from matplotlib.figure import Figure
from test_cli import promptsg

from promptsg.checkpoints import load_run
from promptsg.config import PromptSGError
from promptsg.data import make_splits, read_data
from promptsg.decisions import error_rates, fit_decision
from promptsg.embedding import measure
from promptsg.sheet import Section, Sheet, _Pages, result_sheet, sheet_html, sheet_pdf, write_sheet
from promptsg.synth import write_hands
from promptsg.training import Trainer
from promptsg.versions import version


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sheet")
    write_hands(
        folder / "hands", n_train=12, n_test=12, images_per_aspect=3, seed=0, progress=False
    )
    frame, config = read_data(folder / "hands"), version("training_free", "hand-rn-tiny")
    splits = make_splits(frame, "dorsal_r", 2, val="images", train_aspects=config.train_aspects)
    Trainer(config, splits, folder / "run", progress=False).fit()
    return folder, splits


@pytest.fixture(scope="module")
def measured(place):
    folder, splits = place
    model = load_run(folder / "run")
    results, _ = measure(model, splits, ("clipfh", "mba"), progress=False)
    return (
        model,
        results,
        error_rates(
            model,
            splits,
            fit_decision(model, splits),
            per_query=results["clipfh"].per_query,
            draws=20,
        ),
    )


class Words(HTMLParser):
    "Cells and headings of a page, and whether its tags close."

    def __init__(self):
        super().__init__()
        self.open, self.words, self.images = [], [], []

    def handle_starttag(self, tag, attributes):
        if tag == "img":
            self.images.append(dict(attributes))
        elif tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_the_sheet_says_what_was_measured(measured):
    _, results, errors = measured
    sheet = result_sheet(results, errors, 12, "promptsg sheet --run r", made=date(2026, 1, 2))
    assert sheet.title == "Result sheet: training_free@hand-rn-tiny, dorsal right"
    assert (
        "2026-01-02 by promptsg sheet --run r" in sheet.facts["made"]
        and results["clipfh"].record["weights"] in sheet.facts["model"]
    )
    assert sheet.facts["people"] == "12 on the train side, 12 test people"
    first = sheet.sections[0].table
    assert first.protocol.tolist() == ["clipfh", "mba"]
    assert first["Rank-1 (%)"][0].startswith(f"{results['clipfh'].summary['mean'].rank1:.1f} [")
    verified = sheet.sections[1].table.set_index("measure")
    assert (
        verified.value["FNMR at FMR 1 %"] == "not claimed"
        and "rule of 3" in verified.note["FNMR at FMR 1 %"]
    )
    assert (
        "66 pairs of people" in sheet.sections[-2].text
        and "4.5 %" in sheet.sections[-2].text
        and sheet.sections[-1].title == "Terms"
    )
    assert {"verification", "by_ratio", "open_set", "groups-gender", "evaluation-mba"} <= set(
        sheet.tables
    )
    assert set(sheet.sections[4].table.attribute) == set(errors.groups)
    with pytest.raises(PromptSGError, match="at least one protocol"):
        result_sheet({}, errors, 12)


def test_without_a_decision_the_sheet_says_why(measured, place):
    model, results, _ = measured
    errors = error_rates(model, place[1], None, draws=2)
    sheet = result_sheet(results, errors, 12, reason="everybody was trained on")
    assert (
        sheet.sections[2].text == "There are no likelihood ratios: everybody was trained on."
        and sheet.sections[2].table is None
    )
    assert "not for use" in sheet.sections[4].text and "by_ratio" not in sheet.tables


def test_html_and_pdf_hold_the_same_words_and_close(measured, tmp_path):
    _, results, errors = measured
    sheet = result_sheet(results, errors, 12, made=date(2026, 1, 2))
    page = Words()
    page.feed(sheet_html(sheet))
    page.close()
    assert (
        page.open == [] and len(page.images) == sum(len(one.figures) for one in sheet.sections) >= 3
    )
    assert all(
        one["alt"] and one["src"].startswith("data:image/png;base64,") for one in page.images
    )
    for section in sheet.sections:
        assert section.title in page.words
        assert section.table is None or {*section.table.astype(str).to_numpy().ravel()} - {""} <= {
            *page.words
        }
    pdf = sheet_pdf(sheet)
    assert pdf.startswith(b"%PDF") and pdf.count(b"/Type /Page\n") <= 3


def test_figures_of_a_row_have_one_height_and_no_gap_below_their_captions():
    pages = _Pages("a sheet")
    placed, image = [], pages.image
    pages.image = lambda *of, **at: placed.append(at) or image(*of, **at)
    pages.pictures([("a", "low", Figure(figsize=(4, 2))), ("b", "high", Figure(figsize=(3, 3)))])
    assert placed[0]["h"] == placed[1]["h"] and placed[0]["y"] == placed[1]["y"]
    assert 3 <= pages.get_y() - placed[0]["y"] - placed[0]["h"] <= 6  # a caption of 3 mm
    # a little too high for the page: smaller; much too high: on the next page
    for left, page in ((20, 2), (50, 1)):
        pages = _Pages("a sheet")
        pages.set_y(pages.h - 22 - left)
        pages.pictures([("a", "words", Figure(figsize=(4, 3.6)))])
        assert pages.page_no() == page


def test_no_word_of_a_table_is_broken_while_there_is_room():
    table = pd.DataFrame({"people": ["21", "4"], "note": ["", "too few to judge " * 20]})
    pages = _Pages("a sheet")
    people, note = pages.widths(table)
    pages.set_font("sans", "B", 6.8)
    assert people >= pages.get_string_width("people") + 2 and note > 10 * people


def test_what_a_file_name_holds_cannot_break_the_page():
    evil = "<script>alert(1)</script> & ±"
    sheet = Sheet(evil, {evil: evil}, [Section(evil, evil, pd.DataFrame({evil: [evil]}))], {})
    page = Words()
    page.feed(sheet_html(sheet))
    assert "script" not in page.open and page.words.count(evil) >= 6
    assert sheet_pdf(sheet).startswith(b"%PDF")


def test_the_files_lie_together_and_a_second_writing_replaces_them(measured, tmp_path):
    _, results, errors = measured
    sheet = result_sheet(results, errors, 12)
    folder = write_sheet(sheet, tmp_path / "out")
    names = {file.name for file in folder.iterdir()}
    assert {
        "sheet.html",
        "sheet.pdf",
        "sheet.json",
        "verification.csv",
        "cmc.png",
        "groups.png",
    } <= names
    write_sheet(sheet, folder)
    assert {file.name for file in folder.iterdir()} == names
    (tmp_path / "file").write_text("")
    with pytest.raises(PromptSGError):
        write_sheet(sheet, tmp_path / "file")


def test_the_command_makes_it_and_on_another_data_set_too(place):
    folder, _ = place
    out = promptsg(
        "sheet", "--run", folder / "run", "--data", folder / "hands", "--protocol", "clipfh"
    )
    assert "sheet.pdf" in out.stdout and (folder / "run" / "sheet" / "sheet.html").is_file()
    assert "--run" in (folder / "run" / "sheet" / "sheet.json").read_text()
    write_hands(folder / "others", n_train=0, n_test=8, images_per_aspect=3, seed=5, progress=False)
    promptsg(
        "sheet",
        "--run",
        folder / "run",
        "--data",
        folder / "others",
        "--cross",
        "--out",
        folder / "crossed",
    )
    page = (folder / "crossed" / "sheet.html").read_text()
    assert "another data set" in page and "promptsg decide" in page
    wrong = promptsg(
        "sheet", "--run", folder / "run", "--data", folder / "hands", "--protocol", "best", code=2
    )
    assert "clipfh" in wrong.stderr
