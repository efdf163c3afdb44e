"""Parquet tables, with page checksums; the only module that knows pyarrow.

A part is written aside and renamed; the disk may have it later, since one that is torn is
noticed. Its schema metadata says which plan it belongs to and the digest of its rows, so a part
explains itself: a resumed run needs no list of what is done.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv
import pyarrow.parquet as pq

from pipeline.core.errors import DamagedError, RemoteError, SchemaError, SourceError, StoreError
from pipeline.core.paths import ABSENT, is_remote, shown
from pipeline.storage.atomic import replaced
from pipeline.storage.blobs import open_binary, read_bytes

_PREFIX = "pixsim."
_FEW_ROWS = 8192  # of a table whose first rows are looked for


def part_name(index: int) -> str:
    return f"part-{index:06d}.parquet"


def dictionary(codes: npt.NDArray[Any], names: Sequence[str]) -> pa.Array:
    """Return a column of `names[code]`, null where the code is negative."""
    indices = nullable(codes.astype(np.int32), codes < 0)
    return pa.DictionaryArray.from_arrays(indices, _texts(names))


def emptied(column: Any, missing: npt.NDArray[np.bool_]) -> Any:
    """Return a column of a table, null where `missing`."""
    return pc.if_else(_flags(missing), pa.scalar(None, column.type), column)


def fixed_bytes(values: npt.NDArray[np.void]) -> pa.Array:
    """Return a column of byte strings of one width, without a Python object for each."""
    width = values.dtype.itemsize
    buffer = pa.py_buffer(np.ascontiguousarray(values))
    return pa.Array.from_buffers(pa.binary(width), len(values), [None, buffer])


def nullable(values: npt.NDArray[Any], missing: npt.NDArray[np.bool_]) -> pa.Array:
    """Return a column of numbers that is null where `missing`."""
    there = pa.py_buffer(np.packbits(~missing, bitorder="little")) if missing.any() else None
    data = pa.py_buffer(np.ascontiguousarray(values))
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [there, data])


def _flags(values: npt.NDArray[np.bool_]) -> pa.Array:
    bits = pa.py_buffer(np.packbits(values, bitorder="little"))
    return pa.Array.from_buffers(pa.bool_(), len(values), [None, bits])


def _texts(names: Sequence[str]) -> pa.Array:
    """Return a column of texts, made of buffers: `pa.array` would import pandas to look at it."""
    encoded = [name.encode() for name in names]
    ends = np.cumsum([0, *map(len, encoded)], dtype=np.int32)
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(b"".join(encoded))]
    return pa.Array.from_buffers(pa.string(), len(encoded), buffers)


def _column(values: Any) -> Any:
    """Return NumPy's numbers, and a list of texts, as a column; other things as they are."""
    if isinstance(values, list) and all(type(value) is str for value in values):
        return _texts(values)
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "iuf":
        return values
    return nullable(values, np.zeros(len(values), bool))


def write_part(path: Path, columns: Mapping[str, Any], notes: Mapping[str, str]) -> None:
    """Write a table, whole or not at all, with `notes` in its schema's metadata."""
    table = pa.table({name: _column(values) for name, values in columns.items()})
    table = table.replace_schema_metadata({_PREFIX + key: text for key, text in notes.items()})
    with replaced(path, lasting=False) as aside:
        pq.write_table(table, aside, **_settings(table.schema))


@contextmanager
def _opened(path: Path, whole: bool = True) -> Iterator[Any]:
    """Open a table with checksums verified; whatever is wrong with it is a `DamagedError`.

    `whole` says that most of it will be read.
    """
    try:
        source: Any = path
        if is_remote(path):
            source = pa.BufferReader(read_bytes(path)) if whole else open_binary(path)
        with pq.ParquetFile(source, page_checksum_verification=True) as file:
            yield file
    except RemoteError:
        raise
    except (OSError, pa.ArrowException, UnicodeDecodeError, OverflowError) as error:
        raise DamagedError(f"{path}: cannot be read ({error}); run the job again") from error


def read_notes(path: Path) -> dict[str, str]:
    """Return the notes of a part, or nothing where it is missing or torn."""
    try:
        return read_end(path)[1]
    except DamagedError:
        return {}


def read_end(path: Path) -> tuple[int, dict[str, str]]:
    """Return how many rows a part has, and its notes; nothing but its end is read."""
    with _opened(path, whole=False) as file:
        return file.metadata.num_rows, _notes(file)


def _notes(file: Any) -> dict[str, str]:
    texts = {k.decode(): v.decode() for k, v in (file.schema_arrow.metadata or {}).items()}
    return {k.removeprefix(_PREFIX): v for k, v in texts.items() if k.startswith(_PREFIX)}


