"""Pieces of sums: what is read is what was written for this pass, or nothing."""

from __future__ import annotations

import dataclasses
import errno
import io
import itertools
import os
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import DamagedError, StorageFullError
from pipeline.core.paths import locate
from pipeline.execution import checkpoints
from pipeline.execution.checkpoints import SUFFIX, WHOLE, Checkpoints, Piece, partitions_a_piece
from pipeline.storage import atomic

SHAPE = (3, 7)


def make(folder, **changes):
    found = dataclasses.replace(Checkpoints(folder, "this pass", SHAPE, 2), **changes)
    found.begin()
    return found


def sums(seed=0, shape=SHAPE):
    return np.random.default_rng(seed).integers(-(2**62), 2**62, shape)


@pytest.fixture
def kept(tmp_path):
    return make(tmp_path / "run" / ".work" / "sums")


@pytest.fixture
def remote():
    return make(locate("memory://pixsim-sums"))


@pytest.mark.parametrize("shape", [(1,), (3, 7), (2, 2**17), (0, 4)])
def test_a_piece_is_read_as_it_was_written(tmp_path, shape):
    kept, values = make(tmp_path, shape=shape), sums(shape=shape)
    assert kept.load("a") is None
    assert kept.covered("a") is None
    kept.save("a", ((0, 2), (5, 6)), values)
    found = kept.load("a")
    assert found[0] == kept.covered("a") == ((0, 2), (5, 6))
    assert np.array_equal(found[1], values)
    assert found[1].dtype == np.int64
    assert found[1].flags.writeable
    total = sums(1, shape)
    expected = total + values
    assert kept.add(Piece("a", ((0, 2), (5, 6))), total)
    assert np.array_equal(total, expected)
    assert [path.name for path in tmp_path.iterdir()] == ["a" + SUFFIX]


def test_pieces_at_urls(remote):
    values, numbers = sums(), ((3, 8),)
    remote = pickle.loads(pickle.dumps(remote))  # as a worker has it
    remote.save("a", numbers, values)
    assert np.array_equal(remote.load_numbers("a", numbers), values)
    assert remote.find(8) == [Piece("a", numbers)]
    assert make(remote.folder, identity="another").find(8) == []
    assert remote.load("a") is None  # it was removed


def test_a_header_of_any_length_is_read(kept):
    numbers = tuple((3 * n, 3 * n + 1) for n in range(20_000))
    kept.save("a", numbers, sums())
    assert kept.covered("a") == numbers
    assert kept.load("a")[0] == numbers


def test_memory_that_is_not_in_order_is_written_in_order(kept):
    kept.save("a", ((0, 1),), sums(shape=SHAPE[::-1]).T)
    assert np.array_equal(kept.load("a")[1], sums(shape=SHAPE[::-1]).T)


def content_of(kept, name="a"):
    return (kept.folder / (name + SUFFIX)).read_bytes()


def is_refused(kept, content, numbers=((4, 6),)):
    """Whether a file with that content is nowhere taken for the piece."""
    (kept.folder / ("a" + SUFFIX)).write_bytes(content)
    total = np.zeros(kept.shape, np.int64)
    refused = kept.load("a") is None and not kept.add(Piece("a", numbers), total)
    return refused and kept.load_numbers("a", numbers) is None and not total.any()


def test_a_flipped_bit_in_any_byte_and_every_truncation_is_found(tmp_path):
    kept = make(tmp_path, shape=(2, 3))
    kept.save("a", ((4, 6),), sums(shape=(2, 3)))
    whole = content_of(kept)
    assert not is_refused(kept, whole)
    for place in range(len(whole)):
        content = bytearray(whole)
        content[place] ^= 1 << place % 8
        assert is_refused(kept, content), place
    for length in range(len(whole)):
        assert is_refused(kept, whole[:length]), length
    assert is_refused(kept, whole + b"\0")
    assert is_refused(kept, whole[:-8] + bytes(8))  # as a machine that fails may leave it


@pytest.mark.parametrize("changes", [
    {"identity": "another pass"}, {"shape": (7, 3)}, {"shape": (3, 6)}, {"shape": (21,)},
], ids=str)  # fmt: skip
def test_pieces_of_another_pass_are_not_used(kept, changes):
    make(kept.folder, **changes).save("a", ((4, 6),), sums(shape=changes.get("shape", SHAPE)))
    assert is_refused(kept, content_of(kept))
    assert kept.covered("a") is None
    assert kept.find(10) == []


def test_swapped_pieces_are_not_used(kept):
    kept.save("a", ((0, 2),), sums())
    kept.save("b", ((2, 4),), sums(1))
    first, second = (kept.folder / (name + SUFFIX) for name in "ab")
    aside = kept.folder / "aside"
    first.rename(aside)
    second.rename(first)
    aside.rename(second)
    assert kept.load("a") is kept.load("b") is None
    assert kept.find(4) == []


@pytest.mark.parametrize("numbers", [
    [], [[0, 0]], [[2, 1]], [[-1, 1]], [[0, 2], [1, 3]], [[0, 1], [1, 2]], [[3, 4], [0, 1]],
    "ab", [0, 1], None, [["a", "b"]], {"0": 1},
], ids=str)  # fmt: skip
def test_a_header_that_states_no_numbers_is_refused(kept, numbers):
    kept.save("a", numbers, sums())
    assert kept.covered("a") is None
    assert kept.load("a") is None


