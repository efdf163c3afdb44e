"""WebP, BMP, GIF, PBM, PGM, PPM and rarer formats, through Pillow's readers of them."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable

from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    ImageFile,
    PpmImagePlugin,
    QoiImagePlugin,
    SgiImagePlugin,
    SunImagePlugin,
    WebPImagePlugin,
)

from pipeline.core.blocks import TRUNCATED, UNREADABLE
from pipeline.images.headers import (
    Opened,
    RefusedError,
    as_grey_or_colour,
    check_pixels,
    lift_pixel_limit,
    make_header,
    open_pillow,
)

GIF_MAGICS = (b"GIF87a", b"GIF89a")
PNM_MAGICS = tuple(b"P%d%c" % (kind, space) for kind in range(1, 7) for space in b" \t\n\r")
# Formats that need no more than Pillow's reader.
READERS: dict[bytes, Callable[[io.BytesIO], ImageFile.ImageFile]] = {
    b"BM": BmpImagePlugin.BmpImageFile,
    b"\x59\xa6\x6a\x95": SunImagePlugin.SunImageFile,
}
QOI_MAGIC = b"qoif"
SGI_MAGIC = b"\x01\xda"
_QOI_END = bytes(7) + b"\1"
_RIFF_HEAD = 8
_GIF_LAST, _GIF_IMAGE, _GIF_EXTENSION = b"\0", b",", b"!"


def open_simple(data: bytes, max_pixels: int) -> Opened:
    """Read the header of a file of one of `READERS`."""
    reader = next(reader for magic, reader in READERS.items() if data.startswith(magic))
    return _opened(reader(io.BytesIO(data)), max_pixels)


def _opened(image: ImageFile.ImageFile, max_pixels: int) -> Opened:
    check_pixels(*image.size, max_pixels)
    return open_pillow(image)


def open_pnm(data: bytes, max_pixels: int) -> Opened:
    """Read the header of a PBM, PGM or PPM file; values are stretched to the whole range.

    Raises
    ------
    RefusedError
        Where Pillow would cut 16 bits in colour down to 8.
    """
    image = PpmImagePlugin.PpmImageFile(io.BytesIO(data))
    # where they have no decoder of their own, the whole range is that of 8 or 16 bits
    largest = image.tile[0].args[-1] if isinstance(image.tile[0].args, tuple) else 0
    if image.mode == "RGB" and isinstance(largest, int) and largest > 255:
        raise RefusedError(
            UNREADABLE,
            f"the PPM has colours up to {largest}, expected up to 255; convert the images to "
            "16-bit PNG, or to .npy",
        )
    return _opened(image, max_pixels)


def open_sgi(data: bytes, max_pixels: int) -> Opened:
    """Read the header of an SGI file.

    Raises
    ------
    RefusedError
        Where Pillow would cut 16 bits down to 8.
    """
    image = SgiImagePlugin.SgiImageFile(io.BytesIO(data))
    if data[3] != 1:
        raise RefusedError(
            UNREADABLE, f"the SGI image has {8 * data[3]} bits, expected 8; convert it to PNG"
        )
    return _opened(image, max_pixels)


def open_qoi(data: bytes, max_pixels: int) -> Opened:
    """Read the header of a QOI file."""
    if not data.endswith(_QOI_END):
        raise RefusedError(TRUNCATED, "the QOI is truncated: its last bytes are missing")
    return _opened(QoiImagePlugin.QoiImageFile(io.BytesIO(data)), max_pixels)


# GIF -------------------------------------------------------------------------------------------


def open_gif(data: bytes, max_pixels: int) -> Opened:
    """Read the header of a GIF file; of an animation, the first frame is the image.

    It has colours by number, and so comes out in colour, also where all of them are grey.
    """
    width, height = struct.unpack_from("<2H", data, len(GIF_MAGICS[0]))
    check_pixels(width, height, max_pixels)
    image = GifImagePlugin.GifImageFile(io.BytesIO(data))
    check_pixels(*image.size, max_pixels)  # a frame may reach beyond the screen
    several = _has_another_frame(data, image.tile[0].offset)
    header = make_header(image.size, 3, "uint8", 1)
    return Opened(header, lambda: as_grey_or_colour(image, 3), several)


def _has_another_frame(data: bytes, place: int) -> bool:
    """Tell whether an image follows the one whose blocks begin at `place`.

    Raises
    ------
    RefusedError
        Where the file ends within that one.
    """
    place = _after_blocks(data, place)
    if place > len(data):
        raise RefusedError(TRUNCATED, f"the GIF is truncated: its image goes on at {place:,}")
    while data[place : place + 1] == _GIF_EXTENSION:
        place = _after_blocks(data, place + 2)
    return data[place : place + 1] == _GIF_IMAGE


def _after_blocks(data: bytes, place: int) -> int:
    """Return where a chain of blocks, each with its length before it, ends; or beyond the file."""
    while data[place : place + 1] not in (_GIF_LAST, b""):
        place += 1 + data[place]
    return place + 1


# WebP ------------------------------------------------------------------------------------------


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
    image = WebPImagePlugin.WebPImageFile(io.BytesIO(data))
    return open_pillow(image, several=getattr(image, "n_frames", 1) > 1)


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
