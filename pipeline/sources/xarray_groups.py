"""Groups of Zarr stores and NetCDF files, opened by xarray once in each process, and never decoded.

Packed values, times and fills stay as they are stored; who reads decides what they mean.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import xarray as xr

from pipeline.core.digests import json_digest
from pipeline.core.errors import InputError, RemoteError, SourceError
from pipeline.core.paths import is_remote
from pipeline.sources.arrays import described
from pipeline.sources.open_cache import Kept
from pipeline.storage.blobs import file_system, open_binary, tried, version_in, version_of
from pipeline.storage.folders import details_below, is_folder
from pipeline.storage.store_array import RemoteStore

ROOT = "/"
_DOCUMENTS = ("zarr.json", ".zgroup", ".zarray", ".zattrs", ".zmetadata")
_REWRITE = (
    'open it with zarr and write it with xarray: xarray.Dataset({"image": (("sample", "y", "x"), '
    'IMAGES), "label": ("sample", LABELS)}).to_zarr(PLACE); or give the arrays to '
    "pipeline.from_arrays"
)
_NAMELESS = f"its arrays have no names of dimensions, by which it is told what they are; {_REWRITE}"
_DECODING = {"mask_and_scale": False, "decode_times": False, "decode_timedelta": False}


@contextmanager
def reading(title: str) -> Iterator[None]:
    """Turn every failure to read into a `SourceError` that names the place."""
    try:
        yield
    except (InputError, RemoteError):
        raise
    except Exception as error:  # each codec has its own kinds
        if "_ARRAY_DIMENSIONS" in str(error) or "dimension_names" in str(error):
            raise SourceError(f"{title}: {_NAMELESS}") from None
        if type(error).__name__ == "ContainsArrayError":
            raise SourceError(f"{title}: is a single array without labels; {_REWRITE}") from None
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SourceError(
            f"{title}: cannot be read by xarray: {reason}; expected a Zarr store or a NetCDF file "
            "(NetCDF 4 needs the packages h5netcdf and h5py)"
        ) from None


@dataclass(frozen=True)
class Group:
    """A group of a store or file, as it was when it was found; see `find_group`.

    Attributes
    ----------
    path, name
        The store or file, and the path of the group in there.
    stamp
        What was recorded of it: another one that takes its place is not read.
    """

    path: Path
    name: str
    stamp: str

    @property
    def title(self) -> str:
        return self.path.name if self.name == ROOT else f"{self.path.name}{self.name}"

    def dataset(self) -> xr.Dataset:
        """Return its variables, lazy.

        Raises
        ------
        SourceError
            Where it cannot be opened.
        """
        with reading(self.title):
            here = not is_remote(self.path) and self.path.is_file()
            version = version_of(self.path) if here else self.stamp
        return _opened.get((self.path, self.name), self._open, version)

    def _open(self) -> xr.Dataset:
        with reading(self.title):
            group = {} if self.name == ROOT else {"group": self.name}
            found: xr.Dataset = _open_with(xr.open_dataset, self.path, **group)
            return found

    def require_unchanged(self) -> None:
        """Raise `SourceError` where it is not the one that was found, after reading from it.

        xarray opens a file again when it likes: not even one that was opened stays what it was.
        """
        if self.stamp != _stamp(self.path, self.name):
            raise SourceError(
                f"{self.title}: is another one than when it was opened; run the command again to "
                "read this one, or bring back the one before"
            )

    def close(self) -> None:
        """Close it in this process."""
        _opened.close(lambda key: key == (self.path, self.name))

    def describe(self) -> dict[str, Any]:
        """Return its name and what changes when its files do, for the provenance."""
        found = {"name": self.path.name, "group": self.name}
        if _is_zarr(self.path):
            return {**found, "files_sha256": self._files_digest()}
        version = version_of(self.path)
        return {**found, "bytes": version.size, **described(self.path, version)}

    def _files_digest(self) -> str:
        """Return the SHA-256 of the names, sizes and times of all files of a Zarr group."""
        folder = self.path if self.name == ROOT else self.path / self.name.strip("/")
        digest = hashlib.sha256()
        for name, size, version in _files_below(folder):
            digest.update(f"{name}\0{size}\0{version}\n".encode())
        return digest.hexdigest()


_opened: Kept[tuple[Path, str], xr.Dataset] = Kept(xr.Dataset.close)


def find_group(path: Path, name: str = ROOT) -> Group:
    """Return a group of a store or file as it is now."""
    return Group(path, name, _stamp(path, name))


def _stamp(path: Path, name: str) -> str:
    """Return what changes when a file does, or the metadata of a Zarr group, without reading it."""
    if not _is_zarr(path):
        return version_of(path).stamp
    folders = [path] if name == ROOT else [path, path / name.strip("/")]
    found = [_documents_in(folder) for folder in folders]
    if not is_remote(path):  # where each array would be a request
        found += [_documents_in(item) for item in sorted(folders[-1].iterdir()) if item.is_dir()]
    return json_digest(found)


def _documents_in(folder: Path) -> list[tuple[str, str]]:
    """Return name and stamp of each document of Zarr in a folder."""
    if not is_remote(folder):
        paths = [folder / name for name in _DOCUMENTS]
        return [(path.name, version_of(path).stamp) for path in paths if path.is_file()]
    files, place = file_system(folder), cast(Any, folder).path
    files.invalidate_cache()
    try:
        entries = tried(folder, files.ls, place, detail=True)
    except (FileNotFoundError, NotADirectoryError):
        return []
    named = {entry["name"].rpartition("/")[2]: entry for entry in entries}
    return [(name, version_in(named[name]).stamp) for name in _DOCUMENTS if name in named]


def groups_in(path: Path) -> dict[str, xr.Dataset]:
    """Open all groups of a store or file as it is now; the caller closes them."""
    try:
        found: dict[str, xr.Dataset] = _open_with(xr.open_groups, path)
    except (ValueError, NotImplementedError):  # NetCDF 3 has no groups
        found = {ROOT: _open_with(xr.open_dataset, path)}
    return found


def _is_zarr(path: Path) -> bool:
    return path.suffix == ".zarr" or is_folder(path)


def _open_with(opener: Callable[..., Any], path: Path, **options: Any) -> Any:
    """Open a store or file with one of xarray's functions, values undecoded and not kept."""
    options |= {**_DECODING, "cache": False}
    if not _is_zarr(path):
        return opener(open_binary(path) if is_remote(path) else path, **options)
    if is_remote(path):
        return opener(RemoteStore(path, read_only=True), engine="zarr", **options)
    # the folder itself says what is there, sooner than a gathered list that may be absent
    return opener(path, engine="zarr", consolidated=False, **options)


def _files_below(folder: Path) -> Iterator[tuple[str, int, str]]:
    """Yield name, size and version of every file below a folder, in a fixed order."""
    if is_remote(folder):
        slash = "" if cast(Any, folder).path.endswith("/") else "/"
        for name, found in sorted(details_below(folder).items()):
            yield f"{slash}{name}", found["size"], version_in(found).tag
        return
    for top, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(top) / name
            status = path.stat()
            yield path.relative_to(folder).as_posix(), status.st_size, str(status.st_mtime_ns)
