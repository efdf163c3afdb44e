"""WebP, BMP, GIF, PBM, PGM, PPM, AVIF, JPEG 2000 and rarer formats, through Pillow's readers.

What Pillow would cut down without a word, more than 8 bits in colour, is refused.
"""

from __future__ import annotations

import importlib
import io
import struct
from collections.abc import Callable, Iterator
from typing import Any

from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    ImageFile,
    Jpeg2KImagePlugin,
    PpmImagePlugin,
    QoiImagePlugin,
    SgiImagePlugin,
    SunImagePlugin,
    WebPImagePlugin,
)

from pipeline.core.blocks import TRUNCATED, UNREADABLE
from pipeline.images.headers import (
    Opened,
    Opener,
    RefusedError,
    as_grey_or_colour,
    check_pixels,
    lift_pixel_limit,
    make_header,
    open_pillow,
)

_CODESTREAM = b"\xff\x4f\xff\x51"
_QOI_END = bytes(7) + b"\1"
_RIFF_HEAD = 8
_GIF_HEAD = 6
_GIF_LAST, _GIF_IMAGE, _GIF_EXTENSION = b"\0", b",", b"!"
_CODESTREAM_END = b"\xff\xd9"
_AVIF_BRANDS = {b"avif", b"avis"}
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_CODESTREAM_SIZE = struct.Struct(">8I")
_CURE = "convert the images to 16-bit PNG, or to .npy"
_BOX_HEAD, _LONG_BOX_HEAD = 8, 16


def _simple(reader: Callable[[io.BytesIO], ImageFile.ImageFile]) -> Opener:
    """Return the opener of a format that needs no more than Pillow's reader."""
    return lambda data, max_pixels: _opened(reader(io.BytesIO(data)), max_pixels)


def _opened(image: ImageFile.ImageFile, max_pixels: int) -> Opened:
    check_pixels(*image.size, max_pixels)
    return open_pillow(image)


def _open_pnm(data: bytes, max_pixels: int) -> Opened:
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


def _open_sgi(data: bytes, max_pixels: int) -> Opened:
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


def _open_qoi(data: bytes, max_pixels: int) -> Opened:
    """Read the header of a QOI file."""
    if not data.endswith(_QOI_END):
        raise RefusedError(TRUNCATED, "the QOI is truncated: its last bytes are missing")
    return _opened(QoiImagePlugin.QoiImageFile(io.BytesIO(data)), max_pixels)


# GIF -------------------------------------------------------------------------------------------


def _open_gif(data: bytes, max_pixels: int) -> Opened:
    """Read the header of a GIF file; of an animation, the first frame is the image.

    It has colours by number, and so comes out in colour, also where all of them are grey.
    """
    width, height = struct.unpack_from("<2H", data, _GIF_HEAD)
    check_pixels(width, height, max_pixels)
    image = GifImagePlugin.GifImageFile(io.BytesIO(data))
    check_pixels(*image.size, max_pixels)  # a frame may reach beyond the screen
    several = _has_another_frame(data, image.tile[0].offset)
    header = make_header(image.size, 3, "uint8", 1)
    return Opened(header, lambda: as_grey_or_colour(image, 3), several)


def _has_another_frame(data: bytes, position: int) -> bool:
    """Tell whether an image follows the one whose blocks begin at `position`.

    Raises
    ------
    RefusedError
        Where the file ends within that one.
    """
    position = _after_blocks(data, position)
    if position > len(data):
        raise RefusedError(TRUNCATED, f"the GIF is truncated: its image goes on at {position:,}")
    while data[position : position + 1] == _GIF_EXTENSION:
        position = _after_blocks(data, position + 2)
    return data[position : position + 1] == _GIF_IMAGE


def _after_blocks(data: bytes, position: int) -> int:
    """Return where a chain of blocks, each with its length before it, ends; or beyond the file."""
    while data[position : position + 1] not in (_GIF_LAST, b""):
        position += 1 + data[position]
    return position + 1


# WebP ------------------------------------------------------------------------------------------


def _open_webp(data: bytes, max_pixels: int) -> Opened:
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


# Files of boxes, each with its length before it ----------------------------------------------


