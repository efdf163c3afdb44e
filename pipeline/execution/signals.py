"""Stopping when told to: what runs may end, nothing new is begun.

A first SIGTERM or SIGINT while tasks run sets a flag. Each task looks at it before it begins; the
executor waits for those that run already, for a while, and then gives the job up. A second signal,
or one while no tasks run, gives it up at once. What was written stays; the same job goes on from
there.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pipeline.storage import locks

_POLL_SECONDS = 0.1

_requested = threading.Event()
_lock = threading.Lock()
_computing = 0
_running = 0
_grace: float | None = None
_timer: threading.Timer | None = None


def _start_anew() -> None:
    # a forked process runs none of its parent's tasks, and may be ended like any other
    global _requested, _lock, _computing, _running, _timer
    _requested, _lock = threading.Event(), threading.Lock()
    _computing = _running = 0
    _timer = None


os.register_at_fork(after_in_child=_start_anew)


class Stopped(KeyboardInterrupt):
    """The job was told to stop, and no task of it runs any more, or not for long."""


def is_requested() -> bool:
    """Whether the job was told to stop, or another process took over the folder that it fills."""
    return _requested.is_set() or locks.any_lost()


def stop_if_requested() -> None:
    """Raise `Stopped` where the job is to stop."""
    if is_requested():
        raise Stopped


def running_here() -> int:
    """Return how many tasks run in threads of this process."""
    return _running


@contextmanager
def task() -> Iterator[None]:
    """Run one task of this process, unless the job was told to stop."""
    global _running
    stop_if_requested()
    with _lock:
        _running += 1
    try:
        yield
    finally:
        with _lock:
            _running -= 1


@contextmanager
def computing(grace: float | None = None) -> Iterator[None]:
    """Let tasks run: meanwhile a first signal drains them.

    A second one follows by itself after `grace` seconds: for a main thread that waits for tasks
    without looking at the order to stop.
    """
    global _computing, _grace
    stop_if_requested()
    _computing, _grace = _computing + 1, grace
    try:
        yield
    finally:
        _computing -= 1
        if _timer is not None:
            _timer.cancel()
    stop_if_requested()


def wait_for_tasks(seconds: float) -> None:
    """Wait until no task runs in this process, at most so long."""
    deadline = time.monotonic() + seconds
    while _running and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """Stop at SIGTERM and SIGINT as this module says; outside the main thread, leave them be."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    wanted = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, _handle) for number in wanted}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _requested.clear()


def dask_setup(_: object) -> None:
    """Ignore the signals that drain a job, in a worker process that dask preloads this module in.

    Ctrl-C at a terminal, and a batch system that ends a job, send their signal to every process of
    it. Workers leave it to the client, which lets their tasks end and then closes them.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def _handle(number: int, _: FrameType | None) -> None:
    global _timer
    if not _computing or _requested.is_set():
        raise KeyboardInterrupt
    _requested.set()
    if _grace is not None:
        _timer = threading.Timer(_grace, os.kill, (os.getpid(), number))
        _timer.daemon = True
        _timer.start()
    name = signal.Signals(number).name
    line = f"{name}: no new tasks; those that run may end, another signal stops at once\n"
    os.write(2, line.encode())  # not print: what is interrupted may be printing
