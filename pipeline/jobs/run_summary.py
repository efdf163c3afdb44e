"""What a run says of itself: its metrics and its manifest, from what the tasks returned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from pipeline.core.classes import ClassSelection
from pipeline.core.errors import DamagedError
from pipeline.core.exact import Int64Array
from pipeline.core.schema import METRIC, SAMPLE
from pipeline.core.urls import shown
from pipeline.execution.executor import Executor
from pipeline.jobs.evaluate_pass import table_digest
from pipeline.jobs.plan import JobPlan
from pipeline.ops.predictions import confusion_counts, summarise
from pipeline.storage import claims, manifest, run_arrays, tables
from pipeline.storage.run_files import (
    DIGESTED,
    RunDigests,
    distance_columns,
    part_path,
)


@dataclass(frozen=True)
class _Step:
    """What a task of the second pass wrote, read back."""

    rows: dict[str, npt.NDArray[Any]]
    distances: dict[str, npt.NDArray[Any]] | None
    record: dict[str, Any]


def read_step(plan: JobPlan, index: int) -> _Step:
    """Read what a step wrote, and check its table."""
    start, stop = plan.evaluate.bounds(index)
    path = part_path(plan.output, index)
    rows = tables.read_part(path, DIGESTED)
    notes = tables.read_notes(path)
    if table_digest(rows) != notes["digest"]:
        raise DamagedError(f"{path}: was changed while the job ran; run it again")
    block = None
    if plan.write_distances:
        written = run_arrays.read_distances(plan.output / run_arrays.DISTANCES, start, stop)
        block = distance_columns(written, list(plan.settings.metrics))
    record = {
        "start": start, "stop": stop, "rows": len(rows[SAMPLE]), "digest": notes["digest"],
    }  # fmt: skip
    return _Step(rows, block, record)


def count_steps(
    counts: Int64Array, columns: Mapping[str, npt.NDArray[Any]], selection: ClassSelection
) -> None:
    """Add the rows of one table to the confusion counts, [split, metric, label, predicted]."""
    labels = selection.positions(columns["label"])
    predicted = selection.positions(columns["predicted"])
    for split in range(counts.shape[0]):
        for metric in range(counts.shape[1]):
            mine = (columns["split"] == split) & (columns[METRIC] == metric)
            counts[split, metric] += confusion_counts(
                labels[mine], predicted[mine], counts.shape[2]
            )


def run_metrics(plan: JobPlan, counts: Int64Array) -> dict[str, Any]:
    """Per metric over all evaluated samples; and, of several splits, each by itself."""
    names = plan.selection.names
    splits = [name for name, _ in plan.evaluate.counts]

    def by_metric(pairs: Int64Array) -> dict[str, Any]:
        return {
            metric: summarise(pairs[at], names) for at, metric in enumerate(plan.settings.metrics)
        }

    result = by_metric(counts.sum(axis=0))
    if len(splits) > 1:
        result["splits"] = {name: by_metric(counts[at]) for at, name in enumerate(splits)}
    return result


def run_manifest(
    plan: JobPlan,
    executor: Executor,
    digests: RunDigests,
    parts: list[dict[str, Any]],
    files: Mapping[str, Any],
    effort: Mapping[str, Any],
) -> dict[str, Any]:
    """Return what the manifest will say, less the report."""
    decides = plan.decides()
    return manifest.draft(
        manifest.RUN,
        {
            "name": plan.settings.name,
            "identity": claims.identity(decides),
            "plan": decides,
            "settings": plan.settings.model_dump(mode="json"),
            "class_names": list(plan.selection.names),
            "images": {
                "path": shown(plan.images),
                "digest": plan.content["digest"],
                "provenance": plan.content["provenance"],
            },
            "digests": digests.as_dict(),
            "arithmetic": plan.arithmetic.reason,
            "executor": executor.description,
            **effort,
            "partitions": parts,
            **files,
        },
    )
