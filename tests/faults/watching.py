"""Every operation on files below a folder is seen; the one that is chosen fails, or is the last.

Python tells an audit hook of what it opens, renames, removes and lists, before it does so. What it
does not tell of is wrapped: the state of a file, flushing, reading in place, and the files that
pyarrow opens by itself.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from faults.forge import Fault

_AUDITED = frozenset({
    "open", "os.link", "os.listdir", "os.mkdir", "os.remove", "os.rename", "os.rmdir",
    "os.scandir", "os.symlink", "os.truncate",
})  # fmt: skip
_ARROW = ("ParquetFile", "ParquetWriter", "read_metadata", "read_schema", "read_table")


class Watch:
    """Counts the operations below a folder, and makes one of them fail.

    Attributes
    ----------
    seen
        Of each operation the phase, what it is, and the path.
    phase
        The phase that the process is in.
    """

    def __init__(self, folder: Path, fault: Fault) -> None:
        self._folder, self._fault = str(folder / fault.below), fault
        self._numbers = itertools.count()
        self.seen: list[tuple[str, str, str]] = []
        self.phase = "start"

    def install(self) -> None:
        """Watch this process until it ends."""
        sys.addaudithook(self._audit)
        for name in ("stat", "fsync", "pread"):
            setattr(os, name, self._wrapped(f"os.{name}", getattr(os, name)))
        for name in _ARROW:
            self._watch_arrow(name)
        pq.write_table = self._wrapped("arrow.write_table", pq.write_table, place=1)

    def _watch_arrow(self, name: str) -> None:
        original = getattr(pq, name)
        if not isinstance(original, type):
            setattr(pq, name, self._wrapped(f"arrow.{name}", original))
            return
        begin = original.__init__
        original.__init__ = self._wrapped(f"arrow.{name}", begin, place=1)  # type: ignore[misc]

    def _wrapped(self, name: str, original: Callable[..., Any], place: int = 0) -> Any:
        def call(*arguments: Any, **keywords: Any) -> Any:
            if len(arguments) > place:
                self._see(name, arguments[place])
            return original(*arguments, **keywords)

        return call

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in _AUDITED:
            self._see(event, arguments[0])

    def _see(self, what: str, target: Any) -> None:
        path = _text(target)
        if path is None or not self._is_below(path):
            return
        number = next(self._numbers)
        self.seen.append((self.phase, what, path))
        at = self._fault.operation
        if at is None or number < at or (number > at and not self._fault.lasting):
            return
        if self._fault.errno is None:
            os.kill(os.getpid(), signal.SIGKILL)
        else:
            raise OSError(self._fault.errno, os.strerror(self._fault.errno), path)

    def _is_below(self, path: str) -> bool:
        if path.startswith(os.sep):
            return path.startswith(self._folder)
        # of the working directory, which is the folder, or of a folder in it that is removed
        return not self._fault.below


def _text(target: Any) -> str | None:
    """Return the path that an operation is told of; that of a file that is open, by its number."""
    if isinstance(target, int):
        try:
            return str(Path(f"/proc/self/fd/{target}").readlink())
        except OSError:
            return None
    return os.fspath(target) if isinstance(target, str | os.PathLike) else None
