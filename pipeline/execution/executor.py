"""Where tasks run: threads of this process, or the workers of a dask scheduler.

A job maps a function over partition numbers, or adds up what it returns. The graph is
symbolic: it holds the function once and a number for each partition. A function may be run
twice, so what it writes must come out the same.
"""

from __future__ import annotations

import importlib
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.config.cluster_settings import ClusterSettings, make_cluster
from pipeline.core.arguments import checked
from pipeline.core.deferred import da
from pipeline.core.exact import Int64Array
from pipeline.execution.checkpoints import AddPartition, CheckpointedSum, Checkpoints, Tell
from pipeline.execution.compute import (
    PREFIX,
    compute_there,
    each_here,
    one_task,
    profiled,
    refuse_profile,
)
from pipeline.execution.launchers import dashboard_link
from pipeline.execution.memory import peak_memory
from pipeline.execution.progress import SILENT, Phase, Reporter, SilentReporter
from pipeline.execution.workers import (
    Workers,
    current_client,
    local_workers,
    open_client,
    remote_workers,
    require_cluster,
)
from pipeline.ops.reduction import add_up

PartitionFunction = Callable[..., Any]


_listeners: dict[str, Callable[[int], None]] = {}


@dataclass(frozen=True)
class _Task:
    """Calls a function for one block; the function tells how many partitions are done."""

    function: Callable[[int, Tell], Any]
    count: int
    topic: str

    def run(self, number: int) -> Any:
        """Do one, and say what it returned."""
        with one_task(travels=self.topic not in _listeners):
            return self.function(number, partial(_tell, self.topic))

    def numbered(self, number: int) -> tuple[int, Any]:
        """Do one, and return its number too."""
        return number, self.run(number)

    def __call__(self, block_id: tuple[int, ...]) -> npt.NDArray[Any]:
        # dask begins with the last blocks; sources that are streams are read from the front
        result = self.run(self.count - 1 - block_id[0])
        if isinstance(result, np.ndarray):
            return result
        boxed = np.empty(1, object)
        boxed[0] = result
        return boxed


@dataclass(frozen=True)
class _Reporting:
    """Has one partition be done once a function returns."""

    function: PartitionFunction

    def __call__(self, index: int, tell: Tell) -> Any:
        result = self.function(index)
        tell(1)
        return result


def _tell(topic: str, partitions: int) -> None:
    """Say that some are done: to this process's listener, or to the client of its scheduler."""
    listener = _listeners.get(topic)
    if listener is not None:
        listener(partitions)
    else:
        importlib.import_module("distributed").get_worker().log_event(topic, partitions)


def _blocks(task: _Task, shape: tuple[int, ...] | None = None) -> da.Array:
    """Return what a task returns for each number, lazily: anything, or integers of a shape."""
    dtype: Any = object if shape is None else np.int64
    return da.map_blocks(
        task,
        name=f"{task.topic}-{uuid.uuid4().hex}",
        chunks=((1,) * task.count, *((size,) for size in shape or ())),
        dtype=dtype,
        meta=np.empty((0,) * (1 + len(shape or ())), dtype),
    )


@dataclass(frozen=True)
class OpenCluster:
    """A cluster that is open.

    Attributes
    ----------
    description, workers
        What it is, for people, and what it offers.
    each
        Calls a function for each number below a count, in threads of this process; yields what it
        returns as it is done.
    compute
        Takes a dask collection and returns its value, where there is a `client` of dask's.
    """

    description: str
    workers: Workers
    each: Callable[[Callable[[int], Any], int], Iterator[Any]] | None = None
    compute: Callable[[Any], Any] | None = None
    client: Any = None


