"""Tar archives as files: their headers walked once, and their members read where they are.

Nothing is extracted. Where an archive ends without its end mark, or is damaged between members, an
entry without a name stands for what may be lost. The streams below go forward, buffer little at
once, and tell damage from a proper end.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from pipeline.core.blocks import TRUNCATED, UNREADABLE, Problem
from pipeline.core.errors import SourceError
from pipeline.core.paths import is_remote, shown
from pipeline.sources.fetch import (
    Wanted,
    listed_files,
    listed_version,
    read_range,
    read_remote,
    reading,
)
from pipeline.sources.file_names import is_hidden, is_image, suffix_of
from pipeline.sources.open_cache import READ_BYTES, close_streams, read_forward
from pipeline.sources.sample_index import Sample
from pipeline.storage.blobs import file_system, open_binary

LABEL_SUFFIXES = (".cls", ".json")
_BLOCK = tarfile.BLOCKSIZE
_MOST_LABEL = 2**16
_MOST_TAIL = 2**26
_MOST_HEADER = 2**20
_DAMAGED = (tarfile.TarError, ValueError, OverflowError, RecursionError)
_BROKEN = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)
_OPENERS: Mapping[bytes, tuple[bytes, Callable[[Any], Any]]] = {
    b"gzip": (b"\x1f\x8b", lambda file: gzip.GzipFile(fileobj=file)),
    b"bzip2": (b"BZh", bz2.BZ2File),
    b"xz": (b"\xfd7zXZ\0", lzma.LZMAFile),
}


# streams ----------------------------------------------------------------------------------------


class _Unpacked:
    """A stream of the content of a compressed file, which it closes too."""

    def __init__(self, path: Path, compression: bytes) -> None:
        self._packed = open_binary(path)
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


def compression_of(path: Path) -> bytes:
    """Return how a file is compressed, by its first bytes; empty where it is not."""
    with reading(path), open_binary(path) as file:
        start = file.read(8)
    return next((n for n, (magic, _) in _OPENERS.items() if start.startswith(magic)), b"")


class _HeaderStream:
    """What `tarfile` reads headers from: forward only, and never much at once.

    `broken` says why the stream ended, where that is not its end.
    """

    def __init__(self, raw: Any, total: int | None) -> None:
        self._raw, self._total = raw, total
        self._peeked = b""
        self._position = 0
        self.broken = ""

    def tell(self) -> int:
        return self._position

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
        self._position += len(data)
        return data

    def advance(self, position: int) -> bool:
        """Go forward to `position`; tell whether the stream goes so far."""
        if self._total is not None and position > self._position:
            # a size may be more than a file can have
            self._position = min(position, self._total)
            self._raw.seek(self._position)
            self._peeked = b""
            return position <= self._total
        while self._position < position:
            if not self.read(min(READ_BYTES, position - self._position)):
                return False
        return True


@contextmanager
def _opened_stream(path: Path, compression: bytes) -> Iterator[_HeaderStream]:
    """Open the content of an archive from its begin."""
    raw = _Unpacked(path, compression) if compression else open_binary(path)
    try:
        size = -1 if compression else listed_version(path).size
        known = size >= 0 and cast(IO[bytes], raw).seekable()
        yield _HeaderStream(raw, size if known else None)
    finally:
        raw.close()


# members ----------------------------------------------------------------------------------------


class Entry(NamedTuple):
    """An image of an archive, or what is a label in webdataset."""

    name: bytes  # parts separated by `/`; empty for what is lost
    offset: int  # of its content, in the archive unpacked
    size: int
    problem: Problem | None = None  # why it cannot be read
    content: bytes | None = None  # of a label

    def sample(self, file: int, origin: str = "", label: str | None = None) -> Sample:
        """Return the image as a row of a listing."""
        if self.problem is None:
            return Sample(origin, file, b"", self.offset, self.size, label)
        status, detail = self.problem.status, self.problem.detail
        return Sample(origin, file, b"", self.offset, self.size, label, status, detail)


class _Archive(tarfile.TarFile):
    """Reads headers one by one; the members read are not kept."""

    def next(self) -> tarfile.TarInfo | None:
        return None  # else the constructor would read the first, and keep it


def walk(
    path: Path, compression: bytes, labels: Sequence[str] = LABEL_SUFFIXES
) -> Generator[Entry | bytes, None, None]:
    """Yield the images and labels of an archive in its order, and the names of other files.

    What is hidden is left out. `SourceError`: it is no tar archive, or cannot be read.
    """
    with reading(path), _opened_stream(path, compression) as stream:
        complete = yield from _walk(stream, path, labels)
        if compression and complete:
            yield from _tail(stream)


def _walk(
    stream: _HeaderStream, path: Path, labels: Sequence[str]
) -> Generator[Entry | bytes, None, bool]:
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
        entry = _entry(member, stream, labels)
        data_end = member.offset_data + member.size
        if not stream.advance(archive.offset if member.issparse() else data_end):
            yield _cut(entry if isinstance(entry, Entry) else None, stream)
            return False
        if entry:
            yield entry


def _tail(stream: _HeaderStream) -> Iterator[Entry]:
    """Read to the end, where gzip's checksum is compared; a bomb is left alone."""
    start = stream.tell()
    while stream.tell() - start < _MOST_TAIL and stream.read(READ_BYTES):
        pass
    if stream.broken:
        yield _lost(stream, stream.tell(), "")


