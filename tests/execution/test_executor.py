"""Where tasks run: by how many threads, on which workers."""

from __future__ import annotations

import pytest

from pipeline.config.cluster_settings import ClusterSettings
from pipeline.execution import workers as workers_module
from pipeline.execution.executor import open_executor
from pipeline.execution.workers import Workers, find_workers, local_workers


@pytest.mark.parametrize(("workers", "count", "threads"), [
    (1, 100, 8), (2, 100, 4), (8, 100, 1), (16, 100, 1), (8, 2, 4), (8, 3, 2), (8, 0, 8),
])  # fmt: skip
def test_tasks_times_their_threads_are_the_cores(monkeypatch, workers, count, threads):
    monkeypatch.setattr(workers_module, "CPU_COUNT", 8)
    with open_executor(ClusterSettings(kind="threads", workers=workers)) as executor:
        assert executor.threads_for(count) == threads


def test_this_machine_is_shared_among_worker_processes(monkeypatch):
    monkeypatch.setattr(workers_module, "CPU_COUNT", 8)
    monkeypatch.setattr(workers_module, "machine_memory", lambda: 64 * 10**9)
    assert local_workers(ClusterSettings(kind="local", threads_per_worker=2)) == Workers(
        processes=4, tasks=2, cores=8, memory=16 * 10**9
    )
    assert find_workers() == Workers(processes=0, tasks=8, cores=8, memory=64 * 10**9)
    assert find_workers(ClusterSettings(memory="3 GB")).memory == 3 * 10**9
