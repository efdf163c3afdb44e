"""Plots, a function a picture: each draws into `ax`, or into axes of a new figure, and returns it.

Figures are matplotlib's; `ax.get_figure().savefig("plot.svg")` writes one.
"""

from __future__ import annotations

from pipeline.report.image_plots import difference, gallery, image, pixel_values, prototypes
from pipeline.report.matrix_plots import class_distances, confusion, confusion_order
from pipeline.report.plot_style import ACCENT, INK, MUTED, ON_DARK, ON_LIGHT, RIGHT, WRONG
from pipeline.report.result_plots import accuracy, agreement, class_counts, distances, margins

__all__ = [
    "ACCENT", "INK", "MUTED", "ON_DARK", "ON_LIGHT", "RIGHT", "WRONG", "accuracy", "agreement",
    "class_counts", "class_distances", "confusion", "confusion_order", "difference", "distances",
    "gallery", "image", "margins", "pixel_values", "prototypes",
]  # fmt: skip
