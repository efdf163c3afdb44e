"""Adding up what blocks return, in a tree, so that a worker holds few of them at a time.

The sum of dask copies each block, and puts those that it adds up side by side first. Where a block
is an accumulator of hundreds of MB that is what decides how much memory a job takes, so here two
are added and the rest goes on top.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.core.deferred import deferred

if TYPE_CHECKING:
    import dask.array as da
else:
    da = deferred("dask.array")

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
    size = int(np.prod(blocks.shape[1:])) * blocks.dtype.itemsize
    total: da.Array = da.reduction(
        blocks,
        chunk=_as_it_is,
        combine=_add,
        aggregate=_add_last,
        axis=0,
        keepdims=False,
        concatenate=False,
        split_every=fan_in(size),
        dtype=blocks.dtype,
        meta=np.empty((0,) * (blocks.ndim - 1), blocks.dtype),
    )
    return total


def _as_it_is(block: npt.NDArray[Any], **_: Any) -> npt.NDArray[Any]:
    return block


def _flat(blocks: Any) -> list[Any]:
    """Return the blocks of lists within lists."""
    if not isinstance(blocks, list):
        return [blocks]
    return [block for part in blocks for block in _flat(part)]


def _add(blocks: Any, **_: Any) -> npt.NDArray[Any]:
    first, *others = _flat(blocks)
    if not others:
        return np.asarray(first)
    total: npt.NDArray[Any] = first + others[0]  # of its own: dask may need the first again
    for block in others[1:]:
        total += block
    return total


def _add_last(blocks: Any, **_: Any) -> npt.NDArray[Any]:
    total: npt.NDArray[Any] = _add(blocks)[0]
    return total
