"""Blocks of images measured from prototypes: NumPy arrays in and out, for notebooks and jobs alike.

The formulas are those of `distances`. Kernels count integers, or count and divide where that gives
the same bits, and `exact` divides else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.core import host_memory
from pipeline.core.exact import (
    Float64Array,
    Int64Array,
    choose_arithmetic,
    finish_l1,
    finish_l2,
    largest_pixel,
    prototype_norms,
    scale_of,
    squares_fit,
    sum_squares,
)
from pipeline.core.threads import in_ranges
from pipeline.kernels import backends
from pipeline.ops.leave_one_out import Others

# Bytes of one [sample, class] array on the way; less costs more calls, more does not help.
_BLOCK_BYTES = 2**20
# Of many classes more is taken at once: prototypes are loaded again for every block.
_FEW_IMAGES = 512

Counts = tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any], Int64Array]
"""What `protocols.Measure` returns."""


@dataclass(frozen=True)
class Reference:
    """Prototypes made ready for the kernels of a device, once for many blocks of images.

    Attributes
    ----------
    prepared
        What the kernels read.
    denominators
        [class]; n.
    norms
        `sum P*P` of each class.
    pixels
        D, the values of one image.
    dtype
        The pixel type that the images must have.
    full_scale
        The pixel value that counts as 1.
    device
        As for `backends.load`.
    others
        How they are without one of their images, where that is asked for.
    """

    prepared: Any
    denominators: Int64Array
    norms: list[int]
    pixels: int
    dtype: str
    full_scale: int
    device: str
    others: Others | None = None


def make_reference(
    numerators: Int64Array,
    denominators: Int64Array,
    dtype: str,
    full_scale: int,
    device: str = "auto",
    others: Others | None = None,
) -> Reference:
    """Prepare prototypes, [class, ...] over [class], for images of `dtype`.

    `others` are needed to measure images without themselves.

    Raises
    ------
    ExactnessError
        Where no arithmetic is exact for them.
    """
    flat = np.ascontiguousarray(numerators).reshape(len(numerators), -1)
    arithmetic = choose_arithmetic(int(denominators.max(initial=0)), flat.shape[1], dtype)
    return Reference(
        backends.load(device).prepare(flat, denominators, arithmetic),
        denominators,
        prototype_norms(flat, denominators),
        flat.shape[1],
        dtype,
        full_scale,
        device,
        others,
    )


def distances_block(
    images: npt.NDArray[Any],
    reference: Reference,
    metrics: Sequence[str],
    threads: int = 1,
    own: Int64Array | None = None,
) -> Float64Array:
    """Measure one block of images.

    Parameters
    ----------
    images
        [sample, ...]; pixels.
    reference
        The prototypes.
    metrics
        `l1`, `l2` or both.
    threads
        How many cores to use.
    own
        [sample]; the position of the class whose prototype each image is a part of, and which is
        measured without it; -1 for none. Default: none of them is. Needs the reference's `others`.

    Returns
    -------
    [metric, sample, class]; NaN for classes without images, other than this one where it is left
    out.
    """
    if own is not None and reference.others is None:
        raise ValueError("images to leave out, expected a reference that has 'others'")
    classes, use = len(reference.denominators), backends.load(reference.device)
    result = host_memory.reused((len(metrics), len(images), classes), np.float64)
    flat = np.ascontiguousarray(images).reshape(len(images), reference.pixels)
    scales = _scales(reference, metrics) if own is None else {}
    row = max(8 * classes, 1)
    step = max(_BLOCK_BYTES // row, min(_FEW_IMAGES, 4 * _BLOCK_BYTES // row), 4)
    wanted = {"l1": "l1" in metrics, "l2": "l2" in metrics}
    # pixels go to a device once, for both metrics, and its counts come back
    counted = use.measure(flat, reference.prepared, **wanted) if use.whole_blocks else None

    def measure(first: int, last: int) -> None:
        into = {name: result[metrics.index(name), first:last] for name in scales}
        use = backends.load(reference.device)
        if into and use.distances(flat[first:last], reference.prepared, scales, into):
            return
        for start in range(first, last, step):
            part = slice(start, min(start + step, last))
            if counted is None:
                counts = use.measure(flat[part], reference.prepared, **wanted)
            else:
                counts = _part_of(counted, part)
            for index, metric in enumerate(metrics):
                mine = None if own is None else own[part]
                result[index, part] = _finish(flat[part], counts, reference, metric, mine)

    in_ranges(threads, len(images), measure)
    return result


def _part_of(counts: Counts, part: slice) -> Counts:
    l1, wholes, rests, squares = counts
    one, two, three = (np.ascontiguousarray(each[part], np.int64) for each in (l1, wholes, rests))
    return one, two, three, squares[part]


def nearest_block(
    images: npt.NDArray[Any], reference: Reference, metric: str, threads: int = 1
) -> tuple[Int64Array, Float64Array]:
    """Find the nearest prototype of each image of a block where nothing else is asked for.

    Up to several times as fast as measuring all, where a bound leaves out most prototypes.

    Parameters
    ----------
    images, reference, threads
        As for `distances_block`.
    metric
        `l1` or `l2`.

    Returns
    -------
    The position of the nearest class, of equally near ones the first, and its distance, [sample]
    each: the least of what `distances_block` returns. -1 and NaN where no class has images.
    """
    positions, nearest = np.full(len(images), -1), np.full(len(images), np.nan)
    flat = np.ascontiguousarray(images).reshape(len(images), reference.pixels)
    scales, use = _scales(reference, (metric,)), backends.load(reference.device)

    def find(first: int, last: int) -> None:
        part = slice(first, last)
        if scales and use.nearest_prototype(
            flat[part], reference.prepared, metric, scales[metric], positions[part], nearest[part]
        ):
            return
        step = max(1, _BLOCK_BYTES // max(8 * len(reference.denominators), 1))
        for start in range(first, last, step):
            some = slice(start, min(start + step, last))
            distance = np.nan_to_num(
                distances_block(flat[some], reference, (metric,))[0], nan=np.inf
            )
            at = distance.argmin(axis=1)
            least = distance[np.arange(len(at)), at]
            positions[some] = np.where(np.isfinite(least), at, -1)
            nearest[some] = np.where(np.isfinite(least), least, np.nan)

    if len(reference.denominators):
        in_ranges(threads, len(images), find)
    return positions, nearest


def _scales(reference: Reference, metrics: Sequence[str]) -> dict[str, Float64Array]:
    """Return what sums are divided by, where a kernel can do it: nothing is beyond 2**63."""
    n, pixels = reference.denominators, reference.pixels
    if "l2" in metrics and not squares_fit(n, pixels, largest_pixel(reference.dtype)):
        return {}
    return {metric: scale_of(metric, n, pixels, reference.full_scale) for metric in metrics}


def _finish(
    images: npt.NDArray[Any],
    counts: Counts,
    reference: Reference,
    metric: str,
    own: Int64Array | None,
) -> Float64Array:
    """Divide what was counted of images; see `protocols.Measure`."""
    finish = finish_l1 if metric == "l1" else finish_l2
    denominators, pixels, scale = reference.denominators, reference.pixels, reference.full_scale
    numerators, wholes, rests, squares = counts
    totals: Any = numerators
    if metric != "l1":
        totals = sum_squares(
            squares, (wholes, rests), reference.norms, denominators,
            pixels, largest_pixel(reference.dtype),
        )  # fmt: skip
    result = finish(totals, denominators, pixels, scale)
    if own is not None and reference.others is not None:
        others, rows = reference.others, np.flatnonzero(own >= 0)
        mine = own[rows]
        if others.medians is None:
            totals = totals[rows, mine]
        else:
            totals = others.medians.numerators_of(images[rows], mine, metric)
        result[rows, mine] = finish(totals, others.denominators[mine], pixels, scale)
    return result
