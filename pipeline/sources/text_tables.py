"""Tables that are written as text: their encoding, delimiter and line ends, and their columns.

All of it is decided from the beginning of the file, so that one pass in blocks reads it: plain or
gzip, UTF-8, UTF-16 with a mark or an encoding that is given, any line ends, comments above the
header, delimited by `, ; | tab` or blanks; or objects of JSON, one a line. Paths in delimited
tables stay bytes, since names of files may be no UTF-8.
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
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

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
_JSON_LINES = (".jsonl", ".ndjson")
_HEAD_BYTES = 2**20
_BLOCK_BYTES = 2**22
_DELIMITERS = ",\t;|"
_LINE = re.compile(rb"([^\r\n]*)(?:\r\n|\r|\n|$)")
_OUTER_BLANKS = re.compile(rb"[ \t]+(?=[\r\n]|\Z)|(?<![^\r\n])[ \t]+")
_BLANKS = re.compile(rb"[ \t]+")
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip


def text_table(
    path: Path, encoding: str | None, wanted: Columns, is_file: Callable[[bytes], bool]
) -> Table:
    """Read the beginning of a table of text.

    `encoding` is that of its text; None: what its mark says, else UTF-8. `wanted` are the columns
    that were named for a role; `is_file` tells whether a field names an image file.
    """
    if path.name.lower().removesuffix(".gz").endswith(_JSON_LINES):
        return _json_table(path, encoding)
    return _delimited_table(path, encoding, wanted, is_file)


def _batches(tables: Iterable[Any]) -> Iterator[Batch]:
    """Yield batches of at most as many rows as a row group of a listing has."""
    first = 0
    for table in tables:
        for start in range(0, table.num_rows, ROWS_PER_GROUP):
            part = table.slice(start, ROWS_PER_GROUP)
            yield Batch(part, first)
            first += part.num_rows


# lines of JSON -----------------------------------------------------------------------------------


def _json_table(path: Path, encoding: str | None) -> Table:
    def batches(roles: Roles) -> Iterator[Batch]:
        return _batches(
            pa.RecordBatch.from_pydict(
                {name: _json_column([row.get(name) for row in objects]) for name in roles.read}
            )
            for objects in _json_batches(path, ROWS_PER_GROUP, encoding)
        )

    first = next(_json_batches(path, SAMPLED_ROWS, encoding), [])
    names = list(dict.fromkeys(name for row in first for name in row))
    if not names:
        raise SourceError(f"{shown(path)}: is empty, expected an object of JSON on each line")
    return Table(TableHead(shown(path), names, lambda: texts_of(names, first)), batches)


def _json_column(values: list[Any]) -> Any:
    try:
        return pa.array(values)
    except pa.ArrowException:  # values of several types
        return pa.array([None if value is None else field_text(value) for value in values])


def _json_batches(path: Path, count: int, encoding: str | None) -> Iterator[list[dict[str, Any]]]:
    """Yield the objects of lines of JSON, `count` at a time."""
    with _opened(path) as file:
        objects = _objects(_decoded(file, path, encoding), shown(path))
        while batch := list(itertools.islice(objects, count)):
            yield batch


def _objects(lines: io.BufferedReader, title: str) -> Iterator[dict[str, Any]]:
    for number in itertools.count(1):
        line = lines.readline(_BLOCK_BYTES)
        if not line:
            return
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            kind = "object of JSON"
        except (ValueError, RecursionError) as error:
            value, kind = None, f"JSON ({one_line(error)})"
        if not isinstance(value, dict):
            raise SourceError(
                f"{title}: line {number} is no {kind}; write one object on each line, such as "
                '{"file_name": "1.png", "label": "cat"}'
            )
        yield value


# delimited text ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Text:
    """A delimited table, of which the beginning was read.

    `rows` are the fields of the first lines; the first may be the names of the columns. Bytes that
    are no UTF-8 are escaped as `os.fsdecode` does it. The first, and the second, of these lines
    begin at the byte `starts`, in UTF-8. A blank as `delimiter` stands for any number of blanks.
    """

    path: Path
    rows: tuple[tuple[str, ...], ...]
    starts: tuple[int, ...]
    delimiter: str
    encoding: str | None

    def batches(self, names: Sequence[str], wanted: Sequence[str], header: bool) -> Iterator[Any]:
        """Yield the columns that are wanted in batches; empty fields are null.

        The first, of paths, stays bytes, the others are texts. `header` tells whether the first
        line holds names.
        """
        if len(self.rows) <= header:
            return
        numbers = [str(names.index(name)) for name in wanted]
        blanks, title = self.delimiter == " ", shown(self.path)
        with _opened(self.path) as file:
            stream = _decoded(file, self.path, self.encoding)
            stream.read(self.starts[header])
            for batch in pa_csv.open_csv(
                _stream(_tabbed(stream, title)) if blanks else stream,
                read_options=pa_csv.ReadOptions(
                    column_names=[str(number) for number in range(len(self.rows[0]))],
                    block_size=_BLOCK_BYTES,
                    use_threads=False,
                ),
                parse_options=pa_csv.ParseOptions(
                    delimiter="\t" if blanks else self.delimiter,
                    quote_char=False if blanks else '"',
                    newlines_in_values=not blanks,
                    invalid_row_handler=_skip_comments,
                ),
                convert_options=pa_csv.ConvertOptions(
                    include_columns=numbers,
                    column_types={number: pa.binary() for number in numbers},
                    null_values=[""],
                    strings_can_be_null=True,
                ),
            ):
                paths, *others = batch.columns
                texts = [_trimmed(column, title) for column in others]
                yield pa.RecordBatch.from_arrays([paths, *texts], names=list(wanted))


def _delimited_table(
    path: Path, encoding: str | None, wanted: Columns, is_file: Callable[[bytes], bool]
) -> Table:
    text = _open_text(path, encoding, lambda names: is_header(names, wanted))
    title, names = shown(path), [name.strip() for name in text.rows[0]]
    # a single number may as well be a label as the name of a file
    may_be_data = not names_images(names, wanted) and (len(names) > 1 or not names[0].isdigit())
    header = is_header(names, wanted) and not (may_be_data and is_file(os.fsencode(names[0])))
    if not header:
        names = names_without_header(names, title)
    elif re.search("[\udc80-\udcff]", "".join(names)):  # as what is no UTF-8 is escaped
        raise _not_utf8(title, [os.fsencode(name) for name in names])
    cure = ", or write names of columns as the first line if it has none" * header
    taken = ", ".join(f"'{name}'" for name in names)
    remarks = [] if header else [f"{title}: has no header; taken as {taken}"]
    head = TableHead(title, names, lambda: text.rows[header:][:SAMPLED_ROWS], cure)
    return Table(head, lambda r: _batches(text.batches(names, r.read, header)), remarks)


def _open_text(
    path: Path, encoding: str | None, is_header: Callable[[Sequence[str]], bool]
) -> _Text:
    """Read the beginning of a delimited table, plain or gzip.

    `encoding` is that of its text; None: what its mark says, else UTF-8. `is_header` tells whether
    fields are names of columns: a comment of such may be the header.
    """
    with _opened(path) as file:
        stream = _decoded(file, path, encoding)
        head, is_cut = stream.read(_HEAD_BYTES), bool(stream.read(1))
    lines = [(match.start(), match[1]) for match in _LINE.finditer(head) if match[1].strip()]
    if is_cut and len(lines) < 2:
        raise SourceError(
            f"{shown(path)}: has a first line of {len(head):,} bytes and more, expected a table "
            "of text"
        )
    if is_cut:
        lines.pop()
    lines, comments = lines[: 4 * SAMPLED_ROWS], []
    while lines and lines[0][1].startswith(b"#"):
        comments.append(lines.pop(0))
    if not lines:
        raise SourceError(f"{shown(path)}: is empty, expected a table with column names")
    if b"\0" in lines[0][1]:
        raise SourceError(
            f"{shown(path)}: holds NUL bytes, so it is no text in UTF-8; save it as UTF-8, or say "
            "what it is, such as encoding: utf-16-le"
        )
    delimiter = _delimiter([line for _, line in lines])
    if comments:
        start, text = comments[-1]
        header = _fields(text.lstrip(b"# "), delimiter)
        if is_header(header) and len(header) == len(_fields(lines[0][1], delimiter)):
            lines.insert(0, (start, text.lstrip(b"# ")))
    lines = lines[: SAMPLED_ROWS + 1]
    rows = tuple(_fields(line, delimiter) for _, line in lines)
    return _Text(path, rows, tuple(start for start, _ in lines), delimiter, encoding)


def _fields(line: bytes, delimiter: str) -> tuple[str, ...]:
    text = line.decode("utf-8", "surrogateescape")
    if delimiter == " ":
        return tuple(text.split())
    try:
        return tuple(next(csv.reader([text], delimiter=delimiter), ()))
    except csv.Error:  # such as a field without end
        return tuple(text.split(delimiter))


def _delimiter(lines: Sequence[bytes]) -> str:
    """Return the delimiter that is in the first line most often, else blanks, else a comma."""
    first = lines[0].decode("utf-8", "replace")
    delimiter = max(_DELIMITERS, key=first.count)
    if delimiter in first:
        return delimiter
    counts = {len(line.split()) for line in lines}
    return " " if len(counts) == 1 and counts != {1} else ","


def _trimmed(column: Any, title: str) -> Any:
    """Return bytes as text without outer blanks; nothing is null.

    What is no UTF-8, or goes over a line, as where a quote was never closed, is a `SourceError`.
    """
    try:
        texts = pc.utf8_trim_whitespace(column.cast(pa.string()))
    except pa.ArrowInvalid:
        raise _not_utf8(title, column.to_pylist()) from None
    lines = pc.match_substring(texts, "\n")
    if pc.any(lines).as_py():
        text = texts.filter(lines)[0].as_py()
        raise SourceError(f"{title}: {text[:_SHOWN]!r} goes over several lines; close its quotes")
    return pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.string()), texts)


def _not_utf8(title: str, values: Iterable[bytes | None]) -> SourceError:
    """Return the error of a table in an unnamed encoding, with how the first such value reads."""
    odd = (value for value in values if value and value.decode(errors="ignore").encode() != value)
    value = next(odd, b"")[:_SHOWN]
    return SourceError(
        f"{title}: {value!r} is no UTF-8; save the table as UTF-8, or say which encoding it "
        f"has, such as encoding: latin-1, in which this reads '{value.decode('latin-1')}'"
    )


def _skip_comments(row: Any) -> str:
    return "skip" if not row.text.strip() or row.text.startswith("#") else "error"


# bytes -------------------------------------------------------------------------------------------


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a file, unpacked where it is gzip."""
    with reading(path, _error), open_binary(path) as file:
        packed = file.peek(2)[:2] == b"\x1f\x8b"  # type: ignore[attr-defined]
        with gzip.GzipFile(fileobj=file) if packed else nullcontext(file) as plain:
            yield plain


