"""Bounds at their edges, the worst cases they allow, and a finish that rounds once."""

from __future__ import annotations

from fractions import Fraction
from math import isqrt

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import DEVICES, is_root

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
    finish_l1,
    finish_l2,
    finish_spread,
    prototype_norms,
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
@pytest.mark.parametrize("n", [1, *BESIDE_DIGITS])
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


# -- the finish


def limbs(images, numerators, n):
    """The two limbs of the products, `sum x*m` and `sum x*r`, in Python's integers."""
    m, r = split_prototypes(numerators, n)
    images = images.astype(object)
    return (images @ m.T.astype(object)).astype(np.int64), (images @ r.T.astype(object)).astype(
        np.int64
    )


def l2(images, numerators, n, largest, full_scale=None):
    """What `finish_l2` makes of images [sample, pixel] and prototypes [class, pixel]."""
    n, squares = np.asarray(n, np.int64), (images.astype(np.int64) ** 2).sum(axis=1)
    norms = [sum(int(value) ** 2 for value in image) for image in numerators]
    assert prototype_norms(numerators, n) == norms
    return finish_l2(
        squares, limbs(images, numerators, n), norms, n, images.shape[1],
        full_scale or largest, largest,
    )  # fmt: skip


def test_l1_is_the_quotient_correctly_rounded():
    rng = np.random.default_rng(0)
    numerators = rng.integers(0, 2**53, (50, 3))
    denominators = np.array([1, 6131, 0])
    found = finish_l1(numerators, denominators, 784, 255)
    for row, values in zip(numerators.tolist(), found, strict=True):
        for value, numerator, n in zip(values[:2], row, (1, 6131), strict=False):
            assert value == float(Fraction(numerator, n * 784 * 255))
    assert np.isnan(found[:, 2]).all()


@given(
    n=st.one_of(st.integers(1, 300), st.integers(1, 10**9)),
    largest=st.sampled_from([255, 65535]),
    pixels=st.integers(1, 40),
    near=st.integers(0, 40),
    seed=st.integers(0, 2**32 - 1),
)
def test_l2_is_the_root_of_the_exact_sum_also_where_int64_does_not_hold_it(
    n, largest, pixels, near, seed
):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, largest + 1, (3, pixels))
    numerators = np.stack([rng.integers(0, k * largest + 1, pixels) for k in (n, 1, n)])
    numerators[0, :near] = n * images[0, :near]  # so that terms cancel, some or all of them
    numerators[2] = np.clip(n * images[1] + rng.integers(-2, 3, pixels), 0, n * largest)
    denominators = np.array([n, 1, n])
    found = l2(images, numerators, denominators, largest, 200)
    for sample, position in np.ndindex(3, 3):
        k, p = int(denominators[position]), numerators[position].tolist()
        total = sum((k * x - y) ** 2 for x, y in zip(images[sample].tolist(), p, strict=True))
        assert is_root(found[sample, position], Fraction(total, k * k * pixels * 200**2))
        assert (found[sample, position] == 0) == (total == 0)


@pytest.mark.parametrize("power", [53, 63, 64, 65, 66, 80, 94])
@pytest.mark.parametrize("beside", [-1, 0, 1])
def test_l2_is_exact_where_the_sum_crosses_a_power_of_two(power, beside):
    n, difference = 10**12, isqrt(2**power) + beside
    image = np.array([[65535]])
    found = l2(image, image * n - difference, [n], 65535)
    assert is_root(found[0, 0], Fraction(difference**2, n * n * 65535**2))


@pytest.mark.parametrize(("dtype", "largest"), TYPES)
@pytest.mark.parametrize("pixels", [1, 7, 784, 2**16 + 1])
def test_l2_sees_one_step_in_the_largest_sums(dtype, largest, pixels):
    n = last_allowed(largest, pixels)
    choose_arithmetic(n, pixels, dtype)
    rng = np.random.default_rng(pixels)
    images = np.full((2, pixels), largest)
    images[1] = rng.integers(1, largest + 1, pixels)
    numerators = n * images
    numerators[:, -1] -= 1
    numerators = np.concatenate([numerators, n * images])
    found = l2(images, numerators, [n] * 4, largest)
    assert np.diag(found[:, 2:]).tolist() == [0.0, 0.0]
    for value in np.diag(found[:, :2]):
        assert is_root(value, Fraction(1, n * n * pixels * largest**2))


@pytest.mark.parametrize("n", [7, 10**9, 2**36])
def test_an_image_equal_to_its_prototype_is_at_distance_zero(n):
    image = np.array([[3, 65535, 0, 9]])
    found = l2(image, n * image, [n], 65535)
    assert found.tolist() == [[0.0]]
    assert not np.signbit(found).any()


@pytest.mark.parametrize("n", [1, 10**9])
def test_a_class_without_images_is_at_no_distance(n):
    found = l2(np.array([[3]]), np.array([[0], [5 * n]]), [0, n], 65535)
    assert np.isnan(found[0, 0])
    assert is_root(found[0, 1], Fraction(4, 65535**2))
    only = l2(np.array([[3]]), np.array([[0]]), [0], 65535)
    assert np.isnan(only).all()


