"""Timing: contestants take turns in one process, with equal threads, and are compared first."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import dask
import threadpoolctl

# A turn of something short is made of as many calls as fill this many seconds.
TURN_SECONDS = 0.1
# Between turns: the threads of OpenMP go on spinning for a while when their work is done.
REST_SECONDS = 0.02


class MismatchError(Exception):
    """Ours and a peer did not come to the same result, so that their times mean nothing."""


class SkippedError(Exception):
    """Why something is not measured here."""


@dataclass(frozen=True)
class Readings:
    """What was measured, once a turn; seconds, or bytes of memory."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def spread(self) -> float:
        """The distance from the lowest to the highest, as a part of the median."""
        distance = max(self.values) - min(self.values)
        return distance / self.median if distance else 0.0


def nothing() -> None:
    """Leave everything as it is."""


@dataclass(frozen=True)
class Contestant:
    """One way of doing a thing.

    Attributes
    ----------
    name
        What it is called in the table.
    run
        Does it; what it returns is compared with what the others return.
    after
        Called after each `run`, outside the time that is measured.
    """

    name: str
    run: Callable[[], Any]
    after: Callable[[], None] = nothing


Check = Callable[[Mapping[str, Any]], None]


def race(contestants: Sequence[Contestant], repeats: int, check: Check) -> dict[str, Readings]:
    """Run each once and compare the results, then let them take turns.

    Parameters
    ----------
    contestants
        Who takes part, in the order of turns.
    repeats
        Turns of each.
    check
        Called with name -> result; raises `MismatchError`.

    Returns
    -------
    Name -> seconds of one call, in each turn.
    """
    check({contestant.name: contestant.run() for contestant in contestants})
    for contestant in contestants:
        contestant.after()
    turns: dict[str, list[float]] = {contestant.name: [] for contestant in contestants}
    for _ in range(repeats):
        for contestant in contestants:
            turns[contestant.name].append(_turn(contestant))
    return {name: Readings(tuple(values)) for name, values in turns.items()}


def _turn(contestant: Contestant) -> float:
    """Return the seconds of one call, averaged over the calls of a turn."""
    gc.collect()
    time.sleep(REST_SECONDS)
    calls, total = 0, 0.0
    while total < TURN_SECONDS:
        started = time.perf_counter()
        result = contestant.run()
        total += time.perf_counter() - started
        calls += 1
        del result
        contestant.after()
    return total / calls


@contextmanager
def equal_threads(threads: int) -> Iterator[None]:
    """Give OpenMP, the linear algebra libraries and dask the same number of threads.

    torch and faiss count their own: `peers_arrays.set_threads`.
    """
    with (
        threadpoolctl.threadpool_limits(threads),
        dask.config.set(scheduler="threads", num_workers=threads),
    ):
        yield
