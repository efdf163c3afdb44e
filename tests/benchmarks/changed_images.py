"""Copies of images as they turn up in image sets: compressed again, brighter, shifted, with noise.

Each function takes [image, y, x(, channel)] uint8 and a generator, and returns as many images.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]
Change = Callable[[Pixels, np.random.Generator], Pixels]

MOST = 0.2  # by how much brightness and contrast change, of full scale
SPECKS = 0.02  # the share of pixels that become black or white
PATCH = 4  # the side of the square that is pasted into a corner


def _compressed(quality: int, images: Pixels, _: np.random.Generator) -> Pixels:
    def one(image: Pixels) -> Pixels:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        return np.asarray(Image.open(file))

    return np.stack([one(image) for image in images])


def _each(values: npt.NDArray[np.float64], images: Pixels) -> npt.NDArray[np.float64]:
    return values.reshape(-1, *(1,) * (images.ndim - 1))


def _linear(brightness: bool, images: Pixels, rng: np.random.Generator) -> Pixels:
    factor = _each(1 + rng.uniform(-MOST, MOST, len(images)), images)
    more = _each(rng.uniform(-MOST, MOST, len(images)) * 255, images) if brightness else 0
    middle = 128 if brightness else 0
    return np.clip(np.rint((images - float(middle)) * factor + middle + more), 0, 255).astype("u1")


def _shifted(images: Pixels, rng: np.random.Generator) -> Pixels:
    steps = np.array([(0, 1), (0, -1), (1, 0), (-1, 0)])[rng.integers(0, 4, len(images))]
    border = ((0, 0), (1, 1), (1, 1), *((0, 0),) * (images.ndim - 3))
    wide, (height, width) = np.pad(images, border, mode="edge"), images.shape[1:3]
    return np.stack([
        image[1 + down : 1 + down + height, 1 + right : 1 + right + width]
        for image, (down, right) in zip(wide, steps, strict=True)
    ])  # fmt: skip


def _specked(images: Pixels, rng: np.random.Generator) -> Pixels:
    changed, drawn = images.copy(), rng.random(images.shape[:3])
    changed[drawn < SPECKS / 2] = 0
    changed[drawn > 1 - SPECKS / 2] = 255
    return changed


def _patched(images: Pixels, _: np.random.Generator) -> Pixels:
    changed = images.copy()
    changed[:, :PATCH, :PATCH] = 255
    return changed


def _mirrored(images: Pixels, _: np.random.Generator) -> Pixels:
    return images[:, :, ::-1].copy()


def _same(images: Pixels, _: np.random.Generator) -> Pixels:
    return images.copy()


CHANGES: Mapping[str, Change] = {
    "exact": _same,
    "JPEG, quality 90": partial(_compressed, 90),
    "JPEG, quality 75": partial(_compressed, 75),
    "JPEG, quality 50": partial(_compressed, 50),
    "times 0.8 to 1.2": partial(_linear, False),
    "brightness and contrast by up to 20 %": partial(_linear, True),
    "shifted by a pixel": _shifted,
    "2 % salt and pepper": _specked,
    "4x4 patch in a corner": _patched,
    "mirrored": _mirrored,
}
