"""How a job tells how far it is: bars on a terminal, plain log lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from pipeline.core.errors import hide

LOG_SECONDS = 10.0


class Phase(Protocol):
    """One phase of a job, advanced by whole partitions."""

    def advance(self, partitions: int = 1) -> None: ...


class Reporter(Protocol):
    """Told of messages and phases; a job works the same whoever listens."""

    def say(self, message: str) -> None: ...

    @contextmanager
    def phase(self, name: str, partitions: int, size: int = 0) -> Iterator[Phase]:
        """Enter a phase of `partitions` tasks that read `size` bytes of pixels in all."""
        ...


class SilentPhase:
    """Tells nobody."""

    def advance(self, partitions: int = 1) -> None:
        pass


SILENT = SilentPhase()


class SilentReporter:
    """Says nothing; the default in Python."""

    def say(self, message: str) -> None:
        pass

    @contextmanager
    def phase(self, name: str, partitions: int, size: int = 0) -> Iterator[Phase]:
        yield SILENT


class _LogPhase:
    def __init__(self, reporter: LogReporter, name: str, partitions: int, size: int) -> None:
        self._reporter, self._name = reporter, name
        self._partitions, self._size = partitions, size
        self._done, self._start = 0, time.monotonic()
        self._last = self._start

    def advance(self, partitions: int = 1) -> None:
        self._done += partitions
        now = time.monotonic()
        if now - self._last >= LOG_SECONDS and self._done < self._partitions:
            self._last = now
            elapsed = now - self._start
            left = elapsed / self._done * (self._partitions - self._done)
            self._reporter.say(
                f"{self._name}: {self._done} of {self._partitions} partitions"
                f"{self._rate(elapsed)}, {left:.0f} s left"
            )

    def _rate(self, elapsed: float) -> str:
        if not self._size or elapsed <= 0:
            return ""
        rate = self._size * self._done / max(self._partitions, 1) / elapsed
        return f", {rate / 1e6:.0f} MB/s" if rate >= 1e6 else ""

    def finish(self) -> None:
        elapsed = time.monotonic() - self._start
        self._reporter.say(
            f"{self._name}: {self._done} partition{'' if self._done == 1 else 's'} in "
            f"{elapsed:.1f} s{self._rate(elapsed)}"
        )


class LogReporter:
    """Plain lines with the time, for logs and pipes."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream if stream is not None else sys.stderr

    def say(self, message: str) -> None:
        print(time.strftime("%H:%M:%S"), hide(message), file=self._stream, flush=True)

    @contextmanager
    def phase(self, name: str, partitions: int, size: int = 0) -> Iterator[Phase]:
        phase = _LogPhase(self, name, partitions, size)
        yield phase
        phase.finish()


class _BarPhase:
    def __init__(self, progress: Progress, name: str, partitions: int) -> None:
        self._progress = progress
        self._task = progress.add_task(name, total=partitions)

    def advance(self, partitions: int = 1) -> None:
        self._progress.advance(self._task, partitions)


class TerminalReporter:
    """Progress bars, for a person at a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def say(self, message: str) -> None:
        self._console.print(hide(message), style="dim", markup=False, highlight=False)

    @contextmanager
    def phase(self, name: str, partitions: int, size: int = 0) -> Iterator[Phase]:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self._console) as progress:
            yield _BarPhase(progress, name, partitions)


def make_reporter(*, quiet: bool = False) -> Reporter:
    """Return bars where stderr is a terminal, else log lines; nothing where it is to be quiet."""
    if quiet:
        return SilentReporter()
    console = Console(stderr=True)
    return TerminalReporter(console) if console.is_terminal else LogReporter()
