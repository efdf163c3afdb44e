"""Arrays where NumPy stored them: `.npy` files and the members of `.npz` archives.

An array is opened by its header, and ranges of it are read: plain data where it lies, compressed
data forward, with the streams of `open_cache`, so that memory stays that of one range. Nothing is
ever unpickled.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy_format

from pipeline.core.errors import InputError, RemoteError, SourceError, one_line
from pipeline.core.paths import is_remote, shown
from pipeline.sources.array_parts import described
from pipeline.sources.array_pixels import NO_GAPS, Gaps
from pipeline.sources.open_cache import borrowed, close_streams, unchanged
from pipeline.storage.blobs import open_binary, version_of

ARRAY_SUFFIX, ARCHIVE_SUFFIX = ".npy", ".npz"
_READ_BYTES = 2**20
_HEADER_BYTES = 2**14
_LOCAL_HEADER = struct.Struct("<26xHH")
_END = struct.Struct("<10xH10x")
_MANY = 0xFFFF  # the number is elsewhere
_ENCRYPTED = 0x1
Array = npt.NDArray[Any]


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn every failure to read a file into a `SourceError` that names it."""
    try:
        yield
    except (InputError, RemoteError):
        raise
    except Exception as error:  # zipfile, zlib and NumPy raise many kinds
        kind = f"an {path.suffix} file" if path.suffix == ARCHIVE_SUFFIX else "a .npy file"
        raise SourceError(
            f"{shown(path)}: cannot be read as {kind} without pickle: {one_line(error)}"
        ) from None


class _MemberStream:
    """One member of a zip archive as a stream that closes the archive with it."""

    def __init__(self, path: Path, name: str) -> None:
        with ExitStack() as stack:
            archive = stack.enter_context(zipfile.ZipFile(stack.enter_context(open_binary(path))))
            self._stream = stack.enter_context(archive.open(name))
            self._stack = stack.pop_all()

    def read(self, size: int) -> bytes:
        return self._stream.read(size)

    def close(self) -> None:
        self._stack.close()


@dataclass(frozen=True)
class StoredArray:
    """An array in a file: where it lies and what its header says.

    It is the file itself, or the `member` of a zip archive, which may be `packed`. Its values begin
    at `offset`: in the file, or in the unpacked content. `identity` tells other content apart, by
    checksum and size, or size and time; a file of another `stamp` is not read.
    """

    path: Path
    member: str | None
    packed: bool
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    identity: Mapping[str, Any]
    stamp: str = ""

    @property
    def title(self) -> str:
        return self.path.name if self.member is None else f"{self.path.name}/{self.member}"

    @property
    def name(self) -> str:
        return f"array '{self.path.name if self.member is None else self.member}'"

    @property
    def gaps(self) -> Gaps:
        return NO_GAPS

    def read(self, start: int, stop: int) -> Array:
        """Read entries `start` to `stop` of the first dimension."""
        with _reading(self.path), unchanged(self.path, self.stamp) as version:
            if self.fortran and len(self.shape) > 1:
                mapped: Array = np.memmap(self.path, self.dtype, "r", self.offset, self.shape, "F")
                return np.array(mapped[start:stop], order="C")
            row = math.prod(self.shape[1:]) * self.dtype.itemsize
            data = self._bytes(self.offset + start * row, (stop - start) * row, version)
            return np.frombuffer(data, self.dtype).reshape(stop - start, *self.shape[1:])

    def _bytes(self, offset: int, size: int, version: Hashable) -> bytes:
        if not self.packed:
            open_it: Callable[[], Any] = partial(open_binary, self.path)
            with borrowed((self.path, None), 0, open_it, version) as cursor:
                cursor.stream.seek(offset)  # position stays 0: this stream can go back
                return self._complete(_read_exactly(cursor.stream, size), size)
        open_it = partial(_MemberStream, self.path, f"{self.member}{ARRAY_SUFFIX}")
        with borrowed((self.path, self.member), offset, open_it, version) as cursor:
            while cursor.position < offset:
                skipped = cursor.stream.read(min(offset - cursor.position, _READ_BYTES))
                cursor.position += len(self._complete(skipped, 1))
            data = self._complete(_read_exactly(cursor.stream, size), size)
            cursor.position += size
            return data

    def _complete(self, data: bytes, least: int) -> bytes:
        if len(data) < least:
            raise SourceError(
                f"{self.title}: ends too soon, {least - len(data)} bytes before what its header "
                "says; the file is truncated: fetch it again"
            )
        return data

    def close(self) -> None:
        """Close the streams of its file that are idle in this process."""
        close_streams({self.path})


def _read_exactly(stream: Any, size: int) -> bytes:
    """Read `size` bytes in pieces, or what there is: a stream may give fewer at a time."""
    pieces, missing = [], size
    while missing:
        piece = stream.read(min(missing, _READ_BYTES))
        if not piece:
            break
        pieces.append(piece)
        missing -= len(piece)
    return b"".join(pieces)


