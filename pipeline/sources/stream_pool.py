"""A pool of streams that can only be read forward, shared by all readers of a process.

Compressed files have no places to jump to. Partitions are mostly read in order, so whoever reads
borrows the open stream that stands nearest before the place wanted, alone, and gives it back where
it stopped. Threads that read neighbouring partitions neither wait for nor rewind one another.
"""

from __future__ import annotations

import atexit
import contextlib
import os
from collections.abc import Callable, Collection, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any

from pipeline.sources.open_cache import Kept

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


# the idle cursors, those given back longest ago first
_idle: Kept[Hashable, Cursor] = Kept(Cursor.close, IDLE_IN_ALL, IDLE_OF_A_KEY)


@contextlib.contextmanager
def borrowed(
    key: Hashable, position: int, open_stream: Callable[[], Any], version: Hashable = ()
) -> Iterator[Cursor]:
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
    version
        Of the file, as `unchanged` gives it: streams of another one are closed.
    """

    def rank(idle: Cursor) -> int | None:
        return idle.place if idle.place <= position else None

    cursor = _idle.take(key, version, rank) or Cursor(key, open_stream())
    try:
        yield cursor
    except BaseException:
        cursor.close()
        raise
    if cursor.process == os.getpid():
        _idle.put(key, cursor, version)


def close(keys: Collection[Hashable] | None = None) -> None:
    """Close the idle streams of some keys, of tuples that begin with one of them, or of all."""

    def wanted(key: Hashable) -> bool:
        first = key[0] if isinstance(key, tuple) and key else key
        return keys is None or key in keys or first in keys

    _idle.close(wanted)


atexit.register(close)
