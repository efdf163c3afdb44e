"""The kernels in numba: without the GIL, so that threads add up, the loops compiled once per kind
of processor and cached.

Two habits keep plain loops in vector instructions: a partial sum is cast back to the type that it
is kept in, else numba widens it to 64 bits; and the inner loop runs over a slice from 0, else
numba allows for negative indices. `fastmath` lets the compiler reorder the additions of doubles;
since every double holds an integer below 2**53 (proved in `exact`), any order gives the same bits.

Images are summed class by class and in tiles of pixels, so that what is added to stays in the
cache for any number of classes and any size of image. 16,384 images of Fashion-MNIST, 10 classes,
one thread, medians: sums 1.3 ms, with sums of squares 1.6 ms; histograms 11 ms with tables of
uint16, 19 ms of uint32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit, types
from numba.extending import overload

from pipeline.core.exact import Arithmetic, Int64Array, split_digits, split_prototypes
from pipeline.core.threads import in_ranges
from pipeline.kernels import vectors

# uint32 sums of 2**16 squares of 8 bits, or of 2**16 pixels of 16 bits, stay below 2**32.
_FLUSH = 2**16
# Pixels that are summed at once: sums and squares of a tile take 16 KiB.
_TILE = 2048
# Pixels that are counted at once: their histograms take 512 KiB.
_HISTOGRAM_TILE = 1024
# Bytes of images that one prototype after the other is compared with.
_BLOCK_BYTES = 2**16
# Images that are compared with as many others at once: their tiles take 2 x 512 KiB.
_COMPARED = 32


def _by_class(positions: Int64Array, classes: int) -> tuple[Int64Array, Int64Array]:
    """Return the samples in the order of their classes, and where each class begins."""
    # integers of 16 bits are sorted by counting, seven times as fast
    keys = positions if classes >= 2**15 else np.maximum(positions, -1).astype(np.int16)
    order = np.argsort(keys, kind="stable")
    return order, np.searchsorted(keys, np.arange(classes + 1), sorter=order)


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
    total: npt.NDArray[np.uint32],
    total_squares: npt.NDArray[Any],
    sums: Int64Array,
    squares: Int64Array,
) -> None:
    """Add up the pixels from `first` on, as many as `total` holds; squares where wanted."""
    last = first + len(total)
    nothing = np.zeros(len(total), images.dtype)
    for position in range(len(sums)):
        for begin in range(edges[position], edges[position + 1], _FLUSH):
            end = min(begin + _FLUSH, edges[position + 1])
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
    *,
    threads: int = 1,
) -> tuple[Int64Array, Int64Array, Int64Array]:
    """Sum the images of each class and their squares; see `kernels.ClassSums`."""
    rows, pixels = np.ascontiguousarray(images), images.shape[1]
    order, edges = _by_class(positions, classes)
    if into is None:
        sums, squares = np.zeros((2, classes, pixels), np.int64)
        into = sums, squares, np.zeros(classes, np.int64)
    sums, squares, counts = into
    word = np.uint32 if images.dtype == np.uint8 else np.uint64
    tile = max(1, min(_TILE, -(-pixels // threads)))

    def add(start: int, stop: int) -> None:
        for first in range(start * tile, min(stop * tile, pixels), tile):
            width = min(tile, pixels - first)
            total, total_squares = np.empty(width, np.uint32), np.empty(width, word)
            _add_images(rows, order, edges, first, total, total_squares, sums, squares)

    in_ranges(threads, -(-pixels // tile), add)
    counts += np.diff(edges)
    return into


@njit(nogil=True, cache=True)
def _count_values(
    images: npt.NDArray[Any],
    order: Int64Array,
    edges: Int64Array,
    first: int,
    last: int,
    table: npt.NDArray[np.uint16],
    counts: npt.NDArray[np.uint32],
) -> None:
    """Count the values of pixels `first` to `last`; what a table of uint16 holds at a time."""
    nothing = np.zeros(last - first, images.dtype)
    for position in range(len(counts)):
        for begin in range(edges[position], edges[position + 1], _FLUSH - 1):
            table[:] = 0
            end = min(begin + _FLUSH - 1, edges[position + 1])
            for at in range(begin, end - 1, 2):
                a, b = images[order[at], first:last], images[order[at + 1], first:last]
                _count_two(a, b, table)
            if (end - begin) % 2:
                last_image = images[order[end - 1], first:last]
                _count_two(last_image, nothing, table)
            images_counted = end - begin
            for pixel in range(last - first):
                part = table[256 * pixel : 256 * pixel + 256]
                part[0] = images_counted - _add_table(part[1:], counts[position, first + pixel, 1:])
                counts[position, first + pixel, 0] += np.uint32(part[0])


@njit(nogil=True, cache=True)
def _add_table(part: npt.NDArray[np.uint16], target: npt.NDArray[np.uint32]) -> np.uint32:
    """Add counts to others; return their sum."""
    total = np.uint32(0)
    for value in range(len(part)):
        number = np.uint32(part[value])
        target[value] = np.uint32(target[value] + number)
        total = np.uint32(total + number)
    return total


def _count_two(*_: Any) -> None:
    """Count the values of two images, or the high bytes of 16-bit ones; zeros need not be right."""
    raise NotImplementedError


@overload(_count_two)
def _choose_count_two(a, b, table):  # type: ignore[no-untyped-def]  # noqa: ARG001
    def count_bytes(a, b, table):  # type: ignore[no-untyped-def]
        whole = len(a) // 8 * 8
        words, others = a[:whole].view(np.uint64), b[:whole].view(np.uint64)
        row = np.uint64(0)
        for at in range(len(words)):
            word, other = words[at], others[at]
            if word | other != np.uint64(0):  # where it is, sixteen pixels are 0
                for place in range(8):
                    shift, start = np.uint64(8 * place), row + np.uint64(256 * place)
                    table[start + ((word >> shift) & np.uint64(255))] += np.uint16(1)
                    table[start + ((other >> shift) & np.uint64(255))] += np.uint16(1)
            row += np.uint64(8 * 256)
        for pixel in range(whole, len(a)):
            start = np.uint64(256 * pixel)
            table[start + np.uint64(a[pixel])] += np.uint16(1)
            table[start + np.uint64(b[pixel])] += np.uint16(1)

    def count_high_bytes(a, b, table):  # type: ignore[no-untyped-def]
        for pixel in range(len(a)):
            start = np.uint64(256 * pixel)
            table[start + np.uint64(a[pixel] >> 8)] += np.uint16(1)
            table[start + np.uint64(b[pixel] >> 8)] += np.uint16(1)

    return count_bytes if a.dtype == types.uint8 else count_high_bytes


@njit(nogil=True, cache=True)
def _count_low_bytes(
    images: npt.NDArray[Any],
    order: Int64Array,
    edges: Int64Array,
    first: int,
    last: int,
    high: npt.NDArray[np.uint8],
    counts: npt.NDArray[np.uint32],
) -> None:
    for position in range(len(counts)):
        table, wanted = counts[position], high[position]
        for at in range(edges[position], edges[position + 1]):
            image = images[order[at]]
            for pixel in range(first, last):
                if image[pixel] >> 8 == wanted[pixel]:
                    table[pixel, image[pixel] & 255] += np.uint32(1)


def histograms(
    images: npt.NDArray[Any],
    positions: Int64Array,
    classes: int,
    high: npt.NDArray[np.uint8] | None = None,
    into: npt.NDArray[np.uint32] | None = None,
    *,
    threads: int = 1,
) -> npt.NDArray[np.uint32]:
    """Count the values of each pixel in each class; see `kernels.Histograms`."""
    rows, pixels = np.ascontiguousarray(images), images.shape[1]
    order, edges = _by_class(positions, classes)
    counts = np.zeros((classes, pixels, 256), np.uint32) if into is None else into
    tile = max(1, min(_HISTOGRAM_TILE, -(-pixels // threads)))

    def count(start: int, stop: int) -> None:
        for first in range(start * tile, min(stop * tile, pixels), tile):
            last = min(first + tile, pixels)
            if high is None:
                table = np.empty((last - first) * 256, np.uint16)
                _count_values(rows, order, edges, first, last, table, counts)
            else:
                _count_low_bytes(rows, order, edges, first, last, high, counts)

    in_ranges(threads, -(-pixels // tile), count)
    return counts


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
    """Find the value of each rank; see `kernels.SelectRanks`."""
    values, rest = np.zeros(ranks.shape, np.uint8), np.zeros(ranks.shape, np.int64)
    _select_ranks(counts, ranks, values, rest)
    return values, rest


@dataclass(frozen=True)
class _Digits:
    """Prototypes for 8-bit pixels: quotients and digits as planes of bytes.

    Attributes
    ----------
    planes
        [class, 1 + digits, width] uint8; m, and the bits of the digits of r, rows padded to
        whole vectors.
    denominators
        [class]; n.
    remainder_sums
        [class]; `sum r`.
    """

    planes: npt.NDArray[np.uint8]
    denominators: Int64Array
    remainder_sums: Int64Array

    @property
    def shape(self) -> tuple[int, ...]:
        """A tuple with an element for each digit: numba compiles for its length."""
        return (0,) * int(self.planes.shape[1] - 1)


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
) -> _Digits | _Fractions:
    """Bring prototypes into the form that the loops read; see `kernels.Prepare`."""
    if arithmetic.name != "digits":
        limbs = split_prototypes(numerators, denominators)
        parts = (numerators, *limbs, np.maximum(denominators, 1))
        return _Fractions(*(part.astype(np.dtype(arithmetic.name)) for part in parts))
    classes, pixels = numerators.shape
    width = -(-pixels // vectors.WIDTH) * vectors.WIDTH
    planes = np.zeros((classes, 1 + arithmetic.digits, width), np.uint8)
    remainder_sums = np.zeros(classes, np.int64)
    for position in range(classes):
        one = slice(position, position + 1)
        quotient, remainder = split_prototypes(numerators[one], denominators[one])
        planes[position, 0, :pixels] = quotient[0]
        digits = split_digits(remainder[0], arithmetic.digits)
        planes[position, 1:, :pixels] = digits.view(np.uint8)
        remainder_sums[position] = remainder.sum()
    return _Digits(planes, np.maximum(denominators, 1), remainder_sums)


@njit(nogil=True, cache=True)
def _pad(
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


@njit(nogil=True, cache=True)
def _weigh(totals: Int64Array) -> np.int64:
    """Put the sums over digits together: the sum of totals[1 + k] * 256**k."""
    value = np.int64(0)
    for place in range(len(totals) - 1, 0, -1):
        value = value * 256 + totals[place]
    return value


@njit(nogil=True, cache=True)
def _l1_in_digits(
    images: npt.NDArray[np.uint8],
    planes: npt.NDArray[np.uint8],
    denominators: Int64Array,
    remainder_sums: Int64Array,
    digits: tuple[int, ...],
    padded: npt.NDArray[np.uint8],
    result: Int64Array,
) -> None:
    width, rows = planes.shape[2], vectors.ROWS
    totals = np.empty((rows, 1 + len(digits)), np.int64)
    for first in range(0, len(images), len(padded)):
        last = min(first + len(padded), len(images))
        for start in range(0, width, padded.shape[1]):
            _pad(images, first, last, start, padded)
            steps = min(padded.shape[1], width - start) // vectors.WIDTH
            for position in range(len(planes)):
                plane = planes[position, :, start:]
                for row in range(0, last - first, rows):
                    vectors.add_differences(
                        padded[row:], padded.shape[1], plane, width, steps, digits, totals
                    )
                    for offset in range(min(rows, last - first - row)):
                        found = totals[offset]
                        value = denominators[position] * found[0] - 2 * _weigh(found)
                        if start == 0:
                            value += remainder_sums[position]
                            result[first + row + offset, position] = value
                        else:
                            result[first + row + offset, position] += value


@njit(nogil=True, cache=True)
def _sum_bytes(values: npt.NDArray[np.uint8]) -> np.int64:
    total = np.uint32(0)
    for place in range(len(values)):
        total = np.uint32(total + np.uint32(values[place]))
    return np.int64(total)


@njit(nogil=True, cache=True)
def _products_in_digits(
    images: npt.NDArray[np.uint8],
    planes: npt.NDArray[np.uint8],
    digits: tuple[int, ...],
    padded: npt.NDArray[np.uint8],
    wholes: Int64Array,
    rests: Int64Array,
) -> None:
    width, rows = planes.shape[2], vectors.ROWS
    totals = np.empty((rows, 1 + len(digits)), np.int64)
    shifts = np.empty(len(padded), np.int64)
    wholes[:] = 0
    rests[:] = 0
    for first in range(0, len(images), len(padded)):
        last = min(first + len(padded), len(images))
        for start in range(0, width, padded.shape[1]):
            _pad(images, first, last, start, padded)
            for row in range(last - first):
                shifts[row] = 128 * _sum_bytes(padded[row])
            steps = min(padded.shape[1], width - start) // vectors.WIDTH
            for position in range(len(planes)):
                plane = planes[position, :, start:]
                for row in range(0, last - first, rows):
                    vectors.add_products(
                        padded[row:], padded.shape[1], plane, width, steps, digits, totals
                    )
                    for offset in range(min(rows, last - first - row)):
                        at = first + row + offset
                        wholes[at, position] += totals[offset, 0] + shifts[row + offset]
                        rests[at, position] += _weigh(totals[offset])


def _make_padded(width: int) -> npt.NDArray[np.uint8]:
    """Return room for a tile of a few images that stays in the cache."""
    tile = min(width, _BLOCK_BYTES // vectors.ROWS, vectors.TILE)
    rows = max(1, _BLOCK_BYTES // (tile * vectors.ROWS)) * vectors.ROWS
    return np.zeros((rows, tile), np.uint8)


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


def l1_numerators(images: npt.NDArray[Any], prototypes: _Digits | _Fractions) -> Int64Array:
    """Sum absolute differences to each prototype; see `kernels.L1Numerators`."""
    rows = np.ascontiguousarray(images)
    result = np.empty((len(rows), len(prototypes.denominators)), np.int64)
    if isinstance(prototypes, _Digits):
        _l1_in_digits(
            rows, prototypes.planes, prototypes.denominators, prototypes.remainder_sums,
            prototypes.shape, _make_padded(prototypes.planes.shape[2]), result,
        )  # fmt: skip
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
    images: npt.NDArray[Any], prototypes: _Digits | _Fractions
) -> tuple[Int64Array, Int64Array]:
    """Multiply with each prototype's two limbs; see `kernels.DotProducts`."""
    rows = np.ascontiguousarray(images)
    wholes, rests = np.empty((2, len(rows), len(prototypes.denominators)), np.int64)
    if isinstance(prototypes, _Digits):
        padded = _make_padded(prototypes.planes.shape[2])
        _products_in_digits(rows, prototypes.planes, prototypes.shape, padded, wholes, rests)
    else:
        _dot_products(rows, prototypes.quotients, wholes)
        _dot_products(rows, prototypes.remainders, rests)
    return wholes, rests


