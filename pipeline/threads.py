"""One task in several threads: equal ranges at once, or reading ahead of what is used.

A task's share of the cores is small and known (see `cluster`), its loops leave the GIL, and
what they write does not overlap, so a plain pool does. numba's own threads would not: its portable
threading layer may not be entered by two tasks at once.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

T = TypeVar("T")


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


def read_ahead(function: Callable[[int], T], count: int, ahead: int = 2) -> Iterator[T]:
    """Yield `function(0)`, `function(1)`, ... in order, the next ones made meanwhile.

    Parameters
    ----------
    function
        Called with each number below `count`, in threads.
    count
        How many there are.
    ahead
        How many may be made before they are taken.
    """
    with ThreadPoolExecutor(ahead, "pixsim-read") as pool:
        waiting = deque(pool.submit(function, number) for number in range(min(ahead, count)))
        for number in range(ahead, count + ahead):
            if not waiting:
                return
            found = waiting.popleft().result()
            if number < count:
                waiting.append(pool.submit(function, number))
            yield found
