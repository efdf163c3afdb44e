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
    assert choose_arithmetic(0, 784, "uint8").bound == 784 * 255**2


@pytest.mark.parametrize(("n", "dtype", "name"), [
    (2**15, "uint8", "int32"), (2**15 + 1, "uint8", "float64"),
    (1, "uint8", "int32"), (1, "uint16", "float64"),
])  # fmt: skip
def test_tiles_are_for_8_bits_and_remainders_of_16_bits(n, dtype, name):
    assert choose_arithmetic(n, 784, dtype).name == name


@pytest.mark.parametrize("n", [0, 1, 255, 256, 6131, 2**15])
def test_a_tile_is_as_long_as_int32_allows_and_no_longer(n):
    tile = choose_arithmetic(n, 784, "uint8").tile
    assert tile >= 256
    assert tile * 255 * max(n, 255) < 2**31 <= (tile + 1) * 255 * max(n, 255)


@pytest.mark.parametrize("device", ["cpu", "torch:cpu"])
@pytest.mark.parametrize("n", [1, 254, 255, 256, 6131, 2**15 - 1, 2**15, 2**15 + 1])
@pytest.mark.parametrize("beside", [-1, 0, 1])
def test_the_worst_case_is_exact_at_the_end_of_a_tile(device, n, beside):
    """All black, all saturated, and the largest remainders, over one tile and a little more."""
    pixels = (2**31 - 1) // (255 * max(n, 255)) + beside
    arithmetic = choose_arithmetic(n, pixels, "uint8")
    images = np.repeat(np.array([[0], [255]], np.uint8), pixels, axis=1)
    values = [0, n * 255, max(0, n * 255 - 1), n - 1]
    numerators = np.repeat(np.array(values, np.int64)[:, None], pixels, axis=1)
    counts, use = np.full(4, n), kernels.load(device)
    l1 = use.l1_numerators(images, numerators, counts, arithmetic)
    dots = use.dot_products(images, numerators, counts, arithmetic)
    assert l1.tolist() == [[abs(n * x - p) * pixels for p in values] for x in (0, 255)]
    assert dots.tolist() == [[x * p * pixels for p in values] for x in (0, 255)]


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
    dots = use.dot_products(images, numerators, np.array([n, n]), arithmetic)
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


@pytest.mark.parametrize(
    ("bound", "name"),
    [
        (2**53 - 1, "float64"),
        (2**53, "float64"),
        (2**53 + 1, "int64"),
        (2**63 - 1, "int64"),
        (2**63, None),
        (2**63 + 1, None),
    ],
)
def test_each_limit_itself_falls_on_the_right_side(monkeypatch, bound, name):
    monkeypatch.setattr("pipeline.exact.largest_pixel", lambda dtype: 1)  # every bound is reached
    monkeypatch.setattr("pipeline.exact.INT32_DENOMINATOR", -1)
    for n, pixels in [(bound, 1), (1, bound)]:
        if name is None:
            with pytest.raises(ExactnessError):
                choose_arithmetic(n, pixels, "uint8")
        else:
            assert choose_arithmetic(n, pixels, "uint8").name == name


def test_a_refusal_tells_the_numbers():
    with pytest.raises(ExactnessError) as caught:
        choose_arithmetic(10**9, 1000, "uint16")
    for part in ("1000000000 images", "1000 uint16 values", "4.295e+21", "2**63 = 9.223e+18"):
        assert part in str(caught.value)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("pixels", [1, 7, 784])
def test_black_against_white_is_one_beside_the_limit_of_int64(dtype, pixels):
    largest = int(np.iinfo(dtype).max)
    last = isqrt((INT64_LIMIT - 1) // (4 * pixels)) // largest  # the last n that stays in int64
    overflowing = isqrt(INT64_LIMIT // pixels) // largest + 1  # the first n beyond it
    for n in (1, last, last + 1, overflowing, (INT64_LIMIT - 1) // (largest**2 * pixels)):
        bright = largest * largest * pixels
        squares, denominators = np.array([0, bright]), np.array([n, n])
        products = np.array([[0, 0], [0, n * bright]])
        numerators = np.array([[0, n * largest * pixels], [n * largest * pixels, 0]])
        l1 = finish_l1(numerators, denominators, pixels, largest)
        l2 = finish_l2(
            squares, products, [0, n * n * bright], denominators, pixels, largest, largest
        )
        assert l1.tolist() == l2.tolist() == [[0.0, 1.0], [1.0, 0.0]]


@pytest.mark.parametrize("samples", [0, 5])
def test_python_integers_and_int64_give_the_same_l2(samples):
    rng = np.random.default_rng(7)
    images, n = rng.integers(0, 256, (samples, 30)), np.array([1, 300, 7])
    numerators = rng.integers(0, 256, (3, 30)) * n[:, None]
    norms = prototype_norms(numerators, n, 255)
    in_int64, in_python = (
        # a larger bound on the same pixels forces integers of any size
        finish_l2((images * images).sum(1), images @ numerators.T, norms, n, 30, 255, largest)
        for largest in (255, 2**40)
    )
    assert in_int64.shape == (samples, 3)
    assert in_python.dtype == np.float64
    assert in_int64.tobytes() == in_python.tobytes()


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_norms_are_exact_below_at_and_above_what_int64_holds(dtype):
    largest, pixels = int(np.iinfo(dtype).max), 7
    last = isqrt((INT64_LIMIT - 1) // pixels) // largest
    for n in (1, last - 1, last, last + 1, 10 * last):
        found = prototype_norms(np.full((1, pixels), n * largest), np.array([n]), largest)
        assert found == [(n * largest) ** 2 * pixels]
        assert type(found[0]) is int
