"""The kernels in numba: without the GIL, so that threads add up, the loops compiled once per kind
of processor and cached.

Two habits keep plain loops in vector instructions: a partial sum is cast back to the type that it
is kept in, else numba widens it to 64 bits; and the inner loop runs over a slice from 0, else
numba allows for negative indices. `fastmath` lets the compiler reorder the additions of doubles;
since every double holds an integer below 2**53 (proved in `exact`), any order gives the same bits.

A block of images is loaded once for l1, products and norms, and divided while it is in the cache:
of 10,000 images to 1,000 means 340 ms of 630 went into NumPy's passes over sums and distances. The
loops run with `_nrt=False`: counting references to each array that is cut took up to a third of the
time of few means. So what they need is made outside. See `words` for means of few images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from pipeline.core.exact import (
    Arithmetic,
    Float64Array,
    Int64Array,
    prototype_norms,
    split_digits,
    split_prototypes,
)
from pipeline.kernels import vectors, words
from pipeline.kernels.cpu_sums import squared_norms

# Bytes of images that one prototype after the other is compared with.
_BLOCK_BYTES = 2**14
_NOTHING, _NONE = np.empty(0), np.empty((0, 0), np.int64)
_SUMS = vectors.shape_of(vectors.ROWS, 1, 0, vectors.L1)
_SQUARES = vectors.shape_of(1, 1, 0, vectors.L2)
ABREAST = 5
"""Prototypes that an image is compared with at once where only the nearest is asked for."""


@dataclass(frozen=True)
class Digits:
    """Prototypes for 8-bit pixels: quotients and digits as planes of bytes.

    Attributes
    ----------
    planes
        [class, 1 + digits, width] uint8; m, and the bits of the digits of r, rows padded to
        whole vectors.
    rounded
        [class, width] uint8; P/n, rounded; black classes beyond the last, up to whole blocks.
    rounded_norms
        The sums of their squares.
    errors
        [metric, class]; how far P/n lies from that at most, by `sum |.|` and by the root of
        `sum (.)**2`.
    numbers
        [class, 3]; n, `sum r`, and `sum P*P` modulo 2**64.
    words
        The same prototypes as words, where that is faster.
    """

    planes: npt.NDArray[np.uint8]
    rounded: npt.NDArray[np.uint8]
    rounded_norms: Int64Array
    errors: Float64Array
    numbers: Int64Array
    words: words.Words | None

    @property
    def denominators(self) -> Int64Array:
        return self.numbers[:, 0]

    def shape(self, rows: int, metrics: int) -> vectors.Shape:
        """Return what numba compiles loops for."""
        return vectors.shape_of(rows, 1, int(self.planes.shape[1] - 1), metrics)


@dataclass(frozen=True)
class _Fractions:
    """Prototypes for other pixels, as numbers of the type that holds every sum.

    Attributes
    ----------
    numerators, quotients, remainders
        [class, pixel]; P, m and r.
    denominators
        [class]; n.
    """

    numerators: npt.NDArray[Any]
    quotients: npt.NDArray[Any]
    remainders: npt.NDArray[Any]
    denominators: npt.NDArray[Any]


def prepare(
    numerators: Int64Array, denominators: Int64Array, arithmetic: Arithmetic
) -> Digits | _Fractions:
    """Bring prototypes into the form that the loops read; see `protocols.Prepare`."""
    if arithmetic.name != "digits":
        limbs = split_prototypes(numerators, denominators)
        parts = (numerators, *limbs, np.maximum(denominators, 1))
        return _Fractions(*(part.astype(np.dtype(arithmetic.name)) for part in parts))
    classes, pixels = numerators.shape
    width = -(-pixels // vectors.WIDTH) * vectors.WIDTH
    planes = words.make_aligned((classes, 1 + arithmetic.digits, width), np.uint8)
    rounded = words.make_aligned((-(-classes // ABREAST) * ABREAST, width), np.uint8)
    errors, remainder_sums = np.zeros((2, classes)), np.zeros(classes, np.int64)
    over = np.maximum(denominators, 1)
    for position, n in enumerate(over.tolist()):
        one = slice(position, position + 1)
        quotient, remainder = split_prototypes(numerators[one], denominators[one])
        planes[position, 0, :pixels] = quotient[0]
        digits = split_digits(remainder[0], arithmetic.digits)
        planes[position, 1:, :pixels] = digits.view(np.uint8)
        remainder_sums[position] = remainder.sum()
        up = 2 * remainder[0] > n
        rounded[position, :pixels] = quotient[0] + up
        lost = np.where(up, n - remainder[0], remainder[0]) / n
        errors[:, position] = lost.sum(), np.sqrt((lost * lost).sum())
    norms = np.array([norm % 2**64 for norm in prototype_norms(numerators, denominators)], "u8")
    numbers = np.stack([over, remainder_sums, norms.view(np.int64)], axis=1)
    squares = np.array([np.dot(row, row) for row in rounded.astype(np.int64)], np.int64)
    of_words = words.make_words(numerators, denominators)
    return Digits(planes, rounded, squares, errors, numbers, of_words)


@njit(nogil=True, cache=True, _nrt=False)
def pad(
    images: npt.NDArray[Any], first: int, last: int, start: int, padded: npt.NDArray[Any]
) -> None:
    """Copy a tile of a few images into rows of whole vectors; what is beyond them is 0."""
    for row in range(len(padded)):
        target = padded[row]
        filled = 0
        if first + row < last:
            source = images[first + row, start : start + len(target)]
            filled = len(source)
            for pixel in range(filled):
                target[pixel] = source[pixel]
        target[filled:] = 0


@njit(nogil=True, cache=True, _nrt=False)
def add_norms(
    padded: npt.NDArray[np.uint8], steps: int, nothing: npt.NDArray[np.uint8], totals: Int64Array,
    of_images: Int64Array,
) -> None:  # fmt: skip
    """Add to [row / ROWS, 2 * ROWS] `128 * sum x`, then `sum x*x`, of a tile of `ROWS` images each.

    `nothing` is a row of zeros.
    """
    width, rows = padded.shape[1], vectors.ROWS
    for row in range(0, len(padded), rows):
        of_group = of_images[row // rows]
        vectors.measure(padded[row:], nothing, (width, 0, 0), steps, _SUMS, False, totals)
        for offset in range(rows):
            of_group[offset] += 128 * totals[offset]
            of_group[rows + offset] += 128 * totals[offset]
        for offset in range(rows):  # x * (x - 128), and what is missing of x * x was added
            image = padded[row + offset]
            vectors.measure(image, image, (0, 0, 0), steps, _SQUARES, False, totals)
            of_group[rows + offset] += totals[0]


class _Counted(NamedTuple):
    """What is counted, [sample, class] int64 each; [0, 0] what is not asked for.

    Attributes
    ----------
    l1
        `sum |n*x - P|`.
    wholes, rests
        `sum x*m` and `sum x*r`.
    """

    l1: Int64Array
    wholes: Int64Array
    rests: Int64Array


@njit(nogil=True, cache=True, _nrt=False)
def weigh(sums: Int64Array, first: int, digits: int, row: int) -> Any:
    """Put the sums over digits together: the sum of those of digit k, times 256**k."""
    value = np.int64(0)
    for digit in range(digits - 1, -1, -1):
        value = value * 256 + sums[(first + digit) * vectors.ROWS + row]
    return value


@njit(nogil=True, cache=True, _nrt=False)
def _write(
    sums: Int64Array, of_images: Int64Array, of_class: Int64Array, shape: vectors.Shape, count: int,
    out: _Counted, at: tuple[int, int],
) -> None:  # fmt: skip
    """Write integers of `ROWS` images and one prototype."""
    digits, column = len(shape[2]), 0
    for row in range(count):
        sample, position = at[0] + row, at[1]
        if len(shape[3]) != vectors.L2:
            rest = weigh(sums, 1, digits, row)
            out.l1[sample, position] = of_class[0] * sums[row] - 2 * rest + of_class[1]
            column = 1 + digits
        if len(shape[3]) != vectors.L1:
            out.wholes[sample, position] = sums[column * vectors.ROWS + row] + of_images[row]
            out.rests[sample, position] = weigh(sums, column + 1, digits, row)


class _Room(NamedTuple):
    """What a block of images needs: a tile of each, zeros, and what is counted of them."""

    padded: npt.NDArray[np.uint8]
    nothing: npt.NDArray[np.uint8]
    sums: Int64Array
    of_images: Int64Array
    scratch: Int64Array


@njit(nogil=True, cache=True, _nrt=False)
def _count_in_digits(
    images: npt.NDArray[np.uint8], prototypes: tuple[npt.NDArray[np.uint8], Int64Array],
    scales: Float64Array, shape: vectors.Shape, room: _Room, out: Any,
    floats: tuple[Float64Array, Float64Array],
) -> None:  # fmt: skip
    """Count a block of images at a time, a tile of pixels at a time; divide where all is counted.

    Where images have several tiles, a block is `ROWS` images.
    """
    metrics, rows, planes = len(shape[3]), vectors.ROWS, prototypes[0]
    padded, nothing, sums, of_images, scratch = room
    (height, tile), (classes, _, width) = padded.shape, planes.shape
    several = width > tile
    for first in range(0, len(images), height):
        last = min(first + height, len(images))
        of_images[:] = 0
        for start in range(0, width, tile):
            pad(images, first, last, start, padded)
            steps = min(tile, width - start) // vectors.WIDTH
            if metrics != vectors.L1:
                add_norms(padded, steps, nothing, scratch, of_images)
            for position in range(classes):
                plane = planes[position, :, start:]
                for row in range(0, last - first, rows):
                    vectors.measure(
                        padded[row:], plane, (tile, 0, width), steps, shape, start > 0,
                        sums[position if several else row // rows],
                    )  # fmt: skip
                if start + tile < width:
                    continue
                of_class, scale = (
                    prototypes[1][position],
                    (scales[position, 0], scales[position, 1]),
                )
                # apart from the loop above, so that divisions do not wait for each other
                for row in range(0, last - first, rows):
                    kept, both = sums[position if several else row // rows], of_images[row // rows]
                    at, count = (first + row, position), min(rows, last - first - row)
                    if out is None:  # known when it is compiled, which then takes less
                        where = count, at[0] * classes + position, classes
                        vectors.finish(kept, both, of_class, scale, shape, where, floats)
                    else:
                        _write(kept, both, of_class, shape, count, out, at)


def make_padded(width: int) -> npt.NDArray[np.uint8]:
    """Return room for a tile of a few images that stays in the cache."""
    tile = min(width, vectors.TILE // vectors.ROWS)
    rows = max(1, _BLOCK_BYTES // (tile * vectors.ROWS)) * vectors.ROWS
    return words.make_aligned((rows, tile), np.uint8)


def _count(
    images: npt.NDArray[np.uint8],
    prototypes: Digits,
    metrics: int,
    out: _Counted | None = None,
    floats: tuple[Float64Array, Float64Array] = (_NOTHING, _NOTHING),
    scales: Float64Array | None = None,
) -> None:
    """Count what `out` has room for; or divide by scales, [class, 2], into `floats`."""
    width = prototypes.planes.shape[2]
    if width == 0 or not len(images):
        return
    padded, rows, (classes, columns, _) = make_padded(width), vectors.ROWS, prototypes.planes.shape
    groups = len(padded) // rows
    room = _Room(
        padded,
        np.zeros_like(padded[0]),
        np.empty((max(groups, classes), columns * rows * (1 + metrics // vectors.BOTH)), np.int64),
        np.empty((groups, 2 * rows), np.int64),
        np.empty(rows, np.int64),
    )
    _count_in_digits(
        images, (prototypes.planes, prototypes.numbers),
        np.ones((classes, 2)) if scales is None else scales,
        prototypes.shape(rows, metrics), room, out, floats,
    )  # fmt: skip


def distances(
    images: npt.NDArray[Any],
    prototypes: Digits | _Fractions,
    scales: Mapping[str, Float64Array],
    into: Mapping[str, Float64Array],
) -> bool:
    """Measure images and divide, in one read of them; see `protocols.Distances`."""
    if not isinstance(prototypes, Digits) or not images.size:
        return False
    ones = np.ones(len(prototypes.planes))
    divisors = np.stack([scales.get(metric, ones) for metric in ("l1", "l2")], axis=1)
    l1, l2 = (into[name].reshape(-1) if name in into else _NOTHING for name in ("l1", "l2"))
    metrics = (vectors.L1 if l1.size else 0) + (vectors.L2 if l2.size else 0)
    images = np.ascontiguousarray(images)
    if prototypes.words is not None:
        words.distances(images, prototypes.words, divisors.T.copy(), metrics, (l1, l2))
    else:
        _count(images, prototypes, metrics, floats=(l1, l2), scales=divisors)
    return True


@njit(nogil=True, cache=True, fastmath=True)
def _l1_numerators(
    images: npt.NDArray[Any],
    numerators: npt.NDArray[Any],
    denominators: npt.NDArray[Any],
    result: Int64Array,
) -> None:
    samples, pixels = images.shape
    image = np.empty(pixels, numerators.dtype)
    for sample in range(samples):
        for pixel in range(pixels):
            image[pixel] = images[sample, pixel]
        for position in range(len(numerators)):
            denominator = denominators[position]
            total = denominator * 0
            for pixel in range(pixels):
                total += abs(denominator * image[pixel] - numerators[position, pixel])
            result[sample, position] = np.int64(total)


def l1_numerators(images: npt.NDArray[Any], prototypes: Digits | _Fractions) -> Int64Array:
    """Sum absolute differences to each prototype; see `protocols.L1Numerators`."""
    rows = np.ascontiguousarray(images)
    result = np.empty((len(rows), len(prototypes.denominators)), np.int64)
    if isinstance(prototypes, Digits):
        _count(rows, prototypes, vectors.L1, _Counted(result, _NONE, _NONE))
    else:
        _l1_numerators(rows, prototypes.numerators, prototypes.denominators, result)
    return result


@njit(nogil=True, cache=True, fastmath=True)
def _dot_products(images: npt.NDArray[Any], factors: npt.NDArray[Any], result: Int64Array) -> None:
    samples, pixels = images.shape
    image = np.empty(pixels, factors.dtype)
    for sample in range(samples):
        for pixel in range(pixels):
            image[pixel] = images[sample, pixel]
        for position in range(len(factors)):
            total = factors[position, 0] * 0
            for pixel in range(pixels):
                total += image[pixel] * factors[position, pixel]
            result[sample, position] = np.int64(total)


def dot_products(
    images: npt.NDArray[Any], prototypes: Digits | _Fractions
) -> tuple[Int64Array, Int64Array]:
    """Multiply with each prototype's two limbs; see `protocols.DotProducts`."""
    rows = np.ascontiguousarray(images)
    wholes, rests = np.zeros((2, len(rows), len(prototypes.denominators)), np.int64)
    if isinstance(prototypes, Digits):
        _count(rows, prototypes, vectors.L2, _Counted(_NONE, wholes, rests))
    else:
        _dot_products(rows, prototypes.quotients, wholes)
        _dot_products(rows, prototypes.remainders, rests)
    return wholes, rests


def measure(
    images: npt.NDArray[Any],
    prototypes: Digits | _Fractions,
    *,
    l1: bool = True,
    l2: bool = True,
) -> tuple[Int64Array, Int64Array, Int64Array, Int64Array]:
    """Count all that distances need; see `protocols.Measure`."""
    nothing: Int64Array = np.empty((0, 0), np.int64)
    differences = l1_numerators(images, prototypes) if l1 else nothing
    wholes, rests = dot_products(images, prototypes) if l2 else (nothing, nothing)
    return differences, wholes, rests, squared_norms(images) if l2 else np.empty(0, np.int64)
