"""How long `pixsim --help` takes beyond starting Python."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.measure import Contestant, MismatchError, race
from benchmarks.results import Row
from benchmarks.workbench import Workbench

OURS = "pixsim --help"
PYTHON = "python -c pass"
REPEATS = 11
MOST_SECONDS = 0.25


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _check(results: Mapping[str, Any]) -> None:
    if "pixsim" not in results[OURS]:
        raise MismatchError(f"{OURS} prints {results[OURS]!r}, expected help")


def rows(bench: Workbench) -> Iterator[Row]:
    """Measure both commands as they are typed."""
    pixsim = Path(sys.executable).with_name("pixsim")
    contestants = [
        Contestant(OURS, lambda: _output(str(pixsim), "--help")),
        Contestant(PYTHON, lambda: _output(sys.executable, "-c", "pass")),
    ]
    times = race(contestants, max(REPEATS, bench.repeats), _check)
    mine, peer = times[OURS], times[PYTHON]
    more = mine.median - peer.median
    yield Row(
        OURS, PYTHON, mine, peer, more, unit="s", wanted=MOST_SECONDS, bound="at most"
    )  # fmt: skip
