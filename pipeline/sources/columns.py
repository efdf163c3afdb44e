"""Columns of tables that describe images: which one it is, and its labels and names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import ConfigError, LabelError, PixsimError, SourceError
from pipeline.places import is_remote, open_binary
from pipeline.settings import nearest
from pipeline.sources.fetch import failed
from pipeline.sources.layout import as_text
from pipeline.urls import shown

LABEL_COLUMNS = ("label", "class", "class_name", "target", "category")
SPLIT_COLUMNS = ("split", "set", "subset")


def choose(
    role: str,
    names: Sequence[str],
    usual: Sequence[str],
    wanted: Mapping[str, str] | None,
    title: str,
) -> str | None:
    """Return the column of a role: the one wanted, else the first of the usual names, else None.

    Raises
    ------
    ConfigError
        Where the column wanted is not there, or there are two of its name.
    """
    column = (wanted or {}).get(role)
    if column is None:
        column = next((name for name in usual if name in names), None)
    if column is None:
        return None
    if names.count(column) > 1:
        raise ConfigError(f"{title}: has {names.count(column)} columns '{column}'; rename them")
    if column not in names:
        raise ConfigError(
            f"{title}: has no column '{column}' for the {role}; {nearest(column, names)}"
        )
    return column


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open a Parquet file with checksums verified; `SourceError` says what is wrong with it."""
    try:
        with open_parquet(path) as file:
            yield file
    except PixsimError:
        raise
    except pa.ArrowException as error:
        raise _no_parquet(path, error) from None
    except OSError as error:
        if error.errno is None and not is_remote(path):  # not of the system, but of pyarrow
            raise _no_parquet(path, error) from None
        raise failed(path, error) from None


def _no_parquet(path: Path, error: Exception) -> SourceError:
    reason = " ".join(str(error).split())
    return SourceError(
        f"{shown(path)}: cannot be read as Parquet ({reason}); correct the name, or fetch it again"
    )


def open_parquet(path: Path) -> Any:
    """Return an opened Parquet file, read as little at once as can be."""
    place = open_binary(path) if is_remote(path) else path
    return pq.ParquetFile(place, page_checksum_verification=True, buffer_size=2**20)


def labels_of(column: Any, title: str) -> Any:
    """Return labels as int64 where they are whole numbers, else as text; null stays null.

    Raises
    ------
    LabelError
        Where they are neither.
    """
    column = _plain(column)
    kind = column.type
    if pa.types.is_floating(kind):
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, kind), column)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        try:
            return column.cast(pa.int64())
        except pa.ArrowInvalid as error:
            raise LabelError(
                f"{title}: has labels that are no whole numbers ({error}); name another column"
            ) from None
    if pa.types.is_null(kind) or pa.types.is_boolean(kind):
        return column.cast(pa.string())
    return texts_of(column, title)


def texts_of(column: Any, title: str) -> Any:
    """Return a column of texts; bytes that are no UTF-8 are spelled out."""
    data = bytes_of(column, title)
    try:
        return data.cast(pa.string())
    except pa.ArrowInvalid:
        values = [None if value is None else as_text(value) for value in data.to_pylist()]
        return pa.array(values, pa.string())


def bytes_of(column: Any, title: str) -> Any:
    """Return a column of texts as bytes.

    Raises
    ------
    SourceError
        Where it holds no texts.
    """
    column = _plain(column)
    try:
        return column.cast(pa.binary())
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
        raise SourceError(
            f"{title}: a column holds {column.type}, expected text; name another column"
        ) from None


def _plain(column: Any) -> Any:
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
