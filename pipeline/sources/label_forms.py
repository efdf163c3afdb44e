"""The forms in which labels are stored, and bringing each of them to codes or texts.

Labels come as whole numbers of any width, floats that are whole, truth values, texts, bytes of
texts, Python objects, or one column for each class. What is none of these is refused by its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.core.errors import LabelError, ShapeError, SourceError
from pipeline.core.schema import UNLABELLED

_LARGEST = 2**63 - 1
_KINDS = "biufUSOT"
_SHOWN = 100
_FIRST = 3
_EXPECTED = "expected whole numbers or text, one label for each image, or one column for each class"

Array = npt.NDArray[Any]


def check_form(where: str, count: int, shape: Sequence[int], dtype: np.dtype[Any]) -> None:
    """Raise where an array cannot hold the labels of `count` images, by its header alone."""
    header = f"{where}: labels of {dtype} and shape {tuple(shape)}"
    if dtype.kind not in _KINDS:
        raise SourceError(f"{header}, {_EXPECTED}")
    if not shape or shape[0] != count:
        raise ShapeError(
            f"{header} for {count} images, expected one label for each image; give the labels of "
            "these images, in their order"
        )
    if all(side == 1 for side in shape[1:]):
        return
    if len(shape) > 2:
        raise ShapeError(
            f"{header}, which are masks or boxes, expected one label for each image; name another "
            "array"
        )
    if dtype.kind not in "biuf" or shape[1] == 0:
        raise ShapeError(f"{header}, expected one label for each image; name one column of them")


def canonical(labels: Any, where: str, first: int = 0) -> Array:
    """Return labels [sample] as codes of int64, -1 where there is none, or as text, "" for none.

    Parameters
    ----------
    labels
        [sample], [sample, 1], or [sample, class] with a single 1 in each row; an array of any
        usable type, also masked, or a sequence of Python values.
    where
        What to call their place in messages.
    first
        The number of the first sample, for messages.
    """
    if not isinstance(labels, np.ndarray):
        labels = _as_array(labels)
    check_form(where, len(labels) if labels.ndim else 0, labels.shape, labels.dtype)
    if labels.ndim == 2 and labels.shape[1] > 1:
        return _from_masked_columns(labels, where, first)
    hidden = np.ma.getmaskarray(labels).reshape(-1) if np.ma.isMaskedArray(labels) else None
    values = _from_values(np.asarray(labels).reshape(-1), where, first, hidden)
    if hidden is not None and hidden.any():
        values = np.where(hidden, UNLABELLED if values.dtype.kind == "i" else "", values)
    return values


def _as_array(values: Any) -> Array:
    """Return a sequence as an array whose values stay what they are."""
    if hasattr(values, "__array__"):
        return np.asarray(values)
    values = list(values)
    if values and all(isinstance(v, list | tuple | np.ndarray) for v in values):
        with suppress(ValueError):  # rows of several lengths, each refused by its place
            return np.asarray(values)
    array = np.empty(len(values), object)
    for index, value in enumerate(values):
        array[index] = value
    return array


def _from_values(values: Array, where: str, first: int, hidden: Array | None) -> Array:
    kind = values.dtype.kind
    if kind in "OT":
        return _from_objects(values.tolist(), where, first, hidden)
    if kind == "b":
        return np.where(values, "true", "false")
    if kind == "S":
        return decoded(values, where)
    if kind == "U":
        return values
    if kind == "u" and values.size and int(values.max()) > _LARGEST:
        at = int(np.argmax(values > _LARGEST))
        raise _no_code(where, first + at, values[at])
    if kind == "f":
        return _from_floats(values, where, first, hidden)
    return values.astype(np.int64, copy=False)


def _from_floats(values: Array, where: str, first: int, hidden: Array | None) -> Array:
    missing = np.isnan(values) if hidden is None else np.isnan(values) | hidden
    whole = np.where(missing, UNLABELLED, values).astype(np.float64)
    wrong = (whole != np.floor(whole)) | (np.abs(whole) >= 2.0**63)
    if wrong.any():
        at = int(np.argmax(wrong))
        raise _no_code(where, first + at, values[at])
    return whole.astype(np.int64)


def _no_code(where: str, sample: int, value: Any) -> LabelError:
    return LabelError(
        f"{where}: sample {sample} has label {value}, expected a whole number, the code of its "
        "class; of values to be estimated make classes first, as with np.digitize"
    )


def _from_objects(values: list[Any], where: str, first: int, hidden: Array | None) -> Array:
    texts = [None if hidden is not None and hidden[n] else v for n, v in enumerate(values)]
    for number, value in enumerate(texts):
        texts[number] = label_text(value, f"{where}: sample {first + number}")
    plain = [v for v, text in zip(values, texts, strict=True) if text is not None]
    if not any(isinstance(v, str | bytes | bool | np.bool_) for v in plain):
        codes = [UNLABELLED if text is None else int(text) for text in texts]
        return np.array(codes, np.int64)
    if not all(isinstance(v, str | bytes) for v in plain) and not all(
        isinstance(v, bool | np.bool_) for v in plain
    ):
        raise LabelError(f"{where}: some labels are codes and some texts, expected one kind")
    return np.array(["" if text is None else text for text in texts], str)


def label_text(value: Any, where: str) -> str | None:
    """Return one Python value as the text of a label: a name, or a code in digits; None: none."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes):
        value = decoded_text(value, where)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple | np.ndarray) and len(value) == 1:
        return label_text(value[0], where)
    if _is_none(value):
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and value == value // 1 and abs(value) <= _LARGEST:
        return str(int(value))
    if isinstance(value, list | tuple | np.ndarray) and len(value) and all(map(_is_number, value)):
        return str(int(_from_columns(np.asarray([value]), where, None)[0]))
    shown = repr(value)[:_SHOWN]
    raise LabelError(f"{where} has the label {shown}, expected a whole number or a text")


