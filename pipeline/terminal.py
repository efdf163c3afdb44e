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

_GAP = 3  # between two columns
_NAMES, _FOLDED = 26, 12  # columns of the terminal that names and other texts may be folded to


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

    In a terminal it is never wider than that: names are folded, and where the numbers have no room
    for all that, columns follow below, beside the first one again.

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
    console = _console(stream)
    columns = [
        [Text(printable(text)) for text in column] for column in zip(header, *rows, strict=True)
    ]
    numeric = [_is_numeric(cells) for _, *cells in columns]
    for group in _groups(columns, numeric, console.width):
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for at in group:
            if numeric[at]:
                table.add_column(columns[at][0], justify="right", no_wrap=True, overflow="ellipsis")
            else:
                table.add_column(columns[at][0], overflow="fold")
        for line in range(1, len(rows) + 1):
            table.add_row(*(columns[at][line] for at in group))
        console.print(table)


def _is_numeric(cells: Sequence[Text]) -> bool:
    return bool(cells) and all(cell.plain[:1].isdigit() or cell.plain == "-" for cell in cells)


def _groups(
    columns: Sequence[Sequence[Text]], numeric: Sequence[bool], width: int
) -> list[list[int]]:
    """Return which columns are printed beside each other; the first one always is."""
    groups, left = [[0]], 0
    for at, cells in enumerate(columns):
        needed = max(cell.cell_len for cell in cells)
        needed = needed if numeric[at] else min(needed, _NAMES if at == 0 else _FOLDED)
        if at == 0:
            first = left = width - needed
            continue
        if needed + _GAP > left and len(groups[-1]) > 1:
            groups.append([0])
            left = first
        groups[-1].append(at)
        left -= needed + _GAP
    return groups


@checked
def print_pixels(image: npt.NDArray[Any], full_scale: int, ranges: str) -> None:
    """Print pixel values shaded by darkness, as the seed article shows them.

    In a terminal columns that have no room follow below, beside the numbers of the rows again.

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
    lines = [[_shaded(pixel, full_scale) for pixel in line] for line in part]
    names = [f"{columns_part.start + column} " for column in range(part.shape[1])]
    margin = [f"{rows_part.start + number} " for number in range(len(lines))]
    width = max(2 + (6 if part.shape[2:] == (3,) else len(str(full_scale))), *map(len, names))
    width = max(width, *(cell.cell_len for line in lines for cell in line))
    console = _console()
    most = max(1, (console.width - max(map(len, margin))) // width)  # columns beside each other
    for start in range(0, len(names), most):
        table = Table(box=None, padding=0, show_edge=False)
        table.add_column("", justify="right")
        for name in names[start : start + most]:
            table.add_column(name, justify="right", min_width=width, overflow="fold")
        for name, line in zip(margin, lines, strict=True):
            table.add_row(name, *line[start : start + most])
        console.print(table)


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
