"""One job of many partitions, planned in a process of its own: prints seconds and peak memory.

Run as `python -m benchmarks.child_planning FOLDER PARTITIONS`. The image set has the manifest of as
many partitions as asked for, and no pixels, which no plan reads. The graphs of both passes are
handed to a dask scheduler, a process of its own, that has no workers.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import distributed
import numpy as np

import pipeline
from benchmarks.child import peak_memory
from pipeline.core.partitions import Layout
from pipeline.execution.executor import Executor, OpenCluster
from pipeline.execution.progress import SilentReporter
from pipeline.execution.workers import Workers
from pipeline.jobs import fit_pass, job
from pipeline.jobs.plan import JobPlan, plan_job
from pipeline.sources.arrays import from_arrays
from pipeline.storage import image_store, manifest
from pipeline.storage.zarr_arrays import consolidate

SPLITS = ("train", "test")
CLASSES = 10
WORKERS = Workers(processes=100, tasks=4, cores=400, memory=8 * 10**9, apart=True)
SHARD = 8
# What a scheduler with so many tasks may take until it answers.
PATIENCE_SECONDS = 120


class HandedOverError(Exception):
    """The graph is with the scheduler, and nothing of it will be computed."""


@dataclass
class Passes:
    """The graphs of the passes of a job, and the seconds that the scheduler took to unpack them."""

    collections: list[Any] = field(default_factory=list)
    scheduler_seconds: float = 0.0


def make_images(folder: Path, partitions: int) -> Path:
    """Write an image set without pixels, of so many partitions in two splits."""
    path, each = folder / "images.zarr", partitions // len(SPLITS)
    pixels, labels = np.zeros((CLASSES, 8, 8), np.uint8), np.arange(CLASSES, dtype=np.int32)
    names = [f"class {code}" for code in range(CLASSES)]
    arrays = dict.fromkeys(SPLITS, (pixels, labels))
    small = pipeline.ingest(from_arrays(arrays, names), folder / "small.zarr", SHARD)
    content = manifest.read_manifest(small, manifest.IMAGES)
    templates = {
        split: image_store.SplitTemplate(each * SHARD, (8, 8), "uint8", Layout(SHARD, SHARD))
        for split in SPLITS
    }
    attributes = {name: content[name] for name in ("class_names", "full_scale", "provenance")}
    image_store.create_images(path, attributes, templates, None)
    consolidate(path, SPLITS)
    for split in SPLITS:
        content["splits"][split] |= {
            "count": each * SHARD,
            "labels": [each * SHARD // CLASSES] * CLASSES,
            "chunk": SHARD,
            "shard": SHARD,
        }
    digest = content["partitions"][0]["digest"]
    content["partitions"] = [
        {"split": split, "start": at * SHARD, "stop": (at + 1) * SHARD, "digest": digest}
        for split in SPLITS
        for at in range(each)
    ]
    content["arrays"] = {name: marks[:1] * each for name, marks in content["arrays"].items()}
    documents = [name for name in content["files"] if name.endswith("zarr.json")]
    content["files"] = manifest.file_hashes(path, documents)
    manifest.put_manifest(path, content)
    return path


@contextmanager
def scheduler(folder: Path) -> Iterator[Path]:
    """Run a scheduler without workers; yields the file with its address."""
    file = folder / "scheduler.json"
    command = [
        sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1",
        "--port", "0", "--no-dashboard", "--scheduler-file", str(file),
    ]  # fmt: skip
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=quiet, stderr=quiet)
    try:
        while not file.exists():
            time.sleep(0.1)
        yield file
    finally:
        process.terminate()
        process.wait(30)


def hand_over(client: distributed.Client, collection: Any) -> None:
    """Send a graph to the scheduler, and wait until it has all of it."""
    future = client.compute(collection, optimize_graph=False)
    handed = time.perf_counter()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while client.run_on_scheduler(_unplanned) and time.monotonic() < deadline:
        time.sleep(0.1)
    future.cancel()
    raise HandedOverError(time.perf_counter() - handed)


def _unplanned(dask_scheduler: Any) -> bool:
    return not dask_scheduler.tasks


def plan_all(client: distributed.Client, images: Path, output: Path) -> tuple[JobPlan, Passes]:
    """Plan a job, and hand over the graphs of its passes."""
    settings = {"name": "planned", "images": str(images), "output": str(output), "device": "cpu"}
    plan = plan_job(pipeline.make_job(settings), images, WORKERS)
    found, reporter = Passes(), SilentReporter()

    def compute(collection: Any) -> Any:
        found.collections.append(collection)
        hand_over(client, collection)

    executor = Executor(lambda: OpenCluster("a scheduler", compute, WORKERS, client), WORKERS)
    for begin in (
        lambda: fit_pass.fit(plan, executor, reporter),
        lambda: job._evaluate(plan, executor, reporter, ""),
    ):
        try:
            begin()
        except HandedOverError as handed:
            found.scheduler_seconds += handed.args[0]
    return plan, found


def main(folder: str, partitions: str) -> None:
    """Make the image set, then measure what the job's client takes to plan."""
    place = Path(folder)
    images = make_images(place, int(partitions))
    with scheduler(place) as file, distributed.Client(scheduler_file=str(file)) as client:
        started = time.perf_counter()
        plan, passes = plan_all(client, images, place / "run")
        seconds = time.perf_counter() - started
        peak = peak_memory()
    found = {
        "seconds": seconds - passes.scheduler_seconds,
        "scheduler_seconds": passes.scheduler_seconds,
        "peak_memory": peak,
        "partitions": len(plan.fit) + plan.evaluate.steps,
        "tasks": sum(len(each.__dask_graph__()) for each in passes.collections),
    }
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
