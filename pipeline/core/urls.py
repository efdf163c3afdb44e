"""URLs: how they are shown, and what of them and of what opens them is secret.

Whatever opens a remote path is concealed (see `errors`) the moment that the path is named.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from pipeline.core.errors import conceal

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
