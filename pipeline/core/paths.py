"""Paths of this machine and of object stores behind URLs, as users write them.

A local path is a `pathlib.Path`, a remote one an fsspec path (`universal_pathlib`), annotated as
`Path` too. What opens a remote one (keys, tokens, endpoints) travels with it, is never written
anywhere, and is concealed (see `errors`) the moment that the path is named, so that no message
shows it. No request is made here.
"""

from __future__ import annotations

import base64
import copyreg
import importlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import unquote

from pipeline.core.errors import ConfigError, PixsimError, RemoteError, conceal

# what says that there is no file, and not that it cannot be read
ABSENT = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
_PACKAGES = {
    "s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs",
    "abfss": "adlfs", "http": "aiohttp", "https": "aiohttp",
}  # fmt: skip
REFUSED_NAMES = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound")
_REFUSED_STATUSES = (401, 403)  # of a web server

_HARMLESS = (
    "region_name", "region", "project", "account_name", "signature_version", "addressing_style",
    "profile", "protocol", "mode", "acl", "cache_type",
)  # fmt: skip
_HARMLESS_VALUES = ("anon", "browser", "cache", "cloud", "default", "google_default", "true",
                    "false", "none")  # fmt: skip
_SECRET_WORDS = ("key", "secret", "token", "pass", "sas", "cred", "connection", "auth", "sig")
_LONG_ENOUGH = 16  # an unknown option of this length may be a key
LOCAL, WEB = ("file", "local"), ("http", "https")
_QUERY = "params"  # the option of fsspec's web file system that holds the query of its requests
# Where what stands before an @ is no user, and where a ? is part of a name.
_NO_USER = ("abfs", "abfss", "az", "adl", "wasb", "wasbs", "git", "github", "hf")
_NO_QUERY = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory", "file", "hf", "sftp")

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


def is_url(text: str) -> bool:
    """Tell whether a text names a protocol, such as `s3://bucket/images`."""
    return "://" in text


def bare(url: str, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Move user, password and query of a web address into its options.

    So the path names a file and nothing else, wherever its name is shown, kept or joined.
    """
    protocol, user, rest, query = _parts(url)
    moved = dict(options)
    if query:
        moved[_QUERY] = query
    if user:
        basic = base64.b64encode(unquote(user).encode()).decode()
        conceal([basic])
        moved["headers"] = {"Authorization": f"Basic {basic}", **moved.get("headers", {})}
    return f"{protocol}://{rest.removeprefix(user + '@')}", moved


def shown(path: str | Path) -> str:
    """Return the text of a path or URL without user, password and query, as it may be written."""
    return "::".join(_shown_link(link) for link in str(path).split("::"))


def short_name(text: str) -> str:
    """Return a short name of a source: the last part of its path, without suffix or pattern.

    Examples
    --------
    >>> short_name("s3://bucket/flowers.tar.gz")
    'flowers'
    """
    last = shown(text).rstrip("/").rpartition("/")[2].rpartition(":")[2]
    stem = re.sub(r"(\.tar)?\.[A-Za-z]\w*$", "", last) if "." in last[1:] else last
    return re.sub(r"[^\w.-]+|[-_.]?\{[^}]*\}|\*", "", stem).strip("-_.") or "images"


def _shown_link(text: str) -> str:
    if not is_url(text):
        return text
    protocol, user, rest, _ = _parts(text)
    return f"{protocol}://{rest.removeprefix(user + '@')}"


def _parts(url: str) -> tuple[str, str, str, str]:
    """Return the protocol of a URL, its user and password, what follows `://`, and the query."""
    protocol, _, rest = url.partition("://")
    query = ""
    if protocol not in _NO_QUERY:
        rest, _, query = rest.partition("?")
    user, _, _ = rest.partition("/")[0].rpartition("@")
    return protocol, "" if protocol in _NO_USER else user, rest, query


def secrets_of(url: str, options: Mapping[str, Any]) -> Iterator[str]:
    """Yield what must not be seen of a URL and its options."""
    for link in url.split("::"):
        _, user, _, query = _parts(link)
        yield from (user, *user.split(":"), query)
        yield from _assigned(query.split("&"))
    yield from _secret_values(options)


def _assigned(assignments: list[str]) -> Iterator[str]:
    """Yield what is secret of `name=value`."""
    for assignment in assignments:
        name, _, value = assignment.partition("=")
        yield from _secret_values({name: value})


def _secret_values(options: Mapping[str, Any]) -> Iterator[str]:
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from _secret_values(value)
        elif name == _QUERY and isinstance(value, str):
            yield value
            yield from _assigned(value.split("&"))
        elif isinstance(value, list | tuple):
            yield from _secret_values({f"{name} {index}": item for index, item in enumerate(value)})
        elif isinstance(value, str) and is_url(value):
            yield from secrets_of(value, {})
        elif isinstance(value, str) and _is_secret(str(name).lower(), value):
            yield value
            yield from _assigned(value.split(";") if ";" in value else [])
            yield from value.split()[1:]  # of "Bearer TOKEN"


def _is_secret(name: str, value: str) -> bool:
    if name in _HARMLESS or value.lower() in _HARMLESS_VALUES:
        return False
    return len(value) >= _LONG_ENOUGH or any(word in name for word in _SECRET_WORDS)
