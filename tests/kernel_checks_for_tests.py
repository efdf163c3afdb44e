"""What every kernel is compared with: the integers of NumPy. Needs NumPy and the kernels alone."""

from __future__ import annotations

import itertools

import numpy as np

from pipeline.core.exact import NOWHERE
from pipeline.kernels import backends

METRICS = ("l1", "l2")


def oracle_sums(images, labels, classes):
    """Class sums, sums of squares and counts, image by image, in int64."""
    sums, squares = np.zeros((2, classes, *images.shape[1:]), np.int64)
    counts = np.zeros(classes, np.int64)
    for image, label in zip(images.astype(np.int64), labels, strict=True):
        if label >= 0:
            sums[label] += image
            squares[label] += image * image
            counts[label] += 1
    return sums, squares, counts


def oracle_numerators(queries, references, metric):
    """[query, reference]; sums of absolute or squared differences in int64."""
    rows = []
    for query in queries.astype(np.int64):
        between = np.abs(references.astype(np.int64) - query)
        between = between**2 if metric == "l2" else between
        rows.append(between.reshape(len(references), -1).sum(1))
    return np.stack(rows)


def oracle_lists(numerators, k):
    """Distances and indices of the k nearest, by a stable sort; `NOWHERE` for what there is not."""
    order = np.argsort(numerators, axis=1, kind="stable")[:, :k]
    distances = np.take_along_axis(numerators, order, 1)
    order = np.where(distances == NOWHERE, NOWHERE, order)
    missing = ((0, 0), (0, max(k - numerators.shape[1], 0)))
    return tuple(np.pad(part, missing, constant_values=NOWHERE) for part in (distances, order))


def oracle_histograms(images, positions, classes, high=None):
    """The counts of [class, pixel, 256], value by value."""
    counts = np.zeros((classes, images.shape[1], 256), np.uint32)
    for sample, pixel in np.ndindex(images.shape):
        position, value = int(positions[sample]), int(images[sample, pixel])
        if position < 0 or (high is not None and value >> 8 != high[position, pixel]):
            continue
        if images.dtype == np.uint16:
            value = value >> 8 if high is None else value & 255
        counts[position, pixel, value] += 1
    return counts


def check_classes(device, images, positions, classes, threads=1, high=None):
    """Compare the kernels that go through images class by class with the oracles.

    Once at one go, and once in two parts that are added to columns of a wider accumulator.
    """
    use, middle, pixels = backends.load(device, threads), len(images) // 2, images.shape[1]
    parts = slice(None, middle), slice(middle, None)
    whole = use.class_sums(images, positions, classes)
    wide = np.zeros((classes, 2 * pixels + 2), np.int64)
    into = wide[:, :pixels], wide[:, pixels:-2], wide[:, -2]
    for part in parts:
        assert use.class_sums(images[part], positions[part], classes, into=into) is into
    expected = oracle_sums(images, positions, classes)
    for one, added, right in zip(whole, into, expected, strict=True):
        assert one.dtype == np.int64
        assert np.array_equal(one, right)
        assert np.array_equal(added, right)
    assert not wide[:, -1].any()
    table = np.ones((classes, pixels, 256), np.uint32)
    both = use.class_sums(images, positions, classes, counts=table)
    assert all(np.array_equal(one, right) for one, right in zip(both, expected, strict=True))
    assert np.array_equal(table - 1, oracle_histograms(images, positions, classes))
    for byte in (None,) if images.dtype == np.uint8 else (None, high):
        counts = use.histograms(images, positions, classes, byte)
        wide = np.zeros((classes, pixels * 256 + 2), np.uint32)
        into = wide[:, 1:-1].reshape(classes, pixels, 256)
        for part in parts:
            assert use.histograms(images[part], positions[part], classes, byte, into=into) is into
        assert counts.dtype == np.uint32
        assert np.array_equal(counts, oracle_histograms(images, positions, classes, byte))
        assert np.array_equal(wide[:, 1:-1], counts.reshape(classes, -1))
        assert not wide[:, [0, -1]].any()


