"""How much memory there is, and how much was taken.

What a process may take is the least of the machine's memory, the limits of its control groups
and its own limit of address space.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

# What a process takes that has everything imported that reads and writes image sets, as measured.
LEAST_BYTES = 200 * 10**6

_GROUPS = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")
_OWN_PAGES = Path("/proc/self/statm")
_OWN_STATUS = Path("/proc/self/status")
# Address space that a process with everything loaded has mapped and does not use, as measured on
# two cores, and rounded up: libraries and what allocators reserve once, and for each thread.
_MAPPED_BYTES = 1500 * 10**6
_THREAD_BYTES = 64 * 2**20
_THREADS_BESIDE = 12  # those that read and write, beside one for each core


def machine_memory() -> int:
    """Return the bytes of memory that this process may take."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_group_limits()]
    space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if space != resource.RLIM_INFINITY:
        limits.append(max(0, space - _mapped()))
    return max(1, min(limits))


def peak_memory() -> int:
    """Return the most bytes of memory that this process has held so far.

    On Linux from `VmHWM`: `ru_maxrss` there begins with what the parent held.
    """
    with suppress(OSError):
        for line in _OWN_STATUS.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _mapped() -> int:
    """Return the bytes of address space that this process will have mapped and not use."""
    threads = (os.cpu_count() or 1) + _THREADS_BESIDE
    expected = _MAPPED_BYTES + threads * _THREAD_BYTES
    try:
        size, resident = _OWN_PAGES.read_text(encoding="ascii").split()[:2]
    except OSError:
        return expected
    return max(expected, os.sysconf("SC_PAGE_SIZE") * (int(size) - int(resident)))


def _group_limits() -> Iterator[int]:
    """Yield the limits of the control groups, of both versions, that this process is in."""
    try:
        lines = _OWN_GROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers == "":
            folder, file = _GROUPS / name.lstrip("/"), "memory.max"
        elif "memory" in controllers.split(","):
            folder, file = _GROUPS / "memory" / name.lstrip("/"), "memory.limit_in_bytes"
        else:
            continue
        for group in (folder, *folder.parents):
            if _GROUPS in (group, *group.parents):
                yield from _read_limit(group / file)


def _read_limit(path: Path) -> Iterator[int]:
    try:
        yield int(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not there, or "max"
        return
