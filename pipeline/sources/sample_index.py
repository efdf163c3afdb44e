"""The listing of a source: one row for each sample, in Parquet, a file for each split.

It is written once, while a reader walks its input, and read in ranges, so that memory does not
grow with the number of samples: not when a job is planned, and not in the tasks. What concerns
all rows (files, labels that occur, digest) is beside it in a small JSON.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.core.blocks import OK
from pipeline.core.digests import ColumnDigest
from pipeline.core.errors import DamagedError, LabelError
from pipeline.core.paths import is_remote
from pipeline.core.threads import OwnLock
from pipeline.sources.notes import Notes, counted
from pipeline.sources.open_cache import OpenCache
from pipeline.storage.atomic import read_json, storage_errors, write_json
from pipeline.storage.blobs import Version, open_binary, version_of

ROWS_PER_GROUP = 8192
MOST_LABELS = 1_000_000
INDEX = "listing.json"

# the fields of `Sample` but the last, in their order
SCHEMA = pa.schema(
    [
        ("origin", pa.string()),
        ("file", pa.int32()),
        ("key", pa.binary()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("label", pa.string()),
        ("status", pa.int8()),
        ("detail", pa.string()),
    ]
)


class Sample(NamedTuple):
    """A row of a listing.

    `stamp`, what changes when its file does, goes into the digest and not to the disk.
    """

    origin: str = ""
    file: int = 0
    key: bytes = b""
    offset: int = 0
    size: int = -1
    label: str | None = None
    status: int = OK
    detail: str | None = None
    stamp: str = ""


def make_rows(count: int, **columns: Any) -> pa.Table:
    """Return `count` rows of a listing from lists, arrays or single values.

    What is left out is as in `Sample`; `label` may be of integers, which are codes, or of text.
    """
    arrays: dict[str, Any] = {}
    for spec in [*SCHEMA, pa.field("stamp", pa.string())]:
        value = columns.get(spec.name, Sample._field_defaults[spec.name])
        if isinstance(value, pa.Array):
            arrays[spec.name] = value if spec.name == "label" else value.cast(spec.type)
        elif isinstance(value, list):
            arrays[spec.name] = pa.array(value, spec.type)
        else:
            arrays[spec.name] = pa.repeat(pa.scalar(value, spec.type), count)
    return pa.table(arrays)


def columns_of(samples: Sequence[Sample]) -> dict[str, list[Any]]:
    """Return one or more samples as columns for `make_rows`."""
    return dict(zip(Sample._fields, map(list, zip(*samples, strict=True)), strict=True))


def parted(rows: Any, splits: Any, default: str) -> Iterator[tuple[str, Any]]:
    """Yield rows by split, in the order of first appearance; null and empty are the default."""
    if splits is None:
        yield default, rows
        return
    splits = pc.if_else(pc.equal(pc.fill_null(splits, ""), ""), default, splits)
    for split in pc.unique(splits).to_pylist():
        yield split, rows.filter(pc.equal(splits, split))


class ListingWriter:
    """Writes the listing of one source below a folder; memory holds a row group a split."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writers: dict[str, Any] = {}
        self._waiting: dict[str, list[Any]] = {}
        self._counts: Counter[str] = Counter()
        self._digests: dict[str, ColumnDigest] = {}
        self._labels: set[str] = set()
        self._labelled: set[str] = set()
        self._integers = True

    def add(self, split: str, rows: Any) -> None:
        """Append rows, as `make_rows` gives them, to a split.

        Raises
        ------
        LabelError
            Where there are more labels than a class of a set could be.
        """
        if not rows.num_rows:
            return
        rows = self._with_text(rows)
        labels = pc.unique(rows["label"].drop_null()).to_pylist()
        self._labels.update(labels)
        if any(labels):
            self._labelled.add(split)
        if len(self._labels) > MOST_LABELS:
            raise LabelError(
                f"more than {MOST_LABELS:,} different labels were found in split '{split}', such "
                f"as '{min(self._labels)}'; name the column of the labels"
            )
        digest = self._digests.setdefault(split, ColumnDigest())
        for name in rows.column_names:
            digest.update(_hashable(name, rows[name].combine_chunks()))
        self._counts[split] += rows.num_rows
        waiting = self._waiting.setdefault(split, [])
        waiting.append(rows.select(SCHEMA.names))
        if sum(table.num_rows for table in waiting) >= ROWS_PER_GROUP:
            self._write(split, complete_groups=True)

    def _with_text(self, rows: Any) -> Any:
        labels = rows["label"]
        if not pa.types.is_null(labels.type) and labels.null_count < len(labels):
            self._integers &= pa.types.is_integer(labels.type)
        return rows.set_column(rows.column_names.index("label"), "label", labels.cast(pa.string()))

    def _write(self, split: str, complete_groups: bool) -> None:
        """Write the waiting rows; only complete row groups, where more may come."""
        table = pa.concat_tables(self._waiting[split]).combine_chunks()
        count = table.num_rows
        count -= count % ROWS_PER_GROUP if complete_groups else 0
        if split not in self._writers:
            self._writers[split] = pq.ParquetWriter(
                self._folder / f"{len(self._writers)}.parquet",
                SCHEMA,
                compression="zstd",
                write_statistics=False,
                write_page_checksum=True,
            )
        self._writers[split].write_table(table.slice(0, count), row_group_size=ROWS_PER_GROUP)
        self._waiting[split] = [table.slice(count)]

    def finish(self, kind: str, notes: Notes) -> None:
        """Write what still waits, and last the index, without which there is no listing."""
        for split in self._counts:
            self._write(split, complete_groups=False)
        self.close()
        header = {"kind": kind, "files": [[item.name, item.stamp] for item in notes.files]}
        parts = {split: digest.result(header) for split, digest in self._digests.items()}
        content = {
            "splits": [[split, self._counts[split]] for split in self._writers],
            "files": [[item.root, item.name, item.stamp] for item in notes.files],
            "labels": sorted(self._labels),
            "integers": self._integers,
            "labels_are_text": notes.labels_are_text,
            "class_names": notes.class_names,
            "ignored": dict(sorted(notes.ignored.items())),
            "labels_from": notes.labels_from,
            "remarks": notes.remarks,
            "left_out": counted(notes),
            "unlabelled": notes.unlabelled,
            "unlabelled_splits": [split for split in self._writers if split not in self._labelled],
            "digests": parts,
        }
        write_json(self._folder / INDEX, content, indent=None)

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()