def _lost(stream: _HeaderStream, position: int, reason: str) -> Entry:
    """Return what stands for the rest of an archive that ends too soon, or is damaged."""
    ended = stream.broken or len(stream.peek(1)) == 0
    detail = (
        f"the archive is {'truncated' if ended else 'damaged'} at byte {position:,} of its content "
        f"({stream.broken or reason}); images may be missing: fetch it again"
    )
    return Entry(b"", position, 0, Problem(TRUNCATED if ended else UNREADABLE, detail))


def _cut(entry: Entry | None, stream: _HeaderStream) -> Entry:
    if entry is None or entry.content is not None:
        return _lost(stream, stream.tell(), "a member is cut off")
    detail = f"the archive is truncated within it ({stream.broken or 'it ends'}); fetch it again"
    return entry._replace(size=0, problem=Problem(TRUNCATED, detail))


def _entry(
    member: tarfile.TarInfo, stream: _HeaderStream, labels: Sequence[str]
) -> Entry | bytes | None:
    """Return a member that is an image or a label; else its name, None where it is hidden."""
    name = member.name.encode("utf-8", "surrogateescape").replace(b"\0", b"?")
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    if member.isdir() or not parts or any(is_hidden(part) for part in parts if part != b".."):
        return None
    path = b"/".join(part for part in parts if part != b"..")
    if suffix_of(path) in labels and member.isreg():
        content = stream.read(member.size) if member.size <= _MOST_LABEL else b""
        return Entry(path, member.offset_data, member.size, None, content)
    if not is_image(path):
        return path
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


# fetching ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TarFetcher:
    """Reads members where they are in the archives, whose folders are `roots`.

    Those of compressed archives are read by going forward.
    """

    roots: tuple[Path, ...]

    def fetch(
        self, rows: Sequence[Sample], files: Sequence[Sequence[Any]], limit: int
    ) -> Iterator[tuple[int, bytes | Problem]]:
        """Yield for each row its index in `rows`, and its bytes or what is wrong with them.

        Raises
        ------
        SourceError
            Where an archive is gone, or changed since it was listed.
        """
        remote: dict[int, list[Wanted]] = {}
        with listed_files(self.roots, files) as archive:
            for (file, compression), group in groupby(
                enumerate(rows), key=lambda item: (item[1].file, item[1].key)
            ):
                root = files[file][0]
                path, version = archive(file)
                ranges = ((row, sample.offset, sample.size) for row, sample in group)
                if compression:
                    opened = partial(_Unpacked, path, compression)
                    key = str(self.roots[root]), path.name
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


def _damaged(path: Path, error: Exception) -> SourceError:
    reason = str(error) or type(error).__name__
    return SourceError(
        f"{shown(path)}: is damaged, or was changed since it was listed ({reason}); fetch it "
        "again, and run the same command again"
    )
