"""Plots, a function a picture: each draws into `ax`, or into axes of a new figure, and returns it.

Here are those of a run's outcome; those of pixels (`image_plots`) and of one image's distances
(`explanation_picture`) have their names here too. Figures are matplotlib's;
`ax.get_figure().savefig("plot.svg")` writes one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.patches import Rectangle

from pipeline.core.arguments import checked
from pipeline.core.deferred import deferred
from pipeline.core.errors import InputError
from pipeline.core.exact import Float64Array
from pipeline.ops.labelled import is_data_set, label_counts
from pipeline.ops.predictions import metrics_of
from pipeline.report import plot_style as style
from pipeline.report.class_order import confusion_order, row_shares
from pipeline.report.explanation_picture import distances
from pipeline.report.image_plots import (
    difference,
    gallery,
    image,
    pixel_values,
    prototypes,
    samples,
)
from pipeline.report.look import MAX_NAMES, MAX_NUMBERS
from pipeline.report.plot_style import ACCENT, INK, MUTED, ON_DARK, ON_LIGHT, RIGHT, SMALL, WRONG

if TYPE_CHECKING:
    import xarray as xr
else:
    xr = deferred("xarray")

__all__ = [
    "ACCENT", "INK", "MUTED", "ON_DARK", "ON_LIGHT", "RIGHT", "WRONG", "accuracy", "agreement",
    "class_counts", "class_distances", "confusion", "confusion_order", "difference", "distances",
    "gallery", "image", "margins", "pixel_values", "prototypes", "samples",
]  # fmt: skip

MAX_BARS = 40  # classes that have a bar each; of more the first and last half of it
SPLIT_COLOURS = (RIGHT, WRONG, ACCENT, MUTED)


@checked
def confusion(
    metrics: Mapping[str, Any],
    metric: str,
    *,
    order: Sequence[int] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw how often images of each class, a row, are predicted as each class, a column.

    The colour is the share among the images of the class, spread so that small shares are seen;
    the number, of up to 20 classes, counts images; a cell without number has none.

    Parameters
    ----------
    metrics
        As `Run.metrics`, or one of its splits; or what `pipeline.predict` returns.
    metric
        Which of them.
    order
        Positions of classes, as `confusion_order` returns; default: as they are.
    ax
        Where to draw; default: a new figure.
    """
    entry = style.metric_of(_metrics_of(metrics), metric, "confusion")
    counts = np.asarray(entry["counts"], np.int64)
    chosen = _order(order, len(counts))
    counts = counts[np.ix_(chosen, chosen)]
    names = [entry["class_names"][position] for position in chosen]
    texts = [[f"{count:,}" if count else "" for count in row] for row in counts.tolist()]
    norm = PowerNorm(0.5, 0, 1)
    ax = _heat_map(row_shares(counts), names, texts, "share of the class", norm, ax)
    ax.set(xlabel="predicted", ylabel="label")
    return ax


def _metrics_of(given: Any) -> Mapping[str, Any]:
    return metrics_of(given) if is_data_set(given) else given