@contextmanager
def writing(folder: Path) -> Iterator[ListingWriter]:
    """Give a writer of a new listing below `folder`, and close its files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INDEX).unlink(missing_ok=True)
    writer = ListingWriter(folder)
    with storage_errors(folder):
        try:
            yield writer
        finally:
            writer.close()


def _hashable(name: str, column: Any) -> Mapping[str, npt.NDArray[Any]]:
    """Return the values of a column as arrays whose bytes, strung together, are unambiguous."""
    if pa.types.is_integer(column.type):
        return {name: column.to_numpy(zero_copy_only=False)}
    # null has length -1, so that it differs from empty
    lengths = pc.fill_null(pc.binary_length(column), -1)
    column = pc.fill_null(column.cast(pa.binary()), b"")
    _, offsets, data = column.buffers()
    ends = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1]
    content = np.frombuffer(b"" if data is None else data, np.uint8)[ends[0] : ends[-1]]
    return {
        f"{name}.length": lengths.to_numpy(zero_copy_only=False),
        f"{name}.content": content,
    }


# reading -----------------------------------------------------------------------------------------

_MOST_OPEN, _MOST_GROUPS = 16, 4
_reading = OwnLock()


def _close(opened: Any) -> None:
    if isinstance(opened, pq.ParquetFile):
        opened.close(force=True)


_opened: OpenCache[tuple[Path, str], Any] = OpenCache(_close, _MOST_OPEN)
# row groups as they were read: a task takes a few rows of one, and another task the next ones
_groups: OpenCache[tuple[Path, str, int], Any] = OpenCache(limit=_MOST_GROUPS)


def _open_table(path: Path) -> Any:
    file = open_binary(path) if is_remote(path) else path
    return pq.ParquetFile(file, page_checksum_verification=True)


def _read_group(file: Any, number: int) -> Any:
    return file.read_row_group(number, use_threads=False)


def _damaged(path: Path, error: Exception) -> DamagedError:
    return DamagedError(f"{path}: the listing cannot be read ({error}); run the job again")


def index(folder: Path) -> Mapping[str, Any]:
    """Return files, labels, counts and digests of a listing, or raise `DamagedError`."""
    return _index(folder)[0]


def _index(folder: Path) -> tuple[Mapping[str, Any], Version]:
    """Return the index of a listing, and its version: that of all files, since it comes last."""
    try:
        version = version_of(folder / INDEX)
        content = _opened.get((folder, INDEX), lambda: read_json(folder / INDEX), version)
    except (OSError, ValueError) as error:
        raise _damaged(folder / INDEX, error) from None
    return content, version


def read_rows(folder: Path, split: str, start: int, stop: int) -> list[Sample]:
    """Read rows `start` to `stop` of a split of a listing; only the row groups that overlap.

    Raises
    ------
    DamagedError
        Where the listing is missing, torn, or a page fails its checksum.
    """
    content, version = _index(folder)
    names = [name for name, _ in content["splits"]]
    path = folder / f"{names.index(split)}.parquet"
    if stop <= start:
        return []
    first = start // ROWS_PER_GROUP
    groups = range(first, (stop - 1) // ROWS_PER_GROUP + 1)
    try:
        version = version if is_remote(path) else version_of(path)
        with _reading.held():  # a file's reader is not for several threads at once
            file = _opened.get((folder, path.name), lambda: _open_table(path), version)
            parts = [
                _groups.get((folder, path.name, n), partial(_read_group, file, n), version)
                for n in groups
            ]
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path, error) from None
    table = pa.concat_tables(parts).slice(start - first * ROWS_PER_GROUP, stop - start)
    return [Sample(*row) for row in zip(*(table[n].to_pylist() for n in SCHEMA.names), strict=True)]


def close(folder: Path) -> None:
    """Close what reading the listing left open in this process."""
    with _reading.held():
        _opened.close(lambda key: key[0] == folder)
        _groups.close(lambda key: key[0] == folder)
