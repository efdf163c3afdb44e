"""Parquet files that hold encoded images, as Hugging Face writes them.

A column of `{bytes, path}`, or of bytes, and a column of labels, whose class names stand in the
metadata. Only the labels are read when the samples are listed. Images are read row group by row
group, forward, from where the last reader stopped; page checksums are verified where there are.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.blocks import UNREADABLE, Problem
from pipeline.core.errors import ConfigError, LabelError, PixsimError, SourceError
from pipeline.core.paths import is_remote, shown
from pipeline.sources.fetch import (
    Wanted,
    describe,
    listed_files,
    read_local,
    read_remote,
    roots_of,
    titles_of,
    too_large,
)
from pipeline.sources.file_names import files_in, flattened
from pipeline.sources.list_columns import (
    Flag,
    TableHead,
    split_candidates,
    split_column,
    split_names,
    splits_of,
)
from pipeline.sources.notes import Notes
from pipeline.sources.open_cache import borrowed, close_streams
from pipeline.sources.sample_index import ROWS_PER_GROUP, ListingRows, make_rows, parted
from pipeline.sources.table_columns import (
    LABEL_COLUMNS,
    Agreement,
    Columns,
    candidates,
    choose,
    labels_of,
    listed,
    no_label,
    open_parquet,
    opened,
    plain,
)
from pipeline.storage.blobs import file_system

IMAGE_COLUMNS = ("image", "img", "images", "img_bytes", "image_bytes", "image_data")
_LABEL_COLUMNS = ("labels", *LABEL_COLUMNS)
_ROWS_AT_ONCE = 1  # one page may stand for very many equal images
_SAMPLED_ROWS = 50


def holds_images(path: Path, columns: Columns | None = None) -> bool:
    """Tell whether a Parquet file holds encoded images, and not only their names.

    Raises
    ------
    SourceError
        Where it is no Parquet file.
    """
    with opened(path) as file:
        schema = file.schema_arrow
    name = choose("image", schema.names, IMAGE_COLUMNS, columns, shown(path))
    return name is not None and _is_encoded(schema.field(name).type)


def _is_encoded(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    return bool(
        pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
    )


@dataclass(frozen=True)
class ParquetReader:
    """Lists the images of Parquet files; attributes as the parameters of `parquet_reader`.

    A column of None is none, and `title` is what to call the files.
    """

    paths: Mapping[str | None, Sequence[Path]]
    columns: Columns
    split: str
    title: str
    kind = "parquet"

    @property
    def _files(self) -> list[tuple[str, bool, Path]]:
        return list(flattened(self.paths, self.split))

    def fetcher(self) -> ParquetFetcher:
        roots = roots_of(path for _, _, path in self._files)
        return ParquetFetcher(roots, self.columns.get("image"))

    @functools.cached_property
    def _labelled(self) -> frozenset[str]:
        """The columns of the files that have labels: one that only has such, has none."""
        schemas = []
        for _, _, path in self._files:
            with opened(path) as file:
                schemas.append(file.schema_arrow)
        labelled = [schema for schema in schemas if _label(schema, self.columns, "")]
        return frozenset(plain(name) for schema in labelled for name in schema.names)

    def batches(self, notes: Notes) -> Iterator[tuple[str, Any]]:
        """Yield the rows of each file in order.

        Raises
        ------
        SourceError
            Where a file is not there, or has no images.
        ConfigError
            Where a column that was named is not there.
        """
        roots = self.fetcher().roots
        notes.unlabelled = True
        for number, (split, given, path) in enumerate(self._files):
            notes.files.append(describe(path, roots))
            with opened(path) as file:
                yield from self._file_batches(file, path, number, None if given else split, notes)
        if notes.unlabelled:
            notes.remarks.append(f"{self.title}: no column of labels, so these are images without")

    def _file_batches(
        self, file: Any, path: Path, number: int, split: str | None, notes: Notes
    ) -> Iterator[tuple[str, Any]]:
        schema, title = file.schema_arrow, shown(path)
        image = _check_image(schema, self.columns, title)
        label, others = self._labels(schema, image, title)
        given = self._files[number][0]
        by_row, flag = _split(file, self.columns, title, notes) if split else (None, None)
        notes.unlabelled &= label is None
        if label is not None:
            notes.take_labels_from([label])
        _note_names(schema, label, title, notes)
        agreement = Agreement(title, label or "")
        row = 0
        columns = [name for name in (label, by_row, *others) if name]
        for group in range(file.num_row_groups):
            for start, table in _described(file, group, list(dict.fromkeys(columns))):
                count = table.num_rows
                rows = _as_rows(number, path.name, row, group, start, count)
                if label:
                    text = labels_of(table[label], title, row)
                    rows = rows.set_column(rows.column_names.index("label"), "label", text)
                    for other in others:
                        agreement.add(text, other, table[other])
                splits = splits_of(table[by_row], by_row, flag, title) if by_row else None
                yield from parted(rows, splits, given)
                row += count

    def _labels(self, schema: Any, image: str, title: str) -> tuple[str | None, list[str]]:
        """Return the column of labels, and those which must agree with it."""
        names, columns = schema.names, self.columns
        named = columns.get("label")
        if named is not None and plain(named) not in map(plain, names) and self._labelled:
            return None, []
        label = _label(schema, columns, title)
        if label is not None:
            others = [] if "label" in columns else candidates(names, _LABEL_COLUMNS)
            return label, [name for name in others if name != label]
        images = [name for name in names if _is_encoded(schema.field(names.index(name)).type)]
        rest = [name for name in names if name not in images and name != image]
        rest = [name for name in rest if name not in split_names(rest)]
        if rest and "label" not in columns and not self._labelled >= set(map(plain, rest)):
            raise no_label(title, rest, rest[0])
        return None, []


def parquet_reader(
    paths: Mapping[str | None, Sequence[Path]],
    columns: Columns | None = None,
    split: str = "train",
) -> ParquetReader:
    """Return a reader of Parquet files of encoded images.

    Parameters
    ----------
    paths
        For each split its files, or folders of files; those of None say their split by name,
        such as `train-00000-of-00001.parquet`, or by a column.
    columns
        The names of the columns `image`, `label` and `split`; default: the usual ones.
    split
        The split of files that do not say any.
    """
    files = files_in(paths, (".parquet",))
    return ParquetReader(files, dict(columns or {}), split, titles_of(paths))


def _check_image(schema: Any, columns: Columns, title: str) -> str:
    """Return the column of the images."""
    names = schema.names
    name = choose("image", names, IMAGE_COLUMNS, columns, title)
    holding = [n for n, field in zip(names, schema, strict=True) if _is_encoded(field.type)]
    cure = f"columns: {{image: {holding[0] if holding else 'NAME'}}}"
    if name is None and holding:
        raise ConfigError(
            f"{title}: has no column {listed(IMAGE_COLUMNS)}, but {listed(names)}; say which one "
            f"holds the images, such as {cure}"
        )
    if name is None:
        raise ConfigError(
            f"{title}: holds no images: none of the columns {listed(names)} holds bytes of image "
            "files; leave this file out, or name only those that do"
        )
    if not _is_encoded(schema.field(name).type):
        other = f"; say which column does with {cure}" if holding else ""
        raise SourceError(
            f"{title}: column '{name}' holds {schema.field(name).type}, expected bytes of image "
            f"files{other}"
        )
    return name


def _label(schema: Any, columns: Columns, title: str) -> str | None:
    """Return the column of labels: of a usual name, else the one that has names of classes."""
    usual = choose("label", schema.names, _LABEL_COLUMNS, columns, title)
    named = [name for name in schema.names if _class_names(schema, name) is not None]
    if usual is None and "label" not in columns and len(named) > 1:
        raise ConfigError(
            f"{title}: has {len(named)} columns of classes, {listed(named)}; say which holds the "
            f"labels, such as columns: {{label: {named[0]}}}"
        )
    return named[0] if usual is None and named and "label" not in columns else usual


def _split(file: Any, columns: Columns, title: str, notes: Notes) -> tuple[str | None, Flag | None]:
    """Return the column of splits, and which splits true and false stand for in it."""
    names = file.schema_arrow.names
    some, rows = split_candidates(names), []
    if some and "split" not in columns:
        first = next(file.iter_batches(_SAMPLED_ROWS, columns=some, use_threads=False), None)
        values = [] if first is None else first.to_pylist()
        rows = [["" if n not in row else str(row[n]) for n in names] for row in values]
    name, flag, remarks = split_column(TableHead(title, names, rows), columns)
    notes.remarks += remarks
    return name, flag


def _note_names(schema: Any, label: str | None, title: str, notes: Notes) -> None:
    """Note the class names of the metadata, or raise `LabelError` where two files differ."""
    names = _class_names(schema, label)
    if names is None:
        return
    if notes.class_names not in (None, names):
        raise LabelError(f"{title}: has other class names than the files before; read them apart")
    notes.class_names = names


def _class_names(schema: Any, column: str | None) -> tuple[str, ...] | None:
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


def _described(file: Any, group: int, columns: list[str]) -> Iterator[tuple[int, Any]]:
    """Yield the first row, and the columns, of each batch of a row group."""
    start = 0
    if columns:
        for batch in file.iter_batches(ROWS_PER_GROUP, [group], columns, use_threads=False):
            yield start, pa.Table.from_batches([batch])
            start += batch.num_rows
        return
    count = file.metadata.row_group(group).num_rows
    for start in range(0, count, ROWS_PER_GROUP):
        yield start, pa.table({"row": pa.nulls(min(ROWS_PER_GROUP, count - start))})


def _as_rows(number: int, name: str, row: int, group: int, start: int, count: int) -> Any:
    rows = pa.array(range(row, row + count), pa.int64()).cast(pa.string())
    return make_rows(
        count,
        origin=pc.binary_join_element_wise(f"{name}[", rows, "]", ""),
        file=number,
        key=b"%d" % group,
        offset=pa.array(range(start, start + count), pa.int64()),
    )


# fetching ----------------------------------------------------------------------------------------


class _Images:
    """The images of one row group, from the first on."""

    def __init__(self, path: Path, group: int, column: str | None) -> None:
        self._file = open_parquet(path)
        name = column or choose("image", self._file.schema_arrow.names, IMAGE_COLUMNS, None, "")
        self._batches = self._file.iter_batches(_ROWS_AT_ONCE, [group], [name], use_threads=False)
        self._batch: Any = ()
        self._row = 0  # of the batch

    def skip(self, count: int) -> None:
        """Go forward by `count` images."""
        self._row += count
        while self._row > len(self._batch):
            self._next_batch()

    def take(self) -> Any:
        """Return the next image: bytes, a mapping, or None."""
        while self._row >= len(self._batch):
            self._next_batch()
        self._row += 1
        return self._batch[self._row - 1].as_py()

    def _next_batch(self) -> None:
        self._row -= len(self._batch)
        self._batch = next(self._batches).column(0)

    def close(self) -> None:
        self._file.close(force=True)


@dataclass(frozen=True)
class ParquetFetcher:
    """Reads images out of row groups, forward.

    `roots` are the folders of the files, `column` is that of the images; None: the usual one.
    """

    roots: tuple[Path, ...]
    column: str | None = None

    def fetch(
        self, rows: ListingRows, files: Sequence[Sequence[Any]], limit: int
    ) -> Iterator[tuple[int, bytes | Problem]]:
        """Yield for each row its index in `rows`, and its bytes or what is wrong with them."""
        with listed_files(self.roots, files) as table:
            columns = zip(rows.file, rows.key, rows.offset, strict=True)
            for index, (file, group, row) in enumerate(columns):
                root = self.roots[files[file][0]]
                path, version = table(file)
                value = self._value(path, (str(root), path.name), int(group), row, version)
                yield index, _content(value, root, limit)

    def _value(
        self, path: Path, key: tuple[str, str], group: int, row: int, version: Hashable
    ) -> Any:
        try:
            images = functools.partial(_Images, path, group, self.column)
            with borrowed((*key, group), row, images, version) as cursor:
                cursor.stream.skip(row - cursor.position)
                value = cursor.stream.take()
                cursor.position = row + 1
                return value
        except PixsimError:
            raise
        except Exception as error:  # each file system has its own kinds
            reason = str(error) or type(error).__name__
            raise SourceError(
                f"{shown(path)}: row group {group} cannot be read at row {row} ({reason}); fetch "
                "the file again, and run the same command again"
            ) from None

    def close(self) -> None:
        """Close the row groups that are read forward."""
        close_streams({str(root) for root in self.roots})


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
