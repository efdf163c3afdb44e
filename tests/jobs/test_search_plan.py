"""How a search is cut and arranged: memory decides what stays, workers who takes what."""

from __future__ import annotations

import numpy as np
from jobs_for_tests import NAMES, make_settings

import pipeline
from pipeline.core.errors import MemoryLimitError
from pipeline.execution.workers import Workers
from pipeline.jobs import search_plan
from pipeline.jobs.plan import plan_job
from pipeline.sources.arrays import from_arrays


def arranged(tmp_path, memory, processes=0, tasks=2, size=64, counts=(3000, 600), k=10):
    """Plan a search among images of 64 x 64 in a given memory."""
    splits = {
        name: (np.zeros((count, size, size), np.uint8), (np.arange(count) % 4).astype(np.int32))
        for name, count in zip(("train", "test"), counts, strict=True)
    }
    path = tmp_path / f"{size}-{counts[0]}.zarr"
    if not path.exists():
        pipeline.ingest(from_arrays(splits, NAMES), path, shard_samples=256)
    job = make_settings(path, tmp_path / "run", neighbours={"k": k}, distances="skip")
    workers = Workers(processes, tasks, max(1, processes) * tasks, memory)
    return plan_job(job, path, workers)


def test_memory_decides_what_stays_and_how_many_queries_a_task_takes(tmp_path, monkeypatch):
    monkeypatch.setattr(search_plan, "_GROUP_BYTES", 2**20)
    monkeypatch.setattr(search_plan, "_STEP_BYTES", 2**17)
    seen = []
    for memory in range(560, 800, 8):
        try:
            plan = arranged(tmp_path, memory * 10**6)
        except MemoryLimitError:
            assert not seen
            continue
        assert plan.footprint.search <= plan.workers.memory
        reads = plan.arrangement.reads(plan.search, plan.workers)
        seen.append((reads, plan.arrangement.resident, plan.arrangement.batch))
    assert plan.search.references.steps == 12
    assert seen == sorted(seen, key=lambda each: -each[0])  # more memory, fewer reads
    assert {resident for _, resident, _ in seen} == {2, 12}
    assert {batch for _, resident, batch in seen if resident == 12} == {1}
    assert max(batch for _, _, batch in seen) > 4


def test_more_workers_than_steps_share_the_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(search_plan, "_GROUP_BYTES", 2**20)
    plan = arranged(tmp_path, 16 * 10**9, processes=6, tasks=2)
    search, arrangement = plan.search, plan.arrangement
    assert search.queries.steps == 1
    assert arrangement.shares == 12
    seen = [
        (step, group)
        for task in range(arrangement.tasks(search))
        for step in arrangement.steps(search, task)
        for group in arrangement.groups(search, task % arrangement.shares)
    ]
    assert sorted(seen) == [(0, group) for group in range(12)]
