"""The exceptions of pixsim, and the words of their messages.

Each is also a standard exception, so that a caller may catch `ValueError` or `OSError` without
knowing this module. A message says which value was met, what was expected and what to do about
it, in one or two lines. `InputError` and its children mean that the input is at fault (the
command line exits with 2), the rest that the job failed (it exits with 1) but for two: it was
stopped (3), or another process holds the folder (4).
"""

from __future__ import annotations

import difflib
import json
import re
import reprlib
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import quote, quote_plus, unquote

# Shorter values are no secrets; values below the second length are hidden as whole words only,
# and not in what is stored: a password may be the name of a split too.
_SHORTEST_SECRET, _LONG_SECRET = 4, 8
_secrets: frozenset[str] = frozenset()


def conceal(values: Iterable[str]) -> None:
    """Remember values, such as keys and passwords, that no text may show."""
    global _secrets
    spellings = {spelling for value in values for spelling in _spellings(value)}
    _secrets |= {spelling for spelling in spellings if len(spelling) >= _SHORTEST_SECRET}


def _spellings(value: str) -> set[str]:
    """Return how a value looks in URLs and in JSON too."""
    plain = unquote(value)
    spellings = {value, plain, json.dumps(value)[1:-1], json.dumps(plain)[1:-1]}
    return spellings | {quote(plain), quote(plain, safe=""), quote_plus(plain)}


def hide(text: str) -> str:
    """Return `text` with everything that was concealed replaced by `***`."""
    for secret in sorted(_secrets, key=len, reverse=True):
        if len(secret) >= _LONG_SECRET:
            text = text.replace(secret, "***")
        elif secret in text:
            text = re.sub(rf"(?<![^\W_]){re.escape(secret)}(?![^\W_])", "***", text)
    return text


def hide_in(content: object) -> object:
    """Return plain JSON values with every long secret in their texts replaced by `***`."""
    secrets = [secret for secret in _secrets if len(secret) >= _LONG_SECRET]
    secrets.sort(key=len, reverse=True)
    return _without(content, secrets) if secrets else content


def _without(content: object, secrets: Sequence[str]) -> object:
    if isinstance(content, dict):
        return {key: _without(value, secrets) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_without(value, secrets) for value in content]
    if isinstance(content, str):
        for secret in secrets:
            content = content.replace(secret, "***")
    return content


def printable(text: str) -> str:
    """Return `text` as it may be printed: control characters spelled out, secrets hidden."""
    shown = hide(text)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" where a known name is near, else the list of names."""
    names = [str(item) for item in known]
    folded = {item.casefold(): item for item in names}
    matches = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.5)
    if matches:
        return f"did you mean '{folded[matches[0]]}'?"
    return f"known are {', '.join(names)}"


def format_bytes(count: float) -> str:
    """Return a number of bytes in the largest unit of which there is one."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:,.1f} {name}"
    return f"{count:,.0f} B"


def _make_short() -> reprlib.Repr:
    short = reprlib.Repr()
    short.maxstring = short.maxother = 100
    short.maxlevel = 3
    return short


_short = _make_short()


def describe(value: object) -> str:
    """Return a value and its type, in few words."""
    if value is None:
        return "nothing"
    lines = _short.repr(value).splitlines()  # of an array there are several
    return f"{' '.join(line.strip() for line in lines)} ({type(value).__name__})"


def listed(names: Iterable[str], most: int = 12) -> str:
    """Return names for a message; of many only the first ones, and how many more there are."""
    several = list(names)
    more = f" and {len(several) - most:,} more" if len(several) > most else ""
    return ", ".join(several[:most]) + more


def one_line(error: BaseException) -> str:
    """Return what an error says, on one line."""
    return " ".join(str(error).split()) or type(error).__name__


class PixsimError(Exception):
    """Whatever pixsim refuses or fails at, with a message meant for the user."""

    exit_code = 1

    def __str__(self) -> str:
        return hide(super().__str__())

    def __repr__(self) -> str:
        return hide(super().__repr__())

    def __reduce__(self) -> tuple[Any, ...]:
        # what a worker raises comes back as itself, although it has two standard exceptions for
        # parents, and without secrets
        return type(self), tuple(hide(a) if isinstance(a, str) else a for a in self.args)


class InputError(PixsimError, ValueError):
    """What the user gave cannot be used; nothing was written."""

    exit_code = 2


class ConfigError(InputError):
    """A job file, an override or an environment variable is wrong."""


class SchemaError(InputError, TypeError):
    """A labelled array lacks a dimension, a variable or the right dtype."""


class ShapeError(InputError):
    """Images that must have one shape have two."""


class LabelError(InputError):
    """A label is outside the classes, or a class is not known."""


class EmptyClassError(InputError):
    """A class has no image to make a prototype from."""


class SourceError(InputError, OSError):
    """A file of a source is missing, truncated or not what its name says."""


class BadSamplesError(SourceError):
    """More samples of a source cannot be used than the job allows.

    Attributes
    ----------
    header, rows
        The first of these samples, as a table.
    count
        How many there are.
    summary
        The message without the first of them, to stand below the table.
    """

    def __init__(
        self,
        message: str,
        header: Sequence[str],
        rows: Sequence[Sequence[object]],
        count: int,
        summary: str = "",
    ) -> None:
        super().__init__(message)
        self.header, self.rows, self.count = header, rows, count
        self.summary = summary or message

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (hide(str(self)), self.header, self.rows, self.count, hide(self.summary))


class ChecksumError(SourceError):
    """A file has another checksum than the catalog records."""


class DatasetNotFoundError(SourceError):
    """A named data set is neither at hand nor could it be downloaded."""


class StoreError(InputError, OSError):
    """A path is not an image set, or not a run."""


class IncompleteError(StoreError):
    """An image set or a run has no manifest: it was never finished."""


class ConflictError(InputError, FileExistsError):
    """The path to write to holds something else."""


class DamagedError(PixsimError, OSError):
    """What was written no longer has the digest that was recorded for it."""


class OtherFileError(DamagedError):
    """A file is intact, but not the one that was written there."""


class StorageFullError(PixsimError, OSError):
    """The disk, or the user's quota on it, is full."""


class ExactnessError(InputError, OverflowError):
    """No arithmetic holds the sums of this job exactly."""


class MemoryLimitError(InputError, MemoryError):
    """A job needs more memory than there is."""


class DeviceMemoryError(PixsimError, MemoryError):
    """The memory of a GPU is full, and what was to be done there cannot be cut further."""


class RemoteError(PixsimError, OSError):
    """A URL cannot be opened, refuses access, or does not answer."""


class InUseError(PixsimError, BlockingIOError):
    """Another process writes to the folder, or took it over; it is left to that one."""

    exit_code = 4


class JobInterruptedError(PixsimError):
    """The job was stopped by the user; what it had written can be resumed."""

    exit_code = 3


class ClusterError(PixsimError, RuntimeError):
    """The cluster failed: no workers, workers that die, a scheduler that is gone."""