def _boxes(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield the name of each box of a file, and where its content begins and ends."""
    position = 0
    while position + _BOX_HEAD <= len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        start = position + _BOX_HEAD
        if length == 1 and position + _LONG_BOX_HEAD <= len(data):
            (length,) = struct.unpack_from(">Q", data, start)
            start = position + _LONG_BOX_HEAD
        end = len(data) if length == 0 else position + length
        if end < start:
            raise RefusedError(UNREADABLE, f"box {name!r} has a length of {length}")
        yield name, start, end
        position = end


# AVIF ------------------------------------------------------------------------------------------


def _is_heif(data: bytes) -> bool:
    """Tell whether a file is of the family of formats that AVIF and HEIC belong to."""
    return data[4:8] == b"ftyp" and bool(_brands(data) & (_AVIF_BRANDS | _HEIC_BRANDS))


def _brands(data: bytes) -> set[bytes]:
    (length,) = struct.unpack_from(">I", data)
    brands = data[_BOX_HEAD : min(length, 256)]
    return {brands[at : at + 4] for at in range(0, len(brands), 4) if at != 4}


def _open_avif(data: bytes, max_pixels: int) -> Opened:
    """Read the header of an AVIF file; of an animation, the first frame is the image.

    Raises
    ------
    RefusedError
        Where it is HEIC, which Pillow does not read, or has more than 8 bits.
    """
    if not _brands(data) & _AVIF_BRANDS:
        raise RefusedError(UNREADABLE, "is a HEIC image, which is not read; convert it to JPEG")
    names = set()
    for name, _, end in _boxes(data):
        names.add(name)
        if end > len(data):
            raise RefusedError(TRUNCATED, f"the AVIF is truncated: {name!r} ends at byte {end:,}")
    if b"mdat" not in names and b"idat" not in data:
        raise RefusedError(TRUNCATED, "the AVIF is truncated: it has no picture")
    _check_avif_depth(data)
    image = _avif_reader()(io.BytesIO(data))
    width, height = image.size
    check_pixels(width, height, max_pixels)
    return open_pillow(image, several=image.n_frames > 1)


def _avif_reader() -> Any:
    try:
        plugin = importlib.import_module("PIL.AvifImagePlugin")
    except ImportError:
        plugin = None
    if not getattr(plugin, "SUPPORTED", False):
        raise RefusedError(
            UNREADABLE, "is an AVIF image, which this Pillow cannot read; install Pillow 11.3"
        )
    # it decodes in as many threads as there are cores, and files are decoded in a thread a core
    plugin.DEFAULT_MAX_THREADS = 1  # type: ignore[union-attr]
    return plugin.AvifImageFile  # type: ignore[union-attr]


def _check_avif_depth(data: bytes) -> None:
    """Raise `RefusedError` where a picture of the file has more than 8 bits."""
    position = data.find(b"av1C")
    while position >= 0:
        flags = data[position + 6 : position + 7] or b"\0"
        if flags[0] & 0x40:
            bits = 12 if flags[0] & 0x20 else 10
            raise RefusedError(UNREADABLE, f"the AVIF has {bits} bits, expected 8; {_CURE}")
        position = data.find(b"av1C", position + 1)


# JPEG 2000 -------------------------------------------------------------------------------------


def _open_jpeg_2000(data: bytes, max_pixels: int) -> Opened:
    """Read the header of a JPEG 2000 file, and of the stream of pixels in it.

    Raises
    ------
    RefusedError
        Where the two differ, the stream has no end, or Pillow would not keep its values.
    """
    stream = _stream(data)
    try:
        right, lower, left, top, *_ = _CODESTREAM_SIZE.unpack_from(stream, 8)
        (channels,) = struct.unpack_from(">H", stream, 40)
        depths = struct.unpack_from("BBB" * channels, stream, 42)[::3]
    except struct.error:
        raise RefusedError(TRUNCATED, "the JPEG 2000 is truncated: it has no size") from None
    size = (right - left, lower - top)
    check_pixels(*size, max_pixels)
    bits = max((depth & 0x7F for depth in depths), default=0) + 1
    if any(depth & 0x80 for depth in depths) or bits > (16 if channels == 1 else 8):
        raise RefusedError(
            UNREADABLE,
            f"the JPEG 2000 has {channels} channels of {bits} bits, expected up to 8, or 16 of "
            f"grey, without sign; {_CURE}",
        )
    if not stream.rstrip(b"\0\r\n").endswith(_CODESTREAM_END):
        raise RefusedError(TRUNCATED, "the JPEG 2000 is truncated: its last marker is missing")
    image = Jpeg2KImagePlugin.Jpeg2KImageFile(io.BytesIO(data))
    if image.size != size:
        raise RefusedError(
            UNREADABLE, f"the JPEG 2000 says {image.size} and {size}, expected one size"
        )
    return open_pillow(image)


def _stream(data: bytes) -> bytes:
    """Return the stream of pixels of a JPEG 2000 file."""
    if data.startswith(_CODESTREAM):
        return data
    for name, start, end in _boxes(data):
        if end > len(data):
            raise RefusedError(
                TRUNCATED, f"the JPEG 2000 is truncated: {name!r} ends at {end:,} of {len(data):,}"
            )
        if name == b"jp2c":
            return data[start:end]
    raise RefusedError(TRUNCATED, "the JPEG 2000 has no pixels")


# The formats -----------------------------------------------------------------------------------

OPENERS: dict[bytes, Opener] = {
    b"GIF87a": _open_gif,
    b"GIF89a": _open_gif,
    **{b"P%d%c" % (kind, space): _open_pnm for kind in range(1, 7) for space in b" \t\n\r"},
    b"BM": _simple(BmpImagePlugin.BmpImageFile),
    b"\x59\xa6\x6a\x95": _simple(SunImagePlugin.SunImageFile),
    b"qoif": _open_qoi,
    b"\x01\xda": _open_sgi,
    b"\0\0\0\x0cjP  \r\n\x87\n": _open_jpeg_2000,
    _CODESTREAM: _open_jpeg_2000,
}


def opener_of(data: bytes) -> Opener | None:
    """Return the opener of a format that is not told by its first bytes alone, or None."""
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _open_webp
    return _open_avif if _is_heif(data) else None
