"""Lists of image files: CSV or Parquet tables with a path, a label and perhaps a split.

Paths are relative to the list's folder, or to a root that the job gives. A list of this machine
may name any file of it, and URLs. One from elsewhere may not reach into this machine: it may only
name files below its own place, and URLs of object stores and web servers.
"""

from __future__ import annotations

import csv
import io
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.csv as pa_csv

from pipeline.errors import ConfigError, PixsimError, SourceError
from pipeline.places import is_remote, open_binary
from pipeline.sources import OK, UNREADABLE
from pipeline.sources.columns import (
    LABEL_COLUMNS,
    SPLIT_COLUMNS,
    bytes_of,
    choose,
    labels_of,
    opened,
    texts_of,
)
from pipeline.sources.fetch import FileFetcher, failed, not_regular, stamp_of, titles_of, unreadable
from pipeline.sources.layout import as_text, flattened
from pipeline.sources.listing import ROWS_PER_GROUP, File, Notes, make_rows
from pipeline.sources.parquet import parted
from pipeline.urls import shown

PATH_COLUMNS = ("path", "file", "filename", "file_name", "name", "image")
_PROTOCOLS = (
    "http", "https", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf", "memory",
)  # fmt: skip
_BLOCK_BYTES = 2**22
_HEADER_BYTES = 2**16
_DELIMITERS = ",\t;"


class _Row(NamedTuple):
    """What the listing says of one entry."""

    origin: str
    key: bytes
    size: int = -1
    stamp: str = ""
    status: int = OK
    detail: str | None = None


class _Columns(NamedTuple):
    path: str
    label: str | None
    split: str | None

    @property
    def names(self) -> list[str]:
        return [name for name in dict.fromkeys(self) if name]


@dataclass(frozen=True)
class ListReader:
    """Lists the files that tables name.

    Attributes
    ----------
    places
        For each split its tables; those of None say their split by name, or by a column.
    columns
        The names of the columns `path`, `label` and `split`, where they are not the usual ones.
    root
        What paths are relative to; None: the folder of the table.
    split
        The split of what does not say any.
    """

    places: Mapping[str | None, Sequence[Path]]
    columns: Mapping[str, str] = field(default_factory=dict)
    root: Path | None = None
    split: str = "train"
    kind = "list"

    @property
    def _tables(self) -> list[tuple[str, bool, Path]]:
        return list(flattened(self.places, self.split))

    @property
    def title(self) -> str:
        return titles_of(self.places)

    def fetcher(self) -> FileFetcher:
        return FileFetcher(tuple(self.root or path.parent for _, _, path in self._tables))

    def batches(self, notes: Notes) -> Iterator[tuple[str, Any]]:
        """Yield the rows of the tables in their order.

        Raises
        ------
        SourceError
            Where a table cannot be read.
        ConfigError
            Where a column that was named is not there, or none names files.
        """
        for number, (split, given, path) in enumerate(self._tables):
            notes.files.append(File(number, "", f"{path.name} {stamp_of(path)[1]}"))
            check = _Checker(self.root or path.parent, trusted=not is_remote(path))
            for columns, table in self._read(path):
                title = shown(path)
                names = bytes_of(table[columns.path], title).to_pylist()
                found = zip(*(check.row(name) for name in names), strict=True)
                values = dict(zip(_Row._fields, map(list, found), strict=True))
                label = labels_of(table[columns.label], title) if columns.label else None
                rows = make_rows(len(names), file=number, label=label, **values)
                by_row = columns.split if not given else None
                yield from parted(rows, texts_of(table[by_row], title) if by_row else None, split)

    def _read(self, path: Path) -> Iterator[tuple[_Columns, Any]]:
        """Yield the columns that matter, batch by batch."""
        tables = self._parquet(path) if path.suffix.lower() == ".parquet" else self._csv(path)
        for columns, batch in tables:
            for start in range(0, batch.num_rows, ROWS_PER_GROUP):
                yield columns, batch.slice(start, ROWS_PER_GROUP)

    def _chosen(self, names: Sequence[str], title: str) -> _Columns:
        wanted = dict(self.columns)
        if "image" in wanted:
            wanted.setdefault("path", wanted["image"])
        path = choose("path", names, PATH_COLUMNS, wanted, title)
        if path is None:
            raise ConfigError(
                f"{title}: has no column {', '.join(PATH_COLUMNS)}, but {', '.join(names)}; say "
                "which one names the files with columns"
            )
        return _Columns(
            path,
            choose("label", names, LABEL_COLUMNS, wanted, title),
            choose("split", names, SPLIT_COLUMNS, wanted, title),
        )

    def _parquet(self, path: Path) -> Iterator[tuple[_Columns, Any]]:
        with opened(path) as file:
            columns = self._chosen(file.schema_arrow.names, shown(path))
            for batch in file.iter_batches(
                ROWS_PER_GROUP, columns=columns.names, use_threads=False
            ):
                yield columns, batch

    def _csv(self, path: Path) -> Iterator[tuple[_Columns, Any]]:
        title = shown(path)
        names, delimiter = _header(path)
        columns = self._chosen(names, title)
        try:
            with open_binary(path) as file, _csv_batches(file, columns, delimiter) as batches:
                for batch in batches:
                    yield columns, batch
        except pa.ArrowException as error:
            raise SourceError(f"{title}: is no proper CSV table ({error}); correct it") from None
        except OSError as error:
            raise error if isinstance(error, PixsimError) else failed(path, error) from None


