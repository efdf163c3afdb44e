"""Fetching whole image files, local or behind URLs, several at once."""

from __future__ import annotations

import importlib
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pipeline.core.blocks import Problem
from pipeline.core.paths import is_remote, remote_errors
from pipeline.core.urls import is_url
from pipeline.sources.fetch import Wanted, read_local, read_remote
from pipeline.sources.sample_index import Rows
from pipeline.storage.blobs import file_system


@dataclass(frozen=True)
class FileFetcher:
    """Reads image files, each whole; the key of a row is a path below its root, or a URL.

    Attributes
    ----------
    roots
        The folders that `File.root` counts.
    """

    roots: tuple[Path, ...]

    def fetch(
        self, rows: Rows, files: Sequence[Sequence[Any]], most: int
    ) -> Iterator[tuple[int, bytes | Problem]]:
        """Yield for each row its place in `rows`, and its bytes or what is wrong with them.

        Raises
        ------
        SourceError
            Where not one file is at fault but the place.
        """
        remote: list[tuple[Any, Wanted]] = []
        folders = [b"" if is_remote(root) else os.fsencode(root) for root in self.roots]
        for place, (file, key) in enumerate(zip(rows.file, rows.key, strict=True)):
            root = self.roots[files[file][0]]
            # only a list of this machine has absolute paths
            if b"://" in key or (is_remote(root) and not key.startswith(b"/")):
                system, name = _remote_file(root, key)
                remote.append((system, Wanted(place, name, 0, rows.size[place])))
            else:
                folder = folders[files[file][0]]
                path = os.path.join(folder, key)  # noqa: PTH118 (names are bytes)
                yield place, read_local(root, path, most)
        for _, group in itertools.groupby(remote, key=lambda item: id(item[0])):
            together = list(group)
            yield from read_remote(together[0][0], (item for _, item in together), most)

    def close(self) -> None:
        """Nothing is left open."""


def _remote_file(root: Path, key: bytes) -> tuple[Any, str]:
    """Return the file system of a URL, or of a path below a remote root, and the path in it."""
    name = key.decode("utf-8", "surrogateescape")
    if not is_url(name):
        return file_system(root), f"{cast(Any, root).path.rstrip('/')}/{name}"
    # what opens the root must not be sent to another host
    mine = is_remote(root) and host_of(str(root)) == host_of(name)
    options = cast(Any, root).storage_options if mine else {}
    with remote_errors(name):
        system, path = importlib.import_module("fsspec").core.url_to_fs(name, **options)
    return system, path


def host_of(url: str) -> str:
    """Return protocol and host, or bucket, of a URL."""
    protocol, _, rest = url.partition("://")
    return f"{protocol}://{rest.partition('/')[0]}"
