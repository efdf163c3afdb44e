"""Brings images of different kinds to one: depth, mode, resize, crop, pad, in this order.

The shape and type that come out follow from those that go in, so that an image that does not fit
a set is refused from its header. What a conversion would leave as it is, such as an image that is
smaller than the crop, is refused: it would go in unconverted without a word.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.core.errors import ConfigError, ShapeError
from pipeline.storage.manifest import RESIZE_METHOD

Mode = Literal["L", "RGB"]
Depth = Literal[8, 16]

MAX_PIXELS = 50_000_000
MODE_METHODS = {
    "L": "grey: (19595 R + 38470 G + 7471 B + 32768) // 65536, as Pillow",
    "RGB": "colour: grey repeated",
}
DEPTH_METHODS = {
    8: "16 bits: (v + 128) // 257, which is v * 255 / 65535 rounded; 8 bits as they are",
    16: "8 bits: v * 257, which is v * 65535 / 255; 16 bits as they are",
}
# From one step of 8 bits to the next, in steps of 16 bits: 65535 / 255.
STEP = 257
# The weights of red, green and blue in 65536ths; they add up to 65536.
GREY_WEIGHTS = (19595, 38470, 7471)
GREY_BITS = 16
COLOURS = 3


@dataclass(frozen=True)
class Conversion:
    """What is done to every image of a set.

    Attributes
    ----------
    resize
        [height, width] to scale to; one number: the length of the shorter side, the aspect kept
        and the longer side rounded down.
    crop
        [height, width]: a longer side is cut to it, as much before as after (of an odd number
        of pixels one more after). A shorter side needs `pad` to fill it up at least as far.
    pad
        [height, width]: a shorter side is filled up to it with 0, as much before as after (of an
        odd number one more after). A longer side needs `crop` to cut it.
    mode
        `L`: grey, `RGB`: three channels; None: as the image is.
    depth
        8: 16 bits are rounded to the nearest of 8; 16: 8 bits are spread over 16; None: as the
        image is. It comes first, so that an image comes out as its copy of that depth would.
    max_pixels
        The most pixels that an image file may say it has; and the most that a resize by the
        shorter side may make of it.

    Raises
    ------
    ConfigError
        Where a size is not one or two integers above 0, the mode or depth is another, or
        a side of `pad` is below that of `crop`.
    """

    resize: tuple[int, int] | int | None = None
    crop: tuple[int, int] | None = None
    pad: tuple[int, int] | None = None
    mode: Mode | None = None
    max_pixels: int = MAX_PIXELS
    depth: Depth | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.resize, int):
            object.__setattr__(self, "resize", _size("resize", self.resize))
        elif self.resize < 1:
            raise ConfigError(f"resize is {self.resize}, expected 1 or more pixels")
        object.__setattr__(self, "crop", _size("crop", self.crop))
        object.__setattr__(self, "pad", _size("pad", self.pad))
        if self.mode is not None and self.mode not in get_args(Mode):
            raise ConfigError(f"mode is {self.mode!r}, expected L, RGB or none")
        if self.depth is not None and self.depth not in get_args(Depth):
            raise ConfigError(f"depth is {self.depth!r}, expected 8, 16 or none")
        if self.crop and self.pad and any(map(operator.gt, self.crop, self.pad)):
            raise ConfigError(
                f"crop is {_text(self.crop)} and pad {_text(self.pad)} (height x width), expected "
                "no side of pad below that of crop; give both one size"
            )
        if self.max_pixels < 1:
            raise ConfigError(f"max_pixels is {self.max_pixels}, expected 1 or more")

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width of an image after the resize, before crop and pad."""
        if self.resize is None:
            return height, width
        if isinstance(self.resize, tuple):
            return self.resize
        short = min(height, width)
        return self.resize * height // short, self.resize * width // short

    def output(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of what `apply` gives for an image of `shape`.

        Raises
        ------
        ShapeError
            Where `shape` is not [y, x] or [y, x, channel], its channels have no such mode, or it
            is smaller than the crop or larger than the pad.
        """
        size = self.resized(shape[0], shape[1]) if len(shape) > 1 else (0, 0)
        channels = self._channels(shape)
        if self.crop is not None:
            self._check_crop(size, self.crop)
            size = min(size[0], self.crop[0]), min(size[1], self.crop[1])
        if self.pad is not None:
            self._check_pad(size, self.pad)
            size = self.pad
        return (*size, *channels)

    def output_type(self, dtype: str) -> str:
        """Return the type of what `apply` gives for an image of `dtype`.

        Raises
        ------
        ShapeError
            Where a depth was given and it is neither uint8 nor uint16.
        """
        if self.depth is None:
            return dtype
        if dtype not in ("uint8", "uint16"):
            raise ShapeError(
                f"depth: {self.depth} is for images of 8 or 16 bits, these are {dtype}; leave the "
                "depth out"
            )
        return f"uint{self.depth}"

    def _check_crop(self, size: tuple[int, int], crop: tuple[int, int]) -> None:
        """Raise `ShapeError` where a side is shorter than the crop, and nothing fills it up."""
        if any(
            have < want and (self.pad is None or self.pad[side] < want)
            for side, (have, want) in enumerate(zip(size, crop, strict=True))
        ):
            raise ShapeError(
                f"crop is {_text(crop)} (height x width), larger than an image of {_text(size)}"
                f"{self._after()}; crop less, resize, or fill up with pad: {list(crop)}"
            )

    def _check_pad(self, size: tuple[int, int], pad: tuple[int, int]) -> None:
        """Raise `ShapeError` where a side is longer than what it is to be filled up to."""
        if any(have > want for have, want in zip(size, pad, strict=True)):
            raise ShapeError(
                f"pad is {_text(pad)} (height x width), smaller than an image of {_text(size)}"
                f"{self._after()}; pad more, resize, or cut with crop: {list(pad)}"
            )

    def _after(self) -> str:
        return " after the resize" if self.resize is not None else ""

    def _channels(self, shape: Sequence[int]) -> tuple[int, ...]:
        if len(shape) not in (2, 3) or 0 in shape:
            raise ShapeError(
                f"an image has shape {tuple(shape)}, expected [y, x] or [y, x, channel]"
            )
        channels = tuple(shape[2:])
        if self.mode is None:
            return channels
        if channels not in ((), (1,), (COLOURS,)):
            raise ShapeError(
                f"an image has {channels[0]} channels, expected 1 or 3 for mode {self.mode}; "
                "leave the mode out"
            )
        return () if self.mode == "L" else (COLOURS,)

    def apply(self, image: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Convert one image.

        Grey is made with Pillow's weights in integers, of 16 bits as of 8. The resize is
        Pillow's, bilinear and antialiased, the same bits as torchvision's (v2) of a Pillow image:
        of 8 bits in fixed-point arithmetic, which gives the same bits on every machine; of 16
        bits in float64 (mode `I`, each channel for itself, rounded after each direction), which
        the same build of Pillow repeats bit for bit, and which another processor may round
        otherwise by 1.

        Parameters
        ----------
        image
            [y, x] or [y, x, channel], uint8 or uint16.

        Returns
        -------
        [y, x] or [y, x, channel], uint8 or uint16; `image` itself where nothing is to be done.

        Raises
        ------
        ShapeError
            Where `image` is of another type, or of a shape that `output` refuses.
        """
        if image.dtype not in (np.uint8, np.uint16):
            raise ShapeError(f"an image has {image.dtype} pixels, expected uint8 or uint16")
        height, width, *_ = self.output(image.shape)
        if self.depth is not None:
            image = _of_depth(image, self.depth)
        if self.mode is not None:
            image = _grey(image) if self.mode == "L" else _coloured(image)
        target = self.resized(*image.shape[:2])
        if target != image.shape[:2]:
            image = _resized(image, target)
        if self.crop is not None:
            image = _cropped(image, self.crop)
        return _padded(image, (height, width))

    def describe(self) -> dict[str, Any]:
        """Return what is done and how, as plain JSON; empty where nothing is done."""
        size: dict[str, Any] = {"shorter_side": self.resize}
        if isinstance(self.resize, tuple):
            size = {"size": list(self.resize)}
        steps = {
            "depth": self.depth and {"to": self.depth, "method": DEPTH_METHODS[self.depth]},
            "mode": self.mode and {"to": self.mode, "method": MODE_METHODS[self.mode]},
            "resize": self.resize and {**size, "method": RESIZE_METHOD},
            "crop": self.crop and {"size": list(self.crop), "method": "centre"},
            "pad": self.pad and {"size": list(self.pad), "method": "centre, filled with 0"},
        }
        return {name: step for name, step in steps.items() if step}


def _size(name: str, value: Sequence[int] | None) -> tuple[int, int] | None:
    """Return a size as a pair; also of a list, as JSON has it."""
    if value is None:
        return None
    pair = tuple(value) if isinstance(value, list | tuple) else ()
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise ConfigError(f"{name} is {value!r}, expected [height, width], each 1 or more")
    return pair[0], pair[1]


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _of_depth(image: npt.NDArray[Any], depth: int) -> npt.NDArray[Any]:
    """Bring 8 bits to 16, or 16 to 8; back and forth gives the same 8 bits."""
    if image.dtype.itemsize * 8 == depth:
        return image
    if depth == 16:
        return image.astype(np.uint16) * np.uint16(STEP)
    rounded = image // STEP
    # the remainder rounds up from half on; 65535 has none, so that nothing overflows
    rounded += image % STEP > STEP // 2
    return rounded.astype(np.uint8)


def _grey(image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if image.shape[2:] != (COLOURS,):
        return image.reshape(image.shape[:2])
    if image.dtype == np.uint8:
        return np.asarray(Image.fromarray(np.ascontiguousarray(image)).convert("L"))
    # 65535 * 65536 + 32768 fits 32 bits without sign
    total = np.full(image.shape[:2], 1 << (GREY_BITS - 1), np.uint32)
    for channel, weight in enumerate(GREY_WEIGHTS):
        total += image[:, :, channel] * np.uint32(weight)
    return (total >> GREY_BITS).astype(image.dtype)


def _coloured(image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if image.shape[2:] == (COLOURS,):
        return image
    return np.repeat(image.reshape(*image.shape[:2], 1), COLOURS, axis=2)


def _resized(image: npt.NDArray[Any], size: tuple[int, int]) -> npt.NDArray[Any]:
    """Resize; Pillow has no mode for other numbers of channels, nor for 16 bits in colour."""
    if image.ndim == 3 and (image.shape[2] != COLOURS or image.dtype != np.uint8):
        channels = [_resized(image[:, :, number], size) for number in range(image.shape[2])]
        return np.stack(channels, axis=2)
    wide = np.ascontiguousarray(image, np.uint8 if image.dtype == np.uint8 else np.int32)
    smaller = Image.fromarray(wide).resize(size[::-1], Image.Resampling.BILINEAR)
    return np.asarray(smaller).astype(image.dtype, copy=False)


def _cropped(image: npt.NDArray[Any], size: tuple[int, int]) -> npt.NDArray[Any]:
    cuts = []
    for length, most in zip(image.shape, size, strict=False):
        start = max(0, length - most) // 2
        cuts.append(slice(start, start + min(length, most)))
    return image[tuple(cuts)]


def _padded(image: npt.NDArray[Any], size: tuple[int, int]) -> npt.NDArray[Any]:
    if image.shape[:2] == size:
        return image
    top, left = ((want - have) // 2 for want, have in zip(size, image.shape, strict=False))
    wide = np.zeros((*size, *image.shape[2:]), image.dtype)
    wide[top : top + image.shape[0], left : left + image.shape[1]] = image
    return wide
