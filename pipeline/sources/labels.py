"""What a label is, in whatever form it is stored: one rule for every reader.

Labels come as whole numbers of any width, floats that are whole, truth values, texts, bytes of
texts, Python objects, or one column for each class. They are brought to codes (int64) or texts
first; then, once all labels of all splits were seen, the classes are decided, and each label gets
the code of its class. What may mean two things is refused, with what to write instead.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import LabelError, ShapeError, SourceError
from pipeline.schema import UNLABELLED
from pipeline.settings import nearest

MOST_CLASSES = 10**6  # without names; one more is more likely an error than a class
_LARGEST = 2**63 - 1
_NUMBER = re.compile(r"([+-]?)(0|[1-9][0-9]{0,17})(\.0*)?")  # longer ones are text
_MISSING = frozenset({"nan", "na", "n/a", "none", "null", "<na>", "nat"})  # among numbers
_TRUTH = {"false": 0, "true": 1}
_IGNORED = (255, 65535)  # what -1 becomes in uint8 and uint16
_KINDS = "biufUSOTM"
_SHOWN = 100
_FIRST = 3
EXPECTED = "expected whole numbers or text, one label for each image, or one column for each class"

Array = npt.NDArray[Any]


# forms -------------------------------------------------------------------------------------------


def check_form(where: str, count: int, shape: Sequence[int], dtype: np.dtype[Any]) -> None:
    """Raise where an array cannot hold the labels of `count` images, by its header alone.

    Raises
    ------
    ShapeError
        Where there is not one label, or one row of columns, for each image.
    SourceError
        Where its type can hold no labels.
    """
    found = f"{where}: labels of {dtype} and shape {tuple(shape)}"
    if dtype.kind not in _KINDS or dtype.kind == "M":
        raise SourceError(f"{found}, {EXPECTED}")
    if not shape or shape[0] != count:
        raise ShapeError(
            f"{found} for {count} images, expected one label for each image; give the labels of "
            "these images, in their order"
        )
    if all(side == 1 for side in shape[1:]):
        return
    if len(shape) > 2:
        raise ShapeError(
            f"{found}, which are masks or boxes, expected one label for each image; name another "
            "array"
        )
    if dtype.kind not in "biuf" or shape[1] == 0:
        raise ShapeError(f"{found}, expected one label for each image; name one column of them")


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

    Raises
    ------
    LabelError, ShapeError, SourceError
        Where a label is none, or several; says which.
    """
    if not isinstance(labels, np.ndarray):
        labels = _as_array(labels)
    check_form(where, len(labels) if labels.ndim else 0, labels.shape, labels.dtype)
    if labels.ndim == 2 and labels.shape[1] > 1:
        return _from_columns(np.asarray(labels), where, first)
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
        return np.asarray(values)
    found = np.empty(len(values), object)
    found[:] = values
    return found


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
    """Return one Python value as the text of a label: a name, or a code in digits; None for none.

    Raises
    ------
    LabelError, SourceError
        Where it is no label.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or type(value).__name__ in ("NAType", "NaTType", "MaskedConstant"):
        return None
    if isinstance(value, bytes):
        return decoded_text(value, where) or None
    if isinstance(value, str):
        return value or None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value != value:
        return None
    if isinstance(value, int | float) and value == value // 1 and abs(value) <= _LARGEST:
        return str(int(value))
    if isinstance(value, list | tuple | np.ndarray) and len(value) > 1:
        return str(int(_from_columns(np.asarray([value]), where, None)[0]))
    if isinstance(value, list | tuple | np.ndarray) and len(value) == 1:
        return label_text(value[0], where)
    shown = repr(value)
    raise LabelError(f"{where} has the label {shown[:_SHOWN]}, expected a whole number or a text")


def _from_columns(values: Array, where: str, first: int | None) -> Array:
    """Return the codes of rows that have a 1 in the column of their class, and 0 in all others."""
    if values.dtype.kind not in "biuf":
        raise ShapeError(f"{where}: labels of {values.dtype} in {values.shape[1]} columns, "
                         f"{EXPECTED}")  # fmt: skip
    single = ((values == 0) | (values == 1)).all(axis=1) & ((values == 1).sum(axis=1) == 1)
    if not single.all():
        at = int(np.argmin(single))
        ones = int((values[at] == 1).sum())
        sample = "it" if first is None else f"sample {first + at}"
        if np.isin(values[at], (0, 1)).all():
            found, cure = (
                f"is multi-label: {sample} has {ones} of {values.shape[1]} columns set",
                ("choose one column, as labels[:, 0]"),
            )
        else:
            found = f"has {values.shape[1]} columns: {sample} is {_row(values[at])}"
            cure = "of probabilities take labels.argmax(axis=1)"
        raise LabelError(f"{where}: {found}, expected a single 1 in each row, its class; {cure}")
    codes: Array = np.argmax(values == 1, axis=1).astype(np.int64)
    return codes


def _row(values: Array) -> str:
    shown = ", ".join(str(value) for value in values[:_FIRST].tolist())
    return f"[{shown}{', ...' if len(values) > _FIRST else ''}]"


def decoded(labels: Array, where: str) -> Array:
    """Return bytes as text; other values as they are.

    Raises
    ------
    SourceError
        Where the bytes are not UTF-8.
    """
    if labels.dtype.kind != "S":
        return labels
    try:
        found: Array = np.char.decode(labels, "utf-8")
    except UnicodeDecodeError as error:
        raise _no_text(error.object, where) from None
    return found


def decoded_text(value: bytes, where: str) -> str:
    """Return the bytes of one label as text.

    Raises
    ------
    SourceError
        Where they are not UTF-8.
    """
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        raise _no_text(value, where) from None


def _no_text(value: bytes, where: str) -> SourceError:
    return SourceError(
        f"{where}: the label {value[:_SHOWN]!r} is not UTF-8, in Latin-1 it reads "
        f"'{value[:_SHOWN].decode('latin-1')}'; write the labels as UTF-8"
    )


# classes -----------------------------------------------------------------------------------------


def whole_number(text: str) -> int | None:
    """Return the whole number that a text is, such as `7`, `-1` or `7.0`; else None."""
    found = _NUMBER.fullmatch(text)
    return None if found is None else int(found[1] + found[2])


def code_of(label: str, class_names: tuple[str, ...], by_index: bool = False) -> int | None:
    """Return the code of a label that is a text; -1 where it is none, None where it is no class.

    Parameters
    ----------
    label
        A class name, or a whole number: the name of a class, else its code.
    class_names
        The name of each code.
    by_index
        Whether a number is a code also where a class has it for a name.
    """
    known = _codes(class_names)
    if not by_index and label in known:
        return known[label]
    number = whole_number(label)
    if number is not None and not by_index and str(number) in known:
        return known[str(number)]
    if number is not None and UNLABELLED <= number < len(class_names):
        return number
    if label == "" or (label.lower() in _MISSING and number_names(class_names)):
        return UNLABELLED
    truth = _TRUTH.get(label.lower())
    return truth if truth is not None and len(class_names) == len(_TRUTH) else None


@functools.lru_cache(maxsize=8)
def _codes(class_names: tuple[str, ...]) -> Mapping[str, int]:
    return {name: code for code, name in enumerate(class_names)}


@functools.lru_cache(maxsize=8)
def number_names(class_names: tuple[str, ...]) -> bool:
    """Tell whether classes are named by numbers."""
    return all(whole_number(name) is not None for name in class_names)


def class_names_of(labels: Collection[str], where: str, as_names: bool = False) -> tuple[str, ...]:
    """Return the classes that occur: numbers by their value, other labels sorted as text.

    Parameters
    ----------
    labels
        Each label of all splits once.
    where
        What to call their place in messages.
    as_names
        Whether they are names also where all look like numbers, as names of folders.

    Raises
    ------
    LabelError
        Where they may mean two things; says what to write instead.
    """
    if as_names:
        return tuple(sorted(label for label in labels if label))
    numbers = {label: whole_number(label) for label in labels}
    rest = [label for label, n in numbers.items() if n is None and label.lower() not in _MISSING]
    if any(rest):
        return tuple(sorted(t for t, n in numbers.items() if t and n != UNLABELLED))
    codes = {number for number in numbers.values() if number is not None}
    check_codes(codes, where)
    return tuple(str(code) for code in sorted(codes - {UNLABELLED}))


def check_named(labels: Collection[str], class_names: Sequence[str], where: str) -> None:
    """Raise `LabelError` where labels that all are numbers do not mean the classes that are given.

    Parameters
    ----------
    labels
        Each label of all splits once.
    class_names
        The name of each code.
    where
        What to call their place in messages.
    """
    numbers = {whole_number(label) for label in labels if label.lower() not in _MISSING and label}
    codes = {number for number in numbers if number is not None}
    if None not in numbers and not codes & set(map(whole_number, class_names)):
        check_codes(codes, where, class_names)


def check_codes(
    codes: Collection[int], where: str, class_names: Sequence[Any] | None = None
) -> None:
    """Raise `LabelError` where the codes that occur may mean two things, or are no codes."""
    seen = sorted(codes)
    if seen and seen[0] < UNLABELLED:
        raise LabelError(
            f"{where}: holds the label {seen[0]}, expected codes from 0 on, or -1 for an image "
            "without label; number the classes from 0"
        )
    if seen == [UNLABELLED, 1]:
        raise LabelError(
            f"{where}: the labels are -1 and 1, but -1 stands for an image without label; if both "
            "are classes write 0 for -1, if not leave the label empty (NaN) instead of -1"
        )
    known = [code for code in seen if code != UNLABELLED]
    if class_names is not None and known and known[0] == 1 and known[-1] == len(class_names):
        raise LabelError(
            f"{where}: the labels are 1 to {known[-1]} for {len(class_names)} class names, whose "
            "codes count from 0; subtract 1 from the labels, or leave class_names out"
        )
    *others, last = known or [0]
    run = others == list(range(others[0], others[0] + len(others))) if others else False
    if (
        class_names is None
        and last in _IGNORED
        and run
        and others[0] in (0, 1)
        and (others[-1] < last - 1)
    ):
        span = f"{others[0]} to {others[-1]}" if len(others) > 1 else str(others[0])
        raise LabelError(
            f"{where}: the labels are {span}, and {last}, which is what -1 becomes in unsigned "
            f"integers; write -1 in a signed type where there is no label, or {others[-1] + 1} "
            f"if {last} is a class"
        )


def _check_range(values: Array, classes: int | None, where: str, first: int) -> None:
    """Raise `LabelError` for the first code that is none of `classes`; None: of any number."""
    wrong = values < UNLABELLED if classes is None else _outside(values, classes)
    if not wrong.any():
        return
    at = int(np.argmax(wrong))
    if classes is not None and values.min() >= UNLABELLED:
        check_codes(set(values.tolist()), where, range(classes))
    expected = "0 or more" if classes is None else f"0 to {classes - 1} ({classes} classes)"
    raise LabelError(
        f"{where}: sample {first + at} has label {int(values[at])}, expected {expected} or -1 for "
        f"none; correct the labels{'' if classes is None else ' or name more classes'}"
    )


def _outside(values: Array, classes: int) -> npt.NDArray[np.bool_]:
    return (values < UNLABELLED) | (values >= classes)


@dataclass(frozen=True)
class Labelling:
    """How the labels of a source become codes.

    Attributes
    ----------
    class_names
        The name of each code.
    codes
        The code of each text or value; None: the values are the codes.
    """

    class_names: tuple[str, ...]
    codes: Mapping[Any, int] | None = None

    def apply(self, labels: Any, where: str = "labels", first: int = 0) -> npt.NDArray[np.int32]:
        """Return the code of each label.

        Raises
        ------
        LabelError
            Where a label is none of the classes.
        """
        values = canonical(labels, where, first)
        if self.codes is None and values.dtype.kind == "i":
            _check_range(values, len(self.class_names), where, first)
            return values.astype(np.int32)
        found, places = np.unique(values, return_inverse=True)
        codes = [self._code(value, where) for value in found.tolist()]
        return np.array(codes, np.int32)[places]

    def _code(self, value: Any, where: str) -> int:
        if value in (UNLABELLED, ""):
            return UNLABELLED
        if self.codes is None:
            code = code_of(str(value), self.class_names)
        else:
            number = whole_number(value) if isinstance(value, str) else None
            code = self.codes.get(value, self.codes.get(number))
        if code is None:
            known = self.class_names if self.codes is None else [str(k) for k in self.codes]
            raise LabelError(
                f"{where}: label '{value}' is none of the classes; {nearest(str(value), known)}"
            )
        return code


@dataclass
class Survey:
    """The labels that were seen so far, of all splits of a source.

    Attributes
    ----------
    where
        What to call their place in messages.
    class_names
        As they were given; None: they follow from the labels.
    """

    where: str
    class_names: Sequence[str] | None = None
    _codes: set[int] = field(default_factory=set)
    _texts: set[str] = field(default_factory=set)

    def add(self, labels: Any, where: str, first: int = 0) -> None:
        """Look at the labels of some samples, from the one numbered `first` in its split on.

        Raises
        ------
        LabelError
            Where one is no label, or a code outside the class names.
        """
        values = canonical(labels, where, first)
        if values.dtype.kind == "i":
            most = None if self.class_names is None else len(self.class_names)
            _check_range(values, most, where, first)
            self._codes.update(np.unique(values).tolist())
        else:
            self._texts.update(np.unique(values).tolist())
        if self.class_names is None and len(self._codes) + len(self._texts) > MOST_CLASSES:
            raise LabelError(
                f"{where}: more than {MOST_CLASSES:,} different labels, expected at most as many "
                "classes without names; correct the labels or give class_names"
            )

    def labelling(self) -> Labelling:
        """Decide the classes, and how labels become codes.

        Raises
        ------
        LabelError
            Where a label is outside the classes, or what is there may mean two things.
        """
        texts = self._texts - {""}
        numbers = {whole_number(text) for text in texts if text.lower() not in _MISSING}
        if self._codes - {UNLABELLED} and None in numbers:
            raise LabelError(
                f"{self.where}: some labels are codes and some texts, expected one kind in all "
                "splits"
            )
        if self._codes:
            check_codes(self._codes, self.where, self.class_names)
        if self.class_names is None:
            names = class_names_of(texts | set(map(str, self._codes)), self.where)
        else:
            names = tuple(self.class_names)
        return self._decided(names, texts)

    def _decided(self, names: tuple[str, ...], texts: set[str]) -> Labelling:
        dense = self.class_names is not None or names == tuple(map(str, range(len(names))))
        if not texts and dense:
            return Labelling(names)
        codes: dict[Any, int] = {}
        for text in sorted(texts):
            code = code_of(text, names)
            if code is None:
                raise LabelError(
                    f"{self.where}: label '{text}' is none of the classes; {nearest(text, names)}"
                )
            codes[text] = code
        by_name = _codes(names) if self.class_names is None else {}
        for value in sorted(self._codes):
            codes[value] = by_name.get(str(value), value)
        return Labelling(names, codes)
