"""Image files of every kind, honest, damaged and hostile: pixels as Pillow's, or the reason why."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from hostile import hostile_files
from hostile.making import END, GREY, patched, picture, png_of, rows_of, saved, start
from image_files_for_tests import AS_IT_IS, by_pillow, pixels_of, problem_of
from PIL import Image

from pipeline.core.blocks import OK, TOO_LARGE, UNREADABLE, WRONG_SIZE, Problem
from pipeline.images.conversion import Conversion
from pipeline.images.decoding import Decoded, decode, probe

TESTS = Path(__file__).parents[1]
MEMORY_BOUND = 400 * 2**20


# Kinds of images ----------------------------------------------------------------------------------


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


def test_the_first_of_several_frames_is_the_image():
    frames = [Image.fromarray(picture() // part) for part in (1, 2, 3)]
    for kind, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})):
        data = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert np.array_equal(pixels_of(data), picture()), kind
    several = saved(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert np.array_equal(pixels_of(several), by_pillow(saved(frames[0], "JPEG"), "RGB"))


@pytest.mark.parametrize("kind", ["GIF", "AVIF", "WEBP", "PNG", "TIFF"])
def test_more_frames_than_the_first_are_told(kind):
    frames = [Image.fromarray(picture() // part) for part in (1, 2, 3)]
    several = saved(frames[0], kind, save_all=True, append_images=frames[1:])
    one = saved(frames[0], kind)
    first = decode(several, AS_IT_IS)
    assert first.several
    assert not decode(one, AS_IT_IS).several
    assert np.array_equal(first.image, by_pillow(several, "RGB"))


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


# What was expected --------------------------------------------------------------------------------


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


# Limits -------------------------------------------------------------------------------------------


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


# Damage -------------------------------------------------------------------------------------------


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
        assert found.image.dtype in (np.uint8, np.uint16, np.float32)
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


def test_many_bad_files_cost_no_memory():
    statistics = Path("/proc/self/statm")
    if not statistics.exists():
        pytest.skip("the size of the process is not known here")
    pixels = picture(200, 200, 1)
    short = png_of(start(200, 201, 8, GREY), (b"IDAT", rows_of(pixels)), END)
    jpeg = saved(pixels, "JPEG").replace(b"\xff\xda", b"\xff\x02", 1)
    tiff = saved(pixels, "TIFF", compression="tiff_lzw")
    tiff = patched(tiff, 8, b"\xff" * 5000)
    for data in (short, jpeg, tiff):
        sizes = []
        for _ in range(2):
            for _ in range(500):
                problem_of(data)
            sizes.append(int(statistics.read_text().split()[1]) * resource.getpagesize())
        assert sizes[1] - sizes[0] < 500 * pixels.nbytes / 4


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