def read_part(path: Path, columns: Sequence[str] | None = None) -> dict[str, npt.NDArray[Any]]:
    """Read columns of a part, checksums verified; dictionary columns as their codes.

    Null is -1 in codes and integers, NaN in floats. A part that is missing, torn, or fails a
    checksum is a `DamagedError`.
    """
    return read_with_notes(path, columns)[0]


def read_with_notes(
    path: Path, columns: Sequence[str] | None = None
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
    """Return columns of a part, see `read_part`, and its notes."""
    with _opened(path) as file:
        # one of several threads that read: those of pyarrow would wait for each other
        table = file.read(columns=None if columns is None else list(columns), use_threads=False)
        notes = _notes(file)
    missing = set(columns or ()) - set(table.column_names)
    if missing:
        raise DamagedError(f"{path}: has no column {', '.join(sorted(missing))}; run the job again")
    return {name: _plain(_whole(table.column(name))) for name in table.column_names}, notes


def _whole(column: Any) -> Any:
    """Return a column of a table in one piece where it can be; pandas is asked for an empty one."""
    return column.combine_chunks() if column.num_chunks else pa.nulls(0, column.type)


def _plain(column: Any) -> npt.NDArray[Any]:
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks) if column.num_chunks else column.combine_chunks()
    if pa.types.is_dictionary(column.type):
        column = column.indices
    if pa.types.is_fixed_size_binary(column.type):
        width = column.type.byte_width
        values = np.frombuffer(column.buffers()[1], f"V{width}")
        return values[column.offset : column.offset + len(column)]
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        return _numbers(column)
    return np.asarray(column.to_numpy(zero_copy_only=False))


def _numbers(column: Any) -> npt.NDArray[Any]:
    """Return a column of numbers, null as -1 or NaN, from its buffers: without pandas."""
    dtype = np.dtype(column.type.to_pandas_dtype())
    if not len(column):
        return np.empty(0, dtype)
    there, data = column.buffers()
    part = slice(column.offset, column.offset + len(column))
    values = np.frombuffer(data, dtype, part.stop)[part]
    if not column.null_count:
        return values
    known = np.unpackbits(np.frombuffer(there, np.uint8), bitorder="little")[part].view(bool)
    return np.where(known, values, dtype.type(-1 if dtype.kind == "i" else np.nan))


def read_rows(path: Path, at: Sequence[int] | None = None) -> list[dict[str, Any]]:
    """Read rows of a part (default: all) as plain values; for the few that a person looks at."""
    with _opened(path) as file:
        table = file.read()
        return list((table if at is None else table.take(pa.array(at, pa.int64()))).to_pylist())


def empty_frame(path: Path) -> Any:
    """Return a pandas data frame with the columns of a part and no rows; its end is read."""
    with _opened(path, whole=False) as file:
        return file.schema_arrow.empty_table().to_pandas()


def read_frame(path: Path, sha256: str, columns: Sequence[str] | None = None) -> Any:
    """Read columns (default: all) of a part as a pandas data frame.

    It is a `DamagedError` where any byte differs from what was written: `sha256` is that of the
    file, in hex, so equal names of dask's mean equal content.
    """
    cure = "'pixsim verify' with --repair makes it again"
    try:
        data = read_bytes(path)
    except ABSENT as error:
        raise DamagedError(f"{path}: cannot be read ({error}); {cure}") from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise DamagedError(f"{path}: was changed after it was written; {cure}")
    with pq.ParquetFile(pa.BufferReader(data)) as file:
        return file.read(columns=None if columns is None else list(columns)).to_pandas()


@dataclass(frozen=True)
class TableRows:
    """Some rows of a table, by column."""

    table: Any

    def where(self, wanted: npt.NDArray[np.bool_]) -> TableRows:
        """Return those rows that are wanted, [row]."""
        return TableRows(self.table.filter(_flags(wanted)))

    def texts(self, name: str) -> npt.NDArray[Any]:
        """Return a column of texts, [row], null as None."""
        column = self.table.column(name)
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        return np.array(column.to_pylist(), object)

    def integers(self, name: str) -> npt.NDArray[np.int64]:
        """Return a column of integers, [row], null as -1."""
        return np.asarray(_plain(_whole(self.table.column(name))), np.int64)

    def kind(self, name: str) -> str:
        """Return `text`, `integer` or `boolean`, or the name of another type."""
        kind = self.table.schema.field(name).type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            return "text"
        if pa.types.is_integer(kind):
            return "integer"
        return "boolean" if pa.types.is_boolean(kind) else str(kind)

    def coded(self, name: str) -> tuple[npt.NDArray[np.int32], list[str]]:
        """Return a column of texts as codes, [row], null as -1, and the texts."""
        column = _whole(self.table.column(name))
        if isinstance(column, pa.ChunkedArray):
            column = pa.concat_arrays(column.chunks)
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        column = column.cast(pa.string()).dictionary_encode()
        return _plain(column).astype(np.int32), column.dictionary.to_pylist()

    def floats(self, name: str) -> npt.NDArray[np.float64]:
        """Return a column of numbers, [row], null as NaN."""
        return np.asarray(_plain(_whole(self.table.column(name))), np.float64)

    def fixed(self, name: str) -> npt.NDArray[np.void]:
        """Return a column of byte strings of one width, [row]; null as zeros."""
        column = _whole(self.table.column(name))
        if column.null_count:
            column = column.fill_null(bytes(column.type.byte_width))
        return _plain(column)


