"""What the readers of image formats share: a header, its limits, the orientation, a refusal.

Formats are opened by Pillow's classes for them and not by `Image.open`: that tries other formats
too, keeps the reason of a failure to itself, and has a limit on pixels of its own.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageFile

from pipeline.core.blocks import TOO_LARGE, TRUNCATED, UNREADABLE, WRONG_SIZE, Problem
from pipeline.core.errors import printable

LONGEST_DETAIL = 200
GREYS = ("1", "L", "LA", "La")  # the modes of Pillow of one channel, alpha left out
WIDE_GREYS = ("I", "I;16", "I;16B", "I;16L")  # of 16 bits, where its reader scales to all of them
COLOURS = 3
ORIENTATIONS = range(1, 9)
_METADATA = ("exif", "xmp")
Kind = tuple[tuple[int, ...], str]  # shape and dtype
# What Pillow and libtiff say, in parts, where a file ends too early.
_ENDED = (
    "truncated", "end of file", "end-of-file", "only got", "not enough image data", "reached eof",
)  # fmt: skip


class RefusedError(Exception):
    """An image file that cannot be used; `problem` says why."""

    def __init__(self, status: int, detail: str, width: int = 0, height: int = 0) -> None:
        text = printable(" ".join(detail.split()))[:LONGEST_DETAIL]
        super().__init__(text)
        self.problem = Problem(status, text, width, height)


@dataclass(frozen=True)
class Header:
    """What a file says of its image, after its orientation was followed.

    Attributes
    ----------
    width, height
        In pixels.
    channels
        1 (grey), 3 (RGB) or the number of bands, after alpha was dropped.
    dtype
        `uint8` or `uint16`; of some TIFF files `float32` or `float64`.
    """

    width: int
    height: int
    channels: int
    dtype: str

    @property
    def shape(self) -> tuple[int, ...]:
        """[y, x] of grey, else [y, x, channel]."""
        size = (self.height, self.width)
        return size if self.channels == 1 else (*size, self.channels)


@dataclass(frozen=True)
class Opened:
    """An image file of which only the header was read; `load` gives its pixels.

    `several` tells whether it holds more frames or pages than the first, which is the image.
    `load_into`, of a format that can, decodes into an array of the shape and dtype of the header,
    and returns that or another one.
    """

    header: Header
    load: Callable[[], npt.NDArray[Any]]
    several: bool = False
    load_into: Callable[[npt.NDArray[Any]], npt.NDArray[Any]] | None = None

    def pixels(self, out: npt.NDArray[Any] | None) -> npt.NDArray[Any]:
        """Return the pixels, decoded into `out` where that fits and the format can."""
        if out is None or self.load_into is None:
            return self.load()
        fits = out.shape == self.header.shape and out.dtype == self.header.dtype
        return self.load_into(out) if fits else self.load()


Opener = Callable[[bytes, int], Opened]  # of the content of a file, and the most pixels


def make_header(size: tuple[int, int], channels: int, dtype: str, orientation: int) -> Header:
    """Return the header of an image whose file says `size`, [width, height], and a turn."""
    width, height = size if orientation < 5 else size[::-1]
    return Header(width, height, channels, dtype)


def check_pixels(width: int, height: int, most: int) -> None:
    """Raise `RefusedError` where an image has more than `most` pixels, or none."""
    if width < 1 or height < 1:
        raise RefusedError(
            UNREADABLE, f"the header says {width} x {height} pixels, expected 1 x 1 or more"
        )
    if width * height > most:
        raise RefusedError(
            TOO_LARGE,
            f"the header says {width} x {height} pixels, expected at most {most:,} in all; "
            "raise max_pixels to take it",
            *_in_32_bits(width, height),
        )


def check_fits(kind: Kind, expected: Kind, width: int, height: int) -> None:
    """Raise `RefusedError` where the shape and dtype of an image are not those of its set."""
    if kind != expected:
        cures = _cures(kind, expected)
        cure = f"set {', '.join(cures)} to bring all to one" if cures else "leave it out"
        raise RefusedError(
            WRONG_SIZE,
            f"is {_described(*kind)}, expected {_described(*expected)} (height x width); {cure}",
            width,
            height,
        )


def _described(shape: tuple[int, ...], dtype: str) -> str:
    """Say size, mode and depth of images as the settings call them."""
    channels = {(): "grey", (COLOURS,): "RGB"}.get(shape[2:])
    mode = channels or f"{shape[2]} channels"
    floats = " of floats" if dtype.startswith("float") else ""
    return f"{shape[0]} x {shape[1]}, {mode}, {np.dtype(dtype).itemsize * 8} bits{floats}"


def _cures(kind: Kind, expected: Kind) -> list[str]:
    """Return the settings that make of an image one as expected; none where none do."""
    cures: list[str] = []
    channels, types = {kind[0][2:], expected[0][2:]}, {kind[1], expected[1]}
    if len(channels) > 1 and not channels <= {(), (COLOURS,)}:
        return cures
    if len(types) > 1 and not types <= {"uint8", "uint16"}:
        return cures
    if kind[0][:2] != expected[0][:2]:
        cures.append("resize (or crop and pad)")
    if kind[0][2:] != expected[0][2:]:
        cures.append("mode: RGB" if expected[0][2:] == (COLOURS,) else "mode: L")
    if kind[1] != expected[1]:
        cures.append(f"depth: {np.dtype(expected[1]).itemsize * 8}")
    return cures


def _in_32_bits(width: int, height: int) -> tuple[int, int]:
    """Return a size as tables can hold it: 0 x 0 where it is beyond any image."""
    return (width, height) if max(width, height) < 2**31 else (0, 0)


def refusal(error: Exception) -> RefusedError:
    """Say why an image cannot be used from what a reader raised."""
    if isinstance(error, RefusedError):
        return error
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return RefusedError(TOO_LARGE, f"cannot be decoded: {error}")
    if isinstance(error, MemoryError):
        return RefusedError(TOO_LARGE, "the image does not fit into memory")
    text = str(error) or type(error).__name__
    ended = any(part in text.lower() for part in _ENDED)
    # while a header is read, these mean that there was nothing more to read
    ended |= isinstance(error.__cause__ or error, IndexError | EOFError | struct.error)
    return RefusedError(TRUNCATED if ended else UNREADABLE, f"cannot be decoded: {text}")


@contextmanager
def refusing(cut_off: Callable[[str], str]) -> Iterator[None]:
    """Say why a library cannot use a file.

    `cut_off` gets its reason, and says what is missing where a file is known to end too early.
    """
    try:
        yield
    except Exception as error:
        reason = refusal(error)
        missing = cut_off(reason.problem.detail)
        if reason.problem.status == UNREADABLE and missing:
            raise RefusedError(TRUNCATED, missing) from None
        raise reason from None


def read_orientation(load: Callable[[], Image.Exif]) -> int:
    """Return the orientation in metadata, 1 to 8; 1 where there is none, or one without meaning."""
    try:
        value = load().get(ExifTags.Base.Orientation, 1)
    except Exception:  # what is wrong in metadata does not spoil the picture
        return 1
    return value if isinstance(value, int) and value in ORIENTATIONS else 1


def turned(image: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """Turn and mirror an image, [y, x, ...], as its EXIF orientation, 1 to 8, asks for."""
    if orientation in (2, 3, 7, 8):
        image = image[:, ::-1]
    if orientation in (3, 4, 6, 7):
        image = image[::-1]
    if orientation == 1:
        return image
    if orientation < 5:
        return np.ascontiguousarray(image)
    # all bytes of a pixel at once: twice as fast as value by value
    pixel = np.dtype((np.void, image.itemsize * math.prod(image.shape[2:])))
    pixels = np.ascontiguousarray(image).view(pixel).reshape(image.shape[:2])
    across = np.ascontiguousarray(pixels.T).view(image.dtype)
    return across.reshape(image.shape[1], image.shape[0], *image.shape[2:])


# Pillow ----------------------------------------------------------------------------------------


def open_pillow(
    image: ImageFile.ImageFile,
    load: Callable[[], npt.NDArray[Any]] | None = None,
    several: bool = False,
    load_into: Callable[[npt.NDArray[Any]], npt.NDArray[Any]] | None = None,
) -> Opened:
    """Return an image that Pillow has opened, of 8 bits or of 16 of grey.

    Parameters
    ----------
    image
        The image.
    load
        Gives its pixels, grey or RGB, before it is turned; default: as Pillow loads them.
    several
        Whether there are more frames than this one.
    load_into
        As of `Opened`, of an image that is not turned.
    """
    # metadata cost time, so they are only read where there are some
    has_some = any(name in image.info for name in _METADATA)
    orientation = read_orientation(image.getexif) if has_some else 1
    wide = image.mode in WIDE_GREYS
    channels = 1 if wide or image.mode in GREYS else 3
    header = make_header(image.size, channels, "uint16" if wide else "uint8", orientation)
    pixels = load or (lambda: as_grey_or_colour(image, channels))
    into = load_into if orientation == 1 else None
    return Opened(header, lambda: turned(pixels(), orientation), several, into)


def as_grey_or_colour(image: Image.Image, channels: int) -> npt.NDArray[Any]:
    """Return an image as [y, x] for 1 channel, [y, x, 3] for 3; alpha is dropped."""
    if image.mode in WIDE_GREYS:
        return np.asarray(image).astype(np.uint16, copy=False)
    if image.mode == "La":  # alpha multiplied in
        image = image.convert("LA")
    mode = "L" if channels == 1 else "RGB"
    return np.asarray(image if image.mode == mode else image.convert(mode))


def lift_pixel_limit(pixels: int) -> None:
    """Let Pillow load an image that the user's own limit lets through.

    Pillow's limit is a global of the process, and its TIFF and WebP readers look at nothing else.
    It is only ever raised, and only where `max_pixels` was set above it.
    """
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and pixels > limit:
        Image.MAX_IMAGE_PIXELS = pixels
