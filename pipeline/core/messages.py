"""Words of error messages: the name that was meant, and a value in a few words."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable


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
