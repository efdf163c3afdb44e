"""Where things lie: folders and files of this machine, or of an object store behind a URL.

A local place is a `pathlib.Path`, a remote one an fsspec path (`universal_pathlib`), annotated as
`Path` too; the functions here do the same for both. What opens a remote place (keys, tokens,
endpoints) travels with it, is never written anywhere, and is blotted out of every message.

Whole operations on a remote place are tried again, with growing pauses, where the answer was a
failure that may pass; beside that, fsspec's file systems try single requests again themselves.
"""

from __future__ import annotations

import copyreg
import glob
import importlib
import io
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar, cast

from pipeline.errors import ConfigError, PixsimError, RemoteError, conceal
from pipeline.urls import LOCAL, WEB, bare, secrets_of, shown

TRIES = 5
FIRST_PAUSE_SECONDS = 0.2
# what says that there is no file, and not that it cannot be read
ABSENT = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
_PACKAGES = {
    "s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs",
    "abfss": "adlfs", "http": "aiohttp", "https": "aiohttp",
}  # fmt: skip
# what will be no different the next time; a connection s3fs has tried many times already
_FINAL = (
    FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError,
    ImportError, ValueError, TypeError, NotImplementedError, PixsimError,
)  # fmt: skip
_REFUSED_NAMES = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound")
_FINAL_NAMES = (*_REFUSED_NAMES, "EndpointConnectionError", "ConnectTimeoutError")
_REFUSED_STATUSES, _PASSING_STATUSES = (401, 403), (408, 425, 429)  # of a web server

T = TypeVar("T")


def locate(text: str | Path, options: Mapping[str, Any] | None = None) -> Path:
    """Return the path that a text names, local or remote.

    Parameters
    ----------
    text
        A path or a URL.
    options
        fsspec's storage options for a URL.

    Raises
    ------
    ConfigError
        Where it is no path and no text.
    RemoteError
        Where the package is missing that opens such a URL, or its options are wrong.
    """
    if isinstance(text, Path):
        return Path(at_home(str(text))) if str(text).startswith("~") else text
    if not is_place(text):
        said = " ".join(repr(text).split())[:100]
        raise ConfigError(f"{said} ({type(text).__name__}): expected a path or a URL")
    if not isinstance(cast(object, options), Mapping | None):
        said = " ".join(repr(options).split())[:100]
        raise ConfigError(f"storage_options: {said}, expected a mapping of fsspec's options")
    url, settings = str(text), {**options_of(text), **(options or {})}
    protocol, separator, rest = url.partition("://")
    if not separator or protocol in LOCAL:
        return Path(rest if separator else at_home(url))
    conceal(secrets_of(url, settings))
    if protocol in WEB:
        url, settings = bare(url, settings)
    with remote_errors(url):
        path = importlib.import_module("upath").UPath(url, **settings)
        _ = path.fs
    # a worker that is sent the path learns what to conceal
    copyreg.pickle(type(path), _reduce)
    return cast(Path, path)


def is_place(value: object) -> bool:
    """Tell whether a value is a path, or a text that may be one or a URL."""
    return (isinstance(value, str | os.PathLike) and bool(str(value))) or hasattr(value, "joinpath")


def at_home(text: str) -> str:
    """Return a local path with a leading `~` or `~user` replaced by the home folder it stands for.

    Shells do so at the beginning of a word only: not in `--set images.store=~/a.zarr`, nor in files
    of settings.
    """
    return os.path.expanduser(text) if text.startswith("~") else text  # noqa: PTH111 (no Path)


def _reduce(path: Any) -> tuple[Callable[..., Path], tuple[str, dict[str, Any]]]:
    return locate, (str(path), dict(path.storage_options))


def is_remote(path: Path) -> bool:
    """Tell whether a path is one of an fsspec file system other than the local one."""
    return not isinstance(path, Path)


_PASSING = (
    FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PixsimError,
)  # fmt: skip


@contextmanager
def remote_errors(place: str | Path, passing: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turn what a remote file system raises into a `RemoteError` that says what to do.

    That something is not there stays `FileNotFoundError`, and the like; `passing` names what else
    stays as it is.

    Raises
    ------
    RemoteError
        Where a package is missing, access is refused, or nothing answers.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, (*_PASSING, *passing)):
            raise
        # without the cause: its own text may hold keys
        raise RemoteError(f"{shown(place)}: {_reason(place, error)}") from None


def _reason(place: str | Path, error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ImportError):
        protocol = str(place).partition("://")[0]
        package = _PACKAGES.get(protocol)
        cure = f"pip install {package}" if package else "install the package that opens it"
        return f"cannot be opened here ({text}); {cure}"
    refused = isinstance(error, PermissionError) or type(error).__name__ in _REFUSED_NAMES
    if refused or getattr(error, "status", 0) in _REFUSED_STATUSES:
        return f"access was refused ({text}); give storage_options, or credentials by environment"
    if isinstance(error, ValueError | TypeError):
        return f"cannot be opened ({text}); correct the URL or storage_options"
    return (
        f"does not answer as it should ({type(error).__name__}: {text}); check the address and the "
        "network, and run the command again"
    )


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


def _files(path: Path) -> tuple[Any, str]:
    """Return the file system of a remote path, and the path in it."""
    return file_system(path), cast(Any, path).path.rstrip("/")


def options_of(path: str | Path) -> dict[str, Any]:
    """Return fsspec's storage options of a path; none for a local one, or a text."""
    return dict(getattr(path, "storage_options", {}))


