"""Lists of image files: tables with a path, a label and perhaps a split.

They are text (CSV and its kin), lines of JSON, or Parquet. Paths are relative to the list's folder,
or to a root that the job gives. A list of this machine may name any file of it, and URLs. One from
elsewhere may not reach into this machine: it may only name files below its own folder, and URLs of
object stores and web servers. Where no file has the name of an entry, it stands for the one file
that it can mean: with a suffix of images, or in a folder for images beside the list.
"""

from __future__ import annotations

import functools
import itertools
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.core.blocks import OK, UNREADABLE
from pipeline.core.errors import SourceError
from pipeline.core.paths import is_remote, shown
from pipeline.sources.fetch import FileFetcher, listed_version, not_regular, unreadable
from pipeline.sources.file_names import (
    IMAGE_SUFFIXES,
    as_text,
    is_container,
    is_hidden,
    is_image,
    split_of,
    split_word,
    splits_in,
    suffix_of,
    words_of,
)
from pipeline.sources.folder import count_images
from pipeline.sources.notes import File, Notes
from pipeline.sources.parquet import opened_parquet, parquet_table
from pipeline.sources.sample_index import Sample, columns_of
from pipeline.sources.table_columns import Batch, Table, TableHead, names_images, path_column
from pipeline.sources.table_folders import tables_beside
from pipeline.sources.tables import Part, TableReader, bytes_of
from pipeline.sources.text_tables import SUFFIXES, is_json, labels_alone, text_table
from pipeline.storage.blobs import version_in
from pipeline.storage.folders import is_folder, list_folder

_PROTOCOLS = (
    "http", "https", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf", "memory",
)  # fmt: skip
# folders of what belongs to images, of the same names
_NO_IMAGES = frozenset(("mask", "masks", "label", "labels", "annotation", "annotations"))
_MOST_SHOWN = 3
_SHOWN = 100  # characters
_MOST_FOLDERS = 4096  # that are remembered
_MOST_TRIED = 200  # folders, for a hint
_SLOTS = 2**21
_FILES = (*SUFFIXES, ".gz", ".parquet")  # tables, which are not asked for


@dataclass(frozen=True)
class ListReader(TableReader):
    """Lists the files that tables name.

    `root` is what paths are relative to, by default the folder of the table; `encoding` is that of
    tables of text, else UTF-8, or what a mark says.
    """

    root: Path | None = None
    encoding: str | None = None
    kind = "list"

    def fetcher(self) -> FileFetcher:
        return FileFetcher(tuple(self._root(path) for _, _, path in self._tables))

    @functools.cached_property
    def _beside(self) -> dict[Path, Mapping[str | None, Path]]:
        """The tables of folders of images, for each folder that was given."""
        every = [path for several in self.paths.values() for path in several]
        some = (
            path for path in every if not path.name.lower().endswith(_FILES) and is_folder(path)
        )
        return {path: tables_beside(path) for path in some}

    def _inside(self, path: Path) -> Mapping[str | None, Path]:
        return self._beside.get(path, {})

    def _root(self, path: Path) -> Path:
        return self.root or path.parent

    def _finder(self, path: Path) -> PathFinder:
        return PathFinder(self._root(path), not is_remote(path), beside=self.root is None)

    @contextmanager
    def _opened(self, path: Path) -> Iterator[Table]:
        def is_file(name: bytes) -> bool:
            return self._finder(path).row(name).status == OK

        if path.suffix.lower() == ".parquet":
            with opened_parquet(path) as file:
                yield parquet_table(file, path)
            return
        table = text_table(path, self.encoding, self.columns, is_file)
        names = table.head.names
        alone = len(names) == 1 and not names_images(names, self.columns)
        if alone and self.root is not None and not is_json(path):
            images = filter(is_image, map(os.fsencode, list_folder(self.root)))
            yield labels_alone(path, self.encoding, sorted(images), shown(self.root))
        else:
            yield table

    def _image(self, head: TableHead) -> str:
        wanted = self.columns
        return path_column(
            head, {"path": wanted["image"], **wanted} if "image" in wanted else wanted
        )

    def _files(self) -> list[File]:
        paths = [path for _, _, path in self._tables]
        stamps = [f"{path.name} {listed_version(path).stamp}" for path in paths]
        return [File(number, "", stamp) for number, stamp in enumerate(stamps)]

    def batches(self, notes: Notes) -> Iterator[tuple[str, Any]]:
        repeats, named = Repeats(), 0
        for split, rows in super().batches(notes):
            repeats.add(
                self._root(self._tables[rows["file"][0].as_py()][2]), rows["key"].to_pylist()
            )
            named += sum(status == OK for status in rows["status"].to_pylist())
            yield split, rows
        images = sum(count_images(path) for path in self._beside)
        if images > named - repeats.count:
            more = images - named + repeats.count
            notes.left_out.append(f"{more:,} image{'s' * (more > 1)} that no table names")
        if repeats.count:
            notes.remarks.append(
                f"{self.title}: {repeats.count:,} entries name a file that an earlier one names; "
                "each is a sample"
            )

    def _located(
        self, part: Part, batches: Iterable[Batch]
    ) -> Iterator[tuple[Batch, Mapping[str, Any]]]:
        finder, path = self._finder(part.path), part.path
        default = split_word(part.split) if part.split_given or split_of(path.name) else None
        readable = False
        for batch in batches:
            names = bytes_of(batch.table[part.roles.image], shown(path)).to_pylist()
            words = [default] * len(names)
            if batch.splits is not None:
                texts = batch.splits.to_pylist()
                words = [default if text is None else split_word(text) for text in texts]
            rows = [finder.row(*pair) for pair in zip(names, words, strict=True)]
            readable = readable or batch.first > 0 or any(row.status == OK for row in rows)
            if not readable:
                raise _none_readable(part, finder, names, rows)
            if path.parent in self._beside and not part.split_given and batch.splits is None:
                batch = batch._replace(splits=pa.array(map(_split_of_folder, names), pa.string()))
            yield batch, columns_of(rows)
        part.remarks.extend(finder.remarks(shown(path)))


