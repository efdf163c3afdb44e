"""Bounds at their edges, the worst cases they allow, and a finish that rounds once."""

from __future__ import annotations

from math import isqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import DEVICES

from pipeline.core.errors import ExactnessError
from pipeline.core.exact import (
    FLOAT64_LIMIT,
    INT64_LIMIT,
    MAX_DIGITS,
    SQUARE_LIMIT,
    Arithmetic,
    check_count_bound,
    check_sum_bound,
    choose_arithmetic,
    digits_of,
    split_digits,
    split_prototypes,
)
from pipeline.kernels import backends

# the largest n whose remainders so many digits hold
LAST = {1: 128, 2: 32_640, 3: 8_355_712, 4: 2_139_062_144}
BESIDE_DIGITS = [last + one for last in LAST.values() for one in (-1, 0, 1)]
# whole vectors, what the CPU compares at once, and what a lane of 32 bits holds; one beside each
LENGTHS = [1, 63, 64, 65, 2**14 - 1, 2**14, 2**14 + 1, 2**16 - 1, 2**16, 2**16 + 1, 2**17 + 1]
TYPES = [("uint8", 255), ("uint16", 65535)]


def last_allowed(largest, pixels):
    """The largest n that the two limits allow."""
    of_squares = isqrt((SQUARE_LIMIT - 1) // pixels) // largest
    return min((INT64_LIMIT - 1) // (largest * pixels), of_squares)


# -- which arithmetic


@pytest.mark.parametrize("digits", LAST)
def test_one_image_more_takes_one_digit_more(digits):
    assert [digits_of(LAST[digits] + one) for one in (-1, 0, 1)] == [digits, digits, digits + 1]
    assert choose_arithmetic(LAST[digits], 784, "uint8").digits == digits
    following = choose_arithmetic(LAST[digits] + 1, 784, "uint8")
    if digits < MAX_DIGITS:
        assert (following.name, following.digits) == ("digits", digits + 1)
    else:
        assert (following.name, following.digits) == ("float64", 0)
        assert choose_arithmetic(LAST[4] + 1, 20_000, "uint8").name == "int64"


@pytest.mark.parametrize("n", [0, 1, 128, 129, 10**6])
def test_digits_are_for_8_bits(n):
    assert choose_arithmetic(n, 784, "uint8").name == "digits"
    assert choose_arithmetic(n, 784, "uint16").name == "float64"
    assert choose_arithmetic(n, 784, "uint16").digits == 0


def test_the_bound_is_the_larger_of_images_and_values():
    assert choose_arithmetic(6000, 784, "uint8").bound == 6000 * 255 * 784
    assert choose_arithmetic(100, 784, "uint8").bound == 255 * 255 * 784
    assert choose_arithmetic(0, 784, "uint16").bound == 65535**2 * 784
    assert choose_arithmetic(70_000, 784, "uint16").bound == 70_000 * 65535 * 784


@pytest.mark.parametrize(("n", "pixels", "name"), [
    (1, 2**53 - 1, "digits"), (1, 2**63 - 1, "digits"), (1, 2**63, None),
    (69431 * 20394401, 6361, "float64"),  # 2**53 - 1
    (2**32, 2**21, "float64"),
    (28059810762433, 321, "int64"),  # 2**53 + 1
    (92737 * 649657, 7 * 7 * 73 * 127 * 337, "int64"),  # 2**63 - 1
    (2**32, 2**31, None),
    (2**50, 2**10 - 1, "int64"), (2**50 - 1, 2**10, "int64"),
    (2**50, 2**10, None),  # squares of 2**110
])  # fmt: skip
def test_each_limit_itself_falls_on_the_right_side(monkeypatch, n, pixels, name):
    monkeypatch.setattr(
        "pipeline.core.exact.largest_pixel", lambda dtype: 1
    )  # every bound is reached
    if name is None:
        with pytest.raises(ExactnessError):
            choose_arithmetic(n, pixels, "uint8")
    else:
        found = choose_arithmetic(n, pixels, "uint8")
        assert (found.name, found.bound) == (name, n * pixels)
        assert found.total_dtype == ("float64" if n * pixels <= 2**53 else "int64")


@pytest.mark.parametrize(("dtype", "largest"), TYPES)
@pytest.mark.parametrize("pixels", [1, 784, 2**16, 2**16 + 1, 10**6])
def test_one_image_more_than_the_limits_allow_is_refused(dtype, largest, pixels):
    last = last_allowed(largest, pixels)
    assert choose_arithmetic(last, pixels, dtype).bound < INT64_LIMIT
    with pytest.raises(ExactnessError):
        choose_arithmetic(last + 1, pixels, dtype)


def test_a_refusal_tells_the_numbers_and_the_cure():
    with pytest.raises(ExactnessError) as caught:
        choose_arithmetic(10**12, 1000_000, "uint16")
    for part in (
        "1000000000000 images", "1000000 uint16 values", "6.553e+22", "4.295e+39",
        "2**63 = 9.223e+18", "2**110 = 1.298e+33", "use smaller images, 8-bit pixels or fewer",
    ):  # fmt: skip
        assert part in str(caught.value)


def test_an_arithmetic_tells_its_reason():
    assert choose_arithmetic(100, 784, "uint8").reason.startswith("1 digit of 8 bits")
    assert choose_arithmetic(6000, 784, "uint8").reason.startswith("2 digits of 8 bits")
    assert choose_arithmetic(6000, 784, "uint16").reason.endswith("3.367e+12, below 2**53")
    assert choose_arithmetic(10**9, 784, "uint16").reason.endswith("5.138e+16, below 2**63")


@pytest.mark.parametrize(("dtype", "largest"), TYPES)
def test_sums_that_could_overflow_are_refused(dtype, largest):
    last = (INT64_LIMIT - 1) // largest**2
    check_sum_bound(last, dtype)
    with pytest.raises(ExactnessError, match="beyond int64"):
        check_sum_bound(last + 1, dtype)


# -- parts of a prototype


@given(
    n=st.one_of(st.sampled_from(BESIDE_DIGITS[:-1]), st.integers(1, LAST[4])),
    seed=st.integers(0, 2**32 - 1),
)
def test_digits_put_together_are_the_remainder_again(n, seed):
    digits = digits_of(n)
    some = np.random.default_rng(seed).integers(0, n, (3, 5))
    some[0, :2] = 0, n - 1
    found = split_digits(some, digits)
    assert (found.dtype, found.shape) == (np.int8, (digits, 3, 5))
    again = sum(found[place].astype(np.int64) * 256**place for place in range(digits))
    assert np.array_equal(again, some)


@pytest.mark.parametrize("digits", LAST)
def test_no_fewer_digits_would_do(digits):
    held = split_digits(np.array([LAST[digits]]), digits)[:, 0].tolist()
    assert sum(digit * 256**place for place, digit in enumerate(held)) != LAST[digits]


@given(seed=st.integers(0, 2**32 - 1), largest=st.sampled_from([255, 65535]))
def test_a_prototype_is_its_two_limbs(seed, largest):
    rng = np.random.default_rng(seed)
    n = rng.integers(0, 10 ** rng.integers(1, 13), 4) * [0, 1, 1, 1]
    numerators = np.stack([rng.integers(0, largest * k + 1, 6) for k in n])
    m, r = split_prototypes(numerators, n)
    over = np.maximum(n, 1)[:, None]
    assert np.array_equal(over * m + r, numerators)
    assert ((m >= 0) & (m <= largest) & (r >= 0) & (r < over)).all()


# -- the worst cases, counted


def check_worst_case(device, n, pixels, dtype, arithmetic=None):
    """Black, grey and white against the largest and least prototypes and remainders."""
    largest = int(np.iinfo(dtype).max)
    arithmetic = arithmetic or choose_arithmetic(n, pixels, dtype)
    values = [0, largest // 2, largest]
    fractions = [0, n * largest, n * largest - 1, n - 1, n * (largest // 2) + n // 2]
    images = np.repeat(np.array(values, dtype)[:, None], pixels, axis=1)
    numerators = np.repeat(np.array(fractions, np.int64)[:, None], pixels, axis=1)
    use = backends.load(device)
    prepared = use.prepare(numerators, np.full(len(fractions), n), arithmetic)
    wholes, rests = use.dot_products(images, prepared)
    l1 = use.l1_numerators(images, prepared)
    assert l1.dtype == wholes.dtype == rests.dtype == np.int64
    assert l1.tolist() == [[abs(n * x - p) * pixels for p in fractions] for x in values]
    assert wholes.tolist() == [[x * (p // n) * pixels for p in fractions] for x in values]
    assert rests.tolist() == [[x * (p % n) * pixels for p in fractions] for x in values]
    assert use.squared_norms(images).tolist() == [x * x * pixels for x in values]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("n", [
    1, *(pytest.param(n, marks=[pytest.mark.slow] * (n > LAST[2] + 1)) for n in BESIDE_DIGITS),
])  # fmt: skip
def test_the_worst_case_is_exact_beside_each_number_of_digits_and_each_length(device, n):
    for pixels in LENGTHS:
        check_worst_case(device, n, pixels, "uint8")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("dtype", "pixels", "limit"), [
    ("uint8", 2**14 - 1, FLOAT64_LIMIT), ("uint8", 37, FLOAT64_LIMIT),
    ("uint16", 37, FLOAT64_LIMIT), ("uint16", 70_001, FLOAT64_LIMIT),
    ("uint8", 70_001, INT64_LIMIT), ("uint16", 70_001, INT64_LIMIT),
    ("uint8", 37, SQUARE_LIMIT), ("uint16", 37, SQUARE_LIMIT), ("uint16", 1, SQUARE_LIMIT),
])  # fmt: skip
@pytest.mark.parametrize("beside", [-1, 0, 1])
def test_the_worst_case_is_exact_beside_each_limit(device, dtype, pixels, limit, beside):
    largest = int(np.iinfo(dtype).max)
    if limit == FLOAT64_LIMIT:
        last = FLOAT64_LIMIT // (largest * pixels)
    else:
        last = last_allowed(largest, pixels)
        room = INT64_LIMIT - (last + 1) * largest * pixels
        assert (room <= 0) == (limit == INT64_LIMIT)  # it is this limit that counts
        if beside == 1:
            with pytest.raises(ExactnessError):
                choose_arithmetic(last + 1, pixels, dtype)
            return
    found = choose_arithmetic(last + beside, pixels, dtype)
    assert found.name == ("float64" if limit == FLOAT64_LIMIT and beside < 1 else "int64")
    check_worst_case(device, last + beside, pixels, dtype)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("n", [2**15, 2**15 + 1, 2**16, 2**31 // 65536 - 1, 10**5])
def test_16_bits_are_exact_where_a_difference_outgrows_32_bits(device, n):
    check_worst_case(device, n, 33, "uint16")
    check_worst_case(device, n, 33, "uint16", Arithmetic("int64", 2**60))


@pytest.mark.parametrize("beside", [-1, 0, 1])
def test_medians_count_in_32_bits(beside):
    if beside < 0:
        check_count_bound(2**32 + beside)
    else:
        with pytest.raises(ExactnessError, match=r"expected less than 2\*\*32"):
            check_count_bound(2**32 + beside)
