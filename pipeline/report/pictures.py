"""Pictures of images, drawn with Pillow: one, several in rows and columns, and as data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from pipeline.core.deferred import deferred
from pipeline.core.errors import InputError
from pipeline.core.exact import Float64Array
from pipeline.core.schema import CLASS, PROTOTYPE
from pipeline.storage.atomic import replaced

if TYPE_CHECKING:
    import xarray as xr
else:
    xr = deferred("xarray")

CELL = 84  # pixels that an image is enlarged to
GAP = 8
CAPTION = 16
FONT_SIZE = 12
MAX_CAPTION = 200  # characters of a name that are looked at
THUMBNAIL = 64  # pixels of the longer side, at most
_SMALL = 40  # pixels of a side up to which a coloured image is kept as it is
_INK, _PAPER = (34, 34, 34), (255, 255, 255)


def _shares(image: npt.NDArray[Any], full_scale: float) -> Float64Array:
    """Return an image in units of full scale, [y, x] or [y, x, 3]; NaN as 0."""
    shares = np.clip(np.nan_to_num(np.asarray(image, np.float64)) / full_scale, 0, 1)
    if shares.ndim == 3 and shares.shape[2] != 3:
        shares = shares[..., :3].mean(axis=2)
    return np.asarray(shares)


def _as_picture(shares: Float64Array) -> Image.Image:
    return Image.fromarray(np.round(shares * 255).astype(np.uint8))


def to_picture(image: npt.NDArray[Any], full_scale: float, cell: int = CELL) -> Image.Image:
    """Draw one image, [y, x] or [y, x, channel], dark on light where it has no channels.

    A whole factor enlarges small images, so that pixels stay square and sharp.
    """
    shares = _shares(image, full_scale)
    picture = _as_picture(1 - shares if shares.ndim == 2 else shares)
    factor = cell / max(picture.size)
    if factor >= 1:
        size = (picture.width * int(factor), picture.height * int(factor))
        return picture.resize(size, Image.Resampling.NEAREST)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture.resize(size, Image.Resampling.LANCZOS)


def reduced(image: npt.NDArray[Any], full_scale: float, side: int = THUMBNAIL) -> Float64Array:
    """Return an image in units of full scale, [y, x] or [y, x, 3], its longer side cut to `side`.

    What a pixel of it shows is the mean of those that it stands for, so that the difference of two
    images is that of what they became.
    """
    shares = _shares(image, full_scale)
    height, width = shares.shape[:2]
    factor = side / max(height, width)
    if factor >= 1:
        return shares
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    channels = shares.reshape(height, width, -1).astype(np.float32)
    small = [
        np.asarray(Image.fromarray(channels[..., at]).resize(size, Image.Resampling.BOX))
        for at in range(channels.shape[2])
    ]
    return np.stack(small, axis=2).reshape(size[1], size[0], *shares.shape[2:]).astype(np.float64)


def signed_picture(
    difference: Float64Array, limit: float, colours: Callable[[Float64Array], npt.NDArray[Any]]
) -> str:
    """Return a difference in units of full scale, [y, x] or [y, x, 3], as a small picture.

    `colours` gives the colour of each share, 0 to 1: 0.5 where there is no difference, and the
    ends where it is `limit` or more; of channels the mean is shown.
    """
    mean = difference.mean(axis=2) if difference.ndim == 3 else difference
    shares = np.clip(0.5 + mean / (2 * limit), 0, 1)
    return as_data(_as_picture(np.asarray(colours(shares))[..., :3]))


def mosaic(
    pictures: Sequence[Image.Image],
    columns: int,
    gap: int,
    *,
    caption: int = 0,
    least_width: int = 0,
    mode: str = "RGBA",
) -> tuple[Image.Image, list[tuple[float, int]]]:
    """Put pictures into rows of `columns`, each in the middle of its column and on its row.

    Parameters
    ----------
    pictures
        One at least.
    columns
        Pictures in a row.
    gap, caption
        Pixels between two pictures, and the height of a caption below each.
    least_width
        Pixels that a column has at least, so that there is room for captions.
    mode
        Of the result; it has an alpha channel.

    Returns
    -------
    The picture, transparent between those in it, and where the caption of each begins: its middle
    and its top.
    """
    width = max(least_width, *(picture.width for picture in pictures))
    height = max(picture.height for picture in pictures)
    step = height + gap + caption
    rows = -(-len(pictures) // columns)
    grid = Image.new(mode, (columns * (width + gap) - gap, rows * step - gap))
    captions = []
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        left, below = column * (width + gap), row * step + height
        grid.paste(picture, (left + (width - picture.width) // 2, below - picture.height))
        captions.append((left + width / 2, below))
    return grid, captions


def image_grid(
    images: Sequence[npt.NDArray[Any]], captions: Sequence[str], columns: int, full_scale: float
) -> Image.Image:
    """Draw images in rows of `columns`, each with its caption below."""
    font = ImageFont.load_default(FONT_SIZE)
    pictures = [to_picture(image, full_scale) for image in images]
    across = min(columns, len(pictures))
    grid, below_each = mosaic(pictures, across, GAP, caption=CAPTION, least_width=CELL)
    canvas = Image.new("RGB", (grid.width + 2 * GAP, grid.height + 2 * GAP), _PAPER)
    canvas.paste(grid, (GAP, GAP), grid)
    draw = ImageDraw.Draw(canvas)
    width = max(CELL, *(picture.width for picture in pictures))
    for caption, (middle, below) in zip(captions, below_each, strict=True):
        text = shorten(caption, width, font)
        left = GAP + middle - font.getlength(text) / 2
        draw.text((left, GAP + below + 1), text, fill=_INK, font=font)
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


def thumbnail(image: npt.NDArray[Any], full_scale: float, side: int = THUMBNAIL) -> str:
    """Return an image, [y, x] or [y, x, channel], as the address of a small picture.

    Its longer side has at most `side` pixels.
    """
    picture = _as_picture(_shares(image, full_scale))
    if max(picture.size) > side:
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return as_data(picture)


def strip(images: Sequence[npt.NDArray[Any]], full_scale: float) -> tuple[str, int, int]:
    """Return images side by side as the address of one picture, and its width and height."""
    small = [_as_picture(_shares(image, full_scale)) for image in images]
    for picture in small:
        picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    gap = max(1, small[0].width // 14)
    grid, _ = mosaic(small, len(small), gap, mode=small[0].mode + "A")
    return as_data(grid), grid.width, grid.height


def as_data(picture: Image.Image, *, lossless: bool = False) -> str:
    """Return a picture as a data URI: PNG, or JPEG where it is coloured and not tiny."""
    content = io.BytesIO()
    kind = "PNG"
    if picture.mode == "RGB" and max(picture.size) > _SMALL and not lossless:
        picture.save(content, kind := "JPEG", quality=85)
    else:
        picture.save(content, kind, optimize=True)
    data = base64.b64encode(content.getvalue()).decode()
    return f"data:image/{kind.lower()};base64,{data}"
