"""The members of tar and zip archives: headers and directories walked once, when they are listed.

Where a tar archive ends without its end mark, or is damaged between members, an entry without a
name stands for what may be lost.

`zipfile` reads the directory of a zip archive. To read members it would read it again in every
process, 1.4 s and 116 MB for 200,000 of them: so the key of a row says how its member is packed,
and members are read here, never more of one than was announced, and checked.
"""

from __future__ import annotations

import bz2
import io
import stat
import struct
import tarfile
import zipfile
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from typing import IO, Any, NamedTuple, cast

from pipeline.core.blocks import TRUNCATED, UNREADABLE, Problem
from pipeline.core.errors import SourceError, one_line
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
from pipeline.sources.fetch import too_short
from pipeline.sources.file_names import is_image, suffix_of
from pipeline.sources.open_cache import READ_BYTES
from pipeline.sources.sample_index import Sample

_BLOCK = tarfile.BLOCKSIZE
_MOST_TAIL = 2**26
_MOST_HEADER = 2**20
_DAMAGED = (tarfile.TarError, ValueError, OverflowError, RecursionError)

ZIP_MAGICS = (b"PK\3\4", b"PK\5\6")  # of a member, of the end
_STORED, _DEFLATED, _BZIP2 = 0, 8, 12
_HEADER = struct.Struct("<4s22xHH")  # of a member: its mark, the lengths of name and further fields
_MOST_NAMES = 2 * 0xFFFF  # bytes of these
_END = struct.Struct("<10xH10x")
_MANY = 0xFFFF  # the number is elsewhere
ENCRYPTED = 0x1
_ZIP_ERRORS = (
    zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, OverflowError, struct.error,
    zlib.error, EOFError,
)  # fmt: skip


# tar ---------------------------------------------------------------------------------------------


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


# zip ---------------------------------------------------------------------------------------------


def open_directory(file: Any) -> zipfile.ZipFile:
    """Read the directory of a zip archive, from which no member is missing; zipfile counts none."""
    directory = zipfile.ZipFile(file)
    file.seek(-_END.size - len(directory.comment), io.SEEK_END)
    (expected,) = _END.unpack(file.read(_END.size))
    count = len(directory.infolist())
    if expected not in (count & _MANY, _MANY):  # older programs count up to here
        raise zipfile.BadZipFile(f"it lists {count:,} members of {expected:,}")
    return directory


def content_offset(file: Any, info: zipfile.ZipInfo) -> int | None:
    """Return where the packed content of a member begins; None where there is no member."""
    file.seek(info.header_offset)
    mark, *lengths = _HEADER.unpack(file.read(_HEADER.size).ljust(_HEADER.size))
    return info.header_offset + _HEADER.size + sum(lengths) if mark == ZIP_MAGICS[0] else None


def walk_zip(archive: Archive, labels: Sequence[str]) -> Generator[Member, None, None]:
    with closing(archive.open_sought()) as file:
        if file.seek(0, io.SEEK_END):  # a server that sends no parts says so here
            file.seek(-1, io.SEEK_END)
            file.read(1)
        try:
            directory = open_directory(file)
        except _ZIP_ERRORS as error:
            raise SourceError(
                f"{archive.shown}: is no zip archive, or not all of one "
                f"({one_line(error)}); correct the name or fetch it again"
            ) from None
        starts = sorted(info.header_offset for info in directory.infolist())
        for info in directory.infolist():
            if (member := _of_zip(info, directory, starts, archive, labels)) is not None:
                yield member


