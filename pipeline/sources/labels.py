"""What a label is, in whatever form it is stored: one rule for every reader.

Labels are brought to codes (int64) or texts first, as `label_forms` says; then, once all labels of
all splits were seen, the classes are decided, and each label gets the code of its class. What may
mean two things is refused, with what to write instead.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.core.errors import LabelError
from pipeline.core.messages import nearest
from pipeline.core.schema import UNLABELLED
from pipeline.sources.label_forms import Array, canonical

MOST_CLASSES = 10**6  # without names; one more is more likely an error than a class
_NUMBER = re.compile(r"([+-]?)(0|[1-9][0-9]{0,17})(\.0*)?")  # longer ones are text
_MISSING = frozenset({"nan", "na", "n/a", "none", "null", "<na>", "nat"})  # among numbers
_TRUTH = {"false": 0, "true": 1}
_IGNORED = (255, 65535)  # what -1 becomes in uint8 and uint16


def whole_number(text: str) -> int | None:
    """Return the whole number that a text is, such as `7`, `-1` or `7.0`; else None."""
    match = _NUMBER.fullmatch(text)
    return None if match is None else int(match[1] + match[2])


def code_of(label: str, class_names: tuple[str, ...], by_index: bool = False) -> int | None:
    """Return the code of a label that is a text; -1 where it is none, None where it is no class.

    A text is a class name, or a whole number: the name of a class, else its code; `by_index` makes
    a number a code also where a class has it for a name.
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

    `labels` holds each label of all splits once; `as_names` says that they are names also where
    all look like numbers, as names of folders. What may mean two things raises `LabelError`, which
    says what to write instead.
    """
    if as_names:
        return tuple(sorted(label for label in labels if label))
    numbers = {label: whole_number(label) for label in labels}
    rest = [label for label, n in numbers.items() if n is None and label.lower() not in _MISSING]
    if any(rest):
        _check_spelling(numbers, where)
        return tuple(sorted(t for t, n in numbers.items() if t and n != UNLABELLED))
    codes = {number for number in numbers.values() if number is not None}
    check_codes(codes, where)
    return tuple(str(code) for code in sorted(codes - {UNLABELLED}))


def _check_spelling(numbers: Mapping[str, int | None], where: str) -> None:
    """Raise `LabelError` where texts are not all numbers, and two of them are the same number."""
    seen: dict[int, str] = {}
    for label, number in sorted(numbers.items()):
        if number is not None and seen.setdefault(number, label) != label:
            raise LabelError(
                f"{where}: the labels '{seen[number]}' and '{label}' are one number, but others "
                "are none, which makes all of them texts; write them alike, or as whole numbers"
            )


def check_named(labels: Collection[str], class_names: Sequence[str], where: str) -> None:
    """Raise `LabelError` where labels that all are numbers do not mean the classes that are given.

    `labels` holds each label of all splits once.
    """
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

    `class_names` is the name of each code; `codes` the code of each text or value, None where the
    values are the codes.
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
        codes = [self._code(value, where) for value in distinct.tolist()]
        return np.array(codes, np.int32)[positions]

    def code(self, value: int) -> int:
        """Return the code of a label that is a number, and was seen."""
        return value if self.codes is None else self.codes.get(value, value)

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

    `where` is what to call their place in messages; without `class_names` the classes follow from
    the labels.
    """

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
            raise LabelError(
                f"{where}: more than {MOST_CLASSES:,} different labels, expected at most as many "
                "classes without names; correct the labels or give class_names"
            )

    def labelling(self) -> Labelling:
        """Decide the classes, and how labels become codes."""
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
