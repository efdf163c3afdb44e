"""Image sets and finished runs, opened: what they hold, as lazy labelled arrays and as HTML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.arguments import checked
from pipeline.core.arrays import Arrays
from pipeline.core.deferred import deferred
from pipeline.core.errors import StoreError
from pipeline.core.paths import locate, options_of, shown
from pipeline.core.schema import DISTANCE, PROTOTYPE
from pipeline.report.markup import facts, picture, table
from pipeline.report.pictures import draw_prototypes
from pipeline.storage import manifest, run_files, tables
from pipeline.storage.atomic import read_json
from pipeline.storage.image_content import open_images
from pipeline.storage.recorded_files import require_files_of, require_parts, require_tables
from pipeline.storage.run_files import (
    HIGHLIGHTS_FILE,
    METRICS_FILE,
    NEIGHBOURS,
    PREDICTIONS,
    REPORT_FILE,
    part_names,
    tables_of,
)
from pipeline.storage.sample_lists import EXCLUDED, SampleList, read_copy
from pipeline.storage.sample_tables import SAMPLES
from pipeline.storage.store_array import StoreArray

if TYPE_CHECKING:
    import dask.dataframe as dd
    import xarray as xr
else:
    dd = deferred("dask.dataframe")
    xr = deferred("xarray")

BALANCED = "balanced_accuracy"
MAX_LISTED = 20  # classes of an image set that are listed with their counts
# classes, and bytes of prototypes, up to which they are drawn
MAX_DRAWN, MAX_BYTES = 20, 2**26


@dataclass(frozen=True, repr=False)
class ImageSet:
    """The folder of an image set.

    Attributes
    ----------
    path
        The folder.
    storage_options
        fsspec's options for a URL; default: credentials from the environment.
    """

    path: Path
    storage_options: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", locate(self.path, self.storage_options))

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What it was made from, what it holds, and the digests of that."""
        return manifest.read_manifest(self.path, manifest.IMAGES)

    @property
    def class_names(self) -> list[str]:
        """The names of the classes by code."""
        return list(self.manifest["class_names"])

    @property
    def splits(self) -> dict[str, int]:
        """The number of images in each split."""
        return {name: split["count"] for name, split in self.manifest["splits"].items()}

    def images(self, split: str = "train") -> xr.Dataset:
        """Open a split as lazy labelled arrays, as `open_images` does."""
        return open_images(self.path, split, self.storage_options)

    def __repr__(self) -> str:
        splits = ", ".join(f"{name}: {count:,}" for name, count in self.splits.items())
        return f"ImageSet({shown(self.path)!r}, {{{splits}}}, {len(self.class_names):,} classes)"

    def _repr_html_(self) -> str:
        content = self.manifest
        splits = content["splits"]
        known = [
            ("folder", shown(self.path)),
            ("classes", f"{len(self.class_names):,}"),
            ("digest", f"sha256:{content['digest']}"),
        ]
        rows = [
            [
                name,
                f"{split['count']:,}",
                " x ".join(map(str, split["shape"])),
                split["dtype"],
                f"{split['unlabelled']:,}",
            ]
            for name, split in splits.items()
        ]
        listed = table(["split", "images", "shape", "dtype", "without label"], rows)
        return facts("pixsim image set", known) + listed + self._classes_html()

    def _classes_html(self) -> str:
        names, splits = self.class_names, self.manifest["splits"]
        rows = [
            [name, *(f"{split['labels'][code]:,}" for split in splits.values())]
            for code, name in enumerate(names[:MAX_LISTED])
        ]
        more = len(names) - MAX_LISTED
        note = f"<div>... and {more:,} classes more</div>" if more > 0 else ""
        return table(["class", *splits], rows) + note


@checked
def open_store(path: Path | str, storage_options: Mapping[str, Any] | None = None) -> ImageSet:
    """Open an image set, to see what it holds.

    Parameters
    ----------
    path
        The folder, or its URL.
    storage_options
        fsspec's options for a URL; default: credentials from the environment.

    Raises
    ------
    StoreError
        Where the folder is no image set, or was never finished.
    DamagedError
        Where a table of it is missing.
    """
    opened = ImageSet(locate(path, storage_options), storage_options or {})
    require_tables(opened.path, opened.manifest, SAMPLES)
    return opened


