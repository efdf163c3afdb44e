"""The nearest images of a search or of an audit as a graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.arguments import checked
from pipeline.core.deferred import deferred
from pipeline.core.errors import SchemaError
from pipeline.core.exact import Float64Array, Int64Array
from pipeline.core.schema import AMONG_THEMSELVES, METRIC, NEIGHBOUR, NEIGHBOUR_DISTANCE, pick
from pipeline.ops.graph import graph_of
from pipeline.report.opened_audit import Audit

if TYPE_CHECKING:
    import dask
    import xarray as xr
else:
    dask = deferred("dask")
    xr = deferred("xarray")


@checked
def knn_graph(neighbours: xr.Dataset | Audit, metric: str = "l1") -> Any:
    """Make a sparse graph of the nearest images, as cleanlab and scikit-learn take it.

    It computes, and holds all lists in memory: 12 bytes for each image and neighbour, and several
    times that while it is made.

    Parameters
    ----------
    neighbours
        What `neighbours(images)` returns, without `among`; or an audit, as `open_audit` returns:
        then of all its splits together, images numbered split after split, in the order of
        `audit.summary["splits"]`.
    metric
        `l1` or `l2`, one that was measured.

    Returns
    -------
    `scipy.sparse.csr_matrix` [image, image] float64: row `i` holds the distances from image `i` to
    its k nearest, in units of full scale, nearest first; of equal distances the lower number first.
    No image is in its own row. A distance of 0 is stored too: `Datalab.find_issues(knn_graph=...)`
    reads rows of equal length. Where there are not k others, a row has as many as there are.

    Raises
    ------
    SchemaError
        Where the metric was not measured, or neighbours are not as above.
    DamagedError
        Where a table of the audit is missing or was changed.

    Examples
    --------
    >>> import pipeline
    >>> train = pipeline.open_images(pipeline.ingest("digits"))
    >>> graph = pipeline.knn_graph(pipeline.neighbours(train, k=3))
    >>> graph.shape, graph.nnz
    ((898, 898), 2694)
    """
    if isinstance(neighbours, Audit):
        return graph_of(*neighbours.nearest(metric))
    return graph_of(*_nearest_of(neighbours, metric))


def _nearest_of(found: xr.Dataset, metric: str) -> tuple[Float64Array, Int64Array]:
    """Return distances and positions, [image, rank]."""
    if METRIC not in found.dims and METRIC in found.coords:
        found = found.expand_dims(METRIC)
    neighbour, distance = pick(found, NEIGHBOUR), pick(found, NEIGHBOUR_DISTANCE)
    known = [str(name) for name in found[METRIC].values] if METRIC in found.coords else []
    if metric not in known:
        raise SchemaError(f"metric is {metric!r}, expected one that was measured: {known}")
    if not found.attrs.get(AMONG_THEMSELVES, True):
        raise SchemaError(
            "neighbours are those among other images, expected those of images among themselves: "
            "neighbours(images) without 'among'"
        )
    at = known.index(metric)
    values = dask.compute(distance.data[at], neighbour.data[at])
    return np.asarray(values[0]), np.asarray(values[1])
