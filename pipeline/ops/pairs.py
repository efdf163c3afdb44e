"""All pairs of images up to a distance, such as near duplicates; exact, group after group."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.core.arguments import checked
from pipeline.core.deferred import da, dask, xr
from pipeline.core.errors import SchemaError
from pipeline.core.exact import Int64Array, finish_neighbours, largest_within
from pipeline.core.schema import IMAGE, NEIGHBOUR, NEIGHBOUR_DISTANCE, PAIR
from pipeline.kernels import backends
from pipeline.ops.distances import check_metrics
from pipeline.ops.search_tasks import (
    chunks_of,
    flattened,
    groups_of,
    make_pair,
    prepare_group,
    read,
)


def _pairs_block(
    queries: Any, references: Any, first: int, same: bool, most: int, device: str
) -> Int64Array:
    """Return [pair, 3]: query, reference and distance; of the same images each pair once."""
    flat = flattened(read(queries))
    pairs = backends.load(device).within(flat, references, most)
    pairs[:, 0] += first
    return pairs[pairs[:, 0] < pairs[:, 1]] if same else pairs


def _find_pairs(
    queries: da.Array, references: da.Array, metric: str, most: int, same: bool, device: str
) -> Int64Array:
    """Compute all pairs, [pair, 3], group after group of references; sorted by both indices."""
    prepare, search = dask.delayed(prepare_group), dask.delayed(_pairs_block)
    firsts = np.cumsum([0, *queries.chunks[0]]).tolist()
    chunks, parts = chunks_of(queries), [np.zeros((0, 3), np.int64)]
    for first, last, group in groups_of(references):
        prepared = prepare(metric, first, True, device, group)
        tasks = [
            search(block, prepared, start, same, most, device)
            for block, start in zip(chunks, firsts[:-1], strict=True)
            if not same or start < last
        ]
        parts += dask.compute(*tasks)
    pairs = np.concatenate(parts)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


@checked
def pairs_within(
    images: xr.Dataset,
    among: xr.Dataset | None = None,
    *,
    radius: float,
    metric: str = "l1",
    device: str = "auto",
) -> xr.Dataset:
    """Find all pairs of images up to a distance, for near duplicates; exact.

    How many there are is not known before, so this computes, chunk by chunk.

    Parameters
    ----------
    images
        As for `neighbours`.
    among
        The images that they are compared with. Default: themselves, each pair once.
    radius
        The largest distance, in units of full scale, 0 to 1; it is included.
    metric
        `l1` or `l2`.
    device
        As for `neighbours`.

    Returns
    -------
    Variables over `pair`: `sample` and `neighbour` int64, the positions in `images` and in
    `among`, and `distance` float64. Sorted by the two positions; without `among` the first is
    the smaller.

    Raises
    ------
    ShapeError, SchemaError
        As `neighbours`.

    Examples
    --------
    >>> import pipeline
    >>> train = pipeline.open_images(pipeline.ingest("digits"))
    >>> pairs = pipeline.pairs_within(train, radius=0.04)
    >>> pairs["sample"].values.tolist(), pairs["neighbour"].values.tolist()
    ([342, 759, 777], [368, 762, 875])
    """
    check_metrics([metric])
    if not radius >= 0:
        raise SchemaError(f"radius is {radius}, expected a distance, 0 or more")
    lazy, others, pixels, full_scale = make_pair(images, among)
    most = largest_within(radius, metric, pixels, full_scale)
    arrays = lazy[IMAGE.name].data, others[IMAGE.name].data
    pairs = _find_pairs(*arrays, metric, most, among is None, device)
    distance = finish_neighbours(pairs[:, 2], metric, pixels, full_scale)
    attributes = NEIGHBOUR_DISTANCE.attributes
    return xr.Dataset(
        {
            "sample": (PAIR, pairs[:, 0].copy(), {"long_name": "position among the images"}),
            "neighbour": (PAIR, pairs[:, 1].copy(), NEIGHBOUR.attributes),
            "distance": (PAIR, distance, attributes),
        }
    )
