"""How the memory and the time of the whole job grow when the images are ten times as many."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import ours
from benchmarks.compare import require_equal
from benchmarks.images import TRAIN_TO_TEST
from benchmarks.measure import MismatchError, Readings
from benchmarks.results import Row, growth_row
from benchmarks.workbench import Workbench

LARGER = 10
MOST_MEMORY = 1.1
MOST_TIME = 10.5
# Turns at most: the large job takes as long as ten of the small one.
LARGE_TURNS, SMALL_TURNS = 3, 5
NOTE = "in fresh processes, imports not counted; {large} turns against {small}"

TESTS = Path(__file__).resolve().parent.parent


@dataclass
class Jobs:
    """The jobs on one store, each in a process of its own."""

    store: Path
    count: int
    found: list[dict[str, Any]] = field(default_factory=list)

    def run(self, bench: Workbench, warm_up: Path) -> None:
        """Run it once more, and compare it with the time before."""
        output = bench.run_folder("growth")
        command = [
            sys.executable, "-m", "benchmarks.child",
            str(self.store), str(output), str(bench.threads), str(warm_up),
        ]  # fmt: skip
        paths = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        ours.remove_run(output)
        if done.returncode:
            raise MismatchError(f"the job on {self.count:,} images failed: {done.stderr[-2000:]}")
        self.found.append(json.loads(done.stdout.splitlines()[-1]))
        require_equal("images tested", self.found[-1]["tested"], self.count // TRAIN_TO_TEST)
        require_equal("digest", self.found[-1]["digest"], self.found[0]["digest"])

    def readings(self, name: str) -> Readings:
        return Readings(tuple(found[name] for found in self.found))


def rows(bench: Workbench) -> Iterator[Row]:
    """Measure the job on the usual store and on one of ten times as many images."""
    small = Jobs(bench.store(bench.count), bench.count)
    large = Jobs(bench.store(LARGER * bench.count), LARGER * bench.count)
    warm_up = small.store  # a smaller one would load and compile less
    turns = min(SMALL_TURNS, bench.repeats)
    for turn in range(turns):
        small.run(bench, warm_up)
        if turn < LARGE_TURNS:
            large.run(bench, warm_up)
    against = f"at {small.count:,} images"
    what = f"of the whole job at {large.count:,} images"
    memory = large.readings("peak_memory"), small.readings("peak_memory")
    yield growth_row(f"peak memory {what}", against, *memory, MOST_MEMORY, "bytes")
    times = large.readings("seconds"), small.readings("seconds")
    note = NOTE.format(small=len(small.found), large=len(large.found))
    yield growth_row(f"time {what}", against, *times, MOST_TIME, note=note)
