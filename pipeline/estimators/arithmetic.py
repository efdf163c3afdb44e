"""The exact integers behind scikit-learn's estimators: counts of weighted images, and distances.

A weight is a number of times that an image counts. The kernels count images once, so weights are
taken bit by bit: what the images with a bit count is shifted by it, and added up.

Kernels take pixels of 8 or 16 bits. An image with values beyond is measured by its clipped one and
what was cut off, all in integers: where x lies beyond the range that holds all prototypes p,
`|x - p|` is `|clipped - p|` and `|x - clipped|` together; squares are put together of sums of
`x*x` and `x*p`.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr

from pipeline.core.classes import ClassSelection
from pipeline.core.errors import ExactnessError
from pipeline.core.exact import (
    FLOAT64_LIMIT,
    INT64_LIMIT,
    NOWHERE,
    SQUARE_LIMIT,
    Float64Array,
    Int64Array,
    finish_l1,
    finish_l2,
    largest_pixel,
    split_prototypes,
    sum_squares,
)
from pipeline.core.schema import IMAGE, LABEL, PIXEL_DIMS, SAMPLE
from pipeline.estimators.pixels import Queries
from pipeline.kernels import backends
from pipeline.ops.distance_blocks import Reference, distances_block, nearest_block
from pipeline.ops.medians import (
    BINS,
    MIDDLE,
    first_bytes,
    histograms_block,
    low_histograms_block,
    median_numerators,
    select_bytes,
)
from pipeline.ops.neighbours import empty_lists, merge_lists, vote_block
from pipeline.ops.prototypes import BlockFunction, add_blocks, class_sums_block

_BLOCK_BYTES = 2**25
_GROUP_BYTES = 64 * 2**20  # images that are searched at once
_VOTES = 2**22  # pairs of neighbours that are compared at once
Batch = tuple[Any, Int64Array, Int64Array | None]
"""Images [sample, value], a NumPy or dask array; positions of their classes; weights or None."""


def class_sums_of(batch: Batch, classes: int, device: str, threads: int = 1) -> Int64Array:
    """Sum the images of each class, [class, value]."""
    pixels = batch[0].shape[1]
    sizes = {"c": classes, "v": 2 * pixels + 1}
    return _add_by_class(class_sums_block, sizes, np.int64, batch, (device, threads))[:, :pixels]


def histograms_of(
    batch: Batch, classes: int, device: str, threads: int = 1
) -> npt.NDArray[np.uint32]:
    """Count the values of each pixel in each class, [class, value, 256]; of 16 bits high bytes."""
    sizes = {"c": classes, "v": batch[0].shape[1], "b": BINS}
    return _add_by_class(histograms_block, sizes, np.uint32, batch, (device, threads))


def medians_of(batches: Sequence[Batch], classes: int, device: str, threads: int = 1) -> Int64Array:
    """Return twice the median of each class, [class, value], of images of 16 bits."""
    on = device, threads
    high, rest = first_bytes(_total([histograms_of(batch, classes, *on) for batch in batches]))
    sizes = {"r": MIDDLE, "c": classes, "v": high.shape[2], "b": BINS}
    low = _total(
        [
            _add_by_class(low_histograms_block, sizes, np.uint32, batch, on, high)
            for batch in batches
        ]
    )
    return median_numerators(high, select_bytes(low, rest)[0])


def _total(parts: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    return functools.reduce(np.add, parts)


def _add_by_class(
    function: BlockFunction,
    sizes: Mapping[str, int],
    dtype: Any,
    batch: Batch,
    on: tuple[str, int],
    extra: Any = None,
) -> npt.NDArray[Any]:
    """Call a function of `ops` for a batch, and add up; a dask array in a tree of sums."""
    images, positions, weights = batch
    bits = [0] if weights is None else range(int(weights.max()).bit_length())
    parts = []
    for bit in bits:
        mine = positions if weights is None else np.where(weights >> bit & 1, positions, -1)
        if isinstance(images, da.Array):
            parts.append(_lazy_sum(function, sizes, dtype, (images, mine), on[0], extra))
        else:
            more = () if extra is None else (extra,)
            parts.append(function(backends.load(*on), images, mine, _classes(sizes), *more))
    parts = list(da.compute(*parts))
    total: npt.NDArray[Any] = parts[0]
    for bit, part in zip(bits, parts, strict=True):
        total = total + (part << dtype(bit)) if bit else part
    return total


def _classes(sizes: Mapping[str, int]) -> int:
    return sizes["c"]


def _lazy_sum(
    function: BlockFunction, sizes: Mapping[str, int], dtype: Any, labelled: tuple[da.Array, Any],
    device: str, extra: Any,
) -> da.Array:  # fmt: skip
    images, positions = labelled
    lazy = labelled_rows(images, positions)
    codes, kind = range(_classes(sizes)), (tuple(sizes.values()), dtype)
    selection = ClassSelection(tuple(map(str, codes)), tuple(codes))
    more = None if extra is None else da.from_array(extra, chunks=-1)
    return add_blocks(function, kind, lazy, selection, device, more)


def labelled_rows(images: da.Array, positions: Int64Array) -> xr.Dataset:
    """Return rows of pixels as the labelled images of one row each that `ops` take."""
    label = da.from_array(positions.astype(np.int32), chunks=(images.chunks[0],))
    image = images[:, None, :]
    return xr.Dataset({IMAGE.name: ((SAMPLE, *PIXEL_DIMS), image), LABEL.name: (SAMPLE, label)})


# distances ---------------------------------------------------------------------------------------


def measure(
    queries: Queries, reference: Reference, numerators: Int64Array, metric: str, threads: int = 1
) -> Float64Array:
    """Measure images from prototypes.

    Parameters
    ----------
    queries
        The images.
    reference, numerators
        The prototypes as `make_reference` returns them, and made of, [class, value].
    metric, threads
        As for `distances_block`.

    Returns
    -------
    [sample, class]; NaN for a class without images.

    Raises
    ------
    ExactnessError
        Where values lie so far beyond the range that no arithmetic is exact.
    """
    result: Float64Array = distances_block(queries.images, reference, (metric,), threads)[0]
    for rows in _blocks(queries.beyond, 16 * reference.pixels):
        one = queries.beyond[rows]
        result[one] = _measure_beyond(
            queries.steps[rows], queries.images[one], reference, numerators, metric
        )
    return result


def nearest_classes(
    queries: Queries, reference: Reference, numerators: Int64Array, metric: str, threads: int = 1
) -> Int64Array:
    """Return the position of the nearest class of each image, [sample]; as `measure` finds it."""
    nearest, _ = nearest_block(queries.images, reference, metric, threads)
    if len(queries.beyond):
        distances = measure(queries, reference, numerators, metric, threads)[queries.beyond]
        nearest[queries.beyond] = np.where(np.isnan(distances), np.inf, distances).argmin(1)
    return nearest


def distance_shares(distances: Float64Array) -> Float64Array:
    """Return shares that add up to 1 of distances, [sample, class], as their inverse squares.

    Squares, so that shares differ wherever distances do, if only in the last bit.
    """
    known = np.where(np.isnan(distances), np.inf, distances)
    nearest = known.min(1, keepdims=True)
    equal = known == nearest  # 0 / 0 is 1 here
    ratios = np.divide(nearest, known, out=equal.astype(np.float64), where=~equal)
    return np.asarray(ratios**2 / (ratios**2).sum(1, keepdims=True))


def distance_scores(distances: Float64Array) -> Float64Array:
    """Return scores, higher for nearer: [sample, class], and of two classes [sample]."""
    known = np.where(np.isnan(distances), np.inf, distances)
    if known.shape[1] != 2:
        return -known
    first, second = known.T
    total, scores = first + second, np.sign(first - second)  # where one is infinite, or both are 0
    some = np.isfinite(total) & (total > 0)
    return np.asarray(np.divide(first - second, total, out=scores, where=some))


def _measure_beyond(
    steps: Int64Array, clipped: Any, reference: Reference, numerators: Int64Array, metric: str
) -> Float64Array:
    denominators, pixels = reference.denominators, reference.pixels
    most = _check_beyond(steps, int(denominators.max(initial=1)), reference.dtype)
    counts = np.maximum(denominators, 1)
    if metric == "l1":
        totals = backends.load(reference.device).l1_numerators(clipped, reference.prepared)
        totals = totals + _cut_off(steps, clipped)[:, None] * counts
        return finish_l1(totals, denominators, pixels, reference.full_scale)
    quotients, remainders = split_prototypes(numerators, denominators)
    products = _products(steps, quotients), _products(steps, remainders)
    squares = sum_squares(
        (steps * steps).sum(1), products, reference.norms, denominators, pixels, 2 * most
    )
    return finish_l2(squares, denominators, pixels, reference.full_scale)


def _check_beyond(steps: Int64Array, denominator: int, dtype: str) -> int:
    """Return the largest magnitude of values beyond; refuse those that no sum would hold."""
    most = max(int(np.abs(steps).max(initial=0)), largest_pixel(dtype))
    pixels, n = steps.shape[1], max(denominator, 1)
    sums = max(16 * most**2 * pixels, 4 * n * most * pixels)
    if sums >= INT64_LIMIT or 4 * (2 * n * most) ** 2 * pixels >= SQUARE_LIMIT:
        raise ExactnessError(
            f"pixel values {most:,} steps from the lowest of {largest_pixel(dtype):,} that fitting "
            "began with, expected values near those; bring images to one scale, or give "
            "value_range=(lowest, highest) of all values"
        )
    return most


def _cut_off(steps: Int64Array, clipped: Any) -> Int64Array:
    return np.asarray(np.abs(steps - clipped).sum(1))


def _products(one: Int64Array, others: Any) -> Int64Array:
    """[row, other]; products of rows, in float64 where that holds them: it is much faster."""
    bound = int(np.abs(one).max(initial=0)) * int(others.max(initial=0)) * one.shape[1]
    if bound >= FLOAT64_LIMIT:
        return np.asarray(one @ others.astype(np.int64).T)
    product = one.astype(np.float64) @ others.astype(np.float64).T
    return np.asarray(product.astype(np.int64))


def joined(parts: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Return arrays one after the other; of a single one no copy."""
    return np.concatenate(parts) if len(parts) > 1 else parts[0]


