"""Keeps what a process has opened, so that it is opened once and not for every range that is read.

A source that travels to another process takes nothing of this with it, and a forked process opens
its own.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Kept(Generic[Key, Value]):
    """What this process has opened, by key; for several threads at once.

    Parameters
    ----------
    close
        Closes what was opened; default: it is let go.
    """

    def __init__(self, close: Callable[[Value], object] | None = None) -> None:
        self._close = close
        self._lock = threading.Lock()
        self._opened: dict[tuple[int, Key], Value] = {}

    def get(self, key: Key, open_it: Callable[[], Value]) -> Value:
        """Return what is kept for a key; what this process has not opened yet, `open_it` opens."""
        mine = os.getpid(), key
        with self._lock:
            if mine not in self._opened:
                self._opened[mine] = open_it()
            return self._opened[mine]

    def put(self, key: Key, value: Value) -> None:
        """Keep what was opened, instead of what was kept for this key before."""
        with self._lock:
            self._opened[os.getpid(), key] = value

    def close(self, wanted: Callable[[Key], bool]) -> None:
        """Close what this process keeps for the keys that are wanted."""
        mine = os.getpid()
        with self._lock:
            # what came over with a fork is its parent's to close
            keys = [key for key in self._opened if key[0] != mine or wanted(key[1])]
            dropped = [(key[0], self._opened.pop(key)) for key in keys]
        for process, value in dropped:
            if process == mine and self._close is not None:
                self._close(value)
