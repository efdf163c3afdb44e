"""Ranges of pixels as users write them: `ROWS,COLS`."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.core.errors import InputError


def parse_range(text: str, size: int, what: str) -> slice:
    """Return the slice that `A:B`, `A:`, `:B` or a number of lines means.

    Raises
    ------
    InputError
        Where it is none of these, or holds no line of the image.
    """
    first, colon, last = text.partition(":")
    try:
        start = int(first) if first and colon else 0
        stop = int(last if colon else first) if (last if colon else first) else size
    except ValueError:
        start, stop = 0, 0
    if not 0 <= start < min(stop, size):
        raise InputError(
            f"--pixels: {what} {text!r} hold no line of an image of {size}; expected such as "
            f"0:{size} or {size}"
        )
    return slice(start, min(stop, size))


def parse_pixels(text: str, shape: Sequence[int]) -> tuple[slice, slice]:
    """Return the rows and columns of an image of `shape` that `ROWS,COLS` means.

    Raises
    ------
    InputError
        Where it is not two ranges, as of `parse_range`.
    """
    rows, comma, columns = text.partition(",")
    if not comma:
        raise InputError(f"--pixels {text}: expected ROWS,COLS, such as 5:25,4:24 or 10,10")
    return parse_range(rows, shape[0], "rows"), parse_range(columns, shape[1], "columns")
