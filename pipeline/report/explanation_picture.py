"""Why an image was predicted as it was: a plot of its distances, and a picture of everything."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.config.settings import parse_pixels
from pipeline.core.arguments import checked
from pipeline.core.errors import InputError
from pipeline.report import image_plots
from pipeline.report import plot_style as style
from pipeline.report.explanation import Explanation, Neighbour
from pipeline.storage.atomic import replaced, require_file

WHOLE = 28  # pixels a side up to which the whole image is shown as a table
WIDTH = 10.0  # inches
PANEL, BARS, LINE = 2.2, 0.24, 0.23  # inches: a row of images, a bar, a line of the table
NEAR = 1.35  # inches of a row of nearest images
CELL = 0.4  # inches of a pixel of the table at most
PROTOTYPES = 3  # that are drawn
KINDS = {".png": "png", ".svg": "svg"}
DPI = 150
NEAREST = 10  # classes whose distance is drawn
FEWEST, ACROSS, IMAGES = 6, 10, 30  # nearest images: columns of a row, and how many are drawn
NAME = 14  # columns of text of the name of a nearest image


@checked
def distances(explanation: Explanation, metric: str, *, ax: Axes | None = None) -> Axes:
    """Draw how far one image is from the prototypes, the nearest first.

    The nearest class is in the colour of what is right or wrong, the image's own label in that
    of what is right. Of many classes the nearest 10 are drawn, and the label with its rank.

    Parameters
    ----------
    explanation
        As `pipeline.explain` returns.
    metric
        One of its metrics.
    ax
        Where to draw; default: a new figure.
    """
    ranked = explanation.ranked(metric)
    values = explanation.distances[explanation.metrics.index(metric)]
    names, label = explanation.class_names, explanation.label_name
    shown = ranked[:NEAREST]
    own = names.index(label) if label in names else None
    if own in ranked[NEAREST:]:
        shown.append(own)
    ax = style.axes_of_size(ax, 5, 0.7 + style.LINE_INCHES * len(shown))
    for row, at in enumerate(shown):
        marks = []
        colour, strength = style.MUTED, 0.45
        if row == 0:
            marks.append("predicted")
            colour, strength = (style.ACCENT if own is None else style.WRONG), 1.0
        if at == own:
            rank = ranked.index(at) + 1
            marks.append("label" if row < NEAREST else f"label, rank {rank:,}")
            colour, strength = style.RIGHT, 1.0
        ax.barh(row, values[at], style.BAR, color=colour, alpha=strength)
        note = f" {values[at]:.4f}" + (f"  {', '.join(marks)}" if marks else "")
        style.write(
            ax,
            float(values[at]),
            row,
            note,
            va="center",
            color=style.INK if marks else style.MUTED,
        )
    style.name_bars(ax, [names[at] for at in shown])
    ax.set_xlim(0, 1.5 * max([float(values[at]) for at in shown], default=1) or 1)
    ax.set_xlabel(f"{metric} distance in units of full scale")
    return ax


@checked
def draw_explanation(explanation: Explanation, picture: Path, pixels: str | None = None) -> None:
    """Draw an image, the nearest prototypes, where they differ, distances and pixel values.

    Prototypes are those of the nearest classes by the first metric of the run and of the image's
    label, three in all. Where the explanation has them, the nearest images by the first metric
    are drawn too, up to 30, each with its class and its distance.

    Parameters
    ----------
    explanation
        As `explain` returns.
    picture
        The file to write, .png or .svg, whole or not at all.
    pixels
        `ROWS,COLS` of the table of pixel values, such as `5:25,4:24`; default: all of an image
        of up to 28 x 28 pixels, else its middle.

    Raises
    ------
    InputError
        Where the file has another ending, or the image no such pixels.
    """
    kind = KINDS.get(picture.suffix.lower())
    if kind is None:
        raise InputError(
            f"{picture}: pictures are written as PNG or SVG, expected a name ending in .png or .svg"
        )
    require_file(picture, "--picture")
    figure = explanation_figure(explanation, pixels)
    metadata = {"Date": None} if kind == "svg" else {}  # the same picture, the same bytes
    same = rc_context({"svg.hashsalt": "pixsim", "svg.fonttype": "none"})
    with same, replaced(picture) as aside:
        figure.savefig(aside, format=kind, dpi=DPI, facecolor="white", metadata=metadata)


def explanation_figure(explanation: Explanation, pixels: str | None = None) -> Figure:
    """Return the figure that `draw_explanation` writes."""
    image = explanation.image
    rows, columns = _part(image, pixels)
    bars = min(len(explanation.class_names), 11) * BARS + 0.8
    table = LINE * len(range(*rows.indices(image.shape[0]))) + 0.5
    nearest = explanation.neighbours.get(explanation.metrics[0], ())[:IMAGES]
    lines = -(-len(nearest) // ACROSS)
    heights = [2 * PANEL + 0.3, *([0.3 + lines * NEAR] if lines else []), bars, table]
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.4), layout="constrained")
    label = explanation.label_name
    stated = "without label" if label is None else f"labelled {style.one_line(label, 40)}"
    stated += ", none of the run's classes" if explanation.is_outside else ""
    figure.suptitle(
        f"{style.one_line(explanation.split, 40)} image {explanation.sample}, {stated}",
        x=0.01, ha="left", color=style.INK, fontsize=11, **style.PLAIN,
    )  # fmt: skip
    above, *more, between, below = figure.subfigures(
        len(heights), 1, squeeze=False, height_ratios=heights
    )[:, 0]
    _draw_images(above, explanation)
    for part in more:
        _draw_nearest(part, explanation, nearest)
    axes = between.subplots(1, len(explanation.metrics), squeeze=False)[0]
    for ax, metric in zip(axes, explanation.metrics, strict=True):
        distances(explanation, metric, ax=ax)
    used = min(CELL * len(range(*columns.indices(image.shape[1]))) / WIDTH, 0.99)
    ax = below.add_subplot(below.add_gridspec(1, 2, width_ratios=[used, 1 - used])[0])
    image_plots.pixel_values(image, explanation.full_scale, rows=rows, columns=columns, ax=ax)
    return figure


def _part(image: npt.NDArray[Any], pixels: str | None) -> tuple[slice, slice]:
    if pixels is not None:
        return parse_pixels(pixels, image.shape)
    starts = [max(0, (side - WHOLE) // 2) for side in image.shape[:2]]
    rows, columns = (slice(start, start + WHOLE) for start in starts)
    return rows, columns


def _draw_images(figure: Any, explanation: Explanation) -> None:
    """Draw the image, prototypes above and the differences from them below."""
    image, full_scale = explanation.image, explanation.full_scale
    chosen = chosen_classes(explanation, explanation.metrics[0])
    signed = [image.astype(np.float64) - explanation.prototypes[name] for name in chosen]
    largest = max((float(np.abs(np.nan_to_num(part)).max()) for part in signed), default=0.0)
    limit = largest / full_scale or 1.0
    axes = figure.subplots(2, 1 + PROTOTYPES)
    image_plots.image(image, full_scale, title="the image", ax=axes[0, 0])
    for column, (name, marks) in enumerate(chosen.items(), start=1):
        prototype = explanation.prototypes[name]
        title = f"{style.one_line(name, 20)}: {marks}"
        image_plots.image(prototype, full_scale, title=title, ax=axes[0, column])
        image_plots.difference(image, prototype, full_scale, limit=limit, ax=axes[1, column])
    for ax in axes.flat:
        ax.set_anchor("NW")
    for ax in [axes[1, 0], *axes[:, 1 + len(chosen) :].flat]:
        ax.set_axis_off()
    axes[1, 0].text(
        0, 1, "where the image has more\nthan the prototype, and less,\nin units of full scale",
        va="top", color=style.INK, fontsize=8, transform=axes[1, 0].transAxes,
    )  # fmt: skip


def _draw_nearest(figure: Any, explanation: Explanation, nearest: Sequence[Neighbour]) -> None:
    """Draw the nearest images; their names have the colour of right where the label is the same."""
    figure.suptitle(
        f"the nearest images by {explanation.metrics[0]}",
        x=0.01, ha="left", color=style.INK, fontsize=style.TEXT, **style.PLAIN,
    )  # fmt: skip
    across = min(max(len(nearest), FEWEST), ACROSS)
    axes = figure.subplots(-(-len(nearest) // ACROSS), across, squeeze=False)
    label = explanation.label_name
    for ax, near in zip(axes.flat, nearest, strict=False):
        image_plots.image(near.image, explanation.full_scale, ax=ax)
        colour = style.RIGHT if near.label_name == label else style.WRONG
        text = f"{style.one_line(near.label_name, NAME)}\n{near.distance:.4f}"
        ax.set_xlabel(text, fontsize=style.SMALL, **style.PLAIN)
        ax.xaxis.label.set_color(style.INK if label is None else colour)
    for ax in axes.flat[len(nearest) :]:
        ax.set_axis_off()


def chosen_classes(explanation: Explanation, metric: str) -> dict[str, str]:
    """Return what each class to draw is, by name: the nearest by a metric, and the label."""
    names = [explanation.class_names[position] for position in explanation.ranked(metric)]
    ranks = ["predicted", "second nearest", "third nearest"]
    chosen = dict(zip(names[:PROTOTYPES], ranks, strict=False))
    label = explanation.label_name
    if label is None or label not in explanation.prototypes:
        return chosen
    if label not in chosen and len(chosen) == PROTOTYPES:
        chosen.popitem()
    return chosen | {label: f"{chosen[label]}, label" if label in chosen else "label"}
