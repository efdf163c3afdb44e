"""How prototypes differ from each other: the only loops that add fractions."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from pipeline.core.threads import in_ranges
from pipeline.kernels.cpu_sums import TILE

# Images that are compared with as many others at once: their tiles take 2 x 512 KiB.
_COMPARED = 32


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
            for pixel in range(0, pixels, TILE):
                tile = slice(pixel, pixel + TILE)
                _add_differences(
                    np.ascontiguousarray(images[rows, tile]),
                    np.ascontiguousarray(images[others, tile]),
                    absolute[rows, others],
                    squared[rows, others],
                )

    in_ranges(threads, len(blocks), compare)
    for sums in (absolute, squared):
        upper = np.triu(sums)
        sums[:] = upper + np.triu(sums, 1).T
    return absolute, squared
