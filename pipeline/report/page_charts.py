"""The charts of a run's page: heat maps as tables or pictures, histograms as outlines.

What the templates show of them; names, numbers and axes are the page's own text. matplotlib draws
the same for notebooks (`plots`): importing it and drawing three charts took 0.7 s of CPU time of a
page, these take 5 ms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.core.exact import Float64Array, Int64Array
from pipeline.report.class_order import row_shares
from pipeline.report.look import MAX_NAMES, MAX_NUMBERS, STOPS, needs_white, one_line, palette
from pipeline.report.pictures import as_data

_SIDE = 480  # pixels of a heat map whose classes have no names
_WIDTH, _HEIGHT = 1000, 400  # units of a histogram, which the page stretches
_LABELS = 8  # along an axis, about


def confusion(counts: Int64Array, names: Sequence[str], order: Sequence[int]) -> dict[str, Any]:
    """Return how often images of each class, a row, are predicted as each class, a column.

    The colour is the share among the images of the class, by its root, so that small shares are
    seen; the number, of up to 20 classes, counts images; a cell without number has none.
    """
    counts = counts[np.ix_(order, order)]
    shares, texts = (
        row_shares(counts),
        [[f"{n:,}" if n else "" for n in row] for row in counts.tolist()],
    )
    ticks = [(100 * math.sqrt(share), f"{share:g}") for share in (0, 0.2, 0.4, 0.6, 0.8, 1)]
    return _heat_map(shares, [names[at] for at in order], texts, ticks, root=True) | {
        "meaning": "share of the class", "axes": "down: label; across: predicted",
    }  # fmt: skip


def class_distances(
    distances: Float64Array, names: Sequence[str], order: Sequence[int]
) -> dict[str, Any]:
    """Return how far the prototype of each class is from that of each other one; NaN is nothing."""
    values = distances[np.ix_(order, order)]
    most = float(np.nanmax(values, initial=0.0)) or 1.0
    texts = [["" if math.isnan(value) else f"{value:.3f}" for value in row] for row in values]
    ticks = [(100 * at / most, f"{at:g}") for at in _steps(most)]
    return _heat_map(values / most, [names[at] for at in order], texts, ticks) | {
        "meaning": "distance between prototypes", "axes": "",
    }  # fmt: skip


def _heat_map(
    shares: Float64Array,
    names: Sequence[str],
    texts: Sequence[Sequence[str]],
    ticks: Sequence[tuple[float, str]],
    *,
    root: bool = False,
) -> dict[str, Any]:
    """Return the cells of a heat map, or a picture of them where classes are many."""
    shown = len(names) <= MAX_NUMBERS
    known: dict[str, Any] = {"ticks": ticks, "stops": STOPS, "numbers": shown, "picture": None}
    if len(names) > MAX_NAMES:
        small = _reduced(np.nan_to_num(shares))
        known["picture"] = as_data(_coloured(_levels(small, root)))
        known["side"] = len(small) * max(1, _SIDE // len(small))
        return known
    levels, scale = _levels(np.nan_to_num(shares), root), palette()
    colours = np.array([f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in scale])[levels]
    white, empty = needs_white(scale)[levels], np.isnan(shares)
    known["names"] = [one_line(name) for name in names]
    known["rows"] = [
        (
            name,
            [
                ("" if empty[row, column] else colours[row, column], white[row, column],
                 text if shown else "")
                for column, text in enumerate(texts[row])
            ],
        )
        for row, name in enumerate(known["names"])
    ]  # fmt: skip
    return known


def _levels(shares: Float64Array, root: bool) -> npt.NDArray[np.uint8]:
    return np.round(255 * (np.sqrt(shares) if root else shares)).astype(np.uint8)


def _reduced(shares: Float64Array) -> Float64Array:
    """Return what a pixel of the picture shows: of very many classes the mean of several cells."""
    if len(shares) <= _SIDE:
        return shares
    picture = Image.fromarray(shares.astype(np.float32))
    return np.asarray(picture.resize((_SIDE, _SIDE), Image.Resampling.BOX), np.float64)


def _coloured(levels: npt.NDArray[np.uint8]) -> Image.Image:
    picture = Image.fromarray(levels)
    picture.putpalette(palette().tobytes())
    return picture


def margins(edges: Float64Array, right: Int64Array, wrong: Int64Array) -> dict[str, Any]:
    """Return how margins are distributed where the prediction is right, and where it is wrong.

    Each distribution is drawn in shares of its own number, so that the two can be compared.
    """
    shares = [counts / max(int(counts.sum()), 1) for counts in (right, wrong)]
    most = 1.04 * max(float(share.max()) for share in shares) or 1.0
    low, high = float(edges[0]), float(edges[-1])
    across = _WIDTH * (edges - low) / (high - low)
    named = zip(("right", "wrong"), (right, wrong), shares, strict=True)
    return {
        "box": f"0 0 {_WIDTH} {_HEIGHT}",
        "series": [
            (name, int(counts.sum()), _outline(across, _HEIGHT * (1 - share / most)))
            for name, counts, share in named
        ],
        "x": [(100 * (at - low) / (high - low), f"{at:g}") for at in _steps(high) if at >= low],
        "y": [(100 * at / most, f"{100 * at:.3g} %") for at in _steps(most)],
    }  # fmt: skip


def _outline(across: Float64Array, tops: Float64Array) -> str:
    """Return the path of bars without gaps, from the lower left corner to the lower right one."""
    steps = [f"M{across[0]:.4g},{_HEIGHT}"]
    for left, right, top in zip(across[:-1], across[1:], tops, strict=True):
        steps.append(f"L{left:.4g},{top:.4g}L{right:.4g},{top:.4g}")
    return "".join(steps) + f"L{across[-1]:.4g},{_HEIGHT}"


def _steps(most: float) -> list[float]:
    """Return round numbers from 0 up to `most`, about as many as an axis has room for."""
    size = 10.0 ** math.floor(math.log10(most / _LABELS))
    size *= next(times for times in (1, 2, 5, 10) if most / (times * size) <= _LABELS)
    return [float(f"{size * at:.6g}") for at in range(int(most / size * (1 + 1e-9)) + 1)]
