"""Adding up what blocks return, in a tree, so that a worker holds few of them at a time.

The graphs are built here, task by task: an operation knows its blocks, and what is made of their
sum, and dask's own operations took a quarter of the time of class medians to work that out again.

The sum of dask copies each block, and puts those that it adds up side by side first. Where a block
is an accumulator of hundreds of MB that is what decides how much memory a job takes, so here two
are added and the rest goes on top.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from operator import getitem
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.core.deferred import deferred

if TYPE_CHECKING:
    import dask.array as da
    import dask.base as base
    import dask.highlevelgraph as highlevelgraph
else:
    base = deferred("dask.base")
    da = deferred("dask.array")
    highlevelgraph = deferred("dask.highlevelgraph")

Kind = tuple[tuple[int, ...], Any]
"""Shape and dtype of an array."""

WIDE = 8
"""Blocks that one addition of the tree takes; two where they are large."""

LARGE_BYTES = 2**22
"""What counts as large."""


def fan_in(block_bytes: int) -> int:
    """Return how many blocks one addition of the tree takes."""
    return WIDE if block_bytes <= LARGE_BYTES else 2


def add_up(blocks: da.Array) -> da.Array:
    """Add the blocks of an array along its first axis, lazily.

    Parameters
    ----------
    blocks
        [block, ...] of integers, one step along the first axis in each chunk, whole along the
        others.

    Returns
    -------
    [...]; the sum, of the same dtype.
    """
    keys = [(blocks.name, number) + (0,) * (blocks.ndim - 1) for number in range(len(blocks))]
    name, kind = f"sum-{base.tokenize(blocks.name)}", (blocks.shape[1:], blocks.dtype)
    return _array(name, _tree(name, keys, kind, _add_last), kind, [blocks])


def add_results(
    function: Callable[..., npt.NDArray[Any]],
    calls: Sequence[tuple[Any, ...]],
    kind: Kind,
    dependencies: Sequence[da.Array],
) -> da.Array:
    """Call a function several times and add what it returns, lazily.

    Parameters
    ----------
    function
        Returns an array; what it does is in its name and in `calls`.
    calls
        The arguments of each call; keys of chunks stand for these.
    kind
        Shape and dtype of what it returns.
    dependencies
        The arrays that these chunks are of.
    """
    name = f"sum-{base.tokenize(function, calls)}"
    keys = [(f"part-{name}", number) for number in range(len(calls))]
    layer = {key: (function, *call) for key, call in zip(keys, calls, strict=True)}
    return _array(name, layer | _tree(name, keys, kind, _add), kind, dependencies)


def result_of(
    function: Callable[..., Any], arrays: Sequence[Any], kind: Kind, **settings: Any
) -> Any:
    """Call a function on whole arrays, NumPy's at once, dask's later.

    Parameters
    ----------
    function
        Called with the arrays and the settings.
    arrays
        NumPy's or dask's.
    kind
        Shape and dtype of what it returns.
    **settings
        What else it is called with.

    Returns
    -------
    What it returns; or a lazy array of one chunk.
    """
    if all(isinstance(array, np.ndarray) for array in arrays):  # asks for no dask
        return function(*arrays, **settings)
    name, call, whole = _call(function, arrays, settings)
    return _array(name, {(name,) + (0,) * len(kind[0]): call}, kind, whole)


def results_of(
    function: Callable[..., Sequence[Any]],
    arrays: Sequence[Any],
    kinds: Sequence[Kind],
    **settings: Any,
) -> Sequence[Any]:
    """Do the same with a function that returns several arrays; it is called once for all."""
    if all(isinstance(array, np.ndarray) for array in arrays):
        return function(*arrays, **settings)
    name, call, whole = _call(function, arrays, settings)
    graph = highlevelgraph.HighLevelGraph.from_collections(name, {name: call}, dependencies=whole)
    results = []
    for number, (shape, dtype) in enumerate(kinds):
        part = f"{name}-{number}"
        layer = {(part,) + (0,) * len(shape): (getitem, name, number)}
        layers, needs = {**graph.layers, part: layer}, {**graph.dependencies, part: {name}}
        both = highlevelgraph.HighLevelGraph(layers, needs)
        results.append(_lazy(both, part, (shape, dtype)))
    return results


def _call(
    function: Callable[..., Any], arrays: Sequence[Any], settings: dict[str, Any]
) -> tuple[str, tuple[Any, ...], list[da.Array]]:
    """Return the name of a task, the task, and what it needs, each in one chunk."""
    whole = [da.asarray(array) for array in arrays]
    whole = [array if array.npartitions == 1 else array.rechunk(-1) for array in whole]
    keys = [(array.name,) + (0,) * array.ndim for array in whole]
    name = f"{function.__name__}-{base.tokenize(function, keys, settings)}"
    return name, (partial(function, **settings), *keys), whole


def _array(
    name: str, layer: dict[Any, Any], kind: Kind, dependencies: Sequence[da.Array]
) -> da.Array:
    graph = highlevelgraph.HighLevelGraph.from_collections(name, layer, dependencies=dependencies)
    return _lazy(graph, name, kind)


def _lazy(graph: Any, name: str, kind: Kind) -> da.Array:
    """Return the array of one chunk that a graph makes."""
    shape, dtype = kind
    meta = np.empty((0,) * len(shape), dtype)
    return da.Array(graph, name, tuple((n,) for n in shape), dtype=dtype, meta=meta)


def _tree(name: str, keys: Sequence[Any], kind: Kind, last: Callable[..., Any]) -> dict[Any, Any]:
    """Return the tasks that add blocks, the last of which has the key of an array of one chunk."""
    shape, dtype = kind
    wide = fan_in(math.prod(shape) * np.dtype(dtype).itemsize)
    tasks: dict[Any, Any] = {}
    level = 0
    while len(keys) > wide:
        groups = [list(keys[start : start + wide]) for start in range(0, len(keys), wide)]
        sums = [(f"add-{name}", level, number) for number in range(len(groups))]
        tasks |= {key: (_add, group) for key, group in zip(sums, groups, strict=True)}
        keys, level = sums, level + 1
    tasks[(name,) + (0,) * len(shape)] = (last, list(keys))
    return tasks


def _add(blocks: Any) -> npt.NDArray[Any]:
    first, *others = blocks
    if not others:
        return np.asarray(first)
    total: npt.NDArray[Any] = first + others[0]  # of its own: dask may need the first again
    for block in others[1:]:
        total += block
    return total


def _add_last(blocks: Any) -> npt.NDArray[Any]:
    total: npt.NDArray[Any] = _add(blocks)[0]
    return total