def read_groups(path: Path, columns: Sequence[str] | None = None) -> Iterator[TableRows]:
    """Read a table group by group of rows, checksums verified."""
    with _opened(path) as file:
        for number in range(file.num_row_groups):
            yield TableRows(file.read_row_group(number, None if columns is None else list(columns)))


def read_given(path: Path) -> TableRows:
    """Read a table that somebody made: Parquet, or CSV with a header, by its suffix.

    Texts are texts in CSV, also where they look like numbers or like nothing.

    Raises
    ------
    SourceError
        Where it is missing or cannot be read, or is neither.
    """
    suffix = path.suffix.lower()
    if suffix not in (".parquet", ".csv"):
        raise SourceError(f"{shown(path)}: expected a table in a file .parquet or .csv")
    try:
        file = pa.BufferReader(read_bytes(path))
        if suffix == ".parquet":
            return TableRows(pq.read_table(file, page_checksum_verification=True))
        texts = pcsv.ConvertOptions(column_types={"split": pa.string(), "reason": pa.string()})
        return TableRows(pcsv.read_csv(file, convert_options=texts))
    except ABSENT:
        raise SourceError(f"{shown(path)}: no such file, expected a table") from None
    except RemoteError:
        raise
    except (OSError, pa.ArrowException) as error:
        cure = "write it again, or as the other of Parquet and CSV"
        raise SourceError(f"{shown(path)}: cannot be read ({error}); {cure}") from error


def take_given(table: Any) -> TableRows:
    """Return a table in memory: of pandas, Arrow or polars, or a mapping of columns."""
    try:
        return TableRows(pa.table(table))
    except (TypeError, ValueError, pa.ArrowException) as error:
        raise SchemaError(
            f"a table of type {type(table).__name__} ({error}), expected a data frame, an Arrow "
            "table or a mapping of columns; or the path of a file"
        ) from error


def first_rows(
    path: Path, most: int, wanted: Callable[[TableRows], npt.NDArray[np.bool_]]
) -> list[dict[str, Any]]:
    """Read the first rows of a part that are wanted, as plain values.

    No more of it is decoded than it takes to find so many: of a table that is sorted a person looks
    at the beginning.
    """
    found: list[dict[str, Any]] = []
    with _opened(path) as file:
        for batch in file.iter_batches(_FEW_ROWS):
            rows = TableRows(pa.Table.from_batches([batch]))
            found += rows.where(wanted(rows)).table.slice(0, most - len(found)).to_pylist()
            if len(found) >= most:
                break
    return found


def merge_parts(path: Path, parts: Iterable[Path]) -> int:
    """Write the rows of all parts, in order, as one table; return how many there are."""
    return join(path, ((part, None) for part in parts))


def join(
    path: Path, parts: Iterable[tuple[Path, Callable[[TableRows], Mapping[str, Any]] | None]]
) -> int:
    """Write the rows of several tables as one, group by group; return how many there are.

    `path` may be one of those that are read. Beside each table stands what gives new columns of its
    rows in place of those of the same name, or None.
    """
    writer: pq.ParquetWriter | None = None
    count = 0
    with replaced(path) as aside:
        try:
            for part, change in parts:
                for rows in read_groups(part):
                    table = rows.table.replace_schema_metadata(None)
                    for name, values in ({} if change is None else change(rows)).items():
                        table = table.set_column(table.column_names.index(name), name, values)
                    if writer is None:
                        writer = pq.ParquetWriter(aside, table.schema, **_settings(table.schema))
                    writer.write_table(table.cast(writer.schema))
                    count += table.num_rows
        finally:
            if writer is not None:
                writer.close()
        if writer is None:
            raise StoreError(f"{path}: there is no part to merge")
    return count


def _settings(schema: Any) -> dict[str, Any]:
    """Return how tables are written; numbers are written faster, and smaller, as they are."""
    number = (pa.types.is_integer, pa.types.is_floating)
    texts = [field.name for field in schema if not any(is_(field.type) for is_ in number)]
    return {
        "compression": "zstd",
        "use_dictionary": texts,
        "write_statistics": False,  # no checksum covers them
        "write_page_checksum": True,
    }
