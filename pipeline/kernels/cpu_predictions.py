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

10,000 images of Fashion-MNIST, shifted, one thread of two busy ones: of 10 means l1 leaves 1.4 and
l2 1.7 for each image, and little is won (2.7 ms of 2.9 by l1; faiss 7.2); of 1,000 means it takes
72 ms by either metric where all distances take 155 (faiss, l1: 470; `NearestCentroid`, l2: 405).
Where few prototypes are alike more is won. Where many are, as means of noise, the bound leaves
most pairs, and to gather them takes 3 to 17 times as long as all distances: so it is given up where
it leaves more than an eighth.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from pipeline.core.exact import Float64Array, Int64Array
from pipeline.kernels import vectors
from pipeline.kernels.cpu_distances import ABREAST, Digits, add_norms, make_padded, pad

_CHUNK, _PAIRS = 4096, 2**20  # images, and pairs, whose candidates are listed at once
_PROBE = 256  # images of the first chunk, which says whether the bound pays
_LEFT = 1 / 8  # the share of pairs up to which it does
_SLACK = 1e-9  # far more than floating point loses of a bound


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


@njit(nogil=True, cache=True)
def _list_candidates(
    sums: Int64Array, of_images: Int64Array, bounded: _Bounded, squared: bool,
    samples: tuple[int, int], out: tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]], found: int,
) -> int:  # fmt: skip
    """List what the bound leaves of `ROWS` images: their numbers, and classes ascending."""
    rows, errors = vectors.ROWS, bounded.errors
    for row in range(samples[1] - samples[0]):
        least, at = np.int64(2**62), -1
        for position in range(len(errors)):
            value = sums[position * rows + row]
            if squared:  # |x - m|**2
                value = bounded.norms[position] - 2 * (value + of_images[row])
                sums[position * rows + row] = value
            if value < least and errors[position] < np.inf:
                least, at = value, position
        if at < 0:
            continue
        if squared:
            least += of_images[rows + row]
        reach = (np.sqrt(float(least)) if squared else float(least)) + errors[at]
        for position in range(len(errors)):
            most = reach + errors[position]
            most = most * most - of_images[rows + row] if squared else most
            near = float(sums[position * rows + row]) <= most + abs(most) * _SLACK + 1
            if near and errors[position] < np.inf:
                out[0][found], out[1][found] = samples[0] + row, position
                found += 1
    return found


