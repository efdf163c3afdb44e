"""Exact duplicates: as many as a dictionary of all images finds, in any number of buckets."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.ingestion import duplicates
from pipeline.ingestion.duplicates import DUPLICATES, find_copies, write_duplicates


def hashes_of(contents):
    return np.frombuffer(
        b"".join(hashlib.sha256(bytes([c % 256, c // 256])).digest() for c in contents), "V32"
    )


def expected(contents, counts):
    """The rows by the definition: each sample whose content came before, and where first."""
    places = [(split, n) for split, count in counts.items() for n in range(count)]
    first, rows = {}, set()
    for place, content in zip(places, contents, strict=True):
        if content in first:
            rows.add((*place, *first[content]))
        first.setdefault(content, place)
    return rows


def found(path):
    rows = pq.read_table(path / DUPLICATES).to_pylist()
    return [(r["split"], r["sample"], r["first_split"], r["first_sample"]) for r in rows]


@pytest.mark.parametrize("bucket", [2**22, 100, 3])
@pytest.mark.parametrize("kinds", [5, 400, 10**4])
def test_duplicates_are_those_that_a_dictionary_finds(tmp_path, monkeypatch, bucket, kinds):
    monkeypatch.setattr(duplicates, "BUCKET_SAMPLES", bucket)
    counts = {"train": 500, "empty": 0, "test": 200}
    contents = np.random.default_rng(kinds).integers(0, kinds, 700).tolist()
    wanted = expected(contents, counts)
    hashes = hashes_of(contents)
    pieces = (hashes[start : start + 90] for start in range(0, 700, 90))
    number = write_duplicates(tmp_path, counts, pieces)
    assert number == len(wanted)
    rows = found(tmp_path)
    assert len(rows) == len(set(rows)) == number
    assert set(rows) == wanted


def test_without_duplicates_there_is_no_table(tmp_path):
    (tmp_path / DUPLICATES).write_bytes(b"of an earlier try")
    assert write_duplicates(tmp_path, {"train": 3}, iter([hashes_of([1, 2, 3])])) == 0
    assert not (tmp_path / DUPLICATES).exists()


def test_hashes_that_share_their_first_bytes_only_are_no_duplicates():
    entries = np.zeros(4, [("sha256", "V32"), ("number", "<i8")])
    texts = [b"a" * 8 + bytes([kind]) * 24 for kind in (1, 2, 1, 3)]
    entries["sha256"] = np.frombuffer(b"".join(texts), "V32")
    entries["number"] = [10, 11, 12, 13]
    copies, originals = find_copies(entries)
    assert (copies.tolist(), originals.tolist()) == ([12], [10])
