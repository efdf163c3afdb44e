"""What an audit found, put together from its lists of neighbours: the tables, and their counts.

Images are numbered over all splits, in the order of the store. Every table is made of numbers,
codes and distances that do not depend on how the search was cut, so neither does its digest.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.core.exact import Float64Array, Int64Array, finish_neighbours
from pipeline.core.partitions import ceil_div
from pipeline.core.schema import UNLABELLED
from pipeline.jobs.audit_lists import ListTables
from pipeline.jobs.audit_pairs import LEAST, PairFinder, Pairs, Sides, all_sides, best_of_each
from pipeline.jobs.audit_plan import AuditPlan
from pipeline.ops.audit_scores import fence, misfit, remoteness
from pipeline.ops.graph import Groups, connect, diameter, merge_nearest, smallest_edges
from pipeline.storage import sample_lists
from pipeline.storage.image_content import read_checked, read_labels

# Bytes of pixels that are read at once to measure pairs and groups.
_READ_BYTES = 64 * 2**20
KEPT, LEAK, COPY, CONFLICT, UNREADABLE = range(5)
REASONS = ("", "leak", "copy", "label conflict", sample_lists.UNREADABLE)
_LABELS_CUT = 0.9


@dataclass(frozen=True)
class Plain:
    """The nearest images of each, as they are, among all splits.

    Attributes
    ----------
    distance, neighbour
        [image, rank]; in units of full scale, NaN for none; the number of the image, -1 for none.
    """

    distance: Float64Array
    neighbour: Int64Array


class Images:
    """The images of an audit by their numbers."""

    def __init__(self, plan: AuditPlan) -> None:
        self.plan = plan
        self.edges = np.array([*plan.firsts, sum(plan.splits.values())])

    @cached_property
    def labels(self) -> npt.NDArray[np.int32]:
        """The label of each image, -1 for none."""
        plan, digest = self.plan, self.plan.content["digest"]
        return np.concatenate([
            read_labels(plan.images, digest, split, 0, count)
            for split, count in plan.splits.items()
        ])  # fmt: skip

    def split_of(self, numbers: Int64Array) -> npt.NDArray[np.int32]:
        """Return the split of images, as its number among those of the audit."""
        return (np.searchsorted(self.edges, numbers, side="right") - 1).astype(np.int32)

    def sample_of(self, numbers: Int64Array) -> Int64Array:
        """Return the sample index of images in their split."""
        sample: Int64Array = numbers - self.edges[self.split_of(numbers)]
        return sample

    def read(self, numbers: Int64Array) -> npt.NDArray[Any]:
        """Read images by their numbers, ascending, each once; chunk by chunk of the store."""
        plan, splits = self.plan, list(self.plan.splits)
        chunk = plan.like["chunk"]
        images = np.empty((len(numbers), *plan.like["shape"]), plan.like["dtype"])
        split, sample = self.split_of(numbers), self.sample_of(numbers)
        edges = np.flatnonzero(np.diff(split, prepend=-1) | np.diff(sample // chunk, prepend=-1))
        for at, end in zip(edges, [*edges[1:], len(numbers)], strict=True):
            first, last = int(sample[at]), int(sample[end - 1]) + 1
            name = splits[split[at]]
            block, _ = read_checked(plan.images, plan.content["digest"], name, first, last)
            images[at:end] = block[sample[at:end] - first]
        return images


@dataclass(frozen=True)
class FoundPairs:
    """The pairs of an audit, best first, and the cut of each two splits.

    Attributes
    ----------
    pairs
        Of all splits.
    distance
        [pair]; as the images are, or the mirror image of one, in units of full scale.
    near
        [pair]; whether the score reaches the cut, or the images are the same.
    cuts, best, nearest
        Two splits -> the cut; the scores of the nearest of each image; their plain distances.
    """

    pairs: Pairs
    distance: Float64Array
    near: npt.NDArray[np.bool_]
    cuts: dict[Sides, float]
    best: dict[Sides, Float64Array]
    nearest: dict[Sides, Float64Array]

    @property
    def exact(self) -> npt.NDArray[np.bool_]:
        """Which pairs are the same image, pixel by pixel, [pair]."""
        return np.equal(self.distance, 0) & ~self.pairs.mirrored


def read_lists(plan: AuditPlan, lists: ListTables) -> tuple[list[PairFinder], Plain]:
    """Read the lists, once: pairs of each two splits, and the nearest images of each."""
    finders = [PairFinder(plan, sides) for sides in all_sides(plan)]
    count, k = sum(plan.splits.values()), plan.search.k
    plain = Plain(np.full((count, k), np.nan), np.full((count, k), -1))
    here = [at for at, measure in enumerate(plan.search.measures) if not measure.normalized]
    for part in lists.read():
        for finder in finders:
            finder.add(part)
        rows = slice(part.start, part.start + len(part.distance))
        distance = part.distance[:, here].reshape(len(part.distance), -1)
        neighbour = part.neighbour[:, here].reshape(len(part.distance), -1)
        plain.distance[rows], plain.neighbour[rows] = merge_nearest(distance, neighbour, k)
    return finders, plain


def find_pairs(
    plan: AuditPlan, images: Images, finders: list[PairFinder], copies: Int64Array
) -> FoundPairs:
    """Choose the pairs that are listed, and measure them.

    `copies` are the pairs of an image and a copy of it, [pair, 2], by the hashes of the image set.
    """
    split = images.split_of(copies)
    rank = np.array([plan.keep.index(name) for name in plan.splits])
    swap = rank[split[:, 0]] > rank[split[:, 1]]
    copies = np.where(swap[:, None], copies[:, ::-1], copies)
    split = np.where(swap[:, None], split[:, ::-1], split)
    found, cuts = [], {}
    for finder in finders:
        mine = copies[(split == finder.sides).all(1)]
        ones = np.ones(len(mine))
        exact = Pairs(mine[:, 0], mine[:, 1], ones, np.zeros(len(mine), bool))
        pairs, cuts[finder.sides] = finder.result(exact, plan.settings.near)
        found.append(pairs)
    pairs = best_of_each(found)
    distance = _measure(plan, images, pairs)
    sides = np.stack([images.split_of(pairs.first), images.split_of(pairs.second)], axis=1)
    cut = np.full(len(pairs.score), 2.0)
    for pair, value in cuts.items():
        cut[(sides == pair).all(1)] = value
    near = (pairs.score >= cut) | ((distance == 0) & ~pairs.mirrored)
    best = {finder.sides: finder.best for finder in finders}
    return FoundPairs(pairs, distance, near, cuts, best, {f.sides: f.distance for f in finders})


def _measure(plan: AuditPlan, images: Images, pairs: Pairs) -> Float64Array:
    """Return the distance of each pair as its images are; of mirrored ones as one is mirrored."""
    distance = np.empty(len(pairs.first))
    size = max(1, _READ_BYTES // (2 * plan.search.sample_bytes))
    # those of one chunk together, so that few chunks are read twice
    order = np.lexsort((pairs.second, pairs.first))
    for at in range(ceil_div(len(order), size)):
        rows = order[at * size : (at + 1) * size]
        pixels = []
        for numbers in (pairs.first[rows], pairs.second[rows]):
            each, inverse = np.unique(numbers, return_inverse=True)
            pixels.append((images.read(each), inverse))
        numerators = np.array([
            _numerator(plan, pixels[0][0][a], pixels[1][0][b], mirrored)
            for a, b, mirrored in zip(
                pixels[0][1], pixels[1][1], pairs.mirrored[rows], strict=True
            )
        ], np.int64)  # fmt: skip
        distance[rows] = finish_neighbours(
            numerators, plan.settings.metric, plan.pixels, plan.content["full_scale"]
        )
    return distance


def _numerator(
    plan: AuditPlan, one: npt.NDArray[Any], two: npt.NDArray[Any], mirrored: bool
) -> int:
    difference = (one[:, ::-1] if mirrored else one).astype(np.int64) - two
    if plan.settings.metric == "l1":
        return int(np.abs(difference).sum())
    return int((difference * difference).sum())


@dataclass(frozen=True)
class FoundGroups:
    """Groups of images that are (nearly) the same, and what is known of each, [group].

    Attributes
    ----------
    groups
        The images of each.
    smallest, largest
        Distances: of its nearest pair that was found, and of its furthest two images.
    conflict
        Whether its images have more than one label.
    kept
        The number of the image that represents it: of the split that is kept first, the lowest.
    """

    groups: Groups
    smallest: Float64Array
    largest: Float64Array
    conflict: npt.NDArray[np.bool_]
    kept: Int64Array


def find_groups(plan: AuditPlan, images: Images, found: FoundPairs) -> FoundGroups:
    """Join the near pairs into groups."""
    near = found.pairs.where(found.near)
    groups = connect(near.first, near.second)
    smallest = smallest_edges(groups, near.first, found.distance[found.near])
    rank = np.array([plan.keep.index(name) for name in plan.splits])
    labels = images.labels[groups.members]
    conflict, kept = [], []
    for start, stop in zip(groups.starts[:-1], groups.starts[1:], strict=True):
        members, mine = groups.members[start:stop], labels[start:stop]
        conflict.append(len(set(mine[mine != UNLABELLED].tolist())) > 1)
        kept.append(members[np.lexsort((members, rank[images.split_of(members)]))[0]])
    return FoundGroups(
        groups, smallest, _diameters(plan, images, groups), np.array(conflict, bool),
        np.array(kept, np.int64),
    )  # fmt: skip


def _diameters(plan: AuditPlan, images: Images, groups: Groups) -> Float64Array:
    """Return the largest distance in each group, [group]; many groups are read at once."""
    most = max(1, _READ_BYTES // plan.search.sample_bytes)
    found, starts, at = [], groups.starts, 0
    while at < len(starts) - 1:
        end = max(at + 1, int(np.searchsorted(starts, starts[at] + most, side="right")) - 1)
        members = groups.members[starts[at] : starts[end]]
        order = np.argsort(members)
        pixels = np.empty((len(members), *plan.like["shape"]), plan.like["dtype"])
        pixels[order] = images.read(members[order])
        found += [
            diameter(part, plan.settings.metric, plan.content["full_scale"])
            for part in np.split(pixels, starts[at + 1 : end] - starts[at])
        ]
        at = end
    return np.array(found, np.float64)


def reasons_of(plan: AuditPlan, images: Images, found: FoundGroups) -> npt.NDArray[np.int32]:
    """Return for each image why it is not kept, an index into `REASONS`; 0 where it is.

    Of a group the representative is kept. The others are leaks in other splits than that one's, and
    else copies. Where labels conflict nobody knows which is right: none is kept then but that of
    the split that is kept first.
    """
    reasons = np.zeros(sum(plan.splits.values()), np.int32)
    groups = found.groups
    members, kept = groups.members, groups.each(found.kept)
    other_split = images.split_of(members) != images.split_of(kept)
    reasons[members] = np.where(members == kept, KEPT, np.where(other_split, LEAK, COPY))
    other_label = groups.each(found.conflict) & (images.labels[members] != images.labels[kept])
    reasons[members[other_label]] = CONFLICT
    first = list(plan.splits).index(next(name for name in plan.keep if name in plan.splits))
    unsure = found.kept[found.conflict & (images.split_of(found.kept) != first)]
    reasons[unsure] = CONFLICT
    return reasons


@dataclass(frozen=True)
class Suspects:
    """Images whose label, or which themselves, stand out; highest score first, [image].

    `cut` is the score from which they count as findings.
    """

    numbers: Int64Array
    score: Float64Array
    cut: float

    @classmethod
    def best(cls, score: Float64Array, cut: float) -> Suspects:
        """Return those that reach the cut, and the best in any case; none of score 0."""
        order = np.lexsort((np.arange(len(score)), -score))
        count = max(LEAST, int(np.count_nonzero(score >= cut)))
        order = order[:count]
        order = order[score[order] > 0]
        return cls(order, score[order], cut)


@dataclass(frozen=True)
class WrongLabels:
    """Suspect labels: the likeliest other one, the votes for both, the nearest with each."""

    suspects: Suspects
    other: npt.NDArray[np.int32]
    votes: Int64Array
    nearest: Float64Array  # [image, 2]; with the given label, with another; NaN: not listed


def find_wrong_labels(plan: AuditPlan, images: Images, plain: Plain) -> WrongLabels:
    """Score all labels, and return those that stand out."""
    labels, classes = images.labels, max(len(plan.content["class_names"]), 1)
    score, other, votes = misfit(labels, plain.neighbour, classes)
    cut = _LABELS_CUT if plan.settings.labels is None else plan.settings.labels
    suspects = Suspects.best(score, cut)
    rows = suspects.numbers
    near = labels[np.maximum(plain.neighbour[rows], 0)]
    listed = (plain.neighbour[rows] >= 0) & (near != UNLABELLED)
    own = listed & (near == labels[rows, None])
    nearest = np.stack([
        _first(plain.distance[rows], own), _first(plain.distance[rows], listed & ~own),
    ], axis=1)  # fmt: skip
    return WrongLabels(suspects, other[rows], votes[rows], nearest)


def _first(distance: Float64Array, wanted: npt.NDArray[np.bool_]) -> Float64Array:
    """Return the first distance of each row that is wanted, NaN where none is."""
    at = wanted.argmax(1)
    return np.where(wanted.any(1), distance[np.arange(len(distance)), at], np.nan)


def find_outliers(plan: AuditPlan, plain: Plain) -> Suspects:
    """Return the images that are far from all others."""
    score = remoteness(plain.distance[:, 0])
    cut = fence(score[score > 0]) if plan.settings.outliers is None else plan.settings.outliers
    return Suspects.best(score, cut)


def counts_of(groups: FoundGroups, found: FoundPairs) -> dict[str, int]:
    """Count what was found of copies: images, pairs, and copies to remove, which differ."""
    sizes = groups.groups.sizes()
    return {
        "images": len(groups.groups.members),
        "pairs": int(np.count_nonzero(found.near)),
        "exact_pairs": int(np.count_nonzero(found.exact)),
        "groups": len(sizes),
        "copies_to_remove": int((sizes - 1).sum()),
        "groups_with_label_conflict": int(np.count_nonzero(groups.conflict)),
    }


def count_reasons(reasons: npt.NDArray[np.int32]) -> dict[str, int]:
    """Count the images of each reason, by its name; those that are kept as `kept`."""
    counts = Counter(reasons.tolist())
    return {REASONS[at] or "kept": counts[at] for at in range(len(REASONS)) if counts[at]}
