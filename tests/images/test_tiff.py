"""TIFF: the bits that it holds, whatever its layout, or the reason why not."""

from __future__ import annotations

import io
import struct
import tracemalloc
import warnings
import zlib

import numpy as np
import pytest
import tifffile
from hostile.making import patched, picture, saved, small_tiff, tiff_of
from image_files_for_tests import AS_IT_IS, by_pillow, pixels_of, problem_of
from PIL import Image

from pipeline.core.blocks import TOO_LARGE, TRUNCATED, UNREADABLE, Problem
from pipeline.images.conversion import Conversion
from pipeline.images.decoding import Decoded, decode, probe


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_16_bit_grey_tiff_of_either_byte_order_keeps_its_bits(order):
    image = picture(channels=1, dtype="uint16")
    mode = "I;16" if order == "<" else "I;16B"
    stored = image.astype(image.dtype.newbyteorder(order)).tobytes()
    data = saved(Image.frombytes(mode, (32, 24), stored), "TIFF")
    assert data.startswith(b"II" if order == "<" else b"MM")
    found = pixels_of(data)
    assert found.dtype == np.dtype(np.uint16)
    assert np.array_equal(found, image)


def wide_tiff(photometric, bits, kind):
    """Return an uncompressed TIFF of 2 x 2 pixels, of a kind that Pillow would cut down."""
    channels, size = len(bits), sum(bits) // 8 * 4
    place = 8 + 2 + 10 * 12 + 4
    tags = [
        (256, 3, 1, 2), (257, 3, 1, 2), (258, 3, channels, place if channels > 2 else bits[0]),
        (259, 3, 1, 1), (262, 3, 1, photometric), (273, 4, 1, place + 2 * channels),
        (277, 3, 1, channels), (278, 3, 1, 2), (279, 4, 1, size), (339, 3, 1, kind),
    ]  # fmt: skip
    return tiff_of(tags, after=struct.pack(f"<{channels}H", *bits) + bytes(range(size)))


TO_PNG = "convert the images to 16-bit PNG, or to .npy"
TO_NPY = "convert the images to .npy, whose floats are packed into 16 bits"


@pytest.mark.parametrize(
    ("photometric", "bits", "kind", "words"),
    [
        (
            5,
            (16, 16, 16, 16),
            1,
            "16 16 16 16 bits a pixel, expected grey or colours of up to 8, or grey, RGB or bands",
        ),
        (3, (16,), 1, TO_PNG),
        (2, (16, 16, 16), 2, TO_PNG),
        (1, (16,), 2, TO_PNG),
        (1, (32,), 1, TO_PNG),
        (1, (32,), 2, TO_PNG),
        (1, (16,), 3, f"floats of 16 bits, expected grey, colours or bands of 32 or 64; {TO_NPY}"),
        (0, (32, 32, 32), 3, "floats of 32 32 32 bits, expected grey, colours or bands of 32"),
        (8, (8, 8, 8), 1, "LAB colours; convert the images to RGB"),
    ],
)
def test_a_tiff_that_would_be_cut_down_is_refused_with_the_cure(photometric, bits, kind, words):
    data = wide_tiff(photometric, bits, kind)
    problem = problem_of(data)
    assert problem.status == UNREADABLE
    assert words in problem.detail
    assert probe(data, AS_IT_IS) == problem


LAYOUTS = {
    "strips": {"rowsperstrip": 5},
    "one strip": {},
    "tiles": {"tile": (16, 16)},
    "planes": {"planarconfig": "separate"},
    "tiles of planes": {"planarconfig": "separate", "tile": (16, 32)},
    "LZW": {"compression": "lzw"},
    "deflate, differences": {"compression": "zlib", "predictor": True, "rowsperstrip": 5},
    "packbits": {"compression": "packbits"},
    "zstd": {"compression": "zstd"},
    "big": {"bigtiff": True},
    "big-endian": {"byteorder": ">"},
    "big-endian, differences": {"byteorder": ">", "compression": "zlib", "predictor": True},
}


