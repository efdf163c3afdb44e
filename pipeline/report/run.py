"""A finished run, opened: prototypes, distances, predictions, metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import dask.dataframe as dd
import xarray as xr
from dask.dataframe.utils import clear_known_categories

from pipeline.core.arguments import checked
from pipeline.core.digests import ColumnDigest
from pipeline.core.errors import StoreError
from pipeline.core.paths import locate, options_of
from pipeline.core.schema import PROTOTYPE
from pipeline.core.urls import shown
from pipeline.report import markup
from pipeline.report.pictures import draw_prototypes
from pipeline.storage import manifest, run_files, tables
from pipeline.storage.atomic import read_json
from pipeline.storage.recorded_files import require_files_of, require_parts
from pipeline.storage.run_files import (
    DIGESTED,
    HIGHLIGHTS_FILE,
    METRICS_FILE,
    REPORT_FILE,
    RunDigests,
    distance_columns,
    part_names,
    part_path,
    prototypes_digest,
)

BALANCED = "balanced_accuracy"
# classes, and bytes of prototypes, up to which they are drawn
MAX_DRAWN, MAX_BYTES = 20, 2**26


@dataclass(frozen=True)
class Run:
    """The folder of a finished run.

    Attributes
    ----------
    path
        The folder.
    storage_options
        fsspec's options for the URL of its image set; default: those of the folder.
    """

    path: Path
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", locate(self.path, self.storage_options))

    @property
    def _folder(self) -> Path:
        return self.path.absolute()  # what is lazy is read by workers, wherever they run

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What was asked, from what, with which versions, and the digests of the outcome."""
        return manifest.read_manifest(self.path, manifest.RUN)

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """Accuracy, accuracy per class and confusion counts of each metric.

        Raises
        ------
        DamagedError
            Where the file is missing or was changed.
        """
        return self._read(METRICS_FILE)

    @cached_property
    def highlights(self) -> dict[str, Any]:
        """What is worth a look among the predictions, and which prototypes are close.

        As `Highlights.result` and, under `prototypes`, `closest_classes` return it.

        Raises
        ------
        StoreError
            Where the run was made before there were any.
        DamagedError
            Where the file is missing or was changed.
        """
        if HIGHLIGHTS_FILE not in self.manifest["files"]:
            raise StoreError(
                f"{shown(self.path)}: has no {HIGHLIGHTS_FILE}, this run was made by an earlier "
                "version; run its job again, to another folder"
            )
        return self._read(HIGHLIGHTS_FILE)

    def _read(self, name: str) -> dict[str, Any]:
        self._require_parts()  # what is said of them would not fit
        manifest.require_files(self.path, self.manifest, [name])
        return dict(read_json(self.path / name))

    def require_complete(self) -> None:
        """Check that all files that the manifest vouches for are there; see `recorded_files`.

        Raises
        ------
        DamagedError
            Where it is not so.
        """
        require_files_of(self.path, self.manifest, optional=[REPORT_FILE])
        self._require_parts()

    def _require_parts(self) -> list[str]:
        names = part_names(len(self.manifest["partitions"]))
        require_parts(self.path, self.manifest, names)
        return names

    @property
    def prototypes(self) -> xr.Dataset:
        """The prototypes, (class_name, y, x[, channel]), lazy.

        Raises
        ------
        DamagedError
            Where files of theirs are missing or were changed.
        """
        return run_files.open_prototypes(
            self._folder / run_files.PROTOTYPES,
            self.manifest["digests"]["prototypes"],
            self._arrays(run_files.PROTOTYPES),
        )

    @property
    def distances(self) -> xr.DataArray:
        """The distances, (metric, sample, class_name), lazy.

        Raises
        ------
        StoreError
            Where the job did not write them.
        """
        digest = self.manifest["digests"]["distances"]
        if digest is None:
            raise StoreError(
                f"{self.path}: this run wrote no distances; run the job with distances: write"
            )
        return run_files.open_distances(
            self._folder / run_files.DISTANCES, digest, self._arrays(run_files.DISTANCES)
        )

    def _arrays(self, store: str) -> dict[str, tuple[str, ...]]:
        """Return the fingerprints of the files of each array of a store of the run."""
        require_files_of(self.path, self.manifest, store)
        manifest.require_files(self.path, self.manifest, _documents(self.manifest, store))
        return {
            name.removeprefix(f"{store}/"): tuple(marks)
            for name, marks in self.manifest["arrays"].items()
            if name.startswith(f"{store}/")
        }

    @property
    def predictions(self) -> Any:
        """The predictions as a dask data frame, a row per sample and metric.

        Raises
        ------
        DamagedError
            Where a table of them is missing, was changed, or there is one too many.
        """
        names = self._require_parts()
        parts = [self._folder / name for name in names]
        hashes = [self.manifest["files"][name] for name in names]
        meta = clear_known_categories(tables.empty_frame(parts[0]))
        return dd.from_map(tables.read_frame, parts, hashes, meta=meta, label="predictions")

    @property
    def images(self) -> Path:
        """The image set that the run was made from."""
        options = self.storage_options or options_of(self.path)
        return locate(self.manifest["images"]["path"], options)

    def _repr_html_(self) -> str:
        content, found = self.manifest, self.prototypes
        settings = content["settings"]
        known = [
            ("folder", shown(self.path)),
            ("images", content["images"]["path"]),
            ("prototypes", f"{found.attrs['prototypes']} of '{settings['fit']}'"),
            ("measured", ", ".join(f"'{split}'" for split in settings["evaluate"])),
            ("classes", f"{len(content['class_names']):,}"),
            ("digest", f"sha256:{content['digests']['run']}"),
        ]
        rows = [
            [name, f"{values['count']:,}", *map(_share, (values["accuracy"], values[BALANCED]))]
            for name, values in ((name, self.metrics[name]) for name in settings["metrics"])
        ]
        shares = markup.table(["metric", "images", "accuracy", "balanced accuracy"], rows)
        text = markup.facts(f"pixsim run {content['name']}", known) + shares
        if len(content["class_names"]) > MAX_DRAWN or found[PROTOTYPE.name].nbytes > MAX_BYTES:
            return text
        return text + markup.picture(draw_prototypes(found), "the prototype of each class")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


