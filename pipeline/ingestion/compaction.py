"""Leaving out samples that cannot be used: whole shards without them, made from what was written.

A partition is written before it is known how many samples of the others are good, so a bad one
keeps its place until the finish. Where there is any, the shards are written again beside the
store, without the bad ones, checked against the hashes of the first writing, and then take the
place of the old ones. Until all are there, the old ones are kept; the record `.work/compacted.json`
says that they are, so that a finish that is cut short anywhere can go on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.core.blocks import OK
from pipeline.core.digests import sample_records
from pipeline.core.errors import DamagedError
from pipeline.core.partitions import PartitionTable
from pipeline.execution.executor import Executor
from pipeline.execution.progress import Reporter
from pipeline.ingestion.plan import IngestPlan
from pipeline.storage import image_store
from pipeline.storage.atomic import flush_tree, read_json, write_json
from pipeline.storage.claims import Token
from pipeline.storage.folders import exists, remove_file, remove_tree, replace_tree
from pipeline.storage.manifest import WORK
from pipeline.storage.sample_tables import Tally, part_path, read_part


def _record(path: Path) -> Path:
    return path / WORK / "compacted.json"


def is_compacted(path: Path, identity: str) -> bool:
    """Tell whether the shards without bad samples of a plan are all written."""
    record = _record(path)
    return exists(record) and bool(read_json(record).get("identity") == identity)


def forget_compaction(path: Path) -> None:
    """Take back the word that shards without bad samples are written; they may be removed then."""
    remove_file(_record(path))


def good_templates(
    templates: Mapping[str, image_store.SplitTemplate], counted: Tally
) -> dict[str, image_store.SplitTemplate]:
    """Return what the splits hold without the bad samples."""
    return {
        name: replace(template, count=int(counted.counts[name][OK]))
        for name, template in templates.items()
    }


def compact(
    path: Path,
    plan: IngestPlan,
    templates: Mapping[str, image_store.SplitTemplate],
    counted: Tally,
    executor: Executor,
    reporter: Reporter,
) -> dict[str, list[str]]:
    """Leave the bad samples out of the arrays at `path`; return the fingerprints of their files.

    All partitions of the plan are written; `templates` is what the splits hold in the end, see
    `good_templates`, and `counted` which of their samples are good.
    """
    aside, replaced = path / WORK / "compact", path / WORK / "replaced"
    identity, planned = plan.identity, plan.table
    if not is_compacted(path, identity):
        remove_tree(replaced)  # of a plan that was changed since
        image_store.create_images(aside, plan.attributes, templates, plan.encoding)
        shards = tuple((n, t.count, t.layout.shard) for n, t in templates.items())
        table = PartitionTable(shards)
        token = Token(path / WORK, identity, "leave out bad samples")
        task = CompactPartition(
            path, aside, table, planned, counted.parts, _good_before(planned, counted.parts), token
        )
        with reporter.phase("leave out bad samples", len(table)) as phase, token.issued():
            written = executor.map(task, len(table), phase)
        splits = (partition.split for partition in table)
        marks = image_store.by_array(templates, zip(splits, written, strict=True))
        flush_tree(aside)  # before the record says that it is there
        write_json(_record(path), {"identity": identity, "fingerprints": marks}, indent=None)
    for name in templates:
        replace_tree(path / name, aside / name, replaced / name)
    return dict(read_json(_record(path))["fingerprints"])


def _good_before(planned: PartitionTable, good: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return how many good samples of its split stand before each planned partition."""
    before = np.zeros(len(planned), np.int64)
    for split, _, _ in planned.splits:
        mine = planned.indices(split)
        before[mine.start : mine.stop] = np.cumsum(good[mine.start : mine.stop])
        before[mine.start : mine.stop] -= good[mine.start : mine.stop]
    return before


@dataclass(frozen=True)
class CompactPartition:
    """The task of one shard without bad samples, of `table`; running it twice changes nothing.

    `good` and `before` are, for each partition as it was planned, the good samples in it, and in
    those before it of the same split.
    """

    path: Path
    aside: Path
    table: PartitionTable
    planned: PartitionTable
    good: npt.NDArray[np.int64]
    before: npt.NDArray[np.int64]
    token: Token

    def __call__(self, index: int) -> tuple[str, str]:
        """Write shard `index` of the arrays without bad samples; return its fingerprints."""
        self.token.require()
        target = self.table[index]
        mine = self.planned.indices(target.split)
        before = self.before[mine.start : mine.stop]
        first = int(np.searchsorted(before, target.start, "right")) - 1
        last = int(np.searchsorted(before, target.stop, "left"))
        read = [
            self._good_rows(mine[at], target.start, target.stop)
            for at in range(first, last)
            if self.good[mine[at]]
        ]
        images = np.concatenate([pixels for pixels, _ in read])
        labels = np.concatenate([codes for _, codes in read])
        self.token.require()
        return image_store.write_images(self.aside, target.split, target.start, images, labels)

    def _good_rows(
        self, index: int, start: int, stop: int
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.int32]]:
        """Read the good samples `start` to `stop` of the split that lie in a planned partition."""
        partition, before = self.planned[index], int(self.before[index])
        part = read_part(part_path(self.path, index), partition)
        rows = np.flatnonzero(part.good)[max(start - before, 0) : max(stop - before, 0)]
        if not len(rows):
            return image_store.read_images(self.path, partition.split, 0, 0)
        first, last = int(rows[0]), int(rows[-1]) + 1
        images, labels = image_store.read_images(
            self.path, partition.split, partition.start + first, partition.start + last
        )
        images, labels = images[rows - first], labels[rows - first]
        if not np.array_equal(sample_records(images, labels), part.records[rows]):
            raise DamagedError(
                f"{self.path}: images of split '{partition.split}' are not those that were "
                "written; run the same command again"
            )
        return images, labels
