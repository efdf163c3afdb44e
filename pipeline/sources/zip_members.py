"""Zip archives: their directory, and the bytes of their members.

`zipfile` reads the directory when an archive is listed. To read members it would read it again in
every process, 1.4 s and 116 MB for 200,000 of them: so the key of a row says how its member is
packed, and members are read here, never more of one than was announced, and checked.
"""

from __future__ import annotations

import bz2
import io
import stat
import struct
import zipfile
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Generator, Sequence
from contextlib import closing
from typing import Any, NamedTuple, cast

from pipeline.core.blocks import UNREADABLE, Problem
from pipeline.core.errors import SourceError, one_line
from pipeline.sources.archive_streams import (
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
from pipeline.sources.sample_index import Sample

MAGICS = (b"PK\3\4", b"PK\5\6")  # of a member, of the end
_STORED, _DEFLATED, _BZIP2 = 0, 8, 12
_HEADER = struct.Struct("<4s22xHH")  # of a member: its mark, the lengths of name and further fields
_MOST_NAMES = 2 * 0xFFFF  # bytes of these
_END = struct.Struct("<10xH10x")
_MANY = 0xFFFF  # the number is elsewhere
_ENCRYPTED = 0x1
_ERRORS = (
    zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, OverflowError, struct.error,
    zlib.error, EOFError,
)  # fmt: skip


def walk_zip(archive: Archive, labels: Sequence[str]) -> Generator[Member, None, None]:
    with closing(archive.open_sought()) as file:
        if file.seek(0, io.SEEK_END):  # a server that sends no parts says so here
            file.seek(-1, io.SEEK_END)
            file.read(1)
        try:
            directory = zipfile.ZipFile(file)
            # damage may hide members, which zipfile does not count
            file.seek(-_END.size - len(directory.comment), io.SEEK_END)
            (expected,) = _END.unpack(file.read(_END.size))
            count = len(directory.infolist())
            if expected not in (count & _MANY, _MANY):  # older programs count up to here
                raise zipfile.BadZipFile(f"it lists {count:,} members of {expected:,}")
        except _ERRORS as error:
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
    if info.flag_bits & _ENCRYPTED:
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
    except _ERRORS:
        return b""


def _inner_of_zip(
    info: zipfile.ZipInfo, directory: zipfile.ZipFile, archive: Archive, path: bytes
) -> Archive | bytes:
    file = cast(Any, directory.fp)
    file.seek(info.header_offset)
    mark, *lengths = _HEADER.unpack(file.read(_HEADER.size).ljust(_HEADER.size))
    start = archive.start + info.header_offset + _HEADER.size + sum(lengths)
    if mark != MAGICS[0] or info.compress_type == _BZIP2:
        return path
    inner = archive._replace(start=start, size=info.file_size, inner=path)
    if info.compress_type == _STORED:
        return inner
    return inner.unpacked(b"deflate:%d" % info.CRC, start, info.compress_size, info.file_size)


# reading ------------------------------------------------------------------------------------------


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
    if mark != MAGICS[0]:
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
