"""PNG: every chunk is checked, then those that make the picture are decoded, and no other.

No library checks all that a file promises: Pillow leaves the checksums of pixels and missing rows
unnoticed, the libspng of imagecodecs all checksums; texts and profiles may inflate to any size.
libspng decodes what it knows in 0.4 (28 x 28 pixels) to 0.6 (512 x 512) of Pillow's time; grey
with alpha, and 16 bits of grey or RGB, it does not know: Pillow decodes these, colours of 16 bits
as bytes, since it would cut them down to 8. The libpng of imagecodecs 2026.3.6 knows all, and is
not used: every file that it refuses costs a reference to None and the memory of the image, so
that a process of Python 3.11 aborts after 12,000, and its warnings go to the terminal.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
import numpy.typing as npt
from PIL import Image, PngImagePlugin

from pipeline.core.blocks import TRUNCATED, UNREADABLE
from pipeline.images.headers import (
    Header,
    Opened,
    RefusedError,
    check_pixels,
    make_header,
    read_orientation,
    turned,
)

MAGIC = b"\x89PNG\r\n\x1a\n"
_PICTURE = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
# Bits of each depth that a kind of colour may have, and the channels without alpha.
_GREY, _RGB, _PALETTE, _GREY_ALPHA, _RGB_ALPHA = 0, 2, 3, 4, 6
_DEPTHS = {
    _GREY: (1, 2, 4, 8, 16),
    _RGB: (8, 16),
    _PALETTE: (1, 2, 4, 8),
    _GREY_ALPHA: (8, 16),
    _RGB_ALPHA: (8, 16),
}
_SAMPLES = {_GREY: 1, _RGB: 3, _PALETTE: 1, _GREY_ALPHA: 2, _RGB_ALPHA: 4}
# Of each pass over an interlaced image: its first column and row, and the steps to the next.
_INTERLACED = (
    (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4),
    (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2),
)  # fmt: skip
# The bytes of a chunk before its content, length and name, and after it, the checksum.
_HEAD, _TAIL = 8, 4
Chunk = bytes | memoryview


class _Start(NamedTuple):
    """The content of the chunk IHDR."""

    width: int
    height: int
    depth: int
    colour: int
    compression: int
    filtering: int
    interlace: int


@dataclass(frozen=True)
class _Chunks:
    """What of a file makes the picture.

    Attributes
    ----------
    start
        The header.
    picture
        The chunks that are decoded, each from its length to its checksum, from IHDR to IEND.
    exif
        The content of eXIf; empty where there is none.
    several
        Whether frames of an animation follow.
    """

    start: _Start
    picture: tuple[Chunk, ...]
    exif: bytes
    several: bool

    def file(self) -> bytes:
        """Return a PNG of the picture alone."""
        return MAGIC + b"".join(self.picture)


def open_png(data: bytes, max_pixels: int) -> Opened:
    """Read the header of a PNG file and check all of its chunks."""
    start = _read_start(data)
    check_pixels(start.width, start.height, max_pixels)
    chunks = _collect(data, start)
    orientation = read_orientation(lambda: _exif(chunks.exif))
    channels = 1 if start.colour in (_GREY, _GREY_ALPHA) else 3
    dtype = "uint16" if start.depth == 16 else "uint8"
    header = make_header((start.width, start.height), channels, dtype, orientation)
    return Opened(header, lambda: turned(_pixels(chunks, header), orientation), chunks.several)


def _read_start(data: bytes) -> _Start:
    name, chunk = next(_walk(data))
    content = chunk[_HEAD:-_TAIL]
    if name != b"IHDR" or len(content) != 13:
        raise RefusedError(UNREADABLE, f"the PNG begins with chunk {name!r}, expected IHDR")
    start = _Start(*struct.unpack(">2I5B", content))
    known = start.depth in _DEPTHS.get(start.colour, ())
    if not known or start.compression or start.filtering or start.interlace > 1:
        raise RefusedError(
            UNREADABLE,
            f"the PNG has {start.depth} bits of colour type {start.colour}, compression "
            f"{start.compression}, filter {start.filtering} and interlace {start.interlace}, "
            "which the format does not know",
        )
    return start


def _walk(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Yield the name and all bytes of each chunk up to IEND, after its checksum was compared."""
    view = memoryview(data)
    position, name = len(MAGIC), b""
    while name != b"IEND":
        if position + _HEAD + _TAIL > len(data):
            raise RefusedError(TRUNCATED, f"the PNG is truncated: no IEND in {len(data):,} bytes")
        length, name = struct.unpack_from(">I4s", data, position)
        end = position + _HEAD + length + _TAIL
        if end > len(data):
            raise RefusedError(
                TRUNCATED,
                f"the PNG is truncated: chunk {name!r} ends at byte {end:,} of {len(data):,}",
            )
        (expected,) = struct.unpack_from(">I", data, end - _TAIL)
        if zlib.crc32(view[position + 4 : end - _TAIL]) != expected:
            raise RefusedError(UNREADABLE, f"PNG chunk {name!r} is damaged: its checksum differs")
        yield name, view[position:end]
        position = end


