"""JPEG: decoded by Pillow or by torchvision, whichever a job has chosen; see `decoder_choice`.

torchvision takes three quarters of Pillow's time, and leaves more of it to other threads. The
header of a file with anything unusual is read by Pillow; CMYK is decoded by it too, and so is
what torchvision cannot decode: Pillow then decides whether that is an image, and says why not.
"""

from __future__ import annotations

import importlib
import io
import struct
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import JpegImagePlugin

from pipeline.core.blocks import TRUNCATED, UNREADABLE
from pipeline.images.headers import (
    Header,
    Opened,
    RefusedError,
    as_grey_or_colour,
    check_pixels,
    open_pillow,
    refusal,
)

MAGIC = b"\xff\xd8\xff"
Decoder = Callable[[bytes], npt.NDArray[np.uint8] | None]

_START_OF_SCAN, _EXIF_OR_XMP, _ADOBE = 0xDA, 0xE1, 0xEE
_PLAIN_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive; all with Huffman codes
_TABLES = (0xC4, 0xDB, 0xDD)
_APPLICATION, _COMMENT = range(0xE0, 0xF0), 0xFE
_SEGMENT = struct.Struct(">BBH")
_FRAME = struct.Struct(">BHHB")
_PLAIN_CHANNELS = (1, 3)


def open_jpeg(data: bytes, max_pixels: int, torchvision: bool = False) -> Opened:
    """Read the header of a JPEG file; `torchvision` tells whether that decodes its pixels."""
    header = _plain_header(data)
    if header is not None:
        check_pixels(header.width, header.height, max_pixels)
        return Opened(header, lambda: _pixels(data, header, torchvision))
    image = _open(data)
    check_pixels(*image.size, max_pixels)
    if image.mode == "CMYK":
        return open_pillow(image, lambda: _pillow_pixels(data, image, 3))
    said = Header(*image.size, len(image.getbands()), "uint8")
    return open_pillow(image, lambda: _pixels(data, said, torchvision))


def _plain_header(data: bytes) -> Header | None:
    """Return the header of a plain JPEG; None where Pillow is to look at it more closely."""
    place, found = 2, None
    try:
        while True:
            mark, kind, length = _SEGMENT.unpack_from(data, place)
            if mark != 0xFF:
                return None
            if kind == _START_OF_SCAN:
                return found
            if kind in _PLAIN_FRAMES:
                bits, height, width, channels = _FRAME.unpack_from(data, place + 4)
                if found is not None or bits != 8 or channels not in _PLAIN_CHANNELS:
                    return None
                found = Header(width, height, channels, "uint8")
            elif not (kind in _TABLES or kind in _APPLICATION or kind == _COMMENT):
                return None
            if kind in (_EXIF_OR_XMP, _ADOBE):
                return None
            place += 2 + length
    except struct.error:
        return None


def _pixels(data: bytes, header: Header, torchvision: bool) -> npt.NDArray[Any]:
    """Decode grey or RGB as it lies in the file, before its orientation is followed."""
    decoder = torchvision_decoder() if torchvision else None
    if decoder is not None:
        found = decoder(data)
        if found is not None and found.shape == (header.height, header.width, header.channels):
            return found[:, :, 0] if header.channels == 1 else found
    return _pillow_pixels(data, _open(data), header.channels)


# Pillow ----------------------------------------------------------------------------------------


def _open(data: bytes) -> JpegImagePlugin.JpegImageFile:
    try:
        return JpegImagePlugin.JpegImageFile(io.BytesIO(data))
    except Exception as error:
        raise _refusal(error, data) from None


def _pillow_pixels(
    data: bytes, image: JpegImagePlugin.JpegImageFile, channels: int
) -> npt.NDArray[Any]:
    try:
        return as_grey_or_colour(image, channels)
    except Exception as error:
        raise _refusal(error, data) from None


def _refusal(error: Exception, data: bytes) -> RefusedError:
    """Say why a JPEG cannot be used; without its last marker it was cut off."""
    found = refusal(error)
    if found.problem.status == UNREADABLE and not data.rstrip(b"\0\r\n").endswith(b"\xff\xd9"):
        return RefusedError(TRUNCATED, f"the JPEG is truncated: {found.problem.detail}")
    return found


# torchvision -----------------------------------------------------------------------------------


@cache
def torchvision_decoder() -> Decoder | None:
    """Return a decoder to [y, x, channel]; None where torchvision is not there or has none.

    Loading it takes seconds. It runs in the thread that calls it, and leaves Python's lock to the
    others meanwhile. Its Python wrapper announces that it will go, which is nothing that users
    could act on.
    """
    try:
        torch = importlib.import_module("torch")
        importlib.import_module("torchvision.io")
        operator = torch.ops.image.decode_jpeg.default
    except (ImportError, AttributeError, RuntimeError):
        return None

    def decode(data: bytes) -> npt.NDArray[np.uint8] | None:
        # a copy that may be written to, as torch asks for; 0: the channels as they are
        content = torch.from_numpy(np.frombuffer(bytearray(data), np.uint8))
        try:
            found = operator(content, 0, False)
        except RuntimeError:
            return None
        pixels: npt.NDArray[np.uint8] = found.permute(1, 2, 0).numpy()
        return pixels

    return decode
