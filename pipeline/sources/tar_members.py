"""The images in a tar archive, and the labels beside them, found by walking its headers once.

Nothing is extracted. Where an archive ends without its end mark, or is damaged between members, an
entry without a name stands for what may be lost.
"""

from __future__ import annotations

import tarfile
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple, cast

from pipeline.core.blocks import TRUNCATED, UNREADABLE, Problem
from pipeline.core.errors import PixsimError, SourceError
from pipeline.core.urls import shown
from pipeline.sources.fetch import failed
from pipeline.sources.file_names import is_hidden, is_image, suffix_of
from pipeline.sources.tar_streams import READ_BYTES, HeaderStream, opened_stream

LABEL_SUFFIXES = (".cls", ".json")
_BLOCK = tarfile.BLOCKSIZE
_MOST_LABEL = 2**16
_MOST_TAIL = 2**26
_DAMAGED = (tarfile.TarError, ValueError, OverflowError, RecursionError)


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


class _Archive(tarfile.TarFile):
    """Reads headers one by one; the members read are not kept."""

    def next(self) -> tarfile.TarInfo | None:
        return None  # else the constructor would read the first, and keep it


def walk(
    path: Path, compression: bytes, labels: Sequence[str] = LABEL_SUFFIXES
) -> Generator[Entry | bytes, None, None]:
    """Yield the images and labels of an archive in its order, and the names of other files.

    What is hidden is left out.

    Raises
    ------
    SourceError
        Where it is no tar archive, or cannot be read.
    """
    try:
        with opened_stream(path, compression) as stream:
            whole = yield from _walk(stream, path, labels)
            if compression and whole:
                yield from _tail(stream)
    except PixsimError:
        raise
    except Exception as error:  # each file system has its own kinds
        raise failed(path, error) from None


def _walk(
    stream: HeaderStream, path: Path, labels: Sequence[str]
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
        whole = stream.advance(archive.offset if member.issparse() else data_end)
        if not whole:
            yield _cut(entry if isinstance(entry, Entry) else None, stream)
            return False
        if entry:
            yield entry


def _tail(stream: HeaderStream) -> Iterator[Entry]:
    """Read to the end, where gzip's checksum is compared; a bomb is left alone."""
    start = stream.tell()
    while stream.tell() - start < _MOST_TAIL and stream.read(READ_BYTES):
        pass
    if stream.broken:
        yield _lost(stream, stream.tell(), "")


def _lost(stream: HeaderStream, place: int, reason: str) -> Entry:
    """Return what stands for the rest of an archive that ends too soon, or is damaged."""
    ended = stream.broken or len(stream.peek(1)) == 0
    detail = (
        f"the archive is {'truncated' if ended else 'damaged'} at byte {place:,} of its content "
        f"({stream.broken or reason}); images may be missing: fetch it again"
    )
    return Entry(b"", place, 0, Problem(TRUNCATED if ended else UNREADABLE, detail))


def _cut(entry: Entry | None, stream: HeaderStream) -> Entry:
    if entry is None or entry.content is not None:
        return _lost(stream, stream.tell(), "a member is cut off")
    detail = f"the archive is truncated within it ({stream.broken or 'it ends'}); fetch it again"
    return entry._replace(size=0, problem=Problem(TRUNCATED, detail))


def _entry(
    member: tarfile.TarInfo, stream: HeaderStream, labels: Sequence[str]
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
