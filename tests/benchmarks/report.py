"""The table of all rows, and the same as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.measure import Readings
from benchmarks.results import Row

WIDTH = 170
_BYTES = 2**20


def print_report(rows: Sequence[Row], machine: Mapping[str, Any], bench: Mapping[str, Any]) -> None:
    """Print one table of all rows, what it was measured on, and how many targets hold."""
    console = Console(highlight=False)
    console = console if console.is_terminal else Console(highlight=False, width=WIDTH)
    table = Table(box=None, pad_edge=False)
    table.add_column("ours")
    table.add_column("against")
    for name in ("ours takes", "of the limit", "peer takes", "found", "wanted"):
        table.add_column(name, justify="right")
    table.add_column("holds")
    for row in rows:
        if row.value is not None:
            table.add_row(*_cells(row))
    if table.rows:
        console.print(table)
        console.print(_summary(rows))
    for row in rows:
        if row.note:
            console.print(f"{row.what}: {row.note}", soft_wrap=True)
    for line in _machine_lines(machine, bench):
        console.print(line, soft_wrap=True)


def _cells(row: Row) -> tuple[str, ...]:
    holds = {True: "yes", False: "NO", None: ""}[row.holds]
    wanted = "" if row.wanted is None else f"{row.bound} {row.wanted:g} {row.unit}"
    return (
        row.what,
        row.against,
        _quantity(row.ours, row.kind),
        "" if row.share is None else f"{row.share:.0%}",
        _quantity(row.peer, row.kind),
        f"{row.value:.3g} {row.unit}",
        wanted,
        holds,
    )


def _quantity(readings: Readings | None, kind: str) -> str:
    """Return a median with its spread, such as `0.412 s ±6 %`."""
    if readings is None:
        return "-"
    value = readings.median
    if kind == "share":
        return f"{value:.1%}"
    if kind == "bytes":
        text = f"{value / _BYTES:,.0f} MiB"
    elif value < 1:
        text = f"{value * 1000:.3g} ms"
    else:
        text = f"{value:.3g} s"
    return f"{text} ±{readings.spread / 2:.0%}"


def _summary(rows: Sequence[Row]) -> str:
    with_target = [row for row in rows if row.holds is not None]
    held = sum(row.holds is True for row in with_target)
    return (
        f"{held} of {len(with_target)} targets hold (they are set for 600,000 images and two "
        "cores); medians, ± half the range of all turns"
    )


def _machine_lines(machine: Mapping[str, Any], bench: Mapping[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {found}" for name, found in machine["versions"].items())
    return [
        f"{machine['processor']}, {machine['cores']} cores, {bench['threads']} threads for each; "
        f"{machine['system']}; Python {machine['python']}; {versions}",
        f"images: {bench['originals']}, shifted by up to 3 pixels; of the limit: the share of the "
        "time that products and differences of 64 pixels take at one a cycle and core; of medians, "
        "that of reading and decoding the images and nothing else",
    ]


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write everything that was measured."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")
