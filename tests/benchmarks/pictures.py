"""Draws curves: both axes logarithmic, ours in colour, each line named at its end."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.curves import (
    OURS,
    Panel,
    classes_panel,
    distances_panel,
    job_panel,
    means_panel,
)
from benchmarks.results import Row, note_row
from benchmarks.workbench import Workbench

OURS_COLOUR = "#b3402a"
PEER_COLOURS = ("#3d3d3d", "#4c78a8", "#8a8a8a", "#7a9a5b")
GRID_COLOUR = "#e4e4e4"
# Along fewer decades than this the y axis is marked at 1, 2 and 5.
FEW_DECADES = 2.5
PANEL_INCHES = (5.0, 3.8)
# Names at the ends of lines are this far apart, as a part of the height.
NAME_HEIGHT = 0.062


def rows(bench: Workbench) -> Iterator[Row]:
    """Measure the curves, draw them, and write their numbers beside the pictures."""
    panels = {
        "cost_of_images": [means_panel(bench), distances_panel(bench), job_panel(bench)],
        "cost_of_classes": [classes_panel(bench)],
    }
    bench.pictures.mkdir(parents=True, exist_ok=True)
    for name, drawn in panels.items():
        draw(drawn, bench.pictures / f"{name}.png")
    numbers = {name: [panel.as_dict() for panel in drawn] for name, drawn in panels.items()}
    (bench.pictures / "curves.json").write_text(json.dumps(numbers, indent=2) + "\n")
    yield note_row("pictures", f"{', '.join(f'{name}.png' for name in panels)} in {bench.pictures}")


def draw(panels: Sequence[Panel], path: Path) -> None:
    """Draw panels side by side into one picture."""
    width, height = PANEL_INCHES
    figure = Figure(figsize=(width * len(panels), height), layout="constrained")
    places = figure.subplots(1, len(panels), squeeze=False)[0]
    places[0].set_ylabel("time")
    for axes, panel in zip(places, panels, strict=True):
        _draw_panel(axes, panel)
    figure.savefig(path, dpi=150)


def _draw_panel(axes: Axes, panel: Panel) -> None:
    colours = iter(PEER_COLOURS)
    chosen = {name: OURS_COLOUR if name in OURS else next(colours) for name in panel.seconds}
    for name, seconds in panel.seconds.items():
        mine = name in OURS
        axes.plot(
            panel.places, seconds, color=chosen[name], linewidth=2.2 if mine else 1.3,
            marker="o", markersize=4 if mine else 3, zorder=3 if mine else 2,
        )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel=panel.across)
    axes.set_title(panel.title, loc="left", fontsize=10)
    axes.grid(True, which="major", color=GRID_COLOUR, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(which="both", length=0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _seconds(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    low, high = axes.get_ylim()
    few = math.log10(high / low) < FEW_DECADES
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
    _name_lines(axes, {name: values[-1] for name, values in panel.seconds.items()}, chosen)


def _name_lines(axes: Axes, ends: Mapping[str, float], colours: Mapping[str, str]) -> None:
    """Write each name at the height where its line ends, moved up where two would touch."""
    low, high = np.log10(axes.get_ylim())
    lowest = -1.0
    for name in sorted(ends, key=lambda name: ends[name]):
        height = max((np.log10(ends[name]) - low) / (high - low), lowest + NAME_HEIGHT)
        lowest = height
        axes.text(
            1.02, height, name, transform=axes.transAxes, color=colours[name], fontsize=8.5,
            va="center", fontweight="bold" if name in OURS else "normal",
        )  # fmt: skip


def _seconds(value: float) -> str:
    """Return seconds in the unit that suits them."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= size * 0.999:
            return f"{value / size:,.0f} {unit}"
    return f"{value:g} s"
