"""Tar archives of image files, plain or compressed, on this machine or behind a URL.

An archive is never extracted: its headers are walked once, and members are read where they lie.
Inside are folders, as a folder of images has them, or samples as webdataset packs them: members
of one name up to the first dot, such as `000017.jpg` and `000017.cls`.

A member that is cut off is listed as truncated. Where an archive ends without its end mark, or
is damaged between members, a sample without a name stands for what may be lost: it is counted
and listed as unreadable, so that nothing is missing in silence.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import json
import lzma
import os
import tarfile
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from pipeline.errors import PixsimError, SourceError
from pipeline.places import is_remote, shown
from pipeline.sources import LABEL_UNKNOWN, OK, TRUNCATED, UNREADABLE, Problem
from pipeline.sources.cursors import borrowed
from pipeline.sources.cursors import close as close_cursors
from pipeline.sources.fetch import (
    Wanted,
    describe,
    failed,
    file_system,
    read_range,
    read_remote,
    roots_of,
    stamp_of,
    titles_of,
)
from pipeline.sources.layout import as_text, files_in, flattened, is_hidden, is_image, suffix_of
from pipeline.sources.listing import ROWS_PER_GROUP, Notes, Rows, make_rows
from pipeline.sources.tree import Member, Tree

SUFFIXES = (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")
_BLOCK = tarfile.BLOCKSIZE
_MOST_HEADER = 2**20
_MOST_LABEL = 2**16
_MOST_TAIL = 2**26
_READ_BYTES = 2**20
_MOST_OPEN = 64
_LABELS = (".cls", ".json")
_JSON_LABELS = ("label", "cls", "class")
_BROKEN = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)
_DAMAGED = (tarfile.TarError, ValueError, OverflowError, RecursionError)
_OPENERS: Mapping[bytes, tuple[bytes, Callable[[Any], Any]]] = {
    b"gzip": (b"\x1f\x8b", lambda file: gzip.GzipFile(fileobj=file)),
    b"bzip2": (b"BZh", bz2.BZ2File),
    b"xz": (b"\xfd7zXZ\0", lzma.LZMAFile),
}


# opening -----------------------------------------------------------------------------------------


class _Unpacked:
    """A stream of the content of a compressed file, which it closes too."""

    def __init__(self, path: Path, compression: bytes) -> None:
        self._packed = path.open("rb")
        self._content = _OPENERS[compression][1](self._packed)

    def read(self, size: int) -> bytes:
        try:
            return cast(bytes, self._content.read(size))
        except OSError as error:
            if isinstance(error, gzip.BadGzipFile) or error.errno is not None:
                raise
            raise EOFError(str(error)) from error  # how bz2 says that it is damaged

    def close(self) -> None:
        self._content.close()
        self._packed.close()


def _compression(path: Path) -> bytes:
    """Return how a file is compressed, by its first bytes; empty where it is not."""
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except PixsimError:
        raise
    except Exception as error:  # each file system has its own kinds
        raise failed(path, error) from None
    return next((n for n, (magic, _) in _OPENERS.items() if start.startswith(magic)), b"")


class _Stream:
    """What `tarfile` reads headers from: forward only, and never much at once.

    Attributes
    ----------
    broken
        Why the stream ended, where that is not its end.
    """

    def __init__(self, raw: Any, total: int | None) -> None:
        self._raw = raw
        self._total = total
        self._peeked = b""
        self._place = 0
        self.broken = ""

    def tell(self) -> int:
        return self._place

    def peek(self, size: int) -> bytes:
        parts, missing = [self._peeked], size - len(self._peeked)
        while missing > 0 and not self.broken:
            try:
                more = self._raw.read(missing)
            except _BROKEN as error:
                self.broken = str(error) or type(error).__name__
                break
            if not more:
                break
            parts.append(more)
            missing -= len(more)
        self._peeked = b"".join(parts)
        return self._peeked[:size]

    def read(self, size: int) -> bytes:
        if size > _MOST_HEADER:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        data = self.peek(size)
        self._peeked = self._peeked[size:]
        self._place += len(data)
        return data

    def advance(self, place: int) -> bool:
        """Go forward to `place`; tell whether the stream goes so far."""
        if self._total is not None and place > self._place:
            # a size may be more than a file can have
            self._place = min(place, self._total)
            self._raw.seek(self._place)
            self._peeked = b""
            return place <= self._total
        while self._place < place:
            if not self.read(min(_READ_BYTES, place - self._place)):
                return False
        return True


class _Archive(tarfile.TarFile):
    """Reads headers one by one; the members read are not kept."""

    def next(self) -> tarfile.TarInfo | None:
        return None  # else the constructor would read the first, and keep it


# walking -----------------------------------------------------------------------------------------


class Entry(NamedTuple):
    """An image of an archive, or what is a label in webdataset.

    Attributes
    ----------
    name
        Parts separated by `/`; empty for what is lost.
    offset, size
        Of its content, in the archive unpacked.
    problem
        Why it cannot be read.
    content
        Of a label.
    """

    name: bytes
    offset: int
    size: int
    problem: Problem | None = None
    content: bytes | None = None


@contextlib.contextmanager
def _opened(path: Path, compression: bytes) -> Iterator[_Stream]:
    raw = _Unpacked(path, compression) if compression else path.open("rb")
    try:
        size = None if compression else stamp_of(path)[0]
        known = size is not None and size >= 0 and cast(IO[bytes], raw).seekable()
        yield _Stream(raw, size if known else None)
    finally:
        raw.close()


def walk(path: Path, compression: bytes, notes: Notes) -> Generator[Entry, None, None]:
    """Yield the images and labels of an archive in its order, without the hidden ones.

    Raises
    ------
    SourceError
        Where it is no tar archive, or cannot be read.
    """
    try:
        with _opened(path, compression) as stream:
            whole = yield from _walk(stream, path, notes)
            if compression and whole:
                yield from _tail(stream)
    except PixsimError:
        raise
    except Exception as error:  # each file system has its own kinds
        raise failed(path, error) from None


def _walk(stream: _Stream, path: Path, notes: Notes) -> Generator[Entry, None, bool]:
    """Walk to the end mark, and tell whether there is one."""
    archive = _Archive(fileobj=cast(IO[bytes], stream), errors="surrogateescape")
    while True:
        start = archive.offset
        stream.advance(start)
        head = stream.peek(_BLOCK)
        if len(head) == _BLOCK and not any(head):
            return True
        try:
            if not head:
                raise tarfile.ReadError("no end mark")
            member = tarfile.TarInfo.fromtarfile(archive)
            if archive.offset <= start or member.size < 0:
                raise tarfile.ReadError("a size below 0")
        except _DAMAGED as error:
            if start == 0:
                raise SourceError(
                    f"{shown(path)}: is no tar archive ({stream.broken or error}); correct the "
                    "name or fetch it again"
                ) from None
            yield _lost(stream, start, str(error))
            return False
        entry = _entry(member, stream, notes)
        data_end = member.offset_data + member.size
        whole = stream.advance(archive.offset if member.issparse() else data_end)
        if not whole:
            yield _cut(entry, stream)
            return False
        if entry:
            yield entry


def _tail(stream: _Stream) -> Iterator[Entry]:
    """Read to the end, where gzip's checksum is compared; a bomb is left alone."""
    start = stream.tell()
    while stream.tell() - start < _MOST_TAIL and stream.read(_READ_BYTES):
        pass
    if stream.broken:
        yield _lost(stream, stream.tell(), "")


