"""Opening and reading the arrays of a store: lazily, every file checked, plain ones without Zarr.

Zarr has a store for fsspec's file systems. The one here goes through `blobs`: a request that fails
for a while is retried, listings are never stale, and no error shows a key. That for local folders
writes aside, where `atomic.sweep` finds what a killed writer left.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Container, Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import zarr
from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    Store,
    SuffixByteRequest,
)
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.core.sync import sync
from zarr.storage import LocalStore, StorePath

from pipeline.core.deferred import deferred
from pipeline.core.errors import DamagedError, OtherFileError, StoreError
from pipeline.core.paths import ABSENT, is_remote, shown
from pipeline.storage import blobs, folders, shards
from pipeline.storage.atomic import read_json, storage_errors, write_pieces

if TYPE_CHECKING:
    import dask.array as da
    import xarray as xr
else:
    da = deferred("dask.array")
    xr = deferred("xarray")

_CURE = "it was changed after it was written: 'pixsim verify' with --repair makes it again"


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


def find_rows(
    path: Path, name: str, axis: int = 0, total: int | None = None
) -> shards.RowArray | None:
    """Return how to read and write an array without Zarr, or None where that is left to it.

    `axis` is the one that is cut into files, `total` its length, where it is about to grow. What
    cannot be read is an error and not left to Zarr, which would write other bytes, and knows
    nothing of `total`.
    """
    try:
        metadata = read_json(path / name / "zarr.json")
    except (*ABSENT, ValueError):
        return None  # Zarr says what is wrong
    if total is not None:
        metadata["shape"][axis] = total
    return shards.find_rows(path / name, metadata, axis)


def open_array(path: Path, name: str, mode: Any = "r") -> zarr.Array[Any]:
    """Open an array with Zarr; `StoreError` without one, `DamagedError` for a broken one."""
    try:
        with storage_errors(path):
            return zarr.open_array(zarr_store(path), path=name, mode=mode, zarr_format=3)
    except FileNotFoundError as error:
        raise StoreError(f"{path}: holds no array '{name}'") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{path}/{name}: cannot be opened ({error})") from error


def chunk_key(array: zarr.Array[Any], axis: int, number: int) -> str:
    """Return the file name of shard `number` along the only axis that is cut."""
    numbers = [0] * array.ndim
    numbers[axis] = number
    return array.metadata.encode_chunk_key(tuple(numbers))


def gathered_metadata(path: Path, name: str, broken: Container[str]) -> dict[str, Any] | None:
    """Return what the groups above an array have gathered of its metadata; see `consolidate`.

    Documents of the store that are `broken` are not read.
    """
    parts = name.split("/")
    for depth in range(len(parts) - 1, -1, -1):
        document = "/".join([*parts[:depth], "zarr.json"])
        if document in broken:
            continue
        try:
            gathered = read_json(path / document)["consolidated_metadata"]["metadata"]
            return dict(gathered["/".join(parts[depth:])])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # a group that has gathered nothing
    return None


def group_attributes(path: Path) -> dict[str, Any]:
    return dict(zarr.open_group(zarr_store(path), mode="r").attrs)


@dataclass(frozen=True)
class StoreArray:
    """An array of a store, opened when first read; small enough to travel in every task.

    Reading a part whose file is missing or empty, or whose checksum is wrong, is an error.
    """

    path: Path  # the folder of the store
    name: str
    axis: int = 0  # that of samples, the only one that is cut into shards
    # the fingerprints of its files as they were written, in order along the axis; an empty one, or
    # none at all, is not checked
    expected: tuple[str, ...] = ()
    metadata: Mapping[str, Any] | None = None  # what its `zarr.json` should say, where damaged

    @cached_property
    def _array(self) -> zarr.Array[Any]:
        if self.metadata is None:
            return open_array(self.path, self.name)
        files = RemoteStore(self.path) if is_remote(self.path) else FolderStore(self.path)
        return zarr.Array.from_dict(StorePath(files, self.name), dict(self.metadata))

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def shape(self) -> tuple[int, ...]:
        return self._array.shape

    @property
    def ndim(self) -> int:
        return self._array.ndim

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._array.dtype

    @property
    def dims(self) -> tuple[str, ...]:
        return tuple(cast(Any, self._array.metadata).dimension_names)

    @property
    def attributes(self) -> dict[str, Any]:
        """What the array says of itself, less what tells xarray which coordinates it has."""
        return {k: v for k, v in self._array.attrs.items() if k != "coordinates"}

    @property
    def shard(self) -> int:
        """Samples a shard."""
        return (self._array.shards or self._array.chunks)[self.axis]

    @cached_property
    def _rows(self) -> shards.RowArray | None:
        if self.metadata is not None:
            return shards.find_rows(self.path / self.name, self.metadata, self.axis)
        return find_rows(self.path, self.name, self.axis)

    def __getitem__(self, key: Any) -> npt.NDArray[Any]:
        keys = key if isinstance(key, tuple) else (key,)
        try:
            rows = self._rows
            if rows is not None and _is_rows(keys, rows.shape, rows.axis):
                start, stop, _ = keys[rows.axis].indices(rows.rows)
                marks: dict[int, str] | None = {} if self.expected else None
                values = rows.read(start, max(start, stop), marks)
                for number, mark in (marks or {}).items():
                    self._require(number, mark)
                return values
            if Ellipsis in keys or len(keys) <= self.axis:
                self._check_files(slice(None))
            else:
                self._check_files(keys[self.axis])
            with storage_errors(self.path):
                return np.asarray(self._array[key])
        except DamagedError as error:
            raise type(error)(f"{error}; {_CURE}") from error
        except (ValueError, RuntimeError) as error:
            raise DamagedError(
                f"{self.path}/{self.name}: a chunk cannot be read ({error}); {_CURE}"
            ) from error

    def samples(self, start: int, stop: int) -> npt.NDArray[Any]:
        return self[(slice(None),) * self.axis + (slice(start, stop),)]

    @property
    def files(self) -> int:
        return -(-self.shape[self.axis] // self.shard) if self.ndim else 1

    def file(self, number: int) -> str:
        """Return the path of a file of the array, below the folder of the store."""
        return f"{self.name}/{chunk_key(self._array, self.axis, number)}"

    def fingerprint(self, number: int) -> str:
        """Return the fingerprint of a file as it is now; see `shards.fingerprint`."""
        array = self._array
        shapes = zip(array.shards or (), array.chunks, strict=False)
        entries = math.prod(outer // inner for outer, inner in shapes) if array.shards else 0
        return shards.fingerprint(self.path / self.file(number), entries)

    def _require(self, number: int, mark: str) -> None:
        """Raise where a file has another fingerprint than expected."""
        wanted = self.expected[number] if number < len(self.expected) else ""
        if wanted and mark != wanted:
            raise OtherFileError(
                f"{self.path}/{self.file(number)}: is not the file that was written there "
                f"(its fingerprint is {mark}, recorded was {wanted})"
            )

    @property
    def chunk(self) -> tuple[int, ...]:
        """The sizes of what is read at once: a shard, or all of the array."""
        cut = min(self.shard, self.shape[self.axis])
        return (*self.shape[: self.axis], cut, *self.shape[self.axis + 1 :])

    def lazy(self, token: str) -> xr.Variable:
        """Return the array as a lazy labelled variable, a dask chunk per shard.

        `token` names the content: equal tokens must mean equal values.
        """
        name = f"{self.name}-{token}-{self.path}"
        meta = np.empty((0,) * self.ndim, self.dtype)
        values = da.from_array(self, chunks=self.chunk, name=name, meta=meta)
        return xr.Variable(self.dims, values, self.attributes)

    def small(self) -> xr.Variable:
        """Return the array read whole; names as NumPy's fixed-width text."""
        return xr.Variable(*self.read())

    def read(self) -> tuple[tuple[str, ...], npt.NDArray[Any], dict[str, Any]]:
        """Return the same as dimensions, values and attributes."""
        values = self[(slice(None),) * self.ndim]
        if values.dtype.kind in "OT":
            values = np.array([str(name) for name in values], dtype=str)
        return self.dims, values, self.attributes

    def _check_files(self, key: Any) -> None:
        """Raise where a shard that `key` touches has no bytes; Zarr would fill it in silently."""
        array, length = self._array, self.shape[self.axis]
        if isinstance(key, slice):
            touched = range(length)[key]
            ends = sorted((touched[0], touched[-1])) if touched else (0, -1)
            numbers = list(range(ends[0] // self.shard, ends[1] // self.shard + 1))
        else:
            index = np.flatnonzero(key) if np.asarray(key).dtype == bool else np.atleast_1d(key)
            numbers = np.unique(np.where(index < 0, index + length, index) // self.shard).tolist()
        for number in numbers:
            name = chunk_key(array, self.axis, number)
            with storage_errors(self.path):
                file = array.store_path / name
                size = sync(file.exists()) and sync(file.store.getsize(file.path))
            if not size:
                raise DamagedError(f"{self.path}/{self.name}/{name}: this shard is missing")
            if self.expected:
                self._require(number, self.fingerprint(number))


def _is_rows(keys: tuple[Any, ...], shape: tuple[int, ...], axis: int) -> bool:
    """Tell whether keys are a range of one axis and everything of the others."""
    if len(keys) <= axis or not all(isinstance(k, slice) and k.step in (None, 1) for k in keys):
        return False
    others = ((k, n) for at, (k, n) in enumerate(zip(keys, shape, strict=False)) if at != axis)
    return all(key.indices(size) == (0, size, 1) for key, size in others)
