"""Conversions: sizes, modes and depths, held against Pillow and whole-number arithmetic."""

from __future__ import annotations

import json
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.core.errors import ConfigError, ShapeError
from pipeline.images.conversion import Conversion

SIDES = st.integers(1, 40)
SIZES = st.tuples(SIDES, SIDES)


def pixels(*shape, dtype="uint8", seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def room(draw, crop):
    """Return nothing to pad, or a size at least that of the crop."""
    least = crop or (1, 1)
    return draw(st.none() | st.tuples(*(st.integers(side, 60) for side in least)))


@settings(max_examples=120, deadline=None)
@given(
    data=st.data(),
    size=SIZES,
    channels=st.sampled_from([(), (1,), (2,), (3,), (4,), (7,)]),
    dtype=st.sampled_from(["uint8", "uint16"]),
    resize=st.none() | SIDES | SIZES,
    crop=st.none() | SIZES,
    depth=st.sampled_from([None, 8, 16]),
)
def test_what_comes_out_has_the_shape_and_type_that_were_said(
    data, size, channels, dtype, resize, crop, depth
):
    conversion = Conversion(resize=resize, crop=crop, pad=room(data.draw, crop), depth=depth)
    image = pixels(*size, *channels, dtype=dtype)
    try:
        expected = conversion.output(image.shape)
    except ShapeError:
        with pytest.raises(ShapeError):
            conversion.apply(image)
    else:
        found = conversion.apply(image)
        assert found.shape == expected
        assert found.dtype == conversion.output_type(dtype)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), size=SIZES, resize=st.none() | SIDES | SIZES, crop=st.none() | SIZES)
def test_what_is_cropped_or_padded_has_that_size_or_is_refused(data, size, resize, crop):
    pad = room(data.draw, crop)
    before = Conversion(resize=resize).output(size)
    try:
        found = Conversion(resize=resize, crop=crop, pad=pad).output(size)
    except ShapeError:
        short = crop and any(h < c for h, c in zip(before, crop, strict=True))
        left = [min(pair) for pair in zip(before, crop or before, strict=True)]
        assert short or any(h > p for h, p in zip(left, pad, strict=True))
    else:
        assert found == (pad or crop or before)


def test_nothing_to_do_gives_the_image_itself():
    image = pixels(4, 5)
    assert Conversion().apply(image) is image
    assert Conversion().describe() == {}


# Mode ------------------------------------------------------------------------------------------


def exact_grey(image):
    """Weigh with 0.299, 0.587 and 0.114 in 65536ths and round, in numbers of any size."""
    weights = [round(Fraction(part, 1000) * 65536) for part in (299, 587, 114)]
    weights[2] = 65536 - weights[0] - weights[1]
    total = sum(image[..., number].astype(object) * weights[number] for number in range(3))
    return (total + 32768) // 65536


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_grey_of_both_depths_is_weighed_in_whole_numbers(dtype):
    image = pixels(50, 40, 3, dtype=dtype)
    most = np.iinfo(dtype).max
    image[0, :2] = [[most] * 3, [0] * 3]
    found = Conversion(mode="L").apply(image)
    assert found.dtype == dtype
    assert np.array_equal(found, exact_grey(image).astype(dtype))
    assert found[0, 0] == most


def test_grey_of_8_bits_is_pillows():
    image = pixels(50, 40, 3)
    expected = np.asarray(Image.fromarray(image).convert("L"))
    assert np.array_equal(Conversion(mode="L").apply(image), expected)


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1)])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_one_channel_becomes_either_mode(shape, dtype):
    image = pixels(*shape, dtype=dtype)
    grey, colour = (Conversion(mode=mode).apply(image) for mode in ("L", "RGB"))
    assert np.array_equal(grey, image.reshape(4, 5))
    assert np.array_equal(colour, np.stack([image.reshape(4, 5)] * 3, axis=2))


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_other_channels_have_no_mode(mode):
    with pytest.raises(ShapeError, match="2 channels, expected 1 or 3 for mode"):
        Conversion(mode=mode).apply(pixels(4, 5, 2))


# Sizes -----------------------------------------------------------------------------------------