def _lost(stream: _Stream, place: int, reason: str) -> Entry:
    """Return what stands for the rest of an archive that ends too soon, or is damaged."""
    ended = stream.broken or len(stream.peek(1)) == 0
    detail = (
        f"the archive is {'truncated' if ended else 'damaged'} at byte {place:,} of its content "
        f"({stream.broken or reason}); images may be missing: fetch it again"
    )
    return Entry(b"", place, 0, Problem(TRUNCATED if ended else UNREADABLE, detail))


def _cut(entry: Entry | None, stream: _Stream) -> Entry:
    if entry is None or entry.content is not None:
        return _lost(stream, stream.tell(), "a member is cut off")
    detail = f"the archive is truncated within it ({stream.broken or 'it ends'}); fetch it again"
    return entry._replace(size=0, problem=Problem(TRUNCATED, detail))


def _entry(member: tarfile.TarInfo, stream: _Stream, notes: Notes) -> Entry | None:
    """Return a member that is an image or a label."""
    name = member.name.encode("utf-8", "surrogateescape").replace(b"\0", b"?")
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    if member.isdir() or not parts or any(is_hidden(part) for part in parts if part != b".."):
        return None
    path = b"/".join(part for part in parts if part != b"..")
    if suffix_of(path) in _LABELS and member.isreg():
        content = stream.read(member.size) if member.size <= _MOST_LABEL else b""
        return Entry(path, member.offset_data, member.size, None, content)
    if not is_image(path):
        notes.ignored[suffix_of(path)] += 1
        return None
    reason = _refused(member, name, parts)
    problem = Problem(UNREADABLE, reason) if reason else None
    return Entry(path, member.offset_data, member.size, problem)