@checked
def open_run(path: Path | str, storage_options: Mapping[str, Any] | None = None) -> Run:
    """Open the folder of a finished run.

    Parameters
    ----------
    path
        The folder, or its URL.
    storage_options
        fsspec's options for a URL; default: credentials from the environment.

    Raises
    ------
    StoreError
        Where the folder is no run, or was never finished.
    DamagedError
        Where files of it are missing.
    """
    run = Run(locate(path, storage_options), storage_options or {})
    run.require_complete()
    return run


def _documents(content: Mapping[str, Any], store: str) -> list[str]:
    return [name for name in content["files"] if name.startswith(f"{store}/")]


def digest_run(path: Path) -> RunDigests:
    """Read a whole run and return the digests of what it holds now."""
    content = open_run(path).manifest
    metrics, header = content["settings"]["metrics"], content["class_names"]
    written = content["digests"]["distances"] is not None
    predictions, distances = ColumnDigest(), ColumnDigest()
    for index, part in enumerate(content["partitions"]):
        predictions.update(tables.read_part(part_path(path, index), DIGESTED))
        if written:
            block = run_files.read_distances(
                path / run_files.DISTANCES, part["start"], part["stop"]
            )
            distances.update(distance_columns(block, metrics))
    found = run_files.open_prototypes(path / run_files.PROTOTYPES, content["digests"]["prototypes"])
    return RunDigests(
        prototypes_digest(found),
        distances.result(header) if written else None,
        predictions.result(header),
    )
