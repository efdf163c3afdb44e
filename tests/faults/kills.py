"""SIGKILL at random moments of every phase, sometimes a second time; then the command once more."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

from faults.forge import KILLED, Fault
from faults.stage import Stage
from faults.turns import in_turns

_AGAIN = 0.25
_MOST_TRIES = 20


@dataclass
class Kills:
    """How often a process was killed in each phase, and what was wrong afterwards."""

    hits: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def kill_in_every_phase(stage: Stage, count: int, seed: int) -> Kills:
    """Kill a scene until every phase of it was hit `count` times; resume it each time.

    A moment that was meant for one phase counts for the one that it hit; a quarter of the resumed
    processes are killed too, anywhere.
    """
    found = Kills()

    def kill(number: int) -> None:
        rng = random.Random(f"{seed} {stage.scene.name} {number}")
        missing = [name for name in stage.scene.phases if found.hits[name] < count]
        if not missing:
            return
        faults = [stage.moment(rng.choice(missing), rng)]
        if rng.random() < _AGAIN:
            faults.append(stage.moment(rng.choice(list(stage.phases)), rng))
        outcomes, wrong = stage.play(*faults)
        found.hits.update(outcome.phase for outcome in outcomes if outcome.code == KILLED)
        if wrong:
            found.wrong.append(f"seed {seed}, kill {number}, {faults}: {wrong}")

    in_turns(kill, range(_MOST_TRIES * count * len(stage.scene.phases)))
    return found


def kill_anywhere(stage: Stage, count: int, seed: int) -> Kills:
    """Kill a scene `count` times, at random operations of its phases; resume it each time."""
    found = Kills()

    def kill(number: int) -> None:
        rng = random.Random(f"{seed} {stage.scene.name} {number}")
        at = rng.choice(stage.operations_in(stage.scene.phases))
        (outcome,), wrong = stage.play(Fault(at, stage.scene.watched))
        found.hits[outcome.phase] += outcome.code == KILLED
        if wrong:
            found.wrong.append(f"seed {seed}, kill {number} at operation {at}: {wrong}")

    in_turns(kill, range(count))
    return found