@njit(nogil=True, cache=True)
def _sum_squares(values: npt.NDArray[Any]) -> np.int64:
    total = np.uint32(0)  # of at most 2**16 bytes
    for place in range(len(values)):
        value = np.uint32(values[place])
        total = np.uint32(total + np.uint32(value * value))
    return np.int64(total)


@njit(nogil=True, cache=True)
def _squared_norms(images: npt.NDArray[Any], result: Int64Array) -> None:
    samples, pixels = images.shape
    for sample in range(samples):
        total = np.int64(0)
        for start in range(0, pixels, _FLUSH):
            total += _sum_squares(images[sample, start : start + _FLUSH])
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
    """Sum the squares of each image's pixels; see `kernels.SquaredNorms`."""
    rows = np.ascontiguousarray(images)
    result = np.empty(len(rows), np.int64)
    norms = _squared_norms if rows.dtype == np.uint8 else _wide_squared_norms
    norms(rows, result)
    return result


@njit(nogil=True, cache=True, fastmath=True)
def _add_differences(
    a: npt.NDArray[np.float64], b: npt.NDArray[np.float64], absolute: Any, squared: Any
) -> None:
    """Add what is between each pair of rows, of one tile of pixels."""
    for i in range(len(a)):
        for j in range(len(b)):
            first, second = a[i], b[j]
            one = two = 0.0
            for pixel in range(len(first)):
                difference = first[pixel] - second[pixel]
                one += abs(difference)
                two += difference * difference
            absolute[i, j] += one
            squared[i, j] += two


