"""Tables whose columns are pixels, as MNIST comes in CSV: a row is an image, perhaps labelled.

The pixels are columns side by side (`pixel0` to `pixel783`, `1x1` to `28x28`, numbers), or all in
one column `pixels`, with blanks between them; without a header the first column is the label where
the others are a square. Labels and splits are those of any table (`tables`). A listing says where
the line of each row is, and what is fetched is that line as an image file (PGM or PPM), so that
a wrong value makes one bad sample.
"""

from __future__ import annotations

import csv
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.core.blocks import UNREADABLE, Problem
from pipeline.core.errors import PixsimError, ShapeError, SourceError
from pipeline.core.paths import shown
from pipeline.sources.array_files import is_gzip, open_gzip, read_span
from pipeline.sources.fetch import StreamFetcher, listed_files, reading
from pipeline.sources.file_names import flattened
from pipeline.sources.notes import Notes
from pipeline.sources.sample_index import Sample
from pipeline.sources.table_columns import (
    PATH_COLUMNS,
    Batch,
    Roles,
    Table,
    TableHead,
    is_header,
    names_images,
    plain,
)
from pipeline.sources.tables import Part, TableReader
from pipeline.sources.text_tables import (
    SUFFIXES,
    Layout,
    as_texts,
    find_layout,
    in_batches,
    is_json,
    read_lines,
    split_rows,
)

_PIXEL = re.compile(r"(?:pixels?|px|p)\d+(?:x\d+)?|\d+x\d+")
_PIXEL_OR_NUMBER = re.compile(rf"{_PIXEL.pattern}|\d+")
_LEAST = 16
_PIXELS = "pixels"  # the column of all pixels of an image
_WHERE = ("\0offset", "\0size", "\0key")  # columns of batches that are none of the table
_AT_ONCE = 2**22  # bytes of lines that are read together
_CHANNELS = (1, 3)
Shape = tuple[int, ...]


class _Pixels(NamedTuple):
    """Which columns are pixels: from `first` up to `stop`; of which `names` all columns are.

    Whether the first line holds names is `header`; `joined`: the pixels are in one column.
    """

    names: Sequence[str]
    first: int
    stop: int
    header: bool
    joined: bool = False

    def count(self, row: Sequence[str]) -> int:
        return len(row[self.first].split()) if self.joined else self.stop - self.first


def holds_pixels(path: Path, encoding: str | None = None, shape: Shape | None = None) -> bool:
    """Tell whether a table of text holds pixels; what cannot be read holds none."""
    if is_json(path):
        return False
    try:
        return _find_pixels(_layout(path, encoding), shape) is not None
    except PixsimError:
        return False


def _layout(path: Path, encoding: str | None) -> Layout:
    return find_layout(path, encoding, lambda names: is_header(names, {}))


def _find_pixels(layout: Layout, shape: Shape | None) -> _Pixels | None:
    first = layout.rows[0]
    names = [plain(name) for name in first]
    if all(map(str.isdigit, names)):
        numbers = list(map(int, names))
        if len(names) > _LEAST and numbers != [*range(numbers[0], numbers[-1] + 1)]:
            size = len(names) - math.prod(shape or ())
            labelled = size == 1 if shape else math.isqrt(len(names) - 1) ** 2 == len(names) - 1
            return _Pixels(["label"] * labelled + names[labelled:], labelled, len(names), False)
    elif _PIXELS in names:
        at = names.index(_PIXELS)
        if len(layout.rows) > 1 and len(layout.rows[1][at].split()) >= _LEAST:
            return _Pixels(first, at, at + 1, True, joined=True)
    # beside names of files numbers are classes
    pattern = _PIXEL if names_images(first, {}) else _PIXEL_OR_NUMBER
    runs = itertools.groupby(range(len(names)), lambda n: bool(pattern.fullmatch(names[n])))
    pixels = [[*group] for of_pixels, group in runs if of_pixels]
    if len(pixels) == 1 and len(pixels[0]) >= _LEAST:
        return _Pixels(first, pixels[0][0], pixels[0][-1] + 1, True)
    return None


