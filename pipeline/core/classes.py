"""Which classes a job is about: codes, names and positions.

A label is a code into all class names of the image set; a job may be about some of them only.
The classes of a result stand in the order of their codes, so that a tie, which goes to the
first, goes to the lowest code.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.core.errors import LabelError, nearest
from pipeline.core.schema import UNLABELLED


@dataclass(frozen=True)
class ClassSelection:
    """The classes of a job among all those of the image set.

    Attributes
    ----------
    all_names
        Every class name of the image set; the index is the code.
    codes
        The codes of the selected classes, ascending.
    """

    all_names: tuple[str, ...]
    codes: tuple[int, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.all_names[code] for code in self.codes)

    def positions(self, labels: npt.NDArray[Any], first: int = 0) -> npt.NDArray[np.int64]:
        """Return the position of each label among the selected classes, -1 for all others.

        `first` is the sample index of the first label, for the message.

        Raises
        ------
        LabelError
            Where a label is neither a code of the image set nor -1.
        """
        check_labels(labels, len(self.all_names), first)
        # one entry more for UNLABELLED, which indexes the last
        lookup = np.full(len(self.all_names) + 1, -1, np.int64)
        lookup[list(self.codes)] = np.arange(len(self.codes))
        return np.take(lookup, labels)


def check_labels(labels: npt.NDArray[Any], classes: int, first: int = 0) -> None:
    """Raise `LabelError` unless every label is a code below `classes` or -1.

    Parameters
    ----------
    labels
        [sample]; codes.
    classes
        The number of classes.
    first
        The sample index of the first label, for the message.
    """
    wrong = (labels < UNLABELLED) | (labels >= classes)
    if wrong.any():
        at = int(np.argmax(wrong))
        raise LabelError(
            f"sample {first + at} has label {int(labels[at])}, expected 0 to {classes - 1} "
            f"({classes} classes) or -1 for none; correct the labels or name more classes"
        )


def select_classes(all_names: Sequence[str], wanted: Sequence[str] | None = None) -> ClassSelection:
    """Select classes by name; all of them by default.

    Raises
    ------
    LabelError
        Where a name is not a class of the image set, or there is none.
    """
    names = tuple(all_names)
    if not names:
        raise LabelError(
            "none of the images has a label, expected classes to compare; put the images of each "
            "class into a folder of its name, or give a CSV table with the columns path and label "
            "('pixsim audit' needs no labels)"
        )
    if wanted is None:
        return ClassSelection(names, tuple(range(len(names))))
    if not wanted:
        raise LabelError("classes is empty, expected one name at least; leave it out to take all")
    for name in wanted:
        if str(name) not in names:
            raise LabelError(f"class '{name}' is not in the image set; {nearest(str(name), names)}")
    return ClassSelection(names, tuple(sorted({names.index(str(name)) for name in wanted})))


# flags -------------------------------------------------------------------------------------------

NO_CLASS = "unlabelled"
_MARKS = frozenset("_-.+@")  # what a word of `flag_meanings` may hold beside letters and digits


def class_flags(names: Mapping[int, str]) -> dict[str, Any]:
    """Return the attributes by which CF, the conventions of NetCDF, name the codes of labels.

    -1 is a flag of its own, `unlabelled`: CF lists every value that may occur, and as a
    `_FillValue` it would make readers turn labels into floats. It comes last, so that the word of a
    code is that in its position.

    Parameters
    ----------
    names
        The name of the class of each code.

    Returns
    -------
    `flag_values` [class + 1] int32 and `flag_meanings`, a word for each, separated by blanks:
    what no word may hold becomes `_`; of names that would be one word the later ones get a number.

    Examples
    --------
    >>> class_flags({0: "cat", 1: "large dog", 2: "large/dog"})["flag_meanings"]
    'cat large_dog large_dog_2 unlabelled'
    """
    words = _words([*names.values(), NO_CLASS])
    values = np.array([*names, UNLABELLED], np.int32)
    return {"flag_values": values, "flag_meanings": " ".join(words)}


def _words(names: Iterable[str]) -> list[str]:
    """Return a word for each name, no two alike; one that is a word already stays."""
    plain = [(name, _word(name)) for name in names]
    used = {name for name, word in plain if name == word}
    words, kept, numbers = [], set(), dict.fromkeys((word for _, word in plain), 1)
    for name, word in plain:
        chosen = word
        if name != word or word in kept:
            while chosen in used:
                numbers[word] += 1
                chosen = f"{word}_{numbers[word]}"
        kept.add(chosen)
        used.add(chosen)
        words.append(chosen)
    return words


def _word(name: str) -> str:
    return "".join(mark if mark.isalnum() or mark in _MARKS else "_" for mark in name) or "_"


def flagged_names(attributes: Mapping[str, Any]) -> dict[int, str]:
    """Return the name of each code that the flags of a label have, -1 left out; none: empty."""
    words = str(attributes.get("flag_meanings", "")).split()
    values = np.ravel(attributes.get("flag_values", ())).tolist()
    if len(words) != len(values):
        return {}
    return {
        int(value): word for value, word in zip(values, words, strict=True) if value != UNLABELLED
    }
