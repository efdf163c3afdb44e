"""Writing the partitions of a store: each is a shard of each array, and a table of samples.

Of image files of 256 x 256 pixels in colour a task takes, in CPU time: 0.03 ms to read one, 0.3 to
decode it, 0.12 to hash it, 0.04 to 0.1 to write it, 0.03 for its row of the tables. So images are
decoded to where their shard is written from, in memory that the next partition uses again, and
hashed while they are in the processor's cache. What did not pay: writing a chunk as soon as its
images are decoded; tables made in memory before they are written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.core import host_memory
from pipeline.core.blocks import LABEL_UNKNOWN, Block, Problem, Source
from pipeline.core.digests import SAMPLE_RECORD, sample_records
from pipeline.core.errors import DamagedError, LabelError, ShapeError
from pipeline.core.partitions import Partition, PartitionTable
from pipeline.core.schema import UNLABELLED
from pipeline.core.threads import in_ranges
from pipeline.execution.executor import Executor
from pipeline.execution.memory import machine_memory
from pipeline.execution.progress import Reporter
from pipeline.ingestion.compaction import is_compacted
from pipeline.ingestion.plan import IngestPlan, ingest_token
from pipeline.sources.encoded import EncodedSource
from pipeline.storage import image_store, tables
from pipeline.storage.image_content import read_records, records_digest
from pipeline.storage.passing_files import PassingFiles
from pipeline.storage.sample_tables import part_notes, part_path, read_part, write_part

_KEPT_PART = 0.1
"""Of the memory; Linux begins to slow down who writes where more waits to be on the disk."""


def write_partitions(
    plan: IngestPlan,
    path: Path,
    executor: Executor,
    reporter: Reporter,
    numbers: Sequence[int] | None = None,
) -> None:
    """Write the partitions that are not written yet; all of them, or those of some numbers."""
    chosen = range(len(plan.table)) if numbers is None else numbers
    if is_compacted(path, plan.identity):
        return
    # arrays are copied, by one thread as fast as by two; files are decoded
    threads = executor.threads_for(len(chosen)) if isinstance(plan.source, EncodedSource) else 1
    share = len(chosen) / len(plan.table)
    size = sum(template.count * template.sample_bytes for template in plan.templates.values())
    passing = PassingFiles() if size > _KEPT_PART * machine_memory() else None
    task = IngestPartition(
        path.absolute(), plan.source, plan.table, plan.templates, plan.identity, threads,
        chosen, passing,
    )  # fmt: skip
    with reporter.phase("ingest", len(chosen), int(size * share)) as phase:
        executor.map(task, len(chosen), phase)


@dataclass(frozen=True)
class IngestPartition:
    """The task of one partition of `numbers`; running it twice changes nothing.

    One that comes late, when the store is being put together or finished, writes nothing.
    """

    path: Path
    source: Source
    table: PartitionTable
    templates: Mapping[str, image_store.SplitTemplate]
    identity: str
    threads: int
    numbers: Sequence[int]
    passing: PassingFiles | None = None
    spare: host_memory.Spare = field(default_factory=host_memory.Spare, compare=False)

    def __call__(self, number: int) -> bool:
        """Write a partition, one of `numbers`; return whether there was anything to do."""
        partition = self.table[self.numbers[number]]
        part = part_path(self.path, partition.index)
        if self._is_done(partition, part):
            return False
        token = ingest_token(self.path, self.identity)
        token.require()
        template = self.templates[partition.split]
        memory = self.spare.array((partition.count, *template.shape), template.dtype)
        with memory as images, self.passing.written() if self.passing else nullcontext():
            block, records = self._read(partition, images)
            token.require()
            written = image_store.write_images(
                self.path, partition.split, partition.start, block.images, block.labels
            )
        splits = [name for name, _, _ in self.table.splits]
        notes = part_notes(self.identity, block, records, written)
        write_part(part, partition, block, records, splits, self.source.class_names, notes)
        return True

    def _is_done(self, partition: Partition, part: Path) -> bool:
        try:
            return is_written(self.path, partition, part, self.identity)
        except DamagedError:
            return False

    def _read(
        self, partition: Partition, images: npt.NDArray[Any]
    ) -> tuple[Block, npt.NDArray[Any]]:
        """Read a partition into `images`, in as many threads as the task may use."""
        labels = np.empty(partition.count, np.int32)
        sizes = np.empty((partition.count, 2), np.int32)
        records = np.empty(partition.count, SAMPLE_RECORD)
        origins: dict[int, Sequence[str]] = {}
        problems: dict[int, Problem] = {}
        remarks: dict[int, str] = {}

        def read(start: int, stop: int) -> None:
            first = partition.start + start
            mine = slice(start, stop)
            if isinstance(self.source, EncodedSource):
                block = self.source.read_into(images[mine], partition.split, first)
            else:
                block = self._checked(partition.split, first, partition.start + stop)
                images[mine] = block.images
            labels[mine] = block.labels
            sizes[mine] = block.images.shape[2:0:-1] if block.sizes is None else block.sizes
            records[mine] = sample_records(block.images, block.labels, block.hashes)
            origins[start] = block.origins
            problems.update({start + at: p for at, p in block.problems.items()})
            remarks.update({start + at: text for at, text in block.remarks.items()})

        in_ranges(self.threads, partition.count, read)
        named = [name for start in sorted(origins) for name in origins[start]]
        return Block(images, labels, named, problems, sizes, remarks=remarks), records

    def _checked(self, split: str, start: int, stop: int) -> Block:
        """Read samples of a split; labels without a class become problems."""
        block = self.source.read(split, start, stop)
        template = self.templates[split]
        expected = (stop - start, *template.shape)
        if block.images.shape != expected or str(block.images.dtype) != template.dtype:
            raise ShapeError(
                f"split '{split}', samples {start} to {stop}: the source gave "
                f"{block.images.shape} {block.images.dtype}, expected {expected} {template.dtype}"
            )
        largest = int(block.images.max(initial=0))
        if largest > self.source.full_scale:
            raise ShapeError(
                f"split '{split}': a pixel has value {largest}, expected at most the full scale, "
                f"{self.source.full_scale}; give the right full_scale"
            )
        classes = len(self.source.class_names)
        if block.labels.dtype.kind not in "iu" or block.labels.shape != expected[:1]:
            raise LabelError(
                f"split '{split}', samples {start} to {stop}: the source gave labels of "
                f"{block.labels.dtype} and shape {block.labels.shape}, expected {expected[:1]} "
                "integers; give an integer code for each image"
            )
        wrong = np.flatnonzero((block.labels < UNLABELLED) | (block.labels >= classes))
        if not len(wrong):
            return block
        return _without(block, wrong, classes)


def _without(block: Block, wrong: npt.NDArray[np.int64], classes: int) -> Block:
    """Return a block whose wrong labels are problems."""
    images, labels = block.images.copy(), np.full(len(block.labels), UNLABELLED, np.int32)
    known = np.ones(len(labels), bool)
    known[wrong] = False
    labels[known] = block.labels[known]
    problems = dict(block.problems)
    for at in wrong.tolist():
        if at not in problems:
            problems[at] = Problem(
                LABEL_UNKNOWN,
                f"label {int(block.labels[at])}, expected 0 to {classes - 1} or -1 for none",
                *images.shape[2:0:-1],
            )
    images[wrong] = 0
    return replace(block, images=images, labels=labels, problems=problems)


def is_written(path: Path, partition: Partition, part: Path, identity: str) -> bool:
    """Tell whether a partition of a plan is written, and its shard what its table says.

    `DamagedError` where one of them cannot be read.
    """
    notes = tables.read_notes(part)
    if notes.get("identity") != identity or "fingerprints" not in notes:
        return False
    recorded = read_part(part, partition, whole=True)
    written = read_records(path, partition)
    return records_digest(written) == notes.get("digest") and np.array_equal(
        written, recorded.records
    )
