"""Makes files of formats byte by byte: PNG chunks, TIFF directories, JPEG segments, zlib."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6


def picture(height: int = 24, width: int = 32, channels: int = 3, dtype: str = "uint8"):
    """Return pixels, [y, x] or [y, x, channel], that no two places share by pattern."""
    shape = (height, width) if channels == 1 else (height, width, channels)
    rng = np.random.default_rng(height * width + channels)
    return rng.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def saved(image, kind: str, **options) -> bytes:
    """Return a file of a kind that Pillow writes, of an array or a Pillow image."""
    target = io.BytesIO()
    made = image if isinstance(image, Image.Image) else Image.fromarray(image)
    made.save(target, kind, **options)
    return target.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    """Return a PNG chunk."""
    checksum = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


def png_of(*chunks: tuple[bytes, bytes]) -> bytes:
    """Return a PNG of chunks given as (name, content)."""
    return PNG_MAGIC + b"".join(chunk(name, content) for name, content in chunks)


def start(width: int, height: int, depth: int, colour: int, interlace: int = 0):
    """Return the chunk that a PNG begins with."""
    return b"IHDR", struct.pack(">2I5B", width, height, depth, colour, 0, 0, interlace)


END = (b"IEND", b"")


def rows_of(pixels) -> bytes:
    """Return pixels as the rows of a PNG, big-endian, each after filter 0, compressed."""
    rows = pixels.astype(pixels.dtype.newbyteorder(">")).reshape(len(pixels), -1)
    return zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))


def zeros_compressed(count: int) -> bytes:
    """Return `count` zeros as a zlib stream, without taking the time to compress them all."""
    part = 2**24
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    whole = packer.compress(bytes(part)) + packer.flush(zlib.Z_FULL_FLUSH)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    rest = packer.compress(bytes(count % part)) + packer.flush()
    checksum = (count % 65521) << 16 | 1
    return b"\x78\xda" + whole * (count // part) + rest + struct.pack(">I", checksum)


def tiff_of(tags, order: str = "<", after: bytes = b"", following: int = 0) -> bytes:
    """Return a TIFF of (tag, type, count, value) with `after` behind its only directory."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    entries = b"".join(struct.pack(order + "HHII", *tag) for tag in tags)
    return b"".join(
        (
            mark,
            struct.pack(order + "I", 8),
            struct.pack(order + "H", len(tags)),
            entries,
            struct.pack(order + "I", following),
            after,
        )
    )


def small_tiff(pixels: bytes, width: int, height: int, **other: int) -> bytes:
    """Return an uncompressed 8-bit grey TIFF in one strip; `other` replaces values of tags."""
    values = {"width": width, "height": height, "rows": height, "bytes": len(pixels), **other}
    place = 8 + 2 + 12 * 8 + 4
    tags = [
        (256, 4, 1, values["width"]),
        (257, 4, 1, values["height"]),
        (258, 3, 1, 8),
        (259, 3, 1, 1),
        (262, 3, 1, 1),
        (273, 4, values.get("strips", 1), values.get("offset", place)),
        (278, 4, 1, values["rows"]),
        (279, 4, 1, values["bytes"]),
    ]
    return tiff_of(tags, after=pixels, following=values.get("following", 0))


def patched(data: bytes, place: int, new: bytes) -> bytes:
    """Return `data` with `new` instead of what is at `place`."""
    return data[:place] + new + data[place + len(new) :]


def jpeg_said(data: bytes, width: int, height: int) -> bytes:
    """Return a JPEG whose header says another size."""
    place = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
    return patched(data, place + 5, struct.pack(">HH", height, width))


def with_exif(data: bytes, payload: bytes) -> bytes:
    """Return a JPEG with an Exif segment."""
    content = b"Exif\0\0" + payload
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content + data[2:]


def orientation(value: int) -> bytes:
    """Return the content of an Exif segment that says an orientation."""
    return tiff_of([(274, 3, 1, value)])
