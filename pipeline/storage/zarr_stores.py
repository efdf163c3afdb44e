"""The stores that Zarr reads and writes through, where that is left to it.

Zarr has a store for fsspec's file systems. The one here goes through `blobs`: a request that fails
for a while is retried, listings are never stale, and no error shows a key. That for local folders
writes aside, where `atomic.sweep` finds what a killed writer left.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    Store,
    SuffixByteRequest,
)
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore

from pipeline.core.paths import ABSENT, is_remote, shown
from pipeline.storage import blobs, folders
from pipeline.storage.atomic import write_pieces


class FolderStore(LocalStore):
    """The files below a local folder; written as `atomic.replaced` says."""

    async def set(self, key: str, value: Buffer) -> None:
        self._check_writable()
        await asyncio.to_thread(self.set_sync, key, value)

    def set_sync(self, key: str, value: Buffer) -> None:
        self._check_writable()
        write_pieces(self.root / key, [value.as_buffer_like()], lasting=False)


class RemoteStore(Store):
    """The objects below a remote folder; each request runs in a thread."""

    supports_writes = True
    supports_deletes = True
    supports_listing = True

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        super().__init__(read_only=read_only)
        self._path = path

    def with_read_only(self, read_only: bool = False) -> RemoteStore:
        return RemoteStore(self._path, read_only=read_only)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemoteStore) and other._path == self._path

    def __hash__(self) -> int:
        return hash(self._path)

    def __str__(self) -> str:
        return shown(self._path)

    def __repr__(self) -> str:
        return f"RemoteStore({self})"

    def _at(self, key: str) -> Path:
        return self._path / key if key else self._path

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        start, stop = _ends(byte_range)
        try:
            data = await asyncio.to_thread(blobs.read_bytes, self._at(key), start, stop)
        except ABSENT:
            return None
        return prototype.buffer.from_bytes(data)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return list(await asyncio.gather(*(self.get(k, prototype, part) for k, part in key_ranges)))

    async def set(self, key: str, value: Buffer) -> None:
        self._check_writable()
        await asyncio.to_thread(blobs.put_bytes, self._at(key), value.to_bytes())

    async def delete(self, key: str) -> None:
        self._check_writable()
        await asyncio.to_thread(folders.remove_tree, self._at(key))

    async def delete_dir(self, prefix: str) -> None:
        await self.delete(prefix)

    async def exists(self, key: str) -> bool:
        return await asyncio.to_thread(folders.exists, self._at(key))

    async def getsize(self, key: str) -> int:
        return await asyncio.to_thread(blobs.file_size, self._at(key))

    async def list(self) -> AsyncIterator[str]:
        async for key in self.list_prefix(""):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        folder = prefix.rpartition("/")[0]
        below = await asyncio.to_thread(folders.files_below, self._at(folder))
        for name in below:
            key = f"{folder}/{name}" if folder else name
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        for name in await asyncio.to_thread(folders.list_folder, self._at(prefix.rstrip("/"))):
            yield name


def _ends(byte_range: ByteRequest | None) -> tuple[int | None, int | None]:
    """Return where a range of bytes starts (from the end, where negative) and stops."""
    if isinstance(byte_range, RangeByteRequest):
        return byte_range.start, byte_range.end
    if isinstance(byte_range, OffsetByteRequest):
        return byte_range.offset, None
    if isinstance(byte_range, SuffixByteRequest):
        return -byte_range.suffix, None
    return None, None


def zarr_store(path: Path) -> Any:
    if is_remote(path):
        return RemoteStore(path)
    # of a folder that is not there Zarr says so itself
    return FolderStore(path) if folders.is_folder(path) else path
