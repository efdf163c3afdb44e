"""An image set, opened: what it holds, and its images as lazy labelled arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import xarray as xr

from pipeline.core.arguments import checked
from pipeline.core.paths import locate
from pipeline.core.urls import shown
from pipeline.report import markup
from pipeline.storage.image_store import open_images
from pipeline.storage.manifest import IMAGES, read_manifest
from pipeline.storage.recorded_files import require_tables
from pipeline.storage.sample_tables import SAMPLES

MAX_CLASSES = 20  # that are listed with their counts


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
        return read_manifest(self.path, IMAGES)

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
        listed = markup.table(["split", "images", "shape", "dtype", "without label"], rows)
        return markup.facts("pixsim image set", known) + listed + self._classes_html()

    def _classes_html(self) -> str:
        names, splits = self.class_names, self.manifest["splits"]
        rows = [
            [name, *(f"{split['labels'][code]:,}" for split in splits.values())]
            for code, name in enumerate(names[:MAX_CLASSES])
        ]
        more = len(names) - MAX_CLASSES
        note = f"<div>... and {more:,} classes more</div>" if more > 0 else ""
        return markup.table(["class", *splits], rows) + note


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
