"""The streams below a tar archive: its content unpacked, and what `tarfile` reads headers from.

Both go forward, hold little at once, and tell damage from a proper end.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from pipeline.core.errors import PixsimError
from pipeline.sources.fetch import failed, stamp_of
from pipeline.storage.blobs import open_binary

READ_BYTES = 2**20
_MOST_HEADER = 2**20
_BROKEN = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)
_OPENERS: Mapping[bytes, tuple[bytes, Callable[[Any], Any]]] = {
    b"gzip": (b"\x1f\x8b", lambda file: gzip.GzipFile(fileobj=file)),
    b"bzip2": (b"BZh", bz2.BZ2File),
    b"xz": (b"\xfd7zXZ\0", lzma.LZMAFile),
}


class Unpacked:
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
    try:
        with open_binary(path) as file:
            start = file.read(8)
    except PixsimError:
        raise
    except Exception as error:  # each file system has its own kinds
        raise failed(path, error) from None
    return next((n for n, (magic, _) in _OPENERS.items() if start.startswith(magic)), b"")


class HeaderStream:
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
            if not self.read(min(READ_BYTES, place - self._place)):
                return False
        return True


@contextmanager
def opened_stream(path: Path, compression: bytes) -> Iterator[HeaderStream]:
    """Open the content of an archive from its begin."""
    raw = Unpacked(path, compression) if compression else open_binary(path)
    try:
        size = None if compression else stamp_of(path)[0]
        known = size is not None and size >= 0 and cast(IO[bytes], raw).seekable()
        yield HeaderStream(raw, size if known else None)
    finally:
        raw.close()