def _refused(member: tarfile.TarInfo, name: bytes, parts: Sequence[bytes]) -> str | None:
    if name.startswith(b"/") or b".." in parts:
        return "its name leads out of the archive; pack it with a plain name"
    if member.issym() or member.islnk():
        return "is a link, expected a file; pack it with links followed"
    if not member.isreg() or member.issparse():
        return "is a device or a sparse file, expected a plain file"
    return None


# webdataset --------------------------------------------------------------------------------------


@dataclass
class _Sample:
    """The members of one key."""

    key: bytes
    images: list[Entry] = field(default_factory=list)
    labels: dict[str, bytes] = field(default_factory=dict)


def _key(name: bytes) -> bytes:
    """Return the name up to the first dot of its last part."""
    folder, slash, base = name.rpartition(b"/")
    return folder + slash + base.partition(b".")[0]


def _samples(entries: Iterator[Entry]) -> Iterator[_Sample]:
    """Put together the neighbouring entries of one key."""
    sample: _Sample | None = None
    for entry in entries:
        key = _key(entry.name)
        if sample is None or sample.key != key or not entry.name:
            if sample is not None:
                yield sample
            sample = _Sample(key)
        if entry.content is None:
            sample.images.append(entry)
        else:
            sample.labels[suffix_of(entry.name)] = entry.content
    if sample is not None:
        yield sample


def _label(sample: _Sample) -> tuple[str | None, str | None]:
    """Return the label of a sample, or what is wrong with it."""
    if ".cls" in sample.labels:
        text = as_text(sample.labels[".cls"]).strip()
        return (text, None) if text else (None, "its .cls member is empty, or far too large")
    if ".json" not in sample.labels:
        return None, "has no label, expected a .cls or .json member of its name"
    try:
        content = json.loads(sample.labels[".json"])
    except (ValueError, RecursionError) as error:
        return None, f"its .json member cannot be read: {error}"
    found = content if isinstance(content, dict) else {}
    value = next((found[name] for name in _JSON_LABELS if name in found), None)
    if isinstance(value, str | int) and not isinstance(value, bool):
        # JSON may hold halves of characters, which no table can
        return as_text(str(value).encode("utf-8", "surrogatepass")), None
    return None, f"its .json member has no text or number under {', '.join(_JSON_LABELS)}"


