"""WebP and BMP, through Pillow's readers of these formats."""

from __future__ import annotations

import io
import struct

from PIL import BmpImagePlugin, WebPImagePlugin

from pipeline.decoding_parts import (
    Opened,
    RefusedError,
    check_pixels,
    lift_pixel_limit,
    open_pillow,
)
from pipeline.sources import TRUNCATED, UNREADABLE

_RIFF_HEAD = 8


def open_bmp(data: bytes, max_pixels: int) -> Opened:
    """Read the header of a BMP file."""
    image = BmpImagePlugin.BmpImageFile(io.BytesIO(data))
    check_pixels(*image.size, max_pixels)
    return open_pillow(image)


def open_webp(data: bytes, max_pixels: int) -> Opened:
    """Read the header of a WebP file; of an animation, the first frame is the image."""
    (length,) = struct.unpack_from("<I", data, 4)
    if length + _RIFF_HEAD > len(data):
        raise RefusedError(
            TRUNCATED,
            f"the WebP is truncated: it has {len(data):,} of {length + _RIFF_HEAD:,} bytes",
        )
    # Pillow's reader makes room for the whole canvas when it opens a file
    width, height = _webp_size(data)
    check_pixels(width, height, max_pixels)
    lift_pixel_limit(width * height)
    return open_pillow(WebPImagePlugin.WebPImageFile(io.BytesIO(data)))


def _webp_size(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L" and data[20:21] == b"\x2f":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<2H", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    raise RefusedError(UNREADABLE, f"the WebP has chunk {kind!r}, expected an image")
