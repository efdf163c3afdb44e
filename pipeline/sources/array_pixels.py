"""What images that are arrays may be: usable types, layouts, and what stands for missing pixels.

Images of any layout become [sample, y, x] or [sample, y, x, channel], and of any usable type uint8,
uint16, float32 or float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from pipeline.core.blocks import UNREADABLE, Block, Problem
from pipeline.core.errors import ShapeError, SourceError
from pipeline.core.exact import largest_pixel
from pipeline.core.schema import UNLABELLED
from pipeline.sources.labels import check_form

_CHANNELS = (1, 3, 4)
_FLOAT_BYTES = 8

Array = npt.NDArray[Any]


def pixel_type(dtype: np.dtype[Any]) -> str | None:
    """Return the type in which images of `dtype` are given, None where they cannot be used.

    Truth values are given as 0 and 1, 16-bit floats as 32-bit ones; bytes in native order.
    """
    if dtype.kind == "b":
        return "uint8"
    if dtype.kind == "f" and dtype.itemsize <= _FLOAT_BYTES:
        return "float64" if dtype.itemsize == _FLOAT_BYTES else "float32"
    return dtype.name if dtype.name in ("uint8", "uint16") else None


def as_pixels(images: Array) -> Array:
    """Return images in the type that `pixel_type` says."""
    return images.astype(pixel_type(images.dtype) or images.dtype, copy=False)


def scale_of(dtype: np.dtype[Any]) -> int:
    """Return the pixel value that counts as 1 in images of `dtype`, unless one is given."""
    return largest_pixel(dtype) if dtype.kind == "u" else 1


def refuse_pixels(where: str, dtype: np.dtype[Any], blocks: Iterable[Array]) -> NoReturn:
    """Raise `SourceError` for images of a type that cannot be used; `blocks` are their values."""
    if dtype.kind not in "iu":
        raise SourceError(
            f"{where}: images of {dtype}, expected uint8, uint16, bool, float16, float32 or "
            'float64; convert them, as with .astype("float32")'
        )
    ranges = [(int(block.min()), int(block.max())) for block in blocks if block.size]
    lowest = min((low for low, _ in ranges), default=0)
    highest = max((high for _, high in ranges), default=0)
    fitting = next((t for t in ("uint8", "uint16") if highest <= np.iinfo(t).max), None)
    cure = f'the values fit .astype("{fitting}")'
    if fitting is None or lowest < 0:
        cure = 'scale the values to 0 to 65535 and use .astype("uint16"), or .astype("float64")'
    raise SourceError(
        f"{where}: images of {dtype} with values {lowest} to {highest}, expected uint8, uint16, "
        f"bool or floats; {cure}"
    )


def check_alike(kinds: Mapping[str, np.dtype[Any]]) -> None:
    """Raise `SourceError` where the pixels of two arrays do not mean the same.

    `kinds` is the type of the images by the name of the array. 8 and 16 bits are distinguished
    when the set is planned: a depth, or a full scale that both have, brings them together.
    """
    first = next(iter(kinds), "")
    for name, other in kinds.items():
        if other.kind != kinds[first].kind:
            raise SourceError(
                f"{first} has images of {kinds[first]} and {name} of {other}, whose values do not "
                f"mean the same; convert them to one type, as with (images / {scale_of(other)})"
                '.astype("float32") or .astype("uint8")'
            )


@dataclass(frozen=True)
class Gaps:
    """What stands for missing pixels, besides numbers that are not finite.

    Each of `values` does, and what is below `lowest` or above `highest`; `reason` tells what says
    so, and what to do where it is wrong.
    """

    values: tuple[Any, ...] = ()
    lowest: Any = None
    highest: Any = None
    reason: str = ""

    def find(self, images: Array) -> npt.NDArray[np.bool_] | None:
        """Return which pixels are missing, None where it is none."""
        is_float = images.dtype.kind == "f"
        bounded = self.lowest is not None or self.highest is not None
        if not images.size or not (is_float or self.values or bounded):
            return None
        low, high = images.min(), images.max()  # NaN, if there is one; masks only where needed
        odd = is_float and not (np.isfinite(low) and np.isfinite(high))
        masks = [~np.isfinite(images)] if odd else []
        masks += [images == value for value in self.values if odd or low <= value <= high]
        for bound, wrong in ((self.lowest, np.less), (self.highest, np.greater)):
            if bound is not None and (odd or wrong(low, bound) or wrong(high, bound)):
                masks.append(wrong(images, bound))
        missing = np.logical_or.reduce(masks) if masks else None
        return missing if missing is not None and missing.any() else None


NO_GAPS = Gaps(reason="replace such values")


def block_of(
    images: Array, codes: npt.NDArray[np.int32], origins: Sequence[str], gaps: Gaps = NO_GAPS
) -> Block:
    """Return a block of which the images with missing pixels are bad samples."""
    missing = gaps.find(images)
    if missing is None:
        return Block(images, codes, origins)
    images, codes = images.copy(), codes.copy()
    counts = missing.reshape(len(images), -1).sum(axis=1)
    problems = {}
    for index in np.flatnonzero(counts).tolist():
        first = np.unravel_index(int(np.argmax(missing[index])), missing.shape[1:])
        where, value = ", ".join(str(int(i)) for i in first), images[index][first].item()
        problems[index] = Problem(
            UNREADABLE,
            f"has {counts[index]} of {missing[index].size} pixels missing: pixel ({where}) is "
            f"{value}; {gaps.reason}, or leave such images out with max_bad",
        )
    images[list(problems)], codes[list(problems)] = 0, UNLABELLED
    return Block(images, codes, origins, problems)


# layout ------------------------------------------------------------------------------------------


def check_shapes(
    where: str,
    images: tuple[int, ...],
    labels: tuple[int, ...] | None,
    dtype: np.dtype[Any],
    asked_last: bool = False,
) -> bool:
    """Raise unless images have 3 or 4 dimensions, and labels of a usable type are as many.

    Returns whether the images are stored with their channels first; where that may be either,
    they come last if callers are `asked` to give them so, else it is an error.
    """
    if labels is not None and labels[:1] == images[:1] != ():
        check_form(where, images[0], labels, dtype)
    first = has_channels_first(where, images, asked_last)
    if labels is not None:
        check_form(where, images[0], labels, dtype)
    return first


def has_channels_first(where: str, shape: Sequence[int], asked_last: bool = False) -> bool:
    """Tell whether images without named dimensions are [sample, channel, y, x].

    That is plain where 1, 3 or 4 stands second and not last. Where few stand last, or fewer than
    rows and columns, they are [sample, y, x, channel]. What is ambiguous raises `ShapeError`.
    """
    of_shape, expected = f"{where}: images of shape {tuple(shape)}", "expected (sample, y, x) or"
    if len(shape) == 2:
        raise ShapeError(
            f"{of_shape}, which are flat: {shape[1]} values each; {expected} "
            f"(sample, y, x, channel); {_unflattened(shape[1])}"
        )
    if len(shape) not in (3, 4):
        raise ShapeError(f"{of_shape}, {expected} (sample, y, x, channel)")
    if len(shape) == 3:
        return False
    second, middle, last = shape[1:]
    if last in (*_CHANNELS, 2):
        either = second in _CHANNELS and last in _CHANNELS and middle == last != second
        if either and not asked_last:
            raise _either(of_shape)
        return False
    if second in _CHANNELS:
        return True
    if last < min(second, middle):
        return False
    if second == middle == last:
        raise ShapeError(
            f"{of_shape}, which are 3-D: as many layers as rows and columns; {expected} "
            f"(sample, y, x, channel); choose one layer, such as images[:, {second // 2}]"
        )
    raise _either(of_shape)


def _either(of_shape: str) -> ShapeError:
    return ShapeError(
        f"{of_shape} are 3-D, or may have their channels first or last; expected (sample, y, x, "
        "channel) with fewer channels than rows and columns; turn them: np.moveaxis(images, 1, "
        "-1), or choose one layer: images[:, 0]"
    )


def _unflattened(size: int) -> str:
    for channels, shape in ((1, "(-1, {0}, {0})"), (3, "(-1, 3, {0}, {0})")):
        side = math.isqrt(size // channels)
        if channels * side * side == size:
            return f"give them their shape: images.reshape{shape.format(side)}"
    return "give them their shape: images.reshape(-1, HEIGHT, WIDTH)"


def as_images(images: Array, channels_first: bool) -> Array:
    """Return images with their channels last."""
    return np.ascontiguousarray(np.moveaxis(images, 1, -1)) if channels_first else images


def has_lone_channel(shapes: Iterable[Sequence[int]]) -> bool:
    """Tell whether some images are [y, x] and others [y, x, 1], which is then dropped."""
    several = list(shapes)
    deep = [shape for shape in several if len(shape) == 3]
    return {len(shape) for shape in several} == {2, 3} and all(shape[2] == 1 for shape in deep)
