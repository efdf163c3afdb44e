"""One task in several threads: equal ranges at once, or reading ahead of what is used.

A task's share of the cores is small and known (see `workers`), its loops leave the GIL, and
what they write does not overlap, so a plain pool does. numba's own threads would not: its portable
threading layer may not be entered by two tasks at once.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from typing import TypeVar

T = TypeVar("T")


class OwnLock:
    """A lock of the threads of one process: in a forked one nobody holds it.

    Whoever held it at the fork is not there to give it back, and all would wait for ever.
    """

    def __init__(self) -> None:
        self._start_anew()
        os.register_at_fork(after_in_child=self._start_anew)

    def _start_anew(self) -> None:
        self._lock = threading.RLock()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold it, alone."""
        with self._lock:
            yield


@lru_cache(maxsize=4)
def _pool(threads: int, name: str) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, name)


os.register_at_fork(after_in_child=_pool.cache_clear)  # the threads stay with the parent


def in_ranges(
    threads: int, count: int, function: Callable[[int, int], object], pool: str = "pixsim-kernel"
) -> None:
    """Call `function(start, stop)` for equal ranges that make up `range(count)`.

    Parameters
    ----------
    threads
        How many ranges, each in its own thread; fewer where there is less to do.
    count
        What there is to do.
    function
        Must not call `in_ranges` itself with the same pool: the threads would wait for each other.
    pool
        What its threads are called.
    """
    parts = min(threads, count)
    if parts <= 1:
        function(0, count)
        return
    edges = [count * part // parts for part in range(parts + 1)]
    waiting = [
        _pool(threads, pool).submit(function, start, stop)
        for start, stop in itertools.pairwise(edges[1:])
    ]
    function(0, edges[1])
    for future in waiting:
        future.result()


@contextmanager
def meanwhile(function: Callable[[int], object], count: int) -> Iterator[Callable[[], None]]:
    """Call `function(0)`, `function(1)`, ... one after the other, in a thread of their own.

    Parameters
    ----------
    function
        Called with each number below `count`.
    count
        How many there are; none: no thread is started.

    Yields
    ------
    What waits for the last call, and raises what one raised. Where it is not waited for, no call is
    begun after the end of the context.
    """
    ended = threading.Event()

    def call() -> None:
        for number in range(count):
            if ended.is_set():
                return
            function(number)

    with ThreadPoolExecutor(1, "pixsim-meanwhile") as pool:
        future = pool.submit(call) if count else None
        try:
            yield lambda: None if future is None else future.result()
        finally:
            ended.set()


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
    process, pool = os.getpid(), ThreadPoolExecutor(ahead, "pixsim-read")
    try:
        waiting = deque(pool.submit(function, number) for number in range(min(ahead, count)))
        for number in range(count):
            if os.getpid() != process:  # forked meanwhile: nobody makes what it waits for
                yield function(number)
                continue
            value = waiting.popleft().result()
            if number + ahead < count:
                waiting.append(pool.submit(function, number + ahead))
            yield value
    finally:
        if os.getpid() == process:
            pool.shutdown()
