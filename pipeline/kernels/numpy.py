"""The kernels in NumPy, for jobs so small that numba would take longer to get ready than to count.

numba and what it loads take 0.85 s of CPU time before the first loop runs, and 2.8 s more where the
loops are not compiled yet; these take 0.6 to 2 ns a pixel and class. Nothing is imported but
NumPy, and everything is an int64: `exact` proves that no sum is beyond it. See `backends.for_work`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.core.exact import Arithmetic, Float64Array, Int64Array, split_prototypes

_BLOCK = 2**17
"""Pixels that are widened at once: with one copy of them they stay in the cache."""


_TILE, _ROWS = 512, 2048
"""Pixels whose values are counted at once, in a table of 1 MB, and images."""


class Prototypes(NamedTuple):
    """Prototypes P/n = m + r/n: P, m and r, [class, pixel], and n, [class]."""

    numerators: Int64Array
    quotients: Int64Array
    remainders: Int64Array
    denominators: Int64Array


def class_sums(
    images: npt.NDArray[Any],
    positions: Int64Array,
    classes: int,
    into: tuple[Int64Array, Int64Array, Int64Array] | None = None,
    counts: npt.NDArray[np.uint32] | None = None,
) -> tuple[Int64Array, Int64Array, Int64Array]:
    """Sum the images of each class and their squares; see `protocols.ClassSums`."""
    if counts is not None:
        histograms(images, positions, classes, into=counts)
    if into is None:
        sums, squares = np.zeros((2, classes, images.shape[1]), np.int64)
        into = sums, squares, np.zeros(classes, np.int64)
    sums, squares, number = into
    for part, at in _blocks(images, positions):
        for position in np.unique(at[at >= 0]).tolist():
            mine = part[at == position]
            sums[position] += mine.sum(axis=0)
            squares[position] += np.einsum("sp,sp->p", mine, mine)
            number[position] += len(mine)
    return into


def _blocks(images: npt.NDArray[Any], *others: npt.NDArray[Any]) -> Any:
    """Yield some images at a time, as int64, and what others say of them."""
    step = max(1, _BLOCK // max(images.shape[1], 1))
    for start in range(0, len(images), step):
        part = slice(start, start + step)
        yield images[part].astype(np.int64), *(other[part] for other in others)


def histograms(
    images: npt.NDArray[Any],
    positions: Int64Array,
    classes: int,
    high: npt.NDArray[np.uint8] | None = None,
    into: npt.NDArray[np.uint32] | None = None,
) -> npt.NDArray[np.uint32]:
    """Count the values of each pixel in each class; see `protocols.Histograms`."""
    counts = np.zeros((classes, images.shape[1], 256), np.uint32) if into is None else into
    for position in range(classes):
        mine = np.flatnonzero(positions == position)
        for first in range(0, images.shape[1], _TILE):
            tile = slice(first, first + _TILE)
            for start in range(0, len(mine), _ROWS):
                values = images[mine[start : start + _ROWS], tile]
                wanted = None if high is None else high[position, tile]
                counts[position, tile] += _counted(values, wanted)
    return counts


def _counted(
    values: npt.NDArray[Any], high: npt.NDArray[np.uint8] | None
) -> npt.NDArray[np.uint32]:
    """Count the (high) bytes of pixels, [pixel, 256]; or the low ones, where the high are those."""
    tables = 256 * np.arange(values.shape[1])
    if high is not None:
        rows, pixels = np.nonzero(values >> 8 == high)
        bins = (values[rows, pixels] & 255) + tables[pixels]
    else:
        bins = ((values >> 8 if values.itemsize > 1 else values) + tables).reshape(-1)
    return np.bincount(bins, minlength=256 * len(tables)).reshape(-1, 256).astype(np.uint32)


def select_ranks(
    counts: npt.NDArray[np.uint32], ranks: Int64Array
) -> tuple[npt.NDArray[np.uint8], Int64Array]:
    """Find the value of each rank; see `protocols.SelectRanks`."""
    values, rest = np.zeros(ranks.shape, np.uint8), np.zeros(ranks.shape, np.int64)
    for position in range(len(counts)):
        for first in range(0, counts.shape[1], _TILE):
            tile = slice(first, first + _TILE)
            upto = counts[position, tile].cumsum(axis=1, dtype=np.int64)
            wanted = ranks[position, tile]
            found = (upto <= wanted[:, None]).sum(axis=1)
            there = np.flatnonzero(found < 256)
            at, of_value = found[there], counts[position, tile][there, found[there]]
            values[position, tile][there] = at
            rest[position, tile][there] = wanted[there] - (upto[there, at] - of_value)
    return values, rest


def prepare(
    numerators: Int64Array, denominators: Int64Array, arithmetic: Arithmetic  # noqa: ARG001
) -> Prototypes:  # fmt: skip
    """Bring prototypes into the form that is read here; see `protocols.Prepare`."""
    limbs = split_prototypes(numerators, denominators)
    return Prototypes(numerators, *limbs, np.maximum(denominators, 1))


def l1_numerators(images: npt.NDArray[Any], prototypes: Prototypes) -> Int64Array:
    """Sum absolute differences to each prototype; see `protocols.L1Numerators`."""
    result = np.empty((len(images), len(prototypes.denominators)), np.int64)
    each = zip(prototypes.numerators, prototypes.denominators.tolist(), strict=True)
    pairs = list(each)
    for part, found in _blocks(images, result):
        apart = np.empty_like(part)
        for position, (numerator, n) in enumerate(pairs):
            np.multiply(part, n, out=apart)
            np.subtract(apart, numerator, out=apart)
            np.abs(apart, out=apart).sum(axis=1, out=found[:, position])
    return result


def dot_products(images: npt.NDArray[Any], prototypes: Prototypes) -> tuple[Int64Array, Int64Array]:
    """Multiply with each prototype's two limbs; see `protocols.DotProducts`."""
    wholes, rests = np.empty((2, len(images), len(prototypes.denominators)), np.int64)
    for part, whole, rest in _blocks(images, wholes, rests):
        whole[:] = part @ prototypes.quotients.T
        rest[:] = part @ prototypes.remainders.T
    return wholes, rests


def squared_norms(images: npt.NDArray[Any]) -> Int64Array:
    """Sum the squares of each image's pixels; see `protocols.SquaredNorms`."""
    result = np.empty(len(images), np.int64)
    for part, found in _blocks(images, result):
        np.einsum("sp,sp->s", part, part, out=found)
    return result


def measure(
    images: npt.NDArray[Any], prototypes: Prototypes, *, l1: bool = True, l2: bool = True
) -> tuple[Int64Array, Int64Array, Int64Array, Int64Array]:
    """Count all that distances need; see `protocols.Measure`."""
    nothing: Int64Array = np.empty((0, 0), np.int64)
    differences = l1_numerators(images, prototypes) if l1 else nothing
    wholes, rests = dot_products(images, prototypes) if l2 else (nothing, nothing)
    return differences, wholes, rests, squared_norms(images) if l2 else np.empty(0, np.int64)


def differences(images: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Compare each image with each other one; see `cpu_differences.differences`."""
    absolute, squared = np.empty((2, len(images), len(images)))
    for index, image in enumerate(images):
        apart = images - image
        np.einsum("ip,ip->i", apart, apart, out=squared[index])
        np.abs(apart, out=apart).sum(axis=1, out=absolute[index])
    return absolute, squared
