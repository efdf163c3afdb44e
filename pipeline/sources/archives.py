"""Tar and zip archives of image files, plain or compressed, on this machine or behind a URL.

Inside are folders, as a folder of images has them, or samples as webdataset packs them; or further
archives, where there is no image beside them, which are read in the same way. Nothing is extracted.
What may be lost of an archive is a sample without a name, counted and listed as unreadable, so that
nothing is missing in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple, cast

from pipeline.core.blocks import Problem
from pipeline.core.errors import SourceError
from pipeline.core.paths import is_remote, shown
from pipeline.sources.archive_members import (
    ZIP_MAGICS,
    HeaderStream,
    packing_of,
    steps_of,
    tail,
    unpacked,
    walk_tar,
    walk_zip,
)
from pipeline.sources.archive_streams import (
    LABEL_SUFFIXES,
    SUFFIXES,
    Archive,
    Entry,
    Member,
    compression_of,
    open_steps,
)
from pipeline.sources.fetch import (
    StreamFetcher,
    Wanted,
    describe,
    listed_files,
    listed_version,
    read_range,
    read_remote,
    reading,
    roots_of,
    titles_of,
)
from pipeline.sources.file_names import are_classes, as_text, flattened, split_of, splits_in
from pipeline.sources.folder import Tree
from pipeline.sources.notes import File, Notes
from pipeline.sources.open_cache import read_forward
from pipeline.sources.sample_index import ROWS_PER_GROUP, Sample, columns_of, make_rows
from pipeline.sources.webdataset import Fields, Samples, any_labelled
from pipeline.storage.blobs import file_system

_LOOKED_AT = 4096
_MOST_IN_STREAM = 64  # archives in one that can only be read forward


class _Part(NamedTuple):
    """An archive to read, its split and whether that was given, and what goes before its paths."""

    archive: Archive
    split: str
    given: bool
    prefix: bytes = b""


@dataclass(frozen=True)
class ArchiveReader:
    """Lists the images of archives.

    `paths` are for each split its archives, or folders of such; those of None say their split by
    name, such as `train-0001.tar`, or by folders inside, else it is `split`. `columns` names the
    fields of `image` and `label` of samples as webdataset packs them, where they are not known by
    rule. `doubts` tells whether to refuse what is implausible, see `folder_checks`; `kind` is that
    of the source, "tar" or "zip": each archive is read as what it is.
    """

    paths: Mapping[str | None, Sequence[Path]]
    split: str = "train"
    columns: Mapping[str, str] = field(default_factory=dict)
    doubts: bool = True
    kind: str = "tar"

    def __post_init__(self) -> None:
        _ = self._fields, self._files  # what is wrong with them is refused at once

    @property
    def title(self) -> str:
        return titles_of(self.paths)

    @cached_property
    def _fields(self) -> Fields:
        return Fields.named(self.columns)

    @cached_property
    def _files(self) -> list[_Part]:
        files = flattened(self.paths, self.split, SUFFIXES)
        return [_Part(Archive(path), split, given) for split, given, path in files]

    def fetcher(self) -> ArchiveFetcher:
        return ArchiveFetcher(roots_of(part.archive.path for part in self._files))

    def batches(self, notes: Notes) -> Iterator[tuple[str, Any]]:
        """Yield the rows of each split in order; `SourceError`: an archive is none, or has none."""
        parts = self._named(self._files)
        if self._is_webdataset(parts):
            yield from self._sample_batches(parts, notes)
        else:
            yield from self._tree_batches(parts, notes)

    def _describer(self) -> Callable[[Path], File]:
        """Return what describes the file of an archive, each file once."""
        return cache(partial(describe, roots=self.fetcher().roots))

    def _named(self, parts: Sequence[_Part]) -> list[_Part]:
        """Return archives side by side, with what their names say; refuse what they may mean."""
        names = [part.archive.name.rpartition(b"/")[2] for part in parts if not part.given]
        splits = {frozenset(splits_in(name)) for name in names}
        strange = [name for name in names if splits_in(name) and split_of(as_text(name)) is None]
        if self.doubts and strange and len(splits) > 1:
            raise SourceError(
                f"{self.title}: would all be of split '{self.split}' where their names tell no "
                f"other, such as {as_text(strange[0])}; say in a job which are of which split, "
                "with 'splits: {train: FILES, test: FILES}'"
            )
        if self.doubts and _are_classes([part.archive for part in parts]):
            return [part._replace(prefix=part.archive.stem + b"/") for part in parts]
        return list(parts)

    def _walked(
        self, parts: Sequence[_Part], labels: Sequence[str] = LABEL_SUFFIXES
    ) -> Iterator[tuple[_Part, Iterator[Member]]]:
        """Yield archives with their members, and after each those in it where it has no image."""
        for part in parts:
            inner: list[Archive] = []
            yield part, _members(part.archive, labels, inner)
            found = [_Part(each, _split_in(each, part), part.given) for each in inner]
            yield from ((each, walk(each.archive, labels)) for each in self._named(found))

    def _is_webdataset(self, parts: Sequence[_Part]) -> bool:
        """Tell whether one of the first samples of the first archive has a label beside it."""
        if self._fields.image is not None or self._fields.label is not None:
            return True
        for _, members in self._walked(parts):
            with closing(cast(Any, members)):
                entries = (e for e in islice(members, _LOOKED_AT) if isinstance(e, Entry))
                if (found := any_labelled(entries)) is not None:
                    return found
        return False

    def _tree_batches(self, parts: Sequence[_Part], notes: Notes) -> Iterator[tuple[str, Any]]:
        notes.labels_are_text = True
        titles, classes, described = [], 0, self._describer()
        with Tree(self.kind, notes, doubts=self.doubts) as tree:
            for file, (part, members) in enumerate(self._walked(parts)):
                archive, prefix = part.archive, part.prefix
                titles.append((f"{archive.title}:", len(prefix)))
                notes.files.append(described(archive.path))
                group = tree.group(part.split, part.given, True, archive.shown)
                holds_archives = False
                for member in members:
                    if isinstance(member, Entry) and member.content is None:
                        tree.add(group, member.name and prefix + member.name, member.sample(file))
                    elif isinstance(member, Archive):
                        holds_archives = True
                    else:
                        name = member.name if isinstance(member, Entry) else member
                        tree.leave_out(group, prefix + name)
                if holds_archives:  # those are the archives of the group
                    tree.forget(group)
                classes += bool(archive.stem and prefix == archive.stem + b"/")
            if classes:
                notes.remarks.append(f"each of {classes:,} archives is a class, by its name")
            tree.keep_last()
            yield from tree.batches(titles)

    def _sample_batches(self, parts: Sequence[_Part], notes: Notes) -> Iterator[tuple[str, Any]]:
        samples, described = Samples(self._fields, notes), self._describer()
        walked = self._walked(parts, self._fields.suffixes)
        for file, (part, members) in enumerate(walked):
            notes.files.append(described(part.archive.path))
            rows = samples.rows(members, part.archive.title)
            while batch := list(islice(rows, ROWS_PER_GROUP)):
                yield part.split, make_rows(len(batch), **{**columns_of(batch), "file": file})
        samples.finish()


def _split_in(inner: Archive, part: _Part) -> str:
    """Return the split of an archive in another: given, or by its name or folder, or that one's."""
    words = (split_of(name) for name in reversed(as_text(inner.inner).split("/")))
    return part.split if part.given else next(filter(None, words), part.split)


