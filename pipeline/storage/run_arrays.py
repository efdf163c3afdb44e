"""The arrays of a run: `prototypes.zarr` and `distances.zarr`.

Both open with plain `xr.open_zarr`. Their `class_name` and `metric` coordinates are names;
`class_code` is the code of each class in the image set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from pipeline.core.digests import json_digest
from pipeline.core.errors import DamagedError, RemoteError
from pipeline.core.partitions import CHUNK_BYTES
from pipeline.core.schema import (
    CLASS,
    CLASS_CODE,
    COUNT,
    DENOMINATOR,
    DISTANCE,
    LABEL,
    METRIC,
    NUMERATOR,
    PROTOTYPE,
    SAMPLE,
    SPREAD,
)
from pipeline.storage.folders import remove_tree
from pipeline.storage.inventory import group_attributes
from pipeline.storage.store_array import StoreArray
from pipeline.storage.zarr_arrays import (
    ArrayTemplate,
    consolidate,
    create_array,
    create_group,
    write_array,
    write_shard,
)

PROTOTYPES = "prototypes.zarr"
DISTANCES = "distances.zarr"
SPLIT = "split"

_OF_CLASSES = (NUMERATOR.name, DENOMINATOR.name, PROTOTYPE.name, SPREAD.name)
PER_SAMPLE = (SAMPLE, LABEL.name, SPLIT)
_OF_DISTANCES = (METRIC, CLASS, CLASS_CODE.name, *PER_SAMPLE)

Expected = Mapping[str, tuple[str, ...]]


def write_prototypes(path: Path, prototypes: xr.Dataset) -> None:
    """Write prototypes (in memory) as `prototypes.zarr`; see `open_prototypes`."""
    remove_tree(path)
    create_group(path, prototypes.attrs)
    dims = [str(dim) for dim in prototypes[NUMERATOR.name].dims]
    for name in (*_OF_CLASSES, COUNT.name, CLASS_CODE.name, *dims):
        variable = prototypes[name]
        attributes = dict(variable.attrs)
        if name in _OF_CLASSES:
            attributes["coordinates"] = f"{COUNT.name} {CLASS_CODE.name}"
        write_array(path, name, [str(dim) for dim in variable.dims], variable.values, attributes)
    consolidate(path)


def open_prototypes(path: Path, digest: str, expected: Expected | None = None) -> xr.Dataset:
    """Open `prototypes.zarr` lazily, as `prototypes` made it.

    Parameters
    ----------
    path
        Its folder.
    digest
        The digest of its content; of what is not lazy for long, anything.
    expected
        The fingerprints of the files of each array, where these are to be checked.
    """
    images = {}
    for name in _OF_CLASSES:
        array = _array(path, name, expected)
        # the digest is of the fractions alone, from which deviations do not follow
        images[name] = array.lazy(json_digest([digest, array.expected]))
    dims = [str(dim) for dim in images[NUMERATOR.name].dims]
    small = {
        name: _array(path, name, expected).small() for name in (COUNT.name, CLASS_CODE.name, *dims)
    }
    return xr.Dataset(images, small, group_attributes(path))


def read_fractions(path: Path, digest: str) -> xr.Dataset:
    """Read the exact fractions of `prototypes.zarr`: numerators, denominators and image counts.

    They are read in this process: a cluster may have no worker by now.
    """
    names = (NUMERATOR.name, DENOMINATOR.name, COUNT.name)
    return open_prototypes(path, digest)[list(names)].compute(scheduler="synchronous")


def _array(path: Path, name: str, expected: Expected | None) -> StoreArray:
    return StoreArray(path, name, _sample_axis(name), tuple((expected or {}).get(name, ())))


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
    create_group(path, {})
    template = ArrayTemplate(
        DISTANCE.dims,
        (len(metrics), total, classes),
        "float64",
        chunks=(1, inner, classes),
        shards=(len(metrics), step, classes),
        fill_value=np.nan,
        attributes=DISTANCE.attributes | {"coordinates": f"label split {CLASS_CODE.name}"},
        compressed=False,  # distances are nearly incompressible
    )
    create_array(path, DISTANCE.name, template)
    meanings = {"flag_values": list(range(len(splits))), "flag_meanings": " ".join(splits)}
    attributes: dict[str, Mapping[str, Any]] = {
        SAMPLE: {"long_name": "sample index in its split"},
        LABEL.name: LABEL.attributes,
        SPLIT: {"long_name": "code of the split"} | meanings,
    }
    for name in PER_SAMPLE:
        dtype = "int64" if name == SAMPLE else "int32"
        template = ArrayTemplate((SAMPLE,), (total,), dtype, (step,), None, -1, attributes[name])
        create_array(path, name, template)
    write_array(path, METRIC, (METRIC,), list(metrics), {})
    write_array(path, CLASS, (CLASS,), list(class_names), {})
    write_array(path, CLASS_CODE.name, (CLASS,), class_codes, CLASS_CODE.attributes)


def _sample_axis(name: str) -> int:
    return 1 if name == DISTANCE.name else 0


def write_distances(path: Path, start: int, columns: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write one whole shard of `distances.zarr`: distance, sample, label and split."""
    for name, values in columns.items():
        write_shard(path, name, _sample_axis(name), start, values)


def read_distances(path: Path, start: int, stop: int) -> dict[str, npt.NDArray[Any]]:
    """Read one shard of `distances.zarr` back.

    Raises
    ------
    DamagedError
        Where it is missing or does not pass its checksum.
    """
    try:
        return {
            name: StoreArray(path, name, _sample_axis(name)).samples(start, stop)
            for name in (DISTANCE.name, *PER_SAMPLE)
        }
    except RemoteError:
        raise  # it may be there all the same
    except OSError as error:
        raise DamagedError(f"{path}: samples {start} to {stop} cannot be read ({error})") from error


def open_distances(path: Path, digest: str, expected: Expected | None = None) -> xr.DataArray:
    """Open `distances.zarr` lazily, a dask chunk per shard.

    Parameters
    ----------
    path
        Its folder.
    digest
        The digest of its content.
    expected
        The fingerprints of the files of each array, where these are to be checked.
    """
    arrays = {name: _array(path, name, expected) for name in (DISTANCE.name, *_OF_DISTANCES)}
    distance = arrays[DISTANCE.name].lazy(digest)
    coordinates: dict[str, Any] = {
        name: arrays[name].small() for name in (METRIC, CLASS, CLASS_CODE.name, SAMPLE)
    }
    coordinates |= {name: arrays[name].lazy(digest) for name in (LABEL.name, SPLIT)}
    return xr.DataArray(distance, coordinates, name=DISTANCE.name)
