"""Keeps what a process has opened, so that it is opened once and not for every range that is read.

Everything is kept for the version of its file: where another file took its place, that one is
opened, and what was kept of the one before is closed. A source that travels to another process
takes nothing of this with it, and a forked process begins with nothing: neither the locks nor the
places in files are its own.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from pipeline.core.errors import SourceError
from pipeline.core.paths import is_remote
from pipeline.core.urls import shown
from pipeline.storage.blobs import Version, version_of

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class _Entry(NamedTuple, Generic[Key, Value]):
    key: Key
    version: Hashable
    value: Value


class Kept(Generic[Key, Value]):
    """What this process has opened, by key and version; for several threads at once.

    Of a key only one version is kept.

    Parameters
    ----------
    close
        Closes what was opened; default: it is let go.
    most, most_of_a_key
        How many are kept in all, and of one key; what was used longest ago is closed.
    """

    def __init__(
        self,
        close: Callable[[Value], object] | None = None,
        most: int | None = None,
        most_of_a_key: int = 1,
    ) -> None:
        self._close, self._most, self._most_of_a_key = close, most, most_of_a_key
        self._start_anew()
        os.register_at_fork(after_in_child=self._start_anew)

    def _start_anew(self) -> None:
        # in a forked process: the lock may have been held, and what was opened is its parent's
        self._lock = threading.Lock()
        self._entries: list[_Entry[Key, Value]] = []

    def get(self, key: Key, open_it: Callable[[], Value], version: Hashable = ()) -> Value:
        """Return what is kept for a key; what this process has not opened yet, `open_it` opens."""
        with self._lock:
            self._drop(lambda entry: entry.key == key and entry.version != version)
            at = self._find(key, lambda _: 0)
            entry = _Entry(key, version, open_it()) if at is None else self._entries.pop(at)
            self._add(entry)
            return entry.value

    def take(
        self, key: Key, version: Hashable, rank: Callable[[Value], int | None]
    ) -> Value | None:
        """Take out, for its only user, what is kept for a key and ranks highest; None: nothing."""
        with self._lock:
            self._drop(lambda entry: entry.key == key and entry.version != version)
            at = self._find(key, rank)
            return None if at is None else self._entries.pop(at).value

    def put(self, key: Key, value: Value, version: Hashable = ()) -> None:
        """Keep what was opened, or give back what was taken."""
        with self._lock:
            self._drop(lambda entry: entry.key == key and entry.version != version)
            self._add(_Entry(key, version, value))

    def close(self, wanted: Callable[[Key], bool]) -> None:
        """Close what this process keeps for the keys that are wanted."""
        with self._lock:
            self._drop(lambda entry: wanted(entry.key))

    def _find(self, key: Key, rank: Callable[[Value], int | None]) -> int | None:
        ranks = [
            (place, at)
            for at, entry in enumerate(self._entries)
            if entry.key == key and (place := rank(entry.value)) is not None
        ]
        return max(ranks)[1] if ranks else None

    def _add(self, entry: _Entry[Key, Value]) -> None:
        self._entries.append(entry)
        same = [other for other in self._entries if other.key == entry.key]
        surplus = same[: -self._most_of_a_key]
        if self._most is not None:
            surplus = surplus or self._entries[: -self._most]
        self._drop(lambda other: any(other is one for one in surplus))

    def _drop(self, unwanted: Callable[[_Entry[Key, Value]], bool]) -> None:
        marked = [(entry, unwanted(entry)) for entry in self._entries]
        self._entries = [entry for entry, drop in marked if not drop]
        for entry, drop in marked:
            if drop and self._close is not None:
                self._close(entry.value)


@contextmanager
def unchanged(path: Path, stamp: str = "") -> Iterator[Hashable]:
    """Make sure that a file is the one that was recorded as long as it is read.

    Yields what to keep it open for, as the version of `Kept`.

    Parameters
    ----------
    path
        The file.
    stamp
        What was recorded of it; default: what it is now.

    Raises
    ------
    SourceError
        Where another file has taken its place, before or meanwhile.
    """
    before: Hashable = stamp
    if not stamp or not is_remote(path):  # which costs a request
        found = version_of(path)
        _require(path, found, stamp or found.stamp)
        before, stamp = found, found.stamp
    try:
        yield before
    except Exception:
        _require(path, version_of(path), stamp)  # whatever failed, failed of that
        raise
    _require(path, version_of(path), stamp)


def _require(path: Path, found: Version, stamp: str) -> None:
    if found.stamp != stamp:
        size = "" if found.size < 0 else f" ({found.size:,} bytes)"
        raise SourceError(
            f"{shown(path)}: is another file{size} than when it was opened; run the command again "
            "to read this one, or bring back the one before"
        )
