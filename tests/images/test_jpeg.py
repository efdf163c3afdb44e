"""JPEG: the same bits whichever library decodes it, and every cut and damage found."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor

import imagecodecs
import numpy as np
import pytest
from hostile.making import orientation, picture, saved, with_exif
from image_files_for_tests import AS_IT_IS, by_pillow, pixels_of, problem_of
from PIL import Image

from pipeline.core.blocks import TRUNCATED, Problem
from pipeline.images.conversion import Conversion
from pipeline.images.decoding import decode


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


def test_an_image_is_decoded_where_it_is_to_be():
    """Into a row of a larger array, whatever that held; and what cannot be is as without it."""
    for data in jpegs():
        expected = pixels_of(data)
        rows = np.full((3, *expected.shape), 77, np.uint8)
        target = rows[1]
        assert decode(data, AS_IT_IS, out=target).image is target
        assert np.array_equal(target, expected)
        assert (rows[[0, 2]] == 77).all()
        # another shape or type is not decoded into
        for other in (np.full((5, 5), 77, np.uint8), np.full(expected.shape, 77, np.uint16)):
            assert np.array_equal(decode(data, AS_IT_IS, out=other).image, expected)
            assert (other == 77).all()
    turned = with_exif(saved(picture(40, 40), "JPEG"), orientation(6))
    for conversion in (AS_IT_IS, Conversion(resize=(80, 80), crop=(40, 40))):
        expected = decode(turned, conversion).image
        target = np.zeros((40, 40, 3), np.uint8)
        assert np.array_equal(decode(turned, conversion, out=target).image, expected)
    cut = saved(picture(64, 64), "JPEG")[:-40]
    target = np.empty((64, 64, 3), np.uint8)
    assert decode(cut, AS_IT_IS, out=target) == problem_of(cut, AS_IT_IS)


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


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_none(value):
    data = saved(picture(), "JPEG")
    assert np.array_equal(pixels_of(with_exif(data, orientation(value))), pixels_of(data))


def test_threads_decode_the_same():
    files = [*jpegs(), saved(picture(), "PNG"), saved(picture(), "TIFF")]
    alone = [pixels_of(data) for data in files]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(pixels_of, files))
    assert all(map(np.array_equal, alone, together))


# Damage -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("progressive", [False, True])
def test_every_cut_of_a_jpeg_is_found(progressive):
    data = saved(picture(), "JPEG", progressive=progressive)
    for stop in range(1, len(data)):
        assert problem_of(data[:stop]).status == TRUNCATED, stop


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
