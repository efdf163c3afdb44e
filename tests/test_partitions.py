"""Partitions: every sample exactly once, by arithmetic alone."""

from __future__ import annotations

import pytest
import strategies  # noqa: F401  (its profile)
from hypothesis import given
from hypothesis import strategies as st

from pipeline.partitions import CHUNK_BYTES, Concatenation, PartitionTable, choose_layout

sizes = st.integers(0, 60)
splits = st.dictionaries(st.sampled_from(["train", "test", "valid"]), sizes, min_size=1)


@given(count=st.integers(0, 10**7), sample_bytes=st.integers(1, 10**8))
def test_chunks_divide_shards_and_stay_near_their_size(count, sample_bytes):
    layout = choose_layout(count, sample_bytes)
    assert layout.shard % layout.chunk == 0
    assert layout.chunk == 1 or layout.chunk * sample_bytes <= CHUNK_BYTES
    assert layout.shard <= max(1, count) + layout.chunk


@given(shard=st.integers(1, 10**5), sample_bytes=st.integers(1, 10**8))
def test_the_shard_size_asked_for_is_kept(shard, sample_bytes):
    layout = choose_layout(1000, sample_bytes, shard)
    assert layout.shard == shard
    assert shard % layout.chunk == 0
    assert layout.chunk == 1 or layout.chunk * sample_bytes <= CHUNK_BYTES


def test_the_layout_of_mnist():
    assert choose_layout(60_000, 784) == choose_layout(10**9, 784)
    assert (choose_layout(60_000, 784).chunk, choose_layout(60_000, 784).shard) == (4096, 16384)
    assert (choose_layout(899, 64).chunk, choose_layout(899, 64).shard) == (899, 899)


@given(counts=splits, shard=st.integers(1, 9))
def test_a_table_holds_every_sample_once(counts, shard):
    table = PartitionTable(tuple((name, count, shard) for name, count in counts.items()))
    assert [partition.index for partition in table] == list(range(len(table)))
    found = [(p.split, s) for p in table for s in range(p.start, p.stop)]
    assert found == [(name, s) for name, count in counts.items() for s in range(count)]
    assert all(0 < partition.count <= shard for partition in table)
    assert all(partition.start % shard == 0 for partition in table)


@pytest.mark.parametrize("index", [-1, 3, 10**9])
def test_a_partition_that_is_not_there_is_an_index_error(index):
    with pytest.raises(IndexError, match=f"partition {index} of 3"):
        PartitionTable((("train", 5, 2),))[index]


def test_a_table_of_many_partitions_is_a_few_numbers():
    table = PartitionTable((("train", 10**15, 10),))
    assert len(table) == 10**14
    assert table[10**13].start == 10**14


@given(counts=splits, step=st.integers(1, 9))
def test_steps_hold_every_sample_once_in_order(counts, step):
    joined = Concatenation(tuple(counts.items()), step)
    found = []
    for index in range(joined.steps):
        start, stop = joined.bounds(index)
        assert start == index * step
        pieces = list(joined.pieces(index))
        assert sum(b - a for _, a, b in pieces) == stop - start
        found += [(name, s) for name, a, b in pieces for s in range(a, b)]
    assert found == [(name, s) for name, count in counts.items() for s in range(count)]
    assert joined.total == len(found)
