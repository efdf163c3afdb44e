"""Decodes image files in tests: as `pipeline` does, and as Pillow does."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps

from pipeline.core.blocks import Problem
from pipeline.images.conversion import Conversion
from pipeline.images.decoding import Decoded, decode

AS_IT_IS = Conversion()


def pixels_of(data, conversion=AS_IT_IS, expected=None):
    found = decode(data, conversion, expected)
    assert isinstance(found, Decoded), found
    return found.image


def problem_of(data, conversion=AS_IT_IS, expected=None):
    found = decode(data, conversion, expected)
    assert isinstance(found, Problem), found
    return found


def by_pillow(data, mode):
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert(mode))
