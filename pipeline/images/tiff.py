"""TIFF: the first page, after its directory was checked to lie inside the file.

Pillow reads the directory and knows the kinds of pixels. The libtiff of imagecodecs decodes plain
grey and colours of 8 or 16 bits, in 0.25 to 0.9 of Pillow's time, also where Pillow would cut them
down without a word: colours of 16 bits. Pillow decodes the rest, and what imagecodecs cannot, and
says why not. tifffile would read the directory no faster (55 us, and 30 ms to import), and leaves
out tags whose values lie beyond the end of a file, where what is left may mean other pixels.
"""

from __future__ import annotations

import io
import struct
from contextlib import suppress
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
from PIL import ExifTags, TiffImagePlugin

from pipeline.core.blocks import TOO_LARGE, TRUNCATED, UNREADABLE
from pipeline.images.headers import (
    GREYS,
    ORIENTATIONS,
    Header,
    Opened,
    RefusedError,
    as_grey_or_colour,
    check_pixels,
    lift_pixel_limit,
    make_header,
    refusing,
    turned,
)

MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_CURE = "convert the images to 16-bit PNG, or to .npy"
# Bytes of one value of each type of the format.
_TYPE_BYTES = {
    1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4,
    16: 8, 17: 8, 18: 8,
}  # fmt: skip
_MOST_TAGS = 4096
_TAG = ExifTags.Base
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _LAB = 0, 1, 2, 8
_JPEGS = (6, 7)  # of which libtiff makes RGB with alpha multiplied in
_UNSIGNED, _FLOAT = 1, 3
_SEPARATE_PLANES = 2
_ALPHA = 2  # which is not multiplied into the colours

# What imagecodecs raises, the last where libtiff finds no directory.
_FAILURES = (RuntimeError, ValueError, IndexError)
# What Pillow says, in parts, of kinds of pixels that it does not know.
_UNKNOWN_KIND = ("unknown pixel mode", "samples per pixel")

Tags = TiffImagePlugin.ImageFileDirectory_v2


def open_tiff(data: bytes, max_pixels: int) -> Opened:
    """Read the directory of the first page of a TIFF file."""
    page, several = _first_page(data)
    tags = _read_tags(page)
    size = tags[_TAG.ImageWidth], tags[_TAG.ImageLength]
    check_pixels(*size, max_pixels)
    image = None if _is_plain(tags) else _open_by_pillow(page, tags)
    surplus = _check_parts(tags, len(data), max_pixels)
    if surplus and image is None and _is_kept_by_pillow(tags):
        image = _open_by_pillow(
            page, tags
        )  # which lays them over the others; so it was always read
    turn = tags.get(_TAG.Orientation, 1)
    turn = turn if turn in ORIENTATIONS else 1
    wide = max(_bits(tags)) > 8
    grey = _photometric(tags) != _RGB if image is None else wide or image.mode in GREYS
    header = make_header(size, 1 if grey else 3, "uint16" if wide else "uint8", turn)
    return Opened(header, lambda: _pixels(page, tags, header, turn, image), several)


def _read_tags(page: bytes) -> Tags:
    tags = Tags(page[: 16 if page[2] == 43 else 8])  # of a BigTIFF twice as long
    file = io.BytesIO(page)
    file.seek(tags.next)
    tags.load(file)
    missing = {_TAG.ImageWidth, _TAG.ImageLength} - set(tags)
    if missing:
        raise RefusedError(UNREADABLE, "the TIFF does not say how wide and high its image is")
    return tags


def _first_page(data: bytes) -> tuple[bytes, bool]:
    """Return the file without the link to its next page, and whether it has one.

    Pillow would follow it, and count every page.

    Raises
    ------
    RefusedError
        Where the first directory, or what it points to, is not in the file.
    """
    order, big = "<" if data.startswith(b"II") else ">", 43 in data[2:4]
    offset = struct.Struct(order + ("Q" if big else "I"))
    number = struct.Struct(order + ("Q" if big else "H"))
    try:
        (start,) = offset.unpack_from(data, offset.size)
        (count,) = number.unpack_from(data, start)
        end = _check_tags(data, order + ("HHQQ" if big else "HHII"), start + number.size, count)
        following = data[end : end + offset.size]
    except (struct.error, OverflowError):
        detail = f"the TIFF is truncated: its directory is not in its {len(data):,} bytes"
        raise RefusedError(TRUNCATED, detail) from None
    if any(following):
        return data[:end] + bytes(len(following)) + data[end + offset.size :], True
    return data, False


def _check_tags(data: bytes, form: str, start: int, count: int) -> int:
    """Check that the values of tags lie in the file; return where the tags end."""
    if count > _MOST_TAGS:
        detail = f"the TIFF has {count:,} tags, expected {_MOST_TAGS:,} at most"
        raise RefusedError(UNREADABLE, detail)
    entry = struct.Struct(form)
    inline = (entry.size - 4) // 2  # bytes of a value that stands instead of its offset
    end = start + count * entry.size
    for position in range(start, end, entry.size):
        tag, kind, values, offset = entry.unpack_from(data, position)
        needed = values * _TYPE_BYTES.get(kind, 0)
        if needed > inline and offset + needed > len(data):
            raise RefusedError(
                TRUNCATED,
                f"the TIFF is truncated: tag {tag} has {values:,} values at byte {offset:,} of "
                f"{len(data):,}",
            )
    return end


def _photometric(tags: Tags) -> int:
    return int(tags.get(_TAG.PhotometricInterpretation, _WHITE_IS_ZERO))


