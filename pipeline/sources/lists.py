"""Lists of image files: tables with a path, a label and perhaps a split.

They are text (CSV and its kin), lines of JSON, or Parquet. Paths are relative to the list's folder,
or to a root that the job gives; see `list_paths` for what they may name, and `list_columns` for how
columns are found.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from pipeline.core.blocks import OK
from pipeline.core.errors import LabelError, SourceError
from pipeline.core.paths import is_remote, shown
from pipeline.sources.fetch import FileFetcher, listed_version, titles_of
from pipeline.sources.file_names import as_text, flattened, split_of, split_word
from pipeline.sources.list_columns import (
    Roles,
    TableHead,
    classes_of,
    decide,
    has_labels,
    is_header,
    names_images,
    names_without_header,
    splits_of,
)
from pipeline.sources.list_paths import PathFinder, Repeats, Row
from pipeline.sources.notes import File, Notes
from pipeline.sources.sample_index import ROWS_PER_GROUP, make_rows, parted
from pipeline.sources.table_columns import Agreement, Columns, bytes_of, labels_of, opened, plain
from pipeline.sources.text_tables import (
    SAMPLED_ROWS,
    is_json_lines,
    json_batches,
    not_utf8,
    open_text,
)

_SHOWN = 100
_MOST_REMARKS = 20


@dataclass(frozen=True)
class ListReader:
    """Lists the files that tables name.

    `paths` are for each split its tables; those of None say their split by name, or by a column,
    else it is `split`. `columns` are the names of `path`, `label` and `split` where they are not
    the usual ones, None where there is none; `root` is what paths are relative to, by default the
    folder of the table; `encoding` is that of tables of text, else UTF-8, or what a mark says.
    """

    paths: Mapping[str | None, Sequence[Path]]
    columns: Columns = field(default_factory=dict)
    root: Path | None = None
    split: str = "train"
    encoding: str | None = None
    kind = "list"

    @property
    def _tables(self) -> list[tuple[str, bool, Path]]:
        return list(flattened(self.paths, self.split))

    @property
    def title(self) -> str:
        return titles_of(self.paths)

    def fetcher(self) -> FileFetcher:
        return FileFetcher(tuple(self._root(path) for _, _, path in self._tables))

    def _root(self, path: Path) -> Path:
        return self.root or path.parent

    def batches(self, notes: Notes) -> Iterator[tuple[str, Any]]:
        """Yield the rows of the tables in their order."""
        repeats, remarks = Repeats(), []
        notes.unlabelled = True
        for number, (split, given, path) in enumerate(self._tables):
            notes.files.append(File(number, "", f"{path.name} {listed_version(path).stamp}"))
            table = self._open(path)
            roles = decide(table.sample, self.columns, given, lambda: self._labelled)
            remarks += [*table.remarks, *roles.remarks]
            columns = roles.classes or [name for name in (roles.label,) if name is not None]
            if columns:
                notes.unlabelled = False
                notes.take_labels_from(columns)
            word = split_word(split) if given or split_of(path.name) else None
            part = _Part(number, path, roles, self._finder(path), split, word)
            for batch in table.batches(roles):
                keys, rows = part.rows(batch, notes)
                repeats.add(self._root(path), keys)
                yield from rows
            remarks += part.remarks()
        if repeats.count:
            remarks.append(
                f"{self.title}: {repeats.count:,} entries name a file that an earlier one names; "
                "each is a sample"
            )
        if notes.unlabelled:
            remarks.append(f"{self.title}: no column of labels, so these are images without")
        notes.remarks += remarks[:_MOST_REMARKS]
        if len(remarks) > _MOST_REMARKS:
            notes.remarks.append(f"and {len(remarks) - _MOST_REMARKS:,} more remarks on tables")

    def _finder(self, path: Path) -> PathFinder:
        return PathFinder(self._root(path), not is_remote(path), beside=self.root is None)

    def _open(self, path: Path) -> _Table:
        if path.suffix.lower() == ".parquet":
            return _open_parquet(path)
        if is_json_lines(path):
            return _open_json(path, self.encoding)
        return _open_csv(path, self.encoding, self.columns, self._finder(path))

    @functools.cached_property
    def _labelled(self) -> frozenset[str]:
        """The columns of the tables that have labels."""
        samples = [self._open(path).sample for _, _, path in self._tables]
        labelled = [sample for sample in samples if has_labels(sample, self.columns)]
        return frozenset(plain(name) for sample in labelled for name in sample.names)


@dataclass
class _Part:
    """The rows of one table, as a listing has them."""

    number: int
    path: Path
    roles: Roles
    finder: PathFinder
    split: str
    word: str | None
    count: int = 0
    _is_somewhere: bool = False

    def __post_init__(self) -> None:
        self._agreement = Agreement(shown(self.path), self.roles.label or "")

    def rows(self, batch: Any, notes: Notes) -> tuple[list[bytes], Iterator[tuple[str, Any]]]:
        """Return the keys of some entries, and their rows by split."""
        title, roles = shown(self.path), self.roles
        names = bytes_of(batch[roles.path], title).to_pylist()
        splits, words = None, [self.word] * len(names)
        if roles.split:
            splits = splits_of(batch[roles.split], roles.split, roles.flag, title)
            texts = splits.to_pylist()
            words = [self.word if text is None else split_word(text) for text in texts]
        entries = [self.finder.row(*pair) for pair in zip(names, words, strict=True)]
        self._require_any(names, entries)
        values = dict(zip(Row._fields, map(list, zip(*entries, strict=True)), strict=True))
        label = self._labels(batch, title, notes)
        rows = make_rows(len(names), file=self.number, label=label, **values)
        self.count += len(names)
        return values["key"], parted(rows, splits, self.split)

    def _labels(self, batch: Any, title: str, notes: Notes) -> Any:
        roles = self.roles
        if roles.classes:
            if notes.class_names not in (None, roles.classes):
                raise LabelError(
                    f"{title}: has other classes than the tables before; ingest them apart, or "
                    "give each the same columns in the same order"
                )
            notes.class_names = roles.classes
            return classes_of(batch, roles, title, self.count)
        if roles.label is None:
            return None
        labels = labels_of(batch[roles.label], title, self.count)
        for other in roles.others:
            self._agreement.add(labels, other, batch[other])
        return labels

    def _require_any(self, names: Sequence[bytes | None], rows: Sequence[Row]) -> None:
        """Raise `SourceError` where none of the first entries is there."""
        self._is_somewhere |= self.count > 0 or any(row.status == OK for row in rows)
        if self._is_somewhere:
            return
        at = next((n for n, name in enumerate(names) if name), 0)
        name, row = names[at] or b"", rows[at]
        root = self.finder.hint(name)
        cure = "correct them, or say with root which folder they are relative to"
        if root is not None:
            cure = f"it is in another folder: root: {shown(root)}"
        raise SourceError(
            f"{shown(self.path)}: none of the first {len(rows):,} paths, from column "
            f"'{self.roles.path}', can be read, such as '{as_text(name)[:_SHOWN]}': {row.detail}; "
            f"{cure}"
        )

    def remarks(self) -> list[str]:
        """Return what to say of entries that stand for files which are called otherwise."""
        return [
            f"{shown(self.path)}: {count:,} entries stand for files "
            + " ".join(
                [f"in {as_text(folder)}"] * bool(folder)
                + [f"with the suffix {as_text(suffix)}"] * bool(suffix)
                or ["that are spelled a little otherwise"]
            )
            for (folder, suffix), count in self.finder.meant.items()
        ]


# the kinds of tables -----------------------------------------------------------------------------


class _Table(NamedTuple):
    """A table of some kind, of which the beginning was read.

    `batches` yields the columns that have a role, some thousand rows at a time.
    """

    sample: TableHead
    batches: Callable[[Roles], Iterator[Any]]
    remarks: Sequence[str] = ()


def _sample(path: Path, names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> TableHead:
    return TableHead(shown(path), names, [[_as_field(row.get(n)) for n in names] for row in rows])


def _as_field(value: Any) -> str:
    return "" if value is None else as_text(value) if isinstance(value, bytes) else str(value)


def _open_parquet(path: Path) -> _Table:
    def batches(roles: Roles) -> Iterator[Any]:
        with opened(path) as file:
            yield from file.iter_batches(ROWS_PER_GROUP, columns=roles.names, use_threads=False)

    with opened(path) as file:
        schema = file.schema_arrow
        flat = [field.name for field in schema if not pa.types.is_nested(field.type)]
        first = next(file.iter_batches(SAMPLED_ROWS, columns=flat, use_threads=False), None)
    rows = [] if first is None else first.to_pylist()
    return _Table(_sample(path, schema.names, rows), batches)


def _open_json(path: Path, encoding: str | None) -> _Table:
    def batches(roles: Roles) -> Iterator[Any]:
        for objects in json_batches(path, ROWS_PER_GROUP, encoding):
            columns = {name: [row.get(name) for row in objects] for name in roles.names}
            yield pa.table({name: _json_column(values) for name, values in columns.items()})

    first = next(json_batches(path, SAMPLED_ROWS, encoding), [])
    names = list(dict.fromkeys(name for row in first for name in row))
    if not names:
        raise SourceError(f"{shown(path)}: is empty, expected an object of JSON on each line")
    return _Table(_sample(path, names, first), batches)


def _json_column(values: list[Any]) -> Any:
    try:
        return pa.array(values)
    except pa.ArrowException:  # values of several types
        return pa.array([None if value is None else _as_field(value) for value in values])


def _open_csv(path: Path, encoding: str | None, wanted: Columns, finder: PathFinder) -> _Table:
    table = open_text(path, encoding, lambda names: is_header(names, wanted))
    title, names = shown(path), [name.strip() for name in table.rows[0]]
    # a single number may as well be a label as the name of a file
    may_be_data = not names_images(names, wanted) and (len(names) > 1 or not names[0].isdigit())
    is_file = may_be_data and finder.row(os.fsencode(names[0])).status == OK
    header = is_header(names, wanted) and not is_file
    if not header:
        names = names_without_header(names, title)
    elif re.search("[\udc80-\udcff]", "".join(names)):  # as what is no UTF-8 is escaped
        raise not_utf8(title, [os.fsencode(name) for name in names])

    def batches(roles: Roles) -> Iterator[Any]:
        numbers = [names.index(name) for name in roles.names]
        for batch in table.batches(numbers, header, texts=numbers[1:]):
            for start in range(0, batch.num_rows, ROWS_PER_GROUP):
                columns = batch.slice(start, ROWS_PER_GROUP).columns
                yield pa.RecordBatch.from_arrays(columns, names=roles.names)

    cure = ", or write names of columns as the first line if it has none" * header
    taken = ", ".join(f"'{name}'" for name in names)
    remarks = [] if header else [f"{title}: has no header; taken as {taken}"]
    sample = TableHead(title, names, table.rows[header:][:SAMPLED_ROWS], cure)
    return _Table(sample, batches, remarks)
