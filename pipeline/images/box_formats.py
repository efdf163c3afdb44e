"""AVIF and JPEG 2000: files of boxes, each with its length before it, through Pillow.

What Pillow would cut down without a word, more than 8 bits in colour, is refused.
"""

from __future__ import annotations

import importlib
import io
import struct
from collections.abc import Iterator
from typing import Any

from PIL import Jpeg2KImagePlugin

from pipeline.core.blocks import TRUNCATED, UNREADABLE
from pipeline.images.headers import Opened, RefusedError, check_pixels, open_pillow

JP2_MAGICS = (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")
_STREAM = JP2_MAGICS[1]
_END = b"\xff\xd9"
_AVIF_BRANDS = {b"avif", b"avis"}
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_SIZE = struct.Struct(">8I")
_CURE = "convert the images to 16-bit PNG, or to .npy"
_HEAD, _LONG_HEAD = 8, 16


def _boxes(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield the name of each box of a file, and where its content begins and ends."""
    place = 0
    while place + _HEAD <= len(data):
        length, name = struct.unpack_from(">I4s", data, place)
        start = place + _HEAD
        if length == 1 and place + _LONG_HEAD <= len(data):
            (length,) = struct.unpack_from(">Q", data, start)
            start = place + _LONG_HEAD
        end = len(data) if length == 0 else place + length
        if end < start:
            raise RefusedError(UNREADABLE, f"box {name!r} has a length of {length}")
        yield name, start, end
        place = end


# AVIF ------------------------------------------------------------------------------------------


def is_heif(data: bytes) -> bool:
    """Tell whether a file is of the family of formats that AVIF and HEIC belong to."""
    return data[4:8] == b"ftyp" and bool(_brands(data) & (_AVIF_BRANDS | _HEIC_BRANDS))


def _brands(data: bytes) -> set[bytes]:
    (length,) = struct.unpack_from(">I", data)
    brands = data[_HEAD : min(length, 256)]
    return {brands[at : at + 4] for at in range(0, len(brands), 4) if at != 4}


def open_avif(data: bytes, max_pixels: int) -> Opened:
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
    place = data.find(b"av1C")
    while place >= 0:
        flags = data[place + 6 : place + 7] or b"\0"
        if flags[0] & 0x40:
            bits = 12 if flags[0] & 0x20 else 10
            raise RefusedError(UNREADABLE, f"the AVIF has {bits} bits, expected 8; {_CURE}")
        place = data.find(b"av1C", place + 1)


# JPEG 2000 -------------------------------------------------------------------------------------


def open_jpeg_2000(data: bytes, max_pixels: int) -> Opened:
    """Read the header of a JPEG 2000 file, and of the stream of pixels in it.

    Raises
    ------
    RefusedError
        Where the two differ, the stream has no end, or Pillow would not keep its values.
    """
    stream = _stream(data)
    try:
        right, lower, left, top, *_ = _SIZE.unpack_from(stream, 8)
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
    if not stream.rstrip(b"\0\r\n").endswith(_END):
        raise RefusedError(TRUNCATED, "the JPEG 2000 is truncated: its last marker is missing")
    image = Jpeg2KImagePlugin.Jpeg2KImageFile(io.BytesIO(data))
    if image.size != size:
        raise RefusedError(
            UNREADABLE, f"the JPEG 2000 says {image.size} and {size}, expected one size"
        )
    return open_pillow(image)


def _stream(data: bytes) -> bytes:
    """Return the stream of pixels of a JPEG 2000 file."""
    if data.startswith(_STREAM):
        return data
    for name, start, end in _boxes(data):
        if end > len(data):
            raise RefusedError(
                TRUNCATED, f"the JPEG 2000 is truncated: {name!r} ends at {end:,} of {len(data):,}"
            )
        if name == b"jp2c":
            return data[start:end]
    raise RefusedError(TRUNCATED, "the JPEG 2000 has no pixels")
