"""How long commands take as they are typed: help, and a job on the digits, compiled or not yet."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.measure import Contestant, MismatchError, Readings, race
from benchmarks.results import Row, growth_row
from benchmarks.workbench import Workbench

OURS = "pixsim --help"
PYTHON = "python -c pass"
REPEATS = 11
MOST_SECONDS = 0.25

FIRST, SECOND = "pixsim run digits, the first time", "pixsim run digits, everything compiled"
MOST_RUN_SECONDS, MOST_TIMES = 2.0, 2.0
JOB = """
name: digits
images: digits
evaluate: test
device: cpu
cluster: threads
output: run
"""


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
    yield from _runs(bench, pixsim)


def _runs(bench: Workbench, pixsim: Path) -> Iterator[Row]:
    """Measure a job on the digits, with a cache of compiled code that is empty at first."""
    folder = bench.run_folder("command")
    folder.mkdir(parents=True)
    (folder / "job.yml").write_text(JOB)
    settings = {"NUMBA_CACHE_DIR": str(folder / "numba"), "PIXSIM_DATA": str(folder / "data")}

    def run() -> float:
        shutil.rmtree(folder / "run", ignore_errors=True)
        started = time.perf_counter()
        subprocess.run(
            [str(pixsim), "run", "job.yml"], cwd=folder, env=os.environ | settings,
            capture_output=True, check=True,
        )  # fmt: skip
        return time.perf_counter() - started

    first = Readings((run(),))
    later = Readings(tuple(run() for _ in range(max(3, bench.repeats))))
    yield Row(
        SECOND, "", later, None, later.median, unit="s", wanted=MOST_RUN_SECONDS, bound="at most"
    )
    yield growth_row(FIRST, SECOND, first, later, MOST_TIMES)
