"""The image-set store and the arrays of a run: Zarr v3, one group per split, whole shards.

The only module that knows Zarr. Every chunk carries crc32c, and every chunk is written, also
when it is all zeros, so that a black image and a missing file differ: reading a shard whose
file is gone is an error here, where Zarr alone would return zeros.

Layout of an image set (`xr.open_zarr(path, group="train")` reads it without pixsim):

- attributes of the root and of each group: `class_names`, `full_scale`, `provenance`;
- `SPLIT/image` (sample, y, x[, channel]) uint8 or uint16, sharded; `SPLIT/label` (sample)
  int32, one chunk a shard; `SPLIT/y`, `SPLIT/x`, `SPLIT/channel`, pixel positions;
- `samples.parquet` and `manifest.json` beside the groups.

The sample index is the position along `sample` and is not stored: as a coordinate it would be
read whole at every opening, one file per shard. `open_images` adds it. Class and metric names
of results are stored as Zarr's variable-length strings, a handful of values in one chunk; per
sample there are codes only.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.core.sync import sync

from pipeline.errors import DamagedError, SchemaError, StoreError
from pipeline.files import storage_errors
from pipeline.manifest import IMAGES, read_manifest
from pipeline.partitions import CHUNK_BYTES, Layout
from pipeline.schema import (
    CHANNEL,
    CLASS,
    CLASS_CODE,
    COUNT,
    DENOMINATOR,
    DISTANCE,
    IMAGE,
    LABEL,
    METRIC,
    NUMERATOR,
    PIXEL_DIMS,
    PROTOTYPE,
    SAMPLE,
)

PROTOTYPES = "prototypes.zarr"
DISTANCES = "distances.zarr"

_COMPRESSED = (ZstdCodec(level=1), Crc32cCodec())
_CHECKED = (Crc32cCodec(),)  # distances are nearly incompressible
_WRITE_ALL = cast(Any, {"write_empty_chunks": True})


@dataclass(frozen=True)
class SplitTemplate:
    """What a split of a store will hold: `count` images of `shape` and `dtype`."""

    count: int
    shape: tuple[int, ...]
    dtype: str
    layout: Layout

    @property
    def sample_bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


def _check_pixels(name: str, shape: Sequence[int], dtype: str) -> None:
    if dtype not in IMAGE.dtypes or len(shape) not in (2, 3) or 0 in shape:
        raise SchemaError(
            f"{name}: images of shape {tuple(shape)} and dtype {dtype}; expected (y, x) or "
            f"(y, x, channel), no side of them 0, in {' or '.join(IMAGE.dtypes)}"
        )


def _create(group: zarr.Group, name: str, dims: Sequence[str], **settings: Any) -> None:
    """Create an array unless a run that was cut short already did."""
    if name not in group:
        settings.setdefault("compressors", _COMPRESSED)
        group.create_array(name, dimension_names=tuple(dims), config=_WRITE_ALL, **settings)


def _create_filled(
    group: zarr.Group, name: str, dims: Sequence[str], values: Any, **attributes: Any
) -> None:
    array = np.asarray(values)
    dtype: Any = str if array.dtype.kind in "UO" else array.dtype
    _create(
        group, name, dims, shape=array.shape, chunks=tuple(max(1, n) for n in array.shape),
        dtype=dtype, attributes=attributes,
    )  # fmt: skip
    cast(zarr.Array[Any], group[name]).with_config(_WRITE_ALL)[...] = (
        array.astype(object) if dtype is str else array
    )


def create_images(
    path: Path, attributes: Mapping[str, Any], splits: Mapping[str, SplitTemplate]
) -> None:
    """Create the empty arrays of an image set; what exists already is kept."""
    for name, template in splits.items():
        _check_pixels(name, template.shape, template.dtype)
    with storage_errors(path):
        root = zarr.open_group(path, mode="a", zarr_format=3)
        root.attrs.update(dict(attributes))
        for name, template in splits.items():
            group = root.require_group(name)
            group.attrs.update(dict(attributes))
            chunk, shard = template.layout.chunk, template.layout.shard
            dims = IMAGE.dims if len(template.shape) == 2 else (*IMAGE.dims, CHANNEL)
            _create(
                group, IMAGE.name, dims, shape=(template.count, *template.shape),
                dtype=template.dtype, chunks=(chunk, *template.shape),
                shards=(shard, *template.shape), fill_value=0,
                attributes=IMAGE.attributes | {"coordinates": LABEL.name},
            )  # fmt: skip
            _create(
                group, LABEL.name, LABEL.dims, shape=(template.count,), dtype="int32",
                chunks=(shard,), fill_value=-1, attributes=LABEL.attributes,
            )  # fmt: skip
            for dim, size in zip(dims[1:], template.shape, strict=True):
                _create_filled(group, dim, (dim,), np.arange(size, dtype=np.int32))


def write_images(
    path: Path, split: str, start: int, images: npt.NDArray[Any], labels: npt.NDArray[np.int32]
) -> None:
    """Write one whole shard: images `start` to `start + len(images)` of a split."""
    group = zarr.open_group(path, mode="r+", path=split, use_consolidated=False)
    for name, values in ((IMAGE.name, images), (LABEL.name, labels)):
        _write_shard(cast(zarr.Array[Any], group[name]), 0, start, values)


def _write_shard(array: zarr.Array[Any], axis: int, start: int, values: npt.NDArray[Any]) -> None:
    """Write `values` at `start` along `axis`: exactly one shard, or it is refused."""
    shard = (array.shards or array.chunks)[axis]
    stop = start + values.shape[axis]
    if start % shard or stop != min(start + shard, array.shape[axis]):
        raise StoreError(
            f"{array.store_path}: samples {start} to {stop} are not one whole shard of {shard}; "
            "two tasks would write to one file"
        )
    with storage_errors(str(array.store_path)):
        # Zarr reads an existing shard before it writes the last, shorter one over it; a torn
        # shard of an earlier try must not stop the new one
        key = _chunk_key(array, axis, start // shard)
        sync((array.store_path / key).delete())
        # the setting does not live in the store: a reopened array would leave out black chunks
        array.with_config(_WRITE_ALL)[(slice(None),) * axis + (slice(start, stop),)] = values


def _chunk_key(array: zarr.Array[Any], axis: int, number: int) -> str:
    """Return the file name of shard `number` along the only axis that is cut."""
    numbers = [0] * array.ndim
    numbers[axis] = number
    return array.metadata.encode_chunk_key(tuple(numbers))


def consolidate(path: Path) -> None:
    """Gather the metadata of the store and of each split in one file each.

    Opening then lists no folder, which matters on object stores, and reads what was meant.
    """
    with storage_errors(path), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Consolidated metadata", category=UserWarning)
        warnings.filterwarnings("ignore", ".*is not recognized as a component")
        for group in [*zarr.open_group(path, mode="r").group_keys(), ""]:
            zarr.consolidate_metadata(str(path), path=group or None, zarr_format=3)


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
    """

    path: Path
    name: str
    axis: int = 0

    @cached_property
    def _array(self) -> zarr.Array[Any]:
        try:
            return zarr.open_array(self.path, path=self.name, mode="r", zarr_format=3)
        except FileNotFoundError as error:
            raise StoreError(f"{self.path}: holds no array '{self.name}'") from error
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedError(f"{self.path}/{self.name}: cannot be opened ({error})") from error

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "name": self.name, "axis": self.axis}

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
    def shard(self) -> int:
        """Samples a shard."""
        return (self._array.shards or self._array.chunks)[self.axis]

    def __getitem__(self, key: Any) -> npt.NDArray[Any]:
        keys = key if isinstance(key, tuple) else (key,)
        if len(keys) > self.axis:
            self._check_files(keys[self.axis])
        try:
            return np.asarray(self._array[key])
        except (ValueError, RuntimeError) as error:
            raise DamagedError(
                f"{self.path}/{self.name}: a chunk cannot be read ({error}); "
                f"it was changed after it was written: remove {self.path} and run the command "
                "that made it"
            ) from error

    def samples(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Read samples `start` to `stop`."""
        return self[(slice(None),) * self.axis + (slice(start, stop),)]

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
            if not sync(place.exists()) or not sync(place.store.getsize(place.path)):
                raise DamagedError(
                    f"{self.path}/{self.name}/{name}: this shard is missing; remove {self.path} "
                    "and run the command that made it"
                )


def read_images(
    path: Path, split: str, start: int, stop: int
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int32]]:
    """Read images `start` to `stop` of a split and their labels."""
    return (
        StoreArray(path, f"{split}/{IMAGE.name}").samples(start, stop),
        StoreArray(path, f"{split}/{LABEL.name}").samples(start, stop),
    )


def open_images(store: Path | str, split: str = "train") -> xr.Dataset:
    """Open one split of an image set as lazy labelled arrays, a dask chunk per shard.

    Parameters
    ----------
    store
        The folder of the image set.
    split
        The name of the split.

    Returns
    -------
    A dataset with `image` (sample, y, x[, channel]) and the coordinates `label` (sample), the
    code into the attribute `class_names`, `sample`, `y`, `x` and `channel`. Nothing but
    metadata is read.

    Raises
    ------
    StoreError
        Where the folder is no image set, is incomplete, or has no such split.
    """
    path = Path(store)
    manifest = read_manifest(path, IMAGES)
    require_split(manifest, split, path)
    group = zarr.open_group(path, mode="r", path=split)
    variables: dict[str, xr.Variable] = {}
    for name in (IMAGE.name, LABEL.name):
        source = StoreArray(path, f"{split}/{name}")
        chunks = (source.shard, *source.shape[1:])
        token = f"{name}-{manifest['digest']}-{split}-{path.absolute()}"
        lazy = da.from_array(source, chunks=chunks, name=token, meta=np.empty(0, source.dtype))
        node = cast(zarr.Array[Any], group[name])
        dims = cast(Any, node.metadata).dimension_names
        attributes = {k: v for k, v in node.attrs.items() if k != "coordinates"}
        variables[name] = xr.Variable(dims, lazy, attributes)
    image = variables[IMAGE.name]
    coordinates: dict[str, Any] = {LABEL.name: variables[LABEL.name]}
    coordinates[SAMPLE] = (SAMPLE, np.arange(image.sizes[SAMPLE]), {"long_name": "sample index"})
    for dim in image.dims[1:]:
        coordinates[str(dim)] = (dim, np.arange(image.sizes[dim], dtype=np.int32))
    return xr.Dataset({IMAGE.name: image}, coordinates, dict(group.attrs))


def require_split(manifest: Mapping[str, Any], split: str, path: Path) -> dict[str, Any]:
    """Return what the manifest says of a split, or raise `StoreError` with those there are."""
    try:
        return dict(manifest["splits"][split])
    except KeyError:
        known = ", ".join(manifest["splits"])
        raise StoreError(f"{path}: has no split '{split}', expected one of {known}") from None


def write_prototypes(path: Path, prototypes: xr.Dataset) -> None:
    """Write prototypes (in memory) as `prototypes.zarr`; see `open_prototypes`."""
    with storage_errors(path):
        root = zarr.open_group(path, mode="w", zarr_format=3)
        root.attrs.update(prototypes.attrs)
        dims = prototypes[NUMERATOR.name].dims
        names = (NUMERATOR.name, DENOMINATOR.name, PROTOTYPE.name, COUNT.name, CLASS_CODE.name)
        for name in (*names, *(str(dim) for dim in dims)):
            variable = prototypes[name]
            attributes = dict(variable.attrs)
            if CLASS in variable.dims and name not in (CLASS, COUNT.name, CLASS_CODE.name):
                attributes["coordinates"] = f"{COUNT.name} {CLASS_CODE.name}"
            dims_of = [str(dim) for dim in variable.dims]
            _create_filled(root, name, dims_of, variable.values, **attributes)
    consolidate(path)


def open_prototypes(path: Path) -> xr.Dataset:
    """Open `prototypes.zarr` lazily, as `prototypes` made it."""
    found = xr.open_zarr(path, chunks={}, zarr_format=3)
    return _with_names(found, CLASS)


def _with_names(dataset: xr.Dataset, *dims: str) -> xr.Dataset:
    """Load the small coordinates that name things, as NumPy's fixed-width text."""
    names = {dim: [str(name) for name in dataset[dim].values] for dim in dims}
    return dataset.assign_coords(names | {CLASS_CODE.name: dataset[CLASS_CODE.name].load()})


def create_distances(
    path: Path,
    metrics: Sequence[str],
    class_names: Sequence[str],
    class_codes: npt.NDArray[np.int32],
    total: int,
    step: int,
    splits: Sequence[str],
) -> None:
    """Create the empty `distances.zarr` of a run; shards of `step` samples."""
    classes = len(class_names)
    inner = max(1, min(step, CHUNK_BYTES // (8 * classes)))
    while step % inner:
        inner -= 1
    with storage_errors(path):
        root = zarr.open_group(path, mode="a", zarr_format=3)
        _create(
            root, DISTANCE.name, DISTANCE.dims, shape=(len(metrics), total, classes),
            dtype="float64", chunks=(1, inner, classes), shards=(len(metrics), step, classes),
            fill_value=np.nan, compressors=_CHECKED,
            attributes=DISTANCE.attributes | {"coordinates": f"label split {CLASS_CODE.name}"},
        )  # fmt: skip
        meanings = {"flag_values": list(range(len(splits))), "flag_meanings": " ".join(splits)}
        per_sample = {
            SAMPLE: ("int64", {"long_name": "sample index in its split"}),
            LABEL.name: ("int32", LABEL.attributes),
            "split": ("int32", {"long_name": "code of the split"} | meanings),
        }
        for name, (dtype, attributes) in per_sample.items():
            _create(
                root, name, (SAMPLE,), shape=(total,), chunks=(step,), dtype=dtype,
                fill_value=-1, attributes=attributes,
            )  # fmt: skip
        _create_filled(root, METRIC, (METRIC,), list(metrics))
        _create_filled(root, CLASS, (CLASS,), list(class_names))
        _create_filled(
            root, CLASS_CODE.name, (CLASS,), class_codes.astype(np.int32), **CLASS_CODE.attributes
        )


def write_distances(path: Path, start: int, columns: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write one whole shard of `distances.zarr`: distance, sample, label and split."""
    root = zarr.open_group(path, mode="r+", use_consolidated=False)
    for name, values in columns.items():
        _write_shard(cast(zarr.Array[Any], root[name]), _sample_axis(name), start, values)


def read_distances(path: Path, start: int, stop: int) -> dict[str, npt.NDArray[Any]]:
    """Read one shard of `distances.zarr` back.

    Raises
    ------
    DamagedError
        Where it is missing or does not pass its checksum.
    """
    names = (DISTANCE.name, SAMPLE, LABEL.name, "split")
    try:
        return {
            name: StoreArray(path, name, _sample_axis(name)).samples(start, stop) for name in names
        }
    except OSError as error:
        raise DamagedError(f"{path}: samples {start} to {stop} cannot be read ({error})") from error


def _sample_axis(name: str) -> int:
    return 1 if name == DISTANCE.name else 0


def open_distances(path: Path) -> xr.Dataset:
    """Open `distances.zarr` lazily, a dask chunk per shard."""
    with_shards = zarr.open_array(path, path=DISTANCE.name, mode="r")
    step = (with_shards.shards or with_shards.chunks)[1]
    found = xr.open_zarr(path, chunks={SAMPLE: step, METRIC: -1, CLASS: -1}, zarr_format=3)
    return _with_names(found, METRIC, CLASS)


def pixel_dims(shape: Sequence[int]) -> tuple[str, ...]:
    """Return the dimension names of one image of `shape`."""
    return PIXEL_DIMS if len(shape) == 2 else (*PIXEL_DIMS, CHANNEL)