def _read_header(
    stream: Any, title: str, size: int
) -> tuple[tuple[int, ...], np.dtype[Any], bool, int]:
    """Read a .npy header; return the shape, type, Fortran order and where the values begin.

    `size` is that of the entire file or member, with which the header must agree.
    """
    buffer = io.BytesIO(_read_exactly(stream, _HEADER_BYTES))
    version = npy_format.read_magic(buffer)
    if version not in ((1, 0), (2, 0)):
        raise SourceError(f"{title}: has .npy format {version}, expected (1, 0) or (2, 0)")
    first, second = npy_format.read_array_header_1_0, npy_format.read_array_header_2_0
    shape, fortran, dtype = (first if version == (1, 0) else second)(buffer)
    offset = buffer.tell()
    # NumPy takes truth values for whole numbers, here and nowhere else
    plain = all(type(side) is int and side >= 0 for side in shape)
    if dtype.hasobject or dtype.itemsize == 0 or not plain:
        raise SourceError(
            f"{title}: holds {dtype} of shape {shape}, expected numbers or text, which are read "
            "without pickle"
        )
    expected = offset + math.prod(shape) * dtype.itemsize
    if expected != size:
        raise SourceError(
            f"{title}: has {size} bytes, expected {expected} by its header ({dtype} of shape "
            f"{shape}); the file is damaged: fetch it again"
        )
    return tuple(shape), dtype, bool(fortran), offset


def open_array(path: Path) -> StoredArray:
    """Open a `.npy` file; `SourceError` where it is missing, damaged, or no such file."""
    with _reading(path):
        now = version_of(path)
        with open_binary(path) as file:
            shape, dtype, fortran, offset = _read_header(file, path.name, now.size)
    identity = {"name": path.name, "bytes": now.size, **described(path, now)}
    array = StoredArray(path, None, False, offset, shape, dtype, fortran, identity, now.stamp)
    return _checked(array)


def _checked(array: StoredArray) -> StoredArray:
    if array.fortran and len(array.shape) > 1 and (array.packed or is_remote(array.path)):
        raise SourceError(
            f"{array.title}: is in Fortran order, which cannot be read in ranges from a "
            "compressed or remote file; save np.ascontiguousarray(...) of it, or with np.savez"
        )
    return array


# archives ----------------------------------------------------------------------------------------


class Archive:
    """An `.npz` file while its arrays are opened.

    `names` are what the arrays in it are called, `others` what else is in it.
    """

    def __init__(self, path: Path, file: IO[bytes], archive: zipfile.ZipFile, stamp: str) -> None:
        self.path, self._file, self._archive, self._stamp = path, file, archive, stamp
        listed = archive.namelist()
        self.names = [n.removesuffix(ARRAY_SUFFIX) for n in listed if n.endswith(ARRAY_SUFFIX)]
        self.others = [n for n in listed if not n.endswith(ARRAY_SUFFIX)]

    def open(self, name: str) -> StoredArray:
        """Open one array by its header."""
        info = self._archive.getinfo(name + ARRAY_SUFFIX)
        title = f"{self.path.name}/{name}"
        if info.flag_bits & _ENCRYPTED:
            raise SourceError(f"{title}: is encrypted, expected an archive without password")
        with self._archive.open(info) as stream:
            shape, dtype, fortran, offset = _read_header(stream, title, info.file_size)
        packed = info.compress_type != zipfile.ZIP_STORED
        if not packed and info.compress_size != info.file_size:
            raise SourceError(
                f"{title}: {info.compress_size} bytes are stored, expected {info.file_size}"
            )
        if not packed:  # the content lies behind a header in the file
            self._file.seek(info.header_offset)
            lengths = _LOCAL_HEADER.unpack(self._file.read(_LOCAL_HEADER.size))
            offset += info.header_offset + _LOCAL_HEADER.size + sum(lengths)
        identity = {"name": name, "bytes": info.file_size, "crc32": f"{info.CRC:08x}"}
        start = self.path, name, packed, offset
        return _checked(StoredArray(*start, shape, dtype, fortran, identity, self._stamp))

    def check(self, name: str) -> None:
        """Read an array to its end, where zipfile compares its checksum."""
        with self._archive.open(name + ARRAY_SUFFIX) as stream:
            while stream.read(_READ_BYTES):
                pass


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Open an `.npz` file; whatever fails while it is open is a `SourceError` that names it."""
    with _reading(path):
        stamp = version_of(path).stamp
        with open_binary(path) as file, zipfile.ZipFile(file) as archive:
            # damage may hide members, which zipfile does not count
            file.seek(-_END.size - len(archive.comment), io.SEEK_END)
            (expected,) = _END.unpack(file.read(_END.size))
            count = len(archive.infolist())
            if expected not in (count, _MANY):
                raise SourceError(
                    f"{shown(path)}: lists {count} members, expected {expected} by its end record; "
                    "the file is damaged: fetch it again"
                )
            yield Archive(path, file, archive, stamp)
