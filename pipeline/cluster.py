"""Where tasks run: threads of this process, worker processes, or a running scheduler.

A job maps a function over partition numbers, or adds up what it returns. The graph is
symbolic: it holds the function once and a number for each partition. A function may be run
twice, so what it writes must come out the same.
"""

from __future__ import annotations

import importlib
import logging
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import dask
import dask.array as da
import numpy as np
from dask.system import CPU_COUNT

from pipeline.config import ClusterSettings
from pipeline.errors import ConfigError
from pipeline.exact import Int64Array
from pipeline.progress import Phase
from pipeline.prototype import SPLIT_EVERY

_CONNECT_SECONDS = 30

PartitionFunction = Callable[[int], Any]


class Executor(Protocol):
    """Runs a function once for every partition number below `count`."""

    @property
    def description(self) -> str: ...

    def map(self, function: PartitionFunction, count: int, phase: Phase) -> list[Any]:
        """Return what the function returns, in order; small values only."""
        ...

    def add(
        self, function: PartitionFunction, count: int, shape: tuple[int, ...], phase: Phase
    ) -> Int64Array:
        """Return the sum of the int64 arrays of `shape` that the function returns."""
        ...


_listeners: dict[str, Callable[[], None]] = {}


@dataclass(frozen=True)
class _Task:
    """Calls the function for one block and tells the client that it is done."""

    function: PartitionFunction
    count: int
    topic: str
    sums: bool

    def __call__(self, block_id: tuple[int, ...]) -> Any:
        # dask begins with the last blocks; sources that are streams are read from the front
        value = self.function(self.count - 1 - block_id[0])
        listener = _listeners.get(self.topic)
        if listener is not None:
            listener()
        else:
            importlib.import_module("distributed").get_worker().log_event(self.topic, 1)
        if self.sums:
            return value[None]
        boxed = np.empty(1, object)
        boxed[0] = value
        return boxed


def _blocks(task: _Task, shape: tuple[int, ...]) -> da.Array:
    dtype: type = np.int64 if task.sums else object
    return da.map_blocks(
        task,
        name=task.topic,
        chunks=((1,) * task.count, *((size,) for size in shape)),
        dtype=dtype,
        meta=np.empty((0,) * (1 + len(shape)), dtype),
    )


@dataclass(frozen=True)
class _DaskExecutor:
    """Runs blocks through `compute`, which takes a dask collection and returns its value."""

    description: str
    compute: Callable[[da.Array], Any]
    client: Any = None

    def map(self, function: PartitionFunction, count: int, phase: Phase) -> list[Any]:
        if not count:
            return []
        with self._listening(phase) as topic:
            task = _Task(function, count, topic, sums=False)
            return list(self.compute(_blocks(task, ())))[::-1]

    def add(
        self, function: PartitionFunction, count: int, shape: tuple[int, ...], phase: Phase
    ) -> Int64Array:
        if not count:
            return np.zeros(shape, np.int64)
        with self._listening(phase) as topic:
            blocks = _blocks(_Task(function, count, topic, sums=True), shape)
            total = blocks.sum(axis=0, split_every=SPLIT_EVERY, dtype=np.int64)
            return np.asarray(self.compute(total))

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
        workers = chosen.workers or CPU_COUNT
        yield _DaskExecutor(
            f"{workers} thread{'' if workers == 1 else 's'}",
            lambda array: dask.compute(array, scheduler="threads", num_workers=workers)[0],
        )
        return
    with _open_client(chosen) as client:
        workers = len(client.scheduler_info(n_workers=-1)["workers"])
        where = chosen.address or "this machine"
        yield _DaskExecutor(
            f"{workers} dask worker{'' if workers == 1 else 's'} on {where}",
            lambda array: _result(client, array),
            client,
        )


@contextmanager
def _open_client(settings: ClusterSettings) -> Iterator[Any]:
    # distributed takes a second to import; threads do without
    distributed = importlib.import_module("distributed")
    if settings.kind == "local":
        with (
            distributed.LocalCluster(
                n_workers=settings.workers or max(1, CPU_COUNT // settings.threads_per_worker),
                threads_per_worker=settings.threads_per_worker,
                dashboard_address=None,
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


def _result(client: Any, array: da.Array) -> Any:
    future = client.compute(array)
    try:
        return future.result()
    finally:
        future.cancel()
