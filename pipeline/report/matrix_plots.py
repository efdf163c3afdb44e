"""Heat maps of classes against classes: confusion and distances between prototypes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

from pipeline.core.arguments import checked
from pipeline.core.errors import InputError
from pipeline.core.exact import Float64Array
from pipeline.report.plot_style import (
    SEQUENTIAL,
    SMALL,
    add_colour_bar,
    axes_of_size,
    ink_on,
    metric_of,
    name_ticks,
    write_inside,
)

MAX_NUMBERS = 20  # classes up to which each cell has its number
MAX_NAMES = 40  # classes up to which each has its name
MAX_OPTIMAL = 300  # classes up to which leaves are ordered best, which takes their cube


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
        As `Run.metrics`, or one of its splits.
    metric
        Which of them.
    order
        Positions of classes, as `confusion_order` returns; default: as they are.
    ax
        Where to draw; default: a new figure.
    """
    found = metric_of(metrics, metric, "confusion")
    counts = np.asarray(found["counts"], np.int64)
    chosen = _order(order, len(counts))
    counts = counts[np.ix_(chosen, chosen)]
    names = [found["class_names"][position] for position in chosen]
    texts = [[f"{count:,}" if count else "" for count in row] for row in counts.tolist()]
    norm = PowerNorm(0.5, 0, 1)
    ax = _heat_map(row_shares(counts), names, texts, "share of the class", norm, ax)
    ax.set(xlabel="predicted", ylabel="label")
    return ax


def row_shares(counts: npt.NDArray[Any]) -> Float64Array:
    """Divide each row by its sum; a row of nothing stays 0."""
    return np.asarray(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))


@checked
def confusion_order(counts: npt.NDArray[Any]) -> list[int]:
    """Return positions of classes that put those next to each other which blur into each other.

    Average linkage of how often two classes are mistaken for one another, each in shares of its
    images; up to 300 classes the leaves of the tree are in the best order.

    Parameters
    ----------
    counts
        [label, predicted].
    """
    number = len(counts)
    if number < 3:
        return list(range(number))
    shares = row_shares(np.asarray(counts))
    mixed = (shares + shares.T) / 2
    np.fill_diagonal(mixed, mixed.max())
    apart = mixed.max() - mixed
    condensed = squareform(apart, checks=False)
    tree = hierarchy.linkage(condensed, "average")
    if number <= MAX_OPTIMAL:
        tree = hierarchy.optimal_leaf_ordering(tree, condensed)
    return [int(position) for position in hierarchy.leaves_list(tree)]


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
    ax = axes_of_size(ax, 1.1 * side + 0.9, side)
    shown = ax.imshow(values, cmap=SEQUENTIAL, norm=norm, interpolation="nearest")
    add_colour_bar(ax, shown, meaning)
    ax.spines[:].set_visible(False)
    if number > MAX_NAMES:
        ax.set(xticks=[], yticks=[])
        return ax
    name_ticks(ax.xaxis, names)
    name_ticks(ax.yaxis, names)
    ax.tick_params(axis="x", labelrotation=90)
    if number > MAX_NUMBERS:
        return ax
    longest = max(len(text) for line in texts for text in line)
    size = min(SMALL, SMALL * 5 / max(longest, 1))
    colours = np.asarray(shown.to_rgba(values))
    for row, line in enumerate(texts):
        for column, text in enumerate(line):
            ink = ink_on(colours[row, column][:3])
            write_inside(ax, column, row, text, size, ink)
    return ax
