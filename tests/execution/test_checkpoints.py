"""Saved sums: each partition is counted once, whatever earlier tries left behind."""

from __future__ import annotations

import dataclasses
import errno
import io
import itertools
import os
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.cluster_settings import ClusterSettings
from pipeline.core.errors import DamagedError, StorageFullError, StoreError
from pipeline.core.paths import locate
from pipeline.execution import checkpoints
from pipeline.execution.checkpoints import (
    ALL,
    CheckpointedSum,
    Checkpoints,
    batch_size,
    saved_batches,
)
from pipeline.execution.executor import open_executor
from pipeline.storage import atomic

SHAPE = (2, 3)


def make(folder, partitions=8, size=1, **changes):
    made = Checkpoints(folder, "this pass", SHAPE, partitions, size)
    made = dataclasses.replace(made, **changes)
    made.token.issue()
    return made


def sums(seed=0, shape=SHAPE):
    return np.random.default_rng(seed).integers(-(2**62), 2**62, shape)


@pytest.fixture
def kept(tmp_path):
    return make(tmp_path / "run" / ".work" / "sums")


# one sum -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1,), (3, 7), (2, 2**17), (0, 4)])
def test_a_sum_is_read_as_it_was_written(tmp_path, shape):
    kept, values = make(tmp_path, shape=shape), sums(shape=shape)
    assert kept.load("a") is None
    assert not kept.has("a")
    kept.save("a", values)
    assert kept.has("a")
    found = kept.load("a")
    assert np.array_equal(found, values)
    assert found.dtype == np.int64
    total = sums(1, shape)
    expected = total + values
    assert kept.add("a", total)
    assert np.array_equal(total, expected)
    assert {path.name for path in tmp_path.iterdir()} == {"a.npz", "token.json"}


def test_anybody_can_read_a_sum(kept):
    kept.save("a", sums())
    with np.load(kept.path("a"), allow_pickle=False) as archive:
        assert archive.files == ["this pass a"]
        assert np.array_equal(archive["this pass a"], sums())


def test_sums_at_urls():
    remote = pickle.loads(pickle.dumps(make(locate("memory://pixsim-sums"))))  # as a worker has it
    remote.save("a", sums())
    assert np.array_equal(remote.load("a"), sums())
    assert not make(remote.folder, identity="another").has("a")


def test_memory_that_is_not_in_order_is_written_in_order(kept):
    kept.save("a", sums(shape=SHAPE[::-1]).T)
    assert np.array_equal(kept.load("a"), sums(shape=SHAPE[::-1]).T)


def is_refused(kept, content):
    """Whether a file with that content is nowhere taken for the sum, or is just as good."""
    kept.path("a").write_bytes(content)
    total = np.zeros(kept.shape, np.int64)
    if kept.add("a", total):
        return np.array_equal(total, sums())
    return kept.load("a") is None and not total.any()


def test_a_flipped_bit_in_any_byte_and_every_truncation_is_found(kept):
    kept.save("a", sums())
    content = kept.path("a").read_bytes()
    for place, bit in itertools.product(range(len(content)), range(8)):
        changed = bytearray(content)
        changed[place] ^= 1 << bit
        assert is_refused(kept, changed), (place, bit)
    for length in range(len(content)):
        kept.path("a").write_bytes(content[:length])
        assert not kept.has("a")
        assert kept.load("a") is None
    assert is_refused(kept, content[:-8] + bytes(8))  # as a machine that fails may leave it


@pytest.mark.parametrize("changes", [
    {"identity": "another pass"}, {"shape": (3, 2)}, {"shape": (2, 2)}, {"shape": (6,)},
], ids=str)  # fmt: skip
def test_sums_of_another_pass_are_not_used(kept, changes):
    make(kept.folder, **changes).save("a", sums(1, changes.get("shape", SHAPE)))
    assert kept.load("a") is None


def test_sums_that_changed_places_are_not_used(kept):
    kept.save("a", sums())
    kept.save("b", sums(1))
    first, second = kept.path("a").read_bytes(), kept.path("b").read_bytes()
    kept.path("a").write_bytes(second)
    kept.path("b").write_bytes(first)
    assert kept.load("a") is kept.load("b") is None
    assert not kept.has("a")


def test_sums_of_another_type_or_shape_are_not_written(kept):
    for wrong in (sums().astype(np.int32), sums(shape=(3, 3))):
        with pytest.raises(StoreError, match=r"holds int64 and \(2, 3\)"):
            kept.save("a", wrong)


