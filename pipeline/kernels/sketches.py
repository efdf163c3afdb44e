"""Sketches: a few bytes of each image that bound its distance to any other from below.

For any partition of the pixels into blocks b with sums S_b, `sum_b |S_b(x) - S_b(y)|` never
exceeds `sum |x - y|`; and for any vectors u_i of length 1 that are perpendicular to each other,
`sum_i (u_i.x - u_i.y)**2` never exceeds `sum (x - y)**2` (Bessel). So a sketch holds

- by l1, the sums of `FINE` blocks, and of the `COARSE` blocks that these make up;
- by l2, the sums of the fine blocks, each divided by the root of its size (vectors of length 1,
  constant in their block), and their `COARSE` strongest principal components.

The better a partition follows the images, the tighter the bound, and none is wrong: so it is made
from a sample of them. A block is cut in two where half of what differs between two images at
random lies on each side, the one in which most differs first. On MNIST 64 such blocks leave 0.14 %
of the candidates at the distance of the tenth neighbour, a grid of 8 x 8 leaves 1.0 %; on
Fashion-MNIST it is 1.1 % and 1.3 %. By l2, 60 principal components leave 0.4 % and 1.0 %, 64 blocks
13 % and 3.7 %. Random rotation then spreads what the components hold evenly over the bytes.

Sketches are made when images are read, and not kept in an image set. They would have to spare
reading pixels, and do not: among 600,000 images (Fashion-MNIST, shifted) the coarse sketch leaves
0.2 % of the candidates of one query at its tenth neighbour, and these lie in 87 % of the chunks of
4,096 images; the fine one, a third of the bytes of the pixels, in 42 %, for four queries in 89 %,
for forty in all. Smallest and largest sums of a chunk exclude none where images are in no order.

A byte holds a value in steps of `unit`. What that loses of an image, measured by the same metric,
is its `rest`: two sketches s and t bound a distance by `unit * |s - t| - rest - rest'` (the
triangle inequality), whatever was cut off or rounded. Each rest is made larger by far more than
floating point can have lost on the way.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from pipeline.core.exact import Float64Array, Int64Array, largest_pixel
from pipeline.core.threads import in_ranges

COARSE, FINE = 64, 256
"""Bytes of the two sketches of an image; the first is meant to be a vector of a processor."""

_SAMPLE, _SAMPLE_BYTES, _LEAST = 2048, 32 * 2**20, 128
"""Images that a partition and principal components are made from: fewer of large ones."""

_ROWS = 1024  # images whose block sums are in memory at once

Bytes = npt.NDArray[np.uint8]
Box = tuple[int, int, int, int]


class Level(NamedTuple):
    """One sketch of each of a set of images.

    Attributes
    ----------
    values
        [sample, COARSE or FINE] uint8; what is not used is 0.
    rests
        [sample] float32, in units of pixels: what the bytes lost of the image, by the metric.
    norms
        [sample] int32; `sum s*s`.
    """

    values: Bytes
    rests: npt.NDArray[np.float32]
    norms: npt.NDArray[np.int32]

    @classmethod
    def empty(cls, count: int, size: int) -> Level:
        """Make room for so many images."""
        return cls(
            np.zeros((count, size), np.uint8),
            np.zeros(count, np.float32),
            np.zeros(count, np.int32),
        )

    def take(self, order: Int64Array) -> Level:
        """Return the sketches in an order."""
        return Level(self.values[order], self.rests[order], self.norms[order])


def _cut(weights: Float64Array, box: Box) -> tuple[Box, Box]:
    """Cut a box of at least two pixels across its longer extent, where half the weight lies."""
    top, bottom, left, right = box
    inside = weights[top:bottom, left:right]
    sums = inside.sum(1), inside.sum(0)
    spreads = [_spread(each) if len(each) > 1 else -1.0 for each in sums]
    along = 0 if spreads[0] >= spreads[1] else 1
    total = np.cumsum(sums[along])
    at = 1 + int(np.argmin(np.abs(total[:-1] - total[-1] / 2)))
    if along == 0:
        return (top, top + at, left, right), (top + at, bottom, left, right)
    return (top, bottom, left, left + at), (top, bottom, left + at, right)


def _spread(weights: Float64Array) -> float:
    """Return the standard deviation of the position."""
    positions = np.arange(len(weights))
    mean = np.average(positions, weights=weights)
    return float(np.average((positions - mean) ** 2, weights=weights))


def partition_pixels(
    weights: Float64Array, blocks: int, begin: list[Box] | None = None
) -> list[Box]:
    """Cut the pixels into rectangles of about equal weight.

    Parameters
    ----------
    weights
        [y, x]; positive.
    blocks
        How many; fewer where there are not so many pixels.
    begin
        Rectangles to begin from; default: all pixels.

    Returns
    -------
    (top, bottom, left, right) of each.
    """
    heap: list[tuple[float, Box]] = []
    single: list[Box] = []

    def add(box: Box) -> None:
        top, bottom, left, right = box
        if (bottom - top) * (right - left) == 1:
            single.append(box)
        else:
            heapq.heappush(heap, (-float(weights[top:bottom, left:right].sum()), box))

    for box in begin or [(0, weights.shape[0], 0, weights.shape[1])]:
        add(box)
    while heap and len(heap) + len(single) < blocks:
        for half in _cut(weights, heapq.heappop(heap)[1]):
            add(half)
    return single + [box for _, box in heap]


class _Blocks(NamedTuple):
    """A partition as the loops read it: runs of values of an image, and the block of each."""

    starts: Int64Array
    stops: Int64Array
    blocks: Int64Array
    sizes: Int64Array


def _runs(boxes: list[Box], width: int, channels: int) -> _Blocks:
    rows = [
        ((y * width + left) * channels, (y * width + right) * channels, number)
        for number, (top, bottom, left, right) in enumerate(boxes)
        for y in range(top, bottom)
    ]
    starts, stops, blocks = np.array(rows, np.int64).T
    sizes = np.bincount(blocks, stops - starts).astype(np.int64)
    return _Blocks(starts.copy(), stops.copy(), blocks.copy(), sizes)


@njit(nogil=True, cache=True)
def _block_sums(images: npt.NDArray[Any], blocks: _Blocks, sums: Int64Array) -> None:
    """[sample, block], the sum of each block."""
    for sample in range(len(images)):
        image, row = images[sample], sums[sample]
        row[:] = 0
        for run in range(len(blocks.starts)):
            values = image[blocks.starts[run] : blocks.stops[run]]
            total = np.int64(0)
            for pixel in range(len(values)):
                total += np.int64(values[pixel])
            row[blocks.blocks[run]] += total


class _Scale(NamedTuple):
    """How values become bytes: `round(value / unit) + middle`, cut off at 0 and 255."""

    unit: float
    middle: int


@njit(nogil=True, cache=True)
def _quantize(
    values: Float64Array, margins: Float64Array, scale: _Scale, squared: bool, start: int,
    level: Level,
) -> None:  # fmt: skip
    """Round values to bytes, and measure what is lost; `margins` is added to that."""
    for sample in range(len(values)):
        lost, norm = 0.0, 0
        for position in range(values.shape[1]):
            value = values[sample, position]
            byte = min(max(int(np.floor(value / scale.unit + 0.5)) + scale.middle, 0), 255)
            level.values[start + sample, position] = byte
            norm += byte * byte
            rest = abs(value - (byte - scale.middle) * scale.unit)
            lost += rest * rest if squared else rest
        lost = np.sqrt(lost) if squared else lost
        level.rests[start + sample] = lost * 1.00001 + margins[sample]  # a float32 may round down
        level.norms[start + sample] = norm


@dataclass(frozen=True)
class Sketcher:
    """Makes the sketches of images of one shape, for one metric.

    Attributes
    ----------
    squared
        Whether for l2.
    blocks
        The fine partition.
    groups
        By l1, [fine block], the coarse block it is part of; by l2, [coarse, fine block], the
        principal components.
    centre
        By l2, [fine block], what is taken from the fine values before these; else nothing.
    coarse, fine
        How values become bytes.
    cells
        How many bytes of the coarse sketch are used.
    """

    squared: bool
    blocks: _Blocks
    groups: npt.NDArray[Any]
    centre: Float64Array
    coarse: _Scale
    fine: _Scale
    cells: int

    @cached_property
    def _roots(self) -> Float64Array:
        return 1 / np.sqrt(self.blocks.sizes.astype(np.float64))

    def _values(self, images: npt.NDArray[Any]) -> tuple[Float64Array, Float64Array]:
        """Return the values of both levels, [sample, value]."""
        sums = np.empty((len(images), len(self.blocks.sizes)), np.int64)
        _block_sums(images, self.blocks, sums)
        if not self.squared:
            fine = sums.astype(np.float64)
            return _gathered(sums, self.groups, self.cells), fine
        fine = sums * self._roots
        return (fine - self.centre) @ self.groups.T, fine

    def sketch(self, images: npt.NDArray[Any], threads: int = 1) -> tuple[Level, Level]:
        """Sketch images, [sample, pixel]; return the coarse and the fine level."""
        coarse, fine = Level.empty(len(images), COARSE), Level.empty(len(images), FINE)

        def make(first: int, last: int) -> None:
            for start in range(first, last, _ROWS):
                both = self._values(images[start : min(start + _ROWS, last)])
                # a sum of 256 products loses less than 1e-13 of what is added
                margins = 1e-11 * (both[1].sum(1) + np.abs(self.centre).sum())
                for values, scale, level in zip(
                    both, (self.coarse, self.fine), (coarse, fine), strict=True
                ):
                    _quantize(values, margins, scale, self.squared, start, level)

        in_ranges(threads, len(images), make)
        return coarse, fine


def order_tiles(values: Bytes, size: int) -> Int64Array:
    """Order sketches so that those of a tile of `size` are alike, as the leaves of a k-d tree.

    Halves are cut at a multiple of the size, across the value that is spread most.
    """
    result = np.arange(len(values))
    waiting = [(0, len(values))]
    while waiting:
        start, stop = waiting.pop()
        tiles = -(-(stop - start) // size)
        if tiles < 2:
            continue
        inside = result[start:stop]
        some = values[inside[:: max(1, len(inside) // 1024)]].astype(np.float32)
        at = tiles // 2 * size
        widest = values[inside, int(some.var(0).argmax())]
        result[start:stop] = inside[np.argpartition(widest, at)]
        waiting += [(start, start + at), (start + at, stop)]
    return result


def _gathered(sums: Int64Array, groups: Int64Array, cells: int) -> Float64Array:
    """Add up the fine blocks of each coarse block; `groups` is in order."""
    starts = np.searchsorted(groups, np.arange(cells))
    return np.add.reduceat(sums, starts, axis=1).astype(np.float64)


def _fitting(values: Float64Array, least: float) -> float:
    """Return the unit in which nearly all values fit 255 steps."""
    return max(float(np.quantile(values, 0.9999)) / 255, least)


def make_sketcher(images: npt.NDArray[Any], shape: tuple[int, ...], metric: str) -> Sketcher:
    """Make the sketcher for a set of images, by a sample of them.

    Parameters
    ----------
    images
        [sample, pixel] uint8 or uint16.
    shape
        Of an image, (y, x) or (y, x, channel).
    metric
        `l1` or `l2`.
    """
    size = images.shape[1] * images.itemsize
    most = min(_SAMPLE, max(_LEAST, _SAMPLE_BYTES // size))
    sample = np.ascontiguousarray(images[:: max(1, len(images) // most)][:most])
    weights = _differing(sample, shape)
    coarse = partition_pixels(weights, COARSE)
    fine = _refine(weights, coarse, FINE)
    groups = np.array([number for number, _ in fine], np.int64)
    blocks = _runs([box for _, box in fine], shape[1], math.prod(shape[2:]))
    sums = np.empty((len(sample), len(fine)), np.int64)
    _block_sums(sample, blocks, sums)
    if metric == "l1":
        gathered = _gathered(sums, groups, len(coarse))
        scales = _Scale(_fitting(gathered, 1.0), 0), _Scale(_fitting(sums.astype(float), 1.0), 0)
        return Sketcher(False, blocks, groups, np.zeros(0), *scales, len(coarse))
    values = sums / np.sqrt(blocks.sizes.astype(np.float64))
    centre = values.mean(0)
    basis = _components(values - centre, min(COARSE, len(fine)))
    turned = np.abs((values - centre) @ basis.T)
    scales = (
        _Scale(max(float(turned.max(initial=0)) / 127, 2**-10), 128),
        _Scale(_fitting(values, 2**-10), 0),
    )
    return Sketcher(True, blocks, basis, centre, *scales, len(basis))


@njit(nogil=True, cache=True)
def _add_differences(
    images: npt.NDArray[Any], others: Int64Array, channels: int, total: Int64Array
) -> None:
    """Add, to each of [pixel], how much it differs between every image and its other one."""
    for sample in range(len(images)):
        one, other = images[sample], images[others[sample]]
        for pixel in range(len(total)):
            difference = np.int64(0)
            for at in range(pixel * channels, (pixel + 1) * channels):
                difference += np.int64(one[at]) - np.int64(other[at])
            total[pixel] += abs(difference)


def _differing(images: npt.NDArray[Any], shape: tuple[int, ...]) -> Float64Array:
    """Return how much each pixel, [y, x], differs between two images at random; never 0."""
    total = np.zeros(math.prod(shape[:2]), np.int64)
    others = np.random.default_rng(0).permutation(len(images))
    _add_differences(images, others, math.prod(shape[2:]), total)
    return total.reshape(shape[:2]) / len(images) + largest_pixel(images.dtype) / 2**12


def _refine(weights: Float64Array, coarse: list[Box], blocks: int) -> list[tuple[int, Box]]:
    """Cut blocks further; return each part with the number of the block that it is of, in order."""
    fine = partition_pixels(weights, blocks, coarse)

    def owner(box: Box) -> int:
        return next(
            number
            for number, (top, bottom, left, right) in enumerate(coarse)
            if top <= box[0] and box[1] <= bottom and left <= box[2] and box[3] <= right
        )

    return sorted((owner(box), box) for box in fine)


def _components(values: Float64Array, count: int) -> Float64Array:
    """Return perpendicular vectors of length 1 along the strongest components, rotated at random.

    Rotated, each holds about as much as the others, so one unit suits all.
    """
    _, vectors = np.linalg.eigh(values.T @ values)
    strongest = vectors[:, ::-1][:, :count]
    rotation, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(count, count)))
    # perpendicular up to 1e-13: shrunk by more, no image becomes longer
    return np.asarray((strongest @ rotation).T) * (1 - 1e-9)
