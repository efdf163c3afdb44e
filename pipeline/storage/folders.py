"""What lies in folders, local and remote: listed, matched by patterns, removed, replaced.

Whatever cannot be listed is an error. fsspec's own `exists`, `isdir`, `find` and `glob` take some
failures for "not there", and may answer from a listing of before.
"""

from __future__ import annotations

import errno
import fnmatch
import glob
import importlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.core.paths import WEB, is_remote, remote_errors
from pipeline.core.threads import in_ranges
from pipeline.storage.blobs import file_system_of, put_bytes, tried, trying_once

_THREADS = 8


def exists(path: Path) -> bool:
    """Tell whether there is a file or a folder at a path."""
    return _kind(path) is not None


def is_folder(path: Path) -> bool:
    """Tell whether a path is a folder; in an object store, whether anything lies below it."""
    if is_remote(path) and str(path).partition("://")[0] in WEB:
        # each address is a file; a folder has links below it
        files, name = file_system_of(path)
        files.invalidate_cache()
        return bool(tried(path, files.isdir, name))
    return _kind(path) == "directory"


def _kind(path: Path) -> str | None:
    """Return `directory` or what else there is at a path, None where there is nothing.

    What cannot be looked at is an error, which `Path.exists` takes for absence from Python 3.14 on.
    """
    try:
        if not is_remote(path):
            return "directory" if stat.S_ISDIR(path.stat().st_mode) else "file"
        files, name = file_system_of(path)
        files.invalidate_cache()  # others may have written it
        return str(tried(path, files.info, name)["type"])
    except FileNotFoundError:
        return None
    except OSError as error:
        if is_remote(path) or error.errno not in (errno.ENOTDIR, errno.ENAMETOOLONG):
            raise
        return None


def list_folder(path: Path) -> list[str]:
    """Return the names in a folder, sorted; nothing where it does not exist."""
    try:
        if not is_remote(path):
            return sorted(item.name for item in path.iterdir())
        files, name = file_system_of(path)
        files.invalidate_cache()
        names = tried(path, files.ls, name, detail=False)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(str(name).rstrip("/").rpartition("/")[2] for name in names)


def sizes_below(path: Path) -> dict[str, int]:
    """Return the bytes of every file below a folder, by its path there."""
    if is_remote(path):
        listed = details_below(path)
        return {name: int(details.get("size") or 0) for name, details in listed.items()}
    sizes = {}
    for folder, _, names in walk(path):
        for file in (folder / name for name in names):
            with suppress(FileNotFoundError):  # a broken link, or gone meanwhile
                if file.is_file():
                    sizes[file.relative_to(path).as_posix()] = file.stat().st_size
    return sizes


def files_below(path: Path) -> list[str]:
    """Return the paths of all files below a folder, relative to it."""
    return list(sizes_below(path))


def details_below(path: Path) -> dict[str, dict[str, Any]]:
    """Return what fsspec says of every file below a remote folder, by its path there."""
    files, root = file_system_of(path)
    files.invalidate_cache()
    search = partial(_search, files) if _leaves_out(files) else partial(files.find, detail=True)
    try:
        listed = tried(path, search, root)
    except FileNotFoundError:
        return {}
    return {str(name)[len(root) :].lstrip("/"): details for name, details in listed.items()}


def _leaves_out(files: Any) -> bool:
    """Tell whether a file system has fsspec's own search, which leaves out what it cannot list."""
    search = type(files)._find if files.async_impl else type(files).find
    return search.__module__ in ("fsspec.spec", "fsspec.asyn")


def _search(files: Any, root: str) -> dict[str, Any]:
    """Return what lies below a folder, listed folder by folder; a failure is a failure."""
    listed, folders, seen = {}, [root], {root}
    while folders:
        for details in files.ls(folders.pop(), detail=True):
            name = details["name"].rstrip("/")
            if details["type"] != "directory":
                listed[details["name"]] = details
            elif name not in seen:  # an object store may list the folder itself
                seen.add(name)
                folders.append(details["name"])
    return listed


