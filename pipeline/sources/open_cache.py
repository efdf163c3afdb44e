"""One cache of what a process has opened, keyed by path and by what identifies the content.

What is read in many ranges is opened once: listings, stores, and streams of compressed files that
can only be read forward. Each is kept for the version of its file: where another file has taken its
place, that one is opened, and the stale one closed. Its owner closes it.

A source that travels to another process takes nothing of this with it, and a forked process begins
with an empty cache: neither the locks nor the positions in files are its own.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from pipeline.core.errors import PixsimError, SourceError, one_line
from pipeline.core.paths import is_remote, shown
from pipeline.storage.blobs import Version, version_of

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

STREAMS_OF_A_KEY, STREAMS_IN_ALL = 4, 32
READ_BYTES = 2**20


@contextlib.contextmanager
def unchanged(path: Path, stamp: str = "") -> Iterator[Hashable]:
    """Make sure that a file is the one that was recorded as long as it is read.

    `stamp` is what was recorded of it; default: what it is now. Yields the version to cache it for,
    and raises `SourceError` where another file has taken its place, before or meanwhile, or where
    it cannot be read.
    """
    version: Hashable = stamp
    try:
        if not stamp or not is_remote(path):  # which costs a request
            now = version_of(path)
            _require(path, now, stamp or now.stamp)
            version, stamp = now, now.stamp
        try:
            yield version
        except Exception:
            _require(path, version_of(path), stamp)  # whatever failed, failed of that
            raise
        _require(path, version_of(path), stamp)
    except PixsimError:
        raise
    except OSError as error:
        # without the cause: its own text may hold keys
        raise SourceError(
            f"{shown(path)}: cannot be read: {reason_of(error)}; put it back, and run the "
            "same command again"
        ) from None


def reason_of(error: BaseException) -> str:
    """Return why a file cannot be read, as one of the errors of file systems says it."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return (isinstance(error, OSError) and error.strerror) or one_line(error)


def _require(path: Path, version: Version, stamp: str) -> None:
    if version.stamp != stamp:
        size = "" if version.size < 0 else f" ({version.size:,} bytes)"
        raise SourceError(
            f"{shown(path)}: is another file{size} than when it was opened; run the command again "
            "to read this one, or bring back the one before"
        )


def described(path: Path, version: Version, name: str = "") -> dict[str, Any]:
    """Return name, size, and what tells another such file apart, for the provenance."""
    tag = {"version": version.tag} if is_remote(path) else {"mtime_ns": int(version.tag)}
    return {"name": name or path.name, "bytes": version.size, **tag}


def files_digest(files: Iterable[tuple[str, int, str]]) -> str:
    """Return the SHA-256 of the names, sizes and tags of files, which changes when one does."""
    digest = hashlib.sha256()
    for name, size, tag in files:
        digest.update(f"{name}\0{size}\0{tag}\n".encode())
    return digest.hexdigest()


# the cache ---------------------------------------------------------------------------------------


class _Entry(NamedTuple, Generic[Key, Value]):
    key: Key
    version: Hashable
    value: Value


class OpenCache(Generic[Key, Value]):
    """What this process has opened, by key and version; for several threads at once.

    Of a key only one version is cached. `close` closes what was opened; without it that is dropped.
    Of more than `limit` in all, or `limit_of_a_key`, the least recently used is closed.
    """

    def __init__(
        self,
        close: Callable[[Value], object] | None = None,
        limit: int | None = None,
        limit_of_a_key: int = 1,
    ) -> None:
        self._close, self._limit, self._limit_of_a_key = close, limit, limit_of_a_key
        self._clear()
        os.register_at_fork(after_in_child=self._clear)

    def _clear(self) -> None:
        # in a forked process: the lock may have been taken, and what was opened is its parent's
        self._lock = threading.Lock()
        self._entries: list[_Entry[Key, Value]] = []

    def get(self, key: Key, open_it: Callable[[], Value], version: Hashable = ()) -> Value:
        """Return what is cached for a key and version; else what `open_it` opens, once."""
        with self._lock:
            entry = self._pop(key, version, lambda _: 0)
            value = open_it() if entry is None else entry.value
            self._add(_Entry(key, version, value))
            return value

    def take(
        self, key: Key, version: Hashable, rank: Callable[[Value], int | None]
    ) -> Value | None:
        """Take out, for its only user, what is cached for a key and ranks highest, if anything."""
        with self._lock:
            entry = self._pop(key, version, rank)
            return None if entry is None else entry.value

    def put(self, key: Key, value: Value, version: Hashable = ()) -> None:
        """Cache what was opened, or give back what was taken."""
        with self._lock:
            self._close_stale(key, version)
            self._add(_Entry(key, version, value))

    def close(self, is_wanted: Callable[[Key], bool]) -> None:
        """Close what this process has cached for the keys that are wanted."""
        with self._lock:
            self._drop(lambda entry: is_wanted(entry.key))

    def _pop(
        self, key: Key, version: Hashable, rank: Callable[[Value], int | None]
    ) -> _Entry[Key, Value] | None:
        self._close_stale(key, version)
        ranks = [
            (number, index)
            for index, entry in enumerate(self._entries)
            if entry.key == key and (number := rank(entry.value)) is not None
        ]
        return self._entries.pop(max(ranks)[1]) if ranks else None

    def _close_stale(self, key: Key, version: Hashable) -> None:
        self._drop(lambda entry: entry.key == key and entry.version != version)

    def _add(self, entry: _Entry[Key, Value]) -> None:
        self._entries.append(entry)
        of_key = [other for other in self._entries if other.key == entry.key]
        surplus = of_key[: -self._limit_of_a_key]
        if self._limit is not None:
            surplus = surplus or self._entries[: -self._limit]
        self._drop(lambda other: any(other is one for one in surplus))

    def _drop(self, is_unwanted: Callable[[_Entry[Key, Value]], bool]) -> None:
        marked = [(entry, is_unwanted(entry)) for entry in self._entries]
        self._entries = [entry for entry, drop in marked if not drop]
        for entry, drop in marked:
            if drop and self._close is not None:
                self._close(entry.value)


