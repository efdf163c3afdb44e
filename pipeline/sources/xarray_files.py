"""Groups of Zarr stores and NetCDF files as xarray opens them, and what their values mean.

A group is opened once in each process, and never decoded: packed values, times and fills stay as
they are stored. The CF conventions tell what values mean. Unsigned integers of up to 16 bits
stay as they are stored, and their `scale_factor` and `add_offset` are carried on; other packed
integers are decoded to floats, as xarray does. Values of `_FillValue` and `missing_value`, and
those outside `valid_range`, are missing pixels.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import xarray as xr

from pipeline.core.digests import json_digest
from pipeline.core.errors import InputError, RemoteError, SourceError, one_line
from pipeline.core.paths import is_remote
from pipeline.sources.array_source import NO_GAPS, Gaps, pixel_type
from pipeline.sources.open_cache import OpenCache, described, files_digest
from pipeline.storage.blobs import file_system, open_binary, tried, version_in, version_of
from pipeline.storage.folders import details_below, is_folder, walk
from pipeline.storage.zarr_stores import RemoteStore

ROOT = "/"
FILLS = ("_FillValue", "missing_value")
_ENCODING = {"scale_factor": 1.0, "add_offset": 0.0}
_VALID = ("valid_range", "valid_min", "valid_max")
PACKED = frozenset(_ENCODING)
_DOCUMENTS = ("zarr.json", ".zgroup", ".zarray", ".zattrs", ".zmetadata")
_REWRITE = (
    'open it with zarr and write it with xarray: xarray.Dataset({"image": (("sample", "y", "x"), '
    'IMAGES), "label": ("sample", LABELS)}).to_zarr(PLACE); or give the arrays to '
    "pipeline.from_arrays"
)
_NAMELESS = f"its arrays have no names of dimensions, by which it is told what they are; {_REWRITE}"
Array = npt.NDArray[Any]
_DECODING = {"mask_and_scale": False, "decode_times": False, "decode_timedelta": False}


@contextmanager
def reading(title: str) -> Iterator[None]:
    """Turn every failure to read into a `SourceError` that names what was read."""
    try:
        yield
    except (InputError, RemoteError):
        raise
    except Exception as error:  # each codec has its own kinds
        if "_ARRAY_DIMENSIONS" in str(error) or "dimension_names" in str(error):
            raise SourceError(f"{title}: {_NAMELESS}") from None
        if type(error).__name__ == "ContainsArrayError":
            raise SourceError(f"{title}: is a single array without labels; {_REWRITE}") from None
        raise SourceError(
            f"{title}: cannot be read by xarray: {one_line(error)}; expected a Zarr store or a "
            "NetCDF file (NetCDF 4 needs the packages h5netcdf and h5py)"
        ) from None


@dataclass(frozen=True)
class StoredGroup:
    """A group of a store or file, of which `stamp` records the state; see `find_group`."""

    path: Path
    name: str
    stamp: str

    @property
    def title(self) -> str:
        return self.path.name if self.name == ROOT else f"{self.path.name}{self.name}"

    def dataset(self) -> xr.Dataset:
        """Return its variables, lazy."""
        with reading(self.title):
            here = not is_remote(self.path) and self.path.is_file()
            version = version_of(self.path) if here else self.stamp
        return _opened.get((self.path, self.name), self._open, version)

    def _open(self) -> xr.Dataset:
        with reading(self.title):
            group = {} if self.name == ROOT else {"group": self.name}
            return cast(xr.Dataset, _open_with(xr.open_dataset, self.path, **group))

    def require_unchanged(self) -> None:
        """Raise `SourceError` where it is not the one that was opened, after reading from it.

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
        if not _is_zarr(self.path):
            return {**described(self.path, version_of(self.path)), "group": self.name}
        folder = self.path if self.name == ROOT else self.path / self.name.strip("/")
        digest = files_digest(_files_below(folder))
        return {"name": self.path.name, "group": self.name, "files_sha256": digest}


_opened: OpenCache[tuple[Path, str], xr.Dataset] = OpenCache(xr.Dataset.close)


def find_group(path: Path, name: str = ROOT) -> StoredGroup:
    """Return a group of a store or file as it is now."""
    return StoredGroup(path, name, _stamp(path, name))


def _stamp(path: Path, name: str) -> str:
    """Return what changes when a file does, or the metadata of a Zarr group, without reading it."""
    if not _is_zarr(path):
        return version_of(path).stamp
    folders = [path] if name == ROOT else [path, path / name.strip("/")]
    documents = [_documents_in(folder) for folder in folders]
    if not is_remote(path):  # where each array would be a request
        arrays = (item for item in sorted(folders[-1].iterdir()) if item.is_dir())
        documents += map(_documents_in, arrays)
    return json_digest(documents)


def _documents_in(folder: Path) -> list[tuple[str, str]]:
    """Return name and stamp of each document of Zarr in a folder."""
    if not is_remote(folder):
        paths = [folder / name for name in _DOCUMENTS]
        return [(path.name, version_of(path).stamp) for path in paths if path.is_file()]
    files, path = file_system(folder), cast(Any, folder).path
    files.invalidate_cache()
    try:
        entries = tried(folder, files.ls, path, detail=True)
    except (FileNotFoundError, NotADirectoryError):
        return []
    named = {entry["name"].rpartition("/")[2]: entry for entry in entries}
    return [(name, version_in(named[name]).stamp) for name in _DOCUMENTS if name in named]