def _split_of_folder(name: bytes | None) -> str | None:
    folder, slash, _ = (name or b"").removeprefix(b"./").partition(b"/")
    return as_text(folder) if slash and splits_in(folder) else None


def _none_readable(
    part: Part, finder: PathFinder, names: Sequence[bytes | None], rows: Sequence[Sample]
) -> SourceError:
    at = next((n for n, name in enumerate(names) if name), 0)
    name, row = names[at] or b"", rows[at]
    root = finder.hint(name)
    cure = "correct them, or say with root which folder they are relative to"
    if root is not None:
        cure = f"it is in another folder: root: {shown(root)}"
    return SourceError(
        f"{shown(part.path)}: none of the first {len(rows):,} paths, from column "
        f"'{part.roles.image}', can be read, such as '{as_text(name)[:_SHOWN]}': {row.detail}; "
        f"{cure}"
    )


# paths -------------------------------------------------------------------------------------------


class _Folder(NamedTuple):
    """The suffixes of images in a folder, as they are spelled, and its folders for images."""

    suffixes: Sequence[bytes] = ()
    folders: Sequence[bytes] = ()


class PathFinder:
    """Resolves the entries of a list, and refuses what they must not name.

    Paths are relative to `root`; the list is of this machine where it is `trusted`. Folders for
    images `beside` the list are looked into where no root was given.
    """

    def __init__(self, root: Path, trusted: bool, beside: bool = True) -> None:
        self._trusted = trusted
        self._remote = is_remote(root)
        self._root = b"" if self._remote else os.fsencode(root)
        self._beside = beside
        self._look = functools.lru_cache(_MOST_FOLDERS)(lambda folder: _look(self._path(folder)))
        self._meant: Counter[tuple[bytes, bytes]] = Counter()  # by folder and suffix that was added

    def row(self, name: bytes | None, split: str | None = None) -> Sample:
        """Return what the listing records of an entry, as it stands in the list.

        `split` is the one it is of, as `split_word` has it, so that it isn't looked for in another.
        """
        if not name:
            return Sample("", status=UNREADABLE, detail="has no path")
        if name.startswith(b"file://") and self._trusted:
            name = name.removeprefix(b"file://")
        text = as_text(name)
        refused = self._refused(text, name)
        if refused:
            return Sample(shown(text), status=UNREADABLE, detail=refused)
        if "://" in text or (self._remote and not text.startswith("/")):
            return Sample(shown(text), key=name)
        return self._locate(name, split)

    def _refused(self, text: str, name: bytes) -> str | None:
        protocol, separator, _ = text.partition("://")
        if separator:
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

    def _locate(self, name: bytes, split: str | None) -> Sample:
        try:
            return self._stat(name)
        except FileNotFoundError as error:
            missing = unreadable(error)
        except OSError as error:
            missing = unreadable(error)
            return Sample(as_text(name), key=name, status=missing.status, detail=missing.detail)
        meant: dict[tuple[int, int], tuple[bytes, bytes, bytes]] = {}
        for folder, spelled, suffix in self._meanings(name, split):
            try:
                status = os.stat(self._path(folder + spelled + suffix))  # noqa: PTH116
            except OSError:
                continue
            if stat.S_ISREG(status.st_mode):
                meant.setdefault((status.st_dev, status.st_ino), (folder, spelled, suffix))
        if len(meant) == 1:
            ((folder, spelled, suffix),) = meant.values()
            self._meant[folder, suffix] += 1
            return self._stat(folder + spelled + suffix)
        detail = missing.detail
        if meant:
            names = [as_text(b"".join(parts)) for parts in meant.values()]
            detail = f"may be {' or '.join(names[:_MOST_SHOWN])}; write which in the list"
            if len({folder for folder, _, _ in meant.values()}) > 1:
                detail += ", or say with root which folder its paths are relative to"
        return Sample(as_text(name), key=name, status=UNREADABLE, detail=detail)

    def _stat(self, name: bytes) -> Sample:
        status = os.stat(self._path(name))  # noqa: PTH116 (bytes)
        text, stamp = as_text(name), version_in(status).stamp
        if stat.S_ISREG(status.st_mode):
            return Sample(text, key=name, size=status.st_size, stamp=stamp)
        detail = not_regular(status.st_mode).detail
        return Sample(text, key=name, status=UNREADABLE, detail=detail, stamp=stamp)

    def _path(self, name: bytes) -> bytes:
        return os.path.join(self._root, name)  # noqa: PTH118 (bytes)

    def _meanings(self, name: bytes, split: str | None) -> Iterator[tuple[bytes, bytes, bytes]]:
        """Yield what an entry may mean: a folder, its spelling there, and a suffix."""
        for spelled in dict.fromkeys((name, name.strip(), name.strip().replace(b"\\", b"/"))):
            if not spelled or self._refused(as_text(spelled), spelled):
                continue
            head, slash, last = spelled.rpartition(b"/")
            known = suffix_of(last)
            for folder in (b"", *([] if spelled.startswith(b"/") else self._beside_for(split))):
                yield folder, spelled, b""
                for suffix in self._look(folder + head).suffixes:
                    if known not in IMAGE_SUFFIXES:
                        yield folder, spelled, suffix
                    elif as_text(suffix).lower() == known:  # it is spelled in other letters
                        yield folder + head + slash, last[: -len(known)] + suffix, b""

    def _beside_for(self, split: str | None) -> Iterator[bytes]:
        """Yield the folders for images beside the list but for those of other splits."""
        if not self._beside or self._remote:
            return
        for first in self._look(b"").folders:
            for folder in (first, *(first + below for below in self._look(first).folders)):
                if split is None or split_word(as_text(folder)) in (None, split):
                    yield folder

    def remarks(self, title: str) -> list[str]:
        """Return what to report of entries that stand for files of other names."""
        return [
            f"{title}: {count:,} entries stand for files "
            + " ".join(
                [f"in {as_text(folder)}"] * bool(folder)
                + [f"with the suffix {as_text(suffix)}"] * bool(suffix)
                or ["that are spelled a little otherwise"]
            )
            for (folder, suffix), count in self._meant.items()
        ]

    def hint(self, name: bytes) -> Path | None:
        """Return the folder that an entry which was not there may be relative to."""
        if self._remote or name.startswith(b"/"):
            return None
        above = os.path.dirname(self._root)  # noqa: PTH120 (bytes)
        roots = [above, *_folders_in(self._root), *_folders_in(above)]
        for root in roots:
            finder = PathFinder(Path(os.fsdecode(root)), self._trusted, beside=False)
            if finder.row(name).status == OK:
                return Path(os.fsdecode(root))
        return None


