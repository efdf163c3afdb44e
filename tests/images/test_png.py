"""PNG: every depth and colour keeps its bits, and every flipped bit or cut is found."""

from __future__ import annotations

import zlib

import imagecodecs
import numpy as np
import pytest
from hostile.making import (
    END,
    GREY,
    GREY_ALPHA,
    PALETTE,
    RGB,
    RGB_ALPHA,
    chunk,
    orientation,
    picture,
    png_of,
    rows_of,
    saved,
    start,
)
from image_files_for_tests import AS_IT_IS, pixels_of, problem_of
from PIL import Image

from pipeline.core.blocks import TRUNCATED, Problem
from pipeline.images.decoding import Decoded, decode, probe

ALL = slice(None)


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


def pngs_of_every_kind():
    """Yield PNGs of each colour and depth, interlaced and not, and their names."""
    for colour, channels in ((GREY, 1), (RGB, 3), (GREY_ALPHA, 2), (RGB_ALPHA, 4)):
        for depth in (8, 16):
            image = picture(5, 9, channels, f"uint{depth}")
            head = start(9, 5, depth, colour)
            yield f"{colour}-{depth}", png_of(head, (b"IDAT", rows_of(image)), END)
            yield f"{colour}-{depth}-interlaced", interlaced(image, depth, colour)
    colours = bytes(range(3, 3 * 12))
    for depth in (1, 2, 4, 8):
        rows = zlib.compress(b"".join(b"\0" + bytes(range(row, row + depth)) for row in range(5)))
        yield f"grey-{depth}", png_of(start(8, 5, depth, GREY), (b"IDAT", rows), END)
        # also numbers beyond the last colour
        head, palette = start(8, 5, depth, PALETTE), (b"PLTE", colours[: 3 * 2**depth])
        yield f"palette-{depth}", png_of(head, palette, (b"IDAT", rows), END)


def test_imagecodecs_and_pillow_give_the_same_bits(monkeypatch):
    files = dict(pngs_of_every_kind())
    decoded = {name: pixels_of(data) for name, data in files.items()}

    def fail(data):
        raise RuntimeError("no")

    monkeypatch.setattr(imagecodecs, "spng_decode", fail)
    for name, data in files.items():
        by_pillow = pixels_of(data)
        assert by_pillow.dtype == decoded[name].dtype, name
        assert np.array_equal(by_pillow, decoded[name]), name


def test_an_orientation_behind_the_pixels_of_a_png_is_followed():
    image = picture(24, 40, 1)
    head, content = start(40, 24, 8, GREY), (b"IDAT", rows_of(image))
    data = png_of(head, content, (b"eXIf", orientation(6)), END)
    assert np.array_equal(pixels_of(data), np.rot90(image, -1))


# Damage -------------------------------------------------------------------------------------------


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