def groups_in(path: Path) -> dict[str, xr.Dataset]:
    """Open all groups of a store or file as it is now; the caller closes them."""
    try:
        return cast(dict[str, xr.Dataset], _open_with(xr.open_groups, path))
    except (ValueError, NotImplementedError):  # NetCDF 3 has no groups
        return {ROOT: _open_with(xr.open_dataset, path)}


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
        for name, details in sorted(details_below(folder).items()):
            yield f"{slash}{name}", details["size"], version_in(details).tag
        return
    for top, folders, names in walk(folder):
        folders.sort()
        for path in (top / name for name in sorted(names)):
            status = path.stat()
            yield path.relative_to(folder).as_posix(), status.st_size, str(status.st_mtime_ns)


# what stored values mean -------------------------------------------------------------------------


@dataclass(frozen=True)
class Meaning:
    """What stored values mean, and as what they are given: of which type, and with which gaps.

    `encoding` is `scale_factor` and `add_offset` of integers that are given as stored, `decoding`
    the attributes by which others are decoded to floats; `fills` become NaN in stored floats.
    """

    dtype: np.dtype[Any]
    gaps: Gaps = NO_GAPS
    encoding: Mapping[str, float] = field(default_factory=dict)
    decoding: Mapping[str, Any] = field(default_factory=dict)
    fills: tuple[Any, ...] = ()

    def apply(self, values: Array) -> Array:
        """Return stored values as they are given."""
        if self.decoding:
            outside = Gaps((), self.gaps.lowest, self.gaps.highest).find(values)
            floats = decoded(values, self.decoding)
            return floats if outside is None else np.where(outside, np.nan, floats)
        if self.dtype != values.dtype and self.dtype.kind == "u" and values.dtype.kind == "i":
            return values.view(self.dtype.newbyteorder(values.dtype.byteorder))
        for fill in self.fills:
            values = np.where(values == fill, np.nan, values).astype(values.dtype)
        return values


def decoded(values: Array, attributes: Mapping[str, Any]) -> Array:
    """Return packed values as xarray decodes them: floats, NaN where a value is missing."""
    packed = xr.Dataset({"values": ([f"d{n}" for n in range(values.ndim)], values, attributes)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # several fill values are no fault
        return xr.decode_cf(packed, decode_times=False)["values"].values


def meaning_of(title: str, name: str, variable: xr.Variable, is_zarr_2: bool) -> Meaning:
    """Find out what the stored values of a variable of images mean.

    `variable` is not decoded; or decoded, then its attributes say no more. Where it `is_zarr_2`, a
    fill value of 0 says nothing, since the format gives it to all arrays. `title` and `name` are
    for messages.
    """
    attributes = dict(variable.attrs)
    stored = variable.dtype
    if is_zarr_2 and stored.kind in "iu" and attributes.get("_FillValue") == 0:
        del attributes["_FillValue"]
    packed = {key for key in _ENCODING if key in attributes}
    if packed and stored.kind == "f":
        raise SourceError(
            f"{title}: {name} holds floats with a {sorted(packed)[-1]}, expected packed integers "
            "or plain floats; decode it with xarray and store it again"
        )
    if stored.kind == "i" and attributes.get("_Unsigned") == "true":
        stored = np.dtype(f"u{stored.itemsize}")
    fills = tuple(value for key in FILLS for value in _values(attributes, key, stored))
    gaps = _gaps(name, attributes, stored, fills)
    if stored.kind == "f":
        return Meaning(stored, gaps, fills=fills)
    if pixel_type(stored) is None and stored.kind in "iu" and (packed or fills):
        kept = {k: v for k, v in attributes.items() if k in (*FILLS, *_ENCODING, "_Unsigned")}
        return Meaning(decoded(np.zeros(1, variable.dtype), kept).dtype, gaps, decoding=kept)
    encoding = {k: float(attributes.get(k, usual)) for k, usual in _ENCODING.items()}
    return Meaning(stored, gaps, encoding if packed else {})


def _values(attributes: Mapping[str, Any], key: str, stored: np.dtype[Any]) -> list[Any]:
    """Return the values of an attribute as the stored values have them."""
    values = np.ravel(attributes.get(key, ()))
    if stored.kind == "u" and values.dtype.kind == "i" and values.size and values.min() < 0:
        values = values.astype(f"i{stored.itemsize}").view(stored)  # as `_Unsigned` has it
    return list(values.tolist())


def _gaps(
    name: str, attributes: Mapping[str, Any], stored: np.dtype[Any], fills: tuple[Any, ...]
) -> Gaps:
    low, high = [*_values(attributes, "valid_range", stored), None, None][:2]
    low = next(iter(_values(attributes, "valid_min", stored)), low)
    high = next(iter(_values(attributes, "valid_max", stored)), high)
    given = {k: np.ravel(attributes[k]).tolist() for k in (*FILLS, *_VALID) if k in attributes}
    keys = {k: values for k, values in given.items() if any(v == v for v in values)}  # no NaN
    if not keys:
        return NO_GAPS
    listed = ", ".join(f"{key} {values}" for key, values in keys.items())
    deleted = ", ".join(f"ds['{name}'].attrs['{key}']" for key in keys)
    return Gaps(
        tuple(fill for fill in fills if fill == fill),
        low,
        high,
        f"so say the attributes of {name}, {listed}; if such pixels are none that are missing, "
        f"open the set with xarray and mask_and_scale=False, del {deleted}, and write it again",
    )
