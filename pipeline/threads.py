"""One task in several threads: equal ranges, each in a thread of its own.

A task's share of the cores is small and known (see `cluster`), its loops leave the GIL, and
what they write does not overlap, so a plain pool does. numba's own threads would not: its portable
threading layer may not be entered by two tasks at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache


@lru_cache(maxsize=4)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "pixsim-kernel")


def in_ranges(threads: int, count: int, function: Callable[[int, int], object]) -> None:
    """Call `function(start, stop)` for equal ranges that make up `range(count)`.

    Parameters
    ----------
    threads
        How many ranges, each in its own thread; fewer where there is less to do.
    count
        What there is to do.
    function
        Must not call `in_ranges` itself: the threads would wait for each other.
    """
    parts = min(threads, count)
    if parts <= 1:
        function(0, count)
        return
    edges = [count * part // parts for part in range(parts + 1)]
    waiting = [
        _pool(threads).submit(function, start, stop)
        for start, stop in itertools.pairwise(edges[1:])
    ]
    function(0, edges[1])
    for future in waiting:
        future.result()
