"""What tasks run on: threads of this process, worker processes, or a scheduler's workers.

What cannot be had from here, or what does not fit into their memory, is refused.
"""

from __future__ import annotations

import importlib
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import dask.config
from dask.system import CPU_COUNT
from dask.utils import parse_timedelta

from pipeline.config.cluster_settings import ClusterSettings
from pipeline.core.errors import ClusterError, ConfigError, MemoryLimitError
from pipeline.execution import dask_config as defaults
from pipeline.execution import launchers as kinds
from pipeline.execution.memory import LEAST_BYTES, machine_memory
from pipeline.execution.progress import Reporter, SilentReporter

_WHERE_TO_LOOK = {
    "slurm": "squeue tells why jobs wait, the files slurm-*.out why workers ended",
    "kubernetes": "kubectl get pods tells why pods wait, kubectl logs why they ended",
}
_HERE = ("threads", "local", "gpus")  # the kinds of clusters on this machine


@dataclass(frozen=True)
class Workers:
    """What a cluster offers.

    Attributes
    ----------
    processes, tasks
        Worker processes, 0 where threads of this process do the work; and tasks that one runs at
        once.
    cores, memory
        Cores that all of them share; bytes of memory that one process may take.
    apart
        Whether they may be on several machines: then a task has the cores of its own process only.
    limited
        Whether the memory of this process was given, and is not just what the machine has.
    """

    processes: int
    tasks: int
    cores: int
    memory: int
    apart: bool = False
    limited: bool = field(default=False, compare=False)

    @property
    def at_once(self) -> int:
        """Tasks that all of them run at once."""
        return max(1, self.processes) * self.tasks

    def threads_for(self, count: int) -> int:
        """Return how many cores each of `count` tasks may use, so that all are used once."""
        share = max(1, self.cores // max(1, min(self.at_once, count)))
        return min(share, self.tasks) if self.apart else share


def find_workers(settings: ClusterSettings | None = None) -> Workers:
    """Tell what a cluster offers, by default the dask client of this process, else its threads.

    A scheduler is asked, nothing is started. `ConfigError` where no scheduler answers, or it cannot
    be told what workers will have.
    """
    chosen = settings or ClusterSettings()
    client = current_client() if settings is None else None
    if client is not None:
        return remote_workers(client, chosen)
    if chosen.kind in _HERE:
        return local_workers(chosen)
    with _configured(chosen):
        if chosen.kind != "scheduler":
            return asked_workers(chosen)
        with kinds.open_scheduler(chosen) as opened:
            return remote_workers(opened, chosen)


def require_cluster(settings: ClusterSettings) -> Workers | None:
    """Refuse a cluster that cannot be had from here, before anything is listed or started.

    Returns what it offers; None of a scheduler, which only its workers can tell. `ConfigError`
    where a program, a file, an address or a setting is missing, `MemoryLimitError` where a worker
    process could not even start.
    """
    if settings.kind == "scheduler":
        with _configured(settings):
            kinds.find_scheduler(settings)
        return None
    if settings.kind == "slurm":
        kinds.require_slurm()
    if settings.kind == "kubernetes":
        kinds.require_kubernetes()
    offered = find_workers(settings)
    if (offered.processes or offered.limited) and offered.memory < LEAST_BYTES:
        what = "a worker process" if offered.processes else "the process"
        raise MemoryLimitError(
            f"{what} takes {LEAST_BYTES / 1e9:.3g} GB before it has read anything, "
            f"expected at most {offered.memory / 1e9:.3g} GB, what it may take; give it more "
            "memory (cluster.memory), or take fewer processes (cluster.workers)"
        )
    return offered


def require_room(
    shards: Iterable[tuple[int, int]], partitions: int, workers: Workers, cure: str = ""
) -> None:
    """Refuse what reads or writes whole shards where those that are in memory at once do not fit.

    The least that it takes is counted: a process, and the samples of each task once. Threads of
    this process are refused by a limit that was given, and not by what there seems to be.

    Parameters
    ----------
    shards
        Samples a shard and bytes a sample, of each split.
    partitions, workers
        Shards in all, and where tasks run.
    cure
        What else helps; with `{shard}`, the samples of the largest shard.
    """
    count, sample = max(shards, key=lambda shard: shard[0] * shard[1])
    tasks = min(workers.tasks, partitions)
    needed = LEAST_BYTES + tasks * count * sample
    if needed <= workers.memory or not (workers.processes or workers.limited):
        return
    cures = ["give it more memory (cluster.memory, where the limit is not the machine's)"]
    fewer = "threads_per_worker: 1" if workers.processes else "cluster.workers: 1"
    cures += [f"run fewer tasks at once ({fewer})"] if tasks > 1 else []
    cures += [cure.format(shard=count)] if cure else []
    raise MemoryLimitError(
        f"{tasks} shard{'s'[: tasks > 1]} of {count * sample / 1e9:.3g} GB at once need "
        f"{needed / 1e9:.3g} GB in one process, expected at most {workers.memory / 1e9:.3g} GB, "
        f"what it may take; {', or '.join(cures)}"
    )


def current_client() -> Any:
    """Return the dask client that this process has opened, if any."""
    distributed = sys.modules.get("distributed")  # who has not imported it has no client
    if distributed is None:
        return None
    try:
        client = distributed.Client.current()
    except ValueError:
        return None
    return client if client.status == "running" and not client.asynchronous else None


def local_workers(settings: ClusterSettings) -> Workers:
    """Share this machine among its worker threads or processes."""
    if settings.kind == "threads":
        memory = settings.memory or machine_memory()
        tasks, given = settings.workers or CPU_COUNT, settings.memory is not None
        return Workers(0, tasks, CPU_COUNT, memory, limited=given)
    processes = _local_processes(settings)
    memory = settings.memory or machine_memory() // processes
    return Workers(processes, settings.threads_per_worker, CPU_COUNT, memory)


def _local_processes(settings: ClusterSettings) -> int:
    """Return how many worker processes this machine gets."""
    if settings.kind != "gpus":
        return settings.workers or max(1, CPU_COUNT // settings.threads_per_worker)
    gpus = len(kinds.visible_gpus())
    if (settings.workers or 0) > gpus:
        raise ConfigError(
            f"{settings.workers} workers on {gpus} GPU{'' if gpus == 1 else 's'}: expected at "
            "most one for each"
        )
    return settings.workers or gpus


def asked_workers(settings: ClusterSettings) -> Workers:
    """Tell what Slurm or Kubernetes will be asked for; needs dask to be configured for it."""
    if settings.kind == "slurm":
        processes = settings.workers or 1
        threads, memory = defaults.slurm_offer()
    else:
        processes, threads, memory = defaults.kubernetes_offer(settings)
    return Workers(processes, threads, processes * threads, memory, apart=True)


def remote_workers(client: Any, settings: ClusterSettings) -> Workers:
    """Ask a scheduler for its workers; the one with the least memory counts."""
    workers = client.scheduler_info(n_workers=-1)["workers"]
    if not workers:
        raise ConfigError(
            f"the dask scheduler at {client.scheduler.address} has no workers; start some with "
            f"'dask worker {client.scheduler.address}'"
        )
    tasks = max(worker["nthreads"] for worker in workers.values())
    memory = settings.memory or _least_memory(client, workers)
    # a worker's threads are its cores
    cores = sum(worker["nthreads"] for worker in workers.values())
    return Workers(len(workers), tasks, cores, memory, apart=True)


def _least_memory(client: Any, workers: dict[str, Any]) -> int:
    """Return what one worker may take: of its limit of dask's, and of its machine's."""
    answers = client.run(usable_memory, on_error="return")
    hosts = Counter(worker["host"] for worker in workers.values())
    limits = []
    for address, answer in answers.items():
        if isinstance(answer, BaseException):
            raise ClusterError(
                f"the worker {address} cannot run pixsim ({type(answer).__name__}: {answer}); "
                "install the same version of it there"
            )
        limit, machine = answer
        mates = hosts[workers[address]["host"]] if address in workers else 1
        limits += [limit, machine if limit else machine // mates]
    return min((limit for limit in limits if limit), default=machine_memory())


def usable_memory(dask_worker: Any) -> tuple[int, int]:
    """Tell, on a worker, how much of its limit it may use (0: no limit), and of its machine."""
    manager = dask_worker.memory_manager
    limit = manager.memory_limit or 0
    shares = [
        dask.config.get(f"distributed.worker.memory.{what}") for what in ("pause", "terminate")
    ]
    return int(limit * min((share for share in shares if share), default=1)), machine_memory()


@contextmanager
def open_client(
    settings: ClusterSettings, reporter: Reporter | None = None
) -> Iterator[tuple[Any, Workers]]:
    """Open a cluster, wait for a worker of it, and yield dask's client and what its workers offer.

    `ConfigError` where the cluster cannot be as it is described, `ClusterError` where it cannot be
    had, or no worker comes.
    """
    with _configured(settings), _opened(settings) as client:
        _wait_for_workers(client, settings, reporter or SilentReporter())
        if settings.kind == "scheduler":
            yield client, remote_workers(client, settings)
        else:
            yield client, (local_workers if settings.kind in _HERE else asked_workers)(settings)


@contextmanager
def _configured(settings: ClusterSettings) -> Iterator[None]:
    importlib.import_module("distributed")  # a second, and the defaults of dask's configuration
    with defaults.dask_defaults(*defaults.configuration(settings)):
        yield


def _opened(settings: ClusterSettings) -> AbstractContextManager[Any]:
    if settings.kind in _HERE:
        workers = local_workers(settings)
        pinned = kinds.visible_gpus() if settings.kind == "gpus" else ()
        return kinds.open_processes(settings, workers.processes, workers.memory, pinned)
    if settings.kind == "scheduler":
        return kinds.open_scheduler(settings)
    return (kinds.open_slurm if settings.kind == "slurm" else kinds.open_kubernetes)(settings)


def patience() -> float:
    """Return the seconds after which a job without any worker fails, of dask's configuration."""
    timeout = dask.config.get("distributed.scheduler.no-workers-timeout", None)
    return float("inf") if timeout is None else float(parse_timedelta(timeout))


def _wait_for_workers(client: Any, settings: ClusterSettings, reporter: Reporter) -> None:
    """Wait for the first worker; of a running scheduler, for as many as the settings say."""
    wanted = settings.workers or 1 if settings.kind == "scheduler" else 1
    if settings.kind == "scheduler" and settings.workers is None:
        return  # what is there counts
    there = len(client.scheduler_info(n_workers=-1)["workers"])
    if there >= wanted:
        return
    seconds = patience()
    limit = "" if seconds == float("inf") else f", at most {seconds / 60:.3g} minutes"
    reporter.say(f"waiting for {wanted - there} worker{'s'[: wanted - there > 1]}{limit}")
    try:
        client.wait_for_workers(wanted, timeout=None if seconds == float("inf") else seconds)
    except TimeoutError:
        where = _WHERE_TO_LOOK.get(settings.kind, "the logs of the workers tell why they ended")
        raise ClusterError(
            f"{wanted} worker{'s'[: wanted > 1]} did not come within {seconds / 60:.3g} minutes "
            f"({where}); distributed.scheduler.no-workers-timeout in "
            "dask's configuration lets it wait longer"
        ) from None
