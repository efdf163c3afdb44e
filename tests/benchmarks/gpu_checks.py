"""Every kernel of a GPU against NumPy, bit for bit, on generated images, before it is timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from kernel_checks_for_tests import (
    METRICS,
    check_classes,
    check_distances,
    check_search,
    search,
    some_prototypes,
)

from pipeline.core.accumulators import SEGMENT
from pipeline.core.exact import Arithmetic, choose_arithmetic
from pipeline.kernels import backends

TYPES = (np.uint8, np.uint16)


@dataclass(frozen=True)
class Sizes:
    """How large the images of the checks are: many on a GPU, few where kernels are interpreted."""

    pixels: tuple[int, ...]
    denominators: tuple[int, ...]
    full: bool
    pairs: tuple[int, int]


LARGE = Sizes((1, 83, 784, 3072, 150_528), (1, 128, 6000, 65_536, 2_139_062_144), True, (500, 9000))
SMALL = Sizes((67,), (6000,), False, (3, 70))


def checks(device: str, sizes: Sizes) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield what is compared, with what raises `AssertionError` where a bit differs."""
    for dtype in TYPES:
        name = np.dtype(dtype).name
        for pixels in sizes.pixels[:3]:
            yield f"sums and histograms, {name}, {pixels} pixels", _sums(device, dtype, pixels)
        if sizes.full:
            yield f"sums of full segments, {name}", _full_segments(device, dtype)
        for pixels in sizes.pixels:
            for most in sizes.denominators:
                if dtype == np.uint16 and most > 2**24:
                    continue
                what = f"distances to prototypes over {most:,}, {name}, {pixels:,} pixels"
                yield what, _distances(device, dtype, pixels, most)
        for metric in METRICS:
            what = f"neighbours and pairs, {metric}, {name}"
            yield what, _neighbours(device, dtype, metric, sizes)
            for pixels in sizes.pixels[1:] if sizes.full else ():
                what = f"neighbours as on the CPU, {metric}, {name}, {pixels:,} pixels"
                yield what, _as_on_the_cpu(device, dtype, metric, pixels, sizes)


def _random(rng: np.random.Generator, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Images at random, of which some are black, some saturated, and some the same."""
    images = rng.integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)
    images[1::7] = np.iinfo(dtype).max
    images[2::11] = 0
    images[3::5] = images[: len(images[3::5])]
    return images


def _sums(device: str, dtype: type, pixels: int) -> Callable[[], None]:
    def check() -> None:
        rng = np.random.default_rng(pixels)
        count, classes = (67, 5) if pixels != 67 else (9, 2)
        images = _random(rng, (count, pixels), dtype)
        positions = rng.integers(-1, classes, count)
        high = np.tile((images[0] >> 8).astype(np.uint8), (classes, 1))
        check_classes(device, images, positions, classes, 1, high)

    return check


def _full_segments(device: str, dtype: type) -> Callable[[], None]:
    def check() -> None:
        images = np.full((2 * SEGMENT + 300, 33), np.iinfo(dtype).max, dtype)
        images[5, 0] = 1
        wide = images.astype(np.int64)
        sums, squares, counts = backends.load(device).class_sums(
            images, np.zeros(len(images), np.int64), 1
        )
        assert np.array_equal(sums[0], wide.sum(0))
        assert np.array_equal(squares[0], (wide * wide).sum(0))
        assert counts.tolist() == [len(images)]

    return check


def _distances(device: str, dtype: type, pixels: int, most: int) -> Callable[[], None]:
    def check() -> None:
        rng, largest = np.random.default_rng(most + pixels), int(np.iinfo(dtype).max)
        images = _random(rng, (37, pixels), dtype)
        numerators, n = some_prototypes(rng, 3, pixels, largest, most)
        arithmetic = choose_arithmetic(most, pixels, np.dtype(dtype).name)
        check_distances(device, images, numerators, n, arithmetic)
        check_distances(device, images[:3], numerators, n, Arithmetic("int64", 2**62))

    return check


def _neighbours(device: str, dtype: type, metric: str, sizes: Sizes) -> Callable[[], None]:
    def check() -> None:
        rng = np.random.default_rng(2)
        if not sizes.full:
            images = _random(rng, (40, 3, 3), dtype)
            check_search(device, images[:2], images, metric, 3, skip=np.array([0, -1]))
            return
        images = _random(rng, (330, 5, 7), dtype)
        images[200:300] = images[200]  # ties within groups, and between them
        own = np.array([0, 200, 299, -1])
        check_search(device, images[[0, 200, 299, 3]], images, metric, 40, cuts=[257], skip=own)
        check_search(device, images[:3], images[:50], metric, 60)

    return check


def _as_on_the_cpu(
    device: str, dtype: type, metric: str, pixels: int, sizes: Sizes
) -> Callable[[], None]:
    def check() -> None:
        rng = np.random.default_rng(3)
        most = max(300, min(sizes.pairs[1], 2**25 // pixels))
        base = _random(rng, (16, 1, pixels), dtype)
        noise = rng.integers(0, 60, (most, 1, pixels)).astype(dtype)
        references = base[rng.integers(0, 16, most)] // 2 + noise
        queries = references[: min(sizes.pairs[0], most)]
        own = np.arange(len(queries))
        found = (search(queries, references, metric, 10, use, skip=own) for use in (device, "cpu"))
        for one, right in zip(*found, strict=True):
            assert np.array_equal(one, right)

    return check
