"""Normalized images: those of plain arithmetic with fractions, pixel by pixel."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.ops import looks
from pipeline.ops.looks import look_at, normalize


def oracle(image):
    """One image, [y, x(, channel)], in Python's own numbers."""
    pixels = image.astype(object)
    for axis in (0, 1):
        if image.shape[axis] == 1:
            pixels = np.repeat(pixels, 2, axis)
    four = pixels[:-1, :-1] + pixels[:-1, 1:] + pixels[1:, :-1] + pixels[1:, 1:]
    smooth = (four + 2) // 4
    values = smooth.reshape(-1).tolist()
    mean = Fraction(sum(values), len(values))
    deviation = sum(abs(value - mean) for value in values) / len(values)
    deviation = max(deviation, Fraction(4 * (np.iinfo(image.dtype).max // 255)))
    rounded = [(128 + 48 * (value - mean) / deviation + Fraction(1, 2)) // 1 for value in values]
    clipped = [min(max(value, 0), 255) for value in rounded]
    return np.array(clipped, np.uint8).reshape(smooth.shape)


@st.composite
def image_sets(draw):
    """Images [image, y, x(, channel)], sides of one pixel and flat images among them."""
    shape = draw(st.tuples(st.integers(1, 6), st.integers(1, 6)))
    if draw(st.booleans()):
        shape = (*shape, draw(st.integers(1, 3)))
    dtype = draw(st.sampled_from([np.uint8, np.uint16]))
    largest = np.iinfo(dtype).max
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size = (draw(st.integers(0, 4)), *shape)
    noise = 4 * (largest // 255)
    level = int(rng.integers(0, largest + 1))
    return {
        "random": lambda: rng.integers(0, largest + 1, size),
        "flat": lambda: np.full(size, level),
        "nearly flat": lambda: (level + rng.integers(-noise, noise + 1, size)).clip(0, largest),
        "extremes": lambda: rng.integers(0, 2, size) * largest,
        "one bright": lambda: (rng.random(size) < 0.05) * largest,
    }[draw(st.sampled_from(["random", "flat", "nearly flat", "extremes", "one bright"]))]().astype(
        dtype
    )  # fmt: skip


@pytest.mark.parametrize("wide", [False, True])
@settings(max_examples=150)
@given(images=image_sets())
def test_normalized_images_are_those_of_fractions(wide, images):
    with pytest.MonkeyPatch.context() as patch:
        if wide:
            patch.setattr(looks, "_LARGEST", 0)
        found = normalize(images)
    assert found.dtype == np.uint8
    assert len(found) == len(images)
    for image, normalized in zip(images, found, strict=True):
        assert np.array_equal(normalized, oracle(image))


@given(images=image_sets())
def test_the_mirror_image_of_a_normalized_image_is_that_of_its_mirror_image(images):
    mirrored = look_at(images, normalized=True, mirrored=True)
    assert np.array_equal(mirrored, normalize(images)[:, :, ::-1])


@given(images=image_sets())
def test_other_images_and_blocks_do_not_change_an_image(images):
    whole = normalize(images)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(looks, "_BLOCK_VALUES", 1)
        assert np.array_equal(normalize(images), whole)
    for at in range(len(images)):
        assert np.array_equal(normalize(images[at : at + 1]), whole[at : at + 1])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_flat_images_are_the_mean_and_faint_noise_is_not_made_large(dtype):
    step = np.iinfo(dtype).max // 255
    flat = np.full((1, 5, 5), 77 * step, dtype)
    assert (normalize(flat) == 128).all()
    flat[0, 2, 2] += 2 * step  # half a step of 8 bits once smoothed
    assert np.abs(normalize(flat).astype(int) - 128).max() <= 48 // 4


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_brightness_and_contrast_are_taken_away(dtype):
    step = np.iinfo(dtype).max // 255
    rng = np.random.default_rng(0)
    image = 4 * rng.integers(4, 25, (1, 9, 9)).astype(dtype)  # so that the means are whole numbers
    for factor, more in [(1, 100), (2, 0), (2, 50)]:
        changed = (image * factor + more).astype(dtype) * step
        assert np.abs(normalize(changed).astype(int) - normalize(image * step)).max() <= 2


def test_images_are_looked_at_as_asked():
    images = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    assert look_at(images) is images
    assert np.array_equal(look_at(images, mirrored=True), images[:, :, ::-1])
    assert np.array_equal(look_at(images, normalized=True), normalize(images))


def test_sums_of_large_images_do_not_overflow():
    rng = np.random.default_rng(0)
    image = np.zeros((1, 1201, 1201), np.uint16)
    image[0, :, :9] = rng.integers(0, 2, (1201, 9)) * 65535  # far from the mean: products are large
    found = normalize(image)[0]
    wide = image[0].astype(int)
    smooth = (wide[:-1, :-1] + wide[:-1, 1:] + wide[1:, :-1] + wide[1:, 1:] + 2) // 4
    values, inverse, counts = np.unique(smooth, return_inverse=True, return_counts=True)
    mean = Fraction(int((values * counts).sum()), smooth.size)
    pairs = list(zip(values.tolist(), counts.tolist(), strict=True))
    deviation = sum(abs(value - mean) * count for value, count in pairs) / smooth.size
    deviation = max(deviation, Fraction(4 * 257))
    table = [128 + 48 * (value - mean) / deviation + Fraction(1, 2) for value, _ in pairs]
    table = np.array([min(max(int(value // 1), 0), 255) for value in table], np.uint8)
    assert np.array_equal(found, table[inverse].reshape(smooth.shape))
