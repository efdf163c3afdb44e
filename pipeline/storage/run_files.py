"""The files of a run: prediction tables, `prototypes.zarr` and `distances.zarr`, and their digests.

Both stores open with plain `xr.open_zarr`. Their `class_name` and `metric` coordinates are names;
`class_code` is the code of each class in the image set.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.core.arrays import Array, Arrays
from pipeline.core.classes import class_flags
from pipeline.core.deferred import deferred
from pipeline.core.digests import ColumnDigest, json_digest
from pipeline.core.errors import DamagedError, RemoteError
from pipeline.core.partitions import CHUNK_BYTES
from pipeline.core.schema import (
    CLASS,
    CLASS_CODE,
    COUNT,
    DENOMINATOR,
    DISTANCE,
    FALL,
    LABEL,
    METRIC,
    NUMERATOR,
    PROTOTYPE,
    RISE,
    SAMPLE,
    SPREAD,
)
from pipeline.storage import tables
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

if TYPE_CHECKING:
    import xarray as xr
else:
    xr = deferred("xarray")

PREDICTIONS = "predictions"
NEIGHBOURS = "neighbours"
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

DIGESTED_NEIGHBOURS = (
    "sample", "split", "label", "metric", "rank", "neighbour", "neighbour_split",
    "neighbour_label", "distance",
)  # fmt: skip

_FRACTIONS = [NUMERATOR.name, DENOMINATOR.name, COUNT.name]
_OF_CLASSES = (NUMERATOR.name, DENOMINATOR.name, PROTOTYPE.name, SPREAD.name)
_SHIFTS = (RISE.name, FALL.name)  # of medians of which one image can be left out
PER_SAMPLE = (SAMPLE, LABEL.name, SPLIT)
_OF_DISTANCES = (METRIC, CLASS, CLASS_CODE.name, *PER_SAMPLE)

Expected = Mapping[str, tuple[str, ...]]


def write_prototypes(path: Path, prototypes: xr.Dataset | Arrays) -> None:
    """Write prototypes (in memory) as `prototypes.zarr`; see `open_prototypes`."""
    remove_tree(path)
    create_group(path, prototypes.attrs)
    dims = [str(dim) for dim in prototypes[NUMERATOR.name].dims]
    of_classes = [*_OF_CLASSES, *_shifts(prototypes.variables)]
    for name in (*of_classes, COUNT.name, CLASS_CODE.name, *dims):
        variable = prototypes[name]
        attributes = dict(variable.attrs)
        if name in of_classes:
            attributes["coordinates"] = f"{COUNT.name} {CLASS_CODE.name}"
        write_array(path, name, [str(dim) for dim in variable.dims], variable.values, attributes)
    consolidate(path)


def open_prototypes(path: Path, digest: str, expected: Expected | None = None) -> xr.Dataset:
    """Open `prototypes.zarr` lazily.

    `digest` is that of its content; of what is not lazy for long, anything. `expected` are the
    fingerprints of the files of each array, where these are to be checked.
    """
    images, attributes = {}, group_attributes(path)
    for name in (*_OF_CLASSES, *_shifts(attributes.get("shifts", ()))):
        array = stored_array(path, name, expected)
        # the digest is of the fractions alone, from which deviations do not follow
        images[name] = array.lazy(json_digest([digest, array.expected]))
    dims = [str(dim) for dim in images[NUMERATOR.name].dims]
    small = {
        name: stored_array(path, name, expected).small()
        for name in (COUNT.name, CLASS_CODE.name, *dims)
    }
    return xr.Dataset(images, small, attributes)


def stored_prototypes(path: Path, expected: Expected | None = None) -> Arrays:
    """Open the same without xarray: arrays of the store, read when their values are asked for."""
    attributes = group_attributes(path)
    names = (*_OF_CLASSES, *_shifts(attributes.get("shifts", ())))
    images = {name: stored_array(path, name, expected) for name in names}
    dims = images[NUMERATOR.name].dims
    small = {
        name: stored_array(path, name, expected).read()
        for name in (COUNT.name, CLASS_CODE.name, *dims)
    }
    arrays = {name: Array(array.dims, array, array.attributes) for name, array in images.items()}
    return Arrays(arrays, small, attributes)


def _shifts(names: Container[Any]) -> list[str]:
    return [name for name in _SHIFTS if name in names]


def read_fractions(path: Path) -> Arrays:
    """Read the exact fractions of `prototypes.zarr`: numerators, denominators and image counts.

    And how they move without one image, where that is there. They are read in this process: a
    cluster may have no worker by now.
    """
    opened = stored_prototypes(path)
    read = {name: opened[name].copy(opened[name].values) for name in _integers(opened)}
    return Arrays(read, opened.coords, opened.attrs)


def _integers(prototypes: xr.Dataset | Arrays) -> list[str]:
    return [*_FRACTIONS, *_shifts(prototypes.variables)]


def fingerprints_of(content: Mapping[str, Any], store: str) -> Expected:
    """Return what a manifest says of the files of each array of a store of the run."""
    return {
        name.removeprefix(f"{store}/"): marks
        for name, marks in content["arrays"].items()
        if name.startswith(f"{store}/")
    }


def stored_array(path: Path, name: str, expected: Expected | None = None) -> StoreArray:
    """Return an array of `prototypes.zarr` or `distances.zarr`; see `open_prototypes`."""
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
    consolidate(path)


def _sample_axis(name: str) -> int:
    return 1 if name == DISTANCE.name else 0


def write_distances(path: Path, start: int, columns: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write one whole shard of `distances.zarr`: distance, sample, label and split."""
    for name, values in columns.items():
        write_shard(path, name, _sample_axis(name), start, values)