@dataclass(frozen=True)
class PixelReader(TableReader):
    """Lists the images whose pixels stand in tables of text; paths may be folders of such.

    `encoding` is that of the text; `shape` that of the images, by default a square.
    """

    encoding: str | None = None
    shape: Shape | None = None
    suffixes = tuple(f"{suffix}{gz}" for suffix in SUFFIXES for gz in ("", ".gz"))
    kind = "pixels"

    def fetcher(self) -> PixelFetcher:
        return PixelFetcher(self._roots)

    @cached_property
    def _tables(self) -> list[tuple[str, bool, Path]]:
        given = {path for several in self.paths.values() for path in several}
        tables = flattened(self.paths, self.split, self.suffixes)
        return [t for t in tables if t[2] in given or holds_pixels(t[2], self.encoding, self.shape)]

    def batches(self, notes: Notes) -> Iterator[tuple[str, Any]]:
        used = {path for _, _, path in self._tables}
        for _, _, path in flattened(self.paths, self.split, self.suffixes):
            if path not in used:
                notes.left_out.append(path.name)
        yield from super().batches(notes)

    @contextmanager
    def _opened(self, path: Path) -> Iterator[Table]:
        layout, title = _layout(path, self.encoding), shown(path)
        pixels = _find_pixels(layout, self.shape)
        if pixels is None:
            raise SourceError(
                f"{title}: has no columns of pixels, expected {_LEAST} or more side by side, such "
                "as pixel0, pixel1, or a column 'pixels' with blanks between them"
            )
        rows = layout.rows[pixels.header :]
        count = pixels.count(rows[0]) if rows else pixels.stop - pixels.first
        shape = _shape_of(title, self.shape, count)
        wanted = [plain(name) for name in self.columns.values() if name]
        ids = {*map(plain, PATH_COLUMNS), "imageid"} - {*wanted}
        others = {
            name: n
            for n, name in enumerate(name.strip() for name in pixels.names)
            if not pixels.first <= n < pixels.stop and plain(name) not in ids
        }
        last = max(others.values(), default=0)
        head = TableHead(
            title,
            [*others, _PIXELS],
            lambda: [[*(row[n] for n in others.values()), ""] for row in rows if len(row) > last],
            encoded=[_PIXELS],
            lone_label=True,
        )
        key = _key(path, layout, pixels, shape)
        remarks = [f"{title}: {count:,} values in a row are taken as {_spelled(shape)} pixels"]
        if not pixels.header:
            remarks.append(f"{title}: has no header; taken as {', '.join([*others, 'pixels'])}")

        def batches(roles: Roles) -> Iterator[Batch]:
            def columns(spans: list[Any]) -> dict[str, Any]:
                rows, *where = zip(*spans, strict=True)
                fields = dict(zip(others, zip(*rows, strict=True), strict=False))
                named = {name: as_texts(fields[name], title) for name in roles.described}
                return named | dict(
                    zip(_WHERE, [*map(pa.array, where), pa.repeat(key, len(rows))], strict=True)
                )

            return in_batches(
                path,
                self.encoding,
                lambda text: _spans(text, layout, pixels, [*others.values()], title),
                columns,
            )

        yield Table(head, batches, remarks if self.shape is None else remarks[1:])

    def _image(self, head: TableHead) -> str:  # noqa: ARG002 (all have the same)
        return _PIXELS

    def _located(
        self, part: Part, batches: Iterable[Batch]
    ) -> Iterator[tuple[Batch, Mapping[str, Any]]]:
        for batch in batches:
            numbers = range(batch.first, batch.first + batch.table.num_rows)
            where = {name.strip("\0"): batch.table[name] for name in _WHERE}
            yield batch, {"origin": [f"{part.path.name}[{n}]" for n in numbers], **where}


def _sides(shape: Shape) -> tuple[bool, int, int, int]:
    """Return whether all of one colour come first, the height, the width and the colours."""
    first = len(shape) == 3 and shape[2] not in _CHANNELS
    height, width, channels = (*shape[1:], shape[0]) if first else (*shape, 1)[:3]
    return first, height, width, channels


