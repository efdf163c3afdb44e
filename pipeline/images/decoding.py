"""Decodes the bytes of one image file, of whatever content, into pixels or the reason why not.

The header is read first: an image that is too large, or that does not fit the others of its set,
is refused before a pixel of it is decoded. A format is recognised by content, never by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from pipeline.core.blocks import TOO_LARGE, TRUNCATED, UNREADABLE, WRONG_SIZE, Problem
from pipeline.core.errors import ShapeError
from pipeline.images.conversion import Conversion
from pipeline.images.headers import Kind, Opened, Opener, RefusedError, check_fits, refusal
from pipeline.images.jpeg import MAGIC as JPEG_MAGIC
from pipeline.images.jpeg import open_jpeg
from pipeline.images.pillow_formats import OPENERS as PILLOW_OPENERS
from pipeline.images.pillow_formats import opener_of
from pipeline.images.png import MAGIC as PNG_MAGIC
from pipeline.images.png import open_png
from pipeline.images.tiff import MAGICS as TIFF_MAGICS
from pipeline.images.tiff import open_tiff

_OPENERS: dict[bytes, Opener] = {
    JPEG_MAGIC: open_jpeg,
    PNG_MAGIC: open_png,
    **dict.fromkeys(TIFF_MAGICS, open_tiff),
    **PILLOW_OPENERS,
}
FORMATS = "PNG, JPEG, WebP, BMP, TIFF, GIF, AVIF, JPEG 2000, PBM, PGM, PPM, QOI, SGI or Sun raster"
_SHOWN_BYTES = 16


@dataclass(frozen=True)
class Decoded:
    """A decoded image.

    Attributes
    ----------
    image
        [y, x] or [y, x, channel], uint8 or uint16, or floats, after the conversion.
    width, height
        In pixels, after the orientation of the file was followed and before the conversion.
    several
        Whether the file holds more frames or pages than the first, which this is.
    """

    image: npt.NDArray[Any]
    width: int
    height: int
    several: bool = False


def decode(
    data: bytes,
    conversion: Conversion,
    expected: Kind | None = None,
    pack: Callable[[npt.NDArray[Any]], npt.NDArray[Any]] | None = None,
    out: npt.NDArray[Any] | None = None,
) -> Decoded | Problem:
    """Decode an image file and convert the image.

    It is one of `FORMATS`; of several frames or pages the first. Grey and RGB of 8 and 16 bits stay
    what they are, and so do bands and floats of TIFF files; black and white becomes 0 and 255.
    Palettes, CMYK and YCbCr become RGB, as Pillow converts them; alpha is dropped, without
    blending. The EXIF orientation is followed.

    Parameters
    ----------
    data
        The content of the file.
    conversion
        What is done to the image.
    expected
        Shape and dtype that the image must have after the conversion; None: any. Of floats the
        dtype is that before they are packed.
    pack
        What makes uint16 of floats, before the conversion; None: they stay, and are not converted.
    out
        An array of any content that the image may be decoded into, and then is: most JPEG files
        that need no conversion. The image that is returned says where it is.

    Returns
    -------
    The image, or why it cannot be used: `UNREADABLE`, `TRUNCATED`, `TOO_LARGE` (more pixels than
    `conversion.max_pixels`) or `WRONG_SIZE` (not as expected). Nothing is raised for what
    the content of a file is.
    """
    width = height = 0
    try:
        opened = _open(data, conversion)
        header = opened.header
        width, height = header.width, header.height
        _check_output(opened, conversion, expected)
        image = opened.pixels(out)
        if image.shape != header.shape or image.dtype != header.dtype:
            raise RefusedError(
                UNREADABLE,
                f"decodes to {image.shape} {image.dtype}, its header says {header.shape} "
                f"{header.dtype}",
            )
        if pack is not None:
            image = pack(image)
        if image.dtype.kind != "f" or conversion.describe():
            image = conversion.apply(image)
        return Decoded(image, width, height, opened.several)
    except Exception as error:  # whatever a library raises at hostile bytes, it is about this file
        return _problem(error, width, height)


def probe(data: bytes, conversion: Conversion) -> Kind | Problem:
    """Return the shape and dtype that `decode` gives, from the header alone; or why it cannot."""
    try:
        opened = _open(data, conversion)
        return _check_output(opened, conversion, None)
    except Exception as error:
        return _problem(error, 0, 0)


def _problem(error: Exception, width: int, height: int) -> Problem:
    problem = refusal(error).problem
    if problem.width and problem.height:
        return problem
    return Problem(problem.status, problem.detail, width, height)


def _open(data: bytes, conversion: Conversion) -> Opened:
    if not data:
        raise RefusedError(UNREADABLE, "the file is empty")
    by_magic = (opener for magic, opener in _OPENERS.items() if data.startswith(magic))
    opener = next(by_magic, None) or opener_of(data)
    if opener is not None:
        return opener(data, conversion.max_pixels)
    if any(magic.startswith(data) for magic in _OPENERS):
        raise RefusedError(TRUNCATED, f"the file is truncated: it has {len(data)} bytes")
    raise RefusedError(
        UNREADABLE,
        f"the file begins with {data[:_SHOWN_BYTES]!r}, expected a {FORMATS} image",
    )


def _check_output(opened: Opened, conversion: Conversion, expected: Kind | None) -> Kind:
    """Return the shape and dtype that an image comes out with.

    Raises
    ------
    RefusedError
        Where it cannot be converted so, comes out too large, or not as expected.
    """
    header = opened.header
    try:
        kind = conversion.output(header.shape), conversion.output_type(header.dtype)
    except ShapeError as error:
        raise RefusedError(WRONG_SIZE, str(error), header.width, header.height) from None
    if expected is not None:
        wanted = tuple(expected[0]), expected[1]
        check_fits(kind, wanted, header.width, header.height)
    height, width = conversion.resized(header.height, header.width)
    if isinstance(conversion.resize, int) and height * width > conversion.max_pixels:
        raise RefusedError(
            TOO_LARGE,
            f"{header.width} x {header.height} pixels become {width} x {height} by the resize, "
            f"expected at most {conversion.max_pixels:,} in all",
            header.width,
            header.height,
        )
    return kind
