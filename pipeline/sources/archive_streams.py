"""Archives, and the streams that their members lie in; nothing is extracted.

A member is a range of a stream. The stream is the file, or is made of it by *steps*: `gzip`,
`bzip2`, `xz` and `deflate:CRC` unpack all of it, `START+SIZE` is a range of it, an archive within
the archive. Streams buffer little at once, and tell damage from a proper end.
"""

from __future__ import annotations

import bz2
import errno
import gzip
import lzma
import os
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

from pipeline.core.blocks import Problem
from pipeline.core.paths import shown
from pipeline.sources.fetch import listed_version
from pipeline.sources.file_names import as_text, is_hidden
from pipeline.sources.open_cache import READ_BYTES
from pipeline.sources.sample_index import Sample
from pipeline.storage.blobs import open_binary

TAR_SUFFIXES = (".tar", ".tgz", ".tar.gz", ".tbz", ".tbz2", ".tar.bz2", ".txz", ".tar.xz")
SUFFIXES = (*TAR_SUFFIXES, ".zip")
LABEL_SUFFIXES = (".cls", ".json")
MOST_LABEL = 2**16
BROKEN = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)
_MOST_AT_ONCE = 2**29  # such as the directory of a zip archive of some 3 million members
_OPENERS: Mapping[bytes, tuple[bytes, Callable[[Any], Any]]] = {
    b"gzip": (b"\x1f\x8b", lambda file: gzip.GzipFile(fileobj=file)),
    b"bzip2": (b"BZh", bz2.BZ2File),
    b"xz": (b"\xfd7zXZ\0", lzma.LZMAFile),
}


class _Unpacked:
    """A stream of what is packed in another, which it closes too; to go back, it begins anew."""

    def __init__(self, packed: Any, step: bytes) -> None:
        self._packed = packed
        name, _, crc = step.partition(b":")
        self._content = _Inflated(packed, int(crc)) if crc else _OPENERS[name][1](packed)

    def seekable(self) -> bool:
        """Tell that to seek takes as long as to read."""
        return False

    def seek(self, position: int) -> None:
        self._content.seek(position)

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


class _Inflated:
    """What is packed as the members of zip archives are; its checksum is compared at its end."""

    def __init__(self, packed: Any, crc: int) -> None:
        self._packed, self._expected = packed, crc
        self._begin()

    def _begin(self) -> None:
        self._crc = self._position = 0
        self._unpacker = zlib.decompressobj(-zlib.MAX_WBITS)

    def seek(self, position: int) -> None:
        if position < self._position:
            self._packed.seek(0)
            self._begin()
        while self._position < position:
            if not self.read(min(READ_BYTES, position - self._position)):
                break

    def read(self, size: int) -> bytes:
        data = b""
        while size and not data and not self._unpacker.eof:
            packed = self._unpacker.unconsumed_tail or self._packed.read(READ_BYTES)
            # also of nothing more: what was taken in may not be all out
            data = self._unpacker.decompress(packed, size)
            if not packed and not data and not self._unpacker.eof:
                raise EOFError("it ends too soon")
        self._position += len(data)
        self._crc = zlib.crc32(data, self._crc)
        if size and not data and self._crc != self._expected:
            raise zlib.error("its checksum is another")
        return data

    def close(self) -> None:
        """Close nothing: who has this closes what it reads."""


class Window:
    """A range of a stream as a file of its own."""

    def __init__(self, raw: Any, start: int, size: int) -> None:
        self._raw, self._start, self._size = raw, start, size
        self._position = 0
        raw.seek(start)

    def seekable(self) -> bool:
        return bool(self._raw.seekable())

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = 0) -> int:
        position = offset + (0, self._position, self._size)[whence]
        if position < 0:
            raise OSError(errno.EINVAL, "a position below 0")
        self._position = position
        self._raw.seek(self._start + min(position, self._size))
        return position

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - self._position)
        size = left if size < 0 else min(size, left)
        if size > _MOST_AT_ONCE:
            raise ValueError(f"a directory of {size:,} bytes, expected {_MOST_AT_ONCE:,} at most")
        parts: list[bytes] = []
        while size > 0 and (part := self._raw.read(size)):
            parts.append(part)
            size -= len(part)
        data = b"".join(parts)
        self._position += len(data)
        return data

    def close(self) -> None:
        self._raw.close()


