"""Where tasks run: threads of this process, worker processes, or a running scheduler.

A job maps a function over partition numbers, or adds up what it returns. The graph is
symbolic: it holds the function once and a number for each partition. A function may be run
twice, so what it writes must come out the same.
"""

from __future__ import annotations

import importlib
import math
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import dask
import dask.array as da
import numpy as np
import numpy.typing as npt

from pipeline.clients import Workers, local_workers, open_client, remote_workers
from pipeline.cluster_settings import ClusterSettings
from pipeline.errors import PixsimError
from pipeline.exact import Int64Array
from pipeline.progress import Phase
from pipeline.reduction import LARGE_BYTES, add_up

PartitionFunction = Callable[[int], Any]
AddPartition = Callable[[int, Int64Array], None]


class Executor(Protocol):
    """Runs a function once for every partition number below `count`."""

    @property
    def description(self) -> str: ...

    @property
    def layout(self) -> Workers: ...

    def threads_for(self, count: int) -> int:
        """Return how many cores each of `count` tasks may use, so that all are used once."""
        ...

    def map(self, function: PartitionFunction, count: int, phase: Phase) -> list[Any]:
        """Return what the function returns, in order; small values only."""
        ...

    def add(
        self, function: AddPartition, count: int, shape: tuple[int, ...], phase: Phase
    ) -> Int64Array:
        """Return an int64 array of `shape` to which the function added every partition."""
        ...


_listeners: dict[str, Callable[[], None]] = {}


@dataclass(frozen=True)
class _Task:
    """Calls the function for one block and tells the client that it is done."""

    function: PartitionFunction
    count: int
    topic: str

    def __call__(self, block_id: tuple[int, ...]) -> npt.NDArray[Any]:
        # dask begins with the last blocks; sources that are streams are read from the front
        boxed = np.empty(1, object)
        with _errors_that_travel(self.topic):
            boxed[0] = self.function(self.count - 1 - block_id[0])
        _tell(self.topic)
        return boxed


@dataclass(frozen=True)
class _AddTask:
    """Adds one partition to an accumulator of its own, or to the one it is given.

    On workers to a copy of that, since dask may run a task again there. Threads of this process run
    each task once.
    """

    function: AddPartition
    shape: tuple[int, ...]
    topic: str
    copies: bool

    def __call__(self, index: int, before: Int64Array | None = None) -> Int64Array:
        total = np.zeros(self.shape, np.int64) if before is None else before
        if self.copies and before is not None:
            total = before.copy()
        with _errors_that_travel(self.topic):
            self.function(index, total)
        _tell(self.topic)
        return total

    def block(self, block_id: tuple[int, ...]) -> Int64Array:
        """Add the partition of one block, [1, *shape]."""
        return self(block_id[0])[None]

    def last(self, index: int, before: Int64Array | None = None) -> Int64Array:
        """Add the last partition of a lane, [1, *shape]."""
        return self(index, before)[None]


@contextmanager
def _errors_that_travel(topic: str) -> Iterator[None]:
    """On a worker, drop what caused an error: it may be of a kind that cannot be sent."""
    try:
        yield
    except PixsimError as error:
        if topic not in _listeners:
            error.__cause__ = error.__context__ = None
        raise


def _tell(topic: str) -> None:
    """Say that a task is done: to this process's listener, or to the client of its scheduler."""
    listener = _listeners.get(topic)
    if listener is not None:
        listener()
    else:
        importlib.import_module("distributed").get_worker().log_event(topic, 1)


def _blocks(task: _Task) -> da.Array:
    return da.map_blocks(
        task, name=task.topic, chunks=((1,) * task.count,), dtype=object, meta=np.empty(0, object)
    )


def _sum_blocks(task: _AddTask, count: int) -> da.Array:
    """Return [partition, *shape]: an accumulator for each partition, for a tree of additions."""
    return da.map_blocks(
        task.block,
        name=task.topic,
        chunks=((1,) * count, *((size,) for size in task.shape)),
        dtype=np.int64,
        meta=np.empty((0,) * (1 + len(task.shape)), np.int64),
    )