def _of_zip(
    info: zipfile.ZipInfo,
    directory: zipfile.ZipFile,
    starts: Sequence[int],
    archive: Archive,
    labels: Sequence[str],
) -> Member | None:
    name = info.filename.encode("utf-8", "surrogateescape")
    name = name if b"/" in name else name.replace(b"\\", b"/")  # as some of Windows have it
    path = None if name.endswith(b"/") else path_of(name)
    if path is None:
        return None
    start, following = info.header_offset, bisect_right(starts, info.header_offset)
    end = min([*starts[following : following + 1], directory.start_dir])
    alone = following - bisect_left(starts, start) == 1
    fits = alone and start >= 0 and end - start >= _HEADER.size + info.compress_size
    odd = leads_out(name) or _odd_in_zip(info, fits)
    content = None
    if suffix_of(path) in labels:
        small = odd is None and info.file_size <= MOST_LABEL
        content = _content(directory, info) if small else b""
    elif not is_image(path):
        inner = is_inner(path, archive) and odd is None
        return _inner_of_zip(info, directory, archive, path) if inner else path
    if odd and content is None:
        return Entry(path, 0, 0, archive.steps, Problem(UNREADABLE, odd))
    length = min(end - start, _HEADER.size + _MOST_NAMES + info.compress_size)
    packing = Packing(info.compress_type, length, info.compress_size, info.CRC)
    key = b" ".join([archive.steps, bytes(packing)]).strip()
    return Entry(path, archive.start + start, info.file_size, key, content=content)


def _odd_in_zip(info: zipfile.ZipInfo, fits: bool) -> str | None:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if info.flag_bits & ENCRYPTED:
        return "is encrypted; unpack the archive with its password, and give the folder"
    if kind not in (0, stat.S_IFREG):
        return "is a link or a device, expected a file; pack it with links followed"
    if info.compress_type not in (_STORED, _DEFLATED, _BZIP2):
        return f"is packed by method {info.compress_type} of zip, expected deflate; pack it again"
    if not fits:
        return "overlaps another member, or the end of the archive, as in a bomb"
    unlike = info.compress_type == _STORED and info.compress_size != info.file_size
    if unlike or info.compress_size > 2 * info.file_size + MOST_LABEL or info.file_size >> 62:
        return f"takes {info.compress_size:,} bytes packed, and {info.file_size:,} unpacked"
    return None


def _content(directory: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    try:
        with directory.open(info) as file:
            return file.read(MOST_LABEL)
    except _ZIP_ERRORS:
        return b""


def _inner_of_zip(
    info: zipfile.ZipInfo, directory: zipfile.ZipFile, archive: Archive, path: bytes
) -> Archive | bytes:
    offset = content_offset(directory.fp, info)
    if offset is None or info.compress_type == _BZIP2:
        return path
    start = archive.start + offset
    inner = archive._replace(start=start, size=info.file_size, inner=path)
    if info.compress_type == _STORED:
        return inner
    return inner.unpacked(b"deflate:%d" % info.CRC, start, info.compress_size, info.file_size)


# reading members of zip --------------------------------------------------------------------------


class Packing(NamedTuple):
    """How a member of a zip archive lies in the `length` bytes from its local header on."""

    method: int
    length: int
    packed: int  # bytes of its content, packed
    crc: int

    def __bytes__(self) -> bytes:
        return b"=" + b":".join(b"%d" % number for number in self)


def steps_of(row: Sample) -> bytes:
    return row.key.partition(b"=")[0].strip()


def packing_of(row: Sample) -> Packing | None:
    _, is_packed, numbers = row.key.partition(b"=")
    return Packing(*map(int, numbers.split(b":"))) if is_packed else None


def unpacked(raw: bytes | Problem, row: Sample) -> bytes | Problem:
    """Return the content of a member from the bytes that a row says."""
    packing = packing_of(row)
    if packing is None or isinstance(raw, Problem):
        return raw
    method, _, size, crc = packing
    mark, *lengths = _HEADER.unpack(raw[: _HEADER.size].ljust(_HEADER.size))
    if mark != ZIP_MAGICS[0]:
        return _damaged_member("no member begins where the directory says")
    start = _HEADER.size + sum(lengths)
    data = raw[start : start + size]
    if len(data) < size:
        return too_short(len(data), size)
    try:
        # not a byte more than was announced, and checked
        if method == _DEFLATED:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, row.size + 1)
        elif method == _BZIP2:
            data = bz2.BZ2Decompressor().decompress(data, row.size + 1)
    except (zlib.error, OSError, EOFError) as error:
        return _damaged_member(str(error))
    if len(data) != row.size:
        return _damaged_member(f"it unpacks to other than the {row.size:,} bytes announced")
    return data if zlib.crc32(data) == crc else _damaged_member("its checksum is another")


def _damaged_member(why: str) -> Problem:
    return Problem(UNREADABLE, f"is damaged in the archive ({why}); fetch that again")