def differences(
    images: npt.NDArray[np.float64], threads: int = 1
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Compare each image with each other one.

    The only loops that add fractions: what they give describes prototypes and is in no digest. It
    is the same for any number of threads, and may differ in its last bits between processors.

    Parameters
    ----------
    images
        [image, pixel].
    threads
        How many cores to use.

    Returns
    -------
    `sum |a - b|` and `sum (a - b)**2`, both [image, image].
    """
    count, pixels = images.shape
    absolute, squared = np.zeros((count, count)), np.zeros((count, count))
    starts = range(0, count, _COMPARED)
    blocks = [(i, j) for i in starts for j in starts if i <= j]

    def compare(first: int, last: int) -> None:
        for i, j in blocks[first:last]:
            rows, others = slice(i, i + _COMPARED), slice(j, j + _COMPARED)
            for pixel in range(0, pixels, _TILE):
                tile = slice(pixel, pixel + _TILE)
                _add_differences(
                    np.ascontiguousarray(images[rows, tile]),
                    np.ascontiguousarray(images[others, tile]),
                    absolute[rows, others],
                    squared[rows, others],
                )

    in_ranges(threads, len(blocks), compare)
    for found in (absolute, squared):
        upper = np.triu(found)
        found[:] = upper + np.triu(found, 1).T
    return absolute, squared
