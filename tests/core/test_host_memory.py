"""Memory that is used again: lent to one at a time, and to nobody while anybody refers to it."""

from __future__ import annotations

import gc
import mmap
import pickle

import numpy as np
import pytest

from pipeline.core import host_memory
from pipeline.core.host_memory import Spare, reused
from pipeline.core.threads import in_ranges

LARGE = (2, 2**14, 2**10)  # 256 MB of doubles


def test_memory_is_lent_again_once_it_is_given_back():
    spare = Spare()
    with spare.array((4, 5), "uint16") as first:
        first[:] = 7
        with spare.array((4, 5), "uint16") as second:
            assert not np.shares_memory(first, second)
    with spare.array((2, 3, 2), "uint8") as smaller:
        assert smaller.shape == (2, 3, 2)
        assert np.shares_memory(smaller, first) or np.shares_memory(smaller, second)
    with spare.array((100, 5), "int32") as larger:
        larger[:] = 1
        assert not np.shares_memory(larger, first)


def test_what_a_task_that_failed_had_is_not_lent_again():
    spare = Spare()
    with pytest.raises(ValueError, match="failed"), spare.array((9,), "uint8") as first:
        raise ValueError("failed")
    with spare.array((9,), "uint8") as second:
        assert not np.shares_memory(first, second)


def test_memory_does_not_travel():
    spare = Spare()
    with spare.array((1000, 1000), "uint8"):
        pass
    assert len(pickle.dumps(spare)) < 200
    with pickle.loads(pickle.dumps(spare)).array((3,), "uint8") as other:
        assert other.shape == (3,)


@pytest.fixture
def kept(monkeypatch):
    blocks = []
    monkeypatch.setattr(host_memory, "_kept", blocks)
    return blocks


def address(array):
    return array.__array_interface__["data"][0]


@pytest.mark.skipif(not hasattr(mmap, "MADV_FREE"), reason="this system has no memory to keep")
def test_memory_of_a_result_is_used_again_once_no_view_is_left(kept):
    first = reused(LARGE, np.float64)
    first[-1, -1, -1] = 7
    part, where = first[1, 5:9].T.view(np.int64), address(first)
    del first
    gc.collect()
    other = reused(LARGE, np.float64)  # a view of the first is left
    assert not kept
    assert not np.shares_memory(other, part)
    del part
    gc.collect()
    [block] = kept
    again = reused((2, 2**13 + 1, 2**10), np.float64)
    assert address(again) == where
    assert not kept
    assert again.flags.writeable
    assert len(block) == 8 * 2**25
    del again, other
    assert len(kept) == 2


def test_small_results_and_those_of_another_size_take_memory_of_their_own(kept):
    small = reused((2**10, 2**10), np.float64)
    assert small.flags.owndata
    assert small.shape == (2**10, 2**10)
    del small
    assert not kept
    large = reused(LARGE, np.float64)
    del large
    before = list(kept)
    half = reused((2**22 + 2**20,), np.float64)  # less than half
    assert kept == before
    assert half.shape == (2**22 + 2**20,)


def test_results_of_threads_share_no_memory_and_a_few_are_kept(kept):
    made = [None] * 12

    def make(first, last):
        for number in range(first, last):
            made[number] = reused((2**22,), np.float64)
            made[number][:] = number

    in_ranges(4, len(made), make)
    assert all((array == number).all() for number, array in enumerate(made))
    made.clear()
    gc.collect()
    assert len(kept) <= 8
