"""IDX files, the format of MNIST: a magic number, big-endian sizes, then bytes.

Gzipped files are read as streams that stay open between two ranges, so that reading partitions in
order decompresses each file once and holds no more than one partition.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import zlib
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from pipeline.core.blocks import Block
from pipeline.core.errors import ChecksumError, PixsimError, ShapeError, SourceError
from pipeline.sources.open_cache import borrowed, close_streams, unchanged
from pipeline.sources.protocol import SplitInfo

_UNSIGNED_BYTE = 0x08
_READ_BYTES = 2**20
_MOST_UNPACKED = 1032  # bytes that one byte of deflate stands for, at most
_READ_ERRORS = (EOFError, zlib.error, gzip.BadGzipFile)


def open_plain(path: Path) -> IO[bytes]:
    """Open a file, decompressing it where its first bytes say gzip."""
    try:
        with path.open("rb") as file:
            magic = file.read(2)
        return cast(IO[bytes], gzip.open(path)) if magic == b"\x1f\x8b" else path.open("rb")
    except OSError as error:
        raise SourceError(f"{path}: cannot be opened: {error.strerror}") from None


def check_file(path: Path, checksum: str) -> None:
    """Compare the unpacked content of a file with `ALGORITHM:HEX`.

    `packed-md5:HEX` is compared with the file as it is, for sets whose publishers list only that;
    where such a file is unpacked, there is nothing to compare.

    Raises
    ------
    ChecksumError
        Where it differs, or the file ends too soon.
    """
    algorithm, _, expected = checksum.partition(":")
    packed = algorithm.startswith("packed-")
    if packed and path.suffix != ".gz":
        return
    digest = hashlib.new(algorithm.removeprefix("packed-"), usedforsecurity=False)
    try:
        with path.open("rb") if packed else open_plain(path) as file:
            while data := file.read(_READ_BYTES):
                digest.update(data)
    except _READ_ERRORS as error:
        raise ChecksumError(
            f"{path}: is truncated or damaged ({error}); expected {checksum}; "
            "remove it and fetch it again"
        ) from None
    if digest.hexdigest() != expected:
        raise ChecksumError(
            f"{path}: has {algorithm} {digest.hexdigest()}, expected {expected}; "
            "the file was altered: remove it and fetch it again"
        )


def read_header(path: Path) -> tuple[int, ...]:
    """Return the shape that an IDX file of unsigned bytes announces.

    Raises
    ------
    SourceError
        Where it is no IDX file of unsigned bytes.
    """
    try:
        with open_plain(path) as file:
            magic = file.read(4)
            if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] != _UNSIGNED_BYTE:
                raise SourceError(
                    f"{path}: begins with {magic.hex() or 'nothing'}, expected 000008 and the "
                    "number of dimensions, an IDX file of unsigned bytes"
                )
            sizes = file.read(4 * magic[3])
            return tuple(struct.unpack(f">{magic[3]}I", sizes))
    except (*_READ_ERRORS, struct.error) as error:
        raise SourceError(f"{path}: its header cannot be read ({error}); fetch it again") from None


def _check_room(path: Path, shape: tuple[int, ...]) -> None:
    """Raise `SourceError` where a file cannot hold what its header announces."""
    size = path.stat().st_size
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    if math.prod(shape) > size * (_MOST_UNPACKED if packed else 1):
        raise SourceError(
            f"{path}: has {size:,} bytes, but its header announces the shape {shape}; the file is "
            "truncated or damaged: fetch it again"
        )


def _read_bytes(path: Path, offset: int, size: int, last: bool, version: Hashable) -> bytes:
    """Return `size` bytes from `offset` on of a file's unpacked content; `last`: the last ones."""
    try:
        with borrowed(path, offset, lambda: open_plain(path), version) as cursor:
            cursor.stream.seek(offset)
            data: bytes = cursor.stream.read(size)
            cursor.position = offset + len(data)
            if last:  # gzip compares its checksum at the end, which must be reached
                cursor.position += len(cursor.stream.read(1))
            if len(data) != size:
                raise SourceError(
                    f"{path}: ends at byte {cursor.position} of its content, expected "
                    f"{offset + size} at least; the file is truncated: fetch it again"
                )
    except _READ_ERRORS as error:
        raise SourceError(f"{path}: is truncated or damaged ({error}); fetch it again") from None
    return data


@dataclass(frozen=True)
class IdxSource:
    """Splits of pairs of IDX files, images and labels.

    Attributes
    ----------
    files
        Split name -> (images file, labels file).
    stamps
        What was recorded of the files when they were checked, where they were.
    """

    files: Mapping[str, tuple[Path, Path]]
    class_names: tuple[str, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    full_scale: int = 255
    stamps: Mapping[Path, str] = field(default_factory=dict)

    def splits(self) -> dict[str, SplitInfo]:
        infos = {}
        for split, (images, labels) in self.files.items():
            shape, label_shape = read_header(images), read_header(labels)
            if len(shape) not in (3, 4) or label_shape != shape[:1]:
                raise ShapeError(
                    f"{images} has shape {shape} and {labels.name} {label_shape}; expected "
                    "(images, y, x) and one label for each image"
                )
            _check_room(images, shape)
            _check_room(labels, label_shape)
            infos[split] = SplitInfo(shape[0], shape[1:], "uint8")
        return infos

    def read(self, split: str, start: int, stop: int) -> Block:
        images, labels = self.files[split]
        with self._unchanged(images) as version:
            count, *shape = read_header(images)
            size = int(np.prod(shape))
            first, last = 4 + 4 * (1 + len(shape)) + start * size, stop == count
            pixels = _read_bytes(images, first, (stop - start) * size, last, version)
        with self._unchanged(labels) as version:
            codes = _read_bytes(labels, 8 + start, stop - start, last, version)
        return Block(
            np.frombuffer(pixels, np.uint8).reshape(stop - start, *shape),
            np.frombuffer(codes, np.uint8).astype(np.int32),
            [f"{images.name}[{index}]" for index in range(start, stop)],
        )

    @contextmanager
    def _unchanged(self, path: Path) -> Iterator[Hashable]:
        try:
            with unchanged(path, self.stamps.get(path, "")) as version:
                yield version
        except PixsimError:
            raise
        except OSError as error:
            raise SourceError(f"{path}: cannot be opened: {error.strerror}") from None

    def close(self) -> None:
        close_streams({path for pair in self.files.values() for path in pair})
