"""Retries of requests to remote storage: with growing pauses, where a failure may be transient.

Whole operations are retried; beside that, fsspec's file systems retry single requests themselves.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from pipeline.core.errors import PixsimError
from pipeline.core.paths import REFUSED_NAMES, T, remote_errors

TRIES = 5
FIRST_PAUSE_SECONDS = 0.2
# what will be no different the next time; a connection s3fs has tried many times already
_FINAL = (
    FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError,
    ImportError, ValueError, TypeError, NotImplementedError, PixsimError,
)  # fmt: skip
_FINAL_NAMES = (*REFUSED_NAMES, "EndpointConnectionError", "ConnectTimeoutError")
_PASSING_STATUSES = (408, 425, 429)


def tried(place: str | Path, function: Callable[..., T], *arguments: Any, **keywords: Any) -> T:
    """Call a function that may be called again, several times where it fails for a while.

    Raises
    ------
    RemoteError
        Where it fails in the end; see `remote_errors`.
    """
    with remote_errors(place):
        for number in range(TRIES - 1):
            try:
                return function(*arguments, **keywords)
            except Exception as error:
                if _is_final(error):
                    raise
                time.sleep(FIRST_PAUSE_SECONDS * 2**number)
        return function(*arguments, **keywords)


def _is_final(error: Exception) -> bool:
    """Tell whether an error will be no different the next time."""
    status = getattr(error, "status", 0)
    refused = isinstance(status, int) and 400 <= status < 500 and status not in _PASSING_STATUSES
    return refused or isinstance(error, _FINAL) or type(error).__name__ in _FINAL_NAMES


def file_system(path: Path) -> Any:
    """Return the fsspec file system of a remote path, one that this process may use."""
    files = cast(Any, path).fs
    if files.async_impl and files._pid != os.getpid():
        # its connections and its thread stayed with the process that this one was forked from
        files = type(files)(*files.storage_args, **files.storage_options)
    return files


def file_system_of(path: Path) -> tuple[Any, str]:
    """Return the file system of a remote path, and the path in it."""
    return file_system(path), cast(Any, path).path.rstrip("/")
