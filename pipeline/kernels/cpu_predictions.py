"""The nearest prototype of each image where nothing else is asked for: a bound, then few distances.

A prototype P/n lies within a known distance of its rounded image, which has 8 bits. So by the
triangle inequality no distance to it differs by more than that from the distance to the rounded
image, which costs two instructions for 64 pixels (l1: `psadbw` and an addition) or one (l2:
`vpdpbusd`), where the distance itself takes six or three at two digits. A prototype whose least
possible distance is above the greatest possible one of another is not the nearest; what is left
is measured exactly, as `cpu_distances` does it, and compared as floats, as predictions are.

Four images are compared with five prototypes at once: 20 sums in registers, 9 loads for 40
instructions. On Zen 4 (3.6 GHz, a vector of 64 bytes a cycle at most) l1 takes 0.35 ns for 64
pixels of a pair, 80 % of what `psadbw` can do, and l2 0.29 ns, 96 % of what `vpdpbusd` can.

What the bound leaves of an image is measured while the image is in the cache, the most likely
prototype first, whose distance then bounds the others. 10,000 images, one thread of two busy ones:
to 10 means of 6,000 Fashion-MNIST images l1 takes 1.5 to 1.8 ms and l2 1.7 to 2.0 (where the pairs
that were left were listed, sorted and gathered, 2.0 to 2.1 and 2.4 to 2.7), to 1,000 means of 60
images 70 and 65 ms. Without `_nrt=False` and `forceinline` it was 3.4: references to arrays were
counted, and arrays copied to the stack, for each pair. Where many prototypes are alike, as means of
noise, the bound leaves most pairs: it is given up where it leaves more than an eighth.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from pipeline.core.exact import Float64Array, Int64Array
from pipeline.kernels import vectors
from pipeline.kernels.cpu_distances import ABREAST, Digits, add_norms, make_padded, pad

_PROBE = 256  # images that say whether the bound pays
_LEFT = 1 / 8  # the share of pairs up to which it does
_SLACK = 1e-9  # far more than floating point loses of a bound


class _Exact(NamedTuple):
    """Prototypes as `cpu_distances.Digits` has them, and what distances are divided by, [class]."""

    planes: npt.NDArray[np.uint8]
    numbers: Int64Array
    scale: Float64Array


class _Bounded(NamedTuple):
    """Rounded prototypes.

    Attributes
    ----------
    images
        [class, width]; black classes beyond the last.
    norms
        [class]; `sum m*m`.
    errors
        [class]; how far a prototype lies from its rounded image; infinite for none at all.
    """

    images: npt.NDArray[np.uint8]
    norms: Int64Array
    errors: Float64Array


class _Tiles(NamedTuple):
    """A tile of a few images, rows of whole vectors.

    Attributes
    ----------
    images
        [image, tile]; the block that is measured.
    one
        [1, tile]; a tile of one of them, where images have several.
    nothing
        [tile]; zeros.
    """

    images: npt.NDArray[np.uint8]
    one: npt.NDArray[np.uint8]
    nothing: npt.NDArray[np.uint8]


class _Search(NamedTuple):
    """Prototypes, and room for a block of images.

    Attributes
    ----------
    rough
        [group, ROWS * class]; what the rounded prototypes are from `ROWS` images: for each class
        `sum |x - m|`, or the products that `vectors.measure` counts, later `|x - m|**2 - |x|**2`.
    of_images
        [group, 2 * ROWS]; what `add_norms` counts, 0 by l1.
    sums
        What is counted of one pair.
    """

    bounded: _Bounded
    exact: _Exact
    tiles: _Tiles
    rough: Int64Array
    of_images: Int64Array
    sums: Int64Array


@njit(nogil=True, cache=True, _nrt=False, forceinline=True, error_model="numpy")
def _divide(
    sums: Int64Array, of_image: tuple[int, int], of_class: Int64Array, scale: float,
    shape: vectors.Shape,
) -> Any:  # fmt: skip
    """Make the distance of one pair: the bits of `exact.finish_l1` or `exact.finish_l2`."""
    n, rest = of_class[0], np.int64(0)
    for digit in range(len(shape[2]), 0, -1):
        rest = rest * 256 + sums[digit]
    if len(shape[3]) == vectors.L1:
        return (n * sums[0] - 2 * rest + of_class[1]) / scale
    whole = sums[0] + of_image[0]
    return np.sqrt((n * (n * (of_image[1] - 2 * whole) - 2 * rest) + of_class[2]) / scale)


@njit(nogil=True, cache=True, _nrt=False, forceinline=True)
def _measure_pair(
    images: npt.NDArray[np.uint8], sample: int, row: int, search: _Search, shape: vectors.Shape,
    position: int,
) -> Any:  # fmt: skip
    """Measure a prototype and image `row` of the block, whose number is `sample`."""
    tiles, exact, sums, rows = search.tiles, search.exact, search.sums, vectors.ROWS
    width, tile = exact.planes.shape[2], tiles.images.shape[1]
    for start in range(0, width, tile):
        image = tiles.images[row:]
        if width > tile:
            pad(images, sample, sample + 1, start, tiles.one)
            image = tiles.one
        steps, plane = min(tile, width - start) // vectors.WIDTH, exact.planes[position, :, start:]
        vectors.measure(image, plane, (tile, 0, width), steps, shape, start > 0, sums)
    norms = search.of_images[row // rows]
    of_image = norms[row % rows], norms[rows + row % rows]
    return _divide(sums, of_image, exact.numbers[position], exact.scale[position], shape)


@njit(nogil=True, cache=True, _nrt=False, forceinline=True)
def _next_near(
    search: _Search, row: int, squared: bool, reach: float, first: int, position: int
) -> int:
    """Return the next prototype that may be as near as `reach`, other than `first`."""
    rough, errors, rows = search.rough[row // vectors.ROWS], search.bounded.errors, vectors.ROWS
    lacking, whole = np.int64(0), np.int64(reach * (1 + _SLACK) + 1)
    if squared:
        lacking = search.of_images[row // rows, rows + row % rows]
    for at in range(position, len(errors)):
        value = rough[at * rows + row % rows]
        if squared:
            most = (reach + errors[at]) ** 2 - lacking
            near = float(value) <= most + abs(most) * _SLACK + 1
        else:
            near = value - whole <= errors[at]
        if near and at != first and errors[at] < np.inf:
            return at
    return len(errors)


@njit(nogil=True, cache=True, _nrt=False, forceinline=True)
def _choose(
    images: npt.NDArray[np.uint8], sample: int, row: int, search: _Search, shape: vectors.Shape
) -> tuple[int, float, int]:
    """Return the nearest prototype of an image, its distance, and how many were measured.

    The one whose rounded image is nearest is measured first; of the others, what may be as near.
    """
    bounded, exact, rows = search.bounded, search.exact, vectors.ROWS
    rough, errors, squared = search.rough[row // rows], bounded.errors, len(shape[3]) == vectors.L2
    least, nearest = np.int64(2**62), -1
    for position in range(len(errors)):
        at = position * rows + row % rows
        value = rough[at]
        if squared:  # |x - m|**2 - |x|**2
            value = bounded.norms[position] - 2 * (
                value + search.of_images[row // rows, row % rows]
            )
            rough[at] = value
        if value < least and errors[position] < np.inf:
            least, nearest = value, position
    if nearest < 0:
        return -1, np.nan, 0
    first, position, distance, reach, measured = nearest, nearest, np.inf, 0.0, 0
    while position < len(errors):
        value = _measure_pair(images, sample, row, search, shape, position)
        if value < distance or (value == distance and position < nearest):
            distance, nearest = value, position
            scale, n = exact.scale[nearest], exact.numbers[nearest, 0]
            reach = distance * (np.sqrt(scale) / n if squared else scale / n)
        start = position + 1 if measured else 0
        position = _next_near(search, row, squared, reach, first, start)
        measured += 1
    return nearest, distance, measured


@njit(nogil=True, cache=True, _nrt=False)
def _find_nearest(
    images: npt.NDArray[np.uint8], search: _Search, shapes: tuple[vectors.Shape, vectors.Shape],
    positions: Int64Array, distances: Float64Array,
) -> bool:  # fmt: skip
    """Write the nearest of each image; return whether the bound pays, else nothing is of use."""
    (rough_shape, shape), tiles, rows = shapes, search.tiles, vectors.ROWS
    rounded, (height, tile), measured = search.bounded.images, tiles.images.shape, 0
    width, abreast = rounded.shape[1], len(rough_shape[1])
    for first in range(0, len(images), height):
        last = min(first + height, len(images))
        search.of_images[:] = 0
        for start in range(0, width, tile):
            pad(images, first, last, start, tiles.images)
            steps = min(tile, width - start) // vectors.WIDTH
            if len(shape[3]) == vectors.L2:
                add_norms(tiles.images, steps, tiles.nothing, search.sums, search.of_images)
            for position in range(0, len(rounded), abreast):
                some = rounded[position:, start:]
                for row in range(0, last - first, rows):
                    vectors.measure(
                        tiles.images[row:], some, (tile, width, 0), steps, rough_shape, start > 0,
                        search.rough[row // rows, position * rows :],
                    )  # fmt: skip
        for row in range(last - first):
            sample = first + row
            positions[sample], distances[sample], count = _choose(
                images, sample, row, search, shape
            )  # fmt: skip
            measured += count
        if first < _PROBE <= last and measured > last * (1 + _LEFT * len(search.bounded.errors)):
            return False
    return True


def nearest_prototype(
    images: npt.NDArray[Any],
    prototypes: Any,
    metric: str,
    scale: Float64Array,
    positions: Int64Array,
    distances: Float64Array,
) -> bool:
    """Find the nearest prototype of each image; see `protocols.NearestPrototype`."""
    if not isinstance(prototypes, Digits) or not images.size:
        return False
    which, at = (vectors.L1, 0) if metric == "l1" else (vectors.L2, 1)
    errors = np.where(np.isnan(scale), np.inf, prototypes.errors[at])
    padded, rows = make_padded(prototypes.rounded.shape[1]), vectors.ROWS
    groups, classes = len(padded) // rows, len(prototypes.rounded)
    search = _Search(
        _Bounded(prototypes.rounded, prototypes.rounded_norms, errors),
        _Exact(prototypes.planes, prototypes.numbers, scale),
        _Tiles(padded, make_padded(padded.shape[1])[:1], np.zeros_like(padded[0])),
        np.empty((groups, classes * rows), np.int64),
        np.empty((groups, 2 * rows), np.int64),
        np.empty(2 * rows, np.int64),
    )
    shapes = vectors.shape_of(rows, ABREAST, 0, which), prototypes.shape(1, which)
    part = np.ascontiguousarray(images)
    return bool(_find_nearest(part, search, shapes, positions, distances))