# reader ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TarReader:
    """Lists the images of tar archives.

    Attributes
    ----------
    places
        For each split its archives; those of None say their split by name, or by their folders.
    split
        The split of archives that do not say any.
    title
        What to call the places.
    """

    places: Mapping[str | None, Sequence[Path]]
    split: str
    title: str
    kind = "tar"

    @property
    def _archives(self) -> list[tuple[str, bool, Path]]:
        return list(flattened(self.places, self.split))

    def fetcher(self) -> TarFetcher:
        return TarFetcher(roots_of(path for _, _, path in self._archives))

    def batches(self, notes: Notes) -> Iterator[tuple[str, Any]]:
        """Yield the rows of each split in order.

        Raises
        ------
        SourceError
            Where an archive is not there, is none, or holds no images.
        """
        roots = self.fetcher().roots
        compressions = []
        for _, _, path in self._archives:
            compressions.append(_compression(path))
            notes.files.append(describe(path, roots))
        if self._is_webdataset(compressions):
            yield from self._sample_batches(compressions, notes)
        else:
            notes.labels_are_text = True
            yield from self._tree_batches(compressions, notes)

    def _is_webdataset(self, compressions: Sequence[bytes]) -> bool:
        """Tell whether the first member that counts has a label beside it."""
        for (_, _, path), compression in zip(self._archives, compressions, strict=True):
            with contextlib.closing(walk(path, compression, Notes())) as entries:
                first = next(_samples(entries), None)
            if first is not None:
                return bool(first.labels and first.images)
        return False

    def _tree_batches(
        self, compressions: Sequence[bytes], notes: Notes
    ) -> Iterator[tuple[str, Any]]:
        titles = [f"{path.name}:" for _, _, path in self._archives]
        with Tree() as tree:
            for file, (split, given, path) in enumerate(self._archives):
                group = tree.group(split, given, True, shown(path))
                for entry in walk(path, compressions[file], notes):
                    if entry.content is None:
                        tree.add(_member(entry, group, file))
                    else:
                        notes.ignored[suffix_of(entry.name)] += 1
            streamed = [file for file, name in enumerate(compressions) if name]
            for split, in_order in tree.arrange(streamed):
                for rows in tree.batches(split, in_order, titles, compressions):
                    yield split, rows

    def _sample_batches(
        self, compressions: Sequence[bytes], notes: Notes
    ) -> Iterator[tuple[str, Any]]:
        for file, (split, _, path) in enumerate(self._archives):
            rows: list[tuple[Any, ...]] = []
            for sample in _samples(walk(path, compressions[file], notes)):
                row = _sample_row(sample, path.name, notes)
                rows += [row] if row else []
                if len(rows) == ROWS_PER_GROUP:
                    yield split, _as_rows(rows, file, compressions[file])
                    rows = []
            yield split, _as_rows(rows, file, compressions[file])


def tar_reader(places: Mapping[str | None, Sequence[Path]], split: str = "train") -> TarReader:
    """Return a reader of tar archives.

    Parameters
    ----------
    places
        For each split its archives, or folders of archives; those of None say their split by
        name, such as `train-0001.tar`, or by folders inside.
    split
        The split of archives that do not say any.
    """
    return TarReader(files_in(places, SUFFIXES), split, titles_of(places))


def _member(entry: Entry, group: int, file: int) -> Member:
    problem = entry.problem or Problem(OK, "")
    return Member(
        group,
        file,
        entry.name,
        entry.offset,
        entry.size,
        "",
        problem.status,
        problem.detail or None,
    )


def _sample_row(sample: _Sample, archive: str, notes: Notes) -> tuple[Any, ...] | None:
    """Return origin, offset, size, label, status and detail; None where there is no image."""
    if not sample.images:
        notes.ignored.update(list(sample.labels))
        return None
    image = min(sample.images, key=lambda entry: entry.name)
    label, wrong = _label(sample)
    problem = image.problem or (Problem(LABEL_UNKNOWN, wrong) if wrong else Problem(OK, ""))
    origin = f"{archive}:{as_text(image.name)}"
    return origin, image.offset, image.size, label, problem.status, problem.detail or None


