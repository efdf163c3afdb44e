"""What is measured of pixsim: every call of its interface that the benchmarks make is here."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import pipeline
from pipeline.ops import distances as distances_module
from pipeline.ops.distances import Reference

FULL_SCALE = 255
METRICS = ("l1", "l2")


def class_means(store: Path) -> npt.NDArray[np.float64]:
    """Return the mean of each class of the train images, [class, y, x]."""
    images = pipeline.open_images(store, "train")
    found = pipeline.prototypes(pipeline.class_sums(images, device="cpu"))
    return np.asarray(found["prototype"].compute().values)


def class_medians(store: Path) -> npt.NDArray[np.float64]:
    """Return the median of each class of the train images, [class, y, x]."""
    found = pipeline.class_medians(pipeline.open_images(store, "train"), device="cpu")
    return np.asarray(found["prototype"].compute().values)


def make_reference(
    sums: npt.NDArray[np.int64], counts: npt.NDArray[np.int64], device: str = "cpu"
) -> Reference:
    """Prepare the means of classes, [class, pixel] over [class], for `distances`."""
    return distances_module.make_reference(sums, counts, "uint8", FULL_SCALE, device)


def distances(
    images: npt.NDArray[np.uint8], reference: Reference, threads: int
) -> npt.NDArray[np.float64]:
    """Measure images by l1 and l2, [metric, sample, class], from 0 to 1."""
    return distances_module.distances_block(images, reference, METRICS, threads=threads)


def predict_by_l2(
    images: npt.NDArray[np.uint8], reference: Reference, threads: int
) -> npt.NDArray[np.int64]:
    """Return the nearest mean of each image by l2; l1 is measured as well."""
    return np.asarray(distances(images, reference, threads)[1].argmin(axis=1))


def run_job(store: Path, output: Path, threads: int) -> Any:
    """Run the whole job on a store: means, distances, tables, metrics; no page with pictures."""
    settings = {
        "name": "benchmark",
        "images": str(store),
        "evaluate": "test",
        "device": "cpu",
        "cluster": {"kind": "threads", "workers": threads},
        "output": str(output),
        "report": False,
    }
    return pipeline.run_job(pipeline.make_job(settings))


def ingest_folder(folder: Path, store: Path) -> Path:
    """Take a folder of image files into a store, in a thread a core."""
    return pipeline.ingest(str(folder), store)


def remove_run(output: Path) -> None:
    """Remove the folder of a run, so that the next one starts from nothing."""
    shutil.rmtree(output, ignore_errors=True)
