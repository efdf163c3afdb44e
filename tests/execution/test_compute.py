"""Computing on threads and workers: what fails comes out as one line that says what to do."""

from __future__ import annotations

import os
import threading
import time

import dask
import distributed
import pytest
from clusters_for_tests import dask_worker, scheduler

from pipeline.config.cluster_settings import ClusterSettings
from pipeline.core.errors import ClusterError, DamagedError, MemoryLimitError
from pipeline.execution import compute
from pipeline.execution.executor import open_executor
from pipeline.execution.progress import SilentReporter

SILENT = SilentReporter()


def run(settings, function, count=4):
    with open_executor(settings) as executor, SILENT.phase("mapping", count) as phase:
        return executor.map(function, count, phase)


def settings_of(address, **scheduling):
    return ClusterSettings(
        kind="scheduler", address=address, dask={"distributed": {"scheduler": scheduling}}
    )


@pytest.fixture
def here():
    """The address of a scheduler whose workers are threads of this process."""
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None
    ) as made:
        yield made.scheduler_address


# what tasks raise --------------------------------------------------------------------------------


def no_room(index):
    raise MemoryError(f"Unable to allocate 3 TiB for partition {index}")


def test_a_task_without_room_is_a_limit_of_memory_once_and_not_tried_again(here):
    """On a worker too, where dask would run it again if the worker died of it."""
    calls = []

    def counted(index):
        calls.append(index)
        no_room(index)

    for settings in (ClusterSettings(workers=1), settings_of(here)):
        calls.clear()
        with pytest.raises(MemoryLimitError, match=r"Unable to allocate 3 TiB.*smaller shards"):
            run(settings, counted)
        assert len(calls) == len(set(calls))


def test_errors_of_tasks_come_out_as_they_are(here):
    def damaged(index):
        try:
            raise OSError(threading.Lock())  # what cannot be sent
        except OSError as error:
            raise DamagedError(f"partition {index} is damaged") from error

    def missing(index):
        raise FileNotFoundError("no such file: x")

    for settings in (ClusterSettings(workers=1), settings_of(here)):
        with pytest.raises(DamagedError, match=r"partition \d is damaged"):
            run(settings, damaged)
        with pytest.raises(FileNotFoundError, match="no such file: x"):
            run(settings, missing)


def test_threads_end_what_they_run_before_an_error_comes_out():
    ended, begun = [], threading.Barrier(2)

    def one_fails(index):
        begun.wait(10)
        if index:
            raise DamagedError("no")
        time.sleep(0.5)
        ended.append(index)

    with pytest.raises(DamagedError, match="no"):
        run(ClusterSettings(workers=2), one_fails, 2)
    assert ended == [0]


# what happens to clusters ------------------------------------------------------------------------


def test_workers_that_die_of_a_partition_give_it_up():
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        scheduler(n_workers=1, threads_per_worker=1, silence_logs=50) as address,
        pytest.raises(ClusterError) as caught,
    ):
        run(settings_of(address), lambda index: os._exit(1), 1)
    text = str(caught.value)
    assert text.startswith("a partition was given up: 1 workers died")
    assert "more memory" in text
    assert "what is written is kept" in text


@pytest.mark.slow
def test_a_job_whose_workers_are_all_gone_fails_by_itself():
    """Also where the scheduler, which has dask's own configuration, would wait for ever."""
    released = threading.Event()

    def slow(index):
        time.sleep(0.3)
        return index

    with scheduler() as address:
        worker = dask_worker(address, "--nthreads", "1", "--no-nanny")
        worker.__enter__()
        closing = threading.Timer(1.5, lambda: (worker.__exit__(None, None, None), released.set()))
        settings = ClusterSettings(kind="scheduler", address=address, workers=1)
        try:
            with (
                open_executor(settings) as executor,
                SILENT.phase("mapping", 1000) as phase,
                pytest.MonkeyPatch.context() as patch,
            ):
                patch.setattr(compute, "_LOOK_SECONDS", 0.2)
                patch.setattr(compute, "patience", lambda: 1.0)
                closing.start()
                with pytest.raises(ClusterError, match=r"no worker for .* minutes.*start some"):
                    executor.map(slow, 1000, phase)
        finally:
            closing.join()
            assert released.wait(30)


def test_a_scheduler_that_goes_away_is_one_line():
    cluster = distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None
    )
    closing = threading.Timer(1, cluster.close)
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        open_executor(settings_of(cluster.scheduler_address)) as executor,
        SILENT.phase("mapping", 1000) as phase,
    ):
        closing.start()
        with pytest.raises(ClusterError, match=r"the dask scheduler at .* is gone.*run the same"):
            executor.map(lambda index: time.sleep(0.05), 1000, phase)
    closing.join()


@pytest.mark.parametrize("workers", [1, 3])
def test_calls_in_threads_return_what_they_should_and_none_begins_after_one_failed(workers):
    found = compute.each_here(lambda number: number**2, 50, workers, 1.0)
    assert sorted(found) == [number**2 for number in range(50)]
    begun, together = [], threading.Barrier(workers)

    def fail(number):
        begun.append(number)
        together.wait(20)
        raise ValueError(f"number {number}")

    with pytest.raises(ValueError, match="number"):
        list(compute.each_here(fail, 50, workers, 1.0))
    assert sorted(begun) == [*range(workers)]
