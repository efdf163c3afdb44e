"""The charts of an audit's page: scores with the threshold, distances within and between splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes

from pipeline.core.exact import Float64Array
from pipeline.report import plot_style as style
from pipeline.report.audit_content import Between, heading
from pipeline.report.page_content import number
from pipeline.report.plots import SPLIT_COLOURS

MOST = 6  # charts of each kind
_SIZE = 5.0, 2.5  # inches


def score_charts(between: Sequence[Between]) -> list[tuple[str, str, Markup]]:
    """Return for each two splits what is drawn, what it says, and the chart of the scores."""
    return [
        (
            heading(sides), _said(sides),
            style.chart(
                partial(_scores, known=sides.known), _SIZE, f"scores-{at}",
                f"Scores of the nearest image. {heading(sides)}. {_said(sides)}",
            ),
        )
        for at, sides in enumerate(between[:MOST])
        if sum(sides.known["scores"]["counts"])
    ]  # fmt: skip


def _said(sides: Between) -> str:
    known = sides.known
    how = "was given" if known["threshold_is_given"] else "was chosen from these scores"
    return (
        f"The threshold of {known['threshold']:.3f} {how}; {known['images']:,} of "
        f"{number(sides.count, 'image')} are in pairs that reach it."
    )


def _scores(ax: Axes, known: Mapping[str, Any]) -> Axes:
    """Draw how many images have a nearest of which score, and the threshold.

    Many images are like no other and few are, so the heights are drawn by their logarithm.
    """
    style.axes_of_size(ax, *_SIZE)
    counts, edges = _bins(known["scores"])
    cut = known["threshold"]
    ax.stairs(counts, edges, fill=True, color=style.RIGHT, alpha=0.25)
    ax.stairs(counts, edges, color=style.RIGHT, linewidth=1.2)
    ax.axvline(cut, color=style.WRONG, linewidth=1.4, linestyle=(0, (4, 3)))
    side = 1 if cut < 0.7 else -1
    style.write(
        ax, cut + 0.012 * side, 0.98, f"threshold {cut:.3f}", color=style.WRONG,
        ha="left" if side > 0 else "right", va="top", transform=ax.get_xaxis_transform(),
        fontsize=style.SMALL + 1,
    )  # fmt: skip
    ax.set_xlim(0, 1)
    ax.set_yscale("symlog", linthresh=1)
    largest = max(float(counts.max()), 1.0)
    ax.set_ylim(0, 2 * largest)
    ticks = [0, *(10**power for power in range(int(np.log10(largest)) + 1))]
    ax.set_yticks(ticks, [f"{tick:,}" for tick in ticks])
    ax.minorticks_off()
    style.open_frame(ax, "bottom")
    ax.set(xlabel="score of the nearest image", ylabel="images")
    return ax


def distance_charts(
    between: Sequence[Between], splits: Sequence[str], metric: str
) -> list[tuple[str, Markup]]:
    """Return a chart for each split: how near the images of every split are to those in it."""
    charts: list[tuple[str, Markup]] = []
    for split in splits:
        lines = [
            sides
            for sides in between
            if sides.second == split and sum(sides.known["distances"]["counts"])
        ]
        lines.sort(key=lambda sides: sides.first != split)
        if len(lines) > 1:
            names = ", ".join(style.one_line(sides.first) for sides in lines)
            charts.append((
                split,
                style.chart(
                    partial(_distances, lines=lines, metric=metric), _SIZE,
                    f"distances-{len(charts)}",
                    f"Distances to the nearest image in {style.one_line(split)}, of: {names}",
                ),
            ))  # fmt: skip
    return charts[:MOST]


def _distances(ax: Axes, lines: Sequence[Between], metric: str) -> Axes:
    style.axes_of_size(ax, *_SIZE)
    last = 0.0
    for at, sides in enumerate(lines[: len(SPLIT_COLOURS)]):
        counts, edges = _bins(sides.known["distances"])
        colour = SPLIT_COLOURS[at]
        ax.stairs(counts / counts.sum(), edges, color=colour, linewidth=1.4)
        style.write(
            ax, 0.99, 0.98 - 0.1 * at, f"of {style.one_line(sides.first, 24)}", color=colour,
            ha="right", va="top", transform=ax.transAxes, fontsize=style.SMALL + 1,
        )  # fmt: skip
        last = max(last, float(edges[1:][counts > 0].max()))
    ax.set_xlim(0, last)
    ax.set_ylim(bottom=0)
    style.open_frame(ax, "bottom")
    ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
    ax.set(xlabel=f"distance to the nearest image by {metric}", ylabel="share of images")
    return ax


def _bins(known: Mapping[str, Any]) -> tuple[Float64Array, Float64Array]:
    counts = np.array(known["counts"], np.float64)
    return counts, np.linspace(known["from"], known["to"], len(counts) + 1)