def walk(path: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Walk a local folder as `os.walk`, to which what cannot be listed is empty; here it fails."""

    def unless_gone(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise error

    for folder, folders, names in os.walk(path, onerror=unless_gone):
        yield Path(folder), folders, names


def matching(pattern: str, options: Mapping[str, Any] | None = None) -> list[str]:
    """Return the URLs that one with `*`, `?`, `[…]` or `**` (any folders) stands for, sorted.

    In the address of a web server `?` is no pattern: there it begins a query.
    """
    protocol, _, rest = pattern.partition("://")
    with remote_errors(pattern):
        files, root = importlib.import_module("fsspec").core.url_to_fs(pattern, **(options or {}))
    files = trying_once(files)
    files.invalidate_cache()
    parts = [part.replace("?", "[?]") if protocol in WEB else part for part in root.split("/")]
    fixed = next((n for n, part in enumerate(parts) if set(part) & set("*?[")), len(parts))
    list_ = partial(tried, pattern, files.ls, detail=True)
    matches = set(_matches(list_, "/".join(parts[:fixed]), parts[fixed:]))
    names = (files.unstrip_protocol(name).partition("://")[2] for name in matches)
    # written as the pattern is: "s3a" stays "s3a"
    start = "/" if rest.startswith("/") else ""
    return sorted(f"{protocol}://{start}{name.lstrip('/')}" for name in names)


def _matches(list_: Callable[[str], Any], folder: str, parts: list[str]) -> Iterator[str]:
    """Yield what lies below a folder under names that match, a pattern for each level."""
    first, *rest = parts
    deeper = parts if first == "**" else rest
    if first == "**" and rest:
        yield from _matches(list_, folder, rest)
    for path, is_directory in _entries(list_, folder):
        if first != "**" and not fnmatch.fnmatchcase(path.rpartition("/")[2], first):
            continue
        if not rest:
            yield path
        if is_directory and deeper:
            yield from _matches(list_, path, deeper)


def _entries(list_: Callable[[str], Any], folder: str) -> Iterator[tuple[str, bool]]:
    """Yield the paths in a folder, and whether each is one; nothing where there is no folder."""
    try:
        entries = list_(folder)
    except (FileNotFoundError, NotADirectoryError):
        return
    for details in entries:
        path = details["name"].rstrip("/")
        if path.strip("/") != folder.strip("/"):  # an object store may list the folder itself
            yield path, details["type"] == "directory"


def remove_tree(path: Path) -> None:
    """Remove a file, or a folder with all that is in it, where there is one.

    What cannot be removed is an error, after all else is gone.
    """
    if is_remote(path):
        _remove_files(path, files_below(path))
    elif path.is_symlink() or not is_folder(path):
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)
        with suppress(FileNotFoundError):
            shutil.rmtree(path)  # what is left; says what is in the way


def replace_tree(target: Path, path: Path, record: Path) -> None:
    """Put the folder `path` in the place of `target`; cut short, the same call completes it.

    A local one is renamed; where there is none, nothing is done. A remote one is copied, then
    removed, object by object: what is left of it while it is removed must not replace the copy, so
    an object at `record` says that the copy is complete.
    """
    if not is_remote(path):
        if path.exists():
            remove_tree(target)
            path.rename(target)
        return
    names = files_below(path)
    if names and not exists(record):
        remove_tree(target)
        in_ranges(_THREADS, len(names), partial(_copy, path, target, names))
        put_bytes(record, b"copied")
    _remove_files(path, names)


def _copy(path: Path, target: Path, names: list[str], start: int, stop: int) -> None:
    files, old = file_system_of(path)
    new = file_system_of(target)[1]
    for name in names[start:stop]:  # each with tries of its own
        tried(path, files.cp_file, f"{old}/{name}", f"{new}/{name}")


def _remove_files(path: Path, names: list[str]) -> None:
    """Remove files below a remote folder; the empty name is the path itself."""
    files, root = file_system_of(path)
    if glob.escape(root) != root:  # the file system would take it for a pattern
        for name in names:
            with suppress(FileNotFoundError):
                tried(path, files.rm_file, f"{root}/{name}".rstrip("/"))
    elif names:
        # gone all the same, where an answer was lost or another did the work
        with suppress(FileNotFoundError):
            tried(path, files.rm, root, recursive=True)
    files.invalidate_cache()


def remove_file(path: Path) -> None:
    """Remove a file, where there is one; nothing is listed."""
    if not is_remote(path):
        path.unlink(missing_ok=True)
        return
    files, name = file_system_of(path)
    with suppress(FileNotFoundError):
        tried(path, _remove, files, name)
    files.invalidate_cache()


def _remove(files: Any, name: str) -> None:
    with suppress(KeyError):  # of memory
        files.rm_file(name)
