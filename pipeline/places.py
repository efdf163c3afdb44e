"""Where things lie: folders and files of this machine, or of an object store behind a URL.

A local place is a `pathlib.Path`, a remote one an fsspec path (`universal_pathlib`) with the same
methods, annotated as `Path` too. What opens a remote place (keys, tokens, endpoints) travels with
it, is never written anywhere, and is blotted out of every text that passes through `hide`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast


def is_url(text: str) -> bool:
    """Tell whether a text names a place behind a protocol, such as `s3://bucket/images`."""
    return "://" in text


def locate(text: str | Path, options: Mapping[str, Any] | None = None) -> Path:
    """Return the path that a text names, local or remote.

    Parameters
    ----------
    text
        A path or a URL.
    options
        fsspec's storage options for a URL.
    """
    if not isinstance(text, str) or not is_url(text):
        return Path(text)
    return cast(Path, importlib.import_module("upath").UPath(text, **(options or {})))


def is_remote(path: Path) -> bool:
    """Tell whether a path is one of an fsspec file system other than the local one."""
    return not isinstance(path, Path)


def shown(place: str | Path) -> str:
    """Return the text of a place without user, password and query, as it may be written."""
    text = str(place)
    if not is_url(text):
        return text
    protocol, _, rest = text.partition("://")
    rest, _, _ = rest.partition("?")
    host, slash, path = rest.partition("/")
    return f"{protocol}://{host.rpartition('@')[2]}{slash}{path}"
