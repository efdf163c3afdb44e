"""Labelled arrays in chunked files: Zarr v3, whole shards, every chunk checked.

The only module that knows Zarr, beside `objects`, which lets it write to remote places. It adds
what Zarr leaves to its users:

- every chunk carries crc32c, and every chunk is written, also when it holds nothing but the
  fill value, so that a black image and a missing file differ;
- a write is one whole shard or is refused, so no two tasks write to one file;
- reading a shard whose file is missing or empty is an error, where Zarr fills in zeros;
- images are read without Zarr, several times as fast: see `shards`.

Names (of classes and metrics) are Zarr's variable-length strings, a handful in one chunk, which
both Zarr 3.1 and later read and write without complaint; per sample there are codes only.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.core.sync import sync
from zarr.storage import MemoryStore, StorePath

from pipeline.core.errors import DamagedError, OtherFileError, StoreError
from pipeline.core.partitions import CHUNK_BYTES
from pipeline.core.paths import ABSENT, is_remote
from pipeline.storage import shards
from pipeline.storage.atomic import read_json, storage_errors
from pipeline.storage.folders import is_folder, remove_file, remove_tree
from pipeline.storage.zarr_stores import FolderStore, PlaceStore

_CHECKSUM = Crc32cCodec()
# Not kept in the store: a reopened array needs it again.
_WRITE_ALL = cast(Any, {"write_empty_chunks": True})


def _zarr(path: Path) -> Any:
    """Return what Zarr opens as the store of a path."""
    if is_remote(path):
        return PlaceStore(path)
    # of a folder that is not there Zarr says so itself
    return FolderStore(path) if is_folder(path) else path


def create_group(path: Path, attributes: Mapping[str, Any], group: str = "") -> None:
    """Create a group, or set the attributes of one that is there."""
    with storage_errors(path):
        _drop_torn(path / "zarr.json")
        if group:
            _drop_torn(path / group / "zarr.json")
        root = zarr.open_group(_zarr(path), mode="a", zarr_format=3, use_consolidated=False)
        place = root.require_group(group) if group else root
        place.attrs.update(dict(attributes))


def _drop_torn(document: Path) -> None:
    """Remove the metadata of a group that a power cut left without content."""
    try:
        read_json(document)
    except ValueError:
        remove_file(document)
    except (FileNotFoundError, NotADirectoryError):
        pass


def create_array(
    path: Path,
    name: str,
    dims: Sequence[str],
    shape: tuple[int, ...],
    dtype: Any,
    chunks: tuple[int, ...],
    shards: tuple[int, ...] | None = None,
    fill_value: Any = 0,
    attributes: Mapping[str, Any] | None = None,
    compressed: bool = True,
) -> zarr.Array[Any]:
    """Create an empty array, unless a run that was cut short already did; return it.

    One that differs in anything that its metadata says (shape, dtype, chunks, shards, codecs, fill
    value, names of dimensions, attributes), or that cannot be opened, is of a plan that was changed
    since, or of a machine that failed, and removed.
    """
    wanted = {
        "shape": shape,
        "dtype": dtype,
        "chunks": tuple(max(1, size) for size in chunks),
        "shards": shards,
        "fill_value": fill_value,
        "compressors": (_codec(dtype), _CHECKSUM) if compressed else (_CHECKSUM,),
        "dimension_names": tuple(dims),
        "attributes": dict(attributes or {}),
    }
    with storage_errors(path):
        root = zarr.open_group(_zarr(path), mode="r+", zarr_format=3, use_consolidated=False)
        found = _find(path, name)
        if found is not None:
            blank = zarr.create_array(MemoryStore(), zarr_format=3, **wanted)
            if _metadata(found) == _metadata(blank):
                return found
        remove_tree(path / name)
        return root.create_array(name, **wanted)


def _find(path: Path, name: str) -> zarr.Array[Any] | None:
    """Return an array, where there is one that can be opened."""
    try:
        return _open(path, name, "r+")
    except (StoreError, DamagedError):
        return None


def _metadata(array: zarr.Array[Any]) -> Any:
    """Return all that an array says of itself, in plain values that can be compared."""
    return json.loads(json.dumps(array.metadata.to_dict()))


def _codec(dtype: Any) -> BloscCodec:
    """Return the codec of an array; see `partitions` for what decided."""
    wide = dtype is not str and np.dtype(dtype).itemsize > 1
    return BloscCodec(cname="lz4", clevel=5, shuffle="shuffle" if wide else "noshuffle")


def write_array(
    path: Path, name: str, dims: Sequence[str], values: Any, attributes: Mapping[str, Any]
) -> None:
    """Write an array that is in memory, numbers or names, in chunks along its first axis."""
    array = np.asarray(values)
    names = array.dtype.kind in "UOT"
    dtype: Any = str if names else array.dtype
    fill: Any = "" if names else 0
    rows = len(array) if names else _rows_a_chunk(array)
    chunks = (rows, *array.shape[1:])
    target = create_array(path, name, dims, array.shape, dtype, chunks, None, fill, attributes)
    if names:
        array = array.astype(object)
    for start in range(0, len(array), max(rows, 1)):
        part = slice(start, start + rows)
        _write(target, (part,), array[part])


def _rows_a_chunk(array: npt.NDArray[Any]) -> int:
    """Return how many steps along the first axis make a chunk of moderate size."""
    return max(1, min(len(array), 4 * CHUNK_BYTES // max(array[:1].nbytes, 1)))


def write_shard(
    path: Path,
    name: str,
    axis: int,
    start: int,
    values: npt.NDArray[Any],
    total: int | None = None,
) -> str:
    """Write `values` at `start` along `axis`: exactly one shard, or it is refused.

    Parameters
    ----------
    path, name
        The folder of the store, and the array in it.
    axis, start
        The axis of samples, and the first sample.
    values
        The shard.
    total
        How many samples the array will have, where it is about to grow; see `grow_array`.

    Returns
    -------
    The fingerprint of the file; see `shards.fingerprint`.

    Raises
    ------
    StoreError
        Where it is less or more than one shard, or not of the array's dtype: nothing is cast.
    StorageFullError
        Where the disk is full.
    """
    rows = _find_rows(path, name, total) if axis == 0 else None
    if rows is not None:
        _check_whole_shard(path, name, start, len(values), rows.shard, rows.shape[0])
        return rows.write(start // rows.shard, values)
    array = _open(path, name, "r+")
    shard = (array.shards or array.chunks)[axis]
    _check_whole_shard(path, name, start, values.shape[axis], shard, array.shape[axis])
    place = (slice(None),) * axis + (slice(start, start + values.shape[axis]),)
    shards.refuse_others(path / name, array.dtype, array.shape, axis, values)
    # Zarr reads an existing shard before it writes the last, shorter one over it; a torn shard
    # of an earlier try must not stop the new one
    key = _chunk_key(array, axis, start // shard)
    with storage_errors(path):
        if sync((array.store_path / key).exists()):
            sync((array.store_path / key).delete())
    _write(array, place, values)
    return StoreArray(path, name, axis).fingerprint(start // shard)


def _check_whole_shard(
    path: Path, name: str, start: int, count: int, shard: int, total: int
) -> None:
    if start % shard or start + count != min(start + shard, total):
        raise StoreError(
            f"{path}/{name}: samples {start} to {start + count} are not one whole shard of "
            f"{shard}; two tasks would write to one file"
        )


def grow_array(path: Path, name: str, total: int) -> None:
    """Make an array longer along its first axis; the shards beyond its end are there already."""
    with storage_errors(path):
        array = _open(path, name, "r+")
        array.resize((total, *array.shape[1:]))


def _find_rows(path: Path, name: str, total: int | None = None) -> shards.Rows | None:
    """Return how to read and write an array without Zarr, or None where that is left to it.

    `total` is its length, where it is about to grow. What cannot be read is an error and not left
    to Zarr, which would write other bytes, and knows nothing of `total`.
    """
    try:
        metadata = read_json(path / name / "zarr.json")
    except (*ABSENT, ValueError):
        return None  # Zarr says what is wrong
    if total is not None:
        metadata["shape"][0] = total
    return shards.find_rows(path / name, metadata)


def _open(path: Path, name: str, mode: Any = "r") -> zarr.Array[Any]:
    try:
        with storage_errors(path):
            return zarr.open_array(_zarr(path), path=name, mode=mode, zarr_format=3)
    except FileNotFoundError as error:
        raise StoreError(f"{path}: holds no array '{name}'") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{path}/{name}: cannot be opened ({error})") from error


def _write(array: zarr.Array[Any], place: Any, values: npt.NDArray[Any]) -> None:
    with storage_errors(str(array.store_path)):
        array.with_config(_WRITE_ALL)[place] = values


def _chunk_key(array: zarr.Array[Any], axis: int, number: int) -> str:
    """Return the file name of shard `number` along the only axis that is cut."""
    numbers = [0] * array.ndim
    numbers[axis] = number
    return array.metadata.encode_chunk_key(tuple(numbers))


def consolidate(path: Path) -> None:
    """Gather the metadata of the store and of each group in one file each.

    Opening then lists no folder, which matters on object stores.
    """
    with storage_errors(path), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Consolidated metadata", category=UserWarning)
        warnings.filterwarnings("ignore", ".*is not recognized as a component")
        root = zarr.open_group(_zarr(path), mode="r", use_consolidated=False)
        for group in [*root.group_keys(), ""]:
            zarr.consolidate_metadata(_zarr(path), path=group or None, zarr_format=3)


@dataclass(frozen=True)
class StoreArray:
    """An array of a store, opened when first read; small enough to travel in every task.

    Reading a part whose file is missing or empty, or whose checksum is wrong, is an error.

    Attributes
    ----------
    path
        The folder of the store.
    name
        The array in it.
    axis
        The axis of samples, the only one that is cut into shards.
    expected
        The fingerprints of its files, in order along the axis, as they were written; an empty one,
        or none at all, is not checked.
    metadata
        What its `zarr.json` should say, where that file is damaged.
    """

    path: Path
    name: str
    axis: int = 0
    expected: tuple[str, ...] = ()
    metadata: Mapping[str, Any] | None = None

    @cached_property
    def _array(self) -> zarr.Array[Any]:
        if self.metadata is None:
            return _open(self.path, self.name)
        files = PlaceStore(self.path) if is_remote(self.path) else FolderStore(self.path)
        return zarr.Array.from_dict(StorePath(files, self.name), dict(self.metadata))

    def __getstate__(self) -> dict[str, Any]:
        fields = ("path", "name", "axis", "expected", "metadata")
        return {field: getattr(self, field) for field in fields}

    @property
    def shape(self) -> tuple[int, ...]:
        return self._array.shape

    @property
    def ndim(self) -> int:
        return self._array.ndim

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._array.dtype

    @property
    def dims(self) -> tuple[str, ...]:
        return tuple(cast(Any, self._array.metadata).dimension_names)

    @property
    def attributes(self) -> dict[str, Any]:
        """What the array says of itself, less what tells xarray which coordinates it has."""
        return {k: v for k, v in self._array.attrs.items() if k != "coordinates"}

    @property
    def shard(self) -> int:
        """Samples a shard."""
        return (self._array.shards or self._array.chunks)[self.axis]

    @cached_property
    def _rows(self) -> shards.Rows | None:
        if self.metadata is not None:
            return shards.find_rows(self.path / self.name, self.metadata)
        return _find_rows(self.path, self.name)

    def __getitem__(self, key: Any) -> npt.NDArray[Any]:
        keys = key if isinstance(key, tuple) else (key,)
        try:
            rows = self._rows
            if rows is not None and _is_rows(keys, rows.shape):
                start, stop, _ = keys[0].indices(rows.shape[0])
                found: dict[int, str] | None = {} if self.expected else None
                values = rows.read(start, max(start, stop), found)
                for number, mark in (found or {}).items():
                    self._require(number, mark)
                return values
            if Ellipsis in keys or len(keys) <= self.axis:
                self._check_files(slice(None))
            else:
                self._check_files(keys[self.axis])
            with storage_errors(self.path):
                return np.asarray(self._array[key])
        except DamagedError as error:
            raise type(error)(f"{error}; {self._cure}") from error
        except (ValueError, RuntimeError) as error:
            raise DamagedError(
                f"{self.path}/{self.name}: a chunk cannot be read ({error}); {self._cure}"
            ) from error

    @property
    def _cure(self) -> str:
        return "it was changed after it was written: 'pixsim verify' with --repair makes it again"

    def samples(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Read samples `start` to `stop`."""
        return self[(slice(None),) * self.axis + (slice(start, stop),)]

    @property
    def files(self) -> int:
        """How many files hold the array."""
        return -(-self.shape[self.axis] // self.shard) if self.ndim else 1

    def file(self, number: int) -> str:
        """Return the path of a file of the array, below the folder of the store."""
        return f"{self.name}/{_chunk_key(self._array, self.axis, number)}"

    def fingerprint(self, number: int) -> str:
        """Return the fingerprint of a file as it is now; see `shards.fingerprint`.

        Raises
        ------
        DamagedError
            Where it is missing or cannot be read.
        """
        array = self._array
        shapes = zip(array.shards or (), array.chunks, strict=False)
        entries = math.prod(outer // inner for outer, inner in shapes) if array.shards else 0
        return shards.fingerprint(self.path / self.file(number), entries)

    def _require(self, number: int, found: str) -> None:
        """Raise where a file has another fingerprint than expected."""
        wanted = self.expected[number] if number < len(self.expected) else ""
        if wanted and found != wanted:
            raise OtherFileError(
                f"{self.path}/{self.file(number)}: is not the file that was written there "
                f"(its fingerprint is {found}, recorded was {wanted})"
            )

    def lazy(self, token: str) -> xr.Variable:
        """Return the array as a lazy labelled variable, a dask chunk per shard.

        Parameters
        ----------
        token
            Names the content: equal tokens must mean equal values.
        """
        chunks = list(self.shape)
        chunks[self.axis] = self.shard
        name = f"{self.name}-{token}-{self.path}"
        meta = np.empty((0,) * self.ndim, self.dtype)
        values = da.from_array(self, chunks=tuple(chunks), name=name, meta=meta)
        return xr.Variable(self.dims, values, self.attributes)

    def small(self) -> xr.Variable:
        """Return the array read whole; names as NumPy's fixed-width text."""
        values = self[(slice(None),) * self.ndim]
        if values.dtype.kind in "OT":
            values = np.array([str(name) for name in values], dtype=str)
        return xr.Variable(self.dims, values, self.attributes)

    def _check_files(self, key: Any) -> None:
        """Raise where a shard that `key` touches has no bytes; Zarr would fill it in silently."""
        array, length = self._array, self.shape[self.axis]
        if isinstance(key, slice):
            touched = range(length)[key]
            ends = sorted((touched[0], touched[-1])) if touched else (0, -1)
            numbers = list(range(ends[0] // self.shard, ends[1] // self.shard + 1))
        else:
            index = np.flatnonzero(key) if np.asarray(key).dtype == bool else np.atleast_1d(key)
            numbers = np.unique(np.where(index < 0, index + length, index) // self.shard).tolist()
        for number in numbers:
            name = _chunk_key(array, self.axis, number)
            place = array.store_path / name
            with storage_errors(self.path):
                there = sync(place.exists()) and sync(place.store.getsize(place.path))
            if not there:
                raise DamagedError(f"{self.path}/{self.name}/{name}: this shard is missing")
            if self.expected:
                self._require(number, self.fingerprint(number))


def _is_rows(keys: tuple[Any, ...], shape: tuple[int, ...]) -> bool:
    """Tell whether keys are a range of the first axis and everything of the others."""
    if not keys or not all(isinstance(key, slice) and key.step in (None, 1) for key in keys):
        return False
    whole = zip(keys[1:], shape[1:], strict=False)
    return all(key.indices(size) == (0, size, 1) for key, size in whole)


def gathered_metadata(path: Path, name: str, broken: Container[str]) -> dict[str, Any] | None:
    """Return what the groups above an array have gathered of its metadata; see `consolidate`.

    Parameters
    ----------
    path, name
        The folder of a store, and the array in it.
    broken
        Documents of the store that are damaged, and not read.
    """
    parts = name.split("/")
    for depth in range(len(parts) - 1, -1, -1):
        document = "/".join([*parts[:depth], "zarr.json"])
        if document in broken:
            continue
        try:
            gathered = read_json(path / document)["consolidated_metadata"]["metadata"]
            return dict(gathered["/".join(parts[depth:])])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # a group that has gathered nothing
    return None


@dataclass(frozen=True)
class Inventory:
    """The files of a store.

    Attributes
    ----------
    documents
        The paths of the files that hold metadata.
    arrays
        Array -> the fingerprints of its files, in order.
    """

    documents: list[str]
    arrays: dict[str, list[str]]


def inventory(
    path: Path, known: Mapping[str, Sequence[str]], axes: Mapping[str, int] | None = None
) -> Inventory:
    """List the files of a store whose metadata is consolidated.

    Parameters
    ----------
    path
        The folder of the store.
    known
        Array -> fingerprints that are known already.
    axes
        Array -> the axis that is cut into files, where it is not the first.

    Raises
    ------
    DamagedError
        Where a file is missing or cannot be read.
    """
    with storage_errors(path):
        root = zarr.open_group(_zarr(path), mode="r", zarr_format=3)
        members = sorted(root.members(max_depth=None))
    documents, arrays = ["zarr.json"], {}
    for name, node in members:
        documents.append(f"{name}/zarr.json")
        if isinstance(node, zarr.Array):
            array = StoreArray(path, name, (axes or {}).get(name, 0))
            found = known.get(name)
            arrays[name] = (
                [array.fingerprint(number) for number in range(array.files)]
                if found is None
                else list(found)
            )
    return Inventory(documents, arrays)


def group_attributes(path: Path) -> dict[str, Any]:
    """Return the attributes of the group at the root of a store."""
    return dict(zarr.open_group(_zarr(path), mode="r").attrs)
