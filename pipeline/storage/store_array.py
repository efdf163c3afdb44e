"""An array of a store as dask and NumPy see it: lazy, checked, read without Zarr."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr
import zarr
from zarr.core.sync import sync
from zarr.storage import StorePath

from pipeline.core.errors import DamagedError, OtherFileError
from pipeline.core.paths import is_remote
from pipeline.storage import shards
from pipeline.storage.atomic import storage_errors
from pipeline.storage.zarr_access import chunk_key, find_rows, open_array
from pipeline.storage.zarr_stores import FolderStore, PlaceStore


@dataclass(frozen=True)
class StoreArray:
    """An array of a store, opened when first read; small enough to travel in every task.

    Reading a part whose file is missing or empty, or whose checksum is wrong, is an error.

    Attributes
    ----------
    path
        The folder of the store.
    name
        The array in it.
    axis
        The axis of samples, the only one that is cut into shards.
    expected
        The fingerprints of its files, in order along the axis, as they were written; an empty one,
        or none at all, is not checked.
    metadata
        What its `zarr.json` should say, where that file is damaged.
    """

    path: Path
    name: str
    axis: int = 0
    expected: tuple[str, ...] = ()
    metadata: Mapping[str, Any] | None = None

    @cached_property
    def _array(self) -> zarr.Array[Any]:
        if self.metadata is None:
            return open_array(self.path, self.name)
        files = PlaceStore(self.path) if is_remote(self.path) else FolderStore(self.path)
        return zarr.Array.from_dict(StorePath(files, self.name), dict(self.metadata))

    def __getstate__(self) -> dict[str, Any]:
        fields = ("path", "name", "axis", "expected", "metadata")
        return {field: getattr(self, field) for field in fields}

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
    def _rows(self) -> shards.Rows | None:
        if self.metadata is not None:
            return shards.find_rows(self.path / self.name, self.metadata)
        return find_rows(self.path, self.name)

    def __getitem__(self, key: Any) -> npt.NDArray[Any]:
        keys = key if isinstance(key, tuple) else (key,)
        try:
            rows = self._rows
            if rows is not None and _is_rows(keys, rows.shape):
                start, stop, _ = keys[0].indices(rows.shape[0])
                found: dict[int, str] | None = {} if self.expected else None
                values = rows.read(start, max(start, stop), found)
                for number, mark in (found or {}).items():
                    self._require(number, mark)
                return values
            if Ellipsis in keys or len(keys) <= self.axis:
                self._check_files(slice(None))
            else:
                self._check_files(keys[self.axis])
            with storage_errors(self.path):
                return np.asarray(self._array[key])
        except DamagedError as error:
            raise type(error)(f"{error}; {self._cure}") from error
        except (ValueError, RuntimeError) as error:
            raise DamagedError(
                f"{self.path}/{self.name}: a chunk cannot be read ({error}); {self._cure}"
            ) from error

    @property
    def _cure(self) -> str:
        return "it was changed after it was written: 'pixsim verify' with --repair makes it again"

    def samples(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Read samples `start` to `stop`."""
        return self[(slice(None),) * self.axis + (slice(start, stop),)]

    @property
    def files(self) -> int:
        """How many files hold the array."""
        return -(-self.shape[self.axis] // self.shard) if self.ndim else 1

    def file(self, number: int) -> str:
        """Return the path of a file of the array, below the folder of the store."""
        return f"{self.name}/{chunk_key(self._array, self.axis, number)}"

    def fingerprint(self, number: int) -> str:
        """Return the fingerprint of a file as it is now; see `shards.fingerprint`.

        Raises
        ------
        DamagedError
            Where it is missing or cannot be read.
        """
        array = self._array
        shapes = zip(array.shards or (), array.chunks, strict=False)
        entries = math.prod(outer // inner for outer, inner in shapes) if array.shards else 0
        return shards.fingerprint(self.path / self.file(number), entries)

    def _require(self, number: int, found: str) -> None:
        """Raise where a file has another fingerprint than expected."""
        wanted = self.expected[number] if number < len(self.expected) else ""
        if wanted and found != wanted:
            raise OtherFileError(
                f"{self.path}/{self.file(number)}: is not the file that was written there "
                f"(its fingerprint is {found}, recorded was {wanted})"
            )

    def lazy(self, token: str) -> xr.Variable:
        """Return the array as a lazy labelled variable, a dask chunk per shard.

        Parameters
        ----------
        token
            Names the content: equal tokens must mean equal values.
        """
        chunks = list(self.shape)
        chunks[self.axis] = self.shard
        name = f"{self.name}-{token}-{self.path}"
        meta = np.empty((0,) * self.ndim, self.dtype)
        values = da.from_array(self, chunks=tuple(chunks), name=name, meta=meta)
        return xr.Variable(self.dims, values, self.attributes)

    def small(self) -> xr.Variable:
        """Return the array read whole; names as NumPy's fixed-width text."""
        values = self[(slice(None),) * self.ndim]
        if values.dtype.kind in "OT":
            values = np.array([str(name) for name in values], dtype=str)
        return xr.Variable(self.dims, values, self.attributes)

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
            place = array.store_path / name
            with storage_errors(self.path):
                there = sync(place.exists()) and sync(place.store.getsize(place.path))
            if not there:
                raise DamagedError(f"{self.path}/{self.name}/{name}: this shard is missing")
            if self.expected:
                self._require(number, self.fingerprint(number))


def _is_rows(keys: tuple[Any, ...], shape: tuple[int, ...]) -> bool:
    """Tell whether keys are a range of the first axis and everything of the others."""
    if not keys or not all(isinstance(key, slice) and key.step in (None, 1) for key in keys):
        return False
    whole = zip(keys[1:], shape[1:], strict=False)
    return all(key.indices(size) == (0, size, 1) for key, size in whole)
