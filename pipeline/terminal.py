"""Tables for a terminal, and plain text where there is none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.config.settings import parse_pixels
from pipeline.core.arguments import checked
from pipeline.core.errors import ShapeError, printable


def _console(stream: TextIO | None = None) -> Console:
    console = Console(highlight=False, file=stream)
    if not console.is_terminal:
        console.width = 10_000  # a pipe or a file has no width to fold at
    return console


@checked
def print_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], stream: TextIO | None = None
) -> None:
    """Print a table, to stdout by default; columns of numbers are set right.

    Raises
    ------
    ShapeError
        Where a row has other than one cell for each column.
    """
    for number, row in enumerate(rows):
        if len(row) != len(header):
            raise ShapeError(
                f"row {number} has {len(row)} cells, expected {len(header)}, one for each column "
                f"({', '.join(header)}); give empty texts where there is nothing"
            )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column, name in enumerate(header):
        cells = [row[column] for row in rows]
        numeric = bool(cells) and all(cell[:1].isdigit() or cell == "-" for cell in cells)
        # where the terminal is narrow names are folded, and numbers never
        justify: Any = "right" if numeric else "left"
        table.add_column(
            Text(printable(name)), justify=justify, no_wrap=numeric, overflow=_overflow(numeric)
        )
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    _console(stream).print(table)


def _overflow(numeric: bool) -> Any:
    return "ellipsis" if numeric else "fold"


@checked
def print_pixels(image: npt.NDArray[Any], full_scale: int, ranges: str) -> None:
    """Print pixel values shaded by darkness, as the seed article shows them.

    Parameters
    ----------
    image
        [y, x] or [y, x, channel]; channels are shown in hex, one after the other.
    full_scale
        The pixel value that counts as 1, shown darkest (or, with three channels, in colour).
    ranges
        `ROWS,COLS`, each as in `parse_range`.
    """
    if image.ndim not in (2, 3):
        raise ShapeError(f"an image of shape {image.shape}, expected (y, x) or (y, x, channel)")
    rows_part, columns_part = parse_pixels(ranges, image.shape)
    part = image[rows_part, columns_part]
    table = Table(box=None, padding=0, show_edge=False)
    table.add_column("", justify="right")
    width = 2 + (6 if part.shape[2:] == (3,) else len(str(full_scale)))
    for column in range(part.shape[1]):
        table.add_column(f"{columns_part.start + column} ", justify="right", min_width=width)
    for number, line in enumerate(part):
        cells = [_shaded(pixel, full_scale) for pixel in line]
        table.add_row(f"{rows_part.start + number} ", *cells)
    _console().print(table)


def _shaded(pixel: Any, full_scale: int) -> Text:
    values = np.atleast_1d(pixel)
    share = np.clip(values / full_scale, 0, 1)
    if len(values) == 3:
        colour = [round(255 * part) for part in share.tolist()]
        digits = len(f"{full_scale:x}")
        text = "".join(f"{value:0{digits}x}" for value in values.tolist())
    else:
        colour = [255 - round(255 * float(share.mean()))] * 3
        text = "/".join(str(value) for value in values.tolist())
    ink = "black" if sum(colour) > 382 else "white"
    return Text(
        f" {text:>{len(str(full_scale))}} ",
        style=f"{ink} on rgb({colour[0]},{colour[1]},{colour[2]})",
    )