SIZES = [(1, 1), (7, 9), (20, 30), (19, 30), (31, 5), (60, 45), (28, 28), (2, 299), (200, 1)]


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("channels", [(), (1,), (3,)])
@pytest.mark.parametrize("start", [(20, 30), (3, 64), (64, 64), (1, 1), (255, 257)])
def test_a_resize_gives_the_bits_of_torchvision(start, channels, dtype):
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2.functional import resize

    image = pixels(*start, *channels, dtype=dtype)
    planes = (
        [image]
        if dtype == "uint8" and channels != (1,)
        else np.moveaxis(image.reshape(*start, -1), 2, 0)
    )
    wide = [
        np.ascontiguousarray(plane, np.int32 if dtype == "uint16" else None) for plane in planes
    ]
    for size in SIZES:
        peers = [
            np.asarray(
                resize(Image.fromarray(plane), size, InterpolationMode.BILINEAR, antialias=True)
            )
            for plane in wide
        ]
        expected = peers[0] if len(peers) == 1 else np.stack(peers, axis=2)
        resized = Conversion(resize=size).apply(image)
        assert resized.dtype == dtype
        assert np.array_equal(resized, expected.reshape(resized.shape)), size


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_other_channels_are_resized_one_by_one(channels):
    image = pixels(20, 30, channels)
    conversion = Conversion(resize=(7, 9))
    found = conversion.apply(image)
    for number in range(channels):
        assert np.array_equal(found[..., number], conversion.apply(image[..., number]))


def triangle(length, target):
    """Return the weights of a bilinear resize with antialias, [target, length], by its formula."""
    scale = length / target
    reach = max(scale, 1.0)
    centres = (np.arange(target) + 0.5) * scale
    distance = np.abs(np.arange(length) + 0.5 - centres[:, None]) / reach
    weights = np.maximum(0, 1 - distance)
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("size", [(7, 9), (33, 47), (5, 47)])
def test_both_depths_are_resized_by_the_formula(dtype, size):
    image = pixels(20, 30, 3, dtype=dtype)
    resized = Conversion(resize=size).apply(image)
    down, across = triangle(20, size[0]), triangle(30, size[1])
    expected = np.einsum("ay,yxc,bx->abc", down, image.astype(float), across)
    # rounded twice, once in each direction
    assert np.abs(resized - expected).max() <= 1.01


def test_16_bits_keep_what_8_bits_would_lose():
    image = np.full((8, 8), 1, np.uint16)
    image[4:] = 3
    found = Conversion(resize=(4, 4)).apply(image)
    assert set(found.ravel().tolist()) <= {1, 2, 3}
    full = np.full((8, 8), 65535, np.uint16)
    assert (Conversion(resize=(5, 13)).apply(full) == 65535).all()


@pytest.mark.parametrize(
    ("size", "shorter", "expected"),
    [
        ((20, 30), 10, (10, 15)),
        ((30, 20), 7, (10, 7)),
        ((3, 1000), 2, (2, 666)),
        ((9, 9), 4, (4, 4)),
    ],
)
def test_one_number_is_the_shorter_side(size, shorter, expected):
    from torchvision.transforms.v2.functional import resize

    assert Conversion(resize=shorter).output(size) == expected
    peer = resize(Image.new("L", size[::-1]), [shorter])
    assert peer.size == expected[::-1]


def test_crop_takes_the_centre_and_pad_fills_around_it():
    image = np.arange(1, 36, dtype=np.uint8).reshape(5, 7)
    assert np.array_equal(Conversion(crop=(2, 3)).apply(image), image[1:3, 2:5])
    assert np.array_equal(Conversion(crop=(5, 3)).apply(image), image[:, 2:5])
    padded = Conversion(pad=(8, 8)).apply(image)
    assert np.array_equal(padded, np.pad(image, ((1, 2), (0, 1))))
    both = Conversion(crop=(3, 9), pad=(5, 9)).apply(image)
    assert np.array_equal(both, np.pad(image[1:4], ((1, 1), (1, 1))))


@pytest.mark.parametrize("size", [(9, 3), (5, 8), (40, 40)])
def test_a_crop_larger_than_the_image_is_refused_and_its_cure_works(size):
    text = f"crop is {size[0]} x {size[1]} .* larger than an image of 5 x 7; .* pad: {list(size)}"
    for image in (pixels(5, 7), pixels(5, 7, 3)):
        with pytest.raises(ShapeError, match=text.replace("[", r"\[")):
            Conversion(crop=size).output(image.shape)
        with pytest.raises(ShapeError, match="crop"):
            Conversion(crop=size).apply(image)
        assert Conversion(crop=size, pad=size).apply(image).shape[:2] == size
        assert Conversion(crop=size, resize=size).apply(image).shape[:2] == size


@pytest.mark.parametrize("size", [(4, 9), (9, 6), (2, 2)])
def test_a_pad_smaller_than_the_image_is_refused_and_its_cure_works(size):
    text = f"pad is {size[0]} x {size[1]} .* smaller than an image of 5 x 7; .* crop: {list(size)}"
    with pytest.raises(ShapeError, match=text.replace("[", r"\[")):
        Conversion(pad=size).apply(pixels(5, 7))
    assert Conversion(pad=size, crop=size).apply(pixels(5, 7)).shape == size