@checked
def class_distances(
    distances: npt.NDArray[Any],
    class_names: Sequence[str],
    *,
    order: Sequence[int] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw how far the prototype of each class is from that of each other one.

    Parameters
    ----------
    distances
        [class, class]; in units of full scale.
    class_names
        The name of each class.
    order
        Positions of classes; default: as they are.
    ax
        Where to draw; default: a new figure.
    """
    values = np.asarray(distances, np.float64)
    if values.shape != (len(class_names), len(class_names)):
        raise InputError(
            f"distances of shape {values.shape} for {len(class_names)} classes, expected "
            "[class, class]"
        )
    chosen = _order(order, len(values))
    values = values[np.ix_(chosen, chosen)]
    texts = [["" if np.isnan(value) else f"{value:.3f}" for value in row] for row in values]
    names = [class_names[position] for position in chosen]
    return _heat_map(values, names, texts, "distance between prototypes", None, ax)


def _order(order: Sequence[int] | None, number: int) -> list[int]:
    chosen = list(range(number)) if order is None else [int(position) for position in order]
    if sorted(chosen) != list(range(number)):
        raise InputError(f"an order of {len(chosen)} positions, expected each of 0 to {number - 1}")
    return chosen


def _heat_map(
    values: Float64Array,
    names: Sequence[str],
    texts: Sequence[Sequence[str]],
    meaning: str,
    norm: PowerNorm | None,
    ax: Axes | None,
) -> Axes:
    number = len(names)
    side = min(max(2.6, 1.6 + 0.34 * number), 9.0)
    ax = style.axes_of_size(ax, 1.1 * side + 0.9, side)
    shown = ax.imshow(values, cmap=style.SEQUENTIAL, norm=norm, interpolation="nearest")
    style.add_colour_bar(ax, shown, meaning)
    ax.spines[:].set_visible(False)
    if number > MAX_NAMES:
        ax.set(xticks=[], yticks=[])
        return ax
    style.name_ticks(ax.xaxis, names)
    style.name_ticks(ax.yaxis, names)
    ax.tick_params(axis="x", labelrotation=90)
    if number > MAX_NUMBERS:
        return ax
    longest = max(len(text) for line in texts for text in line)
    size = min(SMALL, SMALL * 5 / max(longest, 1))
    colours = np.asarray(shown.to_rgba(values))
    for row, line in enumerate(texts):
        for column, text in enumerate(line):
            ink = style.ink_on(colours[row, column][:3])
            style.write_inside(ax, column, row, text, size, ink)
    return ax


@checked
def accuracy(
    metrics: Mapping[str, Any], *, metric: str | None = None, ax: Axes | None = None
) -> Axes:
    """Draw the accuracy of each class, the best first, beside that of guessing.

    Of more than 40 classes the best and the worst 20 are drawn; classes without images are left
    out and counted below.

    Parameters
    ----------
    metrics
        As `Run.metrics`, or one of its splits; or what `pipeline.predict` returns.
    metric
        Which of them; default: the first.
    ax
        Where to draw; default: a new figure.
    """
    metrics = _metrics_of(metrics)
    metric = metric or next(iter(metrics), None)
    per_class = style.metric_of(metrics, metric, "per_class")
    known = {name: entry["accuracy"] for name, entry in per_class.items()
             if entry["accuracy"] is not None}  # fmt: skip
    ranked = sorted(known, key=lambda name: -known[name])
    shown: list[str | None] = [*ranked]
    if len(ranked) > MAX_BARS:
        shown = [*ranked[: MAX_BARS // 2], None, *ranked[-MAX_BARS // 2 :]]
    ax = style.axes_of_size(ax, 5.5, 0.9 + style.LINE_INCHES * len(shown))
    for row, name in enumerate(shown):
        if name is None:
            between = f"{len(ranked) - MAX_BARS:,} classes between these"
            style.write(ax, 0.01, row, between, va="center", color=MUTED)
            continue
        ax.barh(row, known[name], style.BAR, color=RIGHT)
        note = f" {known[name]:.3f} of {per_class[name]['count']:,}"
        style.write(ax, known[name], row, note, va="center", color=MUTED)
    style.name_bars(ax, ["" if name is None else name for name in shown])
    chance = 1 / max(len(per_class), 1)
    ax.axvline(chance, color=INK, linewidth=style.THIN, linestyle=(0, (4, 3)))
    style.write(ax, chance, -0.7, f"chance {chance:.2g}", ha="center", va="bottom", color=INK)
    left_out = len(per_class) - len(known)
    ax.set_xlim(0, 1.22)
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1])
    note = f"; {left_out:,} without images" if left_out else ""
    ax.set_xlabel(f"accuracy by {metric}{note}")
    return ax


@checked
def margins(
    edges: npt.NDArray[Any],
    right: npt.NDArray[Any],
    wrong: npt.NDArray[Any],
    *,
    ax: Axes | None = None,
) -> Axes:
    """Draw how margins are distributed where the prediction is right, and where it is wrong.

    Each distribution is drawn in shares of its own number, so that the two can be compared.

    Parameters
    ----------
    edges
        [bin + 1]; in units of full scale.
    right, wrong
        [bin]; numbers of samples.
    ax
        Where to draw; default: a new figure.
    """
    if not len(edges) - 1 == len(right) == len(wrong) > 0:
        raise InputError(
            f"{len(edges)} edges of {len(right)} and {len(wrong)} counts, expected one edge more "
            "than counts"
        )
    ax = style.axes_of_size(ax, 5.5, 2.8)
    for counts, name, colour, height in (
        (right, "right", RIGHT, 0.92), (wrong, "wrong", WRONG, 0.82),
    ):  # fmt: skip
        number = int(np.sum(counts))
        share = np.asarray(counts, np.float64) / max(number, 1)
        ax.stairs(share, edges, fill=True, color=colour, alpha=0.25)
        ax.stairs(share, edges, color=colour, linewidth=1.4, label=name)
        style.write(
            ax, 0.98, height, f"{name}: {number:,} images", color=colour, ha="right", va="top",
            transform=ax.transAxes, fontsize=SMALL + 1,
        )  # fmt: skip
    ax.set_xlim(float(edges[0]), float(edges[-1]))
    ax.set_ylim(bottom=0)
    style.open_frame(ax, "bottom")
    ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
    ax.set(xlabel="margin: second smallest distance minus smallest", ylabel="share of images")
    return ax


@checked
def agreement(
    both: int,
    only_first: int,
    only_second: int,
    neither: int,
    names: Sequence[str],
    *,
    ax: Axes | None = None,
) -> Axes:
    """Draw how many images two metrics predict right together, alone, and not at all.

    Parameters
    ----------
    both, only_first, only_second, neither
        Numbers of images.
    names
        Of the two metrics.
    ax
        Where to draw; default: a new figure.
    """
    if len(names) != 2:
        raise InputError(f"{len(names)} names, expected those of two metrics")
    first, second = names
    total = max(both + only_first + only_second + neither, 1)
    ax = style.axes_of_size(ax, 3.6, 2.4)
    tiles = [
        (0, 0, both, RIGHT), (1, 0, only_first, ACCENT),
        (0, 1, only_second, ACCENT), (1, 1, neither, WRONG),
    ]  # fmt: skip
    for x, y, count, colour in tiles:
        strength = 0.08 + 0.5 * count / total
        ax.add_patch(Rectangle((x - 0.48, y - 0.47), 0.96, 0.94, color=colour, alpha=strength))
        style.write(ax, x, y - 0.08, f"{count:,}", ha="center", va="center", fontsize=SMALL + 3)
        style.write(ax, x, y + 0.22, f"{100 * count / total:.2f} %", ha="center", va="center")
    ax.set(xlim=(-0.5, 1.5), ylim=(1.5, -0.5))
    style.bare(ax)
    style.name_ticks(ax.xaxis, [f"{second} right", f"{second} wrong"])
    style.name_ticks(ax.yaxis, [f"{first} right", f"{first} wrong"])
    ax.tick_params(labeltop=True, labelbottom=False)
    return ax


@checked
def class_counts(
    counts: Mapping[str, Mapping[str, int] | xr.Dataset], *, ax: Axes | None = None
) -> Axes:
    """Draw how many images each class has in each split.

    Up to 40 classes have a bar for each split; of more the counts are drawn as a line for each
    split, from its largest class to its smallest.

    Parameters
    ----------
    counts
        For each split, in which every class is, the number of images by class; or its images.
    ax
        Where to draw; default: a new figure.
    """
    given: Mapping[str, Any] = counts
    counted: dict[str, Mapping[str, int]] = {
        split: label_counts(one) if is_data_set(one) else one for split, one in given.items()
    }
    names = list(next(iter(counted.values()), {}))
    if not names or any(set(by_class) != set(names) for by_class in counted.values()):
        raise InputError("counts of other classes in each split, expected the same, one at least")
    if len(names) > MAX_BARS:
        return _count_lines(counted, len(names), ax)
    ax = style.axes_of_size(ax, 5.5, 0.8 + len(names) * max(style.LINE_INCHES, 0.17 * len(counted)))
    thickness = style.BAR / len(counted)
    largest = max(max(by_class.values()) for by_class in counted.values())
    for number, (split, by_class) in enumerate(counted.items()):
        shift = (number - (len(counted) - 1) / 2) * thickness
        positions = np.arange(len(names)) + shift
        values = [by_class[name] for name in names]
        colour = SPLIT_COLOURS[number % len(SPLIT_COLOURS)]
        ax.barh(positions, values, thickness, color=colour, label=style.one_line(split))
        for y, value in zip(positions.tolist(), values, strict=True):
            style.write(ax, value, y, f" {value:,}", va="center", color=MUTED, fontsize=SMALL - 1)
    style.name_bars(ax, names)
    ax.set_xlim(0, 1.15 * largest or 1)
    return _name_splits(ax)


def _count_lines(counts: Mapping[str, Mapping[str, int]], number: int, ax: Axes | None) -> Axes:
    ax = style.axes_of_size(ax, 5.5, 2.8)
    for at, (split, by_class) in enumerate(counts.items()):
        values = sorted(by_class.values(), reverse=True)
        colour = SPLIT_COLOURS[at % len(SPLIT_COLOURS)]
        ax.stairs(values, np.arange(number + 1), baseline=None, color=colour, linewidth=1.4,
                  label=style.one_line(split))  # fmt: skip
    ax.set_xlim(0, number)
    ax.set_ylim(bottom=0)
    style.open_frame(ax, "bottom", "left")
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    ax.set(xlabel=f"{number:,} classes, from the largest to the smallest")
    return _name_splits(ax, "images")


def _name_splits(ax: Axes, ylabel: str = "") -> Axes:
    legend = ax.legend(frameon=False, fontsize=SMALL, labelcolor=INK, loc="lower right",
                       bbox_to_anchor=(1, 1), ncols=4, borderaxespad=0)  # fmt: skip
    for text in legend.get_texts():
        text.set(parse_math=False, usetex=False)
    if ylabel:
        ax.set_ylabel(ylabel)
    else:
        ax.set_xlabel("images")
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    return ax
