"""The kernels in numba: one thread each, without the GIL, so that dask's threads add up.

Two habits keep the loops in vector instructions: a partial sum is cast back to the type that it
is kept in, else numba widens it to 64 bits; and the inner loop runs over a slice from 0, else
numba allows for negative indices. The loops are compiled once per machine and cached. `fastmath`
lets the compiler reorder the additions of doubles; since every double holds an integer below
2**53 (proved in `exact`), any order gives the same bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from pipeline.exact import Arithmetic, Int64Array

# uint32 sums of 2**16 pixels of 16 bits stay below 2**32.
_BLOCK = 2**16


@njit(nogil=True, cache=True)
def _add_images(
    images: npt.NDArray[Any],
    positions: Int64Array,
    partial: npt.NDArray[np.uint32],
    counts: Int64Array,
) -> None:
    samples, pixels = images.shape
    for sample in range(samples):
        position = positions[sample]
        if position >= 0:
            counts[position] += 1
            for pixel in range(pixels):
                # the cast keeps numba from widening to 64 bits, which halves the vector
                partial[position, pixel] = np.uint32(
                    partial[position, pixel] + np.uint32(images[sample, pixel])
                )


def class_sums(
    images: npt.NDArray[Any], positions: Int64Array, classes: int
) -> tuple[Int64Array, Int64Array]:
    """Sum the images of each class; see `kernels.ClassSums`."""
    sums = np.zeros((classes, images.shape[1]), np.int64)
    counts = np.zeros(classes, np.int64)
    partial = np.zeros(sums.shape, np.uint32)
    for start in range(0, len(images), _BLOCK):
        block = slice(start, start + _BLOCK)
        _add_images(images[block], positions[block], partial, counts)
        sums += partial
        partial[:] = 0
    return sums, counts


@njit(nogil=True, cache=True)
def _sum_differences(a: npt.NDArray[np.int32], b: npt.NDArray[np.int32]) -> np.int32:
    total = np.int32(0)
    for pixel in range(len(a)):
        total = np.int32(total + abs(np.int32(a[pixel] - b[pixel])))
    return total


@njit(nogil=True, cache=True)
def _sum_products(a: npt.NDArray[np.int16], b: npt.NDArray[np.int16]) -> np.int32:
    total = np.int32(0)
    for pixel in range(len(a)):
        total = np.int32(total + np.int32(a[pixel]) * np.int32(b[pixel]))
    return total


@njit(nogil=True, cache=True)
def _l1_numerators_in_tiles(
    images: npt.NDArray[Any],
    numerators: npt.NDArray[np.int32],
    denominators: Int64Array,
    tile: int,
    result: Int64Array,
) -> None:
    samples, pixels = images.shape
    scaled = np.empty(pixels, np.int32)
    for sample in range(samples):
        scaled_by = np.int64(-1)
        for position in range(len(numerators)):
            if denominators[position] != scaled_by:  # classes of one size share the product
                scaled_by = denominators[position]
                factor = np.int32(scaled_by)
                for pixel in range(pixels):
                    scaled[pixel] = np.int32(factor * np.int32(images[sample, pixel]))
            total = np.int64(0)
            for start in range(0, pixels, tile):
                part = slice(start, start + tile)
                total += _sum_differences(scaled[part], numerators[position, part])
            result[sample, position] = total


@njit(nogil=True, cache=True)
def _dot_products_in_tiles(
    images: npt.NDArray[Any],
    quotients: npt.NDArray[np.int16],
    remainders: npt.NDArray[np.int16],
    denominators: Int64Array,
    tile: int,
    result: Int64Array,
) -> None:
    samples, pixels = images.shape
    image = np.empty(pixels, np.int16)
    for sample in range(samples):
        for pixel in range(pixels):
            image[pixel] = images[sample, pixel]
        for position in range(len(quotients)):
            whole, rest = np.int64(0), np.int64(0)
            for start in range(0, pixels, tile):
                part = slice(start, start + tile)
                whole += _sum_products(image[part], quotients[position, part])
                rest += _sum_products(image[part], remainders[position, part])
            result[sample, position] = denominators[position] * whole + rest


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


def l1_numerators(
    images: npt.NDArray[Any],
    numerators: Int64Array,
    denominators: Int64Array,
    arithmetic: Arithmetic,
) -> Int64Array:
    """Sum absolute differences to each prototype; see `kernels.L1Numerators`."""
    result = np.empty((len(images), len(numerators)), np.int64)
    if arithmetic.name == "int32":
        narrow = numerators.astype(np.int32)
        _l1_numerators_in_tiles(images, narrow, denominators, arithmetic.tile, result)
        return result
    dtype = np.dtype(arithmetic.name)
    _l1_numerators(images, numerators.astype(dtype), denominators.astype(dtype), result)
    return result


@njit(nogil=True, cache=True, fastmath=True)
def _dot_products(
    images: npt.NDArray[Any], numerators: npt.NDArray[Any], result: Int64Array
) -> None:
    samples, pixels = images.shape
    image = np.empty(pixels, numerators.dtype)
    for sample in range(samples):
        for pixel in range(pixels):
            image[pixel] = images[sample, pixel]
        for position in range(len(numerators)):
            total = numerators[position, 0] * 0
            for pixel in range(pixels):
                total += image[pixel] * numerators[position, pixel]
            result[sample, position] = np.int64(total)


def dot_products(
    images: npt.NDArray[Any],
    numerators: Int64Array,
    denominators: Int64Array,
    arithmetic: Arithmetic,
) -> Int64Array:
    """Multiply with each prototype's integers; see `kernels.DotProducts`."""
    result = np.empty((len(images), len(numerators)), np.int64)
    if arithmetic.name == "int32":
        divisors = np.maximum(denominators, 1)
        quotients, remainders = np.divmod(numerators, divisors[:, None])
        _dot_products_in_tiles(
            images, quotients.astype(np.int16), remainders.astype(np.int16), divisors,
            arithmetic.tile, result,
        )  # fmt: skip
        return result
    _dot_products(images, numerators.astype(np.dtype(arithmetic.name)), result)
    return result


@njit(nogil=True, cache=True)
def _squared_norms(images: npt.NDArray[Any], result: Int64Array) -> None:
    samples, pixels = images.shape
    for sample in range(samples):
        total = np.int64(0)
        for pixel in range(pixels):
            value = np.int64(images[sample, pixel])
            total += value * value
        result[sample] = total


def squared_norms(images: npt.NDArray[Any]) -> Int64Array:
    """Sum the squares of each image's pixels; see `kernels.SquaredNorms`."""
    result = np.empty(len(images), np.int64)
    _squared_norms(images, result)
    return result