def test_a_crop_after_a_resize_is_held_against_what_that_gives():
    with pytest.raises(ShapeError, match="larger than an image of 8 x 8 after the resize"):
        Conversion(resize=8, crop=(8, 9)).output((20, 20))
    assert Conversion(resize=8, crop=(8, 9)).output((20, 30)) == (8, 9)


@pytest.mark.parametrize(("crop", "pad"), [((8, 9), (8, 8)), ((4, 4), (2, 9)), ((40, 4), (20, 20))])
def test_a_pad_below_the_crop_can_never_hold(crop, pad):
    with pytest.raises(ConfigError, match="expected no side of pad below that of crop"):
        Conversion(crop=crop, pad=pad)


# Depth -----------------------------------------------------------------------------------------


def test_16_bits_are_rounded_to_the_nearest_of_8():
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    found = Conversion(depth=8).apply(every)
    exact = [round(Fraction(value * 255, 65535)) for value in range(65536)]
    assert found.dtype == np.uint8
    assert found.ravel().tolist() == exact


def test_8_bits_are_spread_over_16_and_come_back():
    every = np.arange(256, dtype=np.uint8).reshape(16, 16)
    wide = Conversion(depth=16).apply(every)
    assert wide.dtype == np.uint16
    assert (wide[0, 0], wide[-1, -1]) == (0, 65535)
    assert wide.ravel().tolist() == [value * 65535 // 255 for value in range(256)]
    assert np.array_equal(Conversion(depth=8).apply(wide), every)


@pytest.mark.parametrize("depth", [8, 16])
def test_images_of_the_depth_stay_as_they_are(depth):
    image = pixels(4, 5, 3, dtype=f"uint{depth}")
    assert Conversion(depth=depth).apply(image) is image


@pytest.mark.parametrize("depth", [8, 16])
def test_the_depth_comes_first(depth):
    other = "uint8" if depth == 16 else "uint16"
    image = pixels(20, 30, 3, dtype=other)
    copied = Conversion(depth=depth).apply(image)
    rest = {"mode": "L", "resize": 12, "crop": (9, 9)}
    assert np.array_equal(
        Conversion(**rest, depth=depth).apply(image), Conversion(**rest).apply(copied)
    )


@pytest.mark.parametrize("dtype", ["float32", "float64", "int16"])
def test_other_types_have_no_depth(dtype):
    with pytest.raises(ShapeError, match=f"these are {dtype}; leave the depth out"):
        Conversion(depth=8).output_type(dtype)
    assert Conversion(mode="L").output_type(dtype) == dtype


def test_the_order_is_mode_resize_crop_pad():
    image = pixels(20, 30, 3)
    done = Conversion(mode="L").apply(image)
    for step in (Conversion(resize=12), Conversion(crop=(9, 9)), Conversion(pad=(14, 10))):
        done = step.apply(done)
    whole = Conversion(mode="L", resize=12, crop=(9, 9), pad=(14, 10))
    assert np.array_equal(whole.apply(image), done)
    assert whole.output(image.shape) == (14, 10)


# Settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"resize": 0},
        {"resize": (0, 4)},
        {"resize": (4,)},
        {"crop": (4, -1)},
        {"pad": (1, 2, 3)},
        {"pad": 4},
        {"mode": "P"},
        {"max_pixels": 0},
        {"depth": 12},
    ],
)
def test_what_is_no_size_or_mode_is_refused(options):
    (name,) = options
    with pytest.raises(ConfigError, match=name):
        Conversion(**options)


def test_a_size_may_be_a_list_and_conversions_compare_equal():
    assert Conversion(crop=[4, 5]) == Conversion(crop=(4, 5))
    assert hash(Conversion(crop=[4, 5])) == hash(Conversion(crop=(4, 5)))


@pytest.mark.parametrize("image", [np.zeros((2, 2)), np.zeros((2, 2), "int16"), np.zeros(4, "u1")])
def test_what_is_no_image_is_refused(image):
    with pytest.raises(ShapeError, match="expected"):
        Conversion(pad=(4, 4)).apply(image)


def test_what_was_done_is_told_as_json():
    told = Conversion(resize=8, crop=(8, 8), pad=(9, 9), mode="L", depth=8).describe()
    assert json.loads(json.dumps(told)) == told
    assert list(told) == ["depth", "mode", "resize", "crop", "pad"]
    assert told["depth"]["to"] == 8
    assert told["resize"] == {
        "shorter_side": 8,
        "method": "Pillow resize, bilinear, antialiased",
    }
    assert Conversion(resize=(3, 4)).describe()["resize"]["size"] == [3, 4]