def _are_classes(archives: Sequence[Archive]) -> bool:
    """Tell whether archives hold a class each: by names, and since no folders are inside."""
    named = are_classes([archive.stem for archive in archives], numbers=False)
    return named and all(map(_is_flat, archives))


def _is_flat(archive: Archive) -> bool:
    """Tell whether the first image of an archive, and no label before it, lies in no folder."""
    with closing(walk(archive)) as members:
        first = next((m for m in islice(members, _LOOKED_AT) if isinstance(m, Entry)), None)
    return first is not None and first.content is None and b"/" not in first.name


# members -----------------------------------------------------------------------------------------


def _members(
    archive: Archive, labels: Sequence[str], inner: list[Archive]
) -> Generator[Member, None, None]:
    """Walk an archive; those in it go into `inner`, or are left out where it has images."""
    has_images, archives = False, []
    for member in walk(archive, labels):
        if isinstance(member, Archive):
            archives.append(member)
        else:
            has_images |= isinstance(member, Entry) and member.content is None
            yield member
    if has_images:
        yield from (other.inner for other in archives)
    elif sum(1 for other in archives if other.start and other.steps) > _MOST_IN_STREAM:
        raise SourceError(
            f"{archive.shown}: holds {len(archives):,} archives, expected at most "
            f"{_MOST_IN_STREAM} in a compressed one, which is unpacked up to each; unpack it, and "
            "give the folder"
        )
    else:
        inner += archives
        yield from archives


