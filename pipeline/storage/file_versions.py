"""What tells a file from another one that took its place, without reading it.

Whatever is kept of a file, opened or read, is kept for its version, and not for its path alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

from pipeline.core.paths import is_remote
from pipeline.storage.retries import file_system, tried


class Version(NamedTuple):
    """What tells a file from another one of the same name, without reading it.

    Attributes
    ----------
    size
        Its bytes; -1 where a server does not say.
    tag
        When it was changed; of a remote file what its store says of the version.
    mark
        Of a local file what differs even where a file of the same size and time took its place;
        it means nothing on another machine.
    """

    size: int
    tag: str
    mark: tuple[int, ...] = ()

    @property
    def stamp(self) -> str:
        """What is recorded of a file that is listed or opened."""
        return f"{None if self.size < 0 else self.size} {self.tag}"


def version_of(path: Path) -> Version:
    """Return what identifies the content of a file now.

    Raises
    ------
    FileNotFoundError
        Where there is none.
    """
    if is_remote(path):
        files, place = file_system(path), cast(Any, path).path
        files.invalidate_cache()
        return version_in(tried(path, files.info, place))
    found = path.stat()
    mark = found.st_dev, found.st_ino, found.st_ctime_ns
    return Version(found.st_size, str(found.st_mtime_ns), mark)


def version_in(info: Mapping[str, Any]) -> Version:
    """Return the version of a remote file from fsspec's description of it."""
    size = info.get("size")
    return Version(-1 if size is None else int(size), version_tag(info))


def version_tag(info: Mapping[str, Any]) -> str:
    """Return what fsspec's description of a file says of its version, "" where it says nothing."""
    keys = ("ETag", "etag", "md5", "LastModified", "last_modified", "mtime", "created")
    return next((str(info[key]) for key in keys if info.get(key)), "")
