"""What others do with the images of a store, each in the fastest way that was found for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr
import zarr


def _open(store: Path, split: str) -> xr.Dataset:
    """Open a split as a reader without pixsim would: a dask chunk for each whole shard."""
    shard = zarr.open_array(str(store), path=f"{split}/image", mode="r").shards
    chunks = {"sample": shard[0]} if shard else {}
    opened: xr.Dataset = xr.open_zarr(store, group=split, chunks=chunks)
    return opened


def _corner(block: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return one pixel of a block, which must have been read and decoded whole for it."""
    return block[:1, :1, :1].copy()


def lazy_corners(store: Path, split: str) -> da.Array:
    """Read and decode every image of a split, and keep one byte of each shard.

    With 2 threads, of: chunks of a shard, of an inner chunk, of several shards, of dask's own
    choice; through xarray, `dask.array.from_zarr`, `dask.delayed` around zarr; and 1, 2 or 4
    threads of zarr's own, with 1, 2 or 10 reads at once. Whole shards and zarr's defaults
    were the fastest, through xarray or delayed alike; inner chunks took 1.6 times as long.
    """
    images = _open(store, split).image.data
    chunks = ((1,) * images.numblocks[0], (1,), (1,))
    return images.map_blocks(_corner, dtype=images.dtype, chunks=chunks)


def read(store: Path, *splits: str) -> int:
    """Read and decode splits once; return the number of their images."""
    lazy = [lazy_corners(store, split) for split in splits]
    da.compute(*lazy)
    return sum(_open(store, split).sizes["sample"] for split in splits)


def flox_means(store: Path, engine: str | None = None) -> npt.NDArray[np.float64]:
    """Return the mean of each class by xarray's groupby with flox.

    By itself flox takes its engine `numpy` here. Its engine `flox` is faster, with either
    method; `numbagg` is slower and overflows in uint8, which makes its means wrong. Labels
    are loaded first: flox would else have to look for the groups in every chunk.
    """
    images = _open(store, "train")
    images["label"].load()
    options: dict[str, Any] = {} if engine is None else {"engine": engine, "method": "map-reduce"}
    return np.asarray(images.image.groupby("label").mean(**options).compute().values)
