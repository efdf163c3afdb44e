"""Files that are whole or absent: written aside, flushed, then renamed into place.

A reader never sees half of such a file, and a writer that dies leaves at most a `*.partial`
beside it, which nobody reads and the next writer of the same file replaces.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import StorageFullError, hide_in
from pipeline.places import is_remote, put_file, read_bytes, remote_errors
from pipeline.urls import is_url

PARTIAL_SUFFIX = ".partial"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def storage_errors(path: Path | str) -> Iterator[None]:
    """Turn "no space left" below `path` into a `StorageFullError` that says what to do.

    Raises
    ------
    StorageFullError
        Where the operating system reports a full disk, quota or file size limit.
    """
    try:
        if is_url(str(path)) and not str(path).startswith("file://"):
            with remote_errors(path, passing=(ValueError, TypeError, KeyError)):
                yield
        else:
            yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise StorageFullError(
            f"no space left while writing {path}: {os.strerror(error.errno)}; "
            "free some space and run the same command again: what is written is kept"
        ) from error


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Give a local path to write to; on success its content becomes `path`, whole, else nothing.

    A local file is flushed and renamed, a remote one put.
    """
    if is_remote(path):
        with tempfile.TemporaryDirectory(prefix="pixsim-") as folder:
            aside = Path(folder) / "content"
            yield aside
            put_file(aside, path)
        return
    aside = path.with_name(path.name + PARTIAL_SUFFIX)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield aside
            with aside.open("rb+") as file:
                os.fsync(file.fileno())
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)


def write_json(path: Path, content: Any, indent: int | None = 1) -> None:
    """Write `content` as JSON, whole or not at all; indented, unless it may be large."""
    with replaced(path) as aside:
        text = json.dumps(hide_in(content), indent=indent, allow_nan=False)
        aside.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file that `write_json` wrote."""
    return json.loads(read_bytes(path).decode())


def copy_file(path: Path, target: Path) -> None:
    """Copy a file, whole or not at all."""
    with replaced(target) as aside:
        if is_remote(path):
            aside.write_bytes(read_bytes(path))
        else:
            shutil.copyfile(path, aside)
