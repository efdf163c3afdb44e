"""What the tasks of the second pass wrote, read back once: metrics, digests and highlights of it.

Two streams are read at a time, since neither needs the other: tables, in threads ahead of their
use, and distances, which are only hashed, in a thread of their own. Small tables are looked at
many at a time: NumPy takes as long for 16 rows as for some thousands. The finish of 10,000
partitions of 8 images took 50 s of processor time when tables were opened twice, and distances
read by Zarr; now 19 s, and 22 s by the clock on two busy cores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.core.classes import ClassSelection
from pipeline.core.digests import ColumnDigest
from pipeline.core.exact import Int64Array
from pipeline.core.schema import METRIC, SAMPLE
from pipeline.core.threads import meanwhile, read_ahead
from pipeline.jobs.plan import JobPlan
from pipeline.ops.highlights import Highlights
from pipeline.ops.predictions import confusion_counts, summarise
from pipeline.storage import run_files
from pipeline.storage.run_files import DIGESTED, distance_columns, part_path

# Rows of small tables that are looked at together.
_ROWS = 2**16

Rows = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Results:
    """What all steps wrote.

    Attributes
    ----------
    counts
        [split, metric, label, predicted].
    highlights
        As `Highlights.result` returns.
    predictions, distances
        Digests; that of distances is None where none were written.
    parts
        What the manifest says of each table.
    """

    counts: Int64Array
    highlights: dict[str, Any]
    predictions: str
    distances: str | None
    parts: list[dict[str, Any]]


def read_results(plan: JobPlan) -> Results:
    """Read what all steps wrote; a table that was changed since is a `DamagedError`."""
    names = [name for name, _ in plan.evaluate.counts]
    metrics, classes = plan.settings.metrics, len(plan.selection.codes)
    highlights = Highlights(plan.selection, metrics, names)
    counts = np.zeros((len(names), len(metrics), classes, classes), np.int64)
    predictions, distances = ColumnDigest(), ColumnDigest()
    parts: list[dict[str, Any]] = []
    stored = run_files.StoredDistances(plan.output / run_files.DISTANCES)

    def read_distances(index: int) -> None:
        columns = stored.read(*plan.evaluate.bounds(index))
        distances.update(distance_columns(columns, list(metrics)))

    steps = plan.evaluate.steps
    with meanwhile(read_distances, steps if plan.write_distances else 0) as wait:
        tables = read_ahead(partial(_read_table, plan), steps)
        for some in _together(tables):
            first = len(parts)
            rows = _joined([rows for rows, _ in some])
            count_steps(counts, rows, plan.selection)
            highlights.add(first, rows, [len(each[SAMPLE]) for each, _ in some])
            predictions.update(rows)
            parts += [record for _, record in some]
        wait()
    header = list(plan.selection.names)
    return Results(
        counts,
        highlights.result(),
        predictions.result(header),
        distances.result(header) if plan.write_distances else None,
        parts,
    )


def _read_table(plan: JobPlan, index: int) -> tuple[Rows, dict[str, Any]]:
    """Read the table of a step, and check it; return also what the manifest says of it."""
    start, stop = plan.evaluate.bounds(index)
    rows, notes = run_files.read_back(part_path(plan.output, index), DIGESTED)
    return rows, {
        "start": start, "stop": stop, "rows": len(rows[SAMPLE]), "digest": notes["digest"],
    }  # fmt: skip


def _together(
    tables: Iterator[tuple[Rows, dict[str, Any]]],
) -> Iterator[list[tuple[Rows, dict[str, Any]]]]:
    """Yield tables, several at once where they are small."""
    some: list[tuple[Rows, dict[str, Any]]] = []
    count = 0
    for rows, record in tables:
        if some and count + record["rows"] > _ROWS:
            yield some
            some, count = [], 0
        some.append((rows, record))
        count += record["rows"]
    if some:
        yield some


def _joined(tables: Sequence[Rows]) -> Rows:
    if len(tables) == 1:
        return tables[0]
    return {name: np.concatenate([rows[name] for rows in tables]) for name in tables[0]}


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
    """Per metric over all evaluated samples; and, of several splits, each by itself.

    Under `leave_one_out` the split whose images were measured without themselves, if any.
    """
    names = plan.selection.names
    splits = [name for name, _ in plan.evaluate.counts]

    def by_metric(pairs: Int64Array) -> dict[str, Any]:
        return {
            metric: summarise(pairs[at], names) for at, metric in enumerate(plan.settings.metrics)
        }

    result = by_metric(counts.sum(axis=0))
    if plan.settings.leaves_one_out:
        result["leave_one_out"] = plan.settings.fit
    if len(splits) > 1:
        result["splits"] = {name: by_metric(counts[at]) for at, name in enumerate(splits)}
    return result
