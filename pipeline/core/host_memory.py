"""Where images that are read are put: ordinary memory, or what a device copies from at once.

Who reads images does not know for whom. A task that has a device says so around what it reads, and
shards are decoded straight into memory from which pixels travel without being copied again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import numpy.typing as npt


class Spare:
    """Memory that tasks of one kind use one after another; it does not travel to other processes.

    Memory that is new costs more than what is written to it: the system clears it page by page,
    and a virtual machine has to get it from its host first.
    """

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