class Executor:
    """Runs tasks on a cluster that is opened when the first of them needs it.

    What a job can be refused for without a worker is refused before one is waited for, and what is
    finished needs none. `offered` is what its workers will be; None where only they can tell.
    """

    def __init__(self, open_cluster: Callable[[], OpenCluster], offered: Workers | None) -> None:
        self._open_cluster, self.offered = open_cluster, offered

    @cached_property
    def opened(self) -> OpenCluster:
        return self._open_cluster()

    @property
    def description(self) -> str:
        return self.opened.description

    @property
    def layout(self) -> Workers:
        return self.offered or self.opened.workers

    def threads_for(self, count: int) -> int:
        """Return how many cores each of `count` tasks may use, so that all are used once."""
        return self.layout.threads_for(count)

    def map(
        self, function: PartitionFunction, count: int, phase: Phase = SILENT, *, tells: bool = False
    ) -> list[Any]:
        """Return what the function returns for each number below `count`; small values only.

        With `tells` it is given another function besides, which it tells how many partitions are
        done; else each call is one.
        """
        if not count:
            return []
        with self._listening(phase) as topic:
            return self._map(_Task(function if tells else _Reporting(function), count, topic))

    def add(self, function: AddPartition, kept: Checkpoints, phase: Phase) -> Int64Array:
        """Return an int64 array of `kept.shape` to which the function added every partition.

        `kept` holds what an earlier try counted, and is given what this one counts.
        """
        if not kept.partitions:
            return np.zeros(kept.shape, np.int64)
        tasks = CheckpointedSum(function, kept, self.layout.at_once)
        with self._listening(phase) as topic:
            if tasks.saves:
                self._map(_Task(tasks.save, kept.batches, topic))
            task, opened = _Task(tasks.add, tasks.shares, topic), self.opened
            if opened.compute is None:
                return self._add_here(task)
            # delayed, since dask copies an array of one block before it hands it over
            lazy = add_up(_blocks(task, kept.shape)).to_delayed(optimize_graph=False).item()
            total: Int64Array = opened.compute(lazy)
            return total

    def _add_here(self, task: _Task) -> Int64Array:
        """Add up in this thread what the others return, as it comes: the order does not matter."""
        total: Int64Array | None = None
        for (part,) in self._each(task.run, task.count):
            total = part if total is None else np.add(total, part, out=total)
        if total is None:
            raise ValueError("nothing to add up, expected one task at least")
        return total

    def _each(self, function: Callable[[int], Any], count: int) -> Iterator[Any]:
        if self.opened.each is None:
            raise ValueError("a cluster without threads of this process")
        return self.opened.each(function, count)

    def peak_memory(self) -> int | None:
        """Return the most bytes that a process that runs tasks has held, where it can be asked."""
        return max(self.everywhere(peak_memory), default=None)

    def everywhere(self, function: Callable[[], Any]) -> list[Any]:
        """Return what a function returns in each process that runs tasks and can be asked."""
        client = self.opened.client
        if client is None:
            return [function()]
        try:
            return list(client.run(function, on_error="ignore").values())
        except Exception:  # a cluster that goes away now has done its work
            return []

    def compute(self, collection: Any) -> Any:
        """Return the value of a dask collection."""
        opened = self.opened
        if opened.compute is not None:
            return opened.compute(collection)
        (result,) = self._each(
            lambda _: collection.compute(
                scheduler="threads", num_workers=opened.workers.tasks, optimize_graph=False
            ),
            1,
        )
        return result

    def _map(self, task: _Task) -> list[Any]:
        if self.opened.compute is not None:
            return list(self.opened.compute(_blocks(task)))[::-1]
        results = dict(self._each(task.numbered, task.count))
        return [results[number] for number in range(task.count)]

    @contextmanager
    def _listening(self, phase: Phase) -> Iterator[str]:
        """Advance the phase for each block that tells of its end, here or on a worker."""
        topic, client = f"{PREFIX}{uuid.uuid4().hex}", self.opened.client
        lock = threading.Lock()

        def advance(partitions: int = 1) -> None:
            with lock:
                phase.advance(partitions)

        if client is None:
            _listeners[topic] = advance
        else:
            client.subscribe_topic(topic, lambda event: advance(event[1]))
        try:
            yield topic
        finally:
            _listeners.pop(topic, None)
            if client is not None:
                client.unsubscribe_topic(topic)


@checked
@contextmanager
def open_executor(
    settings: ClusterSettings | str | None = None,
    reporter: Reporter | None = None,
    profile: Path | None = None,
) -> Iterator[Executor]:
    """Open a cluster, and close it at the end.

    Parameters
    ----------
    settings
        What a job file's `cluster` says, also as a text; default: the dask client that this process
        has opened, which stays open, else threads.
    reporter
        Told of the dashboard's address, and of what is waited for.
    profile
        A page of HTML to write dask's performance report into.

    Raises
    ------
    ConfigError
        Where no scheduler answers at the address, or the cluster cannot be as it is described.
    ClusterError
        Where it cannot be had, or no worker comes.
    """
    with deferred_executor(settings, reporter, profile) as executor:
        _ = executor.opened
        yield executor


@contextmanager
def deferred_executor(
    settings: ClusterSettings | str | None = None,
    reporter: Reporter | None = None,
    profile: Path | None = None,
) -> Iterator[Executor]:
    """Give an executor whose cluster is opened by the first task, and close it at the end.

    Parameters and errors are those of `open_executor`; settings of a cluster are checked now.
    """
    chosen = make_cluster(settings) if isinstance(settings, str) else settings or ClusterSettings()
    client = current_client() if settings is None else None
    if profile is not None:
        refuse_profile(profile, "scheduler" if client is not None else chosen.kind)
    offered = None if client is not None else require_cluster(chosen)
    with ExitStack() as stack:
        arguments = chosen, client, reporter or SilentReporter(), profile
        yield Executor(lambda: stack.enter_context(_opened(*arguments)), offered)


@contextmanager
def _opened(
    chosen: ClusterSettings, client: Any, listener: Reporter, profile: Path | None
) -> Iterator[OpenCluster]:
    """Open a cluster, or use a client that is there; what could be refused was."""
    if client is not None:
        with profiled(client, profile, listener):
            yield _on_workers(client, remote_workers(client, chosen), chosen)
    elif chosen.kind == "threads":
        workers = local_workers(chosen)
        count = workers.tasks
        each = partial(each_here, workers=count, grace=chosen.grace)
        yield OpenCluster(f"{count} thread{'' if count == 1 else 's'}", workers, each)
    else:
        with open_client(chosen, listener) as (opened, workers):
            link = dashboard_link(opened, chosen)
            if link is not None:
                listener.say(f"dashboard at {link}")
            with profiled(opened, profile, listener):
                yield _on_workers(opened, workers, chosen)


def _on_workers(client: Any, workers: Workers, settings: ClusterSettings) -> OpenCluster:
    names = {"local": "this machine", "gpus": "GPUs of this machine", "slurm": "Slurm"}
    where = names.get(settings.kind) or settings.address or client.scheduler.address
    count = workers.processes
    return OpenCluster(
        f"{count} dask worker{'' if count == 1 else 's'} on {where}",
        workers,
        compute=partial(compute_there, client, grace=settings.grace),
        client=client,
    )
