"""Pictures of images in rows and columns, drawn with Pillow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from PIL import Image, ImageDraw, ImageFont

from pipeline.core.errors import InputError
from pipeline.core.schema import CLASS, PROTOTYPE
from pipeline.storage.atomic import replaced

CELL = 84  # pixels that an image is enlarged to
GAP = 8
CAPTION = 16
FONT_SIZE = 12
MAX_CAPTION = 200  # characters of a name that are looked at
_INK, _PAPER = (34, 34, 34), (255, 255, 255)


def to_picture(image: npt.NDArray[Any], full_scale: float, cell: int = CELL) -> Image.Image:
    """Draw one image, [y, x] or [y, x, channel], dark on light where it has no channels.

    A whole factor enlarges small images, so that pixels stay square and sharp.
    """
    share = np.clip(np.nan_to_num(np.asarray(image, np.float64)) / full_scale, 0, 1)
    if share.ndim == 3 and share.shape[2] != 3:
        share = share[..., :3].mean(axis=2)
    if share.ndim == 2:
        share = 1 - share
    picture = Image.fromarray(np.round(share * 255).astype(np.uint8))
    factor = cell / max(picture.size)
    if factor >= 1:
        size = (picture.width * int(factor), picture.height * int(factor))
        return picture.resize(size, Image.Resampling.NEAREST)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture.resize(size, Image.Resampling.LANCZOS)


def image_grid(
    images: Sequence[npt.NDArray[Any]], captions: Sequence[str], columns: int, full_scale: float
) -> Image.Image:
    """Draw images in rows of `columns`, each with its caption below."""
    font = ImageFont.load_default(FONT_SIZE)
    pictures = [to_picture(image, full_scale) for image in images]
    width = max(CELL, *(picture.width for picture in pictures))
    height = max(picture.height for picture in pictures)
    rows = -(-len(pictures) // columns)
    size = (
        GAP + min(columns, len(pictures)) * (width + GAP),
        GAP + rows * (height + CAPTION + GAP),
    )
    canvas = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(canvas)
    for number, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        left = GAP + number % columns * (width + GAP)
        top = GAP + number // columns * (height + CAPTION + GAP)
        canvas.paste(picture.convert("RGB"), (left + (width - picture.width) // 2, top))
        text = shorten(caption, width, font)
        middle = left + (width - font.getlength(text)) / 2
        draw.text((middle, top + height + 1), text, fill=_INK, font=font)
    return canvas


def shorten(text: str, width: int, font: Any) -> str:
    """Cut a caption to `width` pixels, with an ellipsis where something is left out."""
    line = " ".join(text[:MAX_CAPTION].split())
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(line + "…") > width:
        line = line[:-1]
    return line + "…"


def draw_prototypes(prototypes: xr.Dataset) -> Image.Image:
    """Draw the prototype of each class, with its name, in rows."""
    names = [str(name) for name in prototypes[CLASS].values]
    columns = min(len(names), 5 if len(names) <= 10 else 10)
    pictures = list(prototypes[PROTOTYPE.name].values)
    return image_grid(pictures, names, columns, float(prototypes.attrs["full_scale"]))


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture as PNG, whole or not at all."""
    if path.suffix.lower() != ".png":
        raise InputError(f"{path}: pictures are written as PNG, expected a name ending in .png")
    with replaced(path) as aside:
        picture.save(aside, format="PNG", optimize=True)
