"""What pages and plots have in common: the scale of heat maps, and names on one line."""

from __future__ import annotations

import unicodedata

import numpy as np
import numpy.typing as npt

from pipeline.core.errors import printable

MAX_NAME = 28  # characters of a name beside a bar
MAX_NUMBERS = 20  # classes up to which each cell of a heat map has its number
MAX_NAMES = 40  # classes up to which each has its name

STOPS = ("#f7fbff", "#6baed6", "#08306b")
"""The scale of heat maps: at 0, in the middle, and at 1; even steps between."""


def text_width(text: str) -> int:
    """Return the width of a text in columns: two for each wide character."""
    return sum(1 + (unicodedata.east_asian_width(letter) in "WF") for letter in text)


def one_line(text: str, width: int = MAX_NAME) -> str:
    """Return a text as one printable line, cut to a width in columns with an ellipsis."""
    line = printable(" ".join(text[: 8 * width].split()))
    if text_width(line) <= width and len(text) <= 8 * width:
        return line
    while line and text_width(line) >= width:
        line = line[:-1]
    return line.rstrip() + "…"


def palette() -> npt.NDArray[np.uint8]:
    """Return the scale of heat maps as 256 colours, [256, 3]."""
    stops = np.array([list(bytes.fromhex(stop[1:])) for stop in STOPS], np.float64)
    at = np.linspace(0, len(STOPS) - 1, 256)
    channels = [np.interp(at, range(len(STOPS)), channel) for channel in stops.T]
    return np.round(np.stack(channels, axis=1)).astype(np.uint8)


def needs_white(colours: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Tell on which colours, [..., 3], white text has more contrast than black (WCAG)."""
    shares = colours / 255
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    return np.asarray(linear @ np.array([0.2126, 0.7152, 0.0722]) < 0.179)
