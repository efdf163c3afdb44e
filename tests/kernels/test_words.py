"""Distances in words of 16 bits: the bits of NumPy's integers, divided."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.core import exact
from pipeline.kernels import backends

# images a class: alike, of several sizes in any order, at the largest, and classes without images
COUNTS = {
    "alike": np.full(65, 60),
    "mixed": np.tile([3, 128, 1], 30)[:88],
    "largest": np.full(64, 128),
    "empty": np.tile([0, 7], 40),
}


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize("pixels", [1, 64, 65, 784, 1024, 1025, 3072])
def test_distances_in_words_are_those_of_numpy(counts, pixels):
    rng = np.random.default_rng(pixels)
    images = rng.integers(0, 256, (6, pixels), np.uint8)
    images[0], images[1] = 255, 0
    numerators = rng.integers(0, 255 * counts[:, None] + 1, (len(counts), pixels))
    numerators[0], numerators[-1] = 0, 255 * counts[-1]
    arithmetic = exact.choose_arithmetic(int(counts.max()), pixels, "uint8")
    kernels = backends.load("cpu")
    prepared = kernels.prepare(numerators, counts, arithmetic)
    assert prepared.words is not None
    scales = {metric: exact.scale_of(metric, counts, pixels, 255) for metric in ("l1", "l2")}
    differences = counts[:, None] * images[:, None].astype(np.int64) - numerators
    expected = {
        "l1": exact.finish_l1(np.abs(differences).sum(2), counts, pixels, 255),
        "l2": exact.finish_l2((differences**2).sum(2).astype(float), counts, pixels, 255),
    }
    for metrics in (("l1", "l2"), ("l1",), ("l2",)):
        into = {metric: np.empty((len(images), len(counts))) for metric in metrics}
        assert kernels.distances(images, prepared, {m: scales[m] for m in metrics}, into)
        for metric in metrics:
            np.testing.assert_array_equal(into[metric], expected[metric])


@pytest.mark.parametrize("counts", [np.full(63, 60), np.arange(1, 70), np.full(70, 129)])
def test_few_classes_many_sizes_or_many_images_are_measured_in_digits(counts):
    numerators = np.zeros((len(counts), 9), np.int64)
    arithmetic = exact.choose_arithmetic(int(counts.max()), 9, "uint8")
    assert backends.load("cpu").prepare(numerators, counts, arithmetic).words is None
