"""What tasks run on: threads of this process, worker processes, or a scheduler's workers."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dask.system import CPU_COUNT

from pipeline.cluster_settings import ClusterSettings
from pipeline.errors import ConfigError
from pipeline.memory import machine_memory

_CONNECT_SECONDS = 30


@dataclass(frozen=True)
class Workers:
    """What a cluster offers.

    Attributes
    ----------
    processes
        Worker processes; 0 where threads of this process do the work.
    tasks
        Tasks that one process runs at once.
    cores
        Cores that all of them share.
    memory
        Bytes of memory that one process may take.
    """

    processes: int
    tasks: int
    cores: int
    memory: int


def find_workers(settings: ClusterSettings | None = None) -> Workers:
    """Tell what a job file's `cluster` offers; a scheduler is asked, nothing is started.

    Raises
    ------
    ConfigError
        Where no scheduler answers at the address.
    """
    chosen = settings or ClusterSettings()
    if chosen.kind != "scheduler":
        return local_workers(chosen)
    with open_client(chosen) as client:
        return remote_workers(client, chosen)


def local_workers(settings: ClusterSettings) -> Workers:
    """Share this machine among its worker threads or processes."""
    if settings.kind == "threads":
        memory = settings.memory or machine_memory()
        return Workers(0, settings.workers or CPU_COUNT, CPU_COUNT, memory)
    processes = settings.workers or max(1, CPU_COUNT // settings.threads_per_worker)
    memory = settings.memory or machine_memory() // processes
    return Workers(processes, settings.threads_per_worker, CPU_COUNT, memory)


def remote_workers(client: Any, settings: ClusterSettings) -> Workers:
    """Ask a scheduler for its workers; the one with the least memory counts."""
    found = list(client.scheduler_info(n_workers=-1)["workers"].values())
    if not found:
        raise ConfigError(
            f"the dask scheduler at {settings.address} has no workers; start some with "
            f"'dask worker {settings.address}'"
        )
    tasks = max(worker["nthreads"] for worker in found)
    limits = [worker["memory_limit"] for worker in found if worker["memory_limit"]]
    memory = settings.memory or min(limits, default=machine_memory())
    # a worker's threads are its cores
    return Workers(len(found), tasks, sum(worker["nthreads"] for worker in found), memory)


@contextmanager
def open_client(settings: ClusterSettings) -> Iterator[Any]:
    # distributed takes a second to import; threads do without
    distributed = importlib.import_module("distributed")
    if settings.kind == "local":
        with (
            distributed.LocalCluster(
                n_workers=settings.workers or max(1, CPU_COUNT // settings.threads_per_worker),
                threads_per_worker=settings.threads_per_worker,
                dashboard_address=None,
                memory_limit=settings.memory or "auto",
                silence_logs=logging.ERROR,
            ) as cluster,
            distributed.Client(cluster) as client,
        ):
            yield client
        return
    try:
        client = distributed.Client(settings.address, timeout=_CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"no dask scheduler answers at {settings.address} ({error}); start one with "
            "'dask scheduler', or use --set cluster=threads"
        ) from None
    with client:
        yield client
