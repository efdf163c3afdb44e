"""Tables that describe images, row by row: labels and splits of each, whatever kind of file it is.

A list names the files of images (`lists`), Parquet may hold them (`parquet`); all but the images
themselves is read in one way.
"""

from __future__ import annotations

import functools
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.errors import LabelError, PixsimError, SourceError, listed
from pipeline.core.schema import UNLABELLED
from pipeline.sources.fetch import describe, roots_of, titles_of
from pipeline.sources.file_names import flattened
from pipeline.sources.labels import canonical, decoded_text
from pipeline.sources.notes import File, Notes
from pipeline.sources.sample_index import make_rows, parted
from pipeline.sources.table_columns import (
    NO,
    YES,
    Batch,
    Columns,
    Roles,
    Table,
    TableHead,
    decide,
    has_labels,
    plain,
)

_MOST_REMARKS = 20
_IS_NAME, _IS_CODE = re.compile(r"name$"), re.compile(r"(id|idx|index)$")


class Part(NamedTuple):
    """One table of several; `remarks` takes what to report of it once it was read."""

    path: Path
    split: str
    split_given: bool
    roles: Roles
    remarks: list[str]


@dataclass(frozen=True)
class TableReader(ABC):
    """Lists the images that tables describe.

    `paths` are for each split its tables; those of None say their split by name, or by a column,
    else it is `split`. `columns` are the names of columns where they are not the usual ones, None
    where there is none.
    """

    paths: Mapping[str | None, Sequence[Path]]
    columns: Columns = field(default_factory=dict)
    split: str = "train"
    suffixes: ClassVar[Sequence[str]] = ()  # of the tables in a folder

    def __post_init__(self) -> None:
        _ = self._tables  # a folder without any is refused at once

    @property
    def title(self) -> str:
        return titles_of(self.paths)

    @abstractmethod
    def _opened(self, path: Path) -> AbstractContextManager[Table]:
        """Open a table, and read its beginning."""

    @abstractmethod
    def _image(self, head: TableHead) -> str:
        """Return the column of the images."""

    def _files(self) -> list[File]:
        """Return what the listing records of the tables."""
        return [describe(path, self._roots) for _, _, path in self._tables]

    @abstractmethod
    def _located(
        self, part: Part, batches: Iterable[Batch]
    ) -> Iterator[tuple[Batch, Mapping[str, Any]]]:
        """Yield each batch, and the columns of a listing that say where its images are."""

    @functools.cached_property
    def _tables(self) -> list[tuple[str, bool, Path]]:
        """The tables, each with its split, and whether that was given."""
        return list(flattened(self.inputs(), self.split, self.suffixes))

    @property
    def _roots(self) -> tuple[Path, ...]:
        """The folders of the tables, each once."""
        return roots_of(path for _, _, path in self._tables)

    def inputs(self) -> Mapping[str | None, Sequence[Path]]:
        """Return the tables of each split, or the folders that they lie in."""
        inputs: dict[str | None, list[Path]] = {}
        for given, several in self.paths.items():
            for path in several:
                for split, below in (self._inside(path) or {None: path}).items():
                    inputs.setdefault(given or split, []).append(below)
        return inputs

    def _inside(self, path: Path) -> Mapping[str | None, Path]:  # noqa: ARG002 (others do)
        """Return what stands for a folder, by split; None: for all. Empty: it is a table."""
        return {}

    @functools.cached_property
    def _labelled(self) -> frozenset[str]:
        """The columns of the tables that have labels."""
        labelled: set[str] = set()
        for _, _, path in self._tables:
            with self._opened(path) as table:
                if has_labels(table.head, self.columns):
                    labelled |= set(map(plain, table.head.names))
        return frozenset(labelled)

    def batches(self, notes: Notes) -> Iterator[tuple[str, Any]]:
        """Yield the rows of the tables in their order, by split.

        Raises
        ------
        SourceError
            Where a table is not there, or describes no images.
        ConfigError
            Where a column that was named is not there, or it is ambiguous what columns are.
        """
        remarks: list[str] = []
        notes.unlabelled = True
        notes.files += self._files()
        for number, (split, given, path) in enumerate(self._tables):
            with self._opened(path) as table:
                head, image = table.head, self._image(table.head)
                roles = decide(head, image, self.columns, given, lambda: self._labelled)
                remarks += [*table.remarks, *roles.remarks]
                labels = _Labels(head, roles, notes)
                batches = _with_splits(table.batches(roles), roles, head.title)
                part = Part(path, split, given, roles, remarks)
                for batch, columns in self._located(part, batches):
                    more = {"file": number, "label": labels.read(batch)}
                    rows = make_rows(batch.table.num_rows, **{**columns, **more})
                    yield from parted(rows, batch.splits, split)
        if notes.unlabelled:
            remarks.append(f"{self.title}: no column of labels, so these are images without")
        notes.remarks += remarks[:_MOST_REMARKS]
        if len(remarks) > _MOST_REMARKS:
            notes.remarks.append(f"and {len(remarks) - _MOST_REMARKS:,} more remarks on tables")


