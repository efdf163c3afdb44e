"""Files of shards, local and remote, read by ranges of bytes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from pipeline.core.paths import is_remote
from pipeline.storage.blobs import file_size, read_bytes


class ShardFile(Protocol):
    """A file whose parts are read."""

    size: int

    def expect(self, places: Sequence[Sequence[int]]) -> None:
        """Be told of the offset and length of what will be read next."""
        ...

    def read(self, length: int, offset: int) -> bytes: ...


class LocalShardFile:
    def __init__(self, number: int) -> None:
        self._number, self.size = number, os.fstat(number).st_size

    def expect(self, places: Sequence[Sequence[int]]) -> None:
        pass

    def read(self, length: int, offset: int) -> bytes:
        return os.pread(self._number, length, offset)


class RemoteShardFile:
    """An object, read whole at once or in ranges; each range is a request."""

    def __init__(self, path: Path, whole: bool) -> None:
        self._path = path
        self._parts = [(0, read_bytes(path))] if whole else []
        self.size = len(self._parts[0][1]) if whole else file_size(path)

    def expect(self, places: Sequence[Sequence[int]]) -> None:
        """Read these ranges, unless they are there: as one, where little lies between them."""
        wanted = [(a, a + n) for a, n in places if a + n <= self.size and not self._holds(a, n)]
        if not wanted:
            return
        first, last = min(a for a, _ in wanted), max(b for _, b in wanted)
        if last - first <= 2 * sum(b - a for a, b in wanted):
            wanted = [(first, last)]
        self._parts = [(start, read_bytes(self._path, start, stop)) for start, stop in wanted]

    def _holds(self, offset: int, length: int) -> bool:
        return any(
            start <= offset and offset + length <= start + len(data) for start, data in self._parts
        )

    def read(self, length: int, offset: int) -> bytes:
        for start, data in self._parts:
            if start <= offset and offset + length <= start + len(data):
                return data[offset - start : offset - start + length]
        raise ChunkError("an answer holds fewer bytes than were asked for")


@contextmanager
def open_shard(path: Path, whole: bool) -> Iterator[ShardFile]:
    """Open a file; `whole` says that most of it will be read."""
    if is_remote(path):
        yield RemoteShardFile(path, whole)
        return
    number = os.open(path, os.O_RDONLY)
    try:
        yield LocalShardFile(number)
    finally:
        os.close(number)


class ChunkError(Exception):
    """A chunk is not what its checksum or its place says."""
