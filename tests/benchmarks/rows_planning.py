"""What the client of a job of many partitions takes until a scheduler has its graphs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import MismatchError, Readings
from benchmarks.results import Row
from benchmarks.workbench import Workbench

PARTITIONS = 100_000
MOST_TASKS = 3
MOST_SECONDS = 20.0
MOST_BYTES = 10**9
TURNS = 3
WHAT = f"planning {PARTITIONS:,} partitions and handing both graphs to a scheduler"

TESTS = Path(__file__).resolve().parent.parent


def rows(bench: Workbench) -> Iterator[Row]:
    """Measure seconds and peak memory, each turn in a fresh process, without its imports."""
    found = [_measure(bench) for _ in range(min(TURNS, bench.repeats))]
    tasks, partitions = found[0]["tasks"], found[0]["partitions"]
    if partitions != PARTITIONS or tasks > MOST_TASKS * partitions:
        raise MismatchError(f"{tasks:,} tasks for {partitions:,} partitions")
    seconds, peak = (
        Readings(tuple(each[name] for each in found)) for name in ("seconds", "peak_memory")
    )
    unpacked = max(each["scheduler_seconds"] for each in found)
    note = f"{tasks / partitions:.2f} tasks a partition; the scheduler unpacks for {unpacked:.0f} s"
    yield Row(
        WHAT, f"{MOST_SECONDS:.0f} s", seconds, None, seconds.median, "s", wanted=MOST_SECONDS,
        bound="at most", note=note,
    )  # fmt: skip
    yield Row(
        f"peak memory of {WHAT}", "1 GB", peak, None, peak.median / MOST_BYTES, "x", "bytes",
        1.0, "at most",
    )  # fmt: skip


def _measure(bench: Workbench) -> dict[str, float]:
    folder = bench.run_folder("planning")
    folder.mkdir(parents=True)
    paths = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.child_planning", str(folder), str(PARTITIONS)],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )  # fmt: skip
    shutil.rmtree(folder)
    if done.returncode:
        raise MismatchError(f"planning failed: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))
