"""Tar archives of image files, plain or compressed, on this machine or behind a URL.

An archive is never extracted: its headers are walked once, and members are read where they are.
Inside are folders, as a folder of images has them, or samples as webdataset packs them: members
of one name up to the first dot, such as `000017.jpg` and `000017.cls`.

A member that is cut off is listed as truncated. Where an archive ends without its end mark, or
is damaged between members, a sample without a name stands for what may be lost: it is counted
and listed as unreadable, so that nothing is missing in silence.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any, NamedTuple, cast

from pipeline.core.blocks import Problem
from pipeline.core.errors import PixsimError, SourceError
from pipeline.core.paths import is_remote, shown
from pipeline.sources.fetch import (
    Wanted,
    describe,
    listed_files,
    read_range,
    read_remote,
    roots_of,
    titles_of,
)
from pipeline.sources.file_names import as_text, files_in, flattened, split_of, splits_in
from pipeline.sources.folder import Tree
from pipeline.sources.notes import Notes
from pipeline.sources.open_cache import borrowed, close_streams
from pipeline.sources.sample_index import ROWS_PER_GROUP, ListingRows, Sample, columns_of, make_rows
from pipeline.sources.tar_members import READ_BYTES, Entry, Unpacked, compression_of, walk
from pipeline.sources.webdataset import (
    Fields,
    Samples,
    fields_of,
    is_labelled,
    samples_of,
)
from pipeline.storage.blobs import file_system

SUFFIXES = (
    ".tar", ".tgz", ".tar.gz", ".tbz", ".tbz2", ".tar.bz2", ".txz", ".tar.xz",
)  # fmt: skip
_LOOKED_AT = 4096


@dataclass(frozen=True)
class TarReader:
    """Lists the images of tar archives.

    `paths` are for each split its archives, or folders of such; those of None say their split by
    name, such as `train-0001.tar`, or by folders inside, else it is `split`. `columns` names the
    fields of `image` and `label` of samples as webdataset packs them, where they are not known by
    rule. `doubts` tells whether to refuse what is implausible, see `folder_checks`.
    """

    paths: Mapping[str | None, Sequence[Path]]
    split: str = "train"
    columns: Mapping[str, str] = field(default_factory=dict)
    doubts: bool = True
    kind = "tar"

    def __post_init__(self) -> None:
        _ = self._fields, self._archives  # what is wrong with them is refused at once

    @property
    def title(self) -> str:
        return titles_of(self.paths)

    @cached_property
    def _fields(self) -> Fields:
        return fields_of(self.columns)

    @cached_property
    def _archives(self) -> list[tuple[str, bool, Path]]:
        return list(flattened(files_in(self.paths, SUFFIXES), self.split))

    def fetcher(self) -> TarFetcher:
        return TarFetcher(roots_of(path for _, _, path in self._archives))

    def batches(self, notes: Notes) -> Iterator[tuple[str, Any]]:
        """Yield the rows of each split in order.

        Raises
        ------
        SourceError
            Where an archive is not there, is none, or holds no images.
        """
        self._check_names()
        roots, paths = self.fetcher().roots, [path for _, _, path in self._archives]
        compressions = [compression_of(path) for path in paths]
        notes.files += [describe(path, roots) for path in paths]
        if self._is_webdataset(compressions):
            yield from self._sample_batches(compressions, notes)
        else:
            notes.labels_are_text = True
            yield from self._tree_batches(compressions, notes)

    def _check_names(self) -> None:
        """Refuse archives whose names speak of several splits, in words that are not known."""
        names = [os.fsencode(path.name) for _, given, path in self._archives if not given]
        splits = {frozenset(splits_in(name)) for name in names}
        strange = [name for name in names if splits_in(name) and split_of(as_text(name)) is None]
        if self.doubts and strange and len(splits) > 1:
            raise SourceError(
                f"{self.title}: would all be of split '{self.split}' where their names tell no "
                f"other, such as {as_text(strange[0])}; say in a job which are of which split, "
                "with 'splits: {train: FILES, test: FILES}'"
            )

    def _is_webdataset(self, compressions: Sequence[bytes]) -> bool:
        """Tell whether one of the first samples of the first archive has a label beside it."""
        if self._fields.image is not None or self._fields.label is not None:
            return True
        for (_, _, path), compression in zip(self._archives, compressions, strict=True):
            with closing(walk(path, compression)) as entries:
                members = (e for e in islice(entries, _LOOKED_AT) if isinstance(e, Entry))
                samples = samples_of(members)
                if (first := next(samples, None)) is not None:
                    return any(map(is_labelled, chain([first], samples)))
        return False

    def _tree_batches(
        self, compressions: Sequence[bytes], notes: Notes
    ) -> Iterator[tuple[str, Any]]:
        titles = [f"{path.name}:" for _, _, path in self._archives]
        with Tree(self.kind, notes, doubts=self.doubts) as tree:
            for file, (split, given, path) in enumerate(self._archives):
                group = tree.group(split, given, True, shown(path))
                for entry in walk(path, compressions[file]):
                    if isinstance(entry, Entry) and entry.content is None:
                        tree.add(group, entry.name, _sample(entry, file))
                    else:
                        tree.leave_out(group, entry.name if isinstance(entry, Entry) else entry)
            tree.keep_last()
            streamed = [file for file, name in enumerate(compressions) if name]
            yield from tree.batches(titles, compressions, streamed)

    def _sample_batches(
        self, compressions: Sequence[bytes], notes: Notes
    ) -> Iterator[tuple[str, Any]]:
        samples = Samples(self._fields, notes)
        for file, (split, _, path) in enumerate(self._archives):
            key = compressions[file]
            rows = samples.rows(walk(path, key, self._fields.suffixes), path.name)
            while batch := list(islice(rows, ROWS_PER_GROUP)):
                columns = {**columns_of(batch), "file": file, "key": key}
                yield split, make_rows(len(batch), **columns)
        samples.finish()


def _sample(entry: Entry, file: int) -> Sample:
    sample = Sample(file=file, offset=entry.offset, size=entry.size)
    if entry.problem is None:
        return sample
    return sample._replace(status=entry.problem.status, detail=entry.problem.detail)


# fetching ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TarFetcher:
    """Reads members where they are in the archives, whose folders are `roots`.

    Those of compressed archives are read by going forward.
    """

    roots: tuple[Path, ...]

    def fetch(
        self, rows: ListingRows, files: Sequence[Sequence[Any]], limit: int
    ) -> Iterator[tuple[int, bytes | Problem]]:
        """Yield for each row its index in `rows`, and its bytes or what is wrong with them.

        Raises
        ------
        SourceError
            Where an archive is gone, or changed since it was listed.
        """
        remote: dict[int, list[Wanted]] = {}
        members = enumerate(zip(rows.file, rows.key, rows.offset, rows.size, strict=True))
        with listed_files(self.roots, files) as archive:
            for (file, compression), group in groupby(members, key=lambda member: member[1][:2]):
                root = files[file][0]
                path, version = archive(file)
                ranges = ((row, offset, size) for row, (_, _, offset, size) in group)
                if compression:
                    stream = _Streamed(path, str(self.roots[root]), compression, version)
                    yield from ((row, stream.read(offset, size)) for row, offset, size in ranges)
                elif is_remote(path):
                    name = str(cast(Any, path).path)
                    wanted = (Wanted(row, name, start, start + size) for row, start, size in ranges)
                    remote.setdefault(root, []).extend(wanted)
                else:
                    yield from _read_ranges(path, ranges)
            for root, parts in remote.items():
                # in the order of the archive, so that neighbours come in one request
                parts.sort(key=lambda part: (part.path, part.start))
                yield from read_remote(file_system(self.roots[root]), parts, limit, archives=True)

    def close(self) -> None:
        """Close the archives that are read forward."""
        close_streams({str(root) for root in self.roots})


def _read_ranges(
    path: Path, ranges: Iterable[tuple[int, int, int]]
) -> Iterator[tuple[int, bytes | Problem]]:
    """Read members of a local archive, each a row, an offset and a size."""
    try:
        with path.open("rb", buffering=0) as file:
            for row, offset, size in ranges:
                yield row, read_range(file.fileno(), offset, size)
    except OSError as error:
        raise SourceError(
            f"{path}: cannot be read: {error.strerror or error}; put it back, and run the same "
            "command again"
        ) from error


class _Streamed(NamedTuple):
    """A compressed archive, of which members are read from the nearest position before them."""

    path: Path
    root: str
    compression: bytes
    version: Hashable

    def read(self, offset: int, size: int) -> bytes:
        unpacked = partial(Unpacked, self.path, self.compression)
        try:
            with borrowed((self.root, self.path.name), offset, unpacked, self.version) as cursor:
                for skipped in _chunks(cursor.stream, offset - cursor.position):
                    cursor.position += len(skipped)
                data = b"".join(_chunks(cursor.stream, size))
                cursor.position += size
                return data
        except PixsimError:
            raise
        except Exception as error:  # each file system has its own kinds
            reason = str(error) or type(error).__name__
            raise SourceError(
                f"{shown(self.path)}: is damaged, or was changed since it was listed ({reason}); "
                "fetch it again, and run the same command again"
            ) from None


def _chunks(stream: Any, size: int) -> Iterator[bytes]:
    """Yield the next `size` bytes exactly."""
    while size:
        data = stream.read(min(size, READ_BYTES))
        if not data:
            raise EOFError(f"it ends {size:,} bytes too soon")
        size -= len(data)
        yield data