def _collect(data: bytes, start: _Start) -> _Chunks:
    picture, exif, names, several = [], b"", [], False
    for name, chunk in _walk(data):
        if name == b"eXIf":
            exif = bytes(chunk[_HEAD:-_TAIL])
        elif name == b"fdAT":
            several = True
        elif name in _PICTURE:
            names.append(name)
            picture.append(chunk)
        elif not name[0] & 0x20:  # a capital: who does not know it cannot show the picture
            raise RefusedError(UNREADABLE, f"the PNG has chunk {name!r}, which is not known")
    ordered = sorted(names, key=_PICTURE.index) == names
    once = all(names.count(name) == 1 for name in (b"IHDR", b"IEND")) and names.count(b"PLTE") < 2
    if not (ordered and once and b"IDAT" in names):
        raise RefusedError(UNREADABLE, "the PNG has no image data, or its chunks are out of order")
    if start.colour == _PALETTE and b"PLTE" not in names:
        raise RefusedError(UNREADABLE, "the PNG has colours by number, but no palette")
    return _Chunks(start, tuple(picture), exif, several)


def _chunk(name: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(content, zlib.crc32(name))
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


def _exif(content: bytes) -> Image.Exif:
    exif = Image.Exif()
    if content:
        exif.load(b"Exif\0\0" + content)
    return exif


def _pixels(chunks: _Chunks, header: Header) -> npt.NDArray[Any]:
    """Return the pixels as they lie in the file, [y, x] or [y, x, 3]; of alpha nothing is kept."""
    if chunks.start.depth == 16 and chunks.start.colour == _GREY_ALPHA:
        # two bytes of grey and two of alpha lie like four channels of 8 bits
        start = chunks.start._replace(depth=8, colour=_RGB_ALPHA)
        head = _chunk(b"IHDR", struct.pack(">2I5B", *start))
        pairs = _decoded(replace(chunks, start=start, picture=(head, *chunks.picture[1:])))
        return np.ascontiguousarray(pairs).view(">u2")[..., 0].astype(np.uint16)
    image = _decoded(chunks)
    if image.ndim == 2:
        return image
    return image[..., 0] if header.channels == 1 else image[..., :3]


def _decoded(chunks: _Chunks) -> npt.NDArray[Any]:
    """Decode the channels of a picture, [y, x] or [y, x, channel], a palette as its colours."""
    with suppress(RuntimeError):  # Pillow then decides whether it is an image, and says why not
        return imagecodecs.spng_decode(chunks.file())
    image = _opened(chunks)
    image.load()
    _check_rows(chunks, image)
    if chunks.start.depth == 16:
        if chunks.start.colour == _GREY:
            return np.asarray(image).astype(np.uint16, copy=False)
        # Pillow keeps the first byte of two; in the other order of bytes, the second
        other = _opened(chunks)
        other.tile = [tile._replace(args=f"{other.mode};16L") for tile in other.tile]
        wide: npt.NDArray[Any] = np.asarray(image).astype(np.uint16) * 256 + np.asarray(other)
        return wide
    mode = {"1": "L", "P": "RGB"}.get(image.mode, image.mode)
    return np.asarray(image if image.mode == mode else image.convert(mode))


def _opened(chunks: _Chunks) -> PngImagePlugin.PngImageFile:
    return PngImagePlugin.PngImageFile(io.BytesIO(chunks.file()))


def _check_rows(chunks: _Chunks, image: Image.Image) -> None:
    """Raise `RefusedError` where rows are missing, which Pillow leaves 0 without a word.

    They are only counted where the last row is 0, or the rows do not lie in order.
    """
    start = chunks.start
    last = image.crop((0, start.height - 1, start.width, start.height))
    if any(last.tobytes()) and not start.interlace:
        return
    expected = sum(height * (1 + width) for height, width in _passes(start) if width)
    parts = (bytes(part[_HEAD:-_TAIL]) for part in chunks.picture if part[4:_HEAD] == b"IDAT")
    size = len(zlib.decompressobj().decompress(b"".join(parts), expected))
    if size < expected:
        raise RefusedError(
            TRUNCATED, f"the PNG holds {size:,} bytes of pixels, expected {expected:,}"
        )


def _passes(start: _Start) -> Iterator[tuple[int, int]]:
    """Yield the rows, and the bytes of a row without its filter, of each pass over the image."""
    bits = start.depth * _SAMPLES[start.colour]
    for left, top, right, down in _INTERLACED if start.interlace else ((0, 0, 1, 1),):
        height = -(-(start.height - top) // down)
        width = -(-(start.width - left) // right)
        if height > 0:
            yield height, -(-max(0, width) * bits // 8)
