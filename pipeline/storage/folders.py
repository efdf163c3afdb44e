"""What lies in folders, local and remote: listed, looked for, removed, replaced."""

from __future__ import annotations

import glob
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.core.paths import is_remote
from pipeline.core.urls import WEB
from pipeline.storage.blobs import put_bytes
from pipeline.storage.retries import file_system_of, tried


def exists(path: Path) -> bool:
    """Tell whether there is a file or a folder at a path."""
    if not is_remote(path):
        return _status(path) is not None
    files, place = file_system_of(path)
    files.invalidate_cache()  # others may have written it
    try:
        # not `exists`, to which any failure means that nothing is there
        tried(path, files.info, place)
    except FileNotFoundError:
        return False
    return True


def is_folder(path: Path) -> bool:
    """Tell whether a path is a folder; in an object store, whether anything lies below it."""
    if not is_remote(path):
        status = _status(path)
        return status is not None and stat.S_ISDIR(status.st_mode)
    files, place = file_system_of(path)
    files.invalidate_cache()
    if str(path).partition("://")[0] in WEB:  # each address is a file; a folder has links below it
        return bool(tried(path, files.isdir, place))
    try:
        # not `isdir`, to which most failures mean that there is no folder
        return bool(tried(path, files.info, place)["type"] == "directory")
    except FileNotFoundError:
        return False


def _status(path: Path) -> os.stat_result | None:
    """Return the state of a local file or folder, None where there is none.

    What cannot be looked at is an error: `Path.exists` and the like take some for absence, from
    Python 3.14 on all of them.
    """
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None


def list_folder(path: Path) -> list[str]:
    """Return the names in a folder, sorted; nothing where it does not exist."""
    if not is_remote(path):
        try:
            return sorted(item.name for item in path.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []
    files, place = file_system_of(path)
    files.invalidate_cache()
    try:
        found = tried(path, files.ls, place, detail=False)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(str(name).rstrip("/").rpartition("/")[2] for name in found)


def sizes_below(path: Path) -> dict[str, int]:
    """Return the bytes of every file below a folder, by its path there."""
    if not is_remote(path):
        return dict(_local_sizes(path))
    found = details_below(path)
    return {name: int(details.get("size") or 0) for name, details in found.items()}


def _local_sizes(path: Path) -> Iterator[tuple[str, int]]:
    def failed(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise error

    for folder, _, names in os.walk(path, onerror=failed):
        for name in names:
            file = Path(folder) / name
            with suppress(FileNotFoundError):  # a broken link, or gone meanwhile
                if file.is_file():
                    yield file.relative_to(path).as_posix(), file.stat().st_size


def details_below(path: Path) -> dict[str, dict[str, Any]]:
    """Return what fsspec says of every file below a remote folder, by its path there.

    What cannot be listed is an error; a folder that is not there holds nothing.
    """
    files, place = file_system_of(path)
    files.invalidate_cache()
    search = partial(_search, files) if _leaves_out(files) else partial(files.find, detail=True)
    try:
        found = tried(path, search, place)
    except FileNotFoundError:
        return {}
    return {str(name)[len(place) :].lstrip("/"): details for name, details in found.items()}


def _leaves_out(files: Any) -> bool:
    """Tell whether a file system has fsspec's own search, which leaves out what it cannot list."""
    search = type(files)._find if files.async_impl else type(files).find
    return search.__module__ in ("fsspec.spec", "fsspec.asyn")


def walk(path: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Walk a local folder as `os.walk`, to which what cannot be listed is empty; here it fails."""
    for folder, folders, names in os.walk(path, onerror=_unless_gone):
        yield Path(folder), folders, names


def _unless_gone(error: OSError) -> None:
    """Raise what listing a folder failed of, unless the folder is not there."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def _search(files: Any, place: str) -> dict[str, Any]:
    """Return what lies below a folder, listed folder by folder; a failure is a failure."""
    found, folders, seen = {}, [place], {place}
    while folders:
        for details in files.ls(folders.pop(), detail=True):
            name = details["name"].rstrip("/")
            if details["type"] != "directory":
                found[details["name"]] = details
            elif name not in seen:  # an object store may list the folder itself
                seen.add(name)
                folders.append(details["name"])
    return found


def files_below(path: Path) -> list[str]:
    """Return the paths of all files below a folder, relative to it."""
    return list(sizes_below(path))


def remove_tree(path: Path) -> None:
    """Remove a file, or a folder with all that is in it, where there is one.

    What cannot be removed is an error, after all else is gone.
    """
    if is_remote(path):
        _remove_files(path, list(sizes_below(path)))
    elif path.is_symlink() or not is_folder(path):
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)
        with suppress(FileNotFoundError):
            shutil.rmtree(path)  # what is left; says what is in the way


def replace_tree(target: Path, path: Path, record: Path) -> None:
    """Put the folder `path` in the place of `target`; cut short, the same call completes it.

    A local one is renamed. A remote one is copied, then removed, object by object: what is left of
    it while it is removed must not take the place of the copy.

    Parameters
    ----------
    target, path
        The folder to replace, and the one to put there; where there is none, nothing is done.
    record
        A place for an object that says that the copy is whole.
    """
    if not is_remote(path):
        if path.exists():
            remove_tree(target)
            path.rename(target)
        return
    names = files_below(path)
    if names and not exists(record):
        remove_tree(target)
        files, place = file_system_of(path)
        there = file_system_of(target)[1]
        # as lists, since a folder would be copied into a target that is there
        old, new = ([f"{folder}/{name}" for name in names] for folder in (place, there))
        tried(path, files.copy, old, new)
        put_bytes(record, b"copied")
    _remove_files(path, names)


def _remove_files(path: Path, names: list[str]) -> None:
    """Remove files below a remote folder; the empty name is the path itself."""
    files, place = file_system_of(path)
    if glob.escape(place) != place:  # the file system would take it for a pattern
        for name in names:
            with suppress(FileNotFoundError):
                tried(path, files.rm_file, f"{place}/{name}".rstrip("/"))
    elif names:
        # gone all the same, where an answer was lost or another did the work
        with suppress(FileNotFoundError):
            tried(path, files.rm, place, recursive=True)
    files.invalidate_cache()


def remove_file(path: Path) -> None:
    """Remove a file, where there is one; nothing is listed."""
    if not is_remote(path):
        path.unlink(missing_ok=True)
        return
    files, place = file_system_of(path)
    with suppress(FileNotFoundError):
        tried(path, _remove, files, place)
    files.invalidate_cache()


def _remove(files: Any, place: str) -> None:
    with suppress(KeyError):  # of memory
        files.rm_file(place)