def read_distances(path: Path, start: int, stop: int) -> dict[str, npt.NDArray[Any]]:
    """Read one shard of `distances.zarr` back; a missing or damaged one is a `DamagedError`."""
    return StoredDistances(path).read(start, stop)


class StoredDistances:
    """The arrays of `distances.zarr`, to read many shards of; see `read_distances`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._arrays = {n: stored_array(path, n) for n in (DISTANCE.name, *PER_SAMPLE)}

    def read(self, start: int, stop: int) -> dict[str, npt.NDArray[Any]]:
        try:
            return {name: array.samples(start, stop) for name, array in self._arrays.items()}
        except RemoteError:
            raise  # it may be there all the same
        except OSError as error:
            raise DamagedError(
                f"{self._path}: samples {start} to {stop} cannot be read ({error})"
            ) from error


def open_distances(
    path: Path, digest: str, expected: Expected | None = None, class_names: Sequence[str] = ()
) -> xr.DataArray:
    """Open `distances.zarr` lazily, a dask chunk per shard; see `open_prototypes`.

    `class_names` are those of all codes of the image set, where they are known.
    """
    arrays = {name: stored_array(path, name, expected) for name in (DISTANCE.name, *_OF_DISTANCES)}
    distance = arrays[DISTANCE.name].lazy(digest)
    coordinates: dict[str, Any] = {
        name: arrays[name].small() for name in (METRIC, CLASS, CLASS_CODE.name, SAMPLE)
    }
    coordinates |= {name: arrays[name].lazy(digest) for name in (LABEL.name, SPLIT)}
    if class_names:
        coordinates[LABEL.name].attrs |= class_flags(dict(enumerate(class_names)))
        distance.attrs["class_names"] = list(class_names)
    return xr.DataArray(distance, coordinates, name=DISTANCE.name)


def part_path(path: Path, index: int, folder: str = PREDICTIONS) -> Path:
    return path / folder / part_name(index)


def tables_of(content: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """Return what the manifest of a run or audit says of the parts of its tables, by folder."""
    folders = {PREDICTIONS: content["partitions"]} if "partitions" in content else {}
    if NEIGHBOURS in content:
        folders[NEIGHBOURS] = content[NEIGHBOURS]["partitions"]
    return folders


def rows_digest(columns: Mapping[str, npt.NDArray[Any]]) -> str:
    """Return the digest of the rows of one part of a table."""
    digest = ColumnDigest()
    digest.update(columns)
    return digest.result()


def read_own_part(
    path: Path, columns: Sequence[str], identity: str
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]] | None:
    """Return columns of a part and its notes; None where it is not whole, or of another plan."""
    notes = tables.read_notes(path)
    if notes.get("identity") != identity:
        return None
    try:
        rows, notes = tables.read_with_notes(path, columns)
    except DamagedError:
        return None
    return (rows, notes) if rows_digest(rows) == notes["digest"] else None


def read_back(
    path: Path, columns: Sequence[str]
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
    """Return columns of a part that was just written, and its notes.

    `DamagedError` where it is not what was written.
    """
    rows, notes = tables.read_with_notes(path, columns)
    if rows_digest(rows) != notes.get("digest"):
        raise DamagedError(f"{path}: was changed while the job ran; run it again")
    return rows, notes


def part_names(parts: int, folder: str = PREDICTIONS) -> list[str]:
    """Return the paths of the parts of a table of a run, below its folder."""
    return [f"{folder}/{part_name(index)}" for index in range(parts)]


def prototypes_digest(prototypes: xr.Dataset | Arrays) -> str:
    """Return the digest of prototypes: their exact fractions and the names of the classes."""
    columns = ColumnDigest()
    # read here, where the digest is made: the workers of a cluster may be gone by now
    names = _integers(prototypes)
    read: Any = prototypes
    if not isinstance(prototypes, Arrays):
        read = prototypes[names].compute(scheduler="synchronous")
    columns.update({name: read[name].values for name in names})
    shape = list(prototypes[NUMERATOR.name].shape)
    classes = [str(name) for name in prototypes["class_name"].values]
    return columns.result({"class_names": classes, "shape": shape})


def list_run_files(
    path: Path, content: Mapping[str, Any], distances: bool, lists: Sequence[str] = ()
) -> dict[str, Any]:
    """Return what the manifest of a run says of its files, given what it says of its tables.

    `lists` are the tables of samples that it left out.
    """
    folders = tables_of(content)
    tables_of_run = [n for folder, parts in folders.items() for n in part_names(len(parts), folder)]
    names = [METRICS_FILE, HIGHLIGHTS_FILE, *lists, *tables_of_run]
    sizes = {
        f"{folder}/{name}": size
        for folder in folders
        for name, size in sizes_below(path / folder).items()
    }
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


def flushed(listed: Mapping[str, Any], stores: Sequence[str]) -> dict[str, Any]:
    """Return of what `list_run_files` says the files in folders that are on the disk already."""
    folders = tuple(f"{store}/" for store in stores)
    return {
        kind: {n: mark for n, mark in listed[kind].items() if n.startswith(folders)}
        for kind in ("files", "arrays")
    }


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
    neighbours: str | None = None

    @property
    def run(self) -> str:
        known = [self.prototypes, self.distances, self.predictions]
        return json_digest(known + ([] if self.neighbours is None else [self.neighbours]))

    def as_dict(self) -> dict[str, str | None]:
        """Return the digests by name; those of neighbours only where there are any."""
        known = asdict(self)
        if self.neighbours is None:
            del known["neighbours"]
        return known | {"run": self.run}