@dataclass(frozen=True)
class Run:
    """The folder of a finished run.

    Attributes
    ----------
    path
        The folder.
    storage_options
        fsspec's options for the URL of its image set; default: those of the folder.
    unwritten
        The manifest, while the run is being finished; default: that of the folder.
    """

    path: Path
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    unwritten: Mapping[str, Any] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", locate(self.path, self.storage_options))

    @property
    def _folder(self) -> Path:
        return self.path.absolute()  # what is lazy is read by workers, wherever they run

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What was asked, from what, with which versions, and the digests of the outcome."""
        if self.unwritten is not None:
            return dict(self.unwritten)
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
        self._require_parts()  # their figures would not fit other parts
        manifest.require_files(self.path, self.manifest, [name])
        return dict(read_json(self.path / name))

    def require_complete(self) -> None:
        """Check that all files that the manifest names are there; see `recorded_files`.

        Raises
        ------
        DamagedError
            Where it is not so.
        """
        require_files_of(self.path, self.manifest, optional=[REPORT_FILE])
        self._require_parts()

    def _require_parts(self) -> None:
        for folder, parts in tables_of(self.manifest).items():
            names = part_names(len(parts), folder)
            require_parts(self.path, self.manifest, folder, names, parts)

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
    def stored_prototypes(self) -> Arrays:
        """The same without xarray, which takes a while to import; see `storage.run_files`."""
        expected = self._arrays(run_files.PROTOTYPES)
        return run_files.stored_prototypes(self._folder / run_files.PROTOTYPES, expected)

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
        folder, names = self._folder / run_files.DISTANCES, self.prototypes.attrs["class_names"]
        expected = self._arrays(run_files.DISTANCES)
        return run_files.open_distances(folder, digest, expected, names)

    @property
    def stored_distances(self) -> StoreArray:
        """The array of the distances, as it is stored."""
        expected = self._arrays(run_files.DISTANCES)
        return run_files.stored_array(self._folder / run_files.DISTANCES, DISTANCE.name, expected)

    def _arrays(self, store: str) -> run_files.Expected:
        """Return the fingerprints of the files of each array of a store of the run."""
        require_files_of(self.path, self.manifest, store)
        documents = [name for name in self.manifest["files"] if name.startswith(f"{store}/")]
        manifest.require_files(self.path, self.manifest, documents)
        return run_files.fingerprints_of(self.manifest, store)

    @property
    def predictions(self) -> Any:
        """The predictions as a dask data frame, a row per sample and metric.

        Raises
        ------
        DamagedError
            Where a table of them is missing, was changed, or there is one too many.
        """
        return self._table(PREDICTIONS)

    @property
    def neighbours(self) -> Any:
        """The nearest images as a dask data frame, a row per sample, metric and rank.

        Raises
        ------
        StoreError
            Where the job did not ask for them.
        DamagedError
            As `predictions`.
        """
        if NEIGHBOURS not in self.manifest:
            raise StoreError(
                f"{shown(self.path)}: this run has no neighbours; run a job with neighbours: "
                "{k: 10}, to another folder"
            )
        return self._table(NEIGHBOURS)

    def _table(self, folder: str) -> Any:
        self._require_parts()
        names = part_names(len(tables_of(self.manifest)[folder]), folder)
        parts = [self._folder / name for name in names]
        hashes = [self.manifest["files"][name] for name in names]
        meta = dd.utils.clear_known_categories(tables.empty_frame(parts[0]))
        return dd.from_map(tables.read_frame, parts, hashes, meta=meta, label=folder)

    def listed(self, name: str = EXCLUDED) -> SampleList | None:
        """Read the samples that the job left out, or held out, from their copy; None where none.

        Raises
        ------
        DamagedError
            Where the copy is missing or was changed.
        """
        if name not in self.manifest["files"]:
            return None
        manifest.require_files(self.path, self.manifest, [name])
        return read_copy(self.path / name)

    @property
    def images(self) -> Path:
        """The image set that the run was made from."""
        options = self.storage_options or options_of(self.path)
        return locate(self.manifest["images"]["path"], options)

    def _repr_html_(self) -> str:
        content, prototypes = self.manifest, self.prototypes
        settings = content["settings"]
        known = [
            ("folder", shown(self.path)),
            ("images", content["images"]["path"]),
            ("prototypes", f"{prototypes.attrs['prototypes']} of '{settings['fit']}'"),
            ("measured", ", ".join(f"'{split}'" for split in settings["evaluate"])),
            ("classes", f"{len(content['class_names']):,}"),
            ("digest", f"sha256:{content['digests']['run']}"),
        ]
        rows = [
            [name, f"{values['count']:,}", *map(_share, (values["accuracy"], values[BALANCED]))]
            for name, values in ((name, self.metrics[name]) for name in settings["metrics"])
        ]
        shares = table(["metric", "images", "accuracy", "balanced accuracy"], rows)
        text = facts(f"pixsim run {content['name']}", known) + shares
        if len(content["class_names"]) > MAX_DRAWN or prototypes[PROTOTYPE.name].nbytes > MAX_BYTES:
            return text
        return text + picture(draw_prototypes(prototypes), "the prototype of each class")


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
