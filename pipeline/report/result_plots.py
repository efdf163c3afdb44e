"""Plots of a run's outcome: distances, accuracy, margins, agreement of metrics, image counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from pipeline.core.arguments import checked
from pipeline.core.errors import InputError
from pipeline.report.explanation import Explanation
from pipeline.report.plot_style import (
    ACCENT,
    INK,
    MUTED,
    RIGHT,
    SMALL,
    THIN,
    WRONG,
    axes_of_size,
    bare,
    metric_of,
    name_ticks,
    one_line,
    open_frame,
    write,
)

NEAREST = 10  # classes whose distance is drawn
MAX_BARS = 40  # classes that have a bar each; of more the first and last half of it
BAR, FAINT = 0.72, 0.45  # thickness of a bar; how strong what stands back is
LINE_INCHES = 0.21  # height of a bar with its name
SPLIT_COLOURS = (RIGHT, WRONG, ACCENT, MUTED)


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
    ax = axes_of_size(ax, 5, 0.7 + LINE_INCHES * len(shown))
    for place, at in enumerate(shown):
        marks = []
        colour, strength = MUTED, FAINT
        if place == 0:
            marks.append("predicted")
            colour, strength = (ACCENT if own is None else WRONG), 1.0
        if at == own:
            rank = ranked.index(at) + 1
            marks.append("label" if place < NEAREST else f"label, rank {rank:,}")
            colour, strength = RIGHT, 1.0
        ax.barh(place, values[at], BAR, color=colour, alpha=strength)
        note = f" {values[at]:.4f}" + (f"  {', '.join(marks)}" if marks else "")
        write(ax, float(values[at]), place, note, va="center", color=INK if marks else MUTED)
    _name_bars(ax, [names[at] for at in shown])
    ax.set_xlim(0, 1.5 * max([float(values[at]) for at in shown], default=1) or 1)
    ax.set_xlabel(f"{metric} distance in units of full scale")
    return ax


def _name_bars(ax: Axes, names: Sequence[str]) -> None:
    name_ticks(ax.yaxis, names)
    ax.set_ylim(max(len(names), 1) - 0.5, -0.5)
    open_frame(ax, "left")


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
        As `Run.metrics`, or one of its splits.
    metric
        Which of them; default: the first.
    ax
        Where to draw; default: a new figure.
    """
    metric = metric or next(iter(metrics), None)
    per_class = metric_of(metrics, metric, "per_class")
    known = {name: entry["accuracy"] for name, entry in per_class.items()
             if entry["accuracy"] is not None}  # fmt: skip
    ranked = sorted(known, key=lambda name: -known[name])
    shown: list[str | None] = [*ranked]
    if len(ranked) > MAX_BARS:
        shown = [*ranked[: MAX_BARS // 2], None, *ranked[-MAX_BARS // 2 :]]
    ax = axes_of_size(ax, 5.5, 0.9 + LINE_INCHES * len(shown))
    for place, name in enumerate(shown):
        if name is None:
            between = f"{len(ranked) - MAX_BARS:,} classes between these"
            write(ax, 0.01, place, between, va="center", color=MUTED)
            continue
        ax.barh(place, known[name], BAR, color=RIGHT)
        note = f" {known[name]:.3f} of {per_class[name]['count']:,}"
        write(ax, known[name], place, note, va="center", color=MUTED)
    _name_bars(ax, ["" if name is None else name for name in shown])
    chance = 1 / max(len(per_class), 1)
    ax.axvline(chance, color=INK, linewidth=THIN, linestyle=(0, (4, 3)))
    write(ax, chance, -0.7, f"chance {chance:.2g}", ha="center", va="bottom", color=INK)
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
    ax = axes_of_size(ax, 5.5, 2.8)
    for counts, name, colour, height in (
        (right, "right", RIGHT, 0.92), (wrong, "wrong", WRONG, 0.82),
    ):  # fmt: skip
        number = int(np.sum(counts))
        share = np.asarray(counts, np.float64) / max(number, 1)
        ax.stairs(share, edges, fill=True, color=colour, alpha=0.25)
        ax.stairs(share, edges, color=colour, linewidth=1.4, label=name)
        write(
            ax, 0.98, height, f"{name}: {number:,} images", color=colour, ha="right", va="top",
            transform=ax.transAxes, fontsize=SMALL + 1,
        )  # fmt: skip
    ax.set_xlim(float(edges[0]), float(edges[-1]))
    ax.set_ylim(bottom=0)
    open_frame(ax, "bottom")
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
    ax = axes_of_size(ax, 3.6, 2.4)
    tiles = [
        (0, 0, both, RIGHT), (1, 0, only_first, ACCENT),
        (0, 1, only_second, ACCENT), (1, 1, neither, WRONG),
    ]  # fmt: skip
    for x, y, count, colour in tiles:
        strength = 0.08 + 0.5 * count / total
        ax.add_patch(Rectangle((x - 0.48, y - 0.47), 0.96, 0.94, color=colour, alpha=strength))
        write(ax, x, y - 0.08, f"{count:,}", ha="center", va="center", fontsize=SMALL + 3)
        write(ax, x, y + 0.22, f"{100 * count / total:.2f} %", ha="center", va="center")
    ax.set(xlim=(-0.5, 1.5), ylim=(1.5, -0.5))
    bare(ax)
    name_ticks(ax.xaxis, [f"{second} right", f"{second} wrong"])
    name_ticks(ax.yaxis, [f"{first} right", f"{first} wrong"])
    ax.tick_params(labeltop=True, labelbottom=False)
    return ax


@checked
def class_counts(counts: Mapping[str, Mapping[str, int]], *, ax: Axes | None = None) -> Axes:
    """Draw how many images each class has in each split.

    Up to 40 classes have a bar for each split; of more the counts are drawn as a line for each
    split, from its largest class to its smallest.

    Parameters
    ----------
    counts
        For each split, in which every class is, the number of images by class.
    ax
        Where to draw; default: a new figure.
    """
    names = list(next(iter(counts.values()), {}))
    if not names or any(set(found) != set(names) for found in counts.values()):
        raise InputError("counts of other classes in each split, expected the same, one at least")
    if len(names) > MAX_BARS:
        return _count_lines(counts, len(names), ax)
    ax = axes_of_size(ax, 5.5, 0.8 + len(names) * max(LINE_INCHES, 0.17 * len(counts)))
    thickness = BAR / len(counts)
    largest = max(max(found.values()) for found in counts.values())
    for number, (split, found) in enumerate(counts.items()):
        shift = (number - (len(counts) - 1) / 2) * thickness
        places = np.arange(len(names)) + shift
        values = [found[name] for name in names]
        colour = SPLIT_COLOURS[number % len(SPLIT_COLOURS)]
        ax.barh(places, values, thickness, color=colour, label=one_line(split))
        for place, value in zip(places.tolist(), values, strict=True):
            write(ax, value, place, f" {value:,}", va="center", color=MUTED, fontsize=SMALL - 1)
    _name_bars(ax, names)
    ax.set_xlim(0, 1.15 * largest or 1)
    return _name_splits(ax)


def _count_lines(counts: Mapping[str, Mapping[str, int]], number: int, ax: Axes | None) -> Axes:
    ax = axes_of_size(ax, 5.5, 2.8)
    for at, (split, found) in enumerate(counts.items()):
        values = sorted(found.values(), reverse=True)
        colour = SPLIT_COLOURS[at % len(SPLIT_COLOURS)]
        ax.stairs(values, np.arange(number + 1), baseline=None, color=colour, linewidth=1.4,
                  label=one_line(split))  # fmt: skip
    ax.set_xlim(0, number)
    ax.set_ylim(bottom=0)
    open_frame(ax, "bottom", "left")
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
