"""The nearest images of each image, exact: lazy labelled arrays in and out.

References are taken in groups that are small beside the memory of a worker, one after the other:
the next group is read when all queries were compared with the one before. What stays are lists
of the nearest so far, k numbers and indices a query: the first bound for the next group. A list
is sorted by distance and then by index, so neither groups nor chunks can change it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.core.arguments import checked
from pipeline.core.deferred import da, dask, xr
from pipeline.core.errors import SchemaError
from pipeline.core.exact import NOWHERE, Float64Array, Int64Array, finish_neighbours
from pipeline.core.schema import (
    AMONG_THEMSELVES,
    IMAGE,
    LABEL,
    METRIC,
    METRICS,
    NEIGHBOUR,
    NEIGHBOUR_DISTANCE,
    NEIGHBOUR_LABEL,
    RANK,
    SAMPLE,
    UNLABELLED,
    Variable,
    pick,
)
from pipeline.kernels import backends
from pipeline.ops.distances import check_metrics
from pipeline.ops.labelled import NAMES, code_flags, sample_coordinates
from pipeline.ops.search_tasks import (
    chunks_of,
    flattened,
    groups_of,
    make_pair,
    prepare_group,
    read,
)


def empty_lists(count: int, k: int) -> Int64Array:
    """Return lists of the nearest with nothing in them, [2, query, k]: distances and indices."""
    return np.full((2, count, k), NOWHERE)


def merge_lists(parts: Sequence[Int64Array]) -> Int64Array:
    """Merge the lists of the nearest of several parts of the references, [2, query, k] each."""
    joined = np.concatenate(parts, axis=2)
    order = np.lexsort(joined[::-1])[:, : parts[0].shape[2]]
    return np.take_along_axis(joined, order[None], axis=2)


def _search(
    queries: Any, references: Any, lists: Int64Array, own: int | None, device: str
) -> Int64Array:
    """Search for images of a chunk; `own` is the index of the first, if it is left out."""
    flat, count = read(queries), lists.shape[1]
    skip = np.full(count, -1) if own is None else np.arange(own, own + count)
    return search_block(flat, references, lists, skip, device)


def search_block(
    queries: npt.NDArray[Any],
    references: Any,
    lists: Int64Array,
    skip: Int64Array,
    device: str,
    threads: int = 1,
) -> Int64Array:
    """Search one group of references for the nearest of one block of queries.

    Parameters
    ----------
    queries
        [query, ...]; pixels.
    references
        What `protocols.PrepareSearch` returns.
    lists
        [2, query, k]; the nearest of the groups before, as `empty_lists` and this function return.
    skip
        [query]; the index of the reference that is left out, since no image shall be its own
        neighbour; or -1.
    device, threads
        As for `backends.load`, and how many cores to use.

    Returns
    -------
    [2, query, k]; new lists.
    """
    result = lists.copy()
    distances, found = result
    backends.load(device).nearest(flattened(queries), references, skip, distances, found, threads)
    return result


def _lists_of(
    queries: da.Array, groups: Sequence[tuple[int, int, Any]], metric: str, k: int, own: bool,
    device: str,
) -> da.Array:  # fmt: skip
    """Search group after group; return [2, query, k]."""
    prepare, search = dask.delayed(prepare_group), dask.delayed(_search)
    sizes = queries.chunks[0]
    firsts = np.cumsum([0, *sizes]).tolist()
    lists = [dask.delayed(empty_lists)(size, k) for size in sizes]
    chunks = chunks_of(queries)
    for first, _, group in groups:
        prepared = prepare(metric, first, False, device, group, *lists)
        lists = [
            search(part, prepared, before, start if own else None, device)
            for part, before, start in zip(chunks, lists, firsts[:-1], strict=True)
        ]
    parts = [
        da.from_delayed(part, (2, size, k), np.int64)
        for part, size in zip(lists, sizes, strict=True)
    ]
    return da.concatenate(parts, axis=1) if parts else da.zeros((2, 0, k), np.int64)


def _distances(lists: Int64Array, metric: str, pixels: int, full_scale: int) -> Float64Array:
    return finish_neighbours(lists[0], metric, pixels, full_scale)


def _indices(lists: Int64Array) -> Int64Array:
    return np.where(lists[1] == NOWHERE, -1, lists[1])


def _labels_of(neighbours: Int64Array, labels: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    """Look up the labels of neighbours, -1 for none."""
    if not len(labels):
        return np.full(neighbours.shape, UNLABELLED, np.int32)
    return np.where(neighbours < 0, UNLABELLED, labels[neighbours]).astype(np.int32)


def _labels_in(images: xr.Dataset) -> da.Array:
    """Return the labels of images, [sample] in one chunk; where there are none, -1 for each."""
    if LABEL.name in images.coords:
        return images[LABEL.name].data.rechunk(-1)
    return da.full(images.sizes[SAMPLE], UNLABELLED, dtype=np.int32, chunks=-1)


def _arrays_of(
    lists: Sequence[tuple[str, da.Array]], labels: da.Array, scale: tuple[int, int]
) -> dict[Variable, list[da.Array]]:
    """Make the variables of the result, [query, k] by metric, of the lists of each metric."""
    index = [part.map_blocks(_indices, drop_axis=0, dtype=np.int64) for _, part in lists]
    distance = [
        part.map_blocks(_distances, metric, *scale, drop_axis=0, dtype=np.float64)
        for metric, part in lists
    ]
    label = [
        da.blockwise(_labels_of, "qk", part, "qk", labels, "r", dtype=np.int32, concatenate=True)
        for part in index
    ]
    return {NEIGHBOUR: index, NEIGHBOUR_DISTANCE: distance, NEIGHBOUR_LABEL: label}


@checked
def neighbours(
    images: xr.Dataset,
    among: xr.Dataset | None = None,
    k: int = 10,
    metrics: Sequence[str] = METRICS,
    device: str = "auto",
) -> xr.Dataset:
    """Find the k nearest images of each image, lazily and exactly.

    Parameters
    ----------
    images
        `image` (sample, y, x[, channel]) and, where there are labels, `label` (sample), as
        `class_sums` takes them.
    among
        The images that are searched, of the same shape, dtype and full scale. Default: the images
        themselves, and then no image is its own neighbour; the same image a second time is one.
    k
        How many; where there are not so many, the rest is -1 and NaN.
    metrics
        `l1`, `l2` or both, as for `distances`.
    device
        `auto`, `cpu`, `cuda` or `torch:cpu`; the same bits on each.

    Returns
    -------
    Variables over (metric, sample, rank), nearest first: `neighbour` int64, the position along
    `sample` in `among`, for `.isel`; `distance` float64 in units of full scale, 0 to 1;
    `neighbour_label` int32, -1 for none. Of equal distances the lower position comes first, so the
    first j of the k nearest are the j nearest. `label`, `sample` and whatever other coordinates
    the images have along `sample` are coordinates of the result.

    Raises
    ------
    ShapeError
        Where the images of both differ in shape, pixel type or full scale.
    SchemaError
        Where dimensions, dtypes, k or metrics are not as above.

    Examples
    --------
    >>> import pipeline
    >>> store = pipeline.ingest("digits")
    >>> train, test = pipeline.open_images(store), pipeline.open_images(store, "test")
    >>> near = pipeline.neighbours(test, train, k=3, metrics=["l1"])
    >>> near["neighbour"].sel(metric="l1").values[0].tolist()
    [890, 816, 829]
    """
    names = check_metrics(metrics)
    if k < 1:
        raise SchemaError(f"k is {k}, expected a number of neighbours, 1 or more")
    lazy, others, pixels, full_scale = make_pair(images, among)
    groups = groups_of(others[IMAGE.name].data)
    lists = [
        (name, _lists_of(lazy[IMAGE.name].data, groups, name, k, among is None, device))
        for name in names
    ]
    coordinates: dict[str, Any] = {METRIC: list(names), RANK: np.arange(1, k + 1)}
    coordinates |= sample_coordinates(lazy)
    arrays = _arrays_of(lists, _labels_in(others), (pixels, full_scale))
    variables = {v.name: (v.dims, da.stack(parts), v.attributes) for v, parts in arrays.items()}
    named = {NAMES: others.attrs[NAMES]} if NAMES in others.attrs else {}
    found = xr.Dataset(variables, coordinates, named | {AMONG_THEMSELVES: int(among is None)})
    found[NEIGHBOUR_LABEL.name].attrs |= code_flags(named.get(NAMES))
    return found


def vote_block(labels: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    """Return the label that most neighbours have, [...], of [..., rank], nearest first.

    Between equal votes it is that of the nearest among them. Neighbours without a label, -1, have
    no vote; where none has one, the result is -1.
    """
    votes = (labels[..., :, None] == labels[..., None, :]).sum(-1)
    votes[labels == UNLABELLED] = 0
    winner = votes.argmax(-1)[..., None]  # the first of the largest
    return np.take_along_axis(labels, winner, -1)[..., 0].astype(np.int32)


@checked
def vote(neighbours: xr.Dataset, k: int) -> xr.DataArray:
    """Predict the class of each image by the votes of its k nearest, lazily.

    Parameters
    ----------
    neighbours
        `neighbour_label` (metric, sample, rank), as `neighbours` returns; or of one metric.
    k
        How many vote, at most as many as there are ranks.

    Returns
    -------
    `predicted` (metric, sample) int32, or (sample) of one metric: the class that most of the k
    nearest have, between equal votes that of the nearest image among them; -1 where no neighbour
    has a label.

    Raises
    ------
    SchemaError
        Where there are fewer than k ranks, or dimensions and dtype are not as above.

    Examples
    --------
    >>> import pipeline
    >>> store = pipeline.ingest("digits")
    >>> train, test = pipeline.open_images(store), pipeline.open_images(store, "test")
    >>> near = pipeline.neighbours(test, train, k=3, metrics=["l1"])
    >>> round(float((pipeline.vote(near, 3) == near["label"]).mean()), 4)
    0.9522
    """
    if METRIC not in neighbours.dims and METRIC in neighbours.coords:
        return vote(neighbours.expand_dims(METRIC), k).isel({METRIC: 0})
    labels = pick(neighbours, NEIGHBOUR_LABEL)
    if not 1 <= k <= labels.sizes[RANK]:
        raise SchemaError(
            f"k is {k}, expected 1 to {labels.sizes[RANK]}, the neighbours there are; "
            f"neighbours(..., k={max(k, 1)}) finds more"
        )
    voting = labels.isel({RANK: slice(k)}).reset_coords(drop=True).chunk({RANK: -1})
    values = voting.data.map_blocks(vote_block, drop_axis=2, dtype=np.int32)
    kept = {name: c for name, c in labels.coords.items() if RANK not in c.dims}
    flags = {name: value for name, value in labels.attrs.items() if name.startswith("flag_")}
    attributes = {"long_name": f"class of most of the {k} nearest images"} | flags
    return xr.DataArray(values, kept, (METRIC, SAMPLE), "predicted", attributes)
