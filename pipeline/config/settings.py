"""What all settings share: frozen typed models, the types of their values, the nearest name.

Values come from YAML or from Python, and are refused where they are wrong, never guessed.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

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
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?i?B)\s*", value, re.IGNORECASE)
    if found is None:
        raise ValueError("expected a number of bytes, such as 4 GB or 512 MiB")
    return int(float(found[1]) * _UNITS[found[2].upper()])


def as_place(value: object) -> object:
    """Let a place be a path as well as a text, with `~` for the home folder."""
    if isinstance(value, os.PathLike) or hasattr(value, "joinpath"):
        value = str(value)
    return at_home(value) if isinstance(value, str) else value


Place = Annotated[str, BeforeValidator(as_place), Field(min_length=1)]
LocalPath = Annotated[Path, BeforeValidator(as_place)]
Name = Annotated[str, BeforeValidator(as_name), Field(min_length=1)]
Names = Annotated[tuple[Name, ...], Field(min_length=1), AfterValidator(unique)]


class Settings(BaseModel):
    """Settings that cannot be changed and have no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)
