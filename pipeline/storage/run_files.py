"""The files of a run: prediction tables, `prototypes.zarr` and `distances.zarr`, and their digests.

Both stores open with plain `xr.open_zarr`. Their `class_name` and `metric` coordinates are names;
`class_code` is the code of each class in the image set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from pipeline.core.digests import ColumnDigest, json_digest
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
from pipeline.storage.folders import remove_tree, sizes_below
from pipeline.storage.manifest import file_hashes
from pipeline.storage.recorded_files import list_files
from pipeline.storage.store_array import StoreArray, group_attributes
from pipeline.storage.tables import part_name
from pipeline.storage.zarr_arrays import (
    ArrayTemplate,
    consolidate,
    create_array,
    create_group,
    write_array,
    write_shard,
)

PREDICTIONS = "predictions"
PROTOTYPES = "prototypes.zarr"
DISTANCES = "distances.zarr"
METRICS_FILE = "metrics.json"
HIGHLIGHTS_FILE = "highlights.json"
REPORT_FILE = "report.html"
SPLIT = "split"
DIGESTED = (
    "sample", "split", "label", "metric", "predicted", "distance", "margin", "label_distance",
    "label_rank",
)  # fmt: skip

_FRACTIONS = [NUMERATOR.name, DENOMINATOR.name, COUNT.name]
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
    """Open `prototypes.zarr` lazily.

    `digest` is that of its content; of what is not lazy for long, anything. `expected` are the
    fingerprints of the files of each array, where these are to be checked.
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
    return open_prototypes(path, digest)[_FRACTIONS].compute(scheduler="synchronous")


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
    """Read one shard of `distances.zarr` back; a missing or damaged one is a `DamagedError`."""
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
    """Open `distances.zarr` lazily, a dask chunk per shard; see `open_prototypes`."""
    arrays = {name: _array(path, name, expected) for name in (DISTANCE.name, *_OF_DISTANCES)}
    distance = arrays[DISTANCE.name].lazy(digest)
    coordinates: dict[str, Any] = {
        name: arrays[name].small() for name in (METRIC, CLASS, CLASS_CODE.name, SAMPLE)
    }
    coordinates |= {name: arrays[name].lazy(digest) for name in (LABEL.name, SPLIT)}
    return xr.DataArray(distance, coordinates, name=DISTANCE.name)


def part_path(path: Path, index: int) -> Path:
    return path / PREDICTIONS / part_name(index)


def part_names(parts: int) -> list[str]:
    """Return the paths of the prediction tables of a run below its folder."""
    return [f"{PREDICTIONS}/{part_name(index)}" for index in range(parts)]


def prototypes_digest(prototypes: xr.Dataset) -> str:
    """Return the digest of prototypes: their exact fractions and the names of the classes."""
    columns = ColumnDigest()
    # read here, where the digest is made: the workers of a cluster may be gone by now
    read = prototypes[_FRACTIONS].compute(scheduler="synchronous")
    columns.update({name: read[name].values for name in _FRACTIONS})
    shape = list(prototypes[NUMERATOR.name].shape)
    classes = [str(name) for name in prototypes["class_name"].values]
    return columns.result({"class_names": classes, "shape": shape})


def list_run_files(path: Path, parts: int, distances: bool) -> dict[str, Any]:
    """Return what the manifest of a run says of its files."""
    tables_of_run = part_names(parts)
    names = [METRICS_FILE, HIGHLIGHTS_FILE, *tables_of_run]
    sizes = {f"{PREDICTIONS}/{k}": size for k, size in sizes_below(path / PREDICTIONS).items()}
    listed: dict[str, Any] = {
        "files": file_hashes(path, names),
        "arrays": {},
        "sizes": {name: sizes[name] for name in tables_of_run},
    }
    axes = {DISTANCE.name: 1}
    for store in [PROTOTYPES, *([DISTANCES] if distances else [])]:
        for kind, entries in list_files(path / store, {}, (), axes).items():
            listed[kind] |= {f"{store}/{name}": entry for name, entry in entries.items()}
    return listed


def distance_columns(
    values: dict[str, np.ndarray[Any, Any]], metrics: list[str]
) -> dict[str, np.ndarray[Any, Any]]:
    """Return one block of `distances.zarr` as columns to digest, one for each metric."""
    columns = {name: column for name, column in values.items() if name != DISTANCE.name}
    return columns | {name: values[DISTANCE.name][at] for at, name in enumerate(metrics)}


@dataclass(frozen=True)
class RunDigests:
    """Digests of what a run's files hold now; the same for any partitions."""

    prototypes: str
    distances: str | None
    predictions: str

    @property
    def run(self) -> str:
        return json_digest([self.prototypes, self.distances, self.predictions])

    def as_dict(self) -> dict[str, str | None]:
        return {**asdict(self), "run": self.run}
