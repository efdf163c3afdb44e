"""Memory that tasks use one after another: lent to one at a time, and to nobody elsewhere."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from pipeline.core.host_memory import Spare


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
