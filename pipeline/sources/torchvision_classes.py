"""What a class of torchvision's data sets takes and offers: read from its signature.

So any class that torchvision has, or will have, can be named; only how its splits are asked for
must be one of three ways: an argument `train`, an argument `split`, or none.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchvision import datasets

from pipeline.core.errors import ConfigError
from pipeline.core.messages import nearest

# what classes raise at files that are missing or damaged, or at arguments
OPEN_ERRORS = (OSError, RuntimeError, ValueError, TypeError, KeyError, ImportError, EOFError)
_PROBE = "?"
_VALID = "Valid values are {"  # what torchvision says of a value that it does not know
_USUAL_SPLITS = ("train", "val", "valid", "test")
# splits made of others, or all of what others hold
_UNIONS = frozenset({"all", "trainval", "train_noval", "10fold", "train-challenge"})
_TRAIN = {"train": True, "test": False}
_OURS = ("download", "transform", "target_transform", "transforms", "loader", "is_valid_file")


def one_line(error: Exception) -> str:
    """Return what an exception says, without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


def is_about_a_value(error: Exception) -> bool:
    """Tell whether a class says that it does not know the value of an argument."""
    return _VALID in str(error)


def find_class(name: str) -> type[Any]:
    """Return the data set's class, whatever the case of its name.

    Raises
    ------
    ConfigError
        Where there is none.
    """
    known = {n.lower(): n for n in datasets.__all__ if inspect.isclass(getattr(datasets, n))}
    if name.lower() not in known:
        raise ConfigError(f"torchvision has no data set '{name}'; {nearest(name, known.values())}")
    found: type[Any] = getattr(datasets, known[name.lower()])
    return found


def parameters_of(dataset: type[Any]) -> dict[str, inspect.Parameter]:
    """Return the arguments of a class, with those of its parents where it passes on others."""
    found: dict[str, inspect.Parameter] = {}
    for parent in dataset.__mro__:
        if "__init__" not in vars(parent):
            continue
        own = list(inspect.signature(parent).parameters.values())
        passed_on = any(p.kind is p.VAR_KEYWORD for p in own)
        found = {p.name: p for p in own if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)} | found
        if not passed_on:
            break
    return found


def check_options(dataset: type[Any], options: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for an option that a class does not have, or lacks."""
    parameters = parameters_of(dataset)
    allowed = [name for name in parameters if name not in _OURS]
    for name in options:
        if name not in allowed:
            raise ConfigError(
                f"{dataset.__name__} has no option '{name}' that can be given; "
                f"{nearest(name, allowed)}"
            )
    for name, parameter in parameters.items():
        # a split without default is found by `split_arguments`, unless `train` makes the splits
        by_itself = name == "root" or (name == "split" and "train" not in parameters)
        if parameter.default is parameter.empty and name not in options and not by_itself:
            known = _split_values(dataset, options) if name == "split" else ()
            expected = f", one of {', '.join(known)}" if known else ""
            raise ConfigError(f"{dataset.__name__} needs the option '{name}'{expected}")


def split_arguments(dataset: type[Any], options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the arguments of each split that a class has, but for `root`."""
    parameters = parameters_of(dataset)
    base = {name: value for name, value in options.items() if name != "root"}
    if "train" in parameters:
        return {
            name: {**base, "train": value}
            for name, value in _TRAIN.items()
            if options.get("train", value) == value
        }
    if "split" not in parameters:
        return {"train": base}
    if "split" in options:
        return {str(options["split"]): base}
    values = _split_values(dataset, options) or list(_USUAL_SPLITS)
    alone = [v for v in values if v not in _UNIONS and "+" not in v]
    chosen = alone if "train" in alone or "train-standard" in alone else values
    return {value: {**base, "split": value} for value in chosen}


def _split_values(dataset: type[Any], options: Mapping[str, Any]) -> list[str]:
    """Return the values that `split` accepts: what the class says of one that it does not know."""
    given = {**options, "split": _PROBE}
    if "root" in parameters_of(dataset):
        given["root"] = os.devnull
    try:
        dataset(**given)
    except OPEN_ERRORS as error:
        _, found, listed = str(error).partition(_VALID)
        return re.findall(r"'([^']+)'", listed) if found else []
    return []


def construct(
    dataset: type[Any], root: Path, arguments: Mapping[str, Any], fetch: bool = False
) -> Any:
    """Return a data set of a class.

    Parameters
    ----------
    dataset
        The class.
    root
        The folder that its files lie below, if it has any.
    arguments
        The others, as of `split_arguments`.
    fetch
        Whether to download them.
    """
    given, parameters = dict(arguments), parameters_of(dataset)
    if "root" in parameters:
        given["root"] = str(root)
    if "download" in parameters:
        given["download"] = fetch
    return dataset(**given)