# labels ------------------------------------------------------------------------------------------


class _Labels:
    """Reads the labels of a table, and checks that its other columns of labels agree."""

    def __init__(self, head: TableHead, roles: Roles, notes: Notes) -> None:
        self._title, self._roles = head.title, roles
        self._agreement = _Agreement(head.title, roles.label or "")
        columns = roles.classes or [name for name in (roles.label,) if name is not None]
        if columns:
            notes.unlabelled = False
            notes.take_labels_from(columns)
        names = roles.classes or head.class_names.get(roles.label or "")
        if names is not None and notes.class_names not in (None, names):
            raise LabelError(
                f"{head.title}: has other class names than the tables before; ingest them apart, "
                "or give each the same ones in the same order"
            )
        notes.class_names = notes.class_names if names is None else names

    def read(self, batch: Batch) -> Any:
        """Return the labels of some rows, or None where there are none."""
        roles = self._roles
        if roles.classes:
            return _classes_of(batch, roles, self._title)
        if roles.label is None:
            return None
        labels = _labels_of(batch.table[roles.label], self._title, batch.first)
        for other in roles.others:
            self._agreement.add(labels, other, batch.table[other])
        return labels


def _labels_of(column: Any, title: str, first: int = 0) -> Any:
    """Return labels as int64 where they are whole numbers, else as text; null stays null.

    They may have any form that `labels.canonical` knows; the first is numbered `first`.
    """
    column = _undictionaried(column)
    kind = column.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        try:
            return pc.if_else(pc.is_nan(column), pa.scalar(None, kind), column).cast(pa.int64())
        except pa.ArrowInvalid:
            pass
    elif pa.types.is_null(kind) or pa.types.is_boolean(kind):
        return column.cast(pa.string())
    elif is_text(kind):
        return _texts_of(column, title)
    values = pa.array(canonical(column.to_pylist(), title, first))
    none = UNLABELLED if pa.types.is_integer(values.type) else ""
    return pc.if_else(pc.equal(values, none), pa.scalar(None, values.type), values)


def _classes_of(batch: Batch, roles: Roles, title: str) -> Any:
    """Return the label of each row of a table with a column for each class.

    Raises `LabelError` where a row has not a single 1; says which.
    """
    ones = np.zeros((batch.table.num_rows, len(roles.classes)), bool)
    for column, name in enumerate(roles.classes):
        texts = pc.fill_null(_texts_of(_spelled(batch.table[name]), title), "None")
        true, _, odd = _truths(texts)
        if odd is not None:
            raise LabelError(
                f"{title}: column '{name}' holds '{odd}', expected 0 or 1, as the columns "
                f"{listed(roles.classes)} stand for a class each; name the column of the labels, "
                f"such as columns: {{label: {name}}}"
            )
        ones[:, column] = true.to_numpy(zero_copy_only=False)
    counts = ones.sum(axis=1)
    if (counts != 1).any():
        at = int(np.argmax(counts != 1))
        raise LabelError(
            f"{title}: row {batch.first + at + 1} is of {counts[at]} of the classes "
            f"{listed(roles.classes)}: labels of several classes for an image (multi-label) cannot "
            "be used; leave a single 1 in each row, or take one column as the label, such as "
            f"columns: {{label: {roles.classes[0]}}}"
        )
    return pa.array(roles.classes).take(pa.array(ones.argmax(axis=1)))