def _shape_of(title: str, shape: Shape | None, count: int) -> Shape:
    side = math.isqrt(count)
    chosen = (side, side) if shape is None else shape
    if math.prod(chosen) == count and _sides(chosen)[3] in _CHANNELS:
        return chosen
    side, cure = math.isqrt(count // 3), "shape: [HEIGHT, WIDTH]"
    if 3 * side * side == count:
        cure = f"shape: [{side}, {side}, 3], or [3, {side}, {side}] where all reds come first"
    what = "a square" if shape is None else f"{_spelled(shape)}, grey or with 3 colours"
    raise ShapeError(f"{title}: {count:,} pixels in a row are not {what}; say what: {cure}")


def _spelled(shape: Shape) -> str:
    return " x ".join(map(str, shape))


def _spans(
    text: Any, layout: Layout, pixels: _Pixels, kept: Sequence[int], title: str
) -> Iterator[tuple[Sequence[str], int, int]]:
    """Yield the fields of a row that are kept, and where its line is: its first byte and its size.

    Of a file that is packed that is in what it unpacks to.
    """
    codec = text.encoding.removesuffix("-sig")
    if codec.replace("-", "").startswith(("utf16", "utf32")):
        raise SourceError(f"{title}: is {codec}, expected UTF-8 for a table of pixels; save it so")
    position = len("\ufeff".encode()) if codec != text.encoding else 0
    if len(layout.rows) <= pixels.header:
        return
    count, start = len(layout.rows[0]), layout.starts[pixels.header]
    for number, line in enumerate(read_lines(text, title)):
        size = len(line.encode(codec, text.errors))
        if number >= start and line.strip() and not line.startswith("#"):
            row = _fields(line, layout.delimiter)
            if len(row) != count:
                raise csv.Error(f"line {number + 1} has {len(row)} fields, expected {count}")
            yield [row[n] for n in kept], position, size
        position += size


def _fields(line: str, delimiter: str) -> Sequence[str]:
    if '"' in line or delimiter == " ":
        return next(split_rows([line], delimiter))
    return line.rstrip("\r\n").split(delimiter)  # which is faster


# fetching ----------------------------------------------------------------------------------------


def _key(path: Path, layout: Layout, pixels: _Pixels, shape: Shape) -> bytes:
    """Return what a listing keeps of how the lines of a table are read."""
    after = len(layout.rows[0]) - pixels.stop
    values = (is_gzip(path), pixels.joined, pixels.first, after, *_sides(shape))
    return f"{layout.delimiter}{' '.join(str(int(value)) for value in values)}".encode()


class PixelFetcher(StreamFetcher):
    """Reads rows of pixels as image files."""

    def fetch(
        self,
        rows: Sequence[Sample],
        files: Sequence[Sequence[Any]],
        limit: int,  # noqa: ARG002
    ) -> Iterator[tuple[int, bytes | Problem]]:
        """Yield for each row its index in `rows`, and its image or what is wrong with it."""
        with listed_files(self.roots, files) as table:
            for start, stop in _together(rows):
                first, last = rows[start], rows[stop - 1]
                root, (path, version) = self.roots[files[first.file][0]], table(first.file)
                span, opened = (first.offset, last.offset + last.size), None
                if first.key[1:2] == b"1":
                    opened = partial(open_gzip, path)
                with reading(path):
                    data = read_span(path, (str(root), path.name), span, version, opened)
                for index in range(start, stop):
                    row = rows[index]
                    begin = row.offset - first.offset
                    yield index, _as_image(data[begin : begin + row.size], row.key)


def _together(rows: Sequence[Sample]) -> Iterator[tuple[int, int]]:
    """Yield the ranges of rows whose lines follow each other in a file."""
    start = 0
    for stop in range(1, len(rows) + 1):
        last, following = rows[stop - 1], rows[stop : stop + 1]
        end = last.offset + last.size
        adjacent = [(row.file, row.offset) for row in following] == [(last.file, end)]
        if not adjacent or end - rows[start].offset > _AT_ONCE:
            yield start, stop
            start = stop


def _as_image(line: bytes, key: bytes) -> bytes | Problem:
    """Return the pixels of a line as an image file of 8 bits."""
    delimiter = key[:1].decode()
    _, joined, before, after, colours_first, *sides = map(int, key[1:].split())
    text = line.decode("latin-1")
    fields = _fields(text, delimiter)
    fields = fields[before : len(fields) - after]
    fields = fields[0].split() if joined else fields
    height, width, channels = sides
    if len(fields) != math.prod(sides):
        return Problem(UNREADABLE, f"has {len(fields)} pixels, expected {math.prod(sides)}")
    try:
        pixels = bytes(map(int, fields))
    except ValueError:
        wrong = next((n for n, field in enumerate(fields) if _pixel(field) is None), None)
        if wrong is not None:
            return Problem(
                UNREADABLE,
                f"pixel {wrong} is '{fields[wrong][:20]}', expected a whole number from 0 to 255; "
                "of other values make arrays, with numpy.savez, and ingest that .npz file",
            )
        pixels = bytes(_pixel(field) or 0 for field in fields)
    if colours_first:
        turned = np.frombuffer(pixels, np.uint8).reshape(channels, height, width)
        pixels = np.moveaxis(turned, 0, -1).tobytes()
    return b"P%d %d %d 255\n" % (5 + (channels > 1), width, height) + pixels


def _pixel(text: str) -> int | None:
    """Return the whole number of 8 bits that a text is, such as `7` or `7.0`; else None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return int(value) if value in range(256) else None