def _is_none(value: Any) -> bool:
    if value is None or (isinstance(value, str | float) and (value == "" or value != value)):
        return True
    return type(value).__name__ in ("NAType", "NaTType", "MaskedConstant")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number | np.bool_)


def _from_columns(values: Array, where: str, first: int | None) -> Array:
    """Return the codes of rows that have a 1 in the column of their class, and 0 in all others."""
    if values.dtype.kind not in "biuf":
        raise ShapeError(f"{where}: labels of {values.dtype} in {values.shape[1]} columns, "
                         f"{_EXPECTED}")  # fmt: skip
    single = ((values == 0) | (values == 1)).all(axis=1) & ((values == 1).sum(axis=1) == 1)
    if not single.all():
        at = int(np.argmin(single))
        ones = int((values[at] == 1).sum())
        sample = "it" if first is None else f"sample {first + at}"
        if np.isin(values[at], (0, 1)).all():
            what = f"is multi-label: {sample} has {ones} of {values.shape[1]} columns set"
            cure = "choose one column, as labels[:, 0]"
        else:
            what = f"has {values.shape[1]} columns: {sample} is {_row(values[at])}"
            cure = "of probabilities take labels.argmax(axis=1)"
        raise LabelError(f"{where}: {what}, expected a single 1 in each row, its class; {cure}")
    codes: Array = np.argmax(values == 1, axis=1).astype(np.int64)
    return codes


def _from_masked_columns(values: Array, where: str, first: int) -> Array:
    """Return the codes of rows; one that is masked as a whole has no label."""
    if not np.ma.isMaskedArray(values):
        return _from_columns(values, where, first)
    hidden = np.ma.getmaskarray(values)
    bare = hidden.all(axis=1)
    plain = np.where(hidden, np.nan, np.asarray(values))
    plain[bare] = np.arange(plain.shape[1]) == 0  # any class, for now
    codes = _from_columns(plain, where, first)
    codes[bare] = UNLABELLED
    return codes


def _row(values: Array) -> str:
    shown = ", ".join(str(value) for value in values[:_FIRST].tolist())
    return f"[{shown}{', ...' if len(values) > _FIRST else ''}]"


def decoded(labels: Array, where: str) -> Array:
    """Return bytes as text, or raise `SourceError` where they are not UTF-8; others as they are."""
    if labels.dtype.kind != "S":
        return labels
    try:
        return np.char.decode(labels, "utf-8")
    except UnicodeDecodeError as error:
        raise _no_text(error.object, where) from None


def decoded_text(value: bytes, where: str) -> str:
    """Return the bytes of one label as text, or raise `SourceError`."""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        raise _no_text(value, where) from None


def _no_text(value: bytes, where: str) -> SourceError:
    return SourceError(
        f"{where}: the label {value[:_SHOWN]!r} is not UTF-8, in Latin-1 it reads "
        f"'{value[:_SHOWN].decode('latin-1')}'; write the labels as UTF-8"
    )
