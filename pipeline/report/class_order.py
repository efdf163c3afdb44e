"""An order of classes in which those that blur into each other stand together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.core.arguments import checked
from pipeline.core.deferred import deferred
from pipeline.core.exact import Float64Array

if TYPE_CHECKING:
    import scipy.cluster.hierarchy as hierarchy
    import scipy.spatial.distance as distance
else:
    hierarchy = deferred("scipy.cluster.hierarchy")
    distance = deferred("scipy.spatial.distance")

MAX_OPTIMAL = 300  # classes up to which leaves are ordered best, which takes their cube


def row_shares(counts: npt.NDArray[Any]) -> Float64Array:
    """Divide each row by its sum; a row of nothing stays 0."""
    return np.asarray(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))


@checked
def confusion_order(counts: npt.NDArray[Any]) -> list[int]:
    """Return positions of classes that put those next to each other which blur into each other.

    Average linkage of how often two classes are mistaken for one another, each in shares of its
    images; up to 300 classes the leaves of the tree are in the best order.

    Parameters
    ----------
    counts
        [label, predicted].
    """
    number = len(counts)
    if number < 3:
        return list(range(number))
    shares = row_shares(np.asarray(counts))
    mixed = (shares + shares.T) / 2
    np.fill_diagonal(mixed, mixed.max())
    apart = mixed.max() - mixed
    condensed = distance.squareform(apart, checks=False)
    tree = hierarchy.linkage(condensed, "average")
    if number <= MAX_OPTIMAL:
        tree = hierarchy.optimal_leaf_ordering(tree, condensed)
    return [int(position) for position in hierarchy.leaves_list(tree)]