def _as_rows(rows: Sequence[tuple[Any, ...]], file: int, compression: bytes) -> Any:
    names = ("origin", "offset", "size", "label", "status", "detail")
    columns = zip(*rows, strict=True) if rows else ((),) * len(names)
    lists = dict(zip(names, map(list, columns), strict=True))
    return make_rows(len(rows), file=file, key=compression, **lists)


# fetching ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TarFetcher:
    """Reads members where they lie; those of compressed archives by going forward.

    Attributes
    ----------
    roots
        The folders of the archives.
    """

    roots: tuple[Path, ...]

    def fetch(
        self, rows: Rows, files: Sequence[Sequence[Any]], most: int
    ) -> Iterator[tuple[int, bytes | Problem]]:
        """Yield for each row its place in `rows`, and its bytes or what is wrong with them.

        Raises
        ------
        SourceError
            Where an archive is gone, or changed since it was listed.
        """
        remote: dict[int, list[Wanted]] = {}
        with contextlib.ExitStack() as stack:
            opened: dict[int, int] = {}
            for place, (file, offset) in enumerate(zip(rows.file, rows.offset, strict=True)):
                root, size = files[file][0], rows.size[place]
                path = self.roots[root] / files[file][1]
                if rows.key[place]:
                    yield place, _streamed(self.roots[root], path, rows.key[place], offset, size)
                elif is_remote(path):
                    wanted = Wanted(place, str(cast(Any, path).path), offset, offset + size)
                    remote.setdefault(root, []).append(wanted)
                else:
                    yield place, _ranged(path, opened, file, stack, offset, size)
        for root, parts in remote.items():
            # in the order of the archive, so that neighbours come in one request
            parts.sort(key=lambda part: (part.path, part.start))
            yield from read_remote(file_system(self.roots[root]), parts, most, archives=True)

    def close(self) -> None:
        """Close the archives that are read forward."""
        close_cursors({str(root) for root in self.roots})


def _ranged(
    path: Path,
    opened: dict[int, int],
    file: int,
    stack: contextlib.ExitStack,
    offset: int,
    size: int,
) -> bytes | Problem:
    """Read a member of an archive that stays open for the next ones."""
    try:
        if file not in opened:
            if len(opened) >= _MOST_OPEN:
                stack.close()
                opened.clear()
            opened[file] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, opened[file])
        return read_range(opened[file], offset, size)
    except OSError as error:
        raise SourceError(
            f"{path}: cannot be read: {error.strerror or error}; put it back, and run the same "
            "command again"
        ) from error


def _streamed(root: Path, path: Path, compression: bytes, offset: int, size: int) -> bytes:
    """Read a member of a compressed archive, from the nearest place before it."""
    try:
        key = (str(root), path.name)
        with borrowed(key, offset, lambda: _Unpacked(path, compression)) as cursor:
            while cursor.place < offset:
                cursor.place += _read(cursor.stream, min(_READ_BYTES, offset - cursor.place))[0]
            read, data = _read(cursor.stream, size)
            cursor.place += read
            return data
    except PixsimError:
        raise
    except Exception as error:  # each file system has its own kinds
        reason = str(error) or type(error).__name__
        raise SourceError(
            f"{shown(path)}: is damaged, or was changed since it was listed ({reason}); fetch it "
            "again, and run the same command again"
        ) from None


def _read(stream: Any, size: int) -> tuple[int, bytes]:
    """Read `size` bytes exactly."""
    parts = []
    left = size
    while left:
        data = stream.read(min(left, _READ_BYTES))
        if not data:
            raise EOFError(f"it ends {left:,} bytes too soon")
        parts.append(data)
        left -= len(data)
    return size, b"".join(parts)
