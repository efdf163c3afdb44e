"""Fetching encoded images out of Parquet files, a row group at a time."""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pipeline.core.blocks import UNREADABLE, Problem
from pipeline.core.errors import RemoteError, SourceError
from pipeline.core.paths import is_remote
from pipeline.core.urls import shown
from pipeline.sources.fetch import (
    Recorded,
    Wanted,
    read_local,
    read_remote,
    too_large,
)
from pipeline.sources.sample_index import Rows
from pipeline.sources.stream_pool import borrowed
from pipeline.sources.stream_pool import close as close_cursors
from pipeline.sources.table_columns import (
    choose,
    open_parquet,
)
from pipeline.storage.blobs import file_system

_ROWS_AT_ONCE = 1  # one page may stand for very many equal images


class _Images:
    """The images of one row group, from the first on."""

    def __init__(self, path: Path, group: int, column: str | None) -> None:
        self._file = open_parquet(path)
        name = column or choose("image", self._file.schema_arrow.names, IMAGE_COLUMNS, None, "")
        self._batches = self._file.iter_batches(_ROWS_AT_ONCE, [group], [name], use_threads=False)
        self._batch: Any = ()
        self._place = 0

    def skip(self, count: int) -> None:
        """Go forward by `count` images."""
        self._place += count
        while self._place > len(self._batch):
            self._next_batch()

    def take(self) -> Any:
        """Return the next image: bytes, a mapping, or None."""
        while self._place >= len(self._batch):
            self._next_batch()
        self._place += 1
        return self._batch[self._place - 1].as_py()

    def _next_batch(self) -> None:
        self._place -= len(self._batch)
        self._batch = next(self._batches).column(0)

    def close(self) -> None:
        self._file.close(force=True)


@dataclass(frozen=True)
class ParquetFetcher:
    """Reads images out of row groups, forward.

    Attributes
    ----------
    roots
        The folders of the files.
    column
        The column of the images; None: the usual one.
    """

    roots: tuple[Path, ...]
    column: str | None = None

    def fetch(
        self, rows: Rows, files: Sequence[Sequence[Any]], most: int
    ) -> Iterator[tuple[int, bytes | Problem]]:
        """Yield for each row its place in `rows`, and its bytes or what is wrong with them.

        Raises
        ------
        SourceError
            Where a file is gone, or a row group is damaged.
        """
        with ExitStack() as stack:
            tables = Recorded(self.roots, files, stack)
            for place, (file, key, row) in enumerate(
                zip(rows.file, rows.key, rows.offset, strict=True)
            ):
                root = self.roots[files[file][0]]
                path, version = tables.open(file)
                value = self._value(root, path, int(key), row, version)
                yield place, _content(value, root, most)

    def _value(self, root: Path, path: Path, group: int, row: int, version: Hashable) -> Any:
        key = (str(root), path.name, group)
        try:
            with borrowed(key, row, lambda: _Images(path, group, self.column), version) as cursor:
                cursor.stream.skip(row - cursor.place)
                value = cursor.stream.take()
                cursor.place = row + 1
                return value
        except RemoteError:
            raise
        except Exception as error:  # each file system has its own kinds
            reason = str(error) or type(error).__name__
            raise SourceError(
                f"{shown(path)}: row group {group} cannot be read at row {row} ({reason}); fetch "
                "the file again, and run the same command again"
            ) from None

    def close(self) -> None:
        """Close the row groups that are read forward."""
        close_cursors({str(root) for root in self.roots})


def _content(value: Any, root: Path, most: int) -> bytes | Problem:
    """Return the bytes of an image, also where the file only says where they are."""
    data, name = (
        (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    )
    if isinstance(data, bytes):
        return too_large(len(data), most) if len(data) > most else data
    if not name:
        return Problem(UNREADABLE, "is null, expected the bytes of an image")
    parts = str(name).split("/")
    if "://" in name or "::" in name or name.startswith("/") or ".." in parts:
        return Problem(UNREADABLE, f"names the file {name!r}, expected one beside the Parquet file")
    if is_remote(root):
        path = f"{cast(Any, root).path.rstrip('/')}/{name}"
        wanted = [Wanted(0, path, 0, -1)]
        return next(iter(read_remote(file_system(root), wanted, most)))[1]
    return read_local(root, os.fsencode(root / name), most)


IMAGE_COLUMNS = ("image", "img", "images", "img_bytes", "image_bytes", "image_data")
