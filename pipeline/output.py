"""Results as text, JSON or CSV, and errors as one line.

Each result is given as parts, lines of text and tables of plain values. As text both are printed,
numbers rounded; CSV is the tables; JSON is the content that the parts are made of.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pipeline
from pipeline.core.errors import BadSamplesError, format_bytes, hide, printable


class Bytes(int):
    """A number of bytes, shown as text in the largest unit of which there is one."""


class Score(float):
    """A score, shown as text with three digits."""


@dataclass(frozen=True)
class Table:
    """A table of a result.

    Attributes
    ----------
    name
        What tells it from the other tables of the result.
    header, rows
        The names of its columns, and plain values.
    title
        What stands over the first column in text; default: its name.
    most
        How many rows are shown as text; default: all.
    forms
        Where it is shown: as text, as CSV.
    """

    name: str
    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    title: str = ""
    most: int | None = None
    forms: Sequence[str] = ("text", "csv")

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Return header and rows as text."""
        first, *others = self.header
        return [self.title or first, *others], [
            [as_text(value) for value in row] for row in self.rows[: self.most]
        ]


Part = str | Table


def as_text(value: Any) -> str:
    """Return a value as tables of text show it."""
    if value is None:
        return "-"
    if isinstance(value, Bytes):
        return format_bytes(value)
    if isinstance(value, float):
        return f"{value:.3f}" if isinstance(value, Score) else f"{value:.4f}"
    if isinstance(value, int):
        return f"{value:,}"
    return " x ".join(map(as_text, value)) if isinstance(value, list | tuple) else str(value)


def show(parts: Iterable[Part]) -> None:
    """Print lines and tables as text."""
    for part in parts:
        if isinstance(part, str):
            print(part)
        elif "text" in part.forms:
            pipeline.print_table(*part.cells())


def write(content: Any, parts: Iterable[Part], form: str) -> None:
    """Print a result as one JSON document, or its tables as CSV.

    Of several tables the first column names each, and the columns are those of all.
    """
    if form == "json":
        text = json.dumps(plain(content), ensure_ascii=False, allow_nan=False, indent=2)
        print("".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text))
        return
    tables = [part for part in parts if isinstance(part, Table) and "csv" in part.forms]
    several = len({table.name for table in tables}) > 1
    names = list(dict.fromkeys(name for table in tables for name in table.header))
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow([*(["table"] if several else []), *map(_value, names)])
    for table in tables:
        for row in table.rows:
            known = dict(zip(table.header, row, strict=True))
            first = [table.name] if several else []
            writer.writerow([*first, *(_value(known.get(name)) for name in names)])


def _value(value: Any) -> str:
    """Return a value for CSV, in full; control characters spelled out, secrets hidden."""
    if isinstance(value, list | tuple):
        return " ".join(map(_value, value))
    return "" if value is None else printable(str(value))


def plain(value: Any) -> Any:
    """Return a value as JSON has it; what is no number, such as an accuracy of none, as null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int) else hide(str(value))


def of_lines(line: str, **values: Any) -> Iterator[Part]:
    """Return a line, as CSV a table of one row."""
    yield line
    yield Table("result", list(values), [list(values.values())], forms=("csv",))


def reader_left(error: Exception) -> bool:
    """Tell whether the reader of the output closed it, as `head` does: nobody need be told."""
    if not isinstance(error, BrokenPipeError):
        return False
    # what is in the buffer would be tried again at the end of the process
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


_LONGEST = 500  # characters of a message that is not ours


def unforeseen(error: Exception) -> str:
    """Describe an error that is none of ours: its kind, its message, a cure."""
    text = " ".join(str(error).split())
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
    kinds = [kind.__name__ for kind in type(error).__mro__]
    summary = f"{kinds[0]}: {text}" if text else kinds[0]
    kept = "what is written is kept"
    if "OutOfMemoryError" in kinds or "cuda out of memory" in text.lower():
        return f"{summary}; end what else uses the GPU, or run it with --set device=cpu: {kept}"
    if isinstance(error, MemoryError):
        return (
            f"{summary}; run fewer tasks at once (--set cluster.workers=1), or free memory: {kept}"
        )
    if isinstance(error, OSError):
        return str(error) or summary
    return f"{summary}; pixsim --debug shows where it comes from"


def print_bad_samples(error: BadSamplesError) -> None:
    rows = [["" if value is None else str(value) for value in row] for row in error.rows]
    pipeline.print_table(error.header, rows, sys.stderr)
    if error.count > len(rows):
        print(f"... and {error.count - len(rows):,} more", file=sys.stderr)