@njit(nogil=True, cache=True)
def _find_candidates(
    images: npt.NDArray[np.uint8], bounded: _Bounded, shape: vectors.Shape,
    padded: npt.NDArray[np.uint8], out: tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]],
) -> int:  # fmt: skip
    """List the pairs of an image and a prototype that the bound leaves; return how many."""
    squared, rows, (height, tile) = len(shape[3]) == vectors.L2, vectors.ROWS, padded.shape
    width, abreast, found = bounded.images.shape[1], len(shape[1]), 0
    sums = np.empty((height // rows, len(bounded.images) * rows), np.int64)
    of_images, scratch = np.empty((height // rows, 2 * rows), np.int64), np.empty(rows, np.int64)
    nothing = np.zeros(tile, np.uint8)
    for first in range(0, len(images), height):
        last = min(first + height, len(images))
        of_images[:] = 0
        for start in range(0, width, tile):
            pad(images, first, last, start, padded)
            steps = min(tile, width - start) // vectors.WIDTH
            if squared:
                add_norms(padded, steps, nothing, scratch, of_images)
            for position in range(0, len(bounded.images), abreast):
                some = bounded.images[position:, start:]
                for row in range(0, last - first, rows):
                    vectors.measure(
                        padded[row:], some, (tile, width, 0), steps, shape, start > 0,
                        sums[row // rows, position * rows :],
                    )  # fmt: skip
        for row in range(0, last - first, rows):
            samples, group = (first + row, min(first + row + rows, last)), row // rows
            found = _list_candidates(
                sums[group], of_images[group], bounded, squared, samples, out, found
            )
    return found


@njit(nogil=True, cache=True)
def _measure_pairs(
    images: npt.NDArray[np.uint8], prototypes: tuple[npt.NDArray[np.uint8], Int64Array],
    scales: Float64Array, shape: vectors.Shape, padded: npt.NDArray[np.uint8],
    pairs: tuple[npt.NDArray[np.int32], Int64Array], distances: Float64Array,
) -> None:  # fmt: skip
    """Measure pairs exactly: samples, those of class c from `edges[c]` up to `edges[c + 1]`."""
    (planes, numbers), (samples, edges) = prototypes, pairs
    rows, (_, columns, width), tile = vectors.ROWS, planes.shape, padded.shape[1]
    sums, scratch = np.empty(columns * rows, np.int64), np.empty(rows, np.int64)
    of_images, nothing = np.empty((1, 2 * rows), np.int64), np.zeros(tile, np.uint8)
    for position in range(len(planes)):
        scale = scales[position], scales[position]
        for at in range(edges[position], edges[position + 1], rows):
            count = min(rows, edges[position + 1] - at)
            of_images[:] = 0
            for start in range(0, width, tile):
                steps = min(tile, width - start) // vectors.WIDTH
                for row in range(rows):
                    sample = samples[at + row] if row < count else 0
                    pad(images, sample, sample + 1, start, padded[row : row + 1])
                if len(shape[3]) == vectors.L2:
                    add_norms(padded, steps, nothing, scratch, of_images)
                plane = planes[position, :, start:]
                vectors.measure(padded, plane, (tile, 0, width), steps, shape, start > 0, sums)
            vectors.finish(
                sums, of_images[0], numbers[position], scale, shape, (count, at, 1),
                (distances, distances),
            )  # fmt: skip


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
    rounded = prototypes.rounded
    errors = np.where(np.isnan(scale), np.inf, prototypes.errors[at])
    bounded = _Bounded(rounded, prototypes.rounded_norms, errors)
    padded, classes = make_padded(rounded.shape[1]), len(errors)
    shape = vectors.shape_of(vectors.ROWS, ABREAST, 0, which)
    step = max(min(_CHUNK, _PAIRS // max(classes, 1)), vectors.ROWS)
    room = np.empty((2, min(step, len(images)) * classes), np.int32)
    starts = [0, *range(min(_PROBE, step), len(images), step)]
    for start, stop in zip(starts, [*starts[1:], len(images)], strict=True):
        part = np.ascontiguousarray(images[start:stop])
        found = _find_candidates(part, bounded, shape, padded, (room[0], room[1]))
        if found > len(part) * (1 + _LEFT * classes):
            return False
        samples, of_pairs = room[0, :found], room[1, :found]
        keys = of_pairs.astype(np.int16) if classes < 2**15 else of_pairs  # sorted by counting
        order = np.argsort(keys, kind="stable")
        samples, of_pairs = samples[order], of_pairs[order]
        edges = np.searchsorted(of_pairs, np.arange(classes + 1))
        measured = np.empty(found)
        _measure_pairs(
            part, (prototypes.planes, prototypes.numbers), scale,
            prototypes.shape(vectors.ROWS, which), padded[: vectors.ROWS], (samples, edges),
            measured,
        )  # fmt: skip
        _choose(samples, of_pairs, measured, positions[start:], distances[start:], len(part))
    return True


@njit(nogil=True, cache=True)
def _choose(
    samples: npt.NDArray[np.int32], of_pairs: npt.NDArray[np.int32], measured: Float64Array,
    positions: Int64Array, distances: Float64Array, count: int,
) -> None:  # fmt: skip
    """Write the nearest of each image; of equal ones the first, as classes ascend."""
    positions[:count] = -1
    distances[:count] = np.nan
    for at in range(len(samples)):
        sample = samples[at]
        if positions[sample] < 0 or measured[at] < distances[sample]:
            positions[sample], distances[sample] = of_pairs[at], measured[at]