def _look(path: bytes) -> _Folder:
    """Return what a folder holds; what cannot be listed holds nothing."""
    suffixes, folders = set(), []
    with suppress(OSError), os.scandir(path) as entries:
        for entry in entries:
            name, suffix = entry.name, suffix_of(entry.name)
            if suffix in IMAGE_SUFFIXES:
                suffixes.add(name[-len(suffix) :])
            elif (is_container(name) or splits_in(name)) and _NO_IMAGES.isdisjoint(words_of(name)):
                folders += [name + b"/"] * entry.is_dir()
    return _Folder(sorted(suffixes), sorted(folders))


def _folders_in(path: bytes) -> list[bytes]:
    with suppress(OSError), os.scandir(path) as entries:
        folders = (e.path for e in entries if not is_hidden(e.name) and e.is_dir())
        return sorted(itertools.islice(folders, _MOST_TRIED))
    return []


class Repeats:
    """Counts entries that name what an earlier one names, in memory that does not grow.

    A fixed number of hashes is kept, the latest; so of very long lists it is a lowest number.
    """

    def __init__(self) -> None:
        self.count = 0
        self._kept: npt.NDArray[np.int64] = np.zeros(_SLOTS, np.int64)

    def add(self, root: Path, keys: list[bytes]) -> None:
        """Look at some entries, each the key of a file below a root; empty ones are none."""
        folder = str(root)
        hashes = np.array([hash((folder, key)) or 1 for key in keys if key], np.int64)
        distinct, counts = np.unique(hashes, return_counts=True)
        slots = distinct % _SLOTS
        self.count += int((counts - 1).sum()) + int((self._kept[slots] == distinct).sum())
        self._kept[slots] = distinct
