"""Large files on their way to the disk: begun with at once, and let go of where there are many.

Else Linux begins when a tenth of the memory waits to be written, and keeps all of it for who reads
it next; see `atomic` for what is flushed, and when.
"""

from __future__ import annotations

import ctypes
import os
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

_BEGIN_WRITING, _WAIT_FOR_IT = 2, 7  # flags of `sync_file_range`
_WAITING = 4  # files on their way to the disk


class PassingFiles:
    """Large files of which so many are written that the system's memory is not to keep them.

    Linux keeps what is written for who reads it next, and lets go of it when memory is short: by
    then what others had read is gone as well. A virtual machine gets each page from its host first,
    which takes longer than to write it (4 GB: 6 to 10 s, and 0.9 s in pages used before). So a file
    is let go of when some more are written, and it is on the disk. It stays in its process.
    """

    def __init__(self) -> None:
        self._written: deque[Path] = deque()

    def __reduce__(self) -> tuple[type[PassingFiles], tuple[()]]:
        return PassingFiles, ()

    @contextmanager
    def written(self) -> Iterator[None]:
        """Count what this thread writes among them."""
        token = _passing.set(self)
        try:
            yield
        finally:
            _passing.reset(token)

    def add(self, path: Path) -> None:
        """Add a file that is written; let go of one that was before."""
        self._written.append(path)
        if len(self._written) <= _WAITING:
            return
        with suppress(OSError, AttributeError, IndexError):  # only Linux has all of it
            number = os.open(self._written.popleft(), os.O_RDONLY)
            try:
                _send_to_disk(number, _WAIT_FOR_IT)
                os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(number)


_passing: ContextVar[PassingFiles | None] = ContextVar("passing", default=None)


def let_go(path: Path) -> None:
    """Let go of a large file that is written, where this thread writes passing ones."""
    if (passing := _passing.get()) is not None:
        passing.add(path)


@cache
def _system_library() -> Any:
    return ctypes.CDLL(None)


def begin_flush(number: int) -> None:
    """Have the system begin to send what was written to the disk, and wait for nothing.

    Else Linux begins when a tenth of the memory waits to be written, and the flush in the end
    waits for all of that.
    """
    with suppress(OSError, AttributeError):  # only Linux has it
        _send_to_disk(number, _BEGIN_WRITING)


def _send_to_disk(number: int, how: int) -> None:
    whole_file = ctypes.c_int64(0)
    _system_library().sync_file_range(number, whole_file, whole_file, how)