def tiff_of_array(image, **options):
    """Return a TIFF of [y, x] or [y, x, channel]."""
    target = io.BytesIO()
    planes = options.get("planarconfig") == "separate"
    tifffile.imwrite(target, np.moveaxis(image, 2, 0).copy() if planes else image, **options)
    return target.getvalue()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_colours_of_both_depths_keep_their_bits_in_every_layout(layout, channels, dtype):
    image = picture(channels=channels, dtype=dtype)
    data = tiff_of_array(image, photometric="rgb", **LAYOUTS[layout])
    decoded = pixels_of(data)
    assert decoded.dtype == dtype
    assert np.array_equal(decoded, image[..., :3])
    assert probe(data, AS_IT_IS) == ((24, 32, 3), dtype)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if "planes" not in name])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_grey_of_both_depths_keeps_its_bits_in_every_layout(layout, photometric, dtype):
    image = picture(channels=1, dtype=dtype)
    decoded = pixels_of(tiff_of_array(image, photometric=photometric, **LAYOUTS[layout]))
    assert decoded.dtype == dtype
    assert np.array_equal(decoded, image if photometric == "minisblack" else ~image)


def test_grey_with_alpha_of_16_bits_is_its_grey():
    image = picture(channels=2, dtype="uint16")
    data = tiff_of_array(
        image, photometric="minisblack", planarconfig="contig", extrasamples=["unassalpha"]
    )
    assert np.array_equal(pixels_of(data), image[..., 0])


def test_a_fourth_channel_of_16_bits_with_alpha_multiplied_in_is_refused():
    image = picture(channels=4, dtype="uint16")
    problem = problem_of(tiff_of_array(image, photometric="rgb", extrasamples=["assocalpha"]))
    assert (problem.status, TO_PNG in problem.detail) == (UNREADABLE, True)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("channels", "photometric"), [(2, "minisblack"), (13, "minisblack"), (4, "rgb"), (6, "rgb")]
)
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_bands_are_channels_in_every_layout(layout, channels, photometric, dtype):
    image = picture(9, 11, channels, dtype)
    bands = ["unspecified"] * (channels - (3 if photometric == "rgb" else 1))
    options = {"planarconfig": "contig", **LAYOUTS[layout]}
    data = tiff_of_array(image, photometric=photometric, extrasamples=bands, **options)
    decoded = pixels_of(data)
    assert decoded.dtype == dtype
    assert np.array_equal(decoded, image)
    assert probe(data, AS_IT_IS) == (image.shape, dtype)


def test_alpha_behind_bands_is_dropped():
    image = picture(channels=5)
    extra = ["unspecified", "unassalpha"]
    data = tiff_of_array(image, photometric="rgb", planarconfig="contig", extrasamples=extra)
    assert np.array_equal(pixels_of(data), image[..., :4])


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "packbits"])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_floats_keep_their_values_in_every_layout(layout, channels, dtype):
    options = LAYOUTS[layout]
    if channels == 1 and "planes" in layout:
        pytest.skip("one plane is none of several")
    shape = (9, 11) if channels == 1 else (9, 11, channels)
    image = np.random.default_rng(0).normal(0, 1e3, shape).astype(dtype)
    more = {} if channels == 1 else {"extrasamples": ["unspecified"] * (channels - 1)}
    more |= {"planarconfig": "contig"} if channels > 1 else {}
    data = tiff_of_array(image, photometric="minisblack", **{**more, **options})
    decoded = pixels_of(data)
    assert (decoded.dtype, decoded.shape) == (dtype, shape)
    assert np.array_equal(decoded, image)
    assert probe(data, AS_IT_IS) == (shape, dtype)


