"""An object store for fsspec whose objects are files of a folder: it fails as the folder does.

An object is put whole or not at all, there are no folders, and what is listed is what is there.
"""

from __future__ import annotations

import io
import itertools
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from fsspec import AbstractFileSystem, register_implementation

PROTOCOL = "objects"
_ASIDE = "."
_number = itertools.count()


class ObjectFolder(AbstractFileSystem):
    """Keeps the object `a/b` in the file `a%2Fb` of the folder that its options name."""

    protocol = PROTOCOL
    cachable = False

    def __init__(self, folder: str, **options: Any) -> None:
        super().__init__(**options)
        self._folder = Path(folder).absolute()

    def _file(self, key: str) -> Path:
        return self._folder / quote(self._strip_protocol(key), safe="")

    def _keys(self, prefix: str = "") -> list[str]:
        try:
            names = [file.name for file in self._folder.iterdir()]
        except FileNotFoundError:  # nothing was put yet: to open a store is no request
            return []
        keys = (unquote(name) for name in names if not name.startswith(_ASIDE))
        return sorted(key for key in keys if key.startswith(prefix))

    def cat_file(self, path: str, start: Any = None, end: Any = None, **_: Any) -> bytes:
        return self._file(path).read_bytes()[start:end]

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        if mode == "create" and self._file(path).exists():
            raise FileExistsError(path)
        self._folder.mkdir(exist_ok=True)
        aside = self._folder / f"{_ASIDE}{os.getpid()}-{next(_number)}"
        aside.write_bytes(value)
        aside.replace(self._file(path))

    def put_file(self, lpath: str, rpath: str, **_: Any) -> None:
        self.pipe_file(rpath, Path(lpath).read_bytes())

    def cp_file(self, path1: str, path2: str, **_: Any) -> None:
        self.pipe_file(path2, self.cat_file(path1))

    def rm_file(self, path: str) -> None:
        self._file(path).unlink()

    def rm(self, path: Any, recursive: bool = False, maxdepth: Any = None) -> None:
        for place in [path] if isinstance(path, str) else path:
            key = self._strip_protocol(place)
            found = [k for k in self._keys(key) if k == key or k.startswith(f"{key}/")]
            if not found:
                raise FileNotFoundError(place)
            for name in found:
                self.rm_file(name)

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        key = self._strip_protocol(path)
        try:
            status = self._file(key).stat()
        except FileNotFoundError:
            if not self._keys(f"{key}/".lstrip("/")):
                raise
            return {"name": key, "size": 0, "type": "directory"}
        return {"name": key, "size": status.st_size, "type": "file", "mtime": status.st_mtime}

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        key = self._strip_protocol(path)
        start = f"{key}/".lstrip("/")
        names = sorted({start + k[len(start) :].partition("/")[0] for k in self._keys(start)})
        if not names:
            names = [self.info(key)["name"]]
        return [self.info(name) for name in names] if detail else names

    def _open(self, path: str, mode: str = "rb", *_: Any, **__: Any) -> io.BytesIO:
        if mode != "rb":
            raise NotImplementedError("objects are put whole")
        return io.BytesIO(self.cat_file(path))


register_implementation(PROTOCOL, ObjectFolder, clobber=True)
