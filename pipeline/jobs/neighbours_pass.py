"""The third pass of a job, where it asks for it: the nearest images of every measured image.

`search_pass` searches. Here the lists of its tasks are written as tables, a step each, after those
of several shares of the references were merged; and the tables are read back, so that what the
votes of the nearest predict is that of the files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.core.classes import ClassSelection
from pipeline.core.digests import ColumnDigest
from pipeline.core.errors import DamagedError
from pipeline.core.exact import NOWHERE, Int64Array, finish_neighbours
from pipeline.core.paths import ABSENT
from pipeline.core.schema import LABEL, METRIC, RANK, SAMPLE, UNLABELLED
from pipeline.core.threads import read_ahead
from pipeline.execution.executor import Executor
from pipeline.execution.progress import Reporter
from pipeline.jobs.plan import JobPlan
from pipeline.jobs.search_pass import SavedLists, SearchedJob, SearchPart, forget_groups
from pipeline.jobs.search_plan import Arrangement, Search
from pipeline.ops.looks import NORMALIZED_SCALE
from pipeline.ops.neighbours import merge_lists, vote_block
from pipeline.ops.predictions import confusion_counts, summarise
from pipeline.storage import claims, tables
from pipeline.storage.atomic import read_json, write_json
from pipeline.storage.claims import Token
from pipeline.storage.folders import remove_tree
from pipeline.storage.image_content import read_labels
from pipeline.storage.run_files import (
    DIGESTED_NEIGHBOURS,
    NEIGHBOURS,
    part_path,
    read_back,
    rows_digest,
)


@dataclass(frozen=True)
class WriteNeighbours:
    """Merges the lists of a step and writes its table; called with the number of the step."""

    job: SearchedJob
    arrangement: Arrangement

    @property
    def token(self) -> Token:
        """Lets it write."""
        return self.job.token("write neighbours")

    def __call__(self, step: int) -> None:
        """Write the table of a step, unless it is there; running it twice writes the same."""
        job, search = self.job, self.job.search
        if job.is_written(step):
            return
        saved = [
            SavedLists(job, self.arrangement, step, at) for at in range(self.arrangement.shares)
        ]
        count = len(self._samples(step)[SAMPLE])
        read = [each.load(count) for each in saved]
        for each, (_, done) in zip(saved, read, strict=True):
            if done < self.arrangement.groups(search, each.share).stop:
                raise DamagedError(f"{each.path}: was changed; run the same command again")
        by_metric = zip(*(lists for lists, _ in read), strict=True)
        self.token.require()
        self.write(step, np.stack([merge_lists(parts) for parts in by_metric]))

    def write(self, step: int, lists: Int64Array) -> None:
        """Write the table of a step from the lists of all references."""
        table, digest = self._table(lists, self._samples(step))
        notes = {"identity": self.job.identity, "digest": digest}
        tables.write_part(part_path(self.job.output, step, NEIGHBOURS), table, notes)

    def _samples(self, step: int) -> dict[str, npt.NDArray[Any]]:
        """Return sample, split and label of the measured samples of a step."""
        job, queries = self.job, self.job.search.queries
        splits = [name for name, _ in queries.counts]
        pieces = list(queries.pieces(step))
        labels = np.concatenate([read_labels(job.images, job.digest, *at) for at in pieces])
        kept = job.measured(labels, pieces)
        return {
            SAMPLE: np.concatenate([np.arange(a, b) for _, a, b in pieces])[kept],
            "split": np.concatenate(
                [np.full(b - a, splits.index(name), np.int32) for name, a, b in pieces]
            )[kept],
            LABEL.name: labels[kept],
        }

    def _labels_of(self, references: Int64Array) -> npt.NDArray[np.int32]:
        """Look up labels shard by shard, of those that are wanted."""
        job, labels = self.job, np.full(len(references), UNLABELLED, np.int32)
        which = job.search.references
        for group in range(which.steps):
            start, stop = which.bounds(group)
            here = (references >= start) & (references < stop)
            if here.any():
                pieces = which.pieces(group)
                read = [read_labels(job.images, job.digest, *at) for at in pieces]
                labels[here] = np.concatenate(read)[references[here] - start]
        return labels

    def _table(
        self, lists: Int64Array, samples: Mapping[str, npt.NDArray[Any]]
    ) -> tuple[dict[str, Any], str]:
        """Return the table of a step, a row per sample, metric and rank, and its digest."""
        job, search, (measures, _, count, k) = self.job, self.job.search, lists.shape
        by_sample = lists.transpose(2, 0, 3, 1).reshape(-1, 2)  # [sample, measure, rank]
        references = by_sample[:, 1]
        there = references != NOWHERE
        split, neighbour = search.sample_of(np.where(there, references, 0))
        distance = np.stack([
            finish_neighbours(
                lists[at, 0], measure.metric, job.pixels,
                NORMALIZED_SCALE if measure.normalized else job.full_scale,
            )
            for at, measure in enumerate(search.measures)
        ], axis=1).reshape(-1)  # fmt: skip
        columns = {
            name: np.repeat(samples[name], measures * k) for name in (SAMPLE, "split", LABEL.name)
        }
        columns[METRIC] = np.tile(np.repeat(np.arange(measures, dtype=np.int32), k), count)
        columns[RANK] = np.tile(np.arange(1, k + 1, dtype=np.int32), count * measures)
        columns["neighbour"] = np.where(there, neighbour, -1)
        columns["neighbour_split"] = np.where(there, split, -1).astype(np.int32)
        columns["neighbour_label"] = self._labels_of(np.where(there, references, -1))
        columns["distance"] = distance
        counted, searched = search.queries.counts, search.references.counts
        table = dict(columns) | {
            "split": tables.dictionary(columns["split"], [name for name, _ in counted]),
            METRIC: tables.dictionary(columns[METRIC], search.names),
            "neighbour_split": tables.dictionary(
                columns["neighbour_split"], [name for name, _ in searched]
            ),
            "distance": tables.nullable(distance, ~there),
        }
        for name in (LABEL.name, "neighbour", "neighbour_label"):
            table[name] = tables.nullable(columns[name], columns[name] < 0)
        return table, rows_digest({name: columns[name] for name in DIGESTED_NEIGHBOURS})


def find_neighbours(plan: JobPlan, executor: Executor, reporter: Reporter) -> int:
    """Write the tables of a run that are not written yet; return the bytes of pixels read."""
    search, arrangement = plan.search, plan.arrangement
    if search is None or arrangement is None:
        return 0
    job = SearchedJob(
        plan.output, plan.images, plan.content["digest"], search, plan.selection,
        claims.identity(plan.decides()), plan.pixels, plan.full_scale,
        plan.choice.measured, plan.choice.fitted,
    )  # fmt: skip
    return write_neighbours(job, arrangement, plan.settings.device, executor, reporter)


def write_neighbours(
    job: SearchedJob, arrangement: Arrangement, device: str, executor: Executor, reporter: Reporter
) -> int:
    """Write the tables of a search that are not written yet; return the bytes of pixels read."""
    search = job.search
    arrangement = replace(arrangement, shares=_shares(job, arrangement.shares))
    tasks = arrangement.tasks(search)
    write = WriteNeighbours(job, arrangement)
    part = SearchPart(
        job, arrangement, device, executor.threads_for(tasks),
        executor.threads_for(1), write.write if arrangement.shares == 1 else None,
    )  # fmt: skip
    name = describe_search(search)
    units, size = search.queries.steps * search.references.steps, search.queries.total
    with reporter.phase(name, units, size * search.sample_bytes) as phase, part.token.issued():
        try:
            read: list[int] = executor.map(part, tasks, phase, tells=True)
        finally:
            executor.everywhere(forget_groups)
    if part.finish is None:
        with write.token.issued():
            executor.map(write, search.queries.steps)
    remove_tree(job.work)
    return sum(read) * search.sample_bytes


def _shares(job: SearchedJob, wanted: int) -> int:
    """Return how many shares a search was begun with, to which its lists belong; else begin it."""
    record = job.work / "shares.json"
    try:
        known = read_json(record)
        if known["identity"] == job.identity and known["groups"] == job.search.references.step:
            return int(known["shares"])
    except (*ABSENT, ValueError, KeyError, TypeError):
        pass  # it was not begun, or begins anew
    groups = job.search.references.step
    write_json(record, {"identity": job.identity, "groups": groups, "shares": wanted})
    return wanted


def describe_search(search: Search) -> str:
    """Name the pass, for people."""
    names = [
        ", ".join(f"'{split}'" for split, _ in which.counts)
        for which in (search.queries, search.references)
    ]
    return f"neighbours of {names[0]} among {names[1]}"


@dataclass
class Votes:
    """Counts what the votes of the nearest images predict, from the tables of a run.

    `counts` is [split, metric, votes, label, predicted], `digest` that of the tables, `parts` what
    a manifest says of them.
    """

    search: Search
    selection: ClassSelection

    def __post_init__(self) -> None:
        search, classes = self.search, len(self.selection.codes)
        shape = len(search.queries.counts), len(search.measures), len(search.votes)
        self.counts = np.zeros((*shape, classes, classes), np.int64)
        self.digest, self.parts = ColumnDigest(), list[dict[str, Any]]()

    def add_all(self, output: Path) -> None:
        """Read all tables back, in order; one that was changed is a `DamagedError`."""
        steps = self.search.queries.steps
        for index, (rows, notes) in enumerate(read_ahead(partial(_read_table, output), steps)):
            self._add(rows)
            start, stop = self.search.queries.bounds(index)
            self.digest.update(rows)
            part = {"start": start, "stop": stop, "rows": len(rows[SAMPLE])}
            self.parts.append(part | {"digest": notes["digest"]})

    def _add(self, rows: Mapping[str, npt.NDArray[Any]]) -> None:
        metrics, k = len(self.search.measures), self.search.k
        shape = -1, metrics, k
        split, label = (rows[name].reshape(shape)[:, 0, 0] for name in ("split", LABEL.name))
        nearest = rows["neighbour_label"].reshape(shape).astype(np.int32)
        positions, classes = self.selection.positions(label), len(self.selection.codes)
        for votes, number in enumerate(self.search.votes):
            predicted = self.selection.positions(vote_block(nearest[:, :, :number]))
            for at in range(len(self.counts)):
                mine = split == at
                for metric in range(metrics):
                    self.counts[at, metric, votes] += confusion_counts(
                        positions[mine], predicted[mine, metric], classes
                    )

    def add_to(self, metrics: dict[str, Any]) -> None:
        """Add accuracies and confusion counts, by metric and number of votes, to a run's metrics.

        They are under `neighbours`, and for each of several splits under `neighbours` of that.
        """
        metrics["neighbours"] = self._summary(self.counts.sum(axis=0))
        for at, (name, _) in enumerate(self.search.queries.counts):
            if name in metrics.get("splits", {}):
                metrics["splits"][name]["neighbours"] = self._summary(self.counts[at])

    def _summary(self, counts: Int64Array) -> dict[str, Any]:
        names = self.selection.names
        return {
            metric: {
                str(votes): summarise(pairs, names)
                for votes, pairs in zip(self.search.votes, by_votes, strict=True)
            }
            for metric, by_votes in zip(self.search.names, counts, strict=True)
        }


def count_votes(plan: JobPlan) -> Votes | None:
    """Read the tables of a run back and count votes; None where it has none."""
    if plan.search is None:
        return None
    votes = Votes(plan.search, plan.selection)
    votes.add_all(plan.output)
    return votes


def _read_table(output: Path, index: int) -> tuple[dict[str, npt.NDArray[Any]], dict[str, str]]:
    return read_back(part_path(output, index, NEIGHBOURS), DIGESTED_NEIGHBOURS)
