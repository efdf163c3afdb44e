"""Adding up blocks: the sum, in their dtype, and the blocks left as they are."""

from __future__ import annotations

import dask
import dask.array as da
import numpy as np
import pytest
from dask.core import flatten
from hypothesis import given
from hypothesis import strategies as st
from strategies import raise_if_computed

from pipeline.ops import reduction
from pipeline.ops.reduction import LARGE_BYTES, add_up, fan_in


def lazily(held):
    """Stack arrays that are held elsewhere, one to a block, without copying them."""
    blocks = [
        da.from_delayed(dask.delayed(lambda one: one, pure=False)(array), array.shape, array.dtype)
        for array in held
    ]
    return da.concatenate(blocks)


def some(number, shape, dtype=np.int64, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 2**32, (1, *shape), dtype) for _ in range(number)]


@given(
    number=st.integers(1, 70),
    shape=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    dtype=st.sampled_from([np.int64, np.uint32]),
    wide=st.sampled_from([2, 3, 8]),
    scheduler=st.sampled_from(["sync", "threads"]),
)
def test_any_number_of_blocks_adds_up_to_their_sum(number, shape, dtype, wide, scheduler):
    held = some(number, shape, dtype, seed=number)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reduction, "WIDE", wide)
        found = add_up(lazily(held))
    assert found.dtype == dtype
    assert found.shape == tuple(shape)
    value = found.compute(scheduler=scheduler)
    assert value.dtype == dtype
    assert np.array_equal(value, np.concatenate(held).sum(axis=0, dtype=dtype))


@pytest.mark.parametrize("number", [1, 2, 7, 8, 9, 17, 65])
@pytest.mark.parametrize("large", [False, True])
def test_the_blocks_are_not_changed(monkeypatch, number, large):
    monkeypatch.setattr(reduction, "LARGE_BYTES", 0 if large else LARGE_BYTES)
    held = some(number, (2, 3))
    before = [array.copy() for array in held]
    for array in held:
        array.flags.writeable = number % 2  # both what would change unseen and what would raise
    blocks = lazily(held)
    first, second = (add_up(blocks).compute(scheduler="sync") for _ in range(2))
    assert np.array_equal(first, second)
    assert all(np.array_equal(a, b) for a, b in zip(held, before, strict=True))


@pytest.mark.parametrize(("bytes_", "wide"), [
    (0, 8), (8, 8), (LARGE_BYTES, 8), (LARGE_BYTES + 1, 2), (10 * LARGE_BYTES, 2),
])  # fmt: skip
def test_large_accumulators_are_added_two_at_a_time(bytes_, wide):
    assert fan_in(bytes_) == wide


@pytest.mark.parametrize(("large", "most"), [(7 * 8, 8), (7 * 8 - 1, 2)])
def test_no_addition_takes_more_blocks_than_it_should(monkeypatch, large, most):
    add, taken = reduction._add, []

    def count(blocks, **settings):
        taken.append(len(list(flatten([blocks]))))
        return add(blocks, **settings)

    monkeypatch.setattr(reduction, "LARGE_BYTES", large)
    monkeypatch.setattr(reduction, "_add", count)
    held = some(40, (7,))
    found = add_up(lazily(held)).compute(scheduler="sync")
    assert np.array_equal(found, np.concatenate(held).sum(axis=0))
    assert max(taken) == most


def test_nothing_is_added_before_it_is_asked_for():
    with dask.config.set(scheduler=raise_if_computed):
        found = add_up(lazily(some(20, (2,))))
        with pytest.raises(AssertionError, match="something was computed"):
            found.compute()