def _lanes(task: _AddTask, count: int, lanes: int) -> da.Array:
    """Return [lane, *shape]: a large accumulator for each worker, not for each partition.

    A lane adds one partition after the other, so what a worker holds does not grow with their
    number, nor depend on the order in which a tree would be worked off.
    """
    graph: dict[Any, Any] = {}
    zeros = (0,) * len(task.shape)
    for index in range(count):
        before = [] if index < lanes else [(f"{task.topic}-step", index - lanes)]
        if index + lanes < count:
            graph[f"{task.topic}-step", index] = (task, index, *before)
        else:
            graph[(task.topic, index + lanes - count, *zeros)] = (task.last, index, *before)
    chunks = ((1,) * lanes, *((size,) for size in task.shape))
    return da.Array(graph, task.topic, chunks, np.int64)


@dataclass(frozen=True)
class _DaskExecutor:
    """Runs blocks through `compute`, which takes a dask collection and returns its value."""

    description: str
    compute: Callable[[Any], Any]
    layout: Workers
    client: Any = None

    def threads_for(self, count: int) -> int:
        return max(1, self.layout.cores // max(1, min(self._at_once, count)))

    @property
    def _at_once(self) -> int:
        return max(1, self.layout.processes) * self.layout.tasks

    def map(self, function: PartitionFunction, count: int, phase: Phase) -> list[Any]:
        if not count:
            return []
        with self._listening(phase) as topic:
            return list(self.compute(_blocks(_Task(function, count, topic))))[::-1]

    def add(
        self, function: AddPartition, count: int, shape: tuple[int, ...], phase: Phase
    ) -> Int64Array:
        if not count:
            return np.zeros(shape, np.int64)
        with self._listening(phase) as topic:
            task = _AddTask(function, shape, topic, copies=self.client is not None)
            if 8 * math.prod(shape) > LARGE_BYTES:
                blocks = _lanes(task, count, min(count, self._at_once))
            else:
                blocks = _sum_blocks(task, count)
            # delayed, since dask copies an array of one block before it hands it over
            total: Int64Array = self.compute(add_up(blocks).to_delayed(optimize_graph=False).item())
            return total

    @contextmanager
    def _listening(self, phase: Phase) -> Iterator[str]:
        """Advance the phase for each block that tells of its end, here or on a worker."""
        topic = f"pixsim-{uuid.uuid4().hex}"
        lock = threading.Lock()

        def advance(_: object = None) -> None:
            with lock:
                phase.advance()

        if self.client is None:
            _listeners[topic] = advance
        else:
            self.client.subscribe_topic(topic, advance)
        try:
            yield topic
        finally:
            _listeners.pop(topic, None)
            if self.client is not None:
                self.client.unsubscribe_topic(topic)


@contextmanager
def open_executor(settings: ClusterSettings | None = None) -> Iterator[Executor]:
    """Open what a job file's `cluster` names, and close it at the end.

    Raises
    ------
    ConfigError
        Where no scheduler answers at the address.
    """
    chosen = settings or ClusterSettings()
    if chosen.kind == "threads":
        layout = local_workers(chosen)
        workers = layout.tasks
        yield _DaskExecutor(
            f"{workers} thread{'' if workers == 1 else 's'}",
            lambda collection: _compute_here(collection, workers),
            layout,
        )
        return
    with open_client(chosen) as client:
        layout = local_workers(chosen) if chosen.kind == "local" else remote_workers(client, chosen)
        workers = layout.processes
        where = chosen.address or "this machine"
        yield _DaskExecutor(
            f"{workers} dask worker{'' if workers == 1 else 's'} on {where}",
            lambda collection: _result(client, collection),
            layout,
            client,
        )


def _compute_here(collection: Any, workers: int) -> Any:
    # not optimised: there is nothing to gain, and lanes must not be fused into one task
    (found,) = dask.compute(
        collection, scheduler="threads", num_workers=workers, optimize_graph=False
    )
    return found


def _result(client: Any, collection: Any) -> Any:
    future = client.compute(collection, optimize_graph=False)
    try:
        return future.result()
    finally:
        future.cancel()
