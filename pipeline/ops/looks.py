"""Images as a search may look at them: as they are, mirrored, or of one brightness and contrast."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

NORMALIZED_SCALE = 255
"""The full scale of normalized images, which are 8-bit ones."""

_BLOCK = 1024  # images that are normalized at once: their wide copies stay in the cache


def look_at(
    images: npt.NDArray[Any], normalized: bool = False, mirrored: bool = False
) -> npt.NDArray[Any]:
    """Return images, [image, y, x(, channel)], normalized or mirrored left to right."""
    if mirrored:
        images = images[:, :, ::-1]
    return normalize(images) if normalized else images


def normalize(images: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Bring each image to one mean and one contrast, in exact integer arithmetic."""
    normalized = np.empty(images.shape, np.uint8)
    for start in range(0, len(images), _BLOCK):
        part = slice(start, start + _BLOCK)
        normalized[part] = _normalize(images[part].reshape(len(images[part]), -1)).reshape(
            images[part].shape
        )
    return normalized


def _normalize(pixels: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    wide = pixels.astype(np.int64)
    count = wide.shape[1]
    shifted = wide * count - wide.sum(1, keepdims=True)
    spread = np.maximum(np.abs(shifted).sum(1, keepdims=True) // count, 1)
    normalized: npt.NDArray[np.uint8] = np.clip(128 + (32 * shifted) // spread, 0, 255)
    return normalized.astype(np.uint8)
