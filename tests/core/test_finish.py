"""The finish divides and takes roots of exact integers, and rounds once."""

from __future__ import annotations

from fractions import Fraction
from math import isqrt

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import is_root

from pipeline.core.exact import (
    INT64_LIMIT,
    SQUARE_LIMIT,
    choose_arithmetic,
    finish_l1,
    finish_l2,
    finish_spread,
    prototype_norms,
    split_prototypes,
    sum_squares,
)

TYPES = [("uint8", 255), ("uint16", 65535)]


def last_allowed(largest, pixels):
    """The largest n that the two limits allow."""
    of_squares = isqrt((SQUARE_LIMIT - 1) // pixels) // largest
    return min((INT64_LIMIT - 1) // (largest * pixels), of_squares)


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
    pixels = images.shape[1]
    totals = sum_squares(squares, limbs(images, numerators, n), norms, n, pixels, largest)
    return finish_l2(totals, n, pixels, full_scale or largest)


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
        totals = sum_squares(
            np.array([0, bright]), products, [0, norm], denominators, pixels, largest
        )
        found = finish_l2(totals, denominators, pixels, largest)
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
