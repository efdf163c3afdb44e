"""Files that are whole or absent: written aside, flushed, then renamed into place.

A reader never sees half of such a file. What a writer puts aside has a name of its own, so that two
may write one file at once, and says which process it is of; what a writer that was killed leaves is
read by nobody, and swept away when the folder is taken up again, or finished.
"""

from __future__ import annotations

import atexit
import errno
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline.core.errors import StorageFullError, StoreError, hide_in
from pipeline.core.paths import is_remote, remote_errors
from pipeline.core.urls import is_url, shown
from pipeline.storage.blobs import put_file, read_bytes
from pipeline.storage.folders import walk
from pipeline.storage.processes import Process, this_process

PARTIAL_SUFFIX = ".partial"
_CHUNKS = "c"  # the folder in that of a Zarr array that holds its chunks
_NO_FOLDERS = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PASSES = (*_FULL, errno.EIO, errno.EMFILE, errno.ENFILE)  # what says nothing of a place
_PLACES = "--output; of a job file output, or store of its images; or PIXSIM_DATA"


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


def require_writable(path: Path, named_by: str = _PLACES) -> None:
    """Refuse a folder that cannot be written to, or made, before any work is done for it.

    Only a try tells: rights say nothing of a disk that is mounted to be read, or of `/proc`. What
    it makes is nameless, or gone at once. A remote folder is tried by whoever locks it.

    Parameters
    ----------
    path
        The folder.
    named_by
        What names it, for the message.

    Raises
    ------
    StoreError
        Where no file can be made in it or, as long as it is not there, in the nearest above it.
    """
    if is_remote(path):
        return
    folder = path
    with storage_errors(path):
        try:
            while not _is_there(folder):
                folder = folder.absolute().parent
            if folder.is_dir():
                with tempfile.TemporaryFile(dir=folder):
                    return
            why = f"{shown(folder)} is no folder"
        except OSError as error:
            if error.errno is None or error.errno in _PASSES:
                raise
            why = f"no file can be made in {shown(folder)}: {os.strerror(error.errno)}"
    raise StoreError(
        f"{shown(path)}: cannot be written to ({why}), expected a folder that takes new files; "
        f"make it one, or name another place ({named_by})"
    )


def require_file(path: Path, named_by: str) -> None:
    """Refuse a file that cannot be written; see `require_writable`."""
    if not is_remote(path) and path.is_dir():
        raise StoreError(f"{shown(path)}: is a folder, expected the name of a file ({named_by})")
    require_writable(path.parent, named_by)


def _is_there(path: Path) -> bool:
    """Tell whether a local path is taken: by a link that leads nowhere too."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


@contextmanager
def replaced(path: Path, *, lasting: bool = True) -> Iterator[Path]:
    """Give a local path to write to; on success its content becomes `path`, whole, else nothing.

    A local file is flushed and renamed, a remote one put. One that is not to last, or is flushed
    later with others, see `durability`, is flushed here only where it takes the place of another.
    """
    if is_remote(path):
        with scratch_folder() as folder:
            aside = folder / "content"
            yield aside
            put_file(aside, path)
        return
    aside = aside_of(path)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield aside
            if lasting:
                flush(aside)
                aside.replace(path)
            else:
                settle(aside, path)
        finally:
            aside.unlink(missing_ok=True)


def settle(aside: Path, path: Path) -> None:
    """Give a local file that was put aside its name.

    One that takes the place of another is flushed before: after a power cut there is one of the
    two, and never an empty file where there was a whole one.
    """
    if path.exists():
        flush(aside)
    aside.replace(path)


def flush(path: Path) -> None:
    """Wait until the disk has the bytes of a local file, or the names in a folder."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        # some file systems have no such thing for folders
        if error.errno not in _NO_FOLDERS or not path.is_dir():
            raise
    finally:
        os.close(number)


