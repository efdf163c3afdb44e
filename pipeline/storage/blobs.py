"""Bytes of files and objects: reading them, putting them whole, putting them where nothing is."""

from __future__ import annotations

import io
from pathlib import Path
from typing import IO, Any, cast

from pipeline.core.errors import RemoteError
from pipeline.core.paths import is_remote
from pipeline.core.urls import shown
from pipeline.storage.retries import file_system_of, tried


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
    files, place = file_system_of(path)
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
    files, place = file_system_of(path)
    files.invalidate_cache()  # else its size may be that of the file before
    opened = tried(path, files.open, place, "rb")
    return cast(IO[bytes], io.BufferedReader(_RemoteFile(path, opened)))


def file_size(path: Path) -> int:
    """Return the bytes of a file."""
    if not is_remote(path):
        return path.stat().st_size
    files, place = file_system_of(path)
    files.invalidate_cache()
    return int(tried(path, files.info, place)["size"])


def put_file(local: Path, path: Path) -> None:
    """Write a local file to a remote path: the object is there whole, or not at all."""
    files, place = file_system_of(path)
    try:
        tried(path, files.put_file, str(local), place)
    except FileNotFoundError as error:
        raise RemoteError(f"{shown(path)}: there is no such place to write to ({error})") from None
    files.invalidate_cache()


def put_bytes(path: Path, data: bytes) -> None:
    """Write bytes to a remote path: the object is there whole, or not at all."""
    files, place = file_system_of(path)
    try:
        tried(path, files.pipe_file, place, data)
    except FileNotFoundError as error:
        raise RemoteError(f"{shown(path)}: there is no such place to write to ({error})") from None
    files.invalidate_cache()


def has_conditions(path: Path) -> bool:
    """Tell whether a remote file system may be asked to write only where there is nothing.

    What stores behind the same protocol make of it differs: some do not look at the condition.
    """
    files, _ = file_system_of(path)
    # fsspec's own looks first, and then writes: another may come between
    return hasattr(files, "_pipe_file") or getattr(files, "protocol", "") == "memory"


def put_new(path: Path, data: bytes) -> bool:
    """Write bytes to a remote path where there is nothing; tell whether it was free."""
    files, place = file_system_of(path)
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
