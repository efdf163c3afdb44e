"""Refusing what reads or writes whole shards where those in memory at once do not fit."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.core.errors import MemoryLimitError
from pipeline.execution.memory import LEAST_BYTES
from pipeline.execution.workers import Workers
from pipeline.ingestion.plan import IngestPlan


def require_memory(plan: IngestPlan, workers: Workers, partitions: int | None = None) -> None:
    """Refuse an ingest whose partitions do not fit into the memory; see `require_room`.

    Parameters
    ----------
    plan, workers
        What is ingested, and where.
    partitions
        How many of its partitions are written; default: all.
    """
    splits = {
        name: (min(template.count, template.layout.shard), template.sample_bytes)
        for name, template in plan.templates.items()
    }
    cure = "take smaller shards (shard of its images, or --shard; now {shard:,} images)"
    require_room(splits.values(), partitions or len(plan.table), workers, cure)


def require_room(
    shards: Iterable[tuple[int, int]], partitions: int, workers: Workers, cure: str = ""
) -> None:
    """Refuse what reads or writes whole shards where those that are in memory at once do not fit.

    The least that it takes is counted: a process, and the samples of each task once. Threads of
    this process are held to a limit that was given, and not to what there seems to be.

    Parameters
    ----------
    shards
        Samples a shard and bytes a sample, of each split.
    partitions
        Shards in all.
    workers
        Where tasks run.
    cure
        What else helps; with `{shard}`, the samples of the largest shard.

    Raises
    ------
    MemoryLimitError
        With the numbers, and what to change.
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