def test_only_the_numbers_that_were_asked_for_are_loaded(kept):
    kept.save("a", ((0, 2),), sums())
    assert kept.load_numbers("a", ((0, 3),)) is None
    assert not kept.add(Piece("a", ((0, 3),)), np.zeros(SHAPE, np.int64))


def test_a_piece_that_changes_while_it_is_added_is_an_error(kept, monkeypatch):
    kept.save("a", ((0, 2),), sums())
    opened, numbers = checkpoints.open_binary, itertools.count()

    def open_changed(path):
        if not next(numbers):
            return opened(path)
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        return io.BytesIO(content)

    monkeypatch.setattr(checkpoints, "open_binary", open_changed)
    with pytest.raises(DamagedError, match=r"changed while it was read.*run the same command"):
        kept.add(Piece("a", ((0, 2),)), np.zeros(SHAPE, np.int64))


def test_no_more_than_a_block_is_in_memory_where_a_piece_is_added(kept, monkeypatch):
    monkeypatch.setattr(checkpoints, "_BLOCK", 4)
    kept.save("a", ((0, 2),), sums())
    made, empty = [], np.empty
    monkeypatch.setattr(checkpoints.np, "empty", lambda n, t: made.append(n) or empty(n, t))
    total = np.zeros(SHAPE, np.int64)
    assert kept.add(Piece("a", ((0, 2),)), total)
    assert made == [4, 4]  # to check it, and to add it
    assert np.array_equal(total, sums())


def test_where_the_folder_is_gone_the_pass_is_over_and_nothing_is_written(kept):
    kept.folder.rmdir()
    kept.save("a", ((0, 1),), sums())
    assert not kept.folder.exists()
    assert kept.find(3) == []


def test_a_full_disk_is_an_error_that_leaves_the_earlier_piece(kept, monkeypatch):
    kept.save("a", ((0, 1),), sums())

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(atomic.Path, "replace", full)
    with pytest.raises(StorageFullError, match="no space left"):
        kept.save("a", ((0, 2),), sums(1))
    assert kept.load("a")[0] == ((0, 1),)
    assert [path.name for path in kept.folder.iterdir()] == ["a" + SUFFIX]


def test_what_cannot_be_read_is_not_there(kept, monkeypatch):
    kept.save("a", ((0, 1),), sums())

    def fail(*_):
        raise PermissionError("no")

    monkeypatch.setattr(checkpoints, "open_binary", fail)
    assert kept.load("a") is None
    monkeypatch.setattr(checkpoints, "read_bytes", fail)
    assert kept.covered("a") is None


def test_what_holds_most_is_chosen_and_the_rest_removed(kept):
    kept.save("old", ((0, 3),), sums())
    kept.save("new", ((0, 4),), sums(1))  # took the old one in
    kept.save("else", ((6, 8), (9, 10)), sums(2))
    kept.save("crosses", ((3, 5),), sums(3))
    kept.save("beyond", ((9, 11),), sums(4))
    kept.save(WHOLE, ((0, 10),), sums(5))
    (kept.folder / "else.sums.partial").write_bytes(b"cut short")
    (kept.folder / "torn.sums").write_bytes(content_of(kept, "new")[:30])
    assert kept.find(10) == [Piece("new", ((0, 4),)), Piece("else", ((6, 8), (9, 10)))]
    assert {path.name for path in kept.folder.iterdir()} == {"new.sums", "else.sums"}


@given(st.lists(st.frozensets(st.integers(0, 12), min_size=1), max_size=8))
def test_chosen_pieces_are_disjoint_and_none_that_fits_is_left_out(tmp_path_factory, sets):
    kept = make(tmp_path_factory.mktemp("pieces"))
    for name, numbers in enumerate(sets):
        kept.save(str(name), checkpoints.joined((n, n + 1) for n in numbers), sums())
    chosen = [sets[int(piece.name)] for piece in kept.find(13)]
    taken = frozenset().union(*chosen)
    assert sum(map(len, chosen)) == len(taken)
    assert all(numbers & taken for numbers in sets)


@pytest.mark.parametrize(("partitions", "piece", "read", "expected"), [
    (37, 125_520, 37 * 12_845_056, 1),  # means of 28 x 28
    (37, 8_153_680, 37 * 12_845_056, 5),  # medians of them
    (8, 8 * 2**20, 0, 1),  # 64 MiB in all
    (9, 8 * 2**20, 0, 2),
    (100_000, 197 * 10**6, 100_000 * 12_582_912, 126),
    (100_000, 1000, 100_000 * 80, 2),
    (100, 2**30, 100, 101),  # never
    (1, 1, 1, 1), (5, 0, 0, 1),
])  # fmt: skip
def test_pieces_take_an_eighth_of_what_is_read_or_little(partitions, piece, read, expected):
    every = partitions_a_piece(partitions, piece, read)
    assert every == expected
    assert partitions // every * piece <= max(read / 8, 2**26)