def test_floats_that_are_no_numbers_are_no_image():
    for value in (np.nan, np.inf):
        image = np.ones((9, 11), np.float32)
        image[3, 4] = value
        problem = problem_of(tiff_of_array(image, photometric="minisblack"))
        assert (problem.status, "no numbers" in problem.detail) == (UNREADABLE, True)


def test_bands_count_against_the_most_pixels():
    data = tiff_of_array(picture(9, 11, 100), photometric="minisblack", planarconfig="contig")
    limited = decode(data, Conversion(max_pixels=9 * 11 * 12))
    assert isinstance(limited, Problem)
    assert limited.status == TOO_LARGE
    assert isinstance(decode(data, Conversion(max_pixels=9 * 11 * 13)), Decoded)


@pytest.mark.parametrize("turn", range(1, 9))
def test_the_orientation_of_16_bit_colours_is_followed(turn):
    image = picture(24, 40, 3, "uint16")
    data = tiff_of_array(image, photometric="rgb", extratags=[(274, 3, 1, turn, True)])
    eight = tiff_of_array(
        (image >> 8).astype(np.uint8), photometric="rgb", extratags=[(274, 3, 1, turn, True)]
    )
    decoded = pixels_of(data)
    assert np.array_equal(decoded >> 8, by_pillow(eight, "RGB"))
    assert probe(data, AS_IT_IS) == (decoded.shape, "uint16")


@pytest.mark.parametrize("layout", ["strips", "tiles", "deflate, differences", "zstd"])
def test_every_cut_of_16_bit_colours_is_found(layout):
    data = tiff_of_array(picture(9, 11, 3, "uint16"), photometric="rgb", **LAYOUTS[layout])
    for stop in range(4, len(data)):
        problem = problem_of(data[:stop])
        assert problem.status == TRUNCATED, (stop, problem)


def test_a_flipped_bit_of_16_bit_colours_ends_as_an_image_or_a_problem():
    rng = np.random.default_rng(1)
    for layout in LAYOUTS.values():
        data = tiff_of_array(picture(9, 11, 3, "uint16"), photometric="rgb", **layout)
        for position in (*range(min(300, len(data))), *rng.integers(0, len(data), 50).tolist()):
            flipped = bytearray(data)
            flipped[position] ^= 1 << int(rng.integers(8))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                assert isinstance(decode(bytes(flipped), AS_IT_IS), Decoded | Problem)


def test_small_tiles_that_inflate_to_more_than_they_say_are_read_or_refused():
    target = io.BytesIO()
    tifffile.imwrite(target, picture(16, 16, 3, "uint16"), photometric="rgb", tile=(16, 16))
    bomb = zlib.compress(bytes(2**26))
    data = target.getvalue()
    changes = {"Compression": 8, "TileOffsets": len(data), "TileByteCounts": len(bomb)}
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        positions = {name: file.pages.first.tags[name].offset + 8 for name in changes}
    for name, value in changes.items():
        data = patched(data, positions[name], struct.pack("<I", value))
    tracemalloc.start()
    decoded = decode(data + bomb, AS_IT_IS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(decoded, Decoded | Problem)
    assert peak < 2**20


def test_a_16_bit_grey_tiff_of_the_same_make_is_read():
    expected = np.arange(8, dtype=np.uint8).view("<u2").reshape(2, 2)
    assert np.array_equal(pixels_of(wide_tiff(1, (16,), 1)), expected)


def test_a_tiff_leads_nowhere_beyond_its_first_page(monkeypatch):
    grey = picture(channels=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for following in (8, 2**31, 3):
            data = small_tiff(grey.tobytes(), 32, 24, following=following)
            assert np.array_equal(pixels_of(data), grey)


def test_surplus_tiles_are_read_as_pillow_reads_them():
    data = tiff_of_array(picture(), photometric="rgb", tile=(16, 16))
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        position = file.pages.first.tags["ImageWidth"].valueoffset
    narrow = patched(data, position, struct.pack("<H", 7))
    assert np.array_equal(pixels_of(narrow), by_pillow(narrow, "RGB"))
