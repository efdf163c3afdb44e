"""A pool of streams that can only be read forward, shared by all readers of a process.

Compressed files have no places to jump to. Partitions are mostly read in order, so whoever reads
borrows the open stream that stands nearest before the place wanted, alone, and gives it back where
it stopped. Threads that read neighbouring partitions neither wait for nor rewind one another.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
from collections.abc import Callable, Collection, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any

IDLE_OF_A_KEY = 4
IDLE_IN_ALL = 32


@dataclass(eq=False)
class Cursor:
    """An open stream and how far it was read.

    Attributes
    ----------
    key
        What the stream is of.
    stream
        What `open_stream()` returned; has `close()`.
    place
        How much was read of it, in units of the reader's choice; whoever reads keeps it right.
    process
        The process that opened it: a forked one must not share its position in the file.
    """

    key: Hashable
    stream: Any
    place: int = 0
    process: int = field(default_factory=os.getpid)

    def close(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # a broken stream may refuse even that
            self.stream.close()


class _Pool:
    """The idle cursors, those given back longest ago first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[Cursor] = []

    def take(self, key: Hashable, position: int) -> Cursor | None:
        with self._lock:
            before = [c for c in self._idle if c.key == key and c.place <= position]
            if not before:
                return None
            nearest = max(before, key=lambda cursor: cursor.place)
            self._idle.remove(nearest)
            return nearest

    def give_back(self, cursor: Cursor) -> None:
        with self._lock:
            self._idle.append(cursor)
            of_key = [idle for idle in self._idle if idle.key == cursor.key]
            dropped = of_key[:-IDLE_OF_A_KEY] or self._idle[:-IDLE_IN_ALL]
            for idle in dropped:
                self._idle.remove(idle)
        for idle in dropped:
            idle.close()

    def close(self, wanted: Callable[[Cursor], bool]) -> None:
        with self._lock:
            dropped = [cursor for cursor in self._idle if wanted(cursor)]
            self._idle = [cursor for cursor in self._idle if not wanted(cursor)]
        for cursor in dropped:
            cursor.close()


_pool = _Pool()


def _start_anew() -> None:
    # the parent's lock may have been held at the fork, and its streams stay its own
    global _pool
    _pool = _Pool()


os.register_at_fork(after_in_child=_start_anew)


@contextlib.contextmanager
def borrowed(key: Hashable, position: int, open_stream: Callable[[], Any]) -> Iterator[Cursor]:
    """Give a cursor of `key` that stands at or before `position`, to one user at a time.

    That is the nearest idle one of this process, else a fresh one at place 0. It is kept for the
    next user; after an exception it is closed instead.

    Parameters
    ----------
    key
        What the stream is of: a path, or a tuple that begins with one.
    position
        The place wanted, in the units of `Cursor.place`.
    open_stream
        Opens the stream at its begin.
    """
    cursor = _pool.take(key, position) or Cursor(key, open_stream())
    try:
        yield cursor
    except BaseException:
        cursor.close()
        raise
    if cursor.process == os.getpid():
        _pool.give_back(cursor)


def close(keys: Collection[Hashable] | None = None) -> None:
    """Close the idle streams of some keys, of tuples that begin with one of them, or of all."""

    def wanted(cursor: Cursor) -> bool:
        key = cursor.key
        first = key[0] if isinstance(key, tuple) and key else key
        return keys is None or key in keys or first in keys

    _pool.close(wanted)


atexit.register(close)