def check_histograms():
    """Compare histograms on a CPU with NumPy's, of many images and several tiles of pixels."""
    use, rng = backends.load("cpu", 2), np.random.default_rng(0)
    for pixels in (5, 64, 150, 1030):
        x = rng.integers(0, 256, (300, pixels)) * rng.integers(0, 2, (300, pixels))
        x[:, : pixels // 2] = 255 - x[:, : pixels // 2]  # usual values other than 0
        labels = rng.integers(-1, 3, 300)
        labels[np.flatnonzero(labels == 2)[9:]] = -1  # a class of a few
        every = [x[labels == c][:, :, None] == np.arange(256) for c in range(3)]
        expected = np.stack([one.sum(axis=0) for one in every])
        wide = (256 * x + rng.integers(0, 256, x.shape)).astype(np.uint16)
        for images in (x.astype(np.uint8), wide):
            assert np.array_equal(use.histograms(images, labels, 3), expected)
        high = np.stack([x[0], x[1], x[299]]).astype(np.uint8)
        low = np.zeros_like(expected)
        for image, label in zip(wide, labels, strict=True):
            if label >= 0:
                at = np.flatnonzero(image >> 8 == high[label])
                low[label, at, image[at] & 255] += 1
        assert np.array_equal(use.histograms(wide, labels, 3, high), low)


def check_distances(device, images, numerators, denominators, arithmetic):
    """Compare the kernels that go through images one by one with NumPy's integers."""
    use, x = backends.load(device), images.astype(np.int64)
    over = np.maximum(denominators, 1)
    prepared = use.prepare(numerators, denominators, arithmetic)
    l1, (wholes, rests) = use.l1_numerators(images, prepared), use.dot_products(images, prepared)
    squares = use.squared_norms(images)
    at_once = use.measure(images, prepared)
    for one, each in zip(at_once, (l1, wholes, rests, squares), strict=True):
        assert one.dtype in (np.int32, np.int64)
        assert np.array_equal(one, each)
    assert np.array_equal(use.measure(images, prepared, l2=False)[0], l1)
    assert {found.dtype for found in (l1, wholes, rests, squares)} == {np.dtype(np.int64)}
    for position, n in enumerate(over):
        p = numerators[position]
        assert np.array_equal(l1[:, position], np.abs(n * x - p).sum(axis=1))
        assert np.array_equal(wholes[:, position], x @ (p // n))
        assert np.array_equal(rests[:, position], x @ (p % n))
    assert np.array_equal(squares, (x * x).sum(axis=1))


def some_prototypes(rng, classes, pixels, largest, most):
    """Numerators and denominators up to `most`; a class without images, and the extremes."""
    n = rng.integers(0, most + 1, classes)
    n[0], n[-1] = 0, most
    numerators = rng.integers(0, largest * n[:, None] + 1, (classes, pixels))
    numerators[:, : pixels // 5] = (largest * n)[:, None]
    numerators[:, pixels // 2 : pixels // 2 + pixels // 5] -= 1  # remainders of n - 1
    return np.maximum(numerators, 0), n


def search(queries, references, metric, k, device="cpu", *, cuts=(), skip=None):
    """Return distances and indices, of references that are searched in parts."""
    use, shape = backends.load(device), references.shape[1:]
    distances, found = np.full((2, len(queries), k), NOWHERE)
    skip = np.full(len(queries), -1) if skip is None else skip
    edges = [0, *cuts, len(references)]
    for start, stop in itertools.pairwise(edges):
        if start < stop:
            part = references[start:stop].reshape(stop - start, -1)
            prepared = use.prepare_search(part, shape, metric, np.arange(start, stop), threads=2)
            flat = queries.reshape(len(queries), -1)
            use.nearest(flat, prepared, skip, distances, found, 2)
    return distances, found


def check_search(device, queries, references, metric, k, *, cuts=(), skip=None):
    """Compare lists of the nearest, and the pairs within the k-th distance, with the oracles."""
    numerators = oracle_numerators(queries, references, metric)
    left = numerators.copy()
    if skip is not None:
        rows = np.flatnonzero(skip >= 0)
        left[rows, skip[rows]] = NOWHERE
    expected = oracle_lists(left, k)
    found = search(queries, references, metric, k, device, cuts=cuts, skip=skip)
    for one, right in zip(found, expected, strict=True):
        assert np.array_equal(one, right)
    there = expected[0][expected[0] < NOWHERE]
    for most in (-1, int(np.median(there)) if len(there) else 0):
        check_within(device, queries, references, metric, most, numerators)


def check_within(device, queries, references, metric, most, numerators):
    """Compare all pairs up to a distance with those of NumPy."""
    use, flat = backends.load(device), references.reshape(len(references), -1)
    indices = 7 + np.arange(len(flat))
    prepared = use.prepare_search(flat, references.shape[1:], metric, indices, pairs=True)
    pairs = use.within(queries.reshape(len(queries), -1), prepared, most)
    rows, columns = np.nonzero(numerators <= most)
    assert np.array_equal(pairs, np.stack([rows, columns + 7, numerators[rows, columns]], 1))
