"""Opening and reading the arrays of a store: lazily, every file checked, plain ones without Zarr.

What Zarr does goes through its event loop and from thread to thread: to open an array takes it
1.3 ms, and reading its `zarr.json` here 0.03 ms.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import zarr
from zarr.core.sync import sync
from zarr.storage import StorePath

from pipeline.core.deferred import deferred
from pipeline.core.errors import DamagedError, OtherFileError, StoreError
from pipeline.core.paths import ABSENT, is_remote
from pipeline.storage import shards, zarr_names
from pipeline.storage.atomic import read_json, storage_errors
from pipeline.storage.zarr_stores import FolderStore, RemoteStore, zarr_store

if TYPE_CHECKING:
    import dask.array as da
    import xarray as xr
else:
    da = deferred("dask.array")
    xr = deferred("xarray")

_CURE = "it was changed after it was written: 'pixsim verify' with --repair makes it again"


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
    except (ValueError, KeyError, TypeError, AttributeError) as error:
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
    try:
        document = read_json(path / "zarr.json")
        if (document["zarr_format"], document["node_type"]) == (3, "group"):
            return dict(document["attributes"])
    except (*ABSENT, ValueError, KeyError, TypeError):
        pass  # Zarr says what is wrong
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

    @cached_property
    def _document(self) -> Mapping[str, Any]:
        """What its `zarr.json` says; nothing where Zarr is to say what is wrong with it."""
        if self.metadata is not None:
            return self.metadata
        try:
            return dict(read_json(self.path / self.name / "zarr.json"))
        except (*ABSENT, ValueError, TypeError):
            return {}

    @cached_property
    def _rows(self) -> shards.RowArray | None:
        try:
            return shards.find_rows(self.path / self.name, self._document, self.axis)
        except (KeyError, TypeError, IndexError, AttributeError):
            return None  # Zarr says what is wrong

    @cached_property
    def _are_names(self) -> bool:
        try:
            return zarr_names.are_names(self._document)
        except (KeyError, TypeError, IndexError, AttributeError):
            return False

    @property
    def shape(self) -> tuple[int, ...]:
        return self._array.shape if self._rows is None else self._rows.shape

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._array.dtype if self._rows is None else self._rows.dtype

    @property
    def dims(self) -> tuple[str, ...]:
        if self._rows is None and not self._are_names:
            return tuple(cast(Any, self._array.metadata).dimension_names)
        return tuple(self._document["dimension_names"])

    @property
    def attributes(self) -> dict[str, Any]:
        """What the array says of itself, less what tells xarray which coordinates it has."""
        plain = self._rows is not None or self._are_names
        said = self._document.get("attributes", {}) if plain else self._array.attrs
        return {name: value for name, value in said.items() if name != "coordinates"}

    @property
    def shard(self) -> int:
        """Samples a shard."""
        if self._rows is not None:
            return self._rows.shard
        return (self._array.shards or self._array.chunks)[self.axis]

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
        rows = self._rows
        key = chunk_key(self._array, self.axis, number) if rows is None else rows.name(number)
        return f"{self.name}/{key}"

    def fingerprint(self, number: int) -> str:
        """Return the fingerprint of a file as it is now; see `shards.fingerprint`."""
        if self._rows is not None:
            return shards.fingerprint(self.path / self.file(number), self._rows.entries)
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
        if self._are_names and not self.expected:
            file = self.path / self.name / "c" / "0"
            return (
                self.dims,
                zarr_names.read_names(file, self._document["shape"][0]),
                self.attributes,
            )
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