@dataclass
class _Agreement:
    """Checks that columns of labels beside the one that is taken do not contradict it.

    A label goes with one value of the other column; where one of both holds codes and the other
    names, also the other way round.
    """

    title: str
    label: str
    _known: dict[tuple[str, str], dict[Any, Any]] = field(default_factory=dict)

    def add(self, labels: Any, other: str, column: Any) -> None:
        """Compare the labels of some rows with the values of another column."""
        try:
            values = _labels_of(column, self.title)
        except PixsimError as error:
            raise LabelError(f"{error}; {self._cure()}") from None
        pairs = pa.table({"label": labels, "other": values}).group_by(["label", "other"])
        for pair in pairs.aggregate([]).drop_null().to_pylist():
            label, value = pair["label"], pair["other"]
            self._require(self.label, label, other, value)
            if _are_codes_and_names(self.label, other):
                self._require(other, value, self.label, label)

    def _require(self, column: str, value: Any, other: str, expected: Any) -> None:
        known = self._known.setdefault((column, other), {})
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


# splits ------------------------------------------------------------------------------------------


def _with_splits(batches: Iterable[Batch], roles: Roles, title: str) -> Iterator[Batch]:
    """Yield batches with the split of each row as text, null where there is none."""
    for batch in batches:
        if roles.split is None:
            yield batch
            continue
        texts = _texts_of(_spelled(batch.table[roles.split]), title)
        if roles.flag is not None:
            true, false, odd = _truths(texts)
            if odd is not None:
                raise SourceError(
                    f"{title}: column '{roles.split}' holds '{odd}', expected true or false; name "
                    "another column of splits with columns"
                )
            texts = pc.case_when(pc.make_struct(true, false), *map(pa.scalar, roles.flag))
        yield batch._replace(splits=texts)


# values ------------------------------------------------------------------------------------------


def is_text(kind: Any) -> bool:
    """Tell whether a column of a type holds text, or bytes."""
    types, views = pa.types, (pa.types.is_string_view, pa.types.is_binary_view)
    tests = (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary)
    return any(test(kind) for test in (*tests, *views, types.is_fixed_size_binary))


def bytes_of(column: Any, title: str) -> Any:
    """Return a column of texts, or of numbers that are names, as bytes."""
    column = _undictionaried(column)
    if pa.types.is_integer(column.type):
        column = column.cast(pa.string())
    if not is_text(column.type) and not pa.types.is_null(column.type):
        raise SourceError(
            f"{title}: a column holds {column.type}, expected text; name another column"
        )
    return column.cast(pa.binary())


def _texts_of(column: Any, title: str) -> Any:
    """Return a column of texts as such; `SourceError` where it holds others, or no UTF-8."""
    data = bytes_of(column, title)
    try:
        return data.cast(pa.string())
    except pa.ArrowInvalid:
        values = data.to_pylist()
        texts = [None if value is None else decoded_text(value, title) for value in values]
        return pa.array(texts, pa.string())


def _truths(texts: Any) -> tuple[Any, Any, str | None]:
    """Return where texts are true, where false, and the first that is neither; null is nothing."""
    lower = pc.utf8_lower(texts)
    true, false = (pc.is_in(lower, pa.array(words)) for words in (YES, NO))
    odd = texts.filter(pc.and_(pc.is_valid(texts), pc.invert(pc.or_(true, false))))
    return true, false, odd[0].as_py() if len(odd) else None


def _spelled(column: Any) -> Any:
    kind = column.type
    other = pa.types.is_boolean(kind) or pa.types.is_floating(kind) or pa.types.is_integer(kind)
    return column.cast(pa.string()) if other else column


def _undictionaried(column: Any) -> Any:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
