"""Arrays and data sets in memory and in files of NumPy, and what is read of them."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from pipeline.sources.numpy_files import open_numpy
from pipeline.sources.xarray_files import ROOT, StoredGroup
from pipeline.sources.xarray_source import make_source

NAMES = ("cat", "dog", "emu")
COUNT = 50
SAVES = pytest.mark.parametrize("save", [np.savez, np.savez_compressed])


def read_npz(path):
    return open_numpy({None: [path]})


def make_arrays(count=COUNT, shape=(6, 4), dtype=np.uint8, seed=0, labels="int64"):
    rng = np.random.default_rng(seed)
    kind = dtype if np.dtype(dtype).kind == "u" else np.uint8
    images = rng.integers(0, np.iinfo(kind).max, (count, *shape), kind, endpoint=True)
    return images.astype(dtype), rng.integers(0, 3, count).astype(labels)


def as_npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def holds(source, split, images, labels, step=7):
    for start in range(0, len(images), step):
        stop = min(start + step, len(images))
        block = source.read(split, start, stop)
        np.testing.assert_array_equal(block.images, images[start:stop])
        np.testing.assert_array_equal(block.labels, labels[start:stop])
        assert (block.labels.dtype, block.images.dtype.isnative) == (np.int32, True)
        assert block.images.flags.c_contiguous
        assert len(block.origins) == stop - start
    return True


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


def make_dataset(images, labels, image="image", label="label", dims=None, **attributes):
    dims = dims or ("sample", "y", "x", "channel")[: images.ndim]
    variables = {image: (dims, images)}
    if labels is not None:
        variables[label] = ((dims[0],), labels)
    return xr.Dataset(variables, attrs=attributes)


def store(dataset, path, **options):
    dataset.to_zarr(path, **options)
    return path