def _blocks(rows: Any, row_bytes: int) -> list[slice]:
    step = max(1, _BLOCK_BYTES // max(1, row_bytes))
    return [slice(start, start + step) for start in range(0, len(rows), step)]


# neighbours --------------------------------------------------------------------------------------


def prepare_groups(
    images: npt.NDArray[Any],
    indices: Int64Array,
    shape: tuple[int, ...],
    metric: str,
    device: str,
    threads: int,
) -> list[Any]:
    """Return images, [reference, value], as the kernels search them, in groups that fit memory."""
    use = backends.load(device)
    number = -(-images.nbytes // _GROUP_BYTES)
    edges = [len(images) * group // number for group in range(number + 1)]
    return [
        use.prepare_search(images[a:b], shape, metric, indices[a:b], threads=threads)
        for a, b in itertools.pairwise(edges)
        if b > a
    ]


def votes_of(positions: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Return the class that wins, [query], of those of neighbours, [query, rank]."""
    winners = np.empty(len(positions), np.int32)
    for part in _blocks(positions, _BLOCK_BYTES * positions.shape[1] ** 2 // _VOTES):
        winners[part] = vote_block(positions[part])
    return winners


def vote_shares(
    positions: npt.NDArray[np.int32], winners: npt.NDArray[np.int32], classes: int
) -> Float64Array:
    """Return the share of votes of each class, [query, class]; a tie is won by half a vote more."""
    votes = np.zeros((len(positions), classes))
    np.add.at(votes, (np.arange(len(positions))[:, None], positions), 1.0)
    tied = np.flatnonzero((votes == votes.max(1, initial=0)[:, None]).sum(1) > 1)
    votes[tied, winners[tied]] += 0.5
    return np.asarray(votes / votes.sum(1, keepdims=True))


def correct_lists(
    lists: Int64Array, queries: Queries, images: Any, indices: Int64Array, metric: str
) -> None:
    """Make the lists of the nearest right where queries lie beyond the range.

    Parameters
    ----------
    lists
        [2, query, k]; those of the clipped queries, changed in place.
    queries
        What was searched for.
    images, indices
        [reference, value] and [reference]; what was searched.
    metric
        `l1` or `l2`. By l1 all distances of a query grow by the same; by l2 it is compared with
        each reference again. None is left out: images fitted lie within.
    """
    if not len(queries.beyond):
        return
    _check_beyond(queries.steps, 1, str(images.dtype))
    if metric == "l1":
        found = lists[0][queries.beyond]
        grown = _cut_off(queries.steps, queries.images[queries.beyond])[:, None]
        lists[0][queries.beyond] = np.where(found == NOWHERE, NOWHERE, found + grown)
        return
    for part in _blocks(queries.beyond, 16 * images.shape[1]):
        steps, rows = queries.steps[part], queries.beyond[part]
        best = empty_lists(len(rows), lists.shape[2])
        for group in _blocks(images, 16 * max(images.shape[1], len(rows))):
            others = images[group].astype(np.int64)
            squares = (steps * steps).sum(1)[:, None] + (others * others).sum(1)
            squares -= 2 * _products(steps, others)
            numbers = np.broadcast_to(indices[group], squares.shape)
            best = merge_lists([best, np.stack([squares, numbers])])
        lists[:, rows] = best


def repeat_neighbours(lists: Int64Array, weights: Int64Array, own: Any, k: int) -> Int64Array:
    """List each neighbour as often as it counts.

    Parameters
    ----------
    lists
        [2, query, entry]; the nearest, each once.
    weights
        [reference]; how often each counts.
    own
        [query]; a reference that counts once less, or -1.
    k
        How many entries a new list has.

    Returns
    -------
    [2, query, k].
    """
    numbers = lists[1]
    there = numbers != NOWHERE
    counts = np.where(there, weights[np.where(there, numbers, 0)] - (numbers == own[:, None]), 0)
    ends = counts.cumsum(1)
    at = (ends[:, None, :] <= np.arange(k)[:, None]).sum(2)
    filled = np.concatenate([lists, empty_lists(lists.shape[1], 1)], axis=2)
    return np.take_along_axis(filled, at[None], 2)
