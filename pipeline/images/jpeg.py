"""JPEG: decoded by the libjpeg-turbo of imagecodecs; by Pillow where a file is unusual.

It takes three quarters of Pillow's time, a third of it for images of 32 x 32, gives the same bits
(a test compares), and leaves Python's lock to other threads. What a file lacks it fills with grey
without a word, so it gets none that does not end with the marker of an end, and behind that
the markers of another start, as many as a segment is long: an error for whoever reads so far.
Pillow reads the header where that has anything unusual, decodes CMYK and what imagecodecs cannot,
and says why not.
"""

from __future__ import annotations

import io
import struct
from contextlib import suppress
from functools import partial
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
from PIL import JpegImagePlugin

from pipeline.images.headers import (
    Header,
    Opened,
    as_grey_or_colour,
    check_pixels,
    open_pillow,
    refusing,
)

MAGIC = b"\xff\xd8\xff"

_END = b"\xff\xd9"
_BEYOND = b"\xff\xd8" * 2**15
_START_OF_SCAN, _EXIF_OR_XMP, _ADOBE = 0xDA, 0xE1, 0xEE
_PLAIN_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive; all with Huffman codes
_TABLES = (0xC4, 0xDB, 0xDD)
_APPLICATION, _COMMENT = range(0xE0, 0xF0), 0xFE
_SEGMENT = struct.Struct(">BBH")
_FRAME = struct.Struct(">BHHB")
_PLAIN_CHANNELS = (1, 3)


def open_jpeg(data: bytes, max_pixels: int) -> Opened:
    """Read the header of a JPEG file."""
    header = _plain_header(data)
    if header is not None:
        check_pixels(header.width, header.height, max_pixels)
        load = partial(_pixels, data, header)
        return Opened(header, load, load_into=load)
    image = _open_by_pillow(data)
    check_pixels(*image.size, max_pixels)
    if image.mode == "CMYK":
        return open_pillow(image, lambda: _load_by_pillow(data, image, 3))
    stored = Header(*image.size, len(image.getbands()), "uint8")
    load = partial(_pixels, data, stored)
    return open_pillow(image, load, load_into=load)


def _plain_header(data: bytes) -> Header | None:
    """Return the header of a plain JPEG; None where Pillow is to look at it more closely."""
    position, header = 2, None
    try:
        while True:
            mark, kind, length = _SEGMENT.unpack_from(data, position)
            if mark != 0xFF:
                return None
            if kind == _START_OF_SCAN:
                return header
            if kind in _PLAIN_FRAMES:
                bits, height, width, channels = _FRAME.unpack_from(data, position + 4)
                if header is not None or bits != 8 or channels not in _PLAIN_CHANNELS:
                    return None
                header = Header(width, height, channels, "uint8")
            elif not (kind in _TABLES or kind in _APPLICATION or kind == _COMMENT):
                return None
            if kind in (_EXIF_OR_XMP, _ADOBE):
                return None
            position += 2 + length
    except struct.error:
        return None


def _pixels(
    data: bytes, header: Header, out: npt.NDArray[np.uint8] | None = None
) -> npt.NDArray[Any]:
    """Decode grey or RGB as it lies in the file, before its orientation is followed."""
    if _has_end(data):
        # where the file has another size than its header said, it is refused before decoding
        image = np.empty(header.shape, np.uint8) if out is None else out
        with suppress(RuntimeError, ValueError):
            imagecodecs.jpeg8_decode(data + _BEYOND, out=image)
            return image
    return _load_by_pillow(data, _open_by_pillow(data), header.channels)


def _has_end(data: bytes) -> bool:
    return data.endswith(_END) or data.rstrip(b"\0\r\n").endswith(_END)


def _open_by_pillow(data: bytes) -> JpegImagePlugin.JpegImageFile:
    with refusing(lambda reason: _cut_off(data, reason)):
        return JpegImagePlugin.JpegImageFile(io.BytesIO(data))


def _load_by_pillow(
    data: bytes, image: JpegImagePlugin.JpegImageFile, channels: int
) -> npt.NDArray[Any]:
    with refusing(lambda reason: _cut_off(data, reason)):
        return as_grey_or_colour(image, channels)


def _cut_off(data: bytes, reason: str) -> str:
    return "" if _has_end(data) else f"the JPEG is truncated: {reason}"
