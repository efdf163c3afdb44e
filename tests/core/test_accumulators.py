"""What the accumulators of a GPU hold, at their edges."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core import accumulators as bounds


def test_a_full_accumulator_fits_32_bits_and_a_longer_one_need_not():
    # what each may hold at most, before it is flushed
    assert bounds.SEGMENT * 255**2 < 2**31
    assert bounds.SEGMENT * 65535 < 2**31
    assert bounds.CHUNK * 255**2 < 2**31
    assert bounds.CHUNK // 4 * 4 * 255**2 == bounds.CHUNK * 255**2
    assert bounds.DEPTH * 128**2 < 2**31
    for limit, term in ((bounds.SEGMENT, 255**2), (bounds.CHUNK, 255**2)):
        assert 2 * limit * term >= 2**31


@pytest.mark.parametrize(
    ("denominator", "planes"),
    [(0, 1), (1, 1), (2, 1), (256, 1), (257, 2), (2**16, 2), (2**16 + 1, 3), (2**32, 4)],
)  # fmt: skip
def test_bytes_hold_every_remainder_and_one_fewer_do_not(denominator, planes):
    assert bounds.byte_planes(denominator) == planes
    assert denominator <= 256**planes
    assert planes == 1 or denominator > 256 ** (planes - 1)


@given(
    metric=st.sampled_from(["l1", "l2"]), pixels=st.integers(1, 2**40),
    dtype=st.sampled_from(["uint8", "uint16"]), count=st.integers(1, 2**30),
)  # fmt: skip
def test_a_key_holds_the_largest_distance_and_position(metric, pixels, dtype, count):
    largest = bounds.largest_distance(metric, pixels, dtype)
    assert largest == pixels * (255 if dtype == "uint8" else 65535) ** (1 if metric == "l1" else 2)
    bits = bounds.key_bits(largest, count)
    if bits is None:
        # with the fewest bits that hold a position there would be no room
        assert (largest + 2) * count * 2 >= bounds.KEY_LIMIT
        return
    assert count <= 2**bits
    key = ((largest + 1) << bits) | (count - 1)
    assert key < 2**63
    assert (key >> bits, key & (2**bits - 1)) == (largest + 1, count - 1)


def test_sums_of_31_bits_are_narrow():
    assert bounds.fits_int32(2**31 - 1)
    assert not bounds.fits_int32(2**31)
