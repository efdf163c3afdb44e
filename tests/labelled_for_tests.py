"""Data sets in memory as labelled sources: what a store would hold, without writing it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr

from pipeline.sources.xarray_files import ROOT, StoredGroup
from pipeline.sources.xarray_source import make_source

COUNT = 23
NAMES = ("cat", "dog", "emu")


@dataclass(frozen=True)
class MemoryGroup(StoredGroup):
    held: xr.Dataset

    def dataset(self):
        return self.held

    def require_unchanged(self):
        pass

    def close(self):
        pass

    def describe(self):
        return {}


def from_datasets(datasets, variables=None, dims=None, class_names=None):
    groups = {n: [MemoryGroup(Path(n), ROOT, "", dataset)] for n, dataset in datasets.items()}
    return make_source(groups, variables or {}, dims or {}, class_names)


def make_arrays(count=COUNT, shape=(6, 4), dtype="uint8", seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, *shape)).astype(dtype)
    return images, rng.integers(0, 3, count).astype(np.int32)


def make_dataset(images, labels, image="image", label="label", dims=None, **attributes):
    dims = dims or ("sample", "y", "x", "channel")[: images.ndim]
    variables = {image: (dims, images)}
    if labels is not None:
        variables[label] = ((dims[0],), labels)
    return xr.Dataset(variables, attrs=attributes)


def holds(source, split, images, labels, step=7):
    for start in range(0, len(images), step):
        stop = min(start + step, len(images))
        block = source.read(split, start, stop)
        np.testing.assert_array_equal(block.images, images[start:stop])
        np.testing.assert_array_equal(block.labels, labels[start:stop])
        assert block.labels.dtype == np.int32
        assert block.images.flags.c_contiguous
    return True


def store(dataset, path, **options):
    dataset.to_zarr(path, **options)
    return path
