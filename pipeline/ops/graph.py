"""Nearest images as a graph: a sparse matrix, as tools for data quality take it, and its groups.

Groups are images that are (nearly) the same: connected components of pairs. A group is named by its
smallest member, so neither the order of pairs nor how they were found changes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.core.deferred import deferred, sparse
from pipeline.core.errors import SchemaError
from pipeline.core.exact import Float64Array, Int64Array, finish_neighbours

if TYPE_CHECKING:
    import scipy.sparse.csgraph as csgraph
    import scipy.spatial.distance as distance
else:
    csgraph = deferred("scipy.sparse.csgraph")
    distance = deferred("scipy.spatial.distance")

# Distances of a group that are in memory at once.
_BLOCK = 2**20


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


# groups -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Groups:
    """Images in groups, those of a group side by side.

    Attributes
    ----------
    members
        [member]; images, those of a group ascending, groups in the order of their smallest.
    group
        [member]; the smallest member of the group of each.
    """

    members: Int64Array
    group: Int64Array

    @property
    def starts(self) -> Int64Array:
        """Where each group begins among the members, [group], and their number at the end."""
        edges = np.flatnonzero(np.diff(self.group, prepend=-1))
        return np.append(edges, len(self.members)).astype(np.int64)

    def sizes(self) -> Int64Array:
        """How many images each group has, [group]."""
        return np.diff(self.starts)

    def each(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Give every member what is known of its group, [group] -> [member]."""
        return np.repeat(values, self.sizes())

    def of_pairs(self, first: Int64Array) -> Int64Array:
        """Return the number of the group that each image of pairs is in; images must be members."""
        order = np.argsort(self.members)
        at = order[np.searchsorted(self.members, first, sorter=order)]
        number: Int64Array = np.searchsorted(self.starts, at, side="right") - 1
        return number


def connect(first: Int64Array, second: Int64Array) -> Groups:
    """Join the images of pairs, [pair] each, into groups."""
    images = np.unique(np.concatenate([first, second]))
    if not len(images):
        return Groups(images, images)
    ends = np.searchsorted(images, first), np.searchsorted(images, second)
    graph = sparse.coo_array((np.ones(len(first), np.int8), ends), (len(images), len(images)))
    _, component = csgraph.connected_components(graph, directed=False)
    smallest = np.full(component.max() + 1, np.iinfo(np.int64).max)
    np.minimum.at(smallest, component, images)
    group = smallest[component]
    order = np.lexsort((images, group))
    return Groups(images[order], group[order])


def smallest_edges(groups: Groups, first: Int64Array, values: Float64Array) -> Float64Array:
    """Return the smallest value of the pairs of each group; `first` is an image of each pair."""
    smallest = np.full(len(groups.sizes()), np.inf)
    np.minimum.at(smallest, groups.of_pairs(first), values)
    return smallest


def diameter(images: npt.NDArray[Any], metric: str, full_scale: int) -> float:
    """Return the largest distance between two images, [image, ...], in units of full scale.

    Sums of integers below 2**53 are exact in float64, so the distance is that of the kernels.
    """
    rows = images.reshape(len(images), -1)
    each = {row.tobytes(): at for at, row in enumerate(rows)}  # copies change nothing
    flat = rows[list(each.values())].astype(np.float64)
    measure = "cityblock" if metric == "l1" else "sqeuclidean"
    step = max(1, _BLOCK // len(flat))
    largest = max(
        int(distance.cdist(flat[start : start + step], flat, measure).max())
        for start in range(0, len(flat), step)
    )
    numerators = np.array([largest])
    return float(finish_neighbours(numerators, metric, flat.shape[1], full_scale)[0])
