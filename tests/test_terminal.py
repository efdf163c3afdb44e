"""Tables on a terminal and in a pipe, and pixels as text."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from contextlib import redirect_stdout

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

import pipeline
from pipeline.config.settings import parse_range
from pipeline.core.errors import InputError, ShapeError
from pipeline.terminal import print_pixels, print_table


@pytest.fixture(autouse=True)
def _a_pipe(monkeypatch):
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


def printed(capsys):
    return capsys.readouterr().out.splitlines()


# tables ----------------------------------------------------------------------------------------


def test_a_table_in_a_pipe_has_a_line_for_each_row_however_long(capsys):
    long = "a title of many words " * 40
    print_table(["name", "what"], [["a", long], ["b", "short"]])
    lines = printed(capsys)
    rows = [line for line in lines if line.startswith(("a ", "b "))]
    assert len(rows) == 2
    assert long.strip() in rows[0]
    assert "…" not in rows[0]


def test_a_table_in_a_pipe_holds_no_colours_and_no_codes(capsys):
    print_table(["name"], [["[bold]not markup[/bold]"], [":smile:"]])
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert "[bold]not markup[/bold]" in text
    assert ":smile:" in text


def test_columns_of_numbers_are_set_right_and_others_left(capsys):
    print_table(["name", "count", "share"], [["cat", "7", "0.1"], ["a dog", "1,000", "-"]])
    header, _, cat, dog = (line.rstrip() for line in printed(capsys))
    assert header.index("count") + len("count") == dog.index("1,000") + len("1,000")
    assert cat.index("7") == dog.index("1,000") + 4
    assert cat.index("cat") == dog.index("a dog") == header.index("name") == 0
    assert cat.index("0.1") + 2 == dog.rindex("-")


def test_a_table_without_rows_prints_its_header(capsys):
    print_table(["name", "count"], [])
    assert printed(capsys)[0].split() == ["name", "count"]


# ranges ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5:25", (5, 25)),
        ("5:", (5, 28)),
        (":5", (0, 5)),
        (":", (0, 28)),
        ("10", (0, 10)),
        ("0:1", (0, 1)),
        ("27:28", (27, 28)),
        ("5:99", (5, 28)),
        ("99", (0, 28)),
    ],
)
def test_a_range_of_lines_is_read(text, expected):
    found = parse_range(text, 28, "rows")
    assert (found.start, found.stop) == expected


@pytest.mark.parametrize(
    "text", ["a", "a:b", "5:a", "1:2:3", "-3:5", "5:-1", "5:5", "6:5", "28:", "28:30", "0", "1.5"]
)
def test_a_range_without_lines_is_refused_with_an_example(text):
    with pytest.raises(InputError) as caught:
        parse_range(text, 28, "rows")
    message = str(caught.value)
    assert f"rows {text!r}" in message
    assert "0:28" in message


# pixels ----------------------------------------------------------------------------------------


def numbers(lines):
    return [line.split() for line in lines]


def test_the_pixels_asked_are_printed_with_their_rows_and_columns(capsys):
    image = np.arange(28 * 28, dtype=np.uint16).reshape(28, 28)
    print_pixels(image, 65535, "5:8,24:")
    header, *lines = numbers(printed(capsys))
    assert header == ["24", "25", "26", "27"]
    assert lines == [[str(row), *map(str, image[row, 24:])] for row in (5, 6, 7)]


def test_a_number_alone_means_the_first_lines(capsys):
    print_pixels(np.full((9, 9), 7, np.uint8), 255, "2,3")
    header, *lines = numbers(printed(capsys))
    assert header == ["0", "1", "2"]
    assert lines == [["0", "7", "7", "7"], ["1", "7", "7", "7"]]


def test_pixels_of_three_channels_are_printed_as_hex(capsys):
    image = np.array([[[255, 0, 16], [1, 2, 3]]], np.uint8)
    print_pixels(image, 255, "1,2")
    assert numbers(printed(capsys))[1] == ["0", "ff0010", "010203"]


@pytest.mark.parametrize("row", [[], ["1"], ["1", "2", "3"]], ids=len)
def test_a_row_of_other_cells_than_columns_is_refused(capsys, row):
    with pytest.raises(ShapeError, match=f"row 1 has {len(row)} cells, expected 2.*name, what"):
        print_table(["name", "what"], [["a", "b"], row])
    assert not printed(capsys)
    print_table(["name", "what"], [["a", "b"], [*row, "", ""][:2]])  # what the message tells to do


def test_all_columns_stand_in_line(capsys):
    image = np.array([[0, 255, 9], [100, 1, 0]], np.uint8)
    print_pixels(image, 255, "2,3")
    header, *lines = (line.rstrip() for line in printed(capsys))
    assert len({len(line.rstrip()) for line in lines}) == 1
    places = [header.index(str(column)) for column in range(3)]
    assert places == sorted(places)


@pytest.mark.parametrize("ranges", ["5", "", "5:6"])
def test_pixels_need_rows_and_columns(ranges):
    with pytest.raises(InputError, match="expected ROWS,COLS"):
        print_pixels(np.zeros((9, 9), np.uint8), 255, ranges)


@pytest.mark.parametrize(
    ("ranges", "which"), [("20,1", None), ("9:,1", "rows"), ("1,9:", "columns")]
)
def test_pixels_outside_of_the_image_are_refused_by_name(capsys, ranges, which):
    image = np.zeros((9, 9), np.uint8)
    if which is None:
        print_pixels(image, 255, ranges)
        assert len(printed(capsys)) == 10
        return
    with pytest.raises(InputError, match=f"{which} '9:'"):
        print_pixels(image, 255, ranges)


def test_a_reader_that_stops_reading_is_no_error(tmp_path):
    images = np.zeros((2, 4, 4), np.uint8), np.arange(2, dtype=np.int32)
    names = [f"class {number}" for number in range(2)]
    store = pipeline.ingest(pipeline.from_arrays({"train": images}, names), tmp_path / "s.zarr")
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "show", str(store)],
        stdout=writing, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


# the width of a terminal ------------------------------------------------------------------------

CELLS = st.one_of(
    st.integers(0, 10**9).map("{:,}".format), st.floats(0, 1).map("{:.4f}".format), st.just("-"),
    st.text(st.characters(codec="utf-8"), max_size=60),
)  # fmt: skip


@st.composite
def made_tables(draw):
    columns = draw(st.integers(1, 12))
    row = st.lists(CELLS, min_size=columns, max_size=columns)
    return draw(row), draw(st.lists(row, max_size=4))


@given(table=made_tables(), width=st.integers(20, 120))
def test_in_a_terminal_a_table_is_never_wider_than_it(table, width):
    stream = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FORCE_COLOR", "1")
        patch.setenv("COLUMNS", str(width))
        print_table(*table, stream)
    plain = re.sub(r"\x1b\[[\d;]*m", "", stream.getvalue())
    assert all(cell_len(line) <= width for line in plain.splitlines())


@pytest.mark.parametrize("width", [30, 60])
def test_names_are_folded_where_numbers_are_not(width, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(width))
    stream = io.StringIO()
    print_table(["name", "count"], [["a name of many words " * 4, "1,000,000"]], stream)
    lines = stream.getvalue().splitlines()
    assert sum("1,000,000" in line for line in lines) == 1
    assert sum("many" in line for line in lines) > 1


def test_without_colour_there_are_no_colours(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    stream = io.StringIO()
    for value, colours in (("1", 0), ("", 2)):
        monkeypatch.setenv("NO_COLOR", value)
        with redirect_stdout(stream):
            print_pixels(np.array([[0, 255]], np.uint8), 255, "1,2")
        assert len(re.findall(r"\x1b\[3\d[;\d]*m", stream.getvalue())) == colours


def test_columns_without_room_follow_below_and_no_number_is_lost(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    stream, numbers = io.StringIO(), [f"{number},000,000" for number in range(1, 21)]
    print_table(["class", *(f"split {n}" for n in range(20))], [["a rose", *numbers]], stream)
    plain = re.sub(r"\x1b\[[\d;]*m", "", stream.getvalue())
    assert re.findall(r"\d+,000,000", plain) == numbers
    assert plain.count("a rose") == plain.count("class") > 5


@pytest.mark.parametrize("width", [20, 33, 80])
@pytest.mark.parametrize("channels", [(), (3,), (2,)], ids=len)
def test_columns_of_pixels_without_room_follow_below_and_none_is_lost(width, channels, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(width))
    image = np.arange(28 * 28 * (*channels, 1)[0]).reshape(28, 28, *channels).astype(np.uint16)
    stream = io.StringIO()
    with redirect_stdout(stream):
        print_pixels(image, 65535, "5:25,4:24")
    plain = re.sub(r"\x1b\[[\d;]*m", "", stream.getvalue()).splitlines()
    assert all(cell_len(line) <= width for line in plain)
    blocks = [numbers(plain[start : start + 21]) for start in range(0, len(plain), 21)]
    assert len(blocks) > 1
    assert [int(name) for block in blocks for name in block[0]] == list(range(4, 24))
    for line in range(20):
        rows = [block[1 + line] for block in blocks]
        assert {row[0] for row in rows} == {str(5 + line)}
        form = {(): "{}", (3,): "{:04x}{:04x}{:04x}", (2,): "{}/{}"}[channels]
        known = [form.format(*np.atleast_1d(pixel).tolist()) for pixel in image[5 + line, 4:24]]
        assert [text for row in rows for text in row[1:]] == known
