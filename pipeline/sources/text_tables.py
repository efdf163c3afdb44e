"""Tables that are written as text: their encoding, delimiter and line ends, and their columns.

All of it is decided from the beginning of the file, so that one pass reads it: plain or gzip,
UTF-8, UTF-16 with a mark or an encoding that is given, any line ends, comments above the header,
delimited by `, ; | tab` or blanks; or objects of JSON, one a line. Paths in delimited tables
become the bytes that they were, since names of files may be no UTF-8. The rows are read by Python's
own `csv`: it tells a row that is too short from one with an empty field, and keeps such bytes.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import itertools
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import pyarrow as pa

from pipeline.core.errors import ConfigError, SourceError, one_line
from pipeline.core.paths import shown
from pipeline.sources.fetch import failed, reading
from pipeline.sources.sample_index import ROWS_PER_GROUP
from pipeline.sources.table_columns import (
    SAMPLED_ROWS,
    Batch,
    Columns,
    Roles,
    Table,
    TableHead,
    field_text,
    is_header,
    names_images,
    names_without_header,
    texts_of,
)
from pipeline.storage.blobs import open_binary

SUFFIXES = (".csv", ".tsv", ".tab", ".txt", ".jsonl", ".ndjson")
_SHOWN = 100
_LONGEST_LINE = 2**22  # characters
_DELIMITERS = ",\t;|"
_ESCAPED = re.compile("[\udc80-\udcff]")  # bytes that are no UTF-8
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
Row = Sequence[str]


def text_table(
    path: Path, encoding: str | None, wanted: Columns, is_file: Callable[[bytes], bool]
) -> Table:
    """Read the beginning of a table of text.

    `encoding` is that of its text; None: what its mark says, else UTF-8. `wanted` are the columns
    that were named for a role; `is_file` tells whether a field names an image file.
    """
    if is_json(path):
        return _json_table(path, encoding)
    layout = find_layout(path, encoding, lambda names: is_header(names, wanted))
    title, names = shown(path), [name.strip() for name in layout.rows[0]]
    # a single number may as well be a label as the name of a file
    may_be_data = not names_images(names, wanted) and (len(names) > 1 or not names[0].isdigit())
    header = is_header(names, wanted) and not (may_be_data and is_file(os.fsencode(names[0])))
    if not header:
        names = names_without_header(names, title)
    elif any(map(_ESCAPED.search, names)):
        raise _not_utf8(title, names)
    cure = ", or write names of columns as the first line if it has none" * header
    taken = ", ".join(f"'{name}'" for name in names)
    remarks = [] if header else [f"{title}: has no header; taken as {taken}"]
    head = TableHead(title, names, lambda: layout.rows[header:][:SAMPLED_ROWS], cure)

    def batches(roles: Roles) -> Iterator[Batch]:
        def columns(rows: Sequence[Row]) -> dict[str, Any]:
            fields = dict(zip(names, zip(*rows, strict=True), strict=True))
            paths = pa.array(
                [os.fsencode(path) or None for path in fields[roles.image]], pa.binary()
            )
            texts = {name: as_texts(fields[name], title) for name in roles.described}
            return {**texts, roles.image: paths}

        return in_batches(path, encoding, lambda text: layout.read(text, header, title), columns)

    return Table(head, batches, remarks)


def in_batches(
    path: Path,
    encoding: str | None,
    read: Callable[[TextIO], Iterator[Any]],
    columns: Callable[[list[Any]], dict[str, Any]],
) -> Iterator[Batch]:
    """Yield what `read` gives of a file in batches; `columns` makes columns of several rows."""
    first = 0
    with opened_text(path, encoding) as text:
        rows = read(text)
        while several := list(itertools.islice(rows, ROWS_PER_GROUP)):
            yield Batch(pa.record_batch(columns(several)), first)
            first += len(several)


def is_json(path: Path) -> bool:
    """Tell by its name whether a table is of lines of JSON."""
    return path.name.lower().removesuffix(".gz").endswith((".jsonl", ".ndjson"))


# delimited text ----------------------------------------------------------------------------------


class Layout(NamedTuple):
    """How a delimited table is written, as its beginning shows.

    `rows` are the fields of the first lines, of which the first may be the names of the columns;
    bytes that are no UTF-8 are escaped as `os.fsdecode` does it. The first, and the second, of
    these begin after so many lines as `starts` says. A blank as `delimiter` stands for any number
    of blanks.
    """

    rows: tuple[tuple[str, ...], ...]
    starts: tuple[int, ...]
    delimiter: str

    def read(self, text: TextIO, header: bool, title: str) -> Iterator[Row]:
        """Yield the rows of a table, of which the first line may hold names."""
        if len(self.rows) <= header:
            return
        lines, count = (
            itertools.islice(read_lines(text, title), self.starts[header], None),
            len(self.rows[0]),
        )
        for number, row in enumerate(split_rows(lines, self.delimiter)):
            if len(row) == count:
                yield row
            elif any(map(str.strip, row)) and not row[0].startswith("#"):
                raise csv.Error(f"row {number + 1} has {len(row)} fields, expected {count}")


def find_layout(path: Path, encoding: str | None, is_header: Callable[[Row], bool]) -> Layout:
    """Read the beginning of a delimited table, plain or gzip.

    `encoding` is that of its text; None: what its mark says, else UTF-8. `is_header` tells whether
    fields are names of columns: a comment of such may be the header.
    """
    with opened_text(path, encoding) as text:
        first = itertools.islice(read_lines(text, shown(path)), 4 * SAMPLED_ROWS)
        lines = [(n, line.strip("\r\n")) for n, line in enumerate(first) if line.strip()]
    comments = []
    while lines and lines[0][1].startswith("#"):
        comments.append(lines.pop(0))
    if not lines:
        raise SourceError(f"{shown(path)}: is empty, expected a table with column names")
    if "\0" in lines[0][1]:
        raise SourceError(
            f"{shown(path)}: holds NUL bytes, so it is no text in UTF-8; save it as UTF-8, or say "
            "what it is, such as encoding: utf-16-le"
        )
    delimiter = _delimiter([line for _, line in lines])
    if comments:
        start, comment = comments[-1]
        header, after = (
            next(split_rows([t], delimiter)) for t in (comment.lstrip("# "), lines[0][1])
        )
        if is_header(header) and len(header) == len(after):
            lines.insert(0, (start, comment.lstrip("# ")))
    lines = lines[: SAMPLED_ROWS + 1]
    rows = (next(split_rows([line], delimiter)) for _, line in lines)
    return Layout(tuple(map(tuple, rows)), tuple(start for start, _ in lines), delimiter)


def read_lines(text: TextIO, title: str) -> Iterator[str]:
    for number in itertools.count():
        line = text.readline(_LONGEST_LINE)
        if len(line) == _LONGEST_LINE:
            which = "line" if number else "first line"
            raise SourceError(
                f"{title}: is no proper CSV table: it has a {which} of {len(line):,} characters "
                "and more; correct it"
            )
        if not line:
            return
        yield line


def split_rows(lines: Iterable[str], delimiter: str) -> Iterator[Row]:
    if delimiter == " ":
        return (re.split(r"[ \t]+", line.strip(" \t\r\n")) for line in lines)
    return csv.reader(lines, delimiter=delimiter)


def _delimiter(lines: Sequence[str]) -> str:
    """Return the delimiter that is in the first line most often, else blanks, else a comma."""
    delimiter = max(_DELIMITERS, key=lines[0].count)
    if delimiter in lines[0]:
        return delimiter
    counts = {len(line.split()) for line in lines}
    return " " if len(counts) == 1 and counts != {1} else ","


def as_texts(fields: Iterable[str], title: str) -> Any:
    """Return fields as text without outer blanks; nothing is null.

    What is no UTF-8, or goes over a line, as where a quote was never closed, is a `SourceError`.
    """
    texts = [field.strip() or None for field in fields]
    long = next((text for text in texts if text and ("\n" in text or "\r" in text)), None)
    if long is not None:
        raise SourceError(f"{title}: {long[:_SHOWN]!r} goes over several lines; close its quotes")
    try:
        return pa.array(texts, pa.string())
    except UnicodeEncodeError:
        raise _not_utf8(title, filter(None, texts)) from None


def _not_utf8(title: str, texts: Iterable[str]) -> SourceError:
    """Return the error of a table in an unnamed encoding, with how the first such text reads."""
    value = os.fsencode(next(filter(_ESCAPED.search, texts), ""))[:_SHOWN]
    return SourceError(
        f"{title}: {value!r} is no UTF-8; save the table as UTF-8, or say which encoding it "
        f"has, such as encoding: latin-1, in which this reads '{value.decode('latin-1')}'"
    )


def labels_alone(path: Path, encoding: str | None, names: Sequence[bytes], folder: str) -> Table:
    """Return the table of labels alone, a line each, for the image files of a `folder` in order.

    Raises `SourceError` unless they are as many, but for a name of their column.
    """
    title = shown(path)
    with opened_text(path, encoding) as text:
        lines = [line.strip() for line in read_lines(text, title) if line.strip()]
    labels = lines[len(lines) == len(names) + 1 :]
    if len(labels) != len(names):
        raise SourceError(
            f"{title}: has {len(labels):,} lines of labels alone, for {len(names):,} images in "
            f"{folder}, expected a label for each; write the path before each label"
        )

    def batches(_: Roles) -> Iterator[Batch]:
        for first in range(0, len(names), ROWS_PER_GROUP):
            rows = slice(first, first + ROWS_PER_GROUP)
            columns = {"path": pa.array(names[rows]), "label": as_texts(labels[rows], title)}
            yield Batch(pa.record_batch(columns), first)

    remark = f"{title}: holds labels alone, for the images in {folder} by their names"
    return Table(TableHead(title, ["path", "label"], list), batches, [remark])


# lines of JSON -----------------------------------------------------------------------------------


def _json_table(path: Path, encoding: str | None) -> Table:
    title = shown(path)

    def batches(roles: Roles) -> Iterator[Batch]:
        def columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
            return {name: _json_column([row.get(name) for row in rows]) for name in roles.read}

        return in_batches(path, encoding, lambda text: _objects(text, title), columns)

    with opened_text(path, encoding) as text:
        first_rows = list(itertools.islice(_objects(text, title), SAMPLED_ROWS))
    names = list(dict.fromkeys(name for row in first_rows for name in row))
    if not names:
        raise SourceError(f"{title}: is empty, expected an object of JSON on each line")
    return Table(TableHead(title, names, lambda: texts_of(names, first_rows)), batches)


def _json_column(values: list[Any]) -> Any:
    try:
        return pa.array(values)
    except pa.ArrowException:  # values of several types
        return pa.array([None if value is None else field_text(value) for value in values])


def _objects(text: TextIO, title: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(read_lines(text, title)):
        if not line.strip():
            continue
        try:
            value, kind = json.loads(line), "object of JSON"
        except (ValueError, RecursionError) as error:
            value, kind = None, f"JSON ({one_line(error)})"
        if not isinstance(value, dict):
            raise SourceError(
                f"{title}: line {number + 1} is no {kind}; write one object on each line, such as "
                '{"file_name": "1.png", "label": "cat"}'
            )
        yield value


# bytes -------------------------------------------------------------------------------------------


@contextmanager
def opened_text(path: Path, encoding: str | None) -> Iterator[TextIO]:
    """Open a file of text, unpacked where it is gzip; bytes that are no UTF-8 are escaped."""
    with reading(path, _error), open_binary(path) as opened:
        file: Any = opened
        packed = file.peek(2)[:2] == b"\x1f\x8b"
        with gzip.GzipFile(fileobj=file) if packed else nullcontext(file) as plain:
            start = plain.peek(4)[:4]
            codec = next((codec for mark, codec in _MARKS if start.startswith(mark)), None)
            if encoding is not None and codec is not None:
                marked = codec.removesuffix("-sig")
                if not codecs.lookup(encoding).name.startswith(marked):
                    raise ConfigError(
                        f"{shown(path)}: begins with the mark of {marked.upper()}, but encoding is "
                        f"{encoding}; leave encoding out"
                    )
            codec = codec or encoding or "utf-8"
            is_utf8 = codecs.lookup(codec).name.startswith("utf-8")
            errors = "surrogateescape" if is_utf8 else "strict"
            yield io.TextIOWrapper(plain, codec, errors, newline="")


def _error(path: Path, error: Exception) -> SourceError:
    what = ""
    if isinstance(error, csv.Error):
        what = f"is no proper CSV table ({one_line(error)}); correct it"
    elif isinstance(error, UnicodeError):
        what = (
            f"is no text in its encoding ({error}); save it as UTF-8, or say which it has, such as "
            "encoding: latin-1"
        )
    elif isinstance(error, EOFError | zlib.error | gzip.BadGzipFile):
        what = f"cannot be unpacked ({one_line(error)}); fetch it again"
    return SourceError(f"{shown(path)}: {what}") if what else failed(path, error)
