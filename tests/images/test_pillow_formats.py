"""The formats that Pillow alone reads: WebP, GIF, AVIF, JPEG 2000, PPM and rarer ones."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
from hostile.making import picture, saved
from image_files_for_tests import AS_IT_IS, by_pillow, pixels_of, problem_of
from PIL import Image

from pipeline.core.blocks import TOO_LARGE, TRUNCATED, UNREADABLE, Problem
from pipeline.images.conversion import Conversion
from pipeline.images.decoding import Decoded, decode, probe

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
