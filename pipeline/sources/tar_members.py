"""Tar archives: their headers walked once.

Where one ends without its end mark, or is damaged between members, an entry without a name stands
for what may be lost.
"""

from __future__ import annotations

import tarfile
from collections.abc import Generator, Iterator, Sequence
from typing import IO, Any, cast

from pipeline.core.blocks import TRUNCATED, UNREADABLE, Problem
from pipeline.core.errors import SourceError
from pipeline.sources.archive_streams import (
    BROKEN,
    MOST_LABEL,
    Archive,
    Entry,
    Member,
    is_inner,
    leads_out,
    path_of,
)
from pipeline.sources.file_names import is_image, suffix_of
from pipeline.sources.open_cache import READ_BYTES

_BLOCK = tarfile.BLOCKSIZE
_MOST_TAIL = 2**26
_MOST_HEADER = 2**20
_DAMAGED = (tarfile.TarError, ValueError, OverflowError, RecursionError)


class HeaderStream:
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
            except BROKEN as error:
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


class _Headers(tarfile.TarFile):
    """Reads headers one by one; the members read are not kept."""

    def next(self) -> tarfile.TarInfo | None:
        return None  # else the constructor would read the first, and keep it


def walk_tar(
    stream: HeaderStream, archive: Archive, labels: Sequence[str]
) -> Generator[Member, None, bool]:
    """Walk to the end mark, and tell whether there is one."""
    headers = _Headers(fileobj=cast(IO[bytes], stream), errors="surrogateescape")
    while True:
        start = headers.offset
        stream.advance(start)
        head = stream.peek(_BLOCK)
        if len(head) == _BLOCK and not any(head):
            return True
        try:
            if not head:
                raise tarfile.ReadError("no end mark")
            member = tarfile.TarInfo.fromtarfile(headers)
            if headers.offset <= start or member.size < 0:
                raise tarfile.ReadError("a size below 0")
        except _DAMAGED as error:
            if start == 0:
                raise SourceError(
                    f"{archive.shown}: is no tar archive ({stream.broken or error}); correct the "
                    "name or fetch it again"
                ) from None
            yield _lost(stream, start, str(error))
            return False
        entry = _of_tar(member, stream, archive, labels)
        data_end = member.offset_data + member.size
        if not stream.advance(headers.offset if member.issparse() else data_end):
            yield _cut(entry if isinstance(entry, Entry) else None, stream)
            return False
        if entry:
            yield entry


def tail(stream: HeaderStream) -> Iterator[Entry]:
    """Read to the end, where gzip's checksum is compared; a bomb is left alone."""
    start = stream.tell()
    while stream.tell() - start < _MOST_TAIL and stream.read(READ_BYTES):
        pass
    if stream.broken:
        yield _lost(stream, stream.tell(), "")


def _lost(stream: HeaderStream, position: int, reason: str) -> Entry:
    """Return what stands for the rest of an archive that ends too soon, or is damaged."""
    ended = stream.broken or len(stream.peek(1)) == 0
    detail = (
        f"the archive is {'truncated' if ended else 'damaged'} at byte {position:,} of its content "
        f"({stream.broken or reason}); images may be missing: fetch it again"
    )
    problem = Problem(TRUNCATED if ended else UNREADABLE, detail)
    return Entry(b"", position, 0, problem=problem)


def _cut(entry: Entry | None, stream: HeaderStream) -> Entry:
    if entry is None or entry.content is not None:
        return _lost(stream, stream.tell(), "a member is cut off")
    detail = f"the archive is truncated within it ({stream.broken or 'it ends'}); fetch it again"
    return entry._replace(size=0, problem=Problem(TRUNCATED, detail))


def _of_tar(
    member: tarfile.TarInfo, stream: HeaderStream, archive: Archive, labels: Sequence[str]
) -> Member | None:
    """Return a member that is an image, a label or an archive; else its name, None if hidden."""
    name = member.name.encode("utf-8", "surrogateescape").replace(b"\0", b"?")
    path = None if member.isdir() else path_of(name)
    if path is None:
        return None
    odd, start = leads_out(name) or _odd_in_tar(member), archive.start + member.offset_data
    if suffix_of(path) in labels and member.isreg():
        content = stream.read(member.size) if member.size <= MOST_LABEL else b""
        return Entry(path, start, member.size, archive.steps, content=content)
    if is_image(path):
        problem = Problem(UNREADABLE, odd) if odd else None
        return Entry(path, start, member.size, archive.steps, problem)
    if is_inner(path, archive) and odd is None:
        return archive._replace(start=start, size=member.size, inner=path)
    return path


def _odd_in_tar(member: tarfile.TarInfo) -> str | None:
    if member.issym() or member.islnk():
        return "is a link, expected a file; pack it with links followed"
    if not member.isreg() or member.issparse():
        return "is a device or a sparse file, expected a plain file"
    return None
