"""Files that are complete or absent: written aside, flushed and renamed; objects put at once.

A reader never sees half of such a file. What a writer puts aside has a name of its own, so that two
may write one file at once, and names its process; what a killed writer leaves is read by nobody,
and swept away when the folder is resumed or finished.

What a manifest names reaches the disk before the manifest does. Shards and tables are written
without waiting for the disk, and `flush_named` flushes all of them at once before a record names
them: so writing, reading and computing overlap, and the disk orders the writes. A file lasts
once its bytes are flushed, and every folder that leads to it. Linux is told to begin with large
files as soon as they are written, so that most is on the disk by then: the flush of 0.8 GB of
shards takes 0.02 s in the end, where it took 0.3 s. A small file takes about a millisecond on one
thread, a fraction of that on several. What is on the disk stays in the system's memory too, unless
there is much of it: see `passing_files`. A worker on another machine that shares the folder by
network has sent what it wrote when it closed the file. Object stores keep what they have taken.
"""

from __future__ import annotations

import atexit
import errno
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from itertools import islice, product
from pathlib import Path
from typing import Any

from pipeline.core.errors import DamagedError, StorageFullError, StoreError, hide_in
from pipeline.core.paths import is_remote, is_url, remote_errors, shown
from pipeline.core.threads import in_ranges
from pipeline.storage.blobs import put_bytes, put_file, read_bytes
from pipeline.storage.folders import walk
from pipeline.storage.passing_files import begin_flush, let_go
from pipeline.storage.processes import Process, this_process

PARTIAL_SUFFIX = ".partial"
_CHUNKS = "c"  # the folder in that of a Zarr array that holds its chunks
_NO_FOLDERS = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PASSES = (*_FULL, errno.EIO, errno.EMFILE, errno.ENFILE)  # what says nothing of a folder
_PLACES = "--output; of a job file output, or store of its images; or PIXSIM_DATA"
_LARGE = 2**20
_THREADS, _BATCH = 8, 2**10


@contextmanager
def storage_errors(path: Path | str) -> Iterator[None]:
    """Turn a full disk, quota or file size limit into a `StorageFullError` with the cure."""
    try:
        remote = is_url(str(path)) and not str(path).startswith("file://")
        passing = (ValueError, TypeError, KeyError)
        with remote_errors(path, passing=passing) if remote else nullcontext():
            yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise StorageFullError(
            f"no space left while writing {path}: {os.strerror(error.errno)}; "
            "free some space and run the same command again: what is written is kept"
        ) from error


def require_writable(path: Path, named_by: str = _PLACES) -> None:
    """Raise `StoreError` where no file can be made in a folder, or in the nearest one above it.

    Only a try tells: rights say nothing of a disk that is mounted read-only, or of `/proc`. What
    it makes has no name, or is gone at once. A remote folder is tried by whoever locks it.
    `named_by` says in the message where the user named the folder.
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
    """Give a local path to write to; on success its content becomes `path`, else nothing.

    A local file is flushed and renamed, a remote one put. One that need not last, or is flushed
    later with others by `flush_named`, is flushed here only where it replaces another: after a
    power cut there is one of the two, and never an empty file where there was a complete one.
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
            if lasting or path.exists():
                flush(aside)
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)


def write_pieces(path: Path, pieces: Iterable[Any], *, lasting: bool = True) -> None:
    """Write pieces of bytes as one file, see `replaced`, or put them as one object.

    To join the pieces of a local file first would be a copy, to pages not touched before.
    """
    if is_remote(path):
        put_bytes(path, b"".join(pieces))
        return
    with replaced(path, lasting=lasting) as aside, aside.open("wb", buffering=0) as file:
        for piece in pieces:
            view = memoryview(piece).cast("B")
            while len(view):  # one call may write less
                view = view[file.write(view) :]
        large = file.tell() >= _LARGE
        if not lasting and large:
            begin_flush(file.fileno())
    if large:
        let_go(path)


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


def flush_named(
    path: Path, content: Mapping[str, Any], before: Mapping[str, Any] | None = None
) -> None:
    """Flush the files that a manifest in `path` will name, and the folders that lead to them.

    What the manifest `before` it names as well lasts already. One that is missing is a
    `DamagedError`.
    """
    if is_remote(path):
        return
    old = {"files": {}, "arrays": {}, **(before or {})}
    files = content.get("files", {}).items()
    _flush_all(path, (path / name for name, mark in files if old["files"].get(name) != mark))
    for name, marks in content.get("arrays", {}).items():
        _flush_all(path, _changed_files(path / name, marks, old["arrays"].get(name, ())))
    # the folder itself, and those that were made to hold it; not all of them are ours
    for folder in path.absolute().parents:
        with suppress(OSError):
            flush(folder)


