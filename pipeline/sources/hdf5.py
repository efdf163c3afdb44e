"""Arrays in HDF5 files whose dimensions have no names, as h5py, Keras and MATLAB write them.

They are called by their paths in the file, such as `train/images`, and read in ranges. Only what
lies in the file itself is read: it may point at other files of this machine.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.core.errors import ConfigError, SourceError, one_line
from pipeline.core.paths import is_remote, shown
from pipeline.sources.array_files import FileArray
from pipeline.sources.fetch import failed, reading
from pipeline.sources.open_cache import OpenCache, described, unchanged
from pipeline.storage.blobs import open_binary, version_of

SUFFIXES = (".h5", ".hdf5", ".hdf", ".he5", ".h5py")
_OF_NETCDF = ("_NCProperties", "DIMENSION_LIST", "REFERENCE_LIST", "DIMENSION_LABELS")
_MOST_UNPACKED = 2**16  # values for each byte that is stored
_MOST_OPEN = 16


def _error(path: Path, error: Exception) -> SourceError:
    if isinstance(error, FileNotFoundError):
        return failed(path, error)
    return SourceError(
        f"{shown(path)}: cannot be read as HDF5 ({one_line(error)}); correct the name, or fetch it "
        "again"
    )


_reading = partial(reading, error_of=_error)


def _open(path: Path) -> Any:
    try:
        h5py = importlib.import_module("h5py")
    except ImportError:
        raise ConfigError(
            f"{shown(path)}: HDF5 files need the package h5py; install it with pip install "
            "'pixsim[hdf5]'"
        ) from None
    return h5py.File(open_binary(path) if is_remote(path) else path, "r")


_opened: OpenCache[Path, Any] = OpenCache(lambda file: file.close(), _MOST_OPEN)


def has_dimensions(path: Path) -> bool:
    """Tell whether the dimensions of an HDF5 file have names, so that xarray reads it."""
    with _reading(path), _open(path) as file:
        named = [name for name in _OF_NETCDF if name in file.attrs]
        file.visititems(lambda _, item: named.extend(n for n in _OF_NETCDF if n in item.attrs))
        return bool(named)


class StoredDataset(FileArray):
    """An array in an HDF5 file."""

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Read entries `start` to `stop` of the first dimension."""
        with unchanged(self.path, self.stamp) as version, _reading(self.path):
            file = _opened.get(self.path, partial(_open, self.path), version)
            return np.asarray(file[self.member][start:stop]).reshape(stop - start, *self.shape[1:])

    def close(self) -> None:
        """Close its file in this process."""
        _opened.close(lambda path: path == self.path)


class Hdf5Archive:
    """An HDF5 file while its arrays are opened; `names` are their paths, `others` what is none."""

    others: tuple[str, ...] = ()

    def __init__(self, path: Path, file: Any) -> None:
        self.path, self._file = path, file
        self.names: list[str] = []
        file.visititems(lambda name, item: self.names.extend([name] * hasattr(item, "dtype")))

    def open(self, name: str) -> StoredDataset:
        """Open one array by its header."""
        item, title = self._file[name], f"{self.path.name}/{name}"
        text = (item.dtype.metadata or {}).get("vlen") in (str, bytes)
        if item.dtype.kind not in "biufSU" and not text:
            raise SourceError(f"{title}: holds {item.dtype}, expected numbers or text")
        if item.external or item.is_virtual:
            raise SourceError(f"{title}: lies in another file, expected an array in this one")
        size, stored = math.prod(item.shape) * item.dtype.itemsize, item.id.get_storage_size()
        if size > stored * _MOST_UNPACKED:
            raise SourceError(
                f"{title}: holds {stored:,} bytes, but its header announces {item.dtype} of shape "
                f"{item.shape}; it was never written, or is damaged: fetch it again"
            )
        now = version_of(self.path)
        identity = described(self.path, now, name)
        dtype = np.dtype(object) if text else np.dtype(item.dtype.str)
        return StoredDataset(self.path, name, tuple(item.shape), dtype, identity, now.stamp)

    def check(self, name: str) -> None:
        """Check nothing: HDF5 compares the checksums that it has whenever it reads."""


@contextmanager
def open_hdf5(path: Path) -> Iterator[Hdf5Archive]:
    """Open an HDF5 file; whatever fails while it is open is a `SourceError` that names it."""
    with _reading(path), _open(path) as file:
        yield Hdf5Archive(path, file)


def open_only(path: Path) -> StoredDataset:
    """Open the only array of an HDF5 file."""
    with open_hdf5(path) as file:
        return file.open(file.names[0])
