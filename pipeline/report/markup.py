"""What a notebook shows of an opened folder: tables and pictures as HTML, everything escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from PIL import Image

from pipeline.core.errors import printable
from pipeline.report.pictures import as_data

MAX_TEXT = 200  # characters of a text that are shown


def as_text(value: object) -> str:
    """Return a value as text that is no markup, on one line."""
    line = printable(" ".join(str(value).split()))
    return escape(line if len(line) <= MAX_TEXT else line[: MAX_TEXT - 1] + "…")


def table(header: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """Return a table; whatever is in it is escaped."""
    head = "".join(f"<th>{as_text(name)}</th>" for name in header)
    lines = ("".join(f"<td>{as_text(value)}</td>" for value in row) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def facts(title: str, rows: Sequence[tuple[str, object]]) -> str:
    """Return a title and lines of what is known, a name and a value each."""
    lines = "".join(
        f'<tr><th style="text-align:left">{as_text(name)}</th>'
        f'<td style="text-align:left">{as_text(value)}</td></tr>'
        for name, value in rows
    )
    return f"<div><strong>{as_text(title)}</strong></div><table><tbody>{lines}</tbody></table>"


def picture(drawn: Image.Image, description: str) -> str:
    """Return a picture, its content within the text."""
    return f'<img alt="{as_text(description)}" src="{as_data(drawn, lossless=True)}">'
