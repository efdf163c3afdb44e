"""How far the prototypes of a run are from each other: which classes are alike on average."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.core.exact import Float64Array, Int64Array
from pipeline.kernels.cpu_distances import differences

CLOSEST = 30  # pairs that are named
MAX_MATRIX = 64  # classes of which every distance is kept
MAX_CLASSES = 4_000
MAX_WORK = 2 * 10**10  # differences of two pixels; some seconds


def prototype_distances(prototypes: Float64Array, threads: int = 1) -> dict[str, Float64Array]:
    """Measure prototypes against each other.

    Parameters
    ----------
    prototypes
        [class, pixel]; in units of full scale.
    threads
        How many cores to use.

    Returns
    -------
    `l1`, the mean of absolute differences, and `l2`, the root of the mean of squared ones: both
    [class, class], from 0 to 1.
    """
    absolute, squared = differences(prototypes, threads)
    pixels = prototypes.shape[1]
    return {"l1": absolute / pixels, "l2": np.sqrt(squared / pixels)}


def closest_classes(
    numerators: Int64Array,
    denominators: Int64Array,
    full_scale: int,
    metrics: Sequence[str],
    threads: int = 1,
) -> dict[str, Any]:
    """Return which classes have prototypes that are close to each other.

    Parameters
    ----------
    numerators, denominators
        [class, ...] and [class]; the exact prototypes. A denominator of 0 is a class without one.
    full_scale
        The pixel value that counts as 1.
    metrics
        `l1`, `l2`.
    threads
        How many cores to use.

    Returns
    -------
    `skipped`, why nothing was measured, or None; and for each metric `pairs`, the closest pairs as
    [class, class, distance]; of each class its `nearest` other one and the `distance` to it, None
    where there is none; and `matrix`, all distances, where classes are few, else None. Classes are
    positions.
    """
    present = np.flatnonzero(denominators > 0)
    reason = _too_much(len(present), numerators[0].size)
    found: dict[str, Any] = {"skipped": reason}
    if reason:
        return found
    flat = numerators.reshape(len(numerators), -1)[present]
    images = flat / (denominators[present, None] * float(full_scale))
    distances = prototype_distances(images, threads)
    return found | {m: _describe(distances[m], present, len(numerators)) for m in metrics}


def _too_much(classes: int, pixels: int) -> str | None:
    """Say why prototypes are not compared, where that would take too long."""
    work = classes * (classes - 1) // 2 * pixels
    if classes <= MAX_CLASSES and work <= MAX_WORK:
        return None
    return (
        f"{classes:,} prototypes of {pixels:,} pixels were not compared with each other: that "
        f"takes {work:.1g} differences, and is done for up to {MAX_CLASSES:,} classes and "
        f"{MAX_WORK:.0e} differences"
    )


def _describe(
    distances: Float64Array, present: npt.NDArray[np.int64], classes: int
) -> dict[str, Any]:
    count = len(present)
    first, second = np.triu_indices(count, 1)
    values = distances[first, second]
    order = np.argsort(values, kind="stable")[:CLOSEST]
    pairs = [[int(present[first[at]]), int(present[second[at]]), float(values[at])] for at in order]
    nearest: list[int | None] = [None] * classes
    lowest: list[float | None] = [None] * classes
    if count > 1:
        others = distances + np.diag(np.full(count, np.inf))
        for place, other in zip(present.tolist(), others.argmin(axis=1).tolist(), strict=True):
            nearest[place] = int(present[other])
        for place, value in zip(present.tolist(), others.min(axis=1).tolist(), strict=True):
            lowest[place] = value
    matrix = None
    if classes <= MAX_MATRIX:
        whole: npt.NDArray[Any] = np.full((classes, classes), None, object)
        whole[np.ix_(present, present)] = distances
        matrix = whole.tolist()
    return {"pairs": pairs, "nearest": nearest, "distance": lowest, "matrix": matrix}
