"""Several processes of one command at once, in one folder."""

from __future__ import annotations

from dataclasses import dataclass, field

from faults.forge import Outcome
from faults.stage import Stage

IN_USE = 4


@dataclass
class Races:
    """How the processes of races ended, and what was wrong."""

    won: int = 0
    turned_away: int = 0
    wrong: list[str] = field(default_factory=list)


def race(stage: Stage, runners: int, times: int) -> Races:
    """Start a scene's command in several processes at once, again and again.

    One at least must end well, the others too or with what says who holds the folder; and what is
    there in the end must be what one process alone leaves.
    """
    found = Races()
    for number in range(times):
        outcomes, wrong = stage.play_at_once(runners)
        won = sum(outcome.code == 0 for outcome in outcomes)
        found.won += won
        found.turned_away += runners - won
        complaints = [wrong, *map(_complaint, outcomes), "" if won else "nobody won"]
        if any(complaints):
            found.wrong.append(f"race {number}: {'; '.join(filter(None, complaints))}")
    return found


def _complaint(outcome: Outcome) -> str:
    names_the_holder = "process" in outcome.text and outcome.is_clear
    if outcome.code == 0 or (outcome.code == IN_USE and names_the_holder):
        return ""
    return f"ended with {outcome.code} and said {outcome.text}"
