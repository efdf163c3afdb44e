"""The share of a split that a job holds out of the fit, to measure it."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from pipeline.config.settings import one_or_many


def _as_share(value: object) -> object:
    """Read a share written as `20%`."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", value)
    if match is None:
        raise ValueError("expected a share, such as 20% or 0.2")
    return float(Fraction(match[1]) / 100)


Share = Annotated[float, BeforeValidator(_as_share), Field(gt=0, lt=1, strict=True)]


def measure_held_out(content: object) -> object:
    """Let a job that holds images out measure just these: `evaluate` is the split that it fits.

    Raises
    ------
    ValueError
        Where the job asks for other splits too, or leaves out one image at a time.
    """
    if not isinstance(content, dict) or content.get("holdout") is None:
        return content
    fit: Any = content.get("fit", "train")
    given = content.get("evaluate", fit)
    if list(one_or_many(given)) != [fit]:  # type: ignore[call-overload]
        raise ValueError(
            f"evaluate is {given!r}, with holdout expected '{fit}', the split that is divided; "
            "leave evaluate out"
        )
    if content.get("leave_one_out"):
        raise ValueError("holdout and leave_one_out, expected one of the two; leave one out")
    return content | {"evaluate": [fit]}
