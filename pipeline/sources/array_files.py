"""Arrays that lie in files: `.npy` files, the members of `.npz` archives, and IDX files.

An array is opened by its header, and ranges of it are read: plain data where it lies, compressed
data forward, with the streams of `open_cache`, so that memory stays that of one range. Nothing is
ever unpickled.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy_format

from pipeline.core.errors import ChecksumError, SourceError, one_line
from pipeline.core.paths import is_remote, shown
from pipeline.sources.archive_members import ENCRYPTED, content_offset, open_directory
from pipeline.sources.fetch import reading
from pipeline.sources.open_cache import (
    READ_BYTES,
    borrowed,
    close_streams,
    described,
    read_forward,
    read_fully,
    unchanged,
)
from pipeline.storage.blobs import open_binary, version_of

ARRAY_SUFFIX, ARCHIVE_SUFFIX = ".npy", ".npz"
# what the names of IDX files end in
IDX_SUFFIXES = tuple(
    f"{ending}{gz}"
    for ending in (*(f"idx{n}-ubyte" for n in range(1, 5)), ".idx")
    for gz in ("", ".gz")
)
_HEADER_BYTES = 2**14
_GZIP = b"\x1f\x8b"
_UNSIGNED_BYTE = 0x08
_MOST_UNPACKED = 1032  # bytes that one byte of deflate stands for, at most
_GZIP_ERRORS = (EOFError, zlib.error, gzip.BadGzipFile)
Array = npt.NDArray[Any]


def _unreadable(path: Path, error: Exception) -> SourceError:
    """Return the error of a file that cannot be read: zipfile, zlib and NumPy raise many kinds."""
    if isinstance(error, _GZIP_ERRORS):
        return SourceError(
            f"{shown(path)}: is truncated or damaged ({one_line(error)}); fetch it again"
        )
    kind = f"an {path.suffix} file" if path.suffix == ARCHIVE_SUFFIX else "a .npy file"
    return SourceError(
        f"{shown(path)}: cannot be read as {kind} without pickle: {one_line(error)}; correct the "
        "name or fetch it again"
    )


_reading = partial(reading, error_of=_unreadable)


def is_gzip(path: Path) -> bool:
    with open_binary(path) as file:
        return file.read(2) == _GZIP


def open_gzip(path: Path) -> Any:
    return gzip.open(cast(Any, open_binary(path)) if is_remote(path) else path)


def read_span(
    path: Path,
    key: tuple[Any, Any],
    span: tuple[int, int],
    version: Hashable,
    open_packed: Callable[[], Any] | None = None,
    to_end: bool = False,
) -> bytes:
    """Read bytes `span` of a file, or of what `open_packed` opens; `key` is that of its stream."""
    if open_packed is not None:
        return read_forward(key, span, open_packed, version, to_end)
    with borrowed(key, 0, partial(open_binary, path), version) as cursor:
        cursor.stream.seek(span[0])  # position stays 0: this stream can go back
        return read_fully(cursor.stream, span[1] - span[0])


@dataclass(frozen=True)
class FileArray:
    """An array in a file: what its header says; see `array_source.Stored`.

    It is the file itself, or its `member`. `identity` tells other content apart, by checksum and
    size, or size and time; a file of another `stamp` is not read.
    """

    path: Path
    member: str | None
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    identity: Mapping[str, Any]
    stamp: str

    @property
    def title(self) -> str:
        return self.path.name if self.member is None else f"{self.path.name}/{self.member}"

    @property
    def name(self) -> str:
        return f"array '{self.path.name if self.member is None else self.member}'"


@dataclass(frozen=True)
class StoredArray(FileArray):
    """An array whose bytes lie in a file, or in the `member` of a zip archive; perhaps `packed`.

    Its values begin at `offset`: in the file, or in the unpacked content.
    """

    packed: bool
    offset: int
    fortran: bool = False

    def read(self, start: int, stop: int) -> Array:
        """Read entries `start` to `stop` of the first dimension."""
        with unchanged(self.path, self.stamp) as version, _reading(self.path):
            if self.fortran and len(self.shape) > 1:
                mapped: Array = np.memmap(self.path, self.dtype, "r", self.offset, self.shape, "F")
                return np.array(mapped[start:stop], order="C")
            row = math.prod(self.shape[1:]) * self.dtype.itemsize
            span = self.offset + start * row, self.offset + stop * row
            key = (self.path, self.member if self.packed else None)
            packed, to_end = self._open_packed if self.packed else None, stop == self.shape[0]
            data = read_span(self.path, key, span, version, packed, to_end)
            return np.frombuffer(data, self.dtype).reshape(stop - start, *self.shape[1:])

    def _open_packed(self) -> Any:
        if self.member is None:
            return open_gzip(self.path)
        file = open_binary(self.path) if is_remote(self.path) else self.path
        with zipfile.ZipFile(file) as archive:  # which closes the file with its last stream
            return archive.open(f"{self.member}{ARRAY_SUFFIX}")

    def close(self) -> None:
        """Close the streams of its file that are idle in this process."""
        close_streams({self.path})


def _read_header(
    stream: Any, title: str, size: int
) -> tuple[tuple[int, ...], np.dtype[Any], bool, int]:
    """Read a .npy header; return the shape, type, Fortran order and where the values begin.

    `size` is that of the entire file or member, with which the header must agree.
    """
    buffer = io.BytesIO(read_fully(stream, min(size, _HEADER_BYTES)))
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
    header = path, None, shape, dtype, described(path, now), now.stamp
    return _checked(StoredArray(*header, False, offset, fortran))


def _checked(array: StoredArray) -> StoredArray:
    if array.fortran and len(array.shape) > 1 and (array.packed or is_remote(array.path)):
        raise SourceError(
            f"{array.title}: is in Fortran order, which cannot be read in ranges from a "
            "compressed or remote file; save np.ascontiguousarray(...) of it, or with np.savez"
        )
    return array


# IDX ---------------------------------------------------------------------------------------------


def open_idx(path: Path, checksum: str = "") -> StoredArray:
    """Open an IDX file of unsigned bytes, the format of MNIST, as it is or gzipped.

    It is a magic number, big-endian sizes, then bytes. Where there is a `checksum`, that is
    compared first; see `check_file`.
    """
    with unchanged(path), _reading(path):
        now = version_of(path)
        if checksum:
            check_file(path, checksum)
        packed = is_gzip(path)
        with gzip.open(path) if packed else open_binary(path) as file:
            magic = file.read(4)
            if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] != _UNSIGNED_BYTE:
                raise SourceError(
                    f"{shown(path)}: begins with {magic.hex() or 'nothing'}, expected 000008 and "
                    "the number of dimensions, an IDX file of unsigned bytes"
                )
            sizes = file.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise SourceError(f"{shown(path)}: its header ends too soon; fetch it again")
    shape = struct.unpack(f">{magic[3]}I", sizes)
    if math.prod(shape) > now.size * (_MOST_UNPACKED if packed else 1):
        raise SourceError(
            f"{shown(path)}: has {now.size:,} bytes, but its header announces the shape {shape}; "
            "the file is truncated or damaged: fetch it again"
        )
    header = path, None, shape, np.dtype(np.uint8), described(path, now), now.stamp
    return StoredArray(*header, packed, 4 + len(sizes))


def check_file(path: Path, checksum: str) -> None:
    """Compare the unpacked content of a file with `ALGORITHM:HEX`, or raise `ChecksumError`.

    `packed-md5:HEX` is compared with the file as it is, for sets whose publishers list only that;
    where such a file is unpacked, there is nothing to compare.
    """
    algorithm, _, expected = checksum.partition(":")
    packed = algorithm.startswith("packed-")
    if packed and path.suffix != ".gz":
        return
    try:
        with gzip.open(path) if is_gzip(path) and not packed else open_binary(path) as file:
            make = partial(hashlib.new, algorithm.removeprefix("packed-"), usedforsecurity=False)
            digest = hashlib.file_digest(cast(Any, file), make).hexdigest()
    except _GZIP_ERRORS as error:
        raise ChecksumError(
            f"{path}: is truncated or damaged ({error}); expected {checksum}; "
            "remove it and fetch it again"
        ) from None
    if digest != expected:
        raise ChecksumError(
            f"{path}: has {algorithm} {digest}, expected {expected}; "
            "the file was altered: remove it and fetch it again"
        )


# archives ----------------------------------------------------------------------------------------


class Archive:
    """An `.npz` file while its arrays are opened.

    `names` are what the arrays in it are called, `others` what else is in it.
    """

    def __init__(self, path: Path, archive: zipfile.ZipFile, stamp: str) -> None:
        self.path, self._archive, self._stamp = path, archive, stamp
        listed = archive.namelist()
        self.names = [n.removesuffix(ARRAY_SUFFIX) for n in listed if n.endswith(ARRAY_SUFFIX)]
        self.others = [n for n in listed if not n.endswith(ARRAY_SUFFIX)]

    def open(self, name: str) -> StoredArray:
        """Open one array by its header."""
        info = self._archive.getinfo(name + ARRAY_SUFFIX)
        title = f"{self.path.name}/{name}"
        if info.flag_bits & ENCRYPTED:
            raise SourceError(f"{title}: is encrypted, expected an archive without password")
        with self._archive.open(info) as stream:
            shape, dtype, fortran, offset = _read_header(stream, title, info.file_size)
        packed = info.compress_type != zipfile.ZIP_STORED
        if not packed and info.compress_size != info.file_size:
            raise SourceError(
                f"{title}: {info.compress_size} bytes are stored, expected {info.file_size}"
            )
        if not packed:  # the content lies behind a header in the file
            offset += content_offset(self._archive.fp, info) or 0
        identity = {"name": name, "bytes": info.file_size, "crc32": f"{info.CRC:08x}"}
        header = self.path, name, shape, dtype, identity, self._stamp
        return _checked(StoredArray(*header, packed, offset, fortran))

    def check(self, name: str) -> None:
        """Read an array to its end, where zipfile compares its checksum."""
        with self._archive.open(name + ARRAY_SUFFIX) as stream:
            while stream.read(READ_BYTES):
                pass


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Open an `.npz` file; whatever fails while it is open is a `SourceError` that names it."""
    with _reading(path):
        stamp = version_of(path).stamp
        with open_binary(path) as file, open_directory(file) as archive:
            yield Archive(path, archive, stamp)
