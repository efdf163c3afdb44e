"""Worker processes that die while they work: by dask's own chaos, and by SIGKILL."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import dask.config
import distributed
import numpy as np
from distributed.chaos import KillWorker
from distributed.diagnostics.plugin import WorkerPlugin

import pipeline
from pipeline.core.errors import ClusterError, ConfigError
from pipeline.execution.compute import PREFIX
from pipeline.jobs import search_plan
from pipeline.sources.arrays import from_arrays

CHAOS = ("sys.exit", "segfault", "graceful")
SIGKILL = "SIGKILL"
_WORKERS = 2
_MOST_TRIES = 100  # on a busy machine each gets little done
_PATIENCE_SECONDS = 8
_NAMES = ("ant", "bee", "cat")


class KillBetweenTasks(WorkerPlugin):
    """Kills a worker with SIGKILL when it begins one of its tasks, as often as it may."""

    def __init__(self, folder: Path, task: int, times: int) -> None:
        self.folder, self.task, self.times = folder, task, times
        self.begun = 0

    def transition(self, key: Any, start: str, finish: str, **_: Any) -> None:
        if finish != "executing" or not str(key).lstrip("('").startswith(PREFIX):
            return
        self.begun += 1
        if self.begun >= self.task and _claim(self.folder, self.times):
            os.kill(os.getpid(), signal.SIGKILL)


class CountStarts(WorkerPlugin):
    """Leaves a file for every worker that started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def setup(self, worker: Any) -> None:
        (self.folder / f"started-{os.getpid()}").touch()


def _claim(folder: Path, times: int) -> bool:
    """Take one of the deaths that there may be, among all workers; tell whether one was left."""
    for number in range(times):
        with suppress(FileExistsError):
            (folder / f"killed-{number}").touch(exist_ok=False)
            return True
    return False


@dataclass
class Deaths:
    """What became of jobs whose workers died.

    Attributes
    ----------
    workers
        How many died and were started again.
    resumed
        How often a job gave up, with a clear error, and was run again.
    digests
        Of the image set and the run, in the end.
    """

    workers: int = 0
    resumed: int = 0
    digests: list[Any] = field(default_factory=list)


def make_source(partitions: int, shard: int) -> Any:
    """Return a source of small images that fill as many partitions, half of them of `test`."""
    rng = np.random.default_rng(0)
    count = partitions * shard // 2
    splits = {
        split: (rng.integers(0, 256, (count, 6, 5), np.uint8), np.arange(count, dtype=np.int32) % 3)
        for split in ("train", "test")
    }
    return from_arrays(splits, _NAMES)


def work(folder: Path, source: Any, shard: int, cluster: str) -> list[Any]:
    """Ingest a source and run a job on it; return both digests."""
    images = pipeline.ingest(source, folder / "i.zarr", shard, pipeline.make_cluster(cluster))
    settings = {"name": "r", "images": str(images), "output": str(folder / "run")}
    settings |= {"device": "cpu", "cluster": cluster, "neighbours": {"k": 3}}
    with patch.object(search_plan, "_STEP_BYTES", 30 * shard):  # as many tasks as partitions
        pipeline.run_job(pipeline.make_job(settings))
    return [pipeline.digest(images), pipeline.digest(folder / "run")]


def work_while_workers_die(folder: Path, source: Any, shard: int, *plugins: WorkerPlugin) -> Deaths:
    """Do it on worker processes that plugins kill; on new ones, wherever all were lost."""
    found = Deaths()
    for _ in range(_MOST_TRIES):
        with _cluster() as client:
            for plugin in (CountStarts(folder), *plugins):
                client.register_plugin(plugin)
            try:
                found.digests = work(folder, source, shard, client.scheduler.address)
                break
            except (ClusterError, ConfigError):  # no worker left, or none when it began
                found.resumed += 1
    found.workers = len(list(folder.glob("started-*"))) - _WORKERS
    return found


@contextmanager
def _cluster() -> Iterator[distributed.Client]:
    # a worker that exits by itself is not started again, so that in the end there is none
    patience = {"distributed.scheduler.no-workers-timeout": _PATIENCE_SECONDS}
    with (
        dask.config.set(patience),
        distributed.LocalCluster(
            n_workers=_WORKERS, threads_per_worker=1, dashboard_address=None, silence_logs=60
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def time_undisturbed(folder: Path, source: Any, shard: int) -> float:
    """Return how many seconds the work takes on worker processes that live."""
    begin = time.monotonic()
    with _cluster() as client:
        work(folder, source, shard, client.scheduler.address)
    return time.monotonic() - begin


def chaos(mode: str, seconds: float) -> WorkerPlugin:
    """Return dask's plugin that ends each worker after a random time, `seconds` on average."""
    return KillWorker(seconds, mode)


def killing(folder: Path, rng: random.Random, times: int) -> WorkerPlugin:
    """Return a plugin that kills workers so many times, after a random number of tasks each."""
    return KillBetweenTasks(folder, rng.randint(2, 12), times)
