"""Image files of every kind, honest, damaged and hostile: pixels as Pillow's, or the reason why."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from hostile import (
    END,
    GREY,
    GREY_ALPHA,
    PALETTE,
    RGB,
    RGB_ALPHA,
    chunk,
    hostile_files,
    orientation,
    picture,
    png_of,
    rows_of,
    saved,
    small_tiff,
    start,
    tiff_of,
    with_exif,
)
from PIL import Image, ImageOps

from pipeline.core.blocks import OK, TOO_LARGE, TRUNCATED, UNREADABLE, WRONG_SIZE, Problem
from pipeline.images.conversion import Conversion
from pipeline.images.decoding import Decoded, decode, probe

AS_IT_IS = Conversion()
TESTS = Path(__file__).parents[1]
MEMORY_BOUND = 400 * 2**20
ALL = slice(None)


def pixels_of(data, conversion=AS_IT_IS, expected=None):
    found = decode(data, conversion, expected)
    assert isinstance(found, Decoded), found
    return found.image


def problem_of(data, conversion=AS_IT_IS, expected=None):
    found = decode(data, conversion, expected)
    assert isinstance(found, Problem), found
    return found


def by_pillow(data, mode):
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert(mode))


# Kinds of images -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(24, 32), (1, 1), (17, 3)])
def test_each_format_gives_pillows_pixels(kind, channels, size):
    data = saved(picture(*size, channels), kind)
    mode = "L" if channels == 1 and kind != "WEBP" else "RGB"
    found = decode(data, AS_IT_IS)
    assert (found.height, found.width) == size
    assert found.image.dtype == np.uint8
    assert np.array_equal(found.image, by_pillow(data, mode))
    assert probe(data, AS_IT_IS) == (found.image.shape, "uint8")


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_adobe_deflate"}),
        ("TIFF", {"compression": "packbits"}),
        ("TIFF", {"compression": "jpeg"}),
        ("TIFF", {"big_tiff": True}),
        ("WEBP", {"lossless": True}),
        ("PNG", {"optimize": True}),
    ],
)
def test_each_compression_gives_pillows_pixels(kind, options):
    data = saved(picture(), kind, **options)
    assert np.array_equal(pixels_of(data), by_pillow(data, "RGB"))


@pytest.mark.parametrize(
    ("kind", "mode", "expected"),
    [
        ("PNG", "1", "L"), ("BMP", "1", "L"), ("TIFF", "1", "L"),
        ("PNG", "P", "RGB"), ("BMP", "P", "RGB"), ("TIFF", "P", "RGB"),
        ("PNG", "LA", "L"), ("TIFF", "LA", "L"),
        ("PNG", "RGBA", "RGB"), ("WEBP", "RGBA", "RGB"), ("TIFF", "RGBA", "RGB"),
        ("JPEG", "CMYK", "RGB"), ("TIFF", "CMYK", "RGB"), ("TIFF", "YCbCr", "RGB"),
    ],
)  # fmt: skip
def test_other_modes_become_grey_or_colour_as_pillow_converts_them(kind, mode, expected):
    image = Image.fromarray(picture(channels=4))
    data = saved((image if "A" in mode else image.convert("RGB")).convert(mode), kind)
    found = pixels_of(data)
    assert np.array_equal(found, by_pillow(data, expected))
    assert probe(data, AS_IT_IS) == (found.shape, "uint8")


def test_alpha_is_dropped_and_not_blended():
    image = picture(channels=4)
    image[..., 3] = 0
    assert np.array_equal(pixels_of(saved(image, "PNG")), image[..., :3])
    assert np.array_equal(pixels_of(saved(image, "TIFF")), image[..., :3])


def test_black_and_white_become_0_and_255():
    bits = picture(channels=1) > 99
    assert np.array_equal(pixels_of(saved(bits, "PNG")), np.where(bits, 255, 0))


def test_small_grey_depths_are_stretched():
    data = png_of(start(2, 2, 2, GREY), (b"IDAT", zlib.compress(b"\0\x10\0\xb0")), END)
    assert pixels_of(data).tolist() == [[0, 85], [170, 255]]


def test_the_first_of_several_frames_is_the_image():
    frames = [Image.fromarray(picture() // part) for part in (1, 2, 3)]
    for kind, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})):
        data = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert np.array_equal(pixels_of(data), picture()), kind
    several = saved(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert np.array_equal(pixels_of(several), by_pillow(saved(frames[0], "JPEG"), "RGB"))


# More formats ----------------------------------------------------------------------------------

LOSSLESS = {
    "PPM": {}, "JPEG2000": {"irreversible": False}, "SGI": {}, "QOI": {}, "GIF": {}, "AVIF": {},
}  # fmt: skip


@pytest.mark.parametrize("kind", LOSSLESS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(24, 32), (1, 1), (17, 3)])
def test_what_pillow_reads_is_read(kind, channels, size):
    image = picture(*size, 3 if kind == "QOI" else channels)
    data = saved(image, kind, **LOSSLESS[kind])
    always_colour = kind in ("GIF", "QOI")
    found = decode(data, AS_IT_IS)
    expected = by_pillow(data, "L" if channels == 1 and not always_colour else "RGB")
    assert np.array_equal(found.image, expected)
    assert (found.height, found.width, found.several) == (*size, False)
    assert probe(data, AS_IT_IS) == (found.image.shape, "uint8")
    if kind not in ("GIF", "AVIF"):
        assert np.array_equal(found.image, image)


@pytest.mark.parametrize("kind", LOSSLESS)
def test_their_limit_is_on_what_the_file_says(kind):
    data = saved(picture(), kind)
    assert pixels_of(data, Conversion(max_pixels=32 * 24)).shape == (24, 32, 3)
    found = problem_of(data, Conversion(max_pixels=32 * 24 - 1))
    assert (found.status, found.width, found.height) == (TOO_LARGE, 32, 24)


@pytest.mark.parametrize("kind", [*LOSSLESS, "GIF89"])
def test_every_cut_of_them_is_found(kind):
    options = {"transparency": 3} if kind == "GIF89" else {}
    data = saved(picture(9, 11), kind.removesuffix("89"), **options)
    # what says the format, and a trailer after whole pixels
    first, spare = 12 if kind == "AVIF" else 1, 1 if kind.startswith("GIF") else 0
    for stop in range(first, len(data) - spare):
        assert problem_of(data[:stop]).status == TRUNCATED, (kind, stop)


@pytest.mark.parametrize("kind", LOSSLESS)
def test_a_flipped_bit_of_them_ends_as_an_image_or_a_problem(kind):
    data = saved(picture(), kind)
    rng = np.random.default_rng(1)
    for place in (*range(min(200, len(data))), *rng.integers(0, len(data), 100)):
        flipped = bytearray(data)
        flipped[place] ^= 1 << int(rng.integers(8))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert isinstance(decode(bytes(flipped), AS_IT_IS), Decoded | Problem)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"P1 2 2 1 0 0 1", [[0, 255], [255, 0]]),
        (b"P1\n# made by hand\n2 2\n10\n01", [[0, 255], [255, 0]]),
        (b"P2\n2 1\n255\n7 200", [[7, 200]]),
        (b"P2 2 1 3 1 3", [[85, 255]]),
        (b"P3 1 1 255 1 2 3", [[[1, 2, 3]]]),
        (b"P4\t8 1\n\xf0", [[0] * 4 + [255] * 4]),
        (b"P5 2 1 255\n\x07\xc8", [[7, 200]]),
        (b"P5 2 1 65535\n\x01\x02\xff\xff", [[258, 65535]]),
        (b"P5 2 1 4095\n\x00\x00\x0f\xff", [[0, 65535]]),
        (b"P6 1 1 255\n\x01\x02\x03", [[[1, 2, 3]]]),
    ],
)
def test_portable_any_maps_are_stretched_to_the_whole_range(data, expected):
    found = pixels_of(data)
    assert found.tolist() == expected
    assert probe(data, AS_IT_IS) == (found.shape, found.dtype)


def test_a_16_bit_grey_jpeg_2000_keeps_its_bits():
    image = picture(channels=1, dtype="uint16")
    found = pixels_of(saved(image, "JPEG2000"))
    assert found.dtype == np.uint16
    assert np.array_equal(found, image)


def avif_of_bits(flags):
    data = bytearray(saved(picture(), "AVIF"))
    data[data.index(b"av1C") + 6] |= flags
    return bytes(data)


def jpeg_2000_of_bits(depth):
    data = bytearray(saved(picture(), "JPEG2000"))
    data[data.index(b"\xff\x4f\xff\x51") + 42] = depth
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"P6 1 1 65535\n" + bytes(6), "colours up to 65535, expected up to 255"),
        (b"P3 1 1 1023 1 2 3", "colours up to 1023, expected up to 255"),
        (avif_of_bits(0x40), "the AVIF has 10 bits, expected 8"),
        (avif_of_bits(0x60), "the AVIF has 12 bits, expected 8"),
        (jpeg_2000_of_bits(15), "3 channels of 16 bits, expected up to 8"),
        (jpeg_2000_of_bits(0x87), "without sign"),
    ],
)
def test_what_would_be_cut_down_is_refused_with_the_cure(data, words):
    found = problem_of(data)
    assert found.status == UNREADABLE
    assert words in found.detail
    assert "convert the images to 16-bit PNG, or to .npy" in found.detail


def test_a_heic_image_is_named():
    data = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)
    assert problem_of(data).detail == "is a HEIC image, which is not read; convert it to JPEG"


def test_an_avif_without_pillows_reader_says_what_to_install(monkeypatch):
    from PIL import AvifImagePlugin

    monkeypatch.setattr(AvifImagePlugin, "SUPPORTED", False)
    assert "install Pillow 11.3" in problem_of(saved(picture(), "AVIF")).detail


@pytest.mark.parametrize("turn", range(1, 9))
def test_the_orientation_of_an_avif_is_followed(turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    data = saved(picture(24, 40), "AVIF", exif=exif)
    found = decode(data, AS_IT_IS)
    assert np.array_equal(found.image, by_pillow(data, "RGB"))
    assert (found.width, found.height) == ((40, 24) if turn < 5 else (24, 40))


def test_a_gif_is_in_colour_whatever_its_palette_is():
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    data = saved(ramp, "GIF")
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "L"  # as Pillow calls it for this palette only
    assert np.array_equal(pixels_of(data), np.stack([ramp] * 3, axis=2))
    assert np.array_equal(pixels_of(data, Conversion(mode="L")), ramp)


@pytest.mark.parametrize("kind", ["GIF", "AVIF", "WEBP", "PNG", "TIFF"])
def test_more_frames_than_the_first_are_told(kind):
    frames = [Image.fromarray(picture() // part) for part in (1, 2, 3)]
    several = saved(frames[0], kind, save_all=True, append_images=frames[1:])
    one = saved(frames[0], kind)
    first = decode(several, AS_IT_IS)
    assert first.several
    assert not decode(one, AS_IT_IS).several
    assert np.array_equal(first.image, by_pillow(several, "RGB"))


# 16 bits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("colour", "channels", "kept"),
    [(GREY, 1, ALL), (GREY_ALPHA, 2, 0), (RGB, 3, ALL), (RGB_ALPHA, 4, slice(3))],
)
@pytest.mark.parametrize("size", [(24, 32), (1, 1), (5, 3)])
def test_a_16_bit_png_keeps_its_bits(colour, channels, kept, size):
    image = picture(*size, channels, "uint16")
    data = png_of(start(*size[::-1], 16, colour), (b"IDAT", rows_of(image)), END)
    expected = image[..., kept]
    found = pixels_of(data)
    assert found.dtype == np.uint16
    assert np.array_equal(found, expected)
    assert probe(data, AS_IT_IS) == (expected.shape, "uint16")


def test_filtered_rows_of_16_bits_are_understood():
    image = np.cumsum(picture(24, 32, 4, "uint16") % 700, axis=1).astype(np.uint16)
    grey_alpha = image[..., :2]
    for pixels, colour, kept in ((image, RGB_ALPHA, slice(3)), (grey_alpha, GREY_ALPHA, 0)):
        raw = pixels.astype(">u2").view(np.uint8).reshape(24, -1)
        step = pixels.shape[2] * 2
        before = np.pad(raw, ((0, 0), (step, 0)))[:, :-step]
        rows = b"".join(b"\1" + row.tobytes() for row in raw - before)  # filter 1: differences
        data = png_of(start(32, 24, 16, colour), (b"IDAT", zlib.compress(rows)), END)
        assert np.array_equal(pixels_of(data), pixels[..., kept])


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


@pytest.mark.parametrize(
    ("photometric", "bits", "kind"),
    [
        (2, (16, 16, 16), 1),
        (5, (16, 16, 16, 16), 1),
        (1, (16,), 2),
        (1, (32,), 1),
        (1, (32,), 3),
        (0, (16,), 1),
    ],
)
def test_a_tiff_that_would_be_cut_down_is_refused_with_the_cure(photometric, bits, kind):
    data = wide_tiff(photometric, bits, kind)
    with Image.open(io.BytesIO(data)) as image:
        image.load()  # which Pillow reads without a word
    found = problem_of(data)
    assert found.status == UNREADABLE
    assert "convert the images to 16-bit PNG, or to .npy" in found.detail
    assert probe(data, AS_IT_IS) == found


def test_a_16_bit_grey_tiff_of_the_same_make_is_read():
    expected = np.arange(8, dtype=np.uint8).view("<u2").reshape(2, 2)
    assert np.array_equal(pixels_of(wide_tiff(1, (16,), 1)), expected)


# Interlaced PNG --------------------------------------------------------------------------------


def interlaced(image, depth, colour, leave_out=0):
    """Return an interlaced PNG of whole bytes a sample, without its last `leave_out` bytes."""
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2)]
    rows = b""
    for left, top, right, down in (*passes, (0, 1, 1, 2)):
        part = image[top::down, left::right].astype(image.dtype.newbyteorder(">"))
        if part.size:
            rows += b"".join(b"\0" + row.tobytes() for row in part)
    content = zlib.compress(rows[: len(rows) - leave_out])
    head = start(image.shape[1], image.shape[0], depth, colour, interlace=1)
    return png_of(head, (b"IDAT", content), END)


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (5, 9), (8, 8), (24, 32)])
def test_an_interlaced_png_is_read_and_counted(size):
    for colour, channels, kept in ((GREY, 1, ALL), (RGB, 3, ALL), (GREY_ALPHA, 2, 0)):
        for depth in (8, 16):
            image = picture(*size, channels, f"uint{depth}")
            assert np.array_equal(pixels_of(interlaced(image, depth, colour)), image[..., kept])
            short = interlaced(image, depth, colour, leave_out=1)
            assert problem_of(short).status == TRUNCATED


# Orientation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_the_exif_orientation_is_followed(kind, turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    data = saved(picture(24, 40), kind, exif=exif)
    found = decode(data, AS_IT_IS)
    assert np.array_equal(found.image, by_pillow(data, "RGB"))
    assert (found.width, found.height) == ((40, 24) if turn < 5 else (24, 40))
    assert probe(data, AS_IT_IS) == (found.image.shape, "uint8")
    # a set of the turned size takes it, one of the other size is told before decoding
    assert isinstance(decode(data, AS_IT_IS, (found.image.shape, "uint8")), Decoded)


def test_an_orientation_behind_the_pixels_of_a_png_is_followed():
    image = picture(24, 40, 1)
    head, content = start(40, 24, 8, GREY), (b"IDAT", rows_of(image))
    data = png_of(head, content, (b"eXIf", orientation(6)), END)
    assert np.array_equal(pixels_of(data), np.rot90(image, -1))


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_none(value):
    data = saved(picture(), "JPEG")
    assert np.array_equal(pixels_of(with_exif(data, orientation(value))), pixels_of(data))


# JPEG ------------------------------------------------------------------------------------------


def jpegs():
    for size in ((64, 64), (65, 63), (1, 1), (7, 50), (16, 17)):
        for sampling in ("4:4:4", "4:2:2", "4:2:0", "4:1:1"):
            for options in ({}, {"progressive": True}, {"restart_marker_blocks": 2}):
                for quality in (30, 100):
                    yield saved(
                        picture(*size), "JPEG", subsampling=sampling, quality=quality, **options
                    )
        for options in ({}, {"progressive": True}):
            yield saved(picture(*size, 1), "JPEG", **options)
            yield saved(picture(*size), "JPEG", keep_rgb=True, **options)
    # 4:4:0 is what no writer makes: of 4:2:0, twice the blocks in one direction only
    for options in ({}, {"progressive": True}):
        data = saved(picture(64, 64), "JPEG", subsampling="4:2:0", **options)
        place = data.index(b"\xff\xc2" if options else b"\xff\xc0") + 11
        assert data[place] == 0x22
        yield data[:place] + b"\x12" + data[place + 1 :]


def test_imagecodecs_and_pillow_give_the_same_bits():
    count = 0
    for data in jpegs():
        with Image.open(io.BytesIO(data)) as image:
            expected = np.asarray(image)
        assert np.array_equal(imagecodecs.jpeg8_decode(data), expected)
        assert np.array_equal(pixels_of(data), expected)
        count += 1
    assert count == 142


def test_imagecodecs_decodes_what_it_can_and_pillow_the_rest(monkeypatch):
    asked = []
    decoder = imagecodecs.jpeg8_decode

    def note(data, **options):
        asked.append(data[: -(2**16)])
        return decoder(data, **options)

    monkeypatch.setattr(imagecodecs, "jpeg8_decode", note)
    grey, colour = saved(picture(channels=1), "JPEG"), saved(picture(), "JPEG")
    turned = with_exif(colour, orientation(6))
    cmyk = saved(Image.fromarray(picture()).convert("CMYK"), "JPEG")
    padded, trailed = colour + bytes(9), colour + b"what a camera adds"
    for data in (grey, colour, cmyk, turned, padded, trailed):
        asked.clear()
        assert np.array_equal(pixels_of(data), by_pillow(data, "L" if data is grey else "RGB"))
        assert asked == ([] if data in (cmyk, trailed) else [data])


def test_where_imagecodecs_fails_pillow_decides(monkeypatch):
    for error in (imagecodecs.JpegError("no"), ValueError("invalid output shape")):

        def fail(data, error=error, **options):
            raise error

        monkeypatch.setattr(imagecodecs, "jpeg8_decode", fail)
        data = saved(picture(), "JPEG")
        assert np.array_equal(pixels_of(data), by_pillow(data, "RGB"))


def test_a_damaged_jpeg_ends_as_pillow_says(capfd):
    rng = np.random.default_rng(2)
    same = 0
    for options in ({}, {"progressive": True}, {"restart_marker_blocks": 2}):
        data = saved(picture(40, 40), "JPEG", **options)
        for position in rng.integers(2, len(data), 300).tolist():
            flipped = bytearray(data)
            flipped[position] ^= 1 << int(rng.integers(8))
            ours = decode(bytes(flipped), AS_IT_IS)
            try:
                expected = by_pillow(bytes(flipped), "RGB")
            except Exception:
                assert isinstance(ours, Problem), position
            else:
                assert np.array_equal(ours.image, expected) or ours.image.ndim == 2
                same += 1
    assert same > 600
    assert capfd.readouterr() == ("", "")


def test_threads_decode_the_same():
    files = [*jpegs(), saved(picture(), "PNG"), saved(picture(), "TIFF")]
    alone = [pixels_of(data) for data in files]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(pixels_of, files))
    assert all(map(np.array_equal, alone, together))


# What was expected -----------------------------------------------------------------------------


def test_another_shape_or_type_is_told_from_the_header(monkeypatch):
    def never(*arguments):
        raise AssertionError("decoded")

    files = [saved(picture(), kind) for kind in ("PNG", "JPEG", "BMP", "TIFF", "WEBP")]
    monkeypatch.setattr(Image.Image, "load", never)
    monkeypatch.setattr(imagecodecs, "jpeg8_decode", never)
    for data in files:
        for expected in (((24, 32), "uint8"), ((24, 31, 3), "uint8"), ((24, 32, 3), "uint16")):
            found = problem_of(data, AS_IT_IS, expected)
            assert (found.status, found.width, found.height) == (WRONG_SIZE, 32, 24)
            assert "is 24 x 32, RGB, 8 bits, expected 24 x " in found.detail
        assert probe(data, AS_IT_IS) == ((24, 32, 3), "uint8")


def test_a_conversion_makes_it_fit():
    conversion = Conversion(mode="L", resize=8, crop=(8, 8))
    data = saved(picture(), "PNG")
    found = decode(data, conversion, ((8, 8), "uint8"))
    assert (found.width, found.height) == (32, 24)
    assert np.array_equal(found.image, conversion.apply(picture()))
    assert probe(data, conversion) == ((8, 8), "uint8")


# Limits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
def test_the_limit_is_on_what_the_file_says(kind):
    data = saved(picture(), kind)
    assert pixels_of(data, Conversion(max_pixels=32 * 24)).shape == (24, 32, 3)
    for found in (
        problem_of(data, Conversion(max_pixels=32 * 24 - 1)),
        probe(data, Conversion(max_pixels=32 * 24 - 1)),
    ):
        assert (found.status, found.width, found.height) == (TOO_LARGE, 32, 24)
        assert "32 x 24 pixels, expected at most 767" in found.detail
        assert "raise max_pixels" in found.detail


def test_a_resize_by_the_shorter_side_does_not_grow_without_limit():
    data = saved(picture(1, 5000, 1), "PNG")
    conversion = Conversion(resize=200, crop=(200, 200))
    for found in (problem_of(data, conversion), probe(data, conversion)):
        assert found.status == TOO_LARGE
        assert "become 1000000 x 200 by the resize" in found.detail


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
def test_pillows_own_limit_neither_stops_nor_warns(kind, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pixels_of(saved(picture(), kind)).shape == (24, 32, 3)


def test_what_does_not_fit_into_memory_is_too_large(monkeypatch):
    def full(*arguments, **options):
        raise MemoryError

    data = saved(picture(), "BMP")
    monkeypatch.setattr(Image.Image, "load", full)
    found = problem_of(data)
    assert (found.status, found.width, found.height) == (TOO_LARGE, 32, 24)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_who_stops_the_process_is_not_held_up(error, monkeypatch):
    def stop(*arguments):
        raise error

    monkeypatch.setattr(Conversion, "apply", stop)
    with pytest.raises(error):
        decode(saved(picture(), "PNG"), AS_IT_IS)


# Damage ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", hostile_files(), ids=lambda file: file.name)
def test_a_hostile_file_ends_as_an_image_or_a_problem(file):
    found = decode(file.data, AS_IT_IS)
    status = found.status if isinstance(found, Problem) else OK
    assert status in file.statuses, found
    if isinstance(found, Problem):
        assert found.detail.isprintable()
        assert 0 < len(found.detail) <= 200
        probe(file.data, AS_IT_IS)
    else:
        assert found.image.dtype in (np.uint8, np.uint16)
        assert probe(file.data, AS_IT_IS) == (found.image.shape, found.image.dtype)


def test_hostile_files_take_little_memory():
    script = (
        "import json, resource, sys\n"
        "from pathlib import Path\n"
        "from hostile import hostile_files\n"
        "from pipeline.images.conversion import Conversion\n"
        "from pipeline.images.decoding import decode\n"
        "for file in hostile_files():\n"
        "    decode(file.data, Conversion())\n"
        "status = Path('/proc/self/status')\n"
        "if status.exists():\n"  # where getrusage would count the process that started this one
        "    words = status.read_text().split()\n"
        "    peak = int(words[words.index('VmHWM:') + 1]) * 1024\n"
        "else:\n"
        "    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "    peak *= 1 if sys.platform == 'darwin' else 1024\n"
        "print(json.dumps([peak, sorted({'torch', 'torchvision'} & set(sys.modules))]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        capture_output=True, text=True, cwd=TESTS, check=True,
    )  # fmt: skip
    peak, heavy = json.loads(done.stdout)
    assert peak < MEMORY_BOUND
    assert heavy == []


def small_pngs():
    """Return PNGs of each kind, with metadata and several image chunks."""
    image = rows_of(picture(9, 11, 1))
    parts = [(b"IDAT", image[:40]), (b"IDAT", image[40:])]
    text, time = (b"tEXt", b"Comment\0" + b"hello"), (b"tIME", bytes(7))
    yield png_of(start(11, 9, 8, GREY), text, *parts, time, END)
    yield saved(Image.fromarray(picture(9, 11)).quantize(7), "PNG")
    pixels = picture(5, 4, 3, "uint16")
    yield png_of(start(4, 5, 16, RGB), (b"IDAT", rows_of(pixels)), END)


def test_every_flipped_bit_of_a_png_is_found():
    for data in small_pngs():
        assert isinstance(decode(data, AS_IT_IS), Decoded)
        for place in range(len(data)):
            flipped = bytearray(data)
            flipped[place] ^= 1 << place % 8
            assert isinstance(decode(bytes(flipped), AS_IT_IS), Problem), place


def test_every_cut_of_a_png_is_found():
    for data in small_pngs():
        for stop in range(1, len(data)):
            assert problem_of(data[:stop]).status == TRUNCATED, stop


@pytest.mark.parametrize("progressive", [False, True])
def test_every_cut_of_a_jpeg_is_found(progressive):
    data = saved(picture(), "JPEG", progressive=progressive)
    for stop in range(1, len(data)):
        assert problem_of(data[:stop]).status == TRUNCATED, stop


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "BMP", "TIFF"])
def test_a_flipped_bit_ends_as_an_image_or_a_problem(kind):
    data = saved(picture(), kind)
    rng = np.random.default_rng(1)
    for place in (*range(min(200, len(data))), *rng.integers(0, len(data), 200)):
        flipped = bytearray(data)
        flipped[place] ^= 1 << int(rng.integers(8))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = decode(bytes(flipped), AS_IT_IS)
        assert isinstance(found, Decoded | Problem)


def test_rows_missing_in_a_png_are_found_and_black_rows_are_not():
    black = np.zeros((24, 32), np.uint8)
    whole, short = zlib.compress(bytes(24 * 33)), zlib.compress(bytes(24 * 33 - 1))
    head = start(32, 24, 8, GREY)
    assert np.array_equal(pixels_of(png_of(head, (b"IDAT", whole), END)), black)
    assert problem_of(png_of(head, (b"IDAT", short), END)).status == TRUNCATED
    several = [(b"IDAT", whole[:9]), (b"IDAT", whole[9:])]
    assert np.array_equal(pixels_of(png_of(head, *several, END)), black)


def test_a_damaged_text_in_a_png_is_found_and_a_strange_one_left_alone():
    head, content = start(32, 24, 8, GREY), (b"IDAT", rows_of(picture(channels=1)))
    strange = png_of(head, (b"zTXt", b"\xff\xff\xff"), (b"tRNS", b""), content, END)
    assert np.array_equal(pixels_of(strange), picture(channels=1))
    broken = chunk(b"tEXt", b"a\0b")[:-1] + b"!"
    data = strange[:33] + broken + strange[33:]
    assert problem_of(data).detail == "PNG chunk b'tEXt' is damaged: its checksum differs"


def test_a_palette_is_needed_where_colours_are_numbers():
    data = png_of(start(32, 24, 8, PALETTE), (b"IDAT", rows_of(picture(channels=1))), END)
    assert "no palette" in problem_of(data).detail


def test_a_tiff_leads_nowhere_beyond_its_first_page(monkeypatch):
    grey = picture(channels=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for following in (8, 2**31, 3):
            data = small_tiff(grey.tobytes(), 32, 24, following=following)
            assert np.array_equal(pixels_of(data), grey)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "the file is empty"),
        (b"<html>", "begins with b'<html>', expected a PNG, JPEG, WebP, BMP, TIFF, GIF, AVIF"),
        (b"\x1b[2J", r"begins with b'\x1b[2J'"),
    ],
)
def test_what_is_no_image_is_told_by_how_it_begins(data, words):
    found = problem_of(data)
    assert found.status == UNREADABLE
    assert words in found.detail


def test_only_the_formats_that_are_named_are_opened(monkeypatch):
    monkeypatch.setattr(Image, "open", None)
    for kind in ("ICO", "TGA", "DDS", "IM", "XBM", "EPS"):
        image = picture(channels=1) > 99 if kind == "XBM" else picture()
        assert problem_of(saved(image, kind)).status == UNREADABLE


def test_decoding_changes_nothing_of_pillow():
    before = Image.MAX_IMAGE_PIXELS, dict(Image.OPEN), threading.active_count()
    for file in hostile_files():
        decode(file.data, AS_IT_IS)
    assert (Image.MAX_IMAGE_PIXELS, dict(Image.OPEN), threading.active_count()) == before
