"""Damage after damage: what `verify` names, what readers and jobs make of it, what repair mends."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pipeline
from faults.damage import KINDS, Damaged, damage
from faults.readings import REFUSED, readings
from faults.scenes import RESULT, Scene
from faults.stage import Stage, take_remains
from faults.turns import in_turns
from pipeline.cli import main
from pipeline.core.errors import PixsimError

_ANOTHER = "another"


@dataclass
class Verdict:
    """What became of a damage: the files that `verify` named, and what was wrong.

    Attributes
    ----------
    named
        Files of the damaged store or run.
    believed
        What was read, or made from it, as if nothing were.
    refusal
        Why it was not repaired.
    left
        What lies there after the repair.
    """

    named: set[str] = field(default_factory=set)
    believed: list[str] = field(default_factory=list)
    refusal: str = ""
    left: Any = None


@dataclass
class Verdicts:
    """How many damages of each kind were done, and what was wrong with any."""

    done: Counter[str] = field(default_factory=Counter)
    missed: list[str] = field(default_factory=list)
    believed: list[str] = field(default_factory=list)
    unrepaired: list[str] = field(default_factory=list)


def judge(scene: Scene, damaged: Damaged, expected: dict[str, str], digests: Any) -> Verdict:
    """Verify, read, use and repair what lies damaged in the working directory.

    `expected` and `digests` are what readers got before, and the digests of the run.
    """
    verdict, result = Verdict(), damaged.files[0].partition("/")[0]
    try:
        verdict.named = {f"{result}/{found.file}" for found in pipeline.verify(result)}
    except PixsimError as error:
        verdict.named = {file for file in damaged.files if file in str(error)}
    found = readings()
    verdict.believed = [
        name
        for name, value in found.items()
        if value != expected[name] and not value.startswith(REFUSED)
    ]
    if not main(["run", "job.yml", "--output", _ANOTHER]) and pipeline.digest(_ANOTHER) != digests:
        verdict.believed.append("another run")
    try:
        pipeline.verify(result, repair=True)
        verdict.left = take_remains(scene)
    except PixsimError as error:
        verdict.refusal = str(error)
    return verdict


def judge_damages(stage: Stage, count: int, seed: int) -> Verdicts:
    """Damage what a scene made `count` times, every kind in turn, made anew each time."""
    found, expected = Verdicts(), stage.call(stage.finished(), readings)
    assert not any(value.startswith(REFUSED) for value in expected.values()), expected

    def attempt(number: int) -> None:
        rng, kind = random.Random(f"{seed} {number}"), KINDS[number % len(KINDS)]
        place = stage.finished()  # a run knows where its image set is, so a copy will not do
        result = rng.choice(stage.scene.results)
        damaged = damage(place, result, kind, rng)
        digests = stage.expected.digests[RESULT]
        verdict = stage.call(place, partial(judge, stage.scene, damaged, expected, digests))
        where = f"seed {seed}, damage {number}, {damaged}"
        found.done[kind] += 1
        if not set(damaged.files) <= verdict.named:
            found.missed.append(f"{where}: verify named {sorted(verdict.named)}")
        found.believed += [f"{where}: {what}" for what in verdict.believed]
        wrong = verdict.refusal or verdict.left.difference(stage.expected)
        if wrong:
            found.unrepaired.append(f"{where}: {wrong}")
        shutil.rmtree(place)

    in_turns(attempt, range(count))
    return found
