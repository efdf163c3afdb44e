"""Paths of this machine and of object stores behind URLs, as users write them.

A local path is a `pathlib.Path`, a remote one an fsspec path (`universal_pathlib`), annotated as
`Path` too. What opens a remote one (keys, tokens, endpoints) travels with it, is never written
anywhere, and is removed from every message. No request is made here.
"""

from __future__ import annotations

import copyreg
import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

from pipeline.core.errors import ConfigError, PixsimError, RemoteError, conceal
from pipeline.core.urls import LOCAL, WEB, bare, secrets_of, shown

# what says that there is no file, and not that it cannot be read
ABSENT = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
_PACKAGES = {
    "s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs",
    "abfss": "adlfs", "http": "aiohttp", "https": "aiohttp",
}  # fmt: skip
REFUSED_NAMES = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound")
_REFUSED_STATUSES = (401, 403)  # of a web server

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
    if not is_path_like(text):
        given = " ".join(repr(text).split())[:100]
        raise ConfigError(f"{given} ({type(text).__name__}): expected a path or a URL")
    if not isinstance(cast(object, options), Mapping | None):
        given = " ".join(repr(options).split())[:100]
        raise ConfigError(f"storage_options: {given}, expected a mapping of fsspec's options")
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


def is_path_like(value: object) -> bool:
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
def remote_errors(path: str | Path, passing: tuple[type[Exception], ...] = ()) -> Iterator[None]:
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
        raise RemoteError(f"{shown(path)}: {_reason(path, error)}") from None


def _reason(path: str | Path, error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ImportError):
        protocol = str(path).partition("://")[0]
        package = _PACKAGES.get(protocol)
        cure = f"pip install {package}" if package else "install the package that opens it"
        return f"cannot be opened here ({text}); {cure}"
    refused = isinstance(error, PermissionError) or type(error).__name__ in REFUSED_NAMES
    if refused or getattr(error, "status", 0) in _REFUSED_STATUSES:
        return f"access was refused ({text}); give storage_options, or credentials by environment"
    if isinstance(error, ValueError | TypeError):
        return f"cannot be opened ({text}); correct the URL or storage_options"
    return (
        f"does not answer as it should ({type(error).__name__}: {text}); check the address and the "
        "network, and run the command again"
    )


def options_of(path: str | Path) -> dict[str, Any]:
    """Return fsspec's storage options of a path; none for a local one, or a text."""
    return dict(getattr(path, "storage_options", {}))
