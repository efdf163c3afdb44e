"""How arrays of a store are opened: by Zarr, or without it where its chunks are plain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import zarr

from pipeline.core.errors import DamagedError, StoreError
from pipeline.core.paths import ABSENT, is_remote
from pipeline.storage import shards
from pipeline.storage.atomic import read_json, storage_errors
from pipeline.storage.folders import is_folder
from pipeline.storage.zarr_stores import FolderStore, PlaceStore


def zarr_store(path: Path) -> Any:
    """Return what Zarr opens as the store of a path."""
    if is_remote(path):
        return PlaceStore(path)
    # of a folder that is not there Zarr says so itself
    return FolderStore(path) if is_folder(path) else path


def find_rows(path: Path, name: str, total: int | None = None) -> shards.Rows | None:
    """Return how to read and write an array without Zarr, or None where that is left to it.

    `total` is its length, where it is about to grow. What cannot be read is an error and not left
    to Zarr, which would write other bytes, and knows nothing of `total`.
    """
    try:
        metadata = read_json(path / name / "zarr.json")
    except (*ABSENT, ValueError):
        return None  # Zarr says what is wrong
    if total is not None:
        metadata["shape"][0] = total
    return shards.find_rows(path / name, metadata)


def open_array(path: Path, name: str, mode: Any = "r") -> zarr.Array[Any]:
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
