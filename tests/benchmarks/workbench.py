"""What the groups of rows share: the settings, the image sets and the means of their classes."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import pipeline
from benchmarks import images, ours
from benchmarks.images import Originals, Pixels
from benchmarks.measure import SkippedError
from pipeline.ops.distance_blocks import Reference

# The measured size of a store of these images is 0.56 of their pixels.
STORED_PART = 0.6
GIGABYTE = 10**9
CIFAR = "CIFAR-10 as JPEG"


@dataclass(frozen=True)
class ClassSums:
    """Sums of the images of each class, [class, pixel], and how many there are, [class]."""

    sums: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]

    @property
    def means(self) -> npt.NDArray[np.float64]:
        return np.asarray(self.sums / self.counts[:, None])

    def reference(self, device: str = "cpu") -> Reference:
        return ours.make_reference(self.sums, self.counts, device)


@dataclass(frozen=True)
class Workbench:
    """The settings of one call of the benchmarks.

    Attributes
    ----------
    count
        Train images of the set that most rows read.
    repeats
        Turns of each contestant.
    threads
        Threads of each contestant.
    folder
        Where stores and runs are made; stores are kept.
    pictures
        Where pictures are drawn.
    """

    count: int
    repeats: int
    threads: int
    folder: Path
    pictures: Path

    @cached_property
    def originals(self) -> Originals:
        return images.load_originals()

    @cached_property
    def sets(self) -> tuple[Originals, ...]:
        """Both kinds of images: those of most rows, and digits in a black frame, mostly zeros."""
        digits = images.load_digits()
        kinds = (self.originals, digits)
        return (
            kinds if self.originals.provenance["name"] != digits.provenance["name"] else kinds[:1]
        )

    def of(self, originals: Originals) -> Workbench:
        """Return the same settings for other images."""
        other = replace(self)
        other.__dict__["originals"] = originals
        return other

    def store(self, count: int) -> Path:
        """Return the store of `count` train images and a sixth as many test images.

        Raises
        ------
        SkippedError
            Where it is not there yet and would not fit the disk.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        needed = count * (1 + 1 / images.TRAIN_TO_TEST) * images.SIDE**2 * STORED_PART
        free = shutil.disk_usage(self.folder).free
        if not images.store_path(self.folder, self.originals, count).exists() and needed > free:
            raise SkippedError(
                f"a store of {count:,} images needs {needed / GIGABYTE:.1f} GB in {self.folder}, "
                f"where {free / GIGABYTE:.1f} GB are free"
            )
        return images.make_store(self.folder, self.originals, count)

    def arrays(self, split: str, count: int) -> tuple[Pixels, images.Labels]:
        """Return the first `count` images of a split and their labels, in memory."""
        return images.arrays_of(self.originals, split, count)

    def class_sums(self, count: int, classes: int | None = None) -> ClassSums:
        """Sum `count` train images by label; or, of made-up classes, by number modulo `classes`."""
        pixels, labels = self.arrays("train", count)
        if classes is not None:
            labels = (np.arange(count) % classes).astype(np.int32)
        names = range(classes or len(self.originals.class_names))
        flat = pixels.reshape(count, -1)
        sums = [flat[labels == code].sum(axis=0, dtype=np.int64) for code in names]
        return ClassSums(np.stack(sums), np.bincount(labels, minlength=len(names)))

    def run_folder(self, name: str) -> Path:
        """Return a folder for runs, empty or not there."""
        folder = self.folder / "runs" / name
        ours.remove_run(folder)
        return folder

    def describe(self) -> dict[str, Any]:
        return {
            "images": self.count,
            "originals": self.originals.title,
            "repeats": self.repeats,
            "threads": self.threads,
        }


def cifar_store(bench: Workbench) -> Path | None:
    """Return the image set of CIFAR-10 as JPEG; None where its archive is not at hand."""
    folder = os.environ.get("PIXSIM_DATASETS")
    path = Path(folder or ".") / "cifar10-jpeg" / "cifar10_jpeg.tar.gz"
    if folder is None or not path.exists():
        return None
    return pipeline.ingest(path, bench.folder / "cifar10.zarr")
