"""Tables for people: no text in them is a formula or breaks out of its cell, and they come back as
they were."""

import csv
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptsg.config import PromptSGError
from promptsg.files import markdown_cell, markdown_code, read_csv, write_csv

FORMULA = tuple("=+-@\t\r\n＝＋－＠")
TEXT = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=8)
# beginnings that matter
NASTY = st.builds(str.__add__, st.text(st.sampled_from("'=+-@\t\r\n, \"|"), max_size=4), TEXT)
ROWS = st.lists(
    st.tuples(
        NASTY | TEXT | st.none(),
        st.floats(allow_nan=True, allow_infinity=True, allow_subnormal=False),
        st.integers(-(2**63), 2**63 - 1),
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=80, deadline=None, database=None)
@given(ROWS)
def test_a_table_comes_back_as_it_was_and_no_text_in_it_is_a_formula(tmp_path_factory, rows):
    file = tmp_path_factory.getbasetemp() / "round.csv"
    table = pd.DataFrame(rows, columns=["name", "value", "count"]).astype({"name": object})
    write_csv(file, table)
    with open(file, newline="", encoding="utf-8") as opened:
        cells = [row[0] for row in csv.reader(opened)][1:]
    assert not any(cell.startswith(FORMULA) for cell in cells)
    read = read_csv(file, dtype={"name": str})
    assert [None if isinstance(cell, float) else cell for cell in read["name"]] == [
        row[0] for row in rows
    ]
    assert np.array_equal(read["value"], table["value"], equal_nan=True) and list(
        read["count"]
    ) == list(table["count"])


def test_names_that_a_spreadsheet_or_pandas_would_take_for_something_else(tmp_path):
    # the last: bytes that are not UTF-8
    names = [
        "=1+1",
        "'=1+1",
        "''",
        "'",
        "",
        "-5",
        "+5",
        "@x",
        "NA",
        "null",
        "nan",
        "é",
        "\udcff.jpg",
    ]
    write_csv(tmp_path / "a.csv", pd.DataFrame({"name": names, "number": -1.5}))
    assert read_csv(tmp_path / "a.csv").name.tolist() == names
    lines = (tmp_path / "a.csv").read_bytes().splitlines()
    assert (
        lines[1:4] == [b"'=1+1,-1.5", b"''=1+1,-1.5", b"''',-1.5"]
        and lines[6] == b"'-5,-1.5"
        and lines[-1] == b"\xff.jpg,-1.5"
    )


@pytest.mark.parametrize(
    "content", [b"", b'a,b\n"1,2\n3,4,5,6\n', b"a,b\n1,2\n3,4,5\n", b"a\n1e3x\n", None]
)
def test_what_is_no_table_is_one_sentence(tmp_path, content):
    if content is not None:
        (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(PromptSGError, match="t.csv cannot be read as a table") as error:
        read_csv(tmp_path / "t.csv", dtype={"a": float})
    assert "\n" not in str(error.value)


@settings(max_examples=80, deadline=None, database=None)
@given(st.text(st.sampled_from("ab |`\\<>\n\r[]()&*"), max_size=12))
def test_a_name_stays_within_its_markdown_cell(text):
    cell = markdown_cell(text)
    assert not re.search(r"[\n\r<>]", cell)
    plain = re.sub(r"\\.", "x", cell)  # without what is escaped
    assert not re.search(r"[|`\\]", plain) and "](" not in plain
    code = markdown_code(text)
    fence = re.match("`+", code)[0]
    assert (
        "\n" not in code
        and code.endswith(fence)
        and fence not in code[len(fence) : -len(fence)].replace(" ", "x")
    )


def test_markdown_leaves_plain_words_alone():
    assert (
        markdown_cell("+1.2 [-0.3, +2.0], image_only − v1") == "+1.2 [-0.3, +2.0], image_only − v1"
    )
    assert (
        markdown_cell("a|b `c` <img>\n[d](e)") == r"a\|b \`c\` &lt;img&gt; [d]\(e)"
        and markdown_code("v1") == "`v1`"
    )
    assert markdown_code("a`b``c") == "``` a`b``c ```"