def aside_of(path: Path) -> Path:
    """Return where to write what will become `path`: a new name each time, with the process in it.

    It is beside `path`; of a chunk of a Zarr array, in the folder of the array. Chunks may lie in
    as many folders as there are of them, and `sweep` looks in none of these.
    """
    me = this_process()
    mark = f"{me.machine or 'unknown'}-{me.number}-{me.started}-{secrets.token_hex(4)}"
    folder = path.parent
    while folder.name.isdigit():
        folder = folder.parent
    if not path.name.isdigit() or folder.name != _CHUNKS:
        return path.with_name(f"{path.name}.{mark}{PARTIAL_SUFFIX}")
    array = folder.parent
    name = path.relative_to(array).as_posix().replace("/", ".")
    return array / f"{name}.{mark}{PARTIAL_SUFFIX}"


def sweep(path: Path, *, only_dead: bool = False) -> None:
    """Remove what writers left that were killed, everywhere below a folder.

    Parameters
    ----------
    path
        The folder; in a remote one there is never any of it.
    only_dead
        Whether others may still write: then only what is of processes that are gone from this
        machine.
    """
    if is_remote(path):
        return
    for folder, folders, names in walk(path):
        if "zarr.json" in names and _CHUNKS in folders:
            folders.remove(_CHUNKS)
        for name in names:
            if name.endswith(PARTIAL_SUFFIX) and not (only_dead and _may_live(name)):
                (folder / name).unlink(missing_ok=True)


def _may_live(name: str) -> bool:
    """Tell whether the writer of a file that was put aside may still write to it."""
    mark = name.removesuffix(PARTIAL_SUFFIX).rpartition(".")[2].split("-")
    if len(mark) != 4 or not (mark[1].isdigit() and mark[2].isdigit()):
        return True
    return Process(mark[0], int(mark[1]), int(mark[2])).lives is not False


_SCRATCH = "pixsim-scratch"
_TRIES = 100
# the folders that this process made for a while, by process: a fork's are not its parent's
_made: dict[Path, tuple[int, list[Path]]] = {}
_swept: set[Path] = set()  # where nothing is looked for again: small files are written often


@contextmanager
def scratch_folder(base: Path | None = None) -> Iterator[Path]:
    """Give an empty local folder, and remove it; see `make_scratch`."""
    folder = make_scratch(base)
    try:
        yield folder
    finally:
        remove_scratch(folder)


def make_scratch(base: Path | None = None) -> Path:
    """Make an empty local folder for what this process needs for a while.

    It is removed by `remove_scratch`, or when the process ends. Its name says which process it is
    of: those that killed processes left in `base` are removed now.

    Parameters
    ----------
    base
        The folder to make it in, made where it is missing; default: the system's for temporary
        files.
    """
    home = Path(tempfile.gettempdir()) if base is None else base
    if home not in _swept:
        _swept.add(home)
        with suppress(OSError):
            for left in home.glob(f"{_SCRATCH}.*{PARTIAL_SUFFIX}"):
                if not _may_live(left.name):
                    shutil.rmtree(left, ignore_errors=True)
    for last in range(_TRIES, 0, -1):
        missing = [place for place in (home, *home.parents) if not place.exists()]
        folder = aside_of(home / _SCRATCH)
        try:
            folder.mkdir(mode=0o700, parents=True)
        except FileNotFoundError:  # another process removed the folder above, being empty
            if last == 1:
                raise
        else:
            break
    _made[folder] = (os.getpid(), missing)
    return folder


def remove_scratch(folder: Path) -> None:
    """Remove a folder of `make_scratch`, and those above it that were made for it and are empty."""
    process, parents = _made.pop(folder, (0, []))
    if process != os.getpid():
        return
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        for parent in parents:
            parent.rmdir()


@atexit.register
def _remove_all() -> None:
    for folder in list(_made):
        remove_scratch(folder)


def write_json(path: Path, content: Any, indent: int | None = 1) -> None:
    """Write `content` as JSON, whole or not at all; indented, unless it may be large."""
    with replaced(path) as aside:
        text = json.dumps(hide_in(content), indent=indent, allow_nan=False)
        aside.write_text(text + "\n", encoding="utf-8")


def write_text(path: Path, text: str) -> None:
    """Write a text, whole or not at all."""
    with replaced(path) as aside:
        aside.write_text(text, encoding="utf-8")


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