def list_reader(
    places: Mapping[str | None, Sequence[Path]],
    columns: Mapping[str, str] | None = None,
    root: Path | None = None,
    split: str = "train",
) -> ListReader:
    """Return a reader of lists of image files.

    Parameters
    ----------
    places
        For each split its tables; those of None say their split by name, or by a column.
    columns
        The names of the columns `path`, `label` and `split`; default: the usual ones.
    root
        What paths are relative to; default: the folder of each table.
    split
        The split of what does not say any.
    """
    return ListReader(dict(places), dict(columns or {}), root, split)


def _header(path: Path) -> tuple[list[str], str]:
    """Return the column names and the delimiter of a CSV table."""
    try:
        with open_binary(path) as file:
            start = file.read(_HEADER_BYTES)
    except PixsimError:
        raise
    except Exception as error:  # each file system has its own kinds
        raise failed(path, error) from None
    line = start.partition(b"\n")[0].decode("utf-8-sig", "backslashreplace").rstrip("\r")
    delimiter = max(_DELIMITERS, key=line.count)
    names = next(csv.reader(io.StringIO(line), delimiter=delimiter), [])
    if not names:
        raise SourceError(f"{shown(path)}: is empty, expected a CSV table with column names")
    return names, delimiter


def _csv_batches(file: Any, columns: _Columns, delimiter: str) -> Any:
    """Return the batches of a CSV table; everything as bytes, since names may be no UTF-8."""
    return pa_csv.open_csv(
        file,
        read_options=pa_csv.ReadOptions(block_size=_BLOCK_BYTES, use_threads=False),
        parse_options=pa_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=pa_csv.ConvertOptions(
            include_columns=columns.names,
            column_types={name: pa.binary() for name in columns.names},
            null_values=[""],
            strings_can_be_null=True,
        ),
    )


class _Checker:
    """Says of each entry of a list what it names, and refuses what it must not name."""

    def __init__(self, root: Path, trusted: bool) -> None:
        self._trusted = trusted
        self._remote = is_remote(root)
        self._root = b"" if self._remote else os.fsencode(root)

    def row(self, name: bytes | None) -> _Row:
        """Return what the listing says of an entry."""
        if not name:
            return _Row("", b"", status=UNREADABLE, detail="has no path")
        if name.startswith(b"file://") and self._trusted:
            name = name.removeprefix(b"file://")
        text = as_text(name)
        refused = self._refused(text, name)
        if refused:
            return _Row(shown(text), b"", status=UNREADABLE, detail=refused)
        if "://" in text or (self._remote and not text.startswith("/")):
            return _Row(shown(text), name)
        return self._stat(text, name)

    def _refused(self, text: str, name: bytes) -> str | None:
        protocol, found, _ = text.partition("://")
        if found:
            if protocol.lower() in _PROTOCOLS and "::" not in text:
                return None
            return f"is a URL of kind {protocol!r}, expected {', '.join(_PROTOCOLS)}"
        if b"\0" in name:
            return "is no path: it holds a NUL"
        leads_out = text.startswith("/") or ".." in text.split("/")
        if leads_out and not (self._trusted and (text.startswith("/") or not self._remote)):
            return "leads out of the folder of the list, which a list from elsewhere must not"
        if not self._trusted and text.lower().startswith(("file:", "local:")):
            return "names a local file, which a list from elsewhere must not"
        return None

    def _stat(self, text: str, name: bytes) -> _Row:
        try:
            status = os.stat(os.path.join(self._root, name))  # noqa: PTH116, PTH118 (bytes)
        except OSError as error:
            problem = unreadable(error)
            return _Row(text, name, status=problem.status, detail=problem.detail)
        stamp = f"{status.st_size} {status.st_mtime_ns}"
        if stat.S_ISREG(status.st_mode):
            return _Row(text, name, status.st_size, stamp)
        return _Row(text, name, -1, stamp, UNREADABLE, not_regular(status.st_mode).detail)