def _error(path: Path, error: Exception) -> SourceError:
    what = ""
    if isinstance(error, pa.ArrowInvalid):
        what = f"is no proper CSV table ({one_line(error)}); correct it"
    elif isinstance(error, UnicodeError):
        what = (
            f"is no text in its encoding ({error}); save it as UTF-8, or say which it has, such as "
            "encoding: latin-1"
        )
    elif isinstance(error, EOFError | zlib.error | gzip.BadGzipFile):
        what = f"cannot be unpacked ({one_line(error)}); fetch it again"
    return SourceError(f"{shown(path)}: {what}") if what else failed(path, error)


def _decoded(file: Any, path: Path, encoding: str | None) -> io.BufferedReader:
    """Return the text of a file as UTF-8 without a mark; UTF-8 is not looked at."""
    start = file.peek(4)[:4]
    mark, codec = next(((m, c) for m, c in _MARKS if start.startswith(m)), (b"", None))
    if encoding is not None:
        given = codecs.lookup(encoding).name
        if codec is not None and not given.startswith(codec):
            raise ConfigError(
                f"{shown(path)}: begins with the mark of {codec.upper()}, but encoding is "
                f"{encoding}; leave encoding out"
            )
        codec = codec or given
    blocks = iter(lambda: file.read(_HEAD_BYTES), b"")
    if codec not in (None, "utf-8"):
        text = codecs.iterdecode(blocks, codec)
        return _stream(block.encode() for block in text)
    file.read(len(mark))
    return _stream(blocks)


def _tabbed(stream: io.BufferedReader, title: str) -> Iterator[bytes]:
    """Put one tab for all the blanks between two fields."""
    rest = b""
    for block in itertools.chain(iter(lambda: stream.read1(_HEAD_BYTES), b""), [b"\n"]):
        text = rest + block
        end = max(text.rfind(b"\n"), text.rfind(b"\r")) + 1
        lines, rest = text[:end], text[end:]
        if len(rest) > _BLOCK_BYTES:
            raise SourceError(
                f"{title}: has a line of more than {_BLOCK_BYTES:,} bytes; correct it"
            )
        yield _BLANKS.sub(b"\t", _OUTER_BLANKS.sub(b"", lines))


class _Blocks(io.RawIOBase):
    """Blocks of bytes as a file."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest and (block := next(self._blocks, None)) is not None:
            self._rest = memoryview(block)
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count


def _stream(blocks: Iterator[bytes]) -> io.BufferedReader:
    return io.BufferedReader(_Blocks(blocks), _HEAD_BYTES)
