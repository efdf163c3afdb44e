"""Exact duplicates: samples whose pixels have one hash, found in memory that does not grow.

The hashes of all samples are spread over buckets by their first bits, as many as it takes for one
to hold some million samples, in files of a temporary folder; then each bucket is sorted by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.core.digests import SAMPLE_RECORD
from pipeline.core.partitions import ceil_div
from pipeline.storage import tables
from pipeline.storage.atomic import scratch_folder
from pipeline.storage.folders import remove_tree
from pipeline.storage.manifest import WORK
from pipeline.storage.sample_tables import SAMPLES

DUPLICATES = "duplicates.parquet"
BUCKET_SAMPLES = 2**22
_ENTRY = np.dtype([("sha256", "V32"), ("number", "<i8")])


def tables_of(duplicates: int) -> list[str]:
    """Return the names of the tables of an image set with that many duplicates."""
    return [SAMPLES, *([DUPLICATES] if duplicates else [])]


def write_duplicates(
    path: Path, counts: Mapping[str, int], hashes: Iterable[npt.NDArray[Any]]
) -> int:
    """Write `duplicates.parquet`: a row for each sample that is an exact copy of an earlier one.

    Labels play no part. Rows are split and sample, and `first_split` and `first_sample` of the
    earliest with the same pixels; in order of the samples within each of the buckets. `hashes` are
    those of all samples, split by split in order, in pieces of any size. Returns how many rows
    there are; where none, no file is written.
    """
    written, splits = [], list(counts)
    firsts = np.cumsum([0, *counts.values()])
    for number, entries in enumerate(_buckets(hashes, sum(counts.values()))):
        copies, originals = find_copies(entries)
        if len(copies):
            part = path / WORK / "duplicates" / tables.part_name(number)
            tables.write_part(part, _columns(copies, originals, splits, firsts), {})
            written.append((part, len(copies)))
    remove_tree(path / DUPLICATES)
    if written:
        tables.merge_parts(path / DUPLICATES, [part for part, _ in written])
    return sum(count for _, count in written)


def find_copies(entries: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the numbers of all copies, ascending, and for each that of the first of its kind.

    Entries are, for each sample, `sha256` (32 bytes) and `number`.
    """
    words = np.ascontiguousarray(entries["sha256"]).view("<u8").reshape(-1, 4)
    order = np.argsort(words[:, 0], kind="stable")
    first = words[order, 0]
    equal = np.zeros(len(first) + 1, bool)
    equal[1:-1] = first[1:] == first[:-1]
    # few are left: those that share their first eight bytes with a neighbour
    kept = order[equal[1:] | equal[:-1]]
    words, numbers = words[kept], entries["number"][kept]
    order = np.lexsort((numbers, *words.T))
    words, numbers = words[order], numbers[order]
    is_copy = np.zeros(len(numbers), bool)
    is_copy[1:] = (words[1:] == words[:-1]).all(axis=1)
    start = np.maximum.accumulate(np.where(is_copy, 0, np.arange(len(numbers))))
    copies, originals = numbers[is_copy], numbers[start][is_copy]
    order = np.argsort(copies)
    return copies[order], originals[order]


def _buckets(hashes: Iterable[npt.NDArray[Any]], total: int) -> Iterator[npt.NDArray[Any]]:
    """Yield the entries of all good samples, those of one hash together."""
    buckets = 1 << (ceil_div(max(total, 1), BUCKET_SAMPLES) - 1).bit_length()
    if buckets == 1:
        pieces = list(_entries(hashes))
        yield np.concatenate(pieces) if pieces else np.empty(0, _ENTRY)
        return
    with scratch_folder() as folder, ExitStack() as stack:
        paths = [folder / str(number) for number in range(buckets)]
        files = [stack.enter_context(path.open("wb")) for path in paths]
        for entries in _entries(hashes):
            heads = np.ascontiguousarray(entries["sha256"]).view(">u4").reshape(-1, 8)[:, 0]
            chosen = heads >> np.uint32(32 - (buckets - 1).bit_length())
            for number in np.unique(chosen).tolist():
                files[number].write(entries[chosen == number].tobytes())
        for file, path in zip(files, paths, strict=True):
            file.close()
            yield np.fromfile(path, _ENTRY)


def _entries(hashes: Iterable[npt.NDArray[Any]]) -> Iterator[npt.NDArray[Any]]:
    number = 0
    for piece in hashes:
        entries = np.empty(len(piece), _ENTRY)
        entries["sha256"] = piece
        entries["number"] = np.arange(number, number + len(piece))
        number += len(piece)
        yield entries


def _columns(
    copies: npt.NDArray[np.int64],
    originals: npt.NDArray[np.int64],
    splits: list[str],
    firsts: npt.NDArray[np.int64],
) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for prefix, numbers in (("", copies), ("first_", originals)):
        codes = np.searchsorted(firsts, numbers, "right") - 1
        # an empty split starts where the next one does
        columns[prefix + "split"] = tables.dictionary(codes, splits)
        columns[prefix + "sample"] = numbers - firsts[codes]
    return columns


def stored_records(path: Path, split: str) -> Iterator[npt.NDArray[Any]]:
    """Yield the records of the samples of a split, in order, from the table of samples."""
    for rows in tables.read_groups(path / SAMPLES, ["split", "sample", "label", "sha256"]):
        mine = (rows.texts("split") == split) & (rows.integers("sample") >= 0)
        records = np.empty(np.count_nonzero(mine), SAMPLE_RECORD)
        records["label"] = rows.integers("label")[mine]
        records["sha256"] = rows.fixed("sha256")[mine]
        yield records
