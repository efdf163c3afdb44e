"""Operations on files that fail, each in turn: with an error of the disk, once or from then on."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from faults.forge import Fault
from faults.stage import Stage
from faults.turns import in_turns

# with which error, and whether every later operation fails as well
KINDS = tuple(
    (code, lasting) for code in (errno.EIO, errno.ENOSPC, errno.EACCES) for lasting in (False, True)
)
PASSING = ((errno.EIO, False),)
LASTING = ((errno.EIO, True),)


@dataclass
class Failures:
    """How runs with a failing operation ended, with which errors, and what was wrong later."""

    ends: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def each_operation(
    stage: Stage, step: int = 1, start: int = 0, kinds: Sequence[tuple[int, bool]] = KINDS
) -> list[Fault]:
    """Return a fault for every `step`-th operation of a scene's phases, of each kind in turn."""
    numbers = stage.operations_in(stage.scene.phases)[start::step]
    return [
        Fault(operation, stage.scene.watched, *kinds[at % len(kinds)])
        for at, operation in enumerate(numbers)
    ]


def cut_files(stage: Stage, sizes: Iterable[int]) -> list[Fault]:
    """Return faults that cut off the writing of any file at some size."""
    return [Fault(file_bytes=size) for size in sizes]


def fail_each(stage: Stage, faults: Iterable[Fault]) -> Failures:
    """Play a scene with each of some faults; resume it each time."""
    found = Failures()

    def attempt(fault: Fault) -> None:
        (outcome,), wrong = stage.play(fault)
        found.ends["completed" if outcome.code == 0 else "clear error"] += 1
        where = "" if fault.operation is None else stage.operations[fault.operation]
        if outcome.code:
            found.errors.append(f"{fault} at {where}: {outcome.text}")
        if wrong:
            found.wrong.append(f"{fault} at {where}: {wrong}")

    in_turns(attempt, faults)
    return found
