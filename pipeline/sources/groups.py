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
from typing import Any

import xarray as xr

from pipeline.errors import InputError, RemoteError, SourceError
from pipeline.objects import PlaceStore
from pipeline.places import is_folder, is_remote, open_binary, tried, version_tag
from pipeline.sources.arrays import version_of
from pipeline.sources.kept import Kept

ROOT = "/"
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
    """A group of a store or file; its path in there is `name`."""

    path: Path
    name: str = ROOT

    @property
    def title(self) -> str:
        return self.path.name if self.name == ROOT else f"{self.path.name}{self.name}"

    @property
    def _is_zarr(self) -> bool:
        return self.path.suffix == ".zarr" or is_folder(self.path)

    def dataset(self) -> xr.Dataset:
        """Return its variables, lazy.

        Raises
        ------
        SourceError
            Where it cannot be opened.
        """
        return _opened.get(self, self._open)

    def _open(self) -> xr.Dataset:
        with reading(self.title):
            group = {} if self.name == ROOT else {"group": self.name}
            found: xr.Dataset = _open_with(xr.open_dataset, self.path, self._is_zarr, **group)
            return found

    def close(self) -> None:
        """Close it in this process."""
        _opened.close(lambda group: group == self)

    def describe(self) -> dict[str, Any]:
        """Return its name and what changes when its files do, for the provenance."""
        found = {"name": self.path.name, "group": self.name}
        if self._is_zarr:
            return {**found, "files_sha256": self._files_digest()}
        return {**found, "bytes": self.path.stat().st_size, **version_of(self.path)}

    def _files_digest(self) -> str:
        """Return the SHA-256 of the names, sizes and times of all files of a Zarr group."""
        folder = self.path if self.name == ROOT else self.path / self.name.strip("/")
        digest = hashlib.sha256()
        for name, size, version in _files_below(folder):
            digest.update(f"{name}\0{size}\0{version}\n".encode())
        return digest.hexdigest()


_opened: Kept[Group, xr.Dataset] = Kept(xr.Dataset.close)


def groups_in(path: Path) -> dict[str, xr.Dataset]:
    """Open all groups of a store or file as it is now; the caller closes them."""
    _opened.close(lambda group: group.path == path)  # it may be another one than before
    is_zarr = Group(path)._is_zarr
    try:
        found: dict[str, xr.Dataset] = _open_with(xr.open_groups, path, is_zarr)
    except (ValueError, NotImplementedError):  # NetCDF 3 has no groups
        found = {ROOT: _open_with(xr.open_dataset, path, is_zarr)}
    return found


def _open_with(opener: Callable[..., Any], path: Path, is_zarr: bool, **options: Any) -> Any:
    """Open a store or file with one of xarray's functions, values undecoded and not kept."""
    options |= {**_DECODING, "cache": False}
    if not is_zarr:
        return opener(open_binary(path) if is_remote(path) else path, **options)
    if is_remote(path):
        return opener(PlaceStore(path, read_only=True), engine="zarr", **options)
    # the folder itself says what is there, sooner than a gathered list that may be absent
    return opener(path, engine="zarr", consolidated=False, **options)


def _files_below(folder: Path) -> Iterator[tuple[str, int, str]]:
    """Yield name, size and version of every file below a folder, in a fixed order."""
    if is_remote(folder):
        remote: Any = folder
        files = tried(folder, remote.fs.find, remote.path, detail=True)
        for name, found in sorted(files.items()):
            yield name.removeprefix(remote.path), found["size"], version_tag(found)
        return
    for top, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(top) / name
            status = path.stat()
            yield path.relative_to(folder).as_posix(), status.st_size, str(status.st_mtime_ns)