def _bits(tags: Tags) -> tuple[int, ...]:
    return tuple(tags.get(_TAG.BitsPerSample, (1,)))


def _formats(tags: Tags) -> set[int]:
    return set(tags.get(_TAG.SampleFormat, (_UNSIGNED,)))


def _is_plain(tags: Tags) -> bool:
    """Tell whether libtiff gives grey or RGB of 8 or 16 bits as they lie in the file."""
    colours = 3 if _photometric(tags) == _RGB else 1
    extra = tags.get(_TAG.SamplesPerPixel, 1) - colours
    return (
        _photometric(tags) in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB)
        and (extra == 0 or (extra == 1 and tags.get(_TAG.ExtraSamples, (_ALPHA,)) == (_ALPHA,)))
        and set(_bits(tags)) in ({8}, {16})
        and _formats(tags) == {_UNSIGNED}
        and tags.get(_TAG.FillOrder, 1) == 1
        and tags.get(_TAG.Compression, 1) not in _JPEGS
    )


def _is_kept_by_pillow(tags: Tags) -> bool:
    """Tell whether Pillow gives the values of a file, and not the upper 8 bits of them."""
    grey = len(_bits(tags)) == 1 and _photometric(tags) == _BLACK_IS_ZERO
    most = 16 if grey and _formats(tags) == {_UNSIGNED} else 8
    return max(_bits(tags)) <= most


def _check_parts(tags: Tags, size: int, max_pixels: int) -> bool:
    """Return whether there are more strips or tiles than the image needs.

    Raises
    ------
    RefusedError
        Where some are missing, which Pillow leaves black.
    """
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
    expected = -(-width // across) * -(-height // down)
    if tags.get(_TAG.PlanarConfiguration) == _SEPARATE_PLANES:
        expected *= tags.get(_TAG.SamplesPerPixel, 1)
    inside = sum(offset < size for offset in offsets)
    if inside < expected:
        raise RefusedError(
            TRUNCATED,
            f"the TIFF is truncated: {inside} of {expected} parts of its image are there",
            width,
            height,
        )
    return bool(len(offsets) > expected)


def _open_by_pillow(page: bytes, tags: Tags) -> TiffImagePlugin.TiffImageFile:
    """Let Pillow open a page.

    Raises
    ------
    RefusedError
        Where it does not know the kind of pixels, or would not keep their values.
    """
    bits = " ".join(map(str, _bits(tags)))
    if _photometric(tags) == _LAB:
        raise RefusedError(UNREADABLE, "the TIFF has LAB colours; convert the images to RGB")
    if _FLOAT in _formats(tags):
        raise RefusedError(
            UNREADABLE,
            f"the TIFF has floats of {bits} bits, expected whole numbers; convert the images to "
            ".npy, whose floats are packed into 16 bits",
        )
    try:
        image = TiffImagePlugin.TiffImageFile(io.BytesIO(page))
    except SyntaxError as error:
        if not any(words in str(error) for words in _UNKNOWN_KIND):
            raise
        image = None
    if image is None or not _is_kept_by_pillow(tags):
        raise RefusedError(
            UNREADABLE,
            f"the TIFF has {bits} bits a pixel, expected grey or colours of up to 8, or grey or "
            f"RGB of 16 without sign; {_CURE}",
        )
    return image


def _pixels(
    page: bytes,
    tags: Tags,
    header: Header,
    turn: int,
    image: TiffImagePlugin.TiffImageFile | None,
) -> npt.NDArray[Any]:
    """Decode a page, by libtiff where Pillow has not opened it."""
    with refusing(lambda _: _cut_off(tags, len(page))):
        if image is None:
            with suppress(*(_FAILURES if _is_kept_by_pillow(tags) else ())):
                return turned(_decoded(page, tags, header), turn)
            image = _open_by_pillow(page, tags)
        lift_pixel_limit(header.width * header.height)
        image.load()  # which turns it
        return as_grey_or_colour(image, header.channels)


def _decoded(page: bytes, tags: Tags, header: Header) -> npt.NDArray[Any]:
    """Let libtiff decode grey or RGB, [y, x] or [y, x, 3], of alpha nothing."""
    channels = tags.get(_TAG.SamplesPerPixel, 1)
    planes = tags.get(_TAG.PlanarConfiguration) == _SEPARATE_PLANES
    shape = [tags[_TAG.ImageLength], tags[_TAG.ImageWidth]]
    if channels > 1:
        shape.insert(0 if planes else 2, channels)
    # a page of another shape than its tags say is refused before it is decoded
    image: npt.NDArray[Any] = imagecodecs.tiff_decode(page, out=np.zeros(shape, header.dtype))
    if channels > 1:
        image = np.moveaxis(image, 0, 2) if planes else image
        image = image[..., 0] if header.channels == 1 else image[..., :3]
    return ~image if _photometric(tags) == _WHITE_IS_ZERO else image


def _cut_off(tags: Tags, size: int) -> str:
    """Say so where the last strip or tile ends beyond a file of `size` bytes."""
    for offsets, lengths in (
        (_TAG.StripOffsets, _TAG.StripByteCounts),
        (_TAG.TileOffsets, _TAG.TileByteCounts),
    ):
        if offsets in tags and lengths in tags:
            end = max(map(sum, zip(tags[offsets], tags[lengths], strict=False)), default=0)
            if end > size:
                return f"the TIFF is truncated: its image ends at byte {end:,} of {size:,}"
    return ""
