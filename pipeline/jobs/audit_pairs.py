"""Pairs of images that are (nearly) the same, from the lists of neighbours of an audit.

Between two splits the lists of the images that are kept first are looked at: whether an image that
is measured is also among those that a model is made of. Within a split all lists are. Exact copies
come from the hashes of the image set and cost nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.core.exact import Float64Array, Int64Array
from pipeline.jobs.audit_lists import Lists
from pipeline.jobs.audit_plan import AuditPlan
from pipeline.ops.audit_scores import fence, nearness

LEAST = 1000
"""Pairs of each two splits that are listed, whatever their score."""
# What is chosen at least: of a few images any may be somewhat nearer than the others.
_LEAST_CUT = 0.25
LOWEST = 0.1
"""Below this score only the nearest of an image makes a pair with it."""

Sides = tuple[int, int]


@dataclass(frozen=True)
class Pairs:
    """Pairs of images by their numbers over all splits, each pair once.

    Attributes
    ----------
    first, second
        [pair]; the images: `first` in the split that is kept first, else the lower number.
    score
        [pair]; see `ops.audit_scores.nearness`.
    mirrored
        [pair]; whether they are near as one of them is mirrored.
    """

    first: Int64Array
    second: Int64Array
    score: Float64Array
    mirrored: npt.NDArray[np.bool_]

    def where(self, wanted: npt.NDArray[Any] | slice) -> Pairs:
        """Return some of them, by a mask, by positions or a range of them."""
        return Pairs(*(getattr(self, each.name)[wanted] for each in fields(self)))

    @staticmethod
    def none() -> Pairs:
        """Return no pairs."""
        numbers = np.empty(0, np.int64)
        return Pairs(numbers, numbers, np.empty(0), np.empty(0, bool))


def best_of_each(parts: list[Pairs]) -> Pairs:
    """Join pairs, each once with its best score, best first; equal ones by their numbers."""
    every = Pairs(
        *(np.concatenate([getattr(p, each.name) for p in parts]) for each in fields(Pairs))
    )
    every = every.where(np.lexsort((every.mirrored, -every.score, every.second, every.first)))
    new = np.ones(len(every.first), bool)
    new[1:] = (np.diff(every.first) != 0) | (np.diff(every.second) != 0)
    every = every.where(new)
    return every.where(np.lexsort((every.second, every.first, -every.score)))


@dataclass
class PairFinder:
    """Gathers the pairs between two splits, `sides`, from one part of the lists after the other.

    `best` is the score of the nearest of each image of the first, by which the cut is chosen, and
    `distance` its plain distance in units of full scale.
    """

    plan: AuditPlan
    sides: Sides
    found: Pairs = field(default_factory=Pairs.none)

    def __post_init__(self) -> None:
        first, second = self.sides
        counts = list(self.plan.splits.values())
        self._start, self._count = self.plan.firsts[first], counts[first]
        self.best, self.distance = np.zeros(self._count), np.full(self._count, np.nan)
        name = list(self.plan.splits)[second]
        self._measures = [
            (at, measure)
            for at, measure in enumerate(self.plan.search.measures)
            if measure.split == name
        ]

    def add(self, part: Lists) -> None:
        """Look at the lists of some images."""
        begin = max(self._start - part.start, 0)
        end = min(self._start + self._count - part.start, len(part.distance))
        if begin >= end:
            return
        numbers = np.arange(part.start + begin, part.start + end)
        mine = slice(numbers[0] - self._start, numbers[-1] + 1 - self._start)
        new = [self.found]
        for at, measure in self._measures:
            distance, neighbour = part.distance[begin:end, at], part.neighbour[begin:end, at]
            score = nearness(distance)
            if not measure.mirrored:
                self.best[mine] = np.maximum(self.best[mine], score[:, 0])
            if not measure.normalized:
                self.distance[mine] = distance[:, 0]
            new.append(self._candidates(numbers, neighbour, score, measure.mirrored))
        self.found = self._listed(best_of_each(new), LOWEST)

    def _candidates(
        self, numbers: Int64Array, neighbour: Int64Array, score: Float64Array, mirrored: bool
    ) -> Pairs:
        nearest = score[:, 0]
        least = np.partition(nearest, -LEAST)[-LEAST] if len(nearest) > LEAST else 0.0
        wanted = score >= LOWEST
        wanted[:, 0] |= nearest >= least
        rows, ranks = np.nonzero(wanted & (neighbour >= 0))
        first, second = numbers[rows], neighbour[rows, ranks]
        if self.sides[0] == self.sides[1]:
            first, second = np.minimum(first, second), np.maximum(first, second)
        return Pairs(first, second, score[rows, ranks], np.full(len(rows), mirrored))

    def _listed(self, ranked: Pairs, cut: float) -> Pairs:
        """Return those that reach a cut, and the best in any case."""
        return ranked.where(slice(max(LEAST, int(np.count_nonzero(ranked.score >= cut)))))

    def result(self, copies: Pairs, cut: float | None) -> tuple[Pairs, float]:
        """Return the pairs that are listed, exact copies among them, and the cut."""
        chosen = max(fence(self.best), _LEAST_CUT) if cut is None else cut
        return self._listed(best_of_each([self.found, copies]), chosen), chosen


def all_sides(plan: AuditPlan) -> Iterator[Sides]:
    """Yield each two splits by number, that which is kept first before the other."""
    names = list(plan.splits)
    order = [names.index(name) for name in plan.keep if name in names]
    for at, first in enumerate(order):
        for second in order[at:]:
            yield first, second
