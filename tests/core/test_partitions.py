"""Partitions: every sample exactly once, by arithmetic alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.partitions import (
    CHUNK_BYTES,
    Concatenation,
    PartitionTable,
    accumulator_bytes,
    choose_layout,
    choose_step,
    pixel_tiles,
)
from pipeline.kernels import backends
from pipeline.ops.medians import histograms_block
from pipeline.ops.prototypes import class_sums_block

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


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("shape", [(1, 1), (4, 5), (2, 3, 3)])
def test_the_bytes_of_an_accumulator_are_those_of_what_a_task_makes(classes, shape):
    pixels = int(np.prod(shape))
    block = np.zeros((2, pixels), np.uint8), np.zeros(2, np.int64), classes
    sums = class_sums_block(backends.load("cpu"), *block).nbytes
    counts = histograms_block(backends.load("cpu"), *block).nbytes
    assert accumulator_bytes(classes, pixels) == sums
    assert accumulator_bytes(classes, pixels, 1) == sums + counts
    assert accumulator_bytes(classes, pixels, 2) == sums + 2 * counts


@given(pixels=st.integers(1, 2000), fitting=st.integers(-1, 2100))
def test_tiles_hold_every_pixel_once_and_are_few_and_equal(pixels, fitting):
    tiles = pixel_tiles(pixels, fitting)
    assert [pixel for first, last in tiles for pixel in range(first, last)] == list(range(pixels))
    sizes = [last - first for first, last in tiles]
    assert max(sizes) <= max(fitting, 1)
    assert max(sizes) - min(sizes) <= 1
    assert (len(tiles) - 1) * max(fitting, 1) < pixels  # one tile fewer would not do


@given(
    shard=st.integers(1, 10**6),
    sample_bytes=st.integers(1, 10**6),
    most=st.one_of(st.integers(0, 100), st.integers(0, 10**12)),
)
def test_a_step_is_the_largest_even_part_of_a_shard_that_fits(shard, sample_bytes, most):
    step = choose_step(shard, sample_bytes, most)
    parts = [-(-shard // 2**power) for power in range(21)]  # down to 1
    assert step == next((part for part in parts if part * sample_bytes <= most), 1)


@pytest.mark.parametrize(("shard", "most", "step"), [
    (16384, 16384 * 80, 16384), (16384, 16384 * 80 - 1, 8192), (899, 450 * 80, 450),
    (899, 450 * 80 - 1, 225), (1, 0, 1), (5, 0, 1),
])  # fmt: skip
def test_a_step_of_ten_classes(shard, most, step):
    assert choose_step(shard, 80, most) == step
