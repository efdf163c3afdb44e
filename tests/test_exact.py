"""Bounds at their edges, and a finish that rounds once."""

from __future__ import annotations

from fractions import Fraction
from math import isqrt

import numpy as np
import pytest

from pipeline import kernels
from pipeline.errors import ExactnessError
from pipeline.exact import (
    FLOAT64_LIMIT,
    INT64_LIMIT,
    check_sum_bound,
    choose_arithmetic,
    finish_l1,
    finish_l2,
    prototype_norms,
)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize(("limit", "below", "beyond"), [
    (FLOAT64_LIMIT, "float64", "int64"), (INT64_LIMIT - 1, "int64", None),
])  # fmt: skip
def test_arithmetic_changes_exactly_at_the_limit(dtype, limit, below, beyond):
    largest = int(np.iinfo(dtype).max)
    last = limit // largest**2  # images per class that still fit, with one pixel each
    for denominator in (last - 1, last):
        found = choose_arithmetic(denominator, 1, dtype)
        assert found.name == below
        assert found.bound == denominator * largest**2 <= limit
    if beyond is None:
        with pytest.raises(ExactnessError, match=r"2\*\*63.*8-bit pixels"):
            choose_arithmetic(last + 1, 1, dtype)
    else:
        assert choose_arithmetic(last + 1, 1, dtype).name == beyond


def test_bounds_grow_with_pixels_as_with_images():
    assert choose_arithmetic(6000, 784, "uint8").bound == 6000 * 784 * 255**2
    assert choose_arithmetic(784, 6000, "uint8").bound == 6000 * 784 * 255**2
    assert choose_arithmetic(0, 784, "uint8").name == "float64"


@pytest.mark.parametrize("device", ["cpu", "torch:cpu"])
@pytest.mark.parametrize(("dtype", "limit"), [
    ("uint8", FLOAT64_LIMIT), ("uint16", FLOAT64_LIMIT),
    ("uint8", INT64_LIMIT - 1), ("uint16", INT64_LIMIT - 1),
])  # fmt: skip
@pytest.mark.parametrize("beside", [-1, 0, 1])
def test_the_worst_case_is_exact_beside_each_limit(device, dtype, limit, beside):
    """All black against all saturated, with as many images a class as the bound allows."""
    pixels, largest = 37, int(np.iinfo(dtype).max)
    n = limit // (largest**2 * pixels) + beside
    if n * largest**2 * pixels >= INT64_LIMIT:
        with pytest.raises(ExactnessError):
            choose_arithmetic(n, pixels, dtype)
        return
    arithmetic = choose_arithmetic(n, pixels, dtype)
    images = np.array([[0] * pixels, [largest] * pixels], dtype)
    numerators = np.array([[0] * pixels, [n * largest] * pixels], np.int64)
    use = kernels.load(device)
    l1 = use.l1_numerators(images, numerators, np.array([n, n]), arithmetic)
    dots = use.dot_products(images, numerators, arithmetic)
    full = n * largest * pixels
    assert l1.tolist() == [[0, full], [full, 0]]
    assert dots.tolist() == [[0, 0], [0, full * largest]]


def test_sums_that_could_overflow_are_refused():
    check_sum_bound(INT64_LIMIT // 255, "uint8")
    with pytest.raises(ExactnessError, match="beyond int64"):
        check_sum_bound(INT64_LIMIT // 255 + 1, "uint8")


def test_l1_is_the_quotient_correctly_rounded():
    rng = np.random.default_rng(0)
    numerators = rng.integers(0, 2**53, (50, 3))
    denominators = np.array([1, 6131, 0])
    found = finish_l1(numerators, denominators, 784, 255)
    for row, values in zip(numerators.tolist(), found, strict=True):
        for value, numerator, n in zip(values[:2], row, (1, 6131), strict=False):
            assert value == float(Fraction(numerator, n * 784 * 255))
    assert np.isnan(found[:, 2]).all()


def exact_root(square: Fraction) -> Fraction:
    """The root of a fraction, to 200 bits."""
    return Fraction(isqrt((square.numerator << 400) // square.denominator), 1 << 200)


@pytest.mark.parametrize(("n", "dtype", "pixels"), [
    (1, "uint8", 1), (6131, "uint8", 784), (250_000, "uint8", 3072),
    (3_000_000, "uint8", 64), (40_000, "uint16", 300),
])  # fmt: skip
def test_l2_is_the_root_of_the_exact_sum_also_where_int64_does_not_hold_it(n, dtype, pixels):
    rng = np.random.default_rng(n)
    largest = int(np.iinfo(dtype).max)
    images = rng.integers(0, largest + 1, (4, pixels)).astype(np.int64)
    prototype = rng.integers(0, n * largest + 1, pixels)
    prototype[: pixels // 2] = n * images[0, : pixels // 2]  # near, so that terms cancel
    norms = prototype_norms(prototype[None], np.array([n]), largest)
    assert norms == [sum(int(value) ** 2 for value in prototype)]
    products = np.array([[sum(int(a) * int(b) for a, b in zip(x, prototype, strict=True))]
                         for x in images], np.int64)  # fmt: skip
    squares = (images * images).sum(axis=1)
    found = finish_l2(squares, products, norms, np.array([n]), pixels, largest, largest)
    for value, image in zip(found[:, 0], images, strict=True):
        total = sum((n * int(a) - int(b)) ** 2 for a, b in zip(image, prototype, strict=True))
        exact = exact_root(Fraction(total, n * n * pixels * largest * largest))
        assert abs(Fraction(float(value)) - exact) <= exact * Fraction(3, 2**53)


def test_an_image_equal_to_its_prototype_is_at_distance_zero():
    n, image = 7, np.array([[3, 250, 0, 9]])
    found = finish_l2(
        (image * image).sum(1), (image * image * n).sum(1)[:, None],
        prototype_norms(n * image, np.array([n]), 255), np.array([n]), 4, 255, 255,
    )  # fmt: skip
    assert found.tolist() == [[0.0]]


def test_a_class_without_images_is_at_no_distance():
    found = finish_l2(np.array([9]), np.array([[0, 5]]), [0, 25], np.array([0, 1]), 1, 255, 255)
    assert np.isnan(found[0, 0])
    assert not np.isnan(found[0, 1])
