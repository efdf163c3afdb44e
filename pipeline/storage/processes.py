"""Telling processes apart, and whether one still lives.

A process number says little by itself: it is used again, and containers that see one folder number
their processes each from 1. So a process is known by the machine that it runs on (one start of a
system, and in it one space of process numbers), its number, and when it was started there.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_PROC = Path("/proc")
_STATE, _STARTED = 0, 19  # fields of /proc/PID/stat, behind the name
_GONE = ("Z", "X", "x")  # killed, and not yet waited for


@dataclass(frozen=True)
class Process:
    """A process, as it differs from every other one."""

    machine: str  # where its number counts; empty where the system does not say
    number: int
    started: int  # in ticks of that machine; 0 where the system does not say

    @property
    def mark(self) -> str:
        """What names it in the name of a file; see `of_mark`."""
        return f"{self.machine or 'unknown'}-{self.number}-{self.started}"

    @staticmethod
    def of_mark(mark: str) -> Process | None:
        """Return the process of a mark, None where it is none."""
        parts = mark.split("-")
        if len(parts) != 3 or not (parts[1].isdigit() and parts[2].isdigit()):
            return None
        return Process(parts[0], int(parts[1]), int(parts[2]))

    @property
    def lives(self) -> bool | None:
        """Whether it still runs; None where that cannot be told from here."""
        if not self.machine or self.machine != machine():
            return None
        started = _started(self.number)
        return None if started is None else started == self.started


@cache
def machine() -> str:
    """Return what tells this machine, as it was started and as this process sees it, from others.

    Empty where the system does not say: there it is unknown whether a process lives.
    """
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        numbers = (_PROC / "self/ns/pid").readlink()
        if str((_PROC / "self").readlink()) != str(os.getpid()):
            return ""  # /proc is that of another space of numbers
    except (OSError, ValueError):
        return ""
    return hashlib.sha256(f"{boot} {numbers}".encode()).hexdigest()[:16]


def this_process() -> Process:
    return _process(os.getpid())


@cache  # every file that is written asks, and threads would wait for each other over it
def _process(number: int) -> Process:
    started = _started(number)
    return Process(machine() if started else "", number, started or 0)


def _started(number: int) -> int | None:
    """Return when a process of this machine was started; 0 of a dead one, None where not told."""
    try:
        text = (_PROC / str(number) / "stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        # gone, or hidden from this user
        return 0 if _is_gone(number) else None
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return 0 if fields[_STATE] in _GONE else int(fields[_STARTED])


def _is_gone(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False
