"""What a label is, in whatever form it is stored: one rule for every reader.

Labels of any form are brought to codes (int64) or texts first; then, once all labels of all splits
were seen, the classes are decided, and each label gets the code of its class. What may mean two
things is refused, with what to write instead.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.core.errors import LabelError, ShapeError, SourceError, nearest
from pipeline.core.schema import UNLABELLED

MOST_CLASSES = 10**6  # without names; one more is more likely an error than a class
_LARGEST = 2**63 - 1
_SHOWN = 100
_NUMBER = re.compile(r"([+-]?)(0|[1-9][0-9]{0,17})(\.0*)?")  # longer ones are text
_MISSING = frozenset({"nan", "na", "n/a", "none", "null", "<na>", "nat"})  # among numbers
_TRUTH = {"false": 0, "true": 1}
_IGNORED = (255, 65535)  # what -1 becomes in uint8 and uint16

Array = npt.NDArray[Any]


def check_form(where: str, count: int, shape: Sequence[int], dtype: np.dtype[Any]) -> None:
    """Raise where an array cannot hold the labels of `count` images, by its header alone."""
    header = f"{where}: labels of {dtype} and shape {tuple(shape)}"
    if dtype.kind not in "biufUSOT":
        raise SourceError(
            f"{header}, expected whole numbers or text, one label for each image, or one column "
            "for each class"
        )
    if not shape or shape[0] != count:
        raise ShapeError(
            f"{header} for {count} images, expected one label for each image; give the labels of "
            "these images, in their order"
        )
    if len(shape) > 2 and any(side != 1 for side in shape[1:]):
        raise ShapeError(
            f"{header}, which are masks or boxes, expected one label for each image; name another "
            "array"
        )
    if len(shape) == 2 and shape[1] != 1 and (dtype.kind not in "biuf" or shape[1] == 0):
        raise ShapeError(f"{header}, expected one label for each image; name one column of them")


def canonical(labels: Any, where: str, first: int = 0) -> Array:
    """Return labels [sample] as codes of int64, -1 where there is none, or as text, "" for none.

    They may be [sample], [sample, 1], or [sample, class] with a single 1 in each row: an array of
    any usable type, also masked, or a sequence of Python values. For messages `where` names their
    place, and `first` is the number of the first sample.
    """
    if not isinstance(labels, np.ndarray):
        labels = _as_array(labels)
    check_form(where, len(labels) if labels.ndim else 0, labels.shape, labels.dtype)
    hidden, labels = np.ma.getmaskarray(labels), np.asarray(labels)
    if labels.ndim == 2 and labels.shape[1] > 1:
        return _from_rows(labels, where, first, hidden if hidden.any() else None)
    labels, hidden = labels.reshape(-1), hidden.reshape(-1)
    kind = labels.dtype.kind
    if kind in "OT":
        values = _from_objects(labels.tolist(), where, first, hidden)
    elif kind == "b":
        values = np.where(labels, "true", "false")
    elif kind in "SU":
        values = decoded(labels, where)
    else:
        values = _from_numbers(labels, where, first, hidden)
    if hidden.any():
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
    return np.fromiter(values, object, len(values))


def _from_numbers(values: Array, where: str, first: int, hidden: Array) -> Array:
    if values.dtype.kind == "f":
        whole = np.where(np.isnan(values) | hidden, UNLABELLED, values).astype(np.float64)
        wrong = (whole != np.floor(whole)) | (np.abs(whole) >= 2.0**63)
    else:
        whole, wrong = values, values > _LARGEST
    if wrong.any():
        at = int(np.argmax(wrong))
        raise LabelError(
            f"{where}: sample {first + at} has label {values[at]}, expected a whole number, the "
            "code of its class; of values to be estimated make classes first, as with np.digitize"
        )
    return whole.astype(np.int64, copy=False)


def _from_objects(values: list[Any], where: str, first: int, hidden: Array) -> Array:
    texts = [
        None if hidden[n] else label_text(value, f"{where}: sample {first + n}")
        for n, value in enumerate(values)
    ]
    plain = [v for v, text in zip(values, texts, strict=True) if text is not None]
    if not any(isinstance(v, str | bytes | bool | np.bool_) for v in plain):
        return np.array([UNLABELLED if text is None else int(text) for text in texts], np.int64)
    kinds = {isinstance(v, str | bytes) - isinstance(v, bool | np.bool_) for v in plain}
    if len(kinds) > 1:
        raise LabelError(f"{where}: some labels are codes and some texts, expected one kind")
    return np.array([text or "" for text in texts], str)


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
        return str(_from_rows(np.asarray([value]), where, None)[0])
    shown = repr(value)[:_SHOWN]
    raise LabelError(f"{where} has the label {shown}, expected a whole number or a text")


def _is_none(value: Any) -> bool:
    if value is None or (isinstance(value, str | float) and (value == "" or value != value)):
        return True
    return type(value).__name__ in ("NAType", "NaTType", "MaskedConstant")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number | np.bool_)


def _from_rows(values: Array, where: str, first: int | None, hidden: Array | None = None) -> Array:
    """Return the codes of rows with a 1 in the column of their class, and 0 in all others.

    A row that is `hidden` as a whole has no label; `first` is None where there is but one.
    """
    bare = np.zeros(len(values), bool) if hidden is None else hidden.all(axis=1)
    if hidden is not None:
        values = np.where(hidden, np.nan, values)
    ones = (values == 1).sum(axis=1)
    good = bare | (((values == 0) | (values == 1)).all(axis=1) & (ones == 1))
    if not good.all():
        at, count = int(np.argmin(good)), values.shape[1]
        sample = "it" if first is None else f"sample {first + at}"
        if np.isin(values[at], (0, 1)).all():
            what = f"is multi-label: {sample} has {ones[at]} of {count} columns set"
            cure = "choose one column, as labels[:, 0]"
        else:
            some = ", ".join(str(value) for value in values[at, :3].tolist())
            what = f"has {count} columns: {sample} is [{some}{', ...' if count > 3 else ''}]"
            cure = "of probabilities take labels.argmax(axis=1)"
        raise LabelError(f"{where}: {what}, expected a single 1 in each row, its class; {cure}")
    return np.where(bare, UNLABELLED, np.argmax(values == 1, axis=1)).astype(np.int64)


def decoded(labels: Array, where: str) -> Array:
    """Return bytes as text, or raise `SourceError` where they are not UTF-8; others as they are."""
    if labels.dtype.kind != "S":
        return labels
    return np.array([decoded_text(value, where) for value in labels.tolist()], str)


def decoded_text(value: bytes, where: str) -> str:
    """Return the bytes of one label as text, or raise `SourceError`."""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        value = value[:_SHOWN]
        raise SourceError(
            f"{where}: the label {value!r} is not UTF-8, in Latin-1 it reads "
            f"'{value.decode('latin-1')}'; write the labels as UTF-8"
        ) from None


# classes -----------------------------------------------------------------------------------------


def whole_number(text: str) -> int | None:
    """Return the whole number that a text is, such as `7`, `-1` or `7.0`; else None."""
    match = _NUMBER.fullmatch(text)
    return None if match is None else int(match[1] + match[2])


def code_of(label: str, class_names: tuple[str, ...], by_index: bool = False) -> int | None:
    """Return the code of a label that is a text; -1 where it is none, None where it is no class.

    A text is a class name, or a whole number: the name of a class, else its code; `by_index` makes
    a number a code also where a class has it for a name.
    """
    known, numbered = _codes(class_names)
    if not by_index and label in known:
        return known[label]
    number = whole_number(label)
    if number is not None and not by_index and str(number) in known:
        return known[str(number)]
    if number is not None and UNLABELLED <= number < len(class_names):
        return number
    if label == "" or (label.lower() in _MISSING and numbered):
        return UNLABELLED
    truth = _TRUTH.get(label.lower())
    return truth if truth is not None and len(class_names) == len(_TRUTH) else None


@functools.lru_cache(maxsize=8)
def _codes(class_names: tuple[str, ...]) -> tuple[Mapping[str, int], bool]:
    """Return the code of each class, and whether all are named by numbers."""
    codes = {name: code for code, name in enumerate(class_names)}
    return codes, all(whole_number(name) is not None for name in class_names)


def class_names_of(labels: Collection[str], where: str, as_names: bool = False) -> tuple[str, ...]:
    """Return the classes that occur: numbers by their value, other labels sorted as text.

    `labels` holds each label of all splits once; `as_names` says that they are names also where
    all look like numbers, as names of folders. What may mean two things raises `LabelError`.
    """
    if as_names:
        return tuple(sorted(label for label in labels if label))
    numbers = {label: whole_number(label) for label in labels}
    if any(n is None and label and label.lower() not in _MISSING for label, n in numbers.items()):
        seen: dict[int, str] = {}
        for label, number in sorted(numbers.items()):
            if number is not None and seen.setdefault(number, label) != label:
                raise LabelError(
                    f"{where}: the labels '{seen[number]}' and '{label}' are one number, but "
                    "others are none, so all are texts; write them alike, or as whole numbers"
                )
        return tuple(sorted(t for t, n in numbers.items() if t and n != UNLABELLED))
    codes = {number for number in numbers.values() if number is not None}
    check_codes(codes, where)
    return tuple(str(code) for code in sorted(codes - {UNLABELLED}))


def check_named(labels: Collection[str], class_names: Sequence[str], where: str) -> None:
    """Raise `LabelError` where labels that all are numbers do not mean the classes given."""
    numbers = {whole_number(label) for label in labels if label.lower() not in _MISSING and label}
    # one below -1 is a bad sample, that of its image
    codes = {number for number in numbers if number is not None and number >= UNLABELLED}
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
    if seen == [UNLABELLED, 1] and (class_names is None or len(class_names) == 2):
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
    run = bool(others) and others == list(range(others[0], others[0] + len(others)))
    wrapped = last in _IGNORED and run and others[0] in (0, 1) and others[-1] < last - 1
    if class_names is None and wrapped:
        span = f"{others[0]} to {others[-1]}" if len(others) > 1 else str(others[0])
        raise LabelError(
            f"{where}: the labels are {span}, and {last}, which is what -1 becomes in unsigned "
            f"integers; write -1 in a signed type where there is no label, or {others[-1] + 1} "
            f"if {last} is a class"
        )


def _check_range(values: Array, classes: int | None, where: str, first: int) -> None:
    """Raise `LabelError` for the first code that is none of `classes`; None: of any number."""
    wrong = values < UNLABELLED
    if classes is not None:
        wrong |= values >= classes
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


@dataclass(frozen=True)
class Labelling:
    """How the labels of a source become codes.

    `codes` is the code of each text or value; None where the values are the codes.
    """

    class_names: tuple[str, ...]
    codes: Mapping[Any, int] | None = None

    def apply(self, labels: Any, where: str = "labels", first: int = 0) -> npt.NDArray[np.int32]:
        """Return the code of each label, or raise `LabelError` for one that is no class."""
        values = canonical(labels, where, first)
        if self.codes is None and values.dtype.kind == "i":
            _check_range(values, len(self.class_names), where, first)
            return values.astype(np.int32)
        distinct, positions = np.unique(values, return_inverse=True)
        codes = [self.code_in(value, where) for value in distinct.tolist()]
        return np.array(codes, np.int32)[positions]

    def code(self, value: int) -> int:
        """Return the code of a label that is a number, and was seen."""
        return value if self.codes is None else self.codes.get(value, value)

    def code_in(self, value: Any, where: str) -> int:
        """Return the code of one canonical label, or raise `LabelError`."""
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
    """The labels of all splits of a source; without `class_names` the classes follow from them."""

    where: str
    class_names: Sequence[str] | None = None
    _codes: set[int] = field(default_factory=set)
    _texts: set[str] = field(default_factory=set)

    def add(self, labels: Any, where: str, first: int = 0) -> None:
        """Look at the labels of some samples, from the one numbered `first` in its split on."""
        values = canonical(labels, where, first)
        if values.dtype.kind == "i":
            most = None if self.class_names is None else len(self.class_names)
            _check_range(values, most, where, first)
            self._codes.update(np.unique(values).tolist())
        else:
            self._texts.update(np.unique(values).tolist())
        if self.class_names is None and len(self._codes) + len(self._texts) > MOST_CLASSES:
            what = f"more than {MOST_CLASSES:,} different labels, expected at most as many classes"
            raise LabelError(
                f"{where}: {what} without names; correct the labels or give class_names"
            )

    def labelling(self) -> Labelling:
        """Decide the classes, and how labels become codes."""
        texts = self._texts - {""}
        numbers = {whole_number(text) for text in texts if text.lower() not in _MISSING}
        if self._codes - {UNLABELLED} and None in numbers:
            what = "some labels are codes and some texts, expected one kind in all splits"
            raise LabelError(f"{self.where}: {what}")
        if self._codes:
            check_codes(self._codes, self.where, self.class_names)
        names = tuple(self.class_names or ())
        if self.class_names is None:
            names = class_names_of(texts | set(map(str, self._codes)), self.where)
        plain = Labelling(names)
        if not texts and (self.class_names or names == tuple(map(str, range(len(names))))):
            return plain
        codes: dict[Any, int] = {text: plain.code_in(text, self.where) for text in sorted(texts)}
        by_name = _codes(names)[0] if self.class_names is None else {}
        return Labelling(names, codes | {v: by_name.get(str(v), v) for v in sorted(self._codes)})
