"""What is measured of pixsim: every call of its interface that the benchmarks make is here."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

import pipeline
from benchmarks.measure import MismatchError
from pipeline.core.blocks import Block, Problem
from pipeline.core.digests import SAMPLE_RECORD, sample_records
from pipeline.core.partitions import PartitionTable, choose_layout, image_bytes
from pipeline.images.conversion import Conversion
from pipeline.images.decoding import decode, probe
from pipeline.kernels import backends, vectors
from pipeline.ops import distance_blocks
from pipeline.ops.distance_blocks import Reference
from pipeline.storage import image_content, image_store, manifest
from pipeline.storage.image_store import SplitTemplate
from pipeline.storage.sample_tables import part_notes, part_path, write_part

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


def pass_over(
    store: Path, threads: int, splits: Sequence[str], means: Reference | None = None
) -> int:
    """Read splits once, in as many threads, and nothing else; return how many images.

    With `means` the kernels of a job count as well: class sums of the train images, distances of
    the others. That is the limit of a job, which writes and hashes besides.
    """
    content = manifest.read_manifest(store, manifest.IMAGES)
    table = [part for part in image_content.partition_table(content) if part.split in splits]
    use, classes = backends.load("cpu", 1), len(content["class_names"])

    def read(part: Any) -> int:
        images, labels = image_content.read_checked(
            store, content["digest"], part.split, part.start, part.stop
        )
        if means is not None and part.split == "train":
            use.class_sums(images.reshape(len(images), -1), labels.astype(np.int64), classes)
        elif means is not None:
            distances(images, means, 1)
        return len(images)

    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(read, table))


def ingest_folder(folder: Path, store: Path) -> Path:
    """Take a folder of image files into a store, in a thread a core."""
    return pipeline.ingest(str(folder), store)


def ingest_parts(files: Sequence[Path], store: Path) -> dict[str, float]:
    """Take files of one shape into an empty folder; return the CPU time of each part of an image.

    They are the steps of a task, in this thread: each image is decoded to where the shard is
    written from, and hashed while it is in the cache.
    """
    kind = probe(files[0].read_bytes(), Conversion())
    if isinstance(kind, Problem):
        raise MismatchError(f"{files[0]} {kind.detail}")
    shape, dtype = kind
    layout = choose_layout(len(files), image_bytes(shape, dtype))
    template = SplitTemplate(len(files), shape, dtype, layout)
    attributes = {"class_names": ["one"], "full_scale": FULL_SCALE, "provenance": {}}
    image_store.create_images(store, attributes, {"train": template})
    images = np.ones((layout.shard, *shape), dtype)  # not zeros: those are no memory yet
    labels, records = np.zeros(layout.shard, np.int32), np.empty(layout.shard, SAMPLE_RECORD)
    seconds = dict.fromkeys(("reading", "decoding", "hashing", "writing", "table"), 0.0)
    at = time.thread_time()

    def lap(name: str) -> None:
        nonlocal at
        now = time.thread_time()
        seconds[name] += now - at
        at = now

    for part in PartitionTable((("train", len(files), layout.shard),)):
        mine = files[part.start : part.stop]
        for row, file in enumerate(mine):
            data = file.read_bytes()
            lap("reading")
            decode(data, Conversion(), kind, out=images[row])
            lap("decoding")
            records[row : row + 1] = sample_records(images[row : row + 1], labels[:1])
            lap("hashing")
        block = Block(images[: part.count], labels[: part.count], [str(file) for file in mine])
        written = image_store.write_images(store, "train", part.start, block.images, block.labels)
        lap("writing")
        notes = part_notes("parts", block, records[: part.count], written)
        table = part_path(store, part.index)
        write_part(table, part, block, records[: part.count], ["train"], ["one"], notes)
        lap("table")
    return {name: part / len(files) for name, part in seconds.items()}


def remove_run(output: Path) -> None:
    """Remove the folder of a run, so that the next one starts from nothing."""
    shutil.rmtree(output, ignore_errors=True)