def flush_tree(path: Path) -> None:
    """Flush all files below a folder, where there is one."""
    if not is_remote(path) and path.exists():
        found = (Path(at) / name for at, _, names in os.walk(path) for name in names)
        # what a late task still writes aside may be gone in a moment
        _flush_all(path, (file for file in found if file.suffix != PARTIAL_SUFFIX))


def _changed_files(array: Path, marks: Sequence[str], before: Sequence[str]) -> Iterator[Path]:
    """Yield the files of an array whose fingerprints are not those of before."""
    if list(marks) == list(before):
        return
    metadata = read_json(array / "zarr.json")
    outer = metadata["chunk_grid"]["configuration"]["chunk_shape"]
    grid = [-(-size // step) for size, step in zip(metadata["shape"], outer, strict=True)]
    # only one axis is cut, so these are in order along it
    for number, (index, mark) in enumerate(zip(product(*map(range, grid)), marks, strict=False)):
        if number >= len(before) or before[number] != mark:
            yield array.joinpath(_CHUNKS, *map(str, index))


def _flush_all(path: Path, files: Iterable[Path]) -> None:
    """Flush files, and the folders between them and a folder, which is flushed too."""
    with storage_errors(path):
        left = iter(files)
        while batch := list(islice(left, _BATCH)):
            folders = {folder for file in batch for folder in file.parents}
            batch += (folder for folder in folders if folder.is_relative_to(path))
            in_ranges(_THREADS, len(batch), partial(_flush_range, batch))


def _flush_range(files: Sequence[Path], start: int, stop: int) -> None:
    for file in files[start:stop]:
        try:
            flush(file)
        except FileNotFoundError:
            raise DamagedError(
                f"{shown(file)}: is missing, and was there before; run the same command again"
            ) from None


def aside_of(path: Path) -> Path:
    """Return where to write what will become `path`: a new name each time, with the process in it.

    It is beside `path`; of a chunk of a Zarr array, in the folder of the array: there may be as
    many folders as chunks, and `sweep` looks in none of these.
    """
    mark = f"{this_process().mark}-{secrets.token_hex(4)}"
    folder = path.parent
    while folder.name.isdigit():
        folder = folder.parent
    if not path.name.isdigit() or folder.name != _CHUNKS:
        return path.with_name(f"{path.name}.{mark}{PARTIAL_SUFFIX}")
    array = folder.parent
    name = path.relative_to(array).as_posix().replace("/", ".")
    return array / f"{name}.{mark}{PARTIAL_SUFFIX}"


def sweep(path: Path, *, only_dead: bool = False) -> None:
    """Remove what killed writers left, everywhere below a folder; in a remote one there is none.

    `only_dead` removes only what is of processes that are gone from this machine: others may write.
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
    mark = name.removesuffix(PARTIAL_SUFFIX).rpartition(".")[2]
    process = Process.of_mark(mark.rpartition("-")[0])
    return process is None or process.lives is not False


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
    of: those that killed processes left in `base` (default: the system's for temporary files, made
    where it is missing) are removed now.
    """
    home = Path(tempfile.gettempdir()) if base is None else base
    if home not in _swept:
        _swept.add(home)
        with suppress(OSError):
            for left in home.glob(f"{_SCRATCH}.*{PARTIAL_SUFFIX}"):
                if not _may_live(left.name):
                    shutil.rmtree(left, ignore_errors=True)
    for last in range(_TRIES, 0, -1):
        missing = [path for path in (home, *home.parents) if not path.exists()]
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


def write_json(path: Path, content: Any, indent: int | None = 1, *, lasting: bool = True) -> None:
    """Write `content` as JSON, see `replaced`; indented, unless it may be large."""
    text = json.dumps(hide_in(content), indent=indent, allow_nan=False) + "\n"
    write_pieces(path, [text.encode()], lasting=lasting)


def write_text(path: Path, text: str) -> None:
    """Write a text; see `replaced`."""
    write_pieces(path, [text.encode()])


def read_json(path: Path) -> Any:
    """Read a JSON file that `write_json` wrote."""
    return json.loads(read_bytes(path).decode())


def copy_file(path: Path, target: Path) -> None:
    """Copy a file; see `replaced`."""
    with replaced(target) as aside:
        if is_remote(path):
            aside.write_bytes(read_bytes(path))
        else:
            shutil.copyfile(path, aside)
