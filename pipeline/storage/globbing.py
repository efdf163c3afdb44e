"""What patterns of URLs stand for: `*`, `?`, `[…]`, and `**` for any folders.

fsspec's own `glob` leaves out what it cannot list, as if nothing were there, and may answer from a
listing of before.
"""

from __future__ import annotations

import fnmatch
import importlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from pipeline.core.paths import remote_errors
from pipeline.core.urls import WEB
from pipeline.storage.retries import tried


def matching(pattern: str, options: Mapping[str, Any] | None = None) -> list[str]:
    """Return the URLs that one with `*`, `?`, `[…]` or `**` (any folders) stands for, sorted.

    What cannot be listed is an error, where fsspec's own `glob` leaves it out. In the address of a
    web server `?` is no pattern: there it begins a query.
    """
    protocol, _, rest = pattern.partition("://")
    with remote_errors(pattern):
        files, place = importlib.import_module("fsspec").core.url_to_fs(pattern, **(options or {}))
    files.invalidate_cache()
    parts = [part.replace("?", "[?]") if protocol in WEB else part for part in place.split("/")]
    fixed = next((n for n, part in enumerate(parts) if set(part) & set("*?[")), len(parts))
    list_ = partial(tried, pattern, files.ls, detail=True)
    found = set(_matches(list_, "/".join(parts[:fixed]), parts[fixed:]))
    names = (files.unstrip_protocol(name).partition("://")[2] for name in found)
    # written as the pattern is: "s3a" stays "s3a"
    root = "/" if rest.startswith("/") else ""
    return sorted(f"{protocol}://{root}{name.lstrip('/')}" for name in names)


def _matches(list_: Callable[[str], Any], folder: str, parts: list[str]) -> Iterator[str]:
    """Yield what lies below a folder under names that match, a pattern for each level."""
    first, *rest = parts
    deeper = parts if first == "**" else rest
    if first == "**" and rest:
        yield from _matches(list_, folder, rest)
    for path, is_folder in _entries(list_, folder):
        if first != "**" and not fnmatch.fnmatchcase(path.rpartition("/")[2], first):
            continue
        if not rest:
            yield path
        if is_folder and deeper:
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
