"""TIFF: the first page, through Pillow, after its directory was found to lie inside the file.

What Pillow would cut down without a word (16 bits in colour, 32 bits, floats) is refused.
"""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, TiffImagePlugin

from pipeline.core.blocks import TOO_LARGE, TRUNCATED, UNREADABLE
from pipeline.images.headers import (
    Header,
    Opened,
    RefusedError,
    as_grey_or_colour,
    check_pixels,
    lift_pixel_limit,
    make_header,
    refusal,
)

MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_CURE = "convert the images to 16-bit PNG, or to .npy"
# Bytes of one value of each type of the format.
_TYPE_BYTES = {
    1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4,
    16: 8, 17: 8, 18: 8,
}  # fmt: skip
_MOST_TAGS = 4096
_WHITE_IS_ZERO = 0
_SEPARATE_PLANES = 2
_TAG = ExifTags.Base


def open_tiff(data: bytes, max_pixels: int) -> Opened:
    """Read the directory of the first page of a TIFF file."""
    page, several = _only_first_page(data)
    image = TiffImagePlugin.TiffImageFile(io.BytesIO(page))
    width, height = image.tag_v2[_TAG.ImageWidth], image.tag_v2[_TAG.ImageLength]
    check_pixels(width, height, max_pixels)
    _check_depth(image)
    _check_parts(image, len(data), max_pixels)
    orientation = image.tag_v2.get(_TAG.Orientation, 1)
    turn = orientation if orientation in range(5, 9) else 1
    wide = image.mode.startswith("I;16")
    channels = 1 if wide or image.mode in ("1", "L", "LA", "La") else 3
    header = make_header((width, height), channels, "uint16" if wide else "uint8", turn)
    return Opened(header, lambda: _pixels(image, header, len(data)), several)


def _only_first_page(data: bytes) -> tuple[bytes, bool]:
    """Return the file without the way to its next page, and whether it has one.

    Pillow would look at every page.

    Raises
    ------
    RefusedError
        Where the first directory, or what it points to, is not in the file.
    """
    order, big = "<" if data.startswith(b"II") else ">", 43 in data[2:4]
    offset = struct.Struct(order + ("Q" if big else "I"))
    number = struct.Struct(order + ("Q" if big else "H"))
    try:
        (place,) = offset.unpack_from(data, offset.size)
        (count,) = number.unpack_from(data, place)
        place += number.size
        end = _check_tags(data, order + ("HHQQ" if big else "HHII"), place, count)
        following = data[end : end + offset.size]
    except (struct.error, OverflowError):
        detail = f"the TIFF is truncated: its directory is not in its {len(data):,} bytes"
        raise RefusedError(TRUNCATED, detail) from None
    if any(following):
        return data[:end] + bytes(len(following)) + data[end + offset.size :], True
    return data, False


def _check_tags(data: bytes, form: str, place: int, count: int) -> int:
    """Check that the values of tags lie in the file; return where the tags end."""
    if count > _MOST_TAGS:
        detail = f"the TIFF has {count:,} tags, expected {_MOST_TAGS:,} at most"
        raise RefusedError(UNREADABLE, detail)
    entry = struct.Struct(form)
    inline = (entry.size - 4) // 2  # what fits into the place of an offset
    for start in range(place, place + count * entry.size, entry.size):
        tag, kind, values, offset = entry.unpack_from(data, start)
        needed = values * _TYPE_BYTES.get(kind, 0)
        if needed > inline and offset + needed > len(data):
            raise RefusedError(
                TRUNCATED,
                f"the TIFF is truncated: tag {tag} has {values:,} values at byte {offset:,} of "
                f"{len(data):,}",
            )
    return place + count * entry.size


def _check_depth(image: TiffImagePlugin.TiffImageFile) -> None:
    """Raise `RefusedError` where Pillow would not keep the values that the file holds."""
    wide = image.mode.startswith("I;16")
    bits = image.tag_v2.get(_TAG.BitsPerSample, (1,))
    if image.mode in ("I", "F") or (max(bits) > 8 and not wide):
        raise RefusedError(
            UNREADABLE,
            f"the TIFF has {' '.join(map(str, bits))} bits a pixel, expected up to 8, or 16 of "
            f"grey without sign; {_CURE}",
        )
    if wide and image.tag_v2.get(_TAG.PhotometricInterpretation) == _WHITE_IS_ZERO:
        raise RefusedError(UNREADABLE, f"the TIFF has 16 bits of which 0 is white; {_CURE}")
    if image.mode == "LAB":
        raise RefusedError(UNREADABLE, "the TIFF has LAB colours; convert the images to RGB")


def _check_parts(image: TiffImagePlugin.TiffImageFile, size: int, max_pixels: int) -> None:
    """Raise `RefusedError` where strips or tiles are missing, which Pillow leaves black."""
    tags = image.tag_v2
    width, height = tags[_TAG.ImageWidth], tags[_TAG.ImageLength]
    if _TAG.TileOffsets in tags and _TAG.StripOffsets not in tags:
        across, down = tags[_TAG.TileWidth], tags[_TAG.TileLength]
        if across * down > max(max_pixels, width * height):
            raise RefusedError(
                TOO_LARGE,
                f"the TIFF has tiles of {across} x {down} pixels, expected at most {max_pixels:,}",
                width,
                height,
            )
        offsets = tags[_TAG.TileOffsets]
    else:
        across, down = width, min(tags.get(_TAG.RowsPerStrip, height), height)
        offsets = tags[_TAG.StripOffsets]
    if across < 1 or down < 1:
        raise RefusedError(UNREADABLE, f"the TIFF has parts of {across} x {down} pixels")
    wanted = -(-width // across) * -(-height // down)
    if tags.get(_TAG.PlanarConfiguration) == _SEPARATE_PLANES:
        wanted *= tags.get(_TAG.SamplesPerPixel, 1)
    inside = sum(offset < size for offset in offsets)
    if inside < wanted:
        raise RefusedError(
            TRUNCATED,
            f"the TIFF is truncated: {inside} of {wanted} parts of its image are there",
            width,
            height,
        )


def _pixels(image: TiffImagePlugin.TiffImageFile, header: Header, size: int) -> npt.NDArray[Any]:
    """Return the pixels, which Pillow turns by the orientation itself."""
    lift_pixel_limit(header.width * header.height)
    # after loading, the orientation is no longer among the tags
    ends = _part_ends(image)
    try:
        image.load()
    except OSError as error:
        if max(ends, default=0) > size:
            detail = f"the TIFF is truncated: its image ends at byte {max(ends):,} of {size:,}"
            raise RefusedError(TRUNCATED, detail) from None
        raise refusal(error) from None
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16, copy=False)
    return as_grey_or_colour(image, header.channels)


def _part_ends(image: Image.Image | TiffImagePlugin.TiffImageFile) -> list[int]:
    """Return where in the file each strip or tile ends."""
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    for places, lengths in (
        (_TAG.StripOffsets, _TAG.StripByteCounts),
        (_TAG.TileOffsets, _TAG.TileByteCounts),
    ):
        if places in tags and lengths in tags:
            pairs = zip(tags[places], tags[lengths], strict=False)
            return [place + length for place, length in pairs]
    return []
