"""Computing a dask collection, here or on workers, until it is done, fails, or is told to stop.

What a task raises comes out as it is. What happens to the cluster meanwhile comes out as one
`ClusterError` that says what happened and what to do; what was written is kept in any case.
Dask's performance report says what the workers did and when, as a page of HTML.
"""

from __future__ import annotations

import importlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline.core.errors import (
    ClusterError,
    ConfigError,
    JobInterruptedError,
    MemoryLimitError,
    PixsimError,
    format_bytes,
)
from pipeline.execution import signals
from pipeline.execution.memory import machine_memory
from pipeline.execution.progress import Reporter
from pipeline.execution.workers import patience
from pipeline.storage.atomic import require_file

PREFIX = "pixsim-"
"""What the keys of tasks begin with."""

_POLL_SECONDS = 0.5
_LOOK_SECONDS = 5.0
_AGAIN = "what is written is kept: run the same command again"


class _NotBegunError(Exception):
    """A call was not made, since another one failed."""


@contextmanager
def one_task(travels: bool) -> Iterator[None]:
    """Run what a task does to one partition, unless the job is to stop; its error may travel."""
    try:
        with signals.task():
            yield
    except MemoryError as error:
        if isinstance(error, PixsimError):
            raise
        limit = format_bytes(machine_memory())
        raise MemoryLimitError(
            f"a task needed more memory than this process may take, {limit} ({error}): run "
            "fewer tasks at once, give each process more, or ingest with smaller shards; "
            "what is written is kept"
        ) from None
    except signals.Stopped:
        if travels:  # dask ends a worker whose task raises what is not an Exception
            raise JobInterruptedError("the job was told to stop") from None
        raise
    except PixsimError as error:
        if travels:
            error.__cause__ = error.__context__ = None
        raise


def each_here(
    function: Callable[[int], Any], count: int, workers: int, grace: float
) -> Iterator[Any]:
    """Yield what a function returns for each number below `count`, as it is done, in threads here.

    Where one fails those that run are waited for, and no more are begun. Dask's own scheduler takes
    a second to import, and its graph of each call costs more than a small partition. As many calls
    as run are in the queue besides, so that no thread waits for this one to hand it the next.
    """
    failed = threading.Event()

    def call(number: int) -> Any:
        if failed.is_set():
            raise _NotBegunError
        try:
            return function(number)
        except BaseException:
            failed.set()
            raise

    with signals.computing(grace):
        pool = ThreadPoolExecutor(workers, "pixsim-task")
        numbers = iter(range(count))
        waiting = {pool.submit(call, number) for number in itertools.islice(numbers, 2 * workers)}
        try:
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                more = itertools.islice(numbers, 0 if failed.is_set() else len(done))
                waiting |= {pool.submit(call, number) for number in more}
                for future in done:
                    if not isinstance(future.exception(), _NotBegunError):
                        yield future.result()
        except (Exception, signals.Stopped):
            signals.wait_for_tasks(grace)
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def compute_there(client: Any, collection: Any, grace: float) -> Any:
    """Compute on the workers of a scheduler; `ClusterError` where they die, or it is gone."""
    with signals.computing():
        future = client.compute(collection, optimize_graph=False)
        try:
            _wait(client, future)
            signals.stop_if_requested()
            return _value(client, future)
        except signals.Stopped:
            future.cancel()
            _wait_for_workers(client, grace)
            raise
        finally:
            future.cancel()


def _wait(client: Any, future: Any) -> None:
    """Wait for a future, the order to stop, or the end of all hope for workers."""
    done = threading.Event()
    future.add_done_callback(lambda _: done.set())
    limit, looked = patience(), time.monotonic()
    seen = looked
    while not done.wait(_POLL_SECONDS) and not signals.is_requested():
        now = time.monotonic()
        if now - looked < _LOOK_SECONDS:
            continue
        looked = now
        if client.status != "running":
            raise _gone(client)
        seen = now if client.scheduler_info(n_workers=1)["workers"] else seen
        if now - seen > limit:
            raise ClusterError(
                f"there has been no worker for {limit / 60:.3g} minutes "
                "(distributed.scheduler.no-workers-timeout); start some, look into the logs of "
                f"those that ended, and go on: {_AGAIN}"
            )


def _value(client: Any, future: Any) -> Any:
    """Return what a finished future holds, or raise what it failed with."""
    scheduling = importlib.import_module("distributed.scheduler")
    comm = importlib.import_module("distributed.comm")
    try:
        return future.result()
    except scheduling.KilledWorker as error:
        raise ClusterError(
            f"a partition was given up: {error.allowed_failures + 1} workers died while they "
            f"worked on it, the last at {error.last_worker.address}. Did the system or dask end "
            "them for their memory (see their logs)? Give them more memory or fewer threads, or "
            f"ingest with smaller shards; {_AGAIN}"
        ) from None
    except (scheduling.NoWorkerError, scheduling.NoValidWorkerError):
        raise ClusterError(
            f"there was no worker for {patience() / 60:.3g} minutes "
            f"(distributed.scheduler.no-workers-timeout); start some: {_AGAIN}"
        ) from None
    except Exception as error:
        if future.status == "error" and not isinstance(error, comm.CommClosedError):
            raise  # the task's own
        raise _gone(client, error) from None
    except BaseException as error:
        if future.status in ("cancelled", "lost"):  # concurrent.futures' error is no Exception
            raise _gone(client, error) from None
        raise


def _gone(client: Any, error: BaseException | None = None) -> ClusterError:
    reason = "" if error is None else f" ({type(error).__name__})"
    address = getattr(client.scheduler, "address", "an unknown address")
    return ClusterError(
        f"the dask scheduler at {address} is gone, or was restarted{reason}; {_AGAIN}"
    )


def _wait_for_workers(client: Any, seconds: float) -> None:
    """Wait until no task of ours runs on a worker, at most so long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            running = client.run(_running, on_error="ignore")
        except Exception:  # the cluster goes down with us
            return
        if not any(running.values()):
            return
        time.sleep(_POLL_SECONDS)


def _running(dask_worker: Any) -> int:
    """Count the tasks of jobs that a worker runs now; those that were cancelled go on."""
    running = dask_worker.state.all_running_tasks
    return sum(PREFIX in str(state.key) for state in running)


def refuse_profile(path: Path, kind: str) -> None:
    """Raise `ConfigError` where no report can be made, before anything is started."""
    if kind == "threads":
        raise ConfigError(
            f"--profile {path}: dask makes its report of worker processes, not of threads; "
            "use --cluster local"
        )
    if find_spec("bokeh") is None:
        raise ConfigError(
            f"--profile {path}: dask draws its report with bokeh, which is not installed; "
            "pip install bokeh"
        )
    if not path.parent.is_dir():
        raise ConfigError(f"--profile {path}: there is no folder {path.parent}; make it first")
    require_file(path, "--profile")


@contextmanager
def profiled(client: Any, path: Path | None, reporter: Reporter) -> Iterator[None]:
    """Write dask's performance report of what runs meanwhile, also where that fails."""
    if path is None:
        yield
        return
    distributed = importlib.import_module("distributed")
    report = distributed.performance_report(filename=str(path))
    with client.as_current():
        report.__enter__()
    try:
        yield
    finally:
        try:
            with client.as_current():
                report.__exit__(None, None, None)
            reporter.say(f"dask's performance report is in {path}")
        except Exception as error:
            # the scheduler may be gone, or lack bokeh: what went wrong first is what counts
            reporter.say(str(ClusterError(f"no performance report was made: {error}")))
