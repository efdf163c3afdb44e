"""Plots of pixels: images, prototypes, pixel values, differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from PIL import Image

from pipeline.core.arguments import checked
from pipeline.core.deferred import deferred
from pipeline.core.errors import InputError
from pipeline.core.schema import CLASS, IMAGE, LABEL, PROTOTYPE, SAMPLE, SPREAD, pick
from pipeline.ops.labelled import full_scale_of, lazy_images, names_of
from pipeline.report.opened import Run
from pipeline.report.pictures import mosaic, to_picture
from pipeline.report.plot_style import (
    DIVERGING,
    MUTED,
    SHADES,
    SMALL,
    add_colour_bar,
    axes_of_size,
    bare,
    ink_on,
    one_line,
    require_image,
    write_inside,
    write_title,
)

if TYPE_CHECKING:
    import xarray as xr
else:
    xr = deferred("xarray")

CELL_INCHES = 0.95  # the width of an image of a gallery in a figure of its own,
FEW_INCHES = 1.4  # and where there are few
GAP = 0.08  # between images of a gallery, in their widths
MAX_SIDE = 256  # pixels that an image of a gallery keeps; fewer where there are many
MAX_MOSAIC = 4_000_000  # pixels of a gallery
MAX_COLUMNS = 10
MAX_CELLS = 64 * 64  # of a table of pixel values
LETTER = 0.58  # the width of a letter, in font sizes
LINE = 1.5  # the height of a line, in font sizes


@checked
def image(
    pixels: npt.NDArray[Any], full_scale: float, *, title: str | None = None, ax: Axes | None = None
) -> Axes:
    """Draw one image, dark on light where it has no channels.

    Parameters
    ----------
    pixels
        [y, x] or [y, x, channel]; NaN is drawn as 0.
    full_scale
        The pixel value that counts as 1.
    title
        What to write above it.
    ax
        Where to draw; default: a new figure.
    """
    require_image(pixels)
    ax = axes_of_size(ax, 3, 3)
    picture = to_picture(pixels, full_scale, max(np.shape(pixels)[:2]))
    ax.imshow(np.asarray(picture), cmap=SHADES, vmin=0, vmax=255, interpolation="nearest")
    bare(ax)
    if title is not None:
        write_title(ax, title, 40)
    return ax


@checked
def gallery(
    images: Sequence[npt.NDArray[Any]],
    captions: Sequence[str],
    full_scale: float,
    *,
    columns: int | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw many images in rows and columns, each with its caption below.

    Parameters
    ----------
    images
        Each [y, x] or [y, x, channel].
    captions
        One for each image; cut where they are wider than it.
    full_scale
        The pixel value that counts as 1.
    columns
        Images in a row; default: all of up to 5, then 5, of more than 10 images 10.
    ax
        Where to draw; default: a new figure.

    Raises
    ------
    InputError
        Where there is no image, or not one caption for each.
    """
    if not len(images) or len(images) != len(captions):
        raise InputError(
            f"{len(images)} images and {len(captions)} captions, expected one caption for each "
            "image, and one image at least"
        )
    for each in images:
        require_image(each)
    limit = max(8, min(MAX_SIDE, math.isqrt(MAX_MOSAIC // len(images))))
    pictures = [to_picture(each, full_scale, min(max(each.shape[:2]), limit)) for each in images]
    height = max(picture.height for picture in pictures)
    width = max(picture.width for picture in pictures)
    across = columns or (min(len(images), 5) if len(images) <= MAX_COLUMNS else MAX_COLUMNS)
    rows = -(-len(images) // across)
    inches = FEW_INCHES if len(images) <= 5 else CELL_INCHES
    tall = height / width * inches + GAP + SMALL * LINE / 72
    ax = axes_of_size(ax, across * inches * (1 + GAP), rows * tall)
    return _draw_gallery(ax, pictures, captions, across, (height, width))


def _draw_gallery(
    ax: Axes,
    pictures: Sequence[Image.Image],
    captions: Sequence[str],
    columns: int,
    size: tuple[int, int],
) -> Axes:
    height, width = size
    rows = -(-len(pictures) // columns)
    gap = max(1, round(GAP * width))
    area = ax.get_window_extent()
    points = 72 / ax.figure.dpi
    letters = int(area.width * points / columns / (SMALL * LETTER))
    unit = columns * (width + gap) / (area.width * points)  # pixels of a point
    room = area.height * points - rows * SMALL * LINE
    if room > 0:
        unit = max(unit, rows * (height + gap) / room)
    caption_height = math.ceil(SMALL * LINE * unit)
    grid, below_each = mosaic(pictures, columns, gap, caption=caption_height)
    for caption, (middle, below) in zip(captions, below_each, strict=True):
        text = one_line(caption, max(letters, 2))
        write_inside(ax, middle - 0.5, below - 0.5 + 2 * unit, text, SMALL, va="top")
    ax.imshow(np.asarray(grid), interpolation="nearest")
    bare(ax)
    return ax


@checked
def samples(
    images: xr.Dataset, count: int = 20, *, columns: int | None = None, ax: Axes | None = None
) -> Axes:
    """Draw the first images of a data set, with the names of their classes.

    Others are the first of a selection, such as `images.isel(sample=[3, 1, 4])`.

    Parameters
    ----------
    images
        As `pipeline.open_images` returns, or any data set that `pipeline.class_sums` takes; labels
        may be missing.
    count
        How many, at most.
    columns, ax
        As for `gallery`.

    Raises
    ------
    InputError
        Where there is none.
    """
    lazy = lazy_images(images, labels=False).isel({SAMPLE: slice(max(count, 0))})
    captions = [""] * lazy.sizes[SAMPLE]
    if LABEL.name in lazy.coords:
        names = names_of(lazy)
        captions = [names.get(code, "no label") for code in lazy[LABEL.name].values.tolist()]
    pixels = list(lazy[IMAGE.name].values)
    return gallery(pixels, captions, full_scale_of(lazy), columns=columns, ax=ax)


@checked
def prototypes(
    run: Run | xr.Dataset,
    what: Literal["prototype", "std"] = "prototype",
    *,
    ax: Axes | None = None,
) -> Axes:
    """Draw the prototype of each class, or the standard deviation of its pixels.

    Parameters
    ----------
    run
        A run, or a data set as `pipeline.prototypes` returns.
    what
        `prototype`, or `std`, which is drawn darkest where it is half the full scale: a
        deviation is never more.
    ax
        Where to draw; default: a new figure.
    """
    if what not in (PROTOTYPE.name, SPREAD.name):
        raise InputError(f"what={what!r}, expected 'prototype' or 'std'")
    dataset = run.prototypes if isinstance(run, Run) else run
    drawn = pick(dataset, SPREAD if what == SPREAD.name else PROTOTYPE)
    if "full_scale" not in dataset.attrs:
        raise InputError(
            "prototypes without full_scale, expected what pipeline.prototypes returns; use "
            ".assign_attrs(full_scale=255)"
        )
    full_scale = float(dataset.attrs["full_scale"]) / (2 if what == SPREAD.name else 1)
    names = [str(name) for name in dataset[CLASS].values]
    return gallery(list(drawn.values), names, full_scale, ax=ax)


@checked
def pixel_values(
    pixels: npt.NDArray[Any],
    full_scale: float,
    *,
    rows: slice | None = None,
    columns: slice | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the value of each pixel in a cell that is as dark as the pixel.

    Parameters
    ----------
    pixels
        [y, x] or [y, x, channel]; three channels are written in hex.
    full_scale
        The pixel value that counts as 1.
    rows, columns
        Which part; default: all.
    ax
        Where to draw; default: a new figure.

    Raises
    ------
    InputError
        Where the part has no pixel, or more than a table can show.
    """
    require_image(pixels)
    down = range(*(rows or slice(None)).indices(pixels.shape[0]))
    across = range(*(columns or slice(None)).indices(pixels.shape[1]))
    if not 0 < len(down) * len(across) <= MAX_CELLS:
        raise InputError(
            f"{len(down)} x {len(across)} pixel values, expected 1 to {MAX_CELLS:,}; choose a part "
            "with rows and columns"
        )
    part = pixels[down.start : down.stop : down.step, across.start : across.stop : across.step]
    texts = [[_value(pixel, full_scale) for pixel in line] for line in part]
    letters = max(len(text) for line in texts for text in line)
    cell = max(0.2, 0.08 * (letters + 1))
    ax = axes_of_size(ax, 0.4 + len(across) * cell, 0.4 + len(down) * 0.22)
    shown = np.asarray(to_picture(part, full_scale, max(part.shape[:2])).convert("RGB"))
    ax.imshow(shown, interpolation="nearest", aspect="auto")
    area, points = ax.get_window_extent(), 72 / ax.figure.dpi
    size = min(
        area.width * points / len(across) / (LETTER * (letters + 1)),
        area.height * points / len(down) / LINE,
        SMALL,
    )
    for row, line in enumerate(texts):
        for column, text in enumerate(line):
            ink = ink_on(shown[row, column] / 255)
            write_inside(ax, column, row, text, size, ink)
    ax.set_xticks(range(len(across)), [str(number) for number in across])
    ax.set_yticks(range(len(down)), [str(number) for number in down])
    ax.tick_params(labelsize=size, labelcolor=MUTED, labeltop=True, labelbottom=False)
    ax.spines[:].set_visible(False)
    return ax


def _value(pixel: Any, full_scale: float) -> str:
    values = np.atleast_1d(pixel).tolist()
    if len(values) == 3 and isinstance(values[0], int):
        return "".join(f"{value:0{len(f'{int(full_scale):x}')}x}" for value in values)
    return "/".join(str(value) if isinstance(value, int) else f"{value:.3g}" for value in values)


@checked
def difference(
    pixels: npt.NDArray[Any],
    prototype: npt.NDArray[Any],
    full_scale: float,
    *,
    limit: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw where an image has more than a prototype, and where less, in units of full scale.

    Parameters
    ----------
    pixels, prototype
        [y, x] or [y, x, channel]; of channels the mean difference is drawn.
    full_scale
        The pixel value that counts as 1.
    limit
        The difference that has the strongest colour; default: the largest there is.
    ax
        Where to draw; default: a new figure.

    Raises
    ------
    InputError
        Where the two are not of one shape.
    """
    require_image(pixels)
    if pixels.shape != prototype.shape:
        raise InputError(
            f"an image of shape {pixels.shape} and a prototype of {prototype.shape}, expected "
            "the same shape"
        )
    signed = (pixels.astype(np.float64) - prototype) / full_scale
    if signed.ndim == 3:
        signed = signed.mean(axis=2)
    largest = limit or float(np.abs(np.nan_to_num(signed)).max()) or 1.0
    ax = axes_of_size(ax, 3.6, 3)
    shown = ax.imshow(signed, cmap=DIVERGING, vmin=-largest, vmax=largest, interpolation="nearest")
    add_colour_bar(ax, shown, "image minus prototype")
    bare(ax)
    return ax
