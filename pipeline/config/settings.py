"""What all settings share: frozen typed models, the types of their values, the nearest name.

Values come from YAML or from Python, and are refused where they are wrong, never guessed.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from pipeline.core.errors import InputError
from pipeline.core.paths import at_home


def as_name(value: object) -> object:
    """Let class names such as 3 be written without quotes."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def one_or_many(value: object) -> object:
    return [value] if isinstance(value, str | os.PathLike) else value


def unique(values: tuple[str, ...]) -> tuple[str, ...]:
    doubled = next((value for value, count in Counter(values).items() if count > 1), None)
    if doubled is not None:
        raise ValueError(f"names {doubled!r} twice")
    return values


_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12} | {
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
}  # fmt: skip


def as_bytes(value: object) -> object:
    """Read a number of bytes written with a unit, such as `4 GB` or `512 MiB`."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?i?B)\s*", value, re.IGNORECASE)
    if match is None:
        raise ValueError("expected a number of bytes, such as 4 GB or 512 MiB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def as_path_text(value: object) -> object:
    """Take a path as well as a text, with `~` for the home folder."""
    if isinstance(value, os.PathLike) or hasattr(value, "joinpath"):
        value = str(value)
    return at_home(value) if isinstance(value, str) else value


PathText = Annotated[str, BeforeValidator(as_path_text), Field(min_length=1)]
LocalPath = Annotated[Path, BeforeValidator(as_path_text)]
Name = Annotated[str, BeforeValidator(as_name), Field(min_length=1)]
Names = Annotated[tuple[Name, ...], Field(min_length=1), AfterValidator(unique)]


class Settings(BaseModel):
    """Settings that cannot be changed and have no unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True
    )


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
