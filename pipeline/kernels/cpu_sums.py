"""Sums of images by class, and the ranks that medians are read off, in numba.

Images are summed class by class and in tiles of pixels, so that what is added to stays in the
cache for any number of classes and any size of image. 16,384 images of Fashion-MNIST, 10 classes,
one thread, medians: sums 1.3 ms, with sums of squares 1.6 ms.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit, types
from numba.extending import overload

from pipeline.core.exact import Int64Array
from pipeline.core.threads import in_ranges
from pipeline.kernels.cpu_histograms import by_class, histograms

# uint32 sums of 2**16 squares of 8 bits, or of 2**16 pixels of 16 bits, stay below 2**32.
FLUSH = 2**16
# Pixels that are summed at once: sums and squares of a tile take 16 KiB.
TILE = 2048


@njit(nogil=True, cache=True)
def _add_values(
    a: npt.NDArray[Any],
    b: npt.NDArray[Any],
    c: npt.NDArray[Any],
    d: npt.NDArray[Any],
    total: npt.NDArray[np.uint32],
) -> None:
    for pixel in range(len(total)):
        pairs = np.uint32(np.uint32(a[pixel]) + np.uint32(b[pixel]))
        others = np.uint32(np.uint32(c[pixel]) + np.uint32(d[pixel]))
        total[pixel] = np.uint32(total[pixel] + np.uint32(pairs + others))


def _add_squares(*_: Any) -> None:
    """Add four squared images a, b, c, d to `total`: uint32 for 8-bit pixels, else uint64."""
    raise NotImplementedError


@overload(_add_squares)
def _choose_add_squares(a, b, c, d, total):  # type: ignore[no-untyped-def]  # noqa: ARG001
    word = np.uint32 if total.dtype == types.uint32 else np.uint64

    def add(a, b, c, d, total):  # type: ignore[no-untyped-def]
        for pixel in range(len(total)):
            w, x, y, z = word(a[pixel]), word(b[pixel]), word(c[pixel]), word(d[pixel])
            pairs, others = word(word(w * w) + word(x * x)), word(word(y * y) + word(z * z))
            total[pixel] = word(total[pixel] + word(pairs + others))

    return add


@njit(nogil=True, cache=True)
def _add_images(
    images: npt.NDArray[Any],
    order: Int64Array,
    edges: Int64Array,
    first: int,
    totals: tuple[npt.NDArray[np.uint32], npt.NDArray[Any]],
    sums: Int64Array,
    squares: Int64Array,
) -> None:
    """Add up the pixels from `first` on, as many as `totals` hold, and their squares."""
    total, total_squares = totals
    last = first + len(total)
    nothing = np.zeros(len(total), images.dtype)
    for position in range(len(sums)):
        for begin in range(edges[position], edges[position + 1], FLUSH):
            end = min(begin + FLUSH, edges[position + 1])
            total[:] = 0
            total_squares[:] = 0
            for at in range(begin, end, 4):
                a = images[order[at], first:last]
                b = images[order[at + 1], first:last] if at + 1 < end else nothing
                c = images[order[at + 2], first:last] if at + 2 < end else nothing
                d = images[order[at + 3], first:last] if at + 3 < end else nothing
                _add_values(a, b, c, d, total)
                _add_squares(a, b, c, d, total_squares)
            for pixel in range(len(total)):
                sums[position, first + pixel] += np.int64(total[pixel])
            for pixel in range(len(total_squares)):
                squares[position, first + pixel] += np.int64(total_squares[pixel])


def class_sums(
    images: npt.NDArray[Any],
    positions: Int64Array,
    classes: int,
    into: tuple[Int64Array, Int64Array, Int64Array] | None = None,
    counts: npt.NDArray[np.uint32] | None = None,
    *,
    threads: int = 1,
) -> tuple[Int64Array, Int64Array, Int64Array]:
    """Sum the images of each class and their squares; see `protocols.ClassSums`."""
    if counts is not None:
        histograms(images, positions, classes, into=counts, threads=threads)
    rows, pixels = np.ascontiguousarray(images), images.shape[1]
    order, edges = by_class(positions, classes)
    if into is None:
        sums, squares = np.zeros((2, classes, pixels), np.int64)
        into = sums, squares, np.zeros(classes, np.int64)
    sums, squares, number = into
    word = np.uint32 if images.dtype == np.uint8 else np.uint64
    tile = max(1, min(TILE, -(-pixels // threads)))

    def add(start: int, stop: int) -> None:
        for first in range(start * tile, min(stop * tile, pixels), tile):
            width = min(tile, pixels - first)
            total, total_squares = np.empty(width, np.uint32), np.empty(width, word)
            _add_images(rows, order, edges, first, (total, total_squares), sums, squares)

    in_ranges(threads, -(-pixels // tile), add)
    number += np.diff(edges)
    return into


@njit(nogil=True, cache=True)
def _select_ranks(
    counts: npt.NDArray[np.uint32],
    ranks: Int64Array,
    values: npt.NDArray[np.uint8],
    rest: Int64Array,
) -> None:
    for position in range(ranks.shape[0]):
        for pixel in range(ranks.shape[1]):
            left, table = ranks[position, pixel], counts[position, pixel]
            for value in range(256):
                if left < table[value]:
                    values[position, pixel] = value
                    rest[position, pixel] = left
                    break
                left -= np.int64(table[value])


def select_ranks(
    counts: npt.NDArray[np.uint32], ranks: Int64Array
) -> tuple[npt.NDArray[np.uint8], Int64Array]:
    """Find the value of each rank; see `protocols.SelectRanks`."""
    values, rest = np.zeros(ranks.shape, np.uint8), np.zeros(ranks.shape, np.int64)
    _select_ranks(counts, ranks, values, rest)
    return values, rest


@njit(nogil=True, cache=True)
def _sum_squares(values: npt.NDArray[Any]) -> np.int64:
    total = np.uint32(0)  # of at most 2**16 bytes
    for pixel in range(len(values)):
        value = np.uint32(values[pixel])
        total = np.uint32(total + np.uint32(value * value))
    return np.int64(total)


@njit(nogil=True, cache=True)
def _squared_norms(images: npt.NDArray[Any], result: Int64Array) -> None:
    samples, pixels = images.shape
    for sample in range(samples):
        total = np.int64(0)
        for start in range(0, pixels, FLUSH):
            total += _sum_squares(images[sample, start : start + FLUSH])
        result[sample] = total


@njit(nogil=True, cache=True)
def _wide_squared_norms(images: npt.NDArray[Any], result: Int64Array) -> None:
    samples, pixels = images.shape
    for sample in range(samples):
        total = np.int64(0)
        for pixel in range(pixels):
            value = np.int64(images[sample, pixel])
            total += value * value
        result[sample] = total


def squared_norms(images: npt.NDArray[Any]) -> Int64Array:
    """Sum the squares of each image's pixels; see `protocols.SquaredNorms`."""
    rows = np.ascontiguousarray(images)
    result = np.empty(len(rows), np.int64)
    norms = _squared_norms if rows.dtype == np.uint8 else _wide_squared_norms
    norms(rows, result)
    return result
