"""The door of the public functions: arguments are checked against the annotations there.

What is plainly meant is converted: one text where several are expected, a text for a path, a list
for an array. Anything else is refused in one line, instead of failing somewhere further in.
"""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar, Union, Unpack

import numpy as np

from pipeline.core.errors import SchemaError, nearest
from pipeline.core.paths import is_path_like, locate

P = ParamSpec("P")
T = TypeVar("T")
_NO = object()  # what a value becomes that is not what a hint says
_MANY = (Sequence, Iterable, Collection, tuple, list)
_NUMBERS = "biuf"
_LONGEST = 60


def checked(function: Callable[P, T]) -> Callable[P, T]:
    """Check the arguments of a function against its annotations whenever it is called.

    Raises
    ------
    SchemaError
        From the call, where an argument is none of what its annotation says.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def door(*arguments: P.args, **keywords: P.kwargs) -> T:
        _refuse_unknown(function, signature, keywords)
        bound = signature.bind(*arguments, **keywords)
        for name, value in bound.arguments.items():
            hint = _hints(function).get(name, Any)
            kind = signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_KEYWORD and typing.get_origin(hint) is Unpack:
                known = typing.get_type_hints(typing.get_args(hint)[0])
                for key, one in value.items():
                    value[key] = _fitted(function, key, one, known[key])
            elif kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
                bound.arguments[name] = _fitted(function, name, value, hint)
        return function(*bound.args, **bound.kwargs)

    return door


def _refuse_unknown(
    function: Callable[..., Any], signature: inspect.Signature, keywords: Mapping[str, Any]
) -> None:
    """Raise `TypeError` for a keyword that a function does not take, with the nearest it does."""
    known: list[str] = []
    for name, parameter in signature.parameters.items():
        hint = _hints(function).get(name, Any)
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD:
            known.append(name)
        elif typing.get_origin(hint) is not Unpack:
            return
        else:
            known += typing.get_type_hints(typing.get_args(hint)[0])
    for key in keywords:
        if key not in known:
            what = f"{function.__name__}() got an unexpected keyword argument '{key}'"
            raise TypeError(f"{what}; {nearest(key, known)}")


def _fitted(function: Callable[..., Any], name: str, value: Any, hint: Any) -> Any:
    """Return an argument as its annotation has it, or refuse it."""
    fitted = _fit(value, hint)
    if fitted is _NO:
        given = f"{function.__name__}(): '{name}' is {_describe(value)}"
        raise SchemaError(f"{given}, expected {_spell(hint)}")
    return fitted


@functools.cache
def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    return typing.get_type_hints(function)


def _resolved(hint: Any) -> Any:
    """Return what an alias of a `type` statement stands for; those of numpy 2.5 are such."""
    while hasattr(alias := typing.get_origin(hint) or hint, "__value__"):
        inner = typing.get_args(hint)
        hint = alias.__value__[inner] if inner else alias.__value__
    return hint


def _fit(value: Any, hint: Any) -> Any:
    """Return a value as a hint has it, or `_NO`."""
    hint = _resolved(hint)
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or isinstance(hint, TypeVar):
        return value
    if origin in (Union, types.UnionType):
        return _fit_one_of(value, inner)
    if origin is Literal:
        return value if type(value) in map(type, inner) else _NO  # which it may be, it says itself
    if origin in _MANY:
        return _fit_many(value, inner)
    return _fit_kind(value, origin or hint)


def _fit_one_of(value: Any, hints: tuple[Any, ...]) -> Any:
    """Return a value as the hint has it that takes it as it is, else as the first that takes it."""
    best = _NO
    for hint in sorted(hints, key=lambda hint: hint is not str):  # a text need be no path then
        fitted = _fit(value, hint)
        if fitted is value:
            return fitted
        best = fitted if best is _NO else best
    return best


def _fit_many(value: Any, inner: tuple[Any, ...]) -> Any:
    """Return several values of a kind; one text stands for itself."""
    texts = bool(inner) and inner[0] is str
    if isinstance(value, str):
        return (value,) if texts else _NO
    if hasattr(value, "tolist") and not hasattr(value, "data_vars"):
        value = value.tolist()
    if not isinstance(value, Iterable) or isinstance(value, bytes | Mapping):
        return _NO
    if not texts and not isinstance(value, list | tuple):
        return value
    items = value if isinstance(value, Sequence) else tuple(value)
    kind = inner[0] if inner else Any
    fitted = [_fit(item, kind) for item in items]
    if any(item is _NO for item in fitted):
        return _NO
    same = all(new is old for new, old in zip(fitted, items, strict=True))
    return items if same else fitted


def _fit_kind(value: Any, kind: Any) -> Any:
    """Return a value of a class or protocol, or what plainly stands for one."""
    if kind is None or kind is types.NoneType:
        return value if value is None else _NO
    if kind is Path:
        return locate(value) if is_path_like(value) else _NO
    if kind in (int, float):
        numbers = (int, np.integer) if kind is int else (int, float, np.integer, np.floating)
        good = isinstance(value, numbers) and not isinstance(value, bool)
        return _NO if not good else value if isinstance(value, kind) else kind(value)
    if kind is np.ndarray:
        if isinstance(value, list) or (hasattr(value, "__array__") and hasattr(value, "shape")):
            value = np.asarray(value)
        return value if isinstance(value, np.ndarray) and value.dtype.kind in _NUMBERS else _NO
    if getattr(kind, "_is_protocol", False):
        names = [name for name in vars(kind) if not name.startswith("_")]
        return value if all(hasattr(value, name) for name in names) else _NO
    if not isinstance(kind, type):
        return value
    if issubclass(kind, typing.IO):  # what files are, and what notebooks and tests put for them
        return value if hasattr(value, "write") else _NO
    return value if isinstance(value, kind) else _NO


def _spell(hint: Any) -> str:
    """Return what a hint says, in words: `Dataset`, `str or None`."""
    hint = _resolved(hint)
    inner = typing.get_args(hint)
    if typing.get_origin(hint) in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_spell(part) for part in inner))
    if typing.get_origin(hint) is Literal:
        return " or ".join(repr(part) for part in inner)
    if typing.get_origin(hint) in _MANY:
        return "a list of texts" if inner and inner[0] is str else "a list"
    kind = typing.get_origin(hint) or hint
    words = {
        Path: "a path", str: "a text", types.NoneType: "None", np.ndarray: "an array of numbers",
        int: "a whole number", float: "a number", Mapping: "a mapping",
    }  # fmt: skip
    return words.get(kind, getattr(kind, "__name__", str(kind)))


def _describe(value: object) -> str:
    text = repr(value)
    plain = isinstance(value, str | int | float | bytes | None)
    kind = type(value).__name__
    if value is None or not plain:
        return "None" if value is None else f"of type {kind}"
    return f"{text if len(text) <= _LONGEST else text[:_LONGEST] + '...'} ({kind})"
