"""The samples of an image set as tables: one a partition while it is made, one in the end.

A partition's table, `.work/samples/part-*.parquet`, has a row for each sample that was planned,
whatever became of it: its `status` is `ok`, or says why it cannot be used, with a `detail`. Its
notes say which plan it belongs to and the digest of what was written. `samples.parquet` is these
tables end to end. There the samples that could be used are numbered as in the store, the others
have no number.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.core.blocks import OK, STATUSES, WRONG_SIZE, Block
from pipeline.core.digests import SAMPLE_RECORD
from pipeline.core.errors import BadSamplesError
from pipeline.core.partitions import Partition, PartitionTable
from pipeline.storage import tables
from pipeline.storage.atomic import replaced
from pipeline.storage.folders import remove_tree
from pipeline.storage.image_content import records_digest
from pipeline.storage.manifest import WORK

SAMPLES = "samples.parquet"
BAD_SAMPLES = "bad_samples.csv"
SHOWN_ROWS = 20
KEPT_SAMPLES = 2**20
_SIZE_COLUMNS = ["width", "height", "status", "detail"]
_BAD_HEADER = ("split", "sample", "source", "status", "detail")


def part_path(path: Path, index: int) -> Path:
    """Return the table of a partition of a store that is being made."""
    return path / WORK / "samples" / tables.part_name(index)


def write_part(
    path: Path,
    partition: Partition,
    block: Block,
    records: npt.NDArray[Any],
    splits: Sequence[str],
    class_names: Sequence[str],
    notes: Mapping[str, str],
) -> None:
    """Write the table of a partition: of the samples that were read and written as `block`.

    `records` are label and hash of each sample, of dtype `SAMPLE_RECORD`; `splits` and
    `class_names` are all there are; `notes` are what `part_notes` returns.
    """
    tables.write_part(path, _columns(partition, block, records, splits, class_names), notes)


def part_notes(
    identity: str, block: Block, records: npt.NDArray[Any], fingerprints: Sequence[str]
) -> dict[str, str]:
    """Return what the table of a partition says of itself.

    `identity` is that of the plan, `fingerprints` those of the files of images and labels.
    """
    return {
        "identity": identity,
        "digest": records_digest(records),
        "fingerprints": " ".join(fingerprints),
        "remarks": str(len(block.remarks)),
    }


def _columns(
    partition: Partition,
    block: Block,
    records: npt.NDArray[Any],
    splits: Sequence[str],
    class_names: Sequence[str],
) -> dict[str, Any]:
    count = partition.count
    sizes = _sizes(block)
    status, details = np.full(count, OK, np.int32), dict(block.remarks)
    for index, problem in block.problems.items():
        status[index], details[index] = problem.status, problem.detail
        sizes[index] = problem.width, problem.height
    texts = sorted(set(details.values()))
    code_of = {text: code for code, text in enumerate(texts)}
    codes = np.full(count, -1, np.int32)
    codes[list(details)] = [code_of[detail] for detail in details.values()]
    return {
        "sample": np.arange(partition.start, partition.stop),
        "split": tables.dictionary(np.full(count, splits.index(partition.split)), splits),
        "source": list(block.origins),
        "label": tables.nullable(block.labels, block.labels < 0),
        "label_name": tables.dictionary(block.labels, class_names),
        "width": sizes[:, 0],
        "height": sizes[:, 1],
        "status": tables.dictionary(status, STATUSES),
        "detail": tables.dictionary(codes, texts),
        "sha256": tables.fixed_bytes(records["sha256"]),
    }


def _sizes(block: Block) -> npt.NDArray[np.int32]:
    """Return width and height of each image, [sample, 2]."""
    if block.sizes is not None:
        return np.array(block.sizes, np.int32)
    height, width = block.images.shape[1:3]
    return np.full((len(block.images), 2), (width, height), np.int32)


@dataclass(frozen=True)
class SamplesPart:
    """What the table of a partition says of its samples, in order."""

    partition: Partition  # the samples that were planned
    records: npt.NDArray[Any]  # [sample]; label and hash of each
    status: npt.NDArray[np.int64]  # [sample]; an index into `STATUSES`

    @property
    def good(self) -> npt.NDArray[np.bool_]:
        """[sample]; which can be used."""
        return np.equal(self.status, OK)


def read_part(path: Path, partition: Partition, whole: bool = False) -> SamplesPart:
    """Read back what the table of a partition says; `whole` reads, and so checks, every column."""
    columns = tables.read_part(path, None if whole else ["label", "sha256", "status"])
    records = np.empty(len(columns["label"]), SAMPLE_RECORD)
    records["label"], records["sha256"] = columns["label"], columns["sha256"]
    return SamplesPart(partition, records, columns["status"])


class Parts:
    """The tables of all partitions of a store, kept in memory where the samples are few."""

    def __init__(self, path: Path, table: PartitionTable) -> None:
        self._path, self._table = path, table
        self._kept: dict[int, SamplesPart] = {}
        self._keeps = sum(count for _, count, _ in table.splits) <= KEPT_SAMPLES

    def __iter__(self) -> Iterator[SamplesPart]:
        return (self._read(index) for index in range(len(self._table)))

    def of_split(self, split: str) -> Iterator[SamplesPart]:
        """Return the tables of one split, in order."""
        return (self._read(index) for index in self._table.indices(split))

    def _read(self, index: int) -> SamplesPart:
        part = self._kept.get(index)
        if part is None:
            part = read_part(part_path(self._path, index), self._table[index])
            if self._keeps:
                self._kept[index] = part
        return part


@dataclass(frozen=True)
class Tally:
    """How many samples of each split were planned, and how many have which status."""

    counts: Mapping[str, npt.NDArray[np.int64]]  # split -> [status], for all of `STATUSES`
    parts: npt.NDArray[np.int64]  # [partition]; samples that can be used

    @property
    def total(self) -> int:
        return sum(int(counts.sum()) for counts in self.counts.values())

    @property
    def bad(self) -> int:
        return self.total - sum(int(counts[OK]) for counts in self.counts.values())

    def by_status(self) -> dict[str, int]:
        """Return how many samples have each status but `ok`, those that occur."""
        counts = np.sum(list(self.counts.values()), axis=0)
        return {STATUSES[at]: int(n) for at, n in enumerate(counts) if n and at != OK}


def tally(parts: Iterable[SamplesPart], table: PartitionTable) -> Tally:
    """Count the samples of a store that is being made by split and status."""
    counts = {name: np.zeros(len(STATUSES), np.int64) for name, _, _ in table.splits}
    good = np.zeros(len(table), np.int64)
    for part in parts:
        counts[part.partition.split] += np.bincount(part.status, minlength=len(STATUSES))
        good[part.partition.index] = np.count_nonzero(part.good)
    return Tally(counts, good)


def _bad_rows(path: Path, table: PartitionTable, counted: Tally) -> Iterator[tuple[Any, ...]]:
    for partition in table:
        if counted.parts[partition.index] == partition.count:
            continue
        for row in tables.read_rows(part_path(path, partition.index)):
            if row["status"] != STATUSES[OK]:
                yield (
                    row["split"], row["sample"], row["source"], row["status"], row["detail"] or "",
                )  # fmt: skip


def write_bad_samples(path: Path, table: PartitionTable, counted: Tally) -> list[tuple[Any, ...]]:
    """Write `bad_samples.csv`, one row a sample that cannot be used; return the first rows."""
    first: list[tuple[Any, ...]] = []
    with (
        replaced(path / BAD_SAMPLES) as aside,
        aside.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(_BAD_HEADER)
        for row in _bad_rows(path, table, counted):
            writer.writerow(row)
            if len(first) < SHOWN_ROWS:
                first.append(row)
    return first


def conversions_in(detail: str) -> dict[str, str]:
    """Return the `mode` and `depth` that the detail of a sample of a wrong size says to set."""
    return dict(re.findall(r"(mode|depth): (\w+)", detail.rpartition("; set ")[2]))


def _one_size(path: Path, table: PartitionTable, prefix: str, resized: Sequence[int]) -> str:
    """Return the options that bring images of several sizes, modes or depths to one.

    `resized` is the size that they are to have already, [height, width]; else it is the commonest.
    """
    sizes: Counter[tuple[int, int]] = Counter()
    others: dict[str, str] = {}
    for partition in table:
        for rows in tables.read_groups(part_path(path, partition.index), _SIZE_COLUMNS):
            seen = np.isin(rows.texts("status"), (STATUSES[OK], STATUSES[WRONG_SIZE]))
            pairs = np.stack([rows.integers("height"), rows.integers("width")], axis=1)[seen]
            found, counts = np.unique(pairs, axis=0, return_counts=True)
            sizes.update(dict(zip(map(tuple, found.tolist()), counts.tolist(), strict=True)))
            wrong = rows.where(rows.texts("status") == STATUSES[WRONG_SIZE])
            for detail in set(wrong.texts("detail").tolist()):
                others |= conversions_in(detail)
    height, width = resized or sizes.most_common(1)[0][0]
    changes = [f"resize=[{height},{width}]"] if resized or len(sizes) > 1 else []
    changes += [f"{key}={value}" for key, value in sorted(others.items())]
    return " ".join(f"{prefix}{change}" for change in changes)


def refuse_bad_samples(
    path: Path,
    table: PartitionTable,
    counted: Tally,
    allowed: int,
    prefix: str = "",
    resized: Sequence[int] = (),
) -> None:
    """Raise `BadSamplesError` where more samples cannot be used than are allowed.

    All of them are listed in `bad_samples.csv`, the first in the error. Where some have another
    size than most, it says which options mend that: `prefix` stands before keys of images there,
    `resized` is [height, width] of images that were brought to one size already.
    """
    if counted.bad <= allowed:
        remove_tree(path / BAD_SAMPLES)  # of an earlier try
        return
    first = write_bad_samples(path, table, counted)
    kinds = ", ".join(f"{count:,} {status}" for status, count in counted.by_status().items())
    split, sample, source, status, detail = first[0]
    cure, sized = "", STATUSES[WRONG_SIZE] in counted.by_status()
    if sized and (changes := _one_size(path, table, prefix, resized)):
        what = "the size that most have" if "resize" in changes and not resized else "one size"
        what = what if "resize" in changes else "one kind"
        cure = f"--set {changes} brings all images to {what}; "
    one = counted.bad == 1
    start = (
        f"{counted.bad:,} of {counted.total:,} samples cannot be used ({kinds}), expected at most "
        f"{allowed:,}; {cure}"
    )
    why = detail if one else f"{status}, {detail}"
    known = f"{'it' if one else 'the first'} is '{split}' sample {sample}, {source}: {why}; "
    end = (
        f"{'it is' if one else 'all are'} listed in {path / BAD_SAMPLES}: mend or remove "
        f"{'it' if one else 'them'}, or let max_bad say how many may be left out "
        f"(--set {prefix}max_bad={counted.bad}), and run again"
    )
    raise BadSamplesError(start + known + end, _BAD_HEADER, first, counted.bad, start + end)


def write_samples(path: Path, table: PartitionTable, counted: Tally) -> None:
    """Put the tables of all partitions together as `samples.parquet`, samples numbered anew."""
    after = {name: 0 for name, _, _ in table.splits}

    def numbered(split: str, rows: tables.TableRows) -> Mapping[str, Any]:
        good = rows.texts("status") == STATUSES[OK]
        numbers = after[split] + np.cumsum(good) - 1
        after[split] += int(np.count_nonzero(good))
        hashes = tables.emptied(rows.table.column("sha256"), ~good)
        return {"sample": tables.nullable(numbers, ~good), "sha256": hashes}

    parts = ((part_path(path, part.index), partial(numbered, part.split)) for part in table)
    tables.join(path / SAMPLES, ((part, change if counted.bad else None) for part, change in parts))


def sources_of(path: Path, wanted: Set[tuple[str, int]]) -> dict[tuple[str, int], str]:
    """Return where some samples of an image set, split and index of each, came from."""
    numbers = np.array(sorted({sample for _, sample in wanted}), np.int64)
    sources = {}
    for rows in tables.read_groups(path / SAMPLES, ["split", "sample", "source"]):
        near = rows.where(np.isin(rows.integers("sample"), numbers))
        samples = near.integers("sample").tolist()
        keys = zip(near.texts("split").tolist(), samples, strict=True)
        for key, source in zip(keys, near.texts("source").tolist(), strict=True):
            if key in wanted:
                sources[key] = str(source)
    return sources