def test_a_sum_that_changes_while_it_is_added_is_an_error(kept, monkeypatch):
    monkeypatch.setattr(checkpoints, "_BLOCK", 4)
    kept.save("a", sums())
    opened, numbers = checkpoints.open_binary, itertools.count()

    def open_changed(path):
        if not next(numbers):
            return opened(path)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        return io.BytesIO(content)

    monkeypatch.setattr(checkpoints, "open_binary", open_changed)
    with pytest.raises(DamagedError, match=r"changed while it was read.*run the same command"):
        kept.add("a", np.zeros(SHAPE, np.int64))


def test_where_the_folder_is_gone_the_pass_is_over_and_nothing_is_written(kept):
    kept.token.revoke()
    kept.folder.rmdir()
    with pytest.raises(StoreError):
        kept.save("a", sums())
    assert not kept.folder.exists()


def test_a_full_disk_is_an_error_that_leaves_the_earlier_sum(kept, monkeypatch):
    kept.save("a", sums())

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(atomic.Path, "replace", full)
    with pytest.raises(StorageFullError, match="no space left"):
        kept.save("a", sums(1))
    assert np.array_equal(kept.load("a"), sums())
    assert {path.name for path in kept.folder.iterdir()} == {"a.npz", "token.json"}


def test_what_cannot_be_read_is_not_there(kept, monkeypatch):
    kept.save("a", sums())
    monkeypatch.setattr(checkpoints, "open_binary", lambda _: 1 / 0)
    assert kept.load("a") is None
    assert not kept.has("a")


@pytest.mark.parametrize(("partitions", "size", "read", "expected"), [
    (37, 125_520, 37 * 12_845_056, 1),  # means of 28 x 28
    (37, 8_153_680, 37 * 12_845_056, 13),  # medians of them
    (8, 2 * 2**20, 0, 1),  # 16 MiB in all
    (9, 2 * 2**20, 0, 2),
    (100_000, 197 * 10**6, 100_000 * 12_582_912, 251),
    (100_000, 1000, 100_000 * 80, 6),
    (100, 2**30, 100, 101),  # never
    (1, 1, 1, 1), (5, 0, 0, 1),
])  # fmt: skip
def test_sums_take_a_sixteenth_of_what_is_read_or_little(partitions, size, read, expected):
    found = batch_size(partitions, size, read)
    assert found == expected
    assert partitions // found * size <= max(read / 16, 2**24)


@pytest.mark.parametrize(("size", "at_once", "saved"), [
    (1, 4, 13), (2, 4, 7), (4, 4, 4), (5, 4, 0), (13, 1, 1), (14, 1, 0), (1, 99, 13),
])  # fmt: skip
def test_nothing_is_saved_where_tasks_would_wait_for_each_other(size, at_once, saved):
    assert saved_batches(13, size, at_once) == saved


# a pass ------------------------------------------------------------------------------------------


class Powers:
    """Adds 2**index to every element; records its calls, and fails when told to."""

    def __init__(self, fails_at=None):
        self.calls = []
        self.fails_at = fails_at

    def __call__(self, index, total):
        if len(self.calls) == self.fails_at:
            raise InterruptedError("cut short")
        self.calls.append(index)
        total += 2**index


class Counter:
    """A phase that records how far it is."""

    def __init__(self):
        self.done = 0

    def advance(self, partitions=1):
        self.done += partitions


def add(function, kept, workers=1):
    """Add in threads; return the sum and how far the phase got."""
    phase = Counter()
    with open_executor(ClusterSettings(kind="threads", workers=workers)) as executor:
        total = executor.add(function, kept, phase)
    return total, phase.done


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 19])
@pytest.mark.parametrize("size", [1, 3, 20])
def test_every_partition_is_added_once(tmp_path, workers, count, size):
    powers = Powers()
    total, told = add(powers, make(tmp_path, count, size), workers)
    assert total.tolist() == [[2**count - 1] * 3] * 2
    assert sorted(powers.calls) == list(range(count))
    assert told == count