@pytest.mark.parametrize(("dtype", "largest"), TYPES)
@pytest.mark.parametrize("pixels", [1, 7, 784, 2**16 + 1])
def test_black_against_white_is_one_beside_every_limit(dtype, largest, pixels):
    edge = isqrt((INT64_LIMIT - 1) // pixels) // largest  # the last n whose squares fit int64
    last = last_allowed(largest, pixels)
    for n in (1, 3, edge - 1, edge, edge + 1, 2 * edge, 7 * edge, last - 1, last):
        full, choose = n * largest * pixels, choose_arithmetic(n, pixels, dtype)
        bright = largest * largest * pixels
        assert full <= choose.bound
        denominators, norm = np.array([n, n]), n * n * bright
        l1 = finish_l1(np.array([[0, full], [full, 0]]), denominators, pixels, largest)
        products = np.array([[0, 0], [0, bright]]), np.zeros((2, 2), np.int64)
        found = finish_l2(
            np.array([0, bright]), products, [0, norm], denominators, pixels, largest, largest
        )
        assert l1.tolist() == [[0.0, 1.0], [1.0, 0.0]]
        assert [found[0, 0], found[1, 1]] == [0.0, 0.0]
        for one in (found[0, 1], found[1, 0]):
            assert one == 1.0 if n <= edge else one <= 1.0 and is_root(one, Fraction(1))


@pytest.mark.parametrize("samples", [0, 5])
def test_one_word_and_two_give_the_same_l2(samples):
    rng = np.random.default_rng(7)
    images, n = rng.integers(0, 256, (samples, 30)), np.array([1, 300, 7])
    numerators = rng.integers(0, 256 * n[:, None], (3, 30))
    # a larger bound on the same pixels takes the way through an estimate
    one, two = (l2(images, numerators, n, largest, 255) for largest in (255, 2**40))
    assert one.shape == (samples, 3)
    assert two.dtype == np.float64
    assert one.tobytes() == two.tobytes()


@pytest.mark.parametrize("largest", [255, 65535])
@pytest.mark.parametrize("pixels", [1, 7, 784])
def test_norms_are_exact_below_at_and_above_what_int64_holds(largest, pixels):
    edge = isqrt((INT64_LIMIT - 1) // pixels) // largest
    beyond = isqrt((INT64_LIMIT - 1) // pixels)  # here squares of remainders do not fit either
    for n in (0, 1, edge - 1, edge, edge + 1, 10 * edge, beyond, beyond + 1, 2 * beyond):
        values = [0] if n == 0 else [n * largest, n * largest - 1, n - 1, n * (largest // 2) + 1]
        numerators = np.repeat(np.array(values)[:, None], pixels, axis=1)
        found = prototype_norms(numerators, np.full(len(values), n))
        assert found == [value**2 * pixels for value in values]
        assert {type(norm) for norm in found} == {int}


# -- standard deviations


@given(
    n=st.one_of(st.integers(1, 300), st.integers(1, 10**6), st.integers(1, 2**31)),
    largest=st.sampled_from([255, 65535]),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_spread_is_the_root_of_the_exact_variance(n, largest, seed):
    """Of k images of one value and n - k of another: the variance is k*(n-k)/n**2 * (a-b)**2."""
    assume(n * largest**2 < INT64_LIMIT)
    rng = np.random.default_rng(seed)
    k = rng.integers(0, n + 1, (2, 3, 4))
    a, b = rng.integers(0, largest + 1, (2, 2, 3, 4))
    k[0, 0], a[0, 1], b[0, 1] = n, largest, largest - 1
    a[0, 2], b[0, 2] = 0, largest
    sums, squares = k * a + (n - k) * b, k * a * a + (n - k) * b * b
    found = finish_spread(sums, squares, np.array([n, n]), largest)
    assert (found.dtype, found.shape) == (np.float64, sums.shape)
    for place in np.ndindex(sums.shape):
        some, first, second = int(k[place]), int(a[place]), int(b[place])
        variance = Fraction(some * (n - some) * (first - second) ** 2, n * n)
        assert is_root(found[place], variance)
        assert (found[place] == 0) == (variance == 0)


@pytest.mark.parametrize("largest", [255, 65535])
def test_the_spread_is_exact_at_the_most_images_that_sums_allow(largest):
    n = (INT64_LIMIT - 1) // largest**2
    for k in (1, n // 2, n - 1, n):  # so many white, the others black
        found = finish_spread(
            np.array([[k * largest]]), np.array([[k * largest**2]]), np.array([n]), largest
        )
        assert is_root(found[0, 0], Fraction(k * (n - k) * largest**2, n * n))


@pytest.mark.parametrize(("dtype", "n"), [("uint8", 50), ("uint16", 50), ("uint16", 60_000)])
def test_the_spread_is_that_of_numpy(dtype, n):
    images = np.random.default_rng(n).integers(0, np.iinfo(dtype).max + 1, (n, 5))
    found = finish_spread(
        images.sum(axis=0)[None], (images**2).sum(axis=0)[None], np.array([n]), np.iinfo(dtype).max
    )
    np.testing.assert_allclose(found[0], images.std(axis=0), rtol=1e-13)


@pytest.mark.filterwarnings("error")
def test_a_class_without_images_has_no_spread():
    found = finish_spread(np.zeros((2, 3), int), np.zeros((2, 3), int), np.array([0, 4]), 255)
    assert np.isnan(found[0]).all()
    assert found[1].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("beside", [-1, 0, 1])
def test_medians_count_in_32_bits(beside):
    if beside < 0:
        check_count_bound(2**32 + beside)
    else:
        with pytest.raises(ExactnessError, match=r"expected less than 2\*\*32"):
            check_count_bound(2**32 + beside)
