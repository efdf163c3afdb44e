"""Where images that are read are put, and results: ordinary memory, memory used before, or what a
device copies from at once.

Memory that is new costs more than what is written to it: the system clears it page by page, and a
virtual machine has to get it from its host first. Of 160 MB of distances that took 100 to 150 ms,
more than to measure them. So tasks use memory again (`Spare`), and so do results (`reused`).

Who reads images does not know for whom. A task that has a device says so around what it reads, and
shards are decoded straight into memory from which pixels travel without being copied again.
"""

from __future__ import annotations

import math
import mmap
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any

import numpy as np
import numpy.typing as npt

# What malloc of Linux never keeps, and how many results of that size are.
_LARGE, _MOST_KEPT = 2**25, 8
_kept: list[mmap.mmap] = []
_lock = threading.RLock()  # a finalizer may run in a thread that has it


class Spare:
    """Memory that tasks of one kind use one after another; it stays in its process."""

    def __init__(self) -> None:
        self._unused: list[npt.NDArray[np.uint8]] = []

    def __reduce__(self) -> tuple[type[Spare], tuple[()]]:
        return Spare, ()

    @contextmanager
    def array(self, shape: tuple[int, ...], dtype: Any) -> Iterator[npt.NDArray[Any]]:
        """Lend an array, not filled."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        try:
            memory = self._unused.pop()
        except IndexError:
            memory = np.empty(size, np.uint8)
        if len(memory) < size:
            memory = np.empty(size, np.uint8)
        yield memory[:size].view(dtype).reshape(shape)
        self._unused.append(memory)


def reused(shape: tuple[int, ...], dtype: Any) -> npt.NDArray[Any]:
    """Return an array, not filled, for a result, in memory that an earlier one no longer needs.

    What nobody refers to any more is kept for the next one, and given to the system at once where
    that needs memory (`MADV_FREE`). Small results, and systems without that: as `numpy.empty`.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size < _LARGE or not hasattr(mmap, "MADV_FREE"):
        return np.empty(shape, dtype)
    with _lock:
        fitting = [block for block in _kept if size <= len(block) <= 2 * size]
        block = min(fitting, key=len, default=None)
        if block is not None:
            _kept.remove(block)
    if block is None:
        try:
            block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError:
            return np.empty(shape, dtype)  # whose error says how much it was
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):  # a kernel may be built without
                block.madvise(mmap.MADV_HUGEPAGE)
    memory: npt.NDArray[Any] = np.frombuffer(block, np.uint8)
    weakref.finalize(memory, _keep, block).atexit = False
    memory = memory[:size].view(dtype)
    return memory.reshape(shape)


def _keep(block: mmap.mmap) -> None:
    """Keep the memory of an array to which no view refers any more."""
    with suppress(OSError):
        block.madvise(mmap.MADV_FREE)
        with _lock:
            _kept.append(block)
            del _kept[:-_MOST_KEPT]


Allocate = Callable[[tuple[int, ...], Any], npt.NDArray[Any]]
"""Called with shape and dtype; returns an array that is not filled."""

_allocate: ContextVar[Allocate] = ContextVar("allocate", default=np.empty)


def empty(shape: tuple[int, ...], dtype: Any) -> npt.NDArray[Any]:
    """Return an array, not filled, for images that are read."""
    return _allocate.get()(shape, dtype)


@contextmanager
def allocated_by(allocate: Allocate) -> Iterator[None]:
    """Let this thread read images into arrays that a function makes."""
    token = _allocate.set(allocate)
    try:
        yield
    finally:
        _allocate.reset(token)
