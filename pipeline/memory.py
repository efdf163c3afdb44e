"""How much memory there is.

What a process may take is the least of the machine's memory, the limits of its control groups
and its own limit of address space.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")


def machine_memory() -> int:
    """Return the bytes of memory that this process may take."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_group_limits()]
    space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if space != resource.RLIM_INFINITY:
        limits.append(space)
    return min(limits)


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
        for place in (folder, *folder.parents):
            if _GROUPS in (place, *place.parents):
                yield from _read_limit(place / file)


def _read_limit(path: Path) -> Iterator[int]:
    try:
        yield int(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not there, or "max"
        return