def exists(path: Path) -> bool:
    """Tell whether there is a file or a folder at a path."""
    if not is_remote(path):
        return _status(path) is not None
    files, place = _files(path)
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
    files, place = _files(path)
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
    files, place = _files(path)
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
    files, place = _files(path)
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
        files, place = _files(path)
        there = _files(target)[1]
        # as lists, since a folder would be copied into a target that is there
        old, new = ([f"{folder}/{name}" for name in names] for folder in (place, there))
        tried(path, files.copy, old, new)
        put_bytes(record, b"copied")
    _remove_files(path, names)


def _remove_files(path: Path, names: list[str]) -> None:
    """Remove files below a remote folder; the empty name is the path itself."""
    files, place = _files(path)
    if glob.escape(place) != place:  # the file system would take it for a pattern
        for name in names:
            with suppress(FileNotFoundError):
                tried(path, files.rm_file, f"{place}/{name}".rstrip("/"))
    elif names:
        # gone all the same, where an answer was lost or another did the work
        with suppress(FileNotFoundError):
            tried(path, files.rm, place, recursive=True)
    files.invalidate_cache()


def read_bytes(path: Path, start: int | None = None, stop: int | None = None) -> bytes:
    """Read a file, or the bytes `start` to `stop` of it.

    Raises
    ------
    FileNotFoundError
        Where there is none.
    """
    if not is_remote(path):
        with path.open("rb") as file:
            file.seek(start or 0)
            return file.read(-1 if stop is None else stop - (start or 0))
    return bytes(tried(path, _read_range, path, start, stop))


def _read_range(path: Any, start: int | None, stop: int | None) -> bytes:
    """Read bytes of a remote file in one request."""
    files, place = _files(path)
    if start is None and stop is None and path.protocol in ("s3", "s3a"):
        start = 0  # else s3fs asks for the size first
    try:
        return bytes(files.cat_file(place, start=start, end=stop))
    except OSError as error:
        if "not satisfiable" not in str(error):
            raise
        return b""  # there is nothing there, as at the end of a local file


class _RemoteFile(io.RawIOBase):
    """A remote file that is read at any place; what fails for a while is tried again."""

    def __init__(self, path: Path, file: Any) -> None:
        self._path, self._file = path, file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._file.seekable())

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(tried(self._path, self._file.seek, offset, whence) or self._file.tell())

    def tell(self) -> int:
        return int(self._file.tell())

    def readinto(self, target: Any) -> int:
        data = tried(self._path, self._file.read, len(target))
        target[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def open_binary(path: Path) -> IO[bytes]:
    """Open a file to read it piece by piece.

    Raises
    ------
    FileNotFoundError
        Where there is none.
    RemoteError
        Where a remote one cannot be opened; reading raises it too.
    """
    if not is_remote(path):
        return path.open("rb")
    files, place = _files(path)
    files.invalidate_cache()  # else its size may be that of the file before
    opened = tried(path, files.open, place, "rb")
    return cast(IO[bytes], io.BufferedReader(_RemoteFile(path, opened)))


def file_size(path: Path) -> int:
    """Return the bytes of a file."""
    if not is_remote(path):
        return path.stat().st_size
    files, place = _files(path)
    files.invalidate_cache()
    return int(tried(path, files.info, place)["size"])


def put_file(local: Path, path: Path) -> None:
    """Write a local file to a remote path: the object is there whole, or not at all."""
    files, place = _files(path)
    try:
        tried(path, files.put_file, str(local), place)
    except FileNotFoundError as error:
        raise RemoteError(f"{shown(path)}: there is no such place to write to ({error})") from None
    files.invalidate_cache()


def put_bytes(path: Path, data: bytes) -> None:
    """Write bytes to a remote path: the object is there whole, or not at all."""
    files, place = _files(path)
    try:
        tried(path, files.pipe_file, place, data)
    except FileNotFoundError as error:
        raise RemoteError(f"{shown(path)}: there is no such place to write to ({error})") from None
    files.invalidate_cache()


def has_conditions(path: Path) -> bool:
    """Tell whether a remote file system may be asked to write only where there is nothing.

    What stores behind the same protocol make of it differs: some do not look at the condition.
    """
    files, _ = _files(path)
    # fsspec's own looks first, and then writes: another may come between
    return hasattr(files, "_pipe_file") or getattr(files, "protocol", "") == "memory"


def put_new(path: Path, data: bytes) -> bool:
    """Write bytes to a remote path where there is nothing; tell whether it was free."""
    files, place = _files(path)
    try:
        made = bool(tried(path, _put_new, files, place, data))
    except FileNotFoundError as error:
        raise RemoteError(f"{shown(path)}: there is no such place to write to ({error})") from None
    files.invalidate_cache()
    return made


def _put_new(files: Any, place: str, data: bytes) -> bool:
    try:
        files.pipe_file(place, data, mode="create")
    except FileExistsError:
        return False
    except Exception as error:
        if not _is_unmet(error):
            raise
        return False
    return True


def _is_unmet(error: Exception) -> bool:
    """Tell whether an error says that the condition of a write was not met."""
    response = getattr(error.__cause__, "response", None)  # of botocore
    told = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
    return "412" in (str(getattr(error, "code", "")), str(getattr(error, "status", "")), told) or (
        told == "PreconditionFailed"
    )


def remove_file(path: Path) -> None:
    """Remove a file, where there is one; nothing is listed."""
    if not is_remote(path):
        path.unlink(missing_ok=True)
        return
    files, place = _files(path)
    with suppress(FileNotFoundError):
        tried(path, _remove, files, place)
    files.invalidate_cache()


def _remove(files: Any, place: str) -> None:
    with suppress(KeyError):  # of memory
        files.rm_file(place)
