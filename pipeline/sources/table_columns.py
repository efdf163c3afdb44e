"""Columns of tables that describe images: which one it is, and its labels and names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.core.errors import (
    ConfigError,
    LabelError,
    PixsimError,
    SourceError,
    nearest,
    one_line,
)
from pipeline.core.errors import listed as listed
from pipeline.core.paths import is_remote, shown
from pipeline.core.schema import UNLABELLED
from pipeline.sources.fetch import failed
from pipeline.sources.labels import canonical, decoded_text
from pipeline.storage.blobs import open_binary

# Usual names, the likeliest first; compared as `plain` makes them.
LABEL_COLUMNS = (
    "label", "class", "class_name", "target", "category",
    "labels", "classes", "label_name", "category_name", "target_name", "class_label",
    "class_id", "label_id", "category_id", "target_id", "class_idx", "label_idx", "class_index",
)  # fmt: skip
SPLIT_COLUMNS = ("split", "set", "subset")
_IS_NAME, _IS_CODE = re.compile(r"name$"), re.compile(r"(id|idx|index)$")
MOST_SHOWN = 12
Columns = Mapping[str, str | None]


def plain(name: str) -> str:
    """Return what names of columns are compared by: without case, blanks, `_`, `-` and `.`."""
    return re.sub(r"[\s_.-]+", "", name).casefold()


def candidates(names: Sequence[str], usual: Sequence[str]) -> list[str]:
    """Return the columns with usual names: first those spelled so, in the order of the usual."""
    alike = [name for text in usual for name in names if plain(name) == plain(text)]
    return list(dict.fromkeys([*(text for text in usual if text in names), *alike]))


def choose(
    role: str, names: Sequence[str], usual: Sequence[str], wanted: Columns | None, title: str
) -> str | None:
    """Return the column of a role: the one wanted, else the first of the usual names, else None.

    Raises `ConfigError` where the column wanted is not there, or there are two of its name.
    """
    if wanted is not None and role in wanted:
        name = wanted[role]
        if name is None:
            return None
        same = [column for column in names if column == name]
        same = same or [column for column in names if plain(column) == plain(name)]
        if not same:
            known = nearest(name, names[:MOST_SHOWN])
            raise ConfigError(f"{title}: has no column '{name}' for the {role}; {known}")
    else:
        first = next(iter(candidates(names, usual)), None)
        if first is None:
            return None
        compared = (lambda text: text) if first in usual else plain
        same = [column for column in names if compared(column) == compared(first)]
    if len(same) > len(set(same)) == 1:
        raise ConfigError(f"{title}: has {len(same)} columns '{same[0]}'; rename them")
    if len(same) > 1:
        raise ConfigError(
            f"{title}: has {len(same)} columns for the {role}, {listed(same)}; say which one, such "
            f"as columns: {{{role}: {same[0]}}}"
        )
    return same[0]


def no_label(title: str, names: Sequence[str], likeliest: str) -> ConfigError:
    """Return the error of a table none of whose columns is known to hold the labels."""
    return ConfigError(
        f"{title}: has no column {listed(LABEL_COLUMNS)}, but {listed(names)}; say which one holds "
        f"the labels, such as columns: {{label: {likeliest}}}, or that none does with "
        "columns: {label: null}"
    )


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open a Parquet file with checksums verified; `SourceError` says what is wrong with it."""
    try:
        with open_parquet(path) as file:
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


def open_parquet(path: Path) -> Any:
    """Return an opened Parquet file, read as little at once as can be."""
    file = open_binary(path) if is_remote(path) else path
    return pq.ParquetFile(file, page_checksum_verification=True, buffer_size=2**20)


def labels_of(column: Any, title: str, first: int = 0) -> Any:
    """Return labels as int64 where they are whole numbers, else as text; null stays null.

    They may have any form that `labels.canonical` knows; the first is numbered `first`.
    """
    column = _plain(column)
    kind = column.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        try:
            return pc.if_else(pc.is_nan(column), pa.scalar(None, kind), column).cast(pa.int64())
        except pa.ArrowInvalid:
            pass
    elif pa.types.is_null(kind) or pa.types.is_boolean(kind):
        return column.cast(pa.string())
    elif _is_text(kind):
        return texts_of(column, title)
    values = pa.array(canonical(column.to_pylist(), title, first))
    none = UNLABELLED if pa.types.is_integer(values.type) else ""
    return pc.if_else(pc.equal(values, none), pa.scalar(None, values.type), values)


def texts_of(column: Any, title: str) -> Any:
    """Return a column of texts as such; `SourceError` where it holds others, or no UTF-8."""
    data = bytes_of(column, title)
    try:
        return data.cast(pa.string())
    except pa.ArrowInvalid:
        values = data.to_pylist()
        texts = [None if value is None else decoded_text(value, title) for value in values]
        return pa.array(texts, pa.string())


def bytes_of(column: Any, title: str) -> Any:
    """Return a column of texts, or of numbers that are names, as bytes."""
    column = _plain(column)
    if pa.types.is_integer(column.type):
        column = column.cast(pa.string())
    if not _is_text(column.type) and not pa.types.is_null(column.type):
        raise SourceError(
            f"{title}: a column holds {column.type}, expected text; name another column"
        )
    return column.cast(pa.binary())


def _is_text(kind: Any) -> bool:
    types, views = pa.types, (pa.types.is_string_view, pa.types.is_binary_view)
    tests = (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary)
    return any(test(kind) for test in (*tests, *views, types.is_fixed_size_binary))


def _plain(column: Any) -> Any:
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


@dataclass
class Agreement:
    """Checks that columns of labels beside the one that is taken do not contradict it.

    A label goes with one value of the other column; where one of both holds codes and the other
    names, also the other way round.
    """

    title: str
    label: str
    _known: dict[str, tuple[dict[Any, Any], dict[Any, Any]]] = field(default_factory=dict)

    def add(self, labels: Any, other: str, column: Any) -> None:
        """Look at the labels of some rows and what the other column has there."""
        try:
            values = labels_of(column, self.title)
        except PixsimError as error:
            raise LabelError(f"{error}; {self._cure()}") from None
        pairs = pa.table({"label": labels, "other": values}).group_by(["label", "other"])
        forward, backward = self._known.setdefault(other, ({}, {}))
        for pair in pairs.aggregate([]).drop_null().to_pylist():
            label, value = pair["label"], pair["other"]
            self._require(forward, label, value, self.label, other)
            if _are_codes_and_names(self.label, other):
                self._require(backward, value, label, other, self.label)

    def _require(
        self, known: dict[Any, Any], value: Any, expected: Any, column: str, other: str
    ) -> None:
        if known.setdefault(value, expected) != expected:
            raise LabelError(
                f"{self.title}: '{value}' of column '{column}' goes with '{known[value]}' and with "
                f"'{expected}' of column '{other}', both of which may be the labels; "
                + self._cure()
            )

    def _cure(self) -> str:
        return f"say which column holds the labels, such as columns: {{label: {self.label}}}"


def _are_codes_and_names(one: str, other: str) -> bool:
    names = [bool(_IS_NAME.search(plain(name))) for name in (one, other)]
    codes = [bool(_IS_CODE.search(plain(name))) for name in (one, other)]
    return names[0] != names[1] or any(codes)
