"""Pictures of images in rows and columns, drawn with Pillow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from pipeline import manifest, store
from pipeline.errors import InputError
from pipeline.files import replaced
from pipeline.places import locate
from pipeline.runs import open_run
from pipeline.schema import PROTOTYPE

CELL = 84  # pixels that an image is enlarged to
GAP = 8
CAPTION = 16
FONT_SIZE = 12
MAX_CLASSES = 12
PER_CLASS = 8
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


def grid_of_images(path: Path, split: str) -> Image.Image:
    """Draw the first images of each class of a split, a row a class."""
    content = manifest.read_manifest(path, manifest.IMAGES)
    info = store.require_split(content, split, path)
    images, labels = store.read_images(path, split, 0, min(info["shard"], info["count"]))
    if not len(images):
        raise InputError(f"{path}: split '{split}' holds no image to draw")
    codes = [code for code in range(len(content["class_names"])) if (labels == code).any()]
    chosen = [
        int(i) for code in codes[:MAX_CLASSES] for i in np.flatnonzero(labels == code)[:PER_CLASS]
    ]
    if not chosen:
        chosen = list(range(min(len(images), PER_CLASS * 2)))
    names = [content["class_names"][labels[i]] if labels[i] >= 0 else "no label" for i in chosen]
    return image_grid([images[i] for i in chosen], names, PER_CLASS, content["full_scale"])


def grid_of_prototypes(path: Path) -> Image.Image:
    """Draw the prototypes of a run."""
    found = open_run(path).prototypes.load()
    names = [str(name) for name in found["class_name"].values]
    pictures = list(found[PROTOTYPE.name].values)
    columns = min(len(names), 5 if len(names) <= 10 else 10)
    return image_grid(pictures, names, columns, float(found.attrs["full_scale"]))


def draw_grid(
    path: Path | str,
    picture: Path,
    split: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> None:
    """Draw sample images of an image set, or the prototypes of a run, as a PNG file.

    Parameters
    ----------
    path
        The folder of the store or run, or its URL.
    picture
        The file to write.
    split
        The split of the image set to draw from; default: its first.
    storage_options
        fsspec's options for a URL; default: credentials from the environment.
    """
    folder = locate(path, storage_options)
    if manifest.kind_of(folder) == manifest.RUN:
        save_picture(grid_of_prototypes(folder), picture)
        return
    content = manifest.read_manifest(folder, manifest.IMAGES)
    save_picture(grid_of_images(folder, split or next(iter(content["splits"]))), picture)


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture as PNG, whole or not at all."""
    if path.suffix.lower() != ".png":
        raise InputError(f"{path}: pictures are written as PNG, expected a name ending in .png")
    with replaced(path) as aside:
        picture.save(aside, format="PNG", optimize=True)
