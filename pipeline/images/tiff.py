"""TIFF: the first page, after its directory was checked to lie inside the file.

Pillow reads the directory and knows the kinds of pixels. The libtiff of imagecodecs decodes plain
grey, colours and bands of 8 or 16 bits or of floats, in 0.25 to 0.9 of Pillow's time, also where
Pillow would cut them down without a word: colours of 16 bits, bands beside colours. Pillow decodes
the rest, and what imagecodecs cannot, and says why not. tifffile would read the directory no faster
(55 us, and 30 ms to import), and leaves out tags whose values lie beyond the end of a file, where
what is left may mean other pixels.
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
_TYPES = {
    (8, _UNSIGNED): "uint8", (16, _UNSIGNED): "uint16",
    (32, _FLOAT): "float32", (64, _FLOAT): "float64",
}  # fmt: skip
_BYTES_OF_A_PIXEL = 8  # of RGB with alpha, of 16 bits
_SEPARATE_PLANES = 2
_NO_ALPHA, _ALPHA = 0, 2  # a band; alpha which is not multiplied into the colours

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
    bands = _bands(tags)
    image = None if bands else _open_by_pillow(page, tags)
    _check_bytes(tags, size, max_pixels)
    surplus = _check_parts(tags, len(data), max_pixels)
    if surplus and image is None and _is_kept_by_pillow(tags):
        image = _open_by_pillow(
            page, tags
        )  # which lays them over the others; so it was always read
    turn = tags.get(_TAG.Orientation, 1)
    turn = turn if turn in ORIENTATIONS else 1
    dtype = _type(tags) or "uint8"
    if image is not None:
        dtype = "uint16" if max(_bits(tags)) > 8 else "uint8"
        bands = 1 if dtype == "uint16" or image.mode in GREYS else 3
    header = make_header(size, bands, dtype, turn)
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


def _type(tags: Tags) -> str | None:
    """Return the type of all samples of a pixel, where it is one that is read."""
    kinds = {(bits, kind) for bits in _bits(tags) for kind in _formats(tags)}
    return _TYPES.get(kinds.pop()) if len(kinds) == 1 else None


def _bands(tags: Tags) -> int:
    """Return how many channels libtiff gives as they lie in the file, without alpha; 0: it doesn't.

    They are grey or RGB, and any number of bands that are no alpha.
    """
    colours = 3 if _photometric(tags) == _RGB else 1
    count = tags.get(_TAG.SamplesPerPixel, 1)
    more = count - colours
    extra = tuple(tags.get(_TAG.ExtraSamples, (_ALPHA if more == 1 else _NO_ALPHA,) * more))
    plain = (
        _photometric(tags) in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB)
        and (more == 0 or set(extra[:-1]) <= {_NO_ALPHA})
        and (more == 0 or (len(extra) == more and extra[-1] in (_NO_ALPHA, _ALPHA)))
        and _type(tags) is not None
        and tags.get(_TAG.FillOrder, 1) == 1
        and tags.get(_TAG.Compression, 1) not in _JPEGS
    )
    bands = count - (extra[-1:] == (_ALPHA,))
    inverted = _photometric(tags) == _WHITE_IS_ZERO and (bands > 1 or _FLOAT in _formats(tags))
    return bands if plain and not inverted else 0


def _is_kept_by_pillow(tags: Tags) -> bool:
    """Tell whether Pillow gives the values of a file, and not the upper 8 bits of them."""
    grey = len(_bits(tags)) == 1 and _photometric(tags) == _BLACK_IS_ZERO
    most = 16 if grey and _formats(tags) == {_UNSIGNED} else 8
    return max(_bits(tags)) <= most and _bands(tags) in (0, 1, 3)


def _check_bytes(tags: Tags, size: tuple[int, int], max_pixels: int) -> None:
    """Raise `RefusedError` where bands take more memory than so many pixels may."""
    count, bits = tags.get(_TAG.SamplesPerPixel, 1), max(_bits(tags))
    if size[0] * size[1] * count * bits > max_pixels * _BYTES_OF_A_PIXEL * 8:
        raise RefusedError(
            TOO_LARGE,
            f"the TIFF has {size[0]} x {size[1]} pixels of {count} x {bits} bits, expected at most "
            f"{max_pixels * _BYTES_OF_A_PIXEL:,} bytes; raise max_pixels to take it",
            *size,
        )


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
            f"the TIFF has floats of {bits} bits, expected grey, colours or bands of 32 or 64; "
            "convert the images to .npy, whose floats are packed into 16 bits",
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
            f"the TIFF has {bits} bits a pixel, expected grey or colours of up to 8, or grey, RGB "
            f"or bands of 16 without sign; {_CURE}",
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
    """Let libtiff decode a page, [y, x] or [y, x, channel], of alpha nothing."""
    channels = tags.get(_TAG.SamplesPerPixel, 1)
    planes = tags.get(_TAG.PlanarConfiguration) == _SEPARATE_PLANES
    shape = [tags[_TAG.ImageLength], tags[_TAG.ImageWidth]]
    if channels > 1:
        shape.insert(0 if planes else 2, channels)
    # a page of another shape than its tags say is refused before it is decoded
    image: npt.NDArray[Any] = imagecodecs.tiff_decode(page, out=np.zeros(shape, header.dtype))
    if channels > 1:
        image = np.moveaxis(image, 0, 2) if planes else image
        image = image[..., 0] if header.channels == 1 else image[..., : header.channels]
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        raise RefusedError(
            UNREADABLE, "the TIFF has pixels that are no numbers (NaN or infinite); replace them"
        )
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
