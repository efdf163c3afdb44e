"""The files of a run: what they are called, and the digests of what they hold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from pipeline.core.digests import ColumnDigest, json_digest
from pipeline.core.schema import COUNT, DENOMINATOR, DISTANCE, NUMERATOR
from pipeline.storage import manifest, run_arrays
from pipeline.storage.finished_images import list_files
from pipeline.storage.folders import sizes_below

PREDICTIONS = "predictions"
METRICS_FILE = "metrics.json"
HIGHLIGHTS_FILE = "highlights.json"
REPORT_FILE = "report.html"
DIGESTED = (
    "sample", "split", "label", "metric", "predicted", "distance", "margin", "label_distance",
    "label_rank",
)  # fmt: skip


def part_path(path: Path, index: int) -> Path:
    """Return the prediction table of a partition."""
    return path / PREDICTIONS / part_name(index)


def part_name(index: int) -> str:
    """Return the name of the prediction table of a partition."""
    return f"part-{index:06d}.parquet"


def part_names(parts: int) -> list[str]:
    """Return the paths of the prediction tables of a run below its folder."""
    return [f"{PREDICTIONS}/{part_name(index)}" for index in range(parts)]


def prototypes_digest(prototypes: xr.Dataset) -> str:
    """Return the digest of prototypes: their exact fractions and the names of the classes."""
    columns = ColumnDigest()
    # read here, where the digest is made: the workers of a cluster may be gone by now
    names = (NUMERATOR.name, DENOMINATOR.name, COUNT.name)
    read = prototypes[list(names)].compute(scheduler="synchronous")
    columns.update({name: read[name].values for name in names})
    shape = list(prototypes[NUMERATOR.name].shape)
    classes = [str(name) for name in prototypes["class_name"].values]
    return columns.result({"class_names": classes, "shape": shape})


def list_run_files(path: Path, parts: int, distances: bool) -> dict[str, Any]:
    """Return what the manifest of a run says of its files."""
    tables_of_run = part_names(parts)
    names = [METRICS_FILE, HIGHLIGHTS_FILE, *tables_of_run]
    sizes = {f"{PREDICTIONS}/{k}": size for k, size in sizes_below(path / PREDICTIONS).items()}
    found: dict[str, Any] = {
        "files": manifest.file_hashes(path, names),
        "arrays": {},
        "sizes": {name: sizes[name] for name in tables_of_run},
    }
    axes = {DISTANCE.name: 1}
    for store in [run_arrays.PROTOTYPES, *([run_arrays.DISTANCES] if distances else [])]:
        for kind, entries in list_files(path / store, {}, (), axes).items():
            found[kind] |= {f"{store}/{name}": entry for name, entry in entries.items()}
    return found


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
        """One digest over the three."""
        return json_digest([self.prototypes, self.distances, self.predictions])

    def as_dict(self) -> dict[str, str | None]:
        return {
            "prototypes": self.prototypes,
            "distances": self.distances,
            "predictions": self.predictions,
            "run": self.run,
        }
