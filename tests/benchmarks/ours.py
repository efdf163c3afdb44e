"""What is measured of pixsim: every call of its interface that the benchmarks make is here."""

from __future__ import annotations

import shutil
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

import pipeline
from pipeline.kernels import vectors
from pipeline.ops import distance_blocks
from pipeline.ops.distance_blocks import Reference

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
    return distance_blocks.make_reference(sums, counts, "uint8", FULL_SCALE, device)


def distances(
    images: npt.NDArray[np.uint8], reference: Reference, threads: int
) -> npt.NDArray[np.float64]:
    """Measure images by l1 and l2, [metric, sample, class], from 0 to 1."""
    return distance_blocks.distances_block(images, reference, METRICS, threads=threads)


def nearest(
    images: npt.NDArray[np.uint8], reference: Reference, metric: str, threads: int
) -> npt.NDArray[np.int64]:
    """Return the nearest mean of each image by one metric, where nothing else is asked for."""
    return distance_blocks.nearest_block(images, reference, metric, threads)[0]


def limit_seconds(
    count: int, reference: Reference, metrics: int, threads: int, rounded: bool = False
) -> float:
    """Return the least that the products and differences of all pairs can take on this processor.

    One `psadbw` or `vpdpbusd` for 64 pixels: one for l1 and one for each digit of it, and one for
    l2 and one for each digit. In words (see `kernels.words`) six instructions of which two take as
    long as one of those: three for both metrics, two for either. What one takes is measured, on a
    few rows that stay in the cache.
    """
    planes = reference.prepared.planes
    prototypes, columns, width = planes.shape
    if rounded:  # one for each prototype, rounded, where only the nearest is asked for
        return count * prototypes * (width // vectors.WIDTH) * _seconds_of_a_product() / threads
    of_each = columns * metrics if reference.prepared.words is None else {1: 2, 2: 3}[metrics]
    vectors_of_pairs = count * prototypes * (width // vectors.WIDTH) * of_each
    return vectors_of_pairs * _seconds_of_a_product() / threads


@cache
def _seconds_of_a_product() -> float:
    rows, prototypes, steps, calls = vectors.ROWS, 5, 256, 2_000
    images = np.ones((rows, steps * vectors.WIDTH // 4), np.uint8)
    planes = np.ones((prototypes, images.shape[1]), np.uint8)
    out = np.empty(rows * prototypes, np.int64)
    shape = vectors.shape_of(rows, prototypes, 0, vectors.L2)
    of_one_call = rows * prototypes * (steps // 4)
    seconds = []
    for _ in range(9):
        started = time.perf_counter()
        _multiply(images, planes, steps // 4, shape, out, calls)
        seconds.append((time.perf_counter() - started) / calls / of_one_call)
    return min(seconds[1:])


@njit
def _multiply(images, planes, steps, shape, out, calls):  # type: ignore[no-untyped-def]
    width = images.shape[1]
    for _ in range(calls):
        vectors.measure(images, planes, (width, width, 0), steps, shape, False, out)


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
