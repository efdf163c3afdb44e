"""Parquet files that hold encoded images, as Hugging Face writes them.

A column of `{bytes, path}`, or of bytes, and a column of labels, whose class names stand in the
metadata. Only the labels are read when the samples are listed. Images are read row group by row
group, forward, from where the last reader stopped; page checksums are verified where there are.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.core.blocks import UNREADABLE, Problem
from pipeline.core.errors import PixsimError, SourceError, one_line
from pipeline.core.paths import is_remote, shown
from pipeline.sources.fetch import (
    StreamFetcher,
    Wanted,
    failed,
    listed_files,
    read_local,
    read_remote,
    reading,
    too_large,
)
from pipeline.sources.open_cache import borrowed
from pipeline.sources.sample_index import ROWS_PER_GROUP, Sample
from pipeline.sources.table_columns import (
    IMAGE_COLUMNS,
    SAMPLED_ROWS,
    Batch,
    Columns,
    Roles,
    Table,
    TableHead,
    choose,
    image_column,
    texts_of,
)
from pipeline.sources.table_folders import card_names, parquet_folders
from pipeline.sources.tables import Part, TableReader, is_text
from pipeline.storage.blobs import file_system, open_binary
from pipeline.storage.folders import is_folder

_ROWS_AT_ONCE = 1  # one page may stand for very many equal images


def holds_images(path: Path, columns: Columns | None = None) -> bool:
    """Tell whether a Parquet file holds encoded images, and not only their names.

    Raises
    ------
    SourceError
        Where it is no Parquet file.
    """
    with opened_parquet(path) as file:
        schema = file.schema_arrow
    name = choose("image", schema.names, IMAGE_COLUMNS, columns, shown(path))
    return name is not None and _is_encoded(schema.field(name).type)


@dataclass(frozen=True)
class ParquetReader(TableReader):
    """Lists the images that Parquet files hold; paths may be folders of such files."""

    kind = "parquet"
    suffixes = (".parquet",)

    def fetcher(self) -> ParquetFetcher:
        return ParquetFetcher(self._roots, self.columns.get("image"))

    def _inside(self, path: Path) -> Mapping[str | None, Path]:
        is_file = path.name.lower().endswith(self.suffixes) or not is_folder(path)
        return {} if is_file else parquet_folders(path)

    @functools.cached_property
    def _card(self) -> Mapping[str, tuple[str, ...]]:
        return card_names(self._tables[0][2])

    @contextmanager
    def _opened(self, path: Path) -> Iterator[Table]:
        with opened_parquet(path) as file:
            yield parquet_table(file, path, has_images=True, card=self._card)

    def _image(self, head: TableHead) -> str:
        return image_column(head, self.columns)

    def _located(
        self, part: Part, batches: Iterable[Batch]
    ) -> Iterator[tuple[Batch, Mapping[str, Any]]]:
        for batch in batches:
            count = batch.table.num_rows
            yield (
                batch,
                {
                    "origin": [f"{part.path.name}[{batch.first + n}]" for n in range(count)],
                    "key": b"%d" % batch.group,
                    "offset": list(range(batch.start, batch.start + count)),
                },
            )


# tables ------------------------------------------------------------------------------------------


@contextmanager
def opened_parquet(path: Path) -> Iterator[Any]:
    """Open a Parquet file with checksums verified; `SourceError` says what is wrong with it."""
    try:
        with _open_file(path) as file:
            yield file
    except PixsimError:
        raise
    except (pa.ArrowException, OSError) as error:
        of_pyarrow = isinstance(error, pa.ArrowException) or error.errno is None
        if isinstance(error, OSError) and (not of_pyarrow or is_remote(path)):
            raise failed(path, error) from None
        raise SourceError(
            f"{shown(path)}: cannot be read as Parquet ({one_line(error)}); correct the name, or "
            "fetch it again"
        ) from None


def _open_file(path: Path) -> Any:
    """Return an opened Parquet file, read as little at once as can be."""
    file = open_binary(path) if is_remote(path) else path
    return pq.ParquetFile(file, page_checksum_verification=True, buffer_size=2**20)


def parquet_table(
    file: Any,
    path: Path,
    has_images: bool = False,
    card: Mapping[str, tuple[str, ...]] | None = None,
) -> Table:
    """Return the table of an open Parquet file, which names image files or holds them.

    `card` has the class names of columns of which its own metadata do not say them.
    """
    schema = file.schema_arrow
    encoded = [field.name for field in schema if has_images and _is_encoded(field.type)]
    known = {name: _class_names(schema, name) for name in schema.names if has_images}
    if not any(known.values()):
        known = {name: names for name, names in (card or {}).items() if name in schema.names}
    class_names = {name: names for name, names in known.items() if names is not None}
    types = {field.name: field.type for field in schema}

    def first_rows() -> list[list[str]]:
        flat = [name for name in types if name not in encoded and _is_plain_value(types[name])]
        first = next(file.iter_batches(SAMPLED_ROWS, columns=flat, use_threads=False), None)
        return [] if first is None else texts_of(schema.names, first.to_pylist())

    head = TableHead(shown(path), schema.names, first_rows, "", encoded, types, class_names)

    def batches(roles: Roles) -> Iterator[Batch]:
        columns, first = roles.described if has_images else roles.read, 0
        for group in range(file.num_row_groups):
            start = 0
            for table in file.iter_batches(ROWS_PER_GROUP, [group], columns, use_threads=False):
                yield Batch(table, first, group, start)
                start, first = start + table.num_rows, first + table.num_rows

    return Table(head, batches)


def _is_encoded(kind: Any) -> bool:
    """Tell whether a column of a type may hold files of images: bytes, or a struct with such."""
    if pa.types.is_struct(kind):
        return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    return any(test(kind) for test in tests)


def _is_plain_value(kind: Any) -> bool:
    types = pa.types
    if types.is_dictionary(kind):
        return _is_plain_value(kind.value_type)
    tests = (is_text, types.is_integer, types.is_floating, types.is_boolean, types.is_null)
    return any(test(kind) for test in tests)


def _class_names(schema: Any, column: str) -> tuple[str, ...] | None:
    """Return the class names of a column, as Hugging Face keeps them."""
    try:
        content = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        feature = content["info"]["features"][column]
        names = feature["names"] if feature["_type"] == "ClassLabel" else None
    except (ValueError, KeyError, TypeError):
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    return tuple(names)


# fetching ----------------------------------------------------------------------------------------


class _Images:
    """The images of one row group, from the first on."""

    def __init__(self, path: Path, group: int, column: str | None) -> None:
        self._file = _open_file(path)
        name = column or choose("image", self._file.schema_arrow.names, IMAGE_COLUMNS, None, "")
        self._rows = self._file.iter_batches(_ROWS_AT_ONCE, [group], [name], use_threads=False)

    def take(self, skipped: int) -> Any:
        """Return the image after some that are skipped: bytes, a mapping, or None."""
        return next(itertools.islice(self._rows, skipped, None)).column(0)[0].as_py()

    def close(self) -> None:
        self._file.close(force=True)


@dataclass(frozen=True)
class ParquetFetcher(StreamFetcher):
    """Reads images out of row groups; `column` is that of the images, None: the usual one."""

    column: str | None = None

    def fetch(
        self, rows: Sequence[Sample], files: Sequence[Sequence[Any]], limit: int
    ) -> Iterator[tuple[int, bytes | Problem]]:
        """Yield for each row its index in `rows`, and its bytes or what is wrong with them."""
        with listed_files(self.roots, files) as table:
            for index, sample in enumerate(rows):
                root, group, row = self.roots[files[sample.file][0]], int(sample.key), sample.offset
                path, version = table(sample.file)
                images = functools.partial(_Images, path, group, self.column)
                with (
                    reading(path, functools.partial(_damaged, group, row)),
                    borrowed((str(root), path.name, group), row, images, version) as cursor,
                ):
                    value = cursor.stream.take(row - cursor.position)
                    cursor.position = row + 1
                yield index, _content(value, root, limit)


def _damaged(group: int, row: int, path: Path, error: Exception) -> SourceError:
    reason = str(error) or type(error).__name__
    return SourceError(
        f"{shown(path)}: row group {group} cannot be read at row {row} ({reason}); fetch the file "
        "again, and run the same command again"
    )


def _content(value: Any, root: Path, limit: int) -> bytes | Problem:
    """Return the bytes of an image, also where the file only names the file that holds them."""
    data, name = (
        (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    )
    if isinstance(data, bytes):
        return too_large(len(data), limit) if len(data) > limit else data
    if not name:
        return Problem(UNREADABLE, "is null, expected the bytes of an image")
    parts = str(name).split("/")
    if "://" in name or "::" in name or name.startswith("/") or ".." in parts:
        return Problem(UNREADABLE, f"names the file {name!r}, expected one beside the Parquet file")
    if is_remote(root):
        path = f"{cast(Any, root).path.rstrip('/')}/{name}"
        wanted = [Wanted(0, path, 0, -1)]
        return next(iter(read_remote(file_system(root), wanted, limit)))[1]
    return read_local(root, os.fsencode(root / name), limit)
