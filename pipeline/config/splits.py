"""Which splits a job fits and measures: those that it names, else chosen from those there are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from pipeline.config.settings import one_or_many
from pipeline.core.errors import StoreError, listed

# what splits are called, or have in their names; the first that there is is taken
FITTED = ("train", "training", "trn", "trainset")
MEASURED = (
    "test", "testing", "tst", "testset", "valid", "val", "validation", "validset", "valset", "dev",
    "eval", "evaluation",
)  # fmt: skip


def choose_splits(
    counts: Mapping[str, int],
    fit: str | None,
    evaluate: Sequence[str] | None,
    *,
    alone: bool = False,
) -> tuple[str, tuple[str, ...]]:
    """Return the split to fit and those to measure, those that are given as they are.

    Parameters
    ----------
    counts
        How many labelled images each split holds; one with none is chosen only where all are so.
    fit, evaluate
        The splits that a job names; None: to be chosen.
    alone
        Whether a job that names no other measures the split that it fits.

    Raises
    ------
    StoreError
        Where no split is plainly the one to fit.

    Examples
    --------
    >>> choose_splits({"train": 10, "Val": 5}, None, None)
    ('train', ('Val',))
    >>> choose_splits({"all": 10}, None, None)
    ('all', ('all',))
    """
    names = [name for name, count in counts.items() if count] or list(counts)
    if fit is None:
        fit = _named(names, FITTED) or _left(names, evaluate, alone)
    if evaluate is None:
        chosen = None if alone else _named(names, MEASURED)
        evaluate = (chosen or fit,)
    return fit, tuple(evaluate)


def _named(names: Iterable[str], words: Sequence[str]) -> str | None:
    """Return the name that is the first of some words, or has it: in any case, exactly at best."""
    known: dict[str, str] = {}
    for name in names:
        for word in re.split(r"[\W_\d]+", name.casefold()):
            known.setdefault(word, name)
    known |= {name.casefold(): name for name in reversed(list(names))}
    known |= {name: name for name in names}
    return next((known[word] for word in words if word in known), None)


def _left(names: Sequence[str], evaluate: Sequence[str] | None, alone: bool) -> str:
    """Return the only split that can be fitted, or raise `StoreError`."""
    if alone and evaluate is not None:
        return evaluate[0]
    left = [name for name in names if evaluate is None or name not in evaluate] or list(names)
    if len(left) == 1:
        return left[0]
    raise StoreError(
        f"the image set has the splits {listed(left)}, and none is called 'train'; name the one "
        f"that prototypes are made from (--fit {left[0] if left else 'NAME'}, or fit in the job)"
    )


def describe_choice(
    fit: str, evaluate: Sequence[str], left: Mapping[str, int], *, leaves_one_out: bool
) -> str:
    """Return the line that says which splits were chosen; `left` are others, and their labels."""
    measured = " and ".join(f"'{name}'" for name in evaluate)
    without = ", each image from its class without it" if leaves_one_out else ""
    rest = ", ".join(f"'{n}'{'' if count else ' (no labels)'}" for n, count in left.items())
    rest = f"; not used: {rest}" if rest else ""
    return (
        f"prototypes from '{fit}', measured {measured}{without}: chosen from the splits there are"
        f"{rest}; --fit and --evaluate name others"
    )


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
    fit, given = content.get("fit"), content.get("evaluate")
    expected: Any = "train" if fit is None else fit
    if given is not None and list(one_or_many(given)) != [expected]:  # type: ignore[call-overload]
        raise ValueError(
            f"evaluate is {given!r}, with holdout expected '{expected}', the split that is "
            "divided; leave evaluate out"
        )
    if content.get("leave_one_out"):
        raise ValueError("holdout and leave_one_out, expected one of the two; leave one out")
    return content if fit is None else content | {"evaluate": [fit]}
