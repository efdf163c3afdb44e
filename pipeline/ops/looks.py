"""Images as a search may look at them: as they are, mirrored, or of one brightness and contrast.

A copy of an image that was brightened, or of another contrast, is far from it pixel by pixel. So an
audit also compares images that are smoothed a little, which takes away what JPEG and resizing
leave, and brought to one mean and one mean absolute deviation. All of it is integer arithmetic, so
the normalized images are a second set of 8-bit images, for the same kernels and bounds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.core.exact import Int64Array

NORMALIZED_SCALE = 255
"""The full scale of normalized images, which are 8-bit ones."""

# The mean of normalized images, and their mean absolute deviation.
_MEAN, _DEVIATION = 128, 48
# The least deviation, in steps of 8 bits: what is flatter is noise, not an image.
_FLAT = 4
_LARGEST = 2**63 - 1  # what an accumulator may hold
_BLOCK_VALUES = 2**18  # pixels that are normalized at once: their wide copies stay in the cache


def look_at(
    images: npt.NDArray[Any], normalized: bool = False, mirrored: bool = False
) -> npt.NDArray[Any]:
    """Return images, [image, y, x(, channel)], mirrored left to right and normalized as asked."""
    if mirrored:
        images = images[:, :, ::-1]
    return normalize(images) if normalized else images


def normalize(images: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Bring each image to one brightness and contrast, exactly.

    Parameters
    ----------
    images
        [image, y, x(, channel)] uint8 or uint16; all channels of an image share mean and deviation.

    Returns
    -------
    [image, y - 1, x - 1(, channel)] uint8: of the means of 2 x 2 neighbouring pixels, rounded half
    up, `s`, with mean `m` and mean absolute deviation `a` over the image, `128 + 48 (s - m) / a`,
    rounded half up and clipped. `a` is at least 4 steps of 8 bits. A side of one pixel is doubled
    first.
    """
    shape = _smoothed_shape(images)
    normalized = np.empty((len(images), *shape), np.uint8)
    flattest = _FLAT * (np.iinfo(images.dtype).max // 255)
    step = max(1, _BLOCK_VALUES // max(1, normalized[:1].size))
    for start in range(0, len(images), step):
        part = slice(start, start + step)
        normalized[part] = _normalize(_smooth(images[part]), flattest)
    return normalized


def _smoothed_shape(images: npt.NDArray[Any]) -> tuple[int, ...]:
    height, width, *channels = images.shape[1:]
    return max(height - 1, 1), max(width - 1, 1), *channels


def _smooth(images: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the mean of each 2 x 2 pixels, rounded half up, of their own type."""
    for axis in (1, 2):
        if images.shape[axis] == 1:
            images = np.repeat(images, 2, axis)
    wide: npt.NDArray[Any] = images.astype(np.uint16 if images.dtype == np.uint8 else np.uint32)
    rows: npt.NDArray[Any] = np.add(wide[:, :-1], wide[:, 1:])
    smooth: npt.NDArray[Any] = np.right_shift(rows[:, :, :-1] + rows[:, :, 1:] + 2, 2)
    return smooth.astype(images.dtype)


def _normalize(smooth: npt.NDArray[Any], flattest: int) -> npt.NDArray[np.uint8]:
    flat = smooth.reshape(len(smooth), -1)
    count, largest = flat.shape[1], np.iinfo(smooth.dtype).max
    if (2 * _DEVIATION + 1) * count * count * largest > _LARGEST:
        return np.stack([_normalize_large(image, flattest) for image in smooth])
    total = flat.sum(1, dtype=np.int64, keepdims=True)
    narrow: Any = np.int32 if count * largest < 2**31 else np.int64
    centred: npt.NDArray[Any] = flat.astype(narrow) * narrow(count) - total.astype(narrow)
    spread = np.abs(centred).sum(1, dtype=np.int64, keepdims=True)
    spread = np.maximum(spread, count * count * flattest)
    if smooth.dtype == np.uint8:  # there are fewer values than pixels to divide for
        values = np.arange(256) * count - total
        table = _quotients(values, count, spread)
        return np.take_along_axis(table, flat.astype(np.intp), 1).reshape(smooth.shape)
    return _quotients(centred.astype(np.int64), count, spread).reshape(smooth.shape)


def _normalize_large(smooth: npt.NDArray[Any], flattest: int) -> npt.NDArray[np.uint8]:
    """Normalize one image whose products may not fit 64 bits, value by value, in Python's integers.

    That is so from a million pixels of 16 bits on.
    """
    values, inverse, counts = np.unique(smooth, return_inverse=True, return_counts=True)
    known, count = list(zip(values.tolist(), counts.tolist(), strict=True)), smooth.size
    total = sum(value * times for value, times in known)
    spread = sum(abs(value * count - total) * times for value, times in known)
    spread = max(spread, count * count * flattest)
    steps = [
        (2 * _DEVIATION * count * (value * count - total) + spread) // (2 * spread)
        for value, _ in known
    ]
    table = np.array([min(max(_MEAN + step, 0), 255) for step in steps], np.uint8)
    return table[inverse].reshape(smooth.shape)


def _quotients(centred: Int64Array, count: int, spread: Int64Array) -> npt.NDArray[np.uint8]:
    steps = (2 * _DEVIATION * count * centred + spread) // (2 * spread)
    clipped: npt.NDArray[Any] = np.clip(_MEAN + steps, 0, 255)
    return clipped.astype(np.uint8)
