"""Files of NumPy, and what is read of them."""

from __future__ import annotations

import io

import numpy as np
import pytest

from pipeline.sources.numpy_files import open_numpy

NAMES = ("cat", "dog", "emu")
COUNT = 50
SAVES = pytest.mark.parametrize("save", [np.savez, np.savez_compressed])


def read_npz(path):
    return open_numpy({None: [path]})


def make_arrays(count=COUNT, shape=(6, 4), dtype=np.uint8, seed=0, labels="int64"):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, np.iinfo(dtype).max, (count, *shape), dtype, endpoint=True)
    return images, rng.integers(0, 3, count).astype(labels)


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
        assert len(block.origins) == stop - start
    return True