def walk(archive: Archive, labels: Sequence[str] = LABEL_SUFFIXES) -> Generator[Member, None, None]:
    """Yield images, labels and archives of an archive in its order, and the names of other files.

    What is hidden is left out. `SourceError`: it is no archive, or cannot be read.
    """
    with reading(archive.path):
        with closing(archive.open()) as stream:
            head = stream.read(8)
        if head.startswith(ZIP_MAGICS) or archive.title.lower().endswith(".zip"):
            yield from walk_zip(archive, labels)
            return
        if step := compression_of(head):
            archive = archive.unpacked(step, archive.start, archive.size)
        with closing(archive.open()) as stream:
            size = archive.size if archive.start else listed_version(archive.path).size
            known = size >= 0 and stream.seekable()
            headers = HeaderStream(stream, size if known else None)
            complete = yield from walk_tar(headers, archive, labels)
            if complete and archive.steps and not archive.start:
                yield from tail(headers)


# fetching ----------------------------------------------------------------------------------------


class ArchiveFetcher(StreamFetcher):
    """Reads members where they are in the archives; those in streams of steps by going forward."""

    def fetch(
        self, rows: Sequence[Sample], files: Sequence[Sequence[Any]], limit: int
    ) -> Iterator[tuple[int, bytes | Problem]]:
        """Yield for each row its index in `rows`, and its bytes or what is wrong with them.

        Raises
        ------
        SourceError
            Where an archive is gone, or changed since it was listed.
        """
        for row, raw in self._fetch_raw(rows, files, limit):
            yield row, unpacked(raw, rows[row])

    def _fetch_raw(
        self, rows: Sequence[Sample], files: Sequence[Sequence[Any]], limit: int
    ) -> Iterator[tuple[int, bytes | Problem]]:
        remote: dict[int, list[Wanted]] = {}
        with listed_files(self.roots, files) as archive:
            for (file, steps), group in groupby(
                enumerate(rows), key=lambda item: (item[1].file, steps_of(item[1]))
            ):
                root = files[file][0]
                path, version = archive(file)
                ranges = ((row, sample.offset, _length_of(sample)) for row, sample in group)
                if steps:
                    opened = partial(open_steps, path, steps)
                    key = str(self.roots[root]), path.name, steps
                    for row, offset, size in ranges:
                        with reading(path, _damaged):
                            data = read_forward(key, (offset, offset + size), opened, version)
                        yield row, data
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


def _length_of(row: Sample) -> int:
    packing = packing_of(row)
    return row.size if packing is None else packing.length


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


def _damaged(path: Path, error: Exception) -> SourceError:
    reason = str(error) or type(error).__name__
    return SourceError(
        f"{shown(path)}: is damaged, or was changed since it was listed ({reason}); fetch it "
        "again, and run the same command again"
    )