# streams that go forward -------------------------------------------------------------------------


@dataclass(eq=False)
class Cursor:
    """An open stream, and how far it was read.

    `position` is in units of the reader's choice; whoever reads keeps it right. `process` opened
    it: a forked one must not share its position in the file.
    """

    stream: Any
    position: int = 0
    process: int = field(default_factory=os.getpid)

    def close(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # a broken stream may refuse even that
            self.stream.close()


_streams: OpenCache[Hashable, Cursor] = OpenCache(Cursor.close, STREAMS_IN_ALL, STREAMS_OF_A_KEY)


@contextlib.contextmanager
def borrowed(
    key: Hashable, position: int, open_stream: Callable[[], Any], version: Hashable = ()
) -> Iterator[Cursor]:
    """Lend a stream that is at or before `position` to one user at a time.

    Compressed files cannot be sought, and partitions are mostly read in order: so the nearest idle
    stream of this process is lent, else a fresh one, and threads that read neighbouring partitions
    neither wait for nor rewind one another. It is cached for the next user where it stopped; after
    an exception it is closed.

    `key` is what the stream is of: a path, or a tuple that begins with one; `open_stream` opens it
    at its begin. `version` is that of the file, as `unchanged` gives it: streams of another one are
    closed.
    """

    def rank(idle: Cursor) -> int | None:
        return idle.position if idle.position <= position else None

    cursor = _streams.take(key, version, rank) or Cursor(open_stream())
    try:
        yield cursor
    except BaseException:
        cursor.close()
        raise
    if cursor.process == os.getpid():
        _streams.put(key, cursor, version)


def read_forward(
    key: Hashable,
    span: tuple[int, int],
    open_stream: Callable[[], Any],
    version: Hashable = (),
    to_end: bool = False,
) -> bytes:
    """Read bytes `span` of a stream that cannot go back, as `borrowed` lends it.

    Where these are the last ones, `to_end` reaches the end, where its checksum is compared.
    `EOFError` where it ends too soon.
    """
    start, stop = span
    with borrowed(key, start, open_stream, version) as cursor:
        while cursor.position < start:
            skipped = read_fully(cursor.stream, min(start - cursor.position, READ_BYTES))
            cursor.position += len(skipped)
        data = read_fully(cursor.stream, stop - start)
        cursor.position += len(data)
        if to_end:
            cursor.position += len(cursor.stream.read(1))
        return data


def read_fully(stream: Any, size: int) -> bytes:
    """Read `size` bytes of a stream that may give fewer at a time; `EOFError` at its end."""
    pieces, left = [], size
    while left:
        piece = stream.read(min(left, READ_BYTES))
        if not piece:
            raise EOFError(f"it ends {left:,} bytes too soon")
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


def close_streams(keys: Collection[Hashable] | None = None) -> None:
    """Close the idle streams of some keys, of tuples that begin with one of them, or of all."""

    def is_wanted(key: Hashable) -> bool:
        first = key[0] if isinstance(key, tuple) and key else key
        return keys is None or key in keys or first in keys

    _streams.close(is_wanted)


atexit.register(close_streams)
