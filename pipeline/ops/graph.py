"""Lists of the nearest images as a sparse graph, as tools for data quality take it."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.core.deferred import sparse
from pipeline.core.errors import SchemaError
from pipeline.core.exact import Float64Array, Int64Array


def merge_nearest(
    distance: Float64Array, neighbour: Int64Array, k: int
) -> tuple[Float64Array, Int64Array]:
    """Merge several lists of the nearest of each image into the k nearest of all.

    Parameters
    ----------
    distance, neighbour
        [image, entry]; the lists of an image one after the other, of different images each; NaN and
        -1 for none.
    k
        How many, at most as many as there are entries.

    Returns
    -------
    Both, [image, k]: nearest first, of equal distances the lower number first, none last.
    """
    order = np.lexsort((neighbour, distance))[:, :k]  # NaN sorts last
    return np.take_along_axis(distance, order, 1), np.take_along_axis(neighbour, order, 1)


def graph_of(distance: Float64Array, neighbour: Int64Array) -> Any:
    """Make a sparse matrix of lists of the nearest.

    Parameters
    ----------
    distance, neighbour
        [image, rank]; nearest first; NaN and -1 for none. Neighbours are numbers of these images.

    Returns
    -------
    `scipy.sparse.csr_matrix` [image, image] float64: row `i` holds the distances from image `i` to
    its nearest, in the order of ranks. That of a copy is 0 and is stored; what is not stored is no
    neighbour. It is a matrix and not an array, since cleanlab asks for `csr_matrix`.

    Raises
    ------
    SchemaError
        Where a neighbour is none of these images, or an image is its own: such lists are of images
        among others.
    """
    count = len(neighbour)
    there = neighbour >= 0
    own = np.flatnonzero((neighbour == np.arange(count)[:, None]).any(1))
    if len(own):
        raise SchemaError(
            f"image {own[0]} is its own neighbour, expected the nearest of images among "
            "themselves: neighbours(images) without 'among'"
        )
    if there.any() and neighbour.max() >= count:
        raise SchemaError(
            f"an image has neighbour {neighbour.max()}, expected one of the {count:,} images, 0 to "
            f"{count - 1}: neighbours(images) of all images, without 'among'"
        )
    ends = np.concatenate([[0], np.cumsum(there.sum(1))])
    return sparse.csr_matrix((distance[there], neighbour[there], ends), (count, count))