def test_there_are_no_more_accumulators_than_tasks_at_once(tmp_path, monkeypatch):
    made, original = [], np.zeros
    monkeypatch.setattr(checkpoints.np, "zeros", lambda *a: made.append(a) or original(*a))
    add(Powers(), make(tmp_path, 50, 51), 3)
    assert made == [(SHAPE, np.int64)] * 3


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("workers", [(1, 1), (3, 1), (1, 2)], ids=str)
@pytest.mark.parametrize("after", [0, 1, 7, 12])
def test_what_is_cut_short_is_resumed(tmp_path, size, workers, after):
    count = 13
    kept = make(tmp_path, count, size)
    first = Powers(fails_at=after)
    with pytest.raises(InterruptedError):
        add(first, kept, workers[0])
    again = Powers()
    total, told = add(again, kept, workers[1])
    assert total.tolist() == [[2**count - 1] * 3] * 2
    assert len(set(again.calls)) == len(again.calls)
    assert len(again.calls) <= count - after + workers[0] * (size - 1)  # a batch is lost at most
    assert told == count
    third = Powers()
    assert add(third, kept)[0].tolist() == total.tolist()
    assert third.calls == []


def test_a_batch_is_one_file(tmp_path):
    kept = make(tmp_path / "sums", 10, 4)
    add(Powers(), kept)
    assert sorted(path.name for path in kept.folder.glob("*.npz")) == [
        "000000-000004.npz", "000004-000008.npz", "000008-000010.npz",
    ]  # fmt: skip


@pytest.mark.parametrize("damage", ["delete", "truncate", "flip", "swap", "foreign"])
def test_partitions_of_damaged_files_are_counted_again(tmp_path, damage):
    kept = make(tmp_path / "sums", 8, 2)
    other = make(tmp_path / "other", 8, 2, identity="another")
    add(Powers(), kept)
    add(lambda index, total: np.add(total, 5, out=total), other)
    victim, neighbour = kept.path(kept.name(1)), kept.path(kept.name(3))
    content, lost = bytearray(victim.read_bytes()), [2, 3]
    if damage == "delete":
        victim.unlink()
    elif damage == "truncate":
        victim.write_bytes(content[:-1])
    elif damage == "flip":
        content[content.index(b"NUMPY") + 130] ^= 128
        victim.write_bytes(content)
    elif damage == "swap":
        lost += [6, 7]
        victim.write_bytes(neighbour.read_bytes())
        neighbour.write_bytes(content)
    else:
        victim.write_bytes(other.path(other.name(1)).read_bytes())
    again = Powers()
    total, _ = add(again, kept, workers=2)
    assert (total == 2**8 - 1).all()
    assert sorted(again.calls) == lost


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("save"), st.integers(0, 30)),
        st.tuples(st.sampled_from(["late", "killed"]), st.integers(0, 30)),
        st.tuples(st.sampled_from(["delete", "truncate", "flip", "swap"]), st.integers(0, 30)),
    ),
    max_size=40,
)


@settings(max_examples=100)
@given(
    count=st.integers(1, 24), size=st.integers(1, 4), events=EVENTS, at_once=st.integers(1, 6)
)  # fmt: skip
def test_any_course_of_tries_counts_each_partition_once(
    tmp_path_factory, count, size, events, at_once
):
    """Tasks end or are killed, late ones write again, files are damaged, workers are others."""
    kept = make(tmp_path_factory.mktemp("tries"), count, size)
    saved = set()
    for kind, number in events:
        batch = number % kept.batches
        file, tell = kept.path(kept.name(batch)), lambda _: None
        if kind == "save":
            CheckpointedSum(Powers(), kept, 1).save(batch, tell)
            saved.add(batch)
        elif kind == "late":
            total = np.zeros(SHAPE, np.int64)
            total += sum(2**index for index in kept.numbers(batch))
            kept.save(kept.name(batch), total)
            saved.add(batch)
        elif kind == "killed":
            (kept.folder / f"{file.name}.machine-1-1-a.partial").write_bytes(b"PK")
        elif file.exists():
            saved.discard(batch)
            content = bytearray(file.read_bytes())
            if kind == "delete":
                file.unlink()
            elif kind == "truncate":
                file.write_bytes(content[: len(content) // 2])
            elif kind == "flip":
                content[len(content) // 2] ^= 4
                file.write_bytes(content)
            else:
                saved.discard((batch + 1) % kept.batches)
                kept.path(kept.name((batch + 1) % kept.batches)).write_bytes(content)
    again = Powers()
    total, _ = add(again, kept, at_once)
    assert (total == 2**count - 1).all()
    assert len(set(again.calls)) == len(again.calls)
    if saved_batches(count, size, at_once):  # nothing that a file held was counted again
        assert not {index for batch in saved for index in kept.numbers(batch)} & {*again.calls}


def test_the_sum_of_all_partitions_is_no_batch(kept):
    kept.save(ALL, sums())
    assert kept.path(ALL).name == "all.npz"
    assert ALL not in {kept.name(batch) for batch in range(kept.batches)}