def open_steps(path: Path, steps: bytes) -> Any:
    """Open the stream that steps make of a file."""
    stream: Any = open_binary(path)
    try:
        for step in steps.split():
            start, is_range, size = step.partition(b"+")
            made = Window(stream, int(start), int(size)) if is_range else _Unpacked(stream, step)
            stream = made
    except BaseException:
        stream.close()
        raise
    return stream


def compression_of(start: bytes) -> bytes:
    """Return the step that unpacks a stream, by its first bytes; empty where it is not packed."""
    return next((n for n, (magic, _) in _OPENERS.items() if start.startswith(magic)), b"")


# archives and members ------------------------------------------------------------------------


class Archive(NamedTuple):
    """An archive: a file; or a range of the stream that `steps` make of one, `inner` its name."""

    path: Path
    steps: bytes = b""
    start: int = 0
    size: int = -1
    inner: bytes = b""

    @property
    def title(self) -> str:
        """Its name: of one in another the names of both."""
        return ":".join([self.path.name, *([as_text(self.inner)] if self.inner else [])])

    @property
    def shown(self) -> str:
        """Its path and name, for messages."""
        return ":".join([shown(self.path), *([as_text(self.inner)] if self.inner else [])])

    @property
    def name(self) -> bytes:
        """Its name: of one in another that of the member."""
        return self.inner or os.fsencode(self.path.name)

    @property
    def stem(self) -> bytes:
        """Its name without suffix."""
        return stem_of(self.name)

    def unpacked(self, step: bytes, start: int, packed: int, size: int = -1) -> Archive:
        """Return the archive that a step makes of a range of the stream; of 0 on of all of it."""
        steps = b" ".join([self.steps, *([b"%d+%d" % (start, packed)] if start else []), step])
        return self._replace(steps=steps.strip(), start=0, size=size)

    def open(self) -> Any:
        """Open it from its begin on."""
        stream = open_steps(self.path, self.steps)
        return Window(stream, self.start, self.size) if self.start else stream

    def open_sought(self) -> Any:
        """Open it as a file that can be sought, forward and back."""
        size = listed_version(self.path).size if self.size < 0 else self.size
        return Window(open_steps(self.path, self.steps), self.start, size)


def stem_of(name: bytes) -> bytes:
    """Return the name of an archive without its suffix.

    Examples
    --------
    >>> stem_of(b"train.tar.gz"), stem_of(b"Test.ZIP")
    (b'train', b'Test')
    """
    suffix = max((s for s in SUFFIXES if as_text(name).lower().endswith(s)), key=len, default="")
    return name[: len(name) - len(suffix)]


class Entry(NamedTuple):
    """An image of an archive, or what is a label in webdataset."""

    name: bytes  # parts separated by `/`; empty for what is lost
    offset: int  # of its content, in the stream
    size: int
    key: bytes = b""  # the steps of the stream, and how it is packed
    problem: Problem | None = None  # why it cannot be read
    content: bytes | None = None  # of a label

    def sample(self, file: int, origin: str = "", label: str | None = None) -> Sample:
        """Return the image as a row of a listing."""
        row = Sample(origin, file, self.key, self.offset, self.size, label)
        if self.problem is None:
            return row
        return row._replace(status=self.problem.status, detail=self.problem.detail)


Member = Entry | Archive | bytes  # of any other file the name


def path_of(name: bytes) -> bytes | None:
    """Return the path of a member, without what leads out; None where it is hidden."""
    parts = [part for part in name.split(b"/") if part not in (b"", b".", b"..")]
    return None if not parts or any(map(is_hidden, parts)) else b"/".join(parts)


def leads_out(name: bytes) -> str | None:
    out = name.startswith(b"/") or b".." in name.split(b"/")
    return "its name leads out of the archive; pack it with a plain name" if out else None


def is_inner(path: bytes, archive: Archive) -> bool:
    """Tell whether a member is an archive that is read: not one in an archive in an archive."""
    return not archive.inner and as_text(path).lower().endswith(SUFFIXES)
