"""Tasks of a search: groups of references, chunks of queries, each read when its turn has come."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from dask.system import CPU_COUNT

from pipeline.core.deferred import da, dask, deferred, xr
from pipeline.core.exact import choose_arithmetic
from pipeline.core.schema import IMAGE, SAMPLE
from pipeline.kernels import backends
from pipeline.ops.labelled import check_alike, full_scale_of, lazy_images

if TYPE_CHECKING:
    from dask import highlevelgraph
else:
    highlevelgraph = deferred("dask.highlevelgraph")

# Bytes of images of a group of references; with sketches it takes about twice as much.
_GROUP_BYTES = 64 * 2**20
# Queries of a chunk at least: below, preparing them costs more than is won by another thread.
_LEAST_QUERIES = 256


def flattened(images: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return images as rows of pixels, as kernels take them."""
    return np.ascontiguousarray(images).reshape(len(images), math.prod(images.shape[1:]))


class _Later:
    """A part of an array that the task which uses it reads, when its turn has come.

    As a task of its own it would be read as soon as a thread is idle, and wait in memory. What is
    in a cluster's memory already is passed on as it is.
    """

    def __init__(self, array: da.Array) -> None:
        self._array = array

    def read(self) -> npt.NDArray[Any]:
        """Return the part; in this thread, for the tasks of a scheduler must not wait for it."""
        return np.asarray(self._array.compute(scheduler="synchronous"))


def _cut(images: da.Array, edges: Sequence[int]) -> list[Any]:
    """Return the parts of an array between edges, for tasks that call `read`."""
    layers = images.dask.layers.values()
    in_cluster = any(
        type(value).__name__ == "Future"
        for layer in layers
        if isinstance(layer, highlevelgraph.MaterializedLayer)
        for value in layer.values()
    )
    parts = [images[start:stop] for start, stop in itertools.pairwise(edges)]
    if in_cluster:
        return [dask.delayed(part) for part in parts]
    return [_Later(dask.optimize(part)[0]) for part in parts]


def read(part: Any) -> npt.NDArray[Any]:
    """Return the images of a group or chunk, in the task that was given it."""
    return part.read() if isinstance(part, _Later) else part


def prepare_group(
    metric: str, first: int, pairs: bool, device: str, group: Any, *_before: Any
) -> Any:
    """Bring a group of references into the form that a search reads, after the one before."""
    images = read(group)
    flat, use = flattened(images), backends.load(device)
    indices = np.arange(first, first + len(flat))
    return use.prepare_search(flat, images.shape[1:], metric, indices, pairs=pairs)


def make_pair(
    images: xr.Dataset, among: xr.Dataset | None
) -> tuple[xr.Dataset, xr.Dataset, int, int]:
    """Return queries and the images they are searched among, lazily; pixels and full scale.

    Without `among` that is among themselves. What cannot be compared is refused.
    """
    given = lazy_images(images, labels=False)
    others = given if among is None else lazy_images(among, labels=False)
    shape, dtype = others[IMAGE.name].shape[1:], others[IMAGE.name].dtype
    pixels, scale = math.prod(shape), full_scale_of(others)
    check_alike(given, shape, dtype, scale, "images they are searched among")
    choose_arithmetic(1, pixels, dtype)
    return _cut_queries(given), others, pixels, scale


def groups_of(images: da.Array) -> list[tuple[int, int, Any]]:
    """Cut references into groups that fit memory; return first index, one after the last, and it.

    `prepare_group` takes a group.
    """
    fitting = max(1, _GROUP_BYTES // max(1, images.dtype.itemsize * math.prod(images.shape[1:])))
    count = images.shape[0]
    number = -(-count // fitting)
    edges = [count * group // number for group in range(number + 1)] if number else [0]
    return list(zip(edges[:-1], edges[1:], _cut(images, edges), strict=True))


def chunks_of(images: da.Array) -> list[Any]:
    """Return the chunks of an array along its first dimension, for tasks that call `read`."""
    return _cut(images, np.cumsum([0, *images.chunks[0]]).tolist())


def _cut_queries(images: xr.Dataset) -> xr.Dataset:
    """Cut queries so that each core has some."""
    count = images.sizes[SAMPLE]
    wanted = max(_LEAST_QUERIES, -(-count // (2 * CPU_COUNT)))
    largest = max(images.chunksizes[SAMPLE], default=0)
    if largest <= wanted:
        return images
    cut = images[[IMAGE.name]].reset_coords(drop=True).chunk({SAMPLE: wanted})
    return images.assign({IMAGE.name: cut[IMAGE.name]})
