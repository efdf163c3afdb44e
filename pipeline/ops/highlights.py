"""What is worth a look among all predictions, picked from their tables as these pass by.

Of each metric and class the most typical images, the hardest that were right and the most
confidently wrong ones; how margins are distributed; where two metrics disagree. What is kept does
not grow with the number of samples, and does not depend on how they are cut into tables or in which
order these come: equals are ranked by split and sample. And which classes are alike on average: how
far the prototypes of a run are from each other.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.core.classes import ClassSelection
from pipeline.core.deferred import deferred
from pipeline.core.exact import Float64Array, Int64Array
from pipeline.core.schema import METRIC, SAMPLE
from pipeline.kernels import numpy as in_numpy

if TYPE_CHECKING:
    from pipeline.kernels import cpu_differences
else:
    cpu_differences = deferred("pipeline.kernels.cpu_differences")  # which loads numba

KEPT = 4  # samples of each kind and class
DISAGREEMENTS = 12  # samples that one metric has right and the other one wrong, of each kind
_PROBE = 512  # candidates that are ranked first, since most of the others are farther
BINS = 2**14  # of margins, over 0 to 1; a power of two, so that the bin of a margin is exact
KINDS = ("typical", "hardest", "wrong")
OUTCOMES = ("both", "first", "second", "neither")

CLOSEST = 30  # pairs that are named
MAX_MATRIX = 64  # classes of which every distance is kept
MAX_CLASSES = 4_000
MAX_WORK = 2 * 10**10  # differences of two pixels; some seconds
_LITTLE = 2**26  # of which NumPy takes less long than numba takes to load

_VALUES = ("predicted", "distance", "margin", "label_distance")


class _Best:
    """The samples of each group with the smallest keys, the same whatever comes first.

    Most of what is offered is farther than what is kept already and looked at once. The rest waits
    until it is worth sorting.
    """

    def __init__(self, groups: int, keep: int, metrics: int) -> None:
        self._keep = keep
        self._limits = np.full(groups, np.inf)
        self._dtype = np.dtype(
            [
                ("group", np.int64), ("key", np.float64), ("split", np.int32),
                ("sample", np.int64), ("part", np.int64), ("row", np.int64), ("label", np.int64),
                ("predicted", np.int64, (metrics,)), ("distance", np.float64, (metrics,)),
                ("margin", np.float64, (metrics,)), ("label_distance", np.float64, (metrics,)),
            ]
        )  # fmt: skip
        self._kept = np.empty(0, self._dtype)
        self._waiting: list[npt.NDArray[Any]] = []

    def offer(
        self,
        group: npt.NDArray[np.int64],
        key: Float64Array,
        where: npt.NDArray[np.int64],
        columns: Mapping[str, npt.NDArray[Any]],
        metrics: Sequence[int],
    ) -> None:
        """Offer some samples of tables.

        Parameters
        ----------
        group, key
            [candidate]; what each is ranked among, and by; NaN is never kept.
        where
            [candidate]; its index among the samples of the tables.
        columns
            Of the tables: part and row (where the sample lies), split, sample, label [sample]; the
            others [sample, metric].
        metrics
            Those whose values are kept.
        """
        edges = [0, _PROBE, _PROBE**2] if np.isinf(self._limits[group[:1]]).any() else [0]
        for start, stop in itertools.pairwise([*edges, len(key)]):
            if start < len(key):
                part = slice(start, stop)
                self._take(group[part], key[part], where[part], columns, metrics)
                if stop < len(key):
                    self._rank()

    def _take(
        self,
        group: npt.NDArray[np.int64],
        key: Float64Array,
        where: npt.NDArray[np.int64],
        columns: Mapping[str, npt.NDArray[Any]],
        metrics: Sequence[int],
    ) -> None:
        near = np.flatnonzero(key <= self._limits[group])
        if not len(near):
            return
        rows = np.empty(len(near), self._dtype)
        at = where[near]
        rows["group"], rows["key"] = group[near], key[near]
        for name in ("part", "split", "sample", "label"):
            rows[name] = columns[name][at]
        rows["row"] = columns["row"][at] + metrics[0]
        for name in _VALUES:
            rows[name] = columns[name][at][:, list(metrics)]
        self._waiting.append(rows)
        if sum(map(len, self._waiting)) >= self._keep * len(self._limits):
            self._rank()

    def _rank(self) -> None:
        rows = np.concatenate([self._kept, *self._waiting])
        order = np.lexsort((rows["sample"], rows["split"], rows["key"], rows["group"]))
        rows = rows[order]
        first = np.searchsorted(rows["group"], rows["group"])
        rank = np.arange(len(rows)) - first
        last = rows[rank == self._keep - 1]
        self._limits[last["group"]] = last["key"]
        self._kept, self._waiting = rows[rank < self._keep], []

    def result(self, splits: Sequence[str]) -> dict[str, Any]:
        """Return columns: the samples group by group, best first. What is not known is None."""
        self._rank()
        rows = self._kept
        columns: dict[str, Any] = {name: rows[name].tolist() for name in ("sample", "part", "row")}
        columns["split"] = [splits[code] for code in rows["split"].tolist()]
        columns["label"] = rows["label"].tolist()
        for name in _VALUES:
            values = rows[name][:, 0] if rows[name].shape[1] == 1 else rows[name]
            columns[name] = _plain(values)
        return columns


def _plain(values: npt.NDArray[Any]) -> list[Any]:
    """Return an array as lists, with None for NaN."""
    if values.dtype.kind != "f" or not np.isnan(values).any():
        return list(values.tolist())
    plain = values.astype(object)
    plain[np.isnan(values)] = None
    return list(plain.tolist())


class Highlights:
    """Picks what is worth a look from prediction tables.

    Parameters
    ----------
    selection
        The classes of the run.
    metrics, splits
        The names of what the tables have codes of.
    """

    def __init__(
        self, selection: ClassSelection, metrics: Sequence[str], splits: Sequence[str]
    ) -> None:
        self._selection, self._metrics, self._splits = selection, tuple(metrics), tuple(splits)
        classes = len(selection.codes)
        self._best = [{kind: _Best(classes, KEPT, 1) for kind in KINDS} for _ in metrics]
        self._margins = np.zeros((len(metrics), 2, BINS), np.int64)
        self._agreement = np.zeros((classes, len(OUTCOMES)), np.int64)
        self._differing = _Best(2, DISAGREEMENTS, len(metrics))

    def add(self, first: int, rows: Mapping[str, npt.NDArray[Any]], lengths: Sequence[int]) -> None:
        """Look at prediction tables.

        Parameters
        ----------
        first
            The number of the first; the others follow.
        rows
            Their columns, [row], end to end; sample by sample, and of each sample a row for each
            metric in the order of their codes.
        lengths
            The rows of each table.
        """
        times = len(self._metrics)
        if len(rows[SAMPLE]) % times or (rows[METRIC].reshape(-1, times) != np.arange(times)).any():
            raise ValueError(f"table {first} has rows in another order, expected sample by sample")
        ends = np.cumsum([0, *lengths])
        starts = np.repeat(ends[:-1], np.diff(ends) // times)
        columns = {
            "part": np.repeat(first + np.arange(len(lengths)), np.diff(ends) // times),
            "row": times * np.arange(len(starts)) - starts,
            SAMPLE: rows[SAMPLE][::times],
            "split": rows["split"][::times],
            "label": self._selection.positions(rows["label"][::times]),
            "predicted": self._selection.positions(rows["predicted"]).reshape(-1, times),
        }
        for name in _VALUES[1:]:
            columns[name] = rows[name].reshape(-1, times)
        labelled = columns["label"] >= 0
        right = (columns["predicted"] == columns["label"][:, None]) & labelled[:, None]
        known = (columns["predicted"] >= 0) & labelled[:, None]
        for metric in range(times):
            self._look(metric, columns, right[:, metric], known[:, metric])
        if times == 2:
            self._compare(columns, right, known[:, 0] & known[:, 1])

    def _look(
        self,
        metric: int,
        columns: Mapping[str, npt.NDArray[Any]],
        right: npt.NDArray[np.bool_],
        known: npt.NDArray[np.bool_],
    ) -> None:
        label, margin = columns["label"], columns["margin"][:, metric]
        hits, misses = np.flatnonzero(right), np.flatnonzero(known & ~right)
        best = self._best[metric]
        distance = columns["label_distance"][hits, metric]
        for kind, where, key in (
            ("typical", hits, distance),
            ("hardest", hits, margin[hits]),
            ("wrong", misses, -margin[misses]),
        ):
            best[kind].offer(label[where], key, where, columns, [metric])
        for row, where in enumerate((hits, misses)):
            of_kind = margin[where]
            bins = (of_kind[~np.isnan(of_kind)] * BINS).astype(np.int64)
            self._margins[metric, row] += np.bincount(np.minimum(bins, BINS - 1), minlength=BINS)

    def _compare(
        self,
        columns: Mapping[str, npt.NDArray[Any]],
        right: npt.NDArray[np.bool_],
        known: npt.NDArray[np.bool_],
    ) -> None:
        """Count where two metrics are right, and pick where both are sure and one is wrong."""
        first, second = right.T
        outcome = np.where(first, np.where(second, 0, 1), np.where(second, 2, 3))
        classes = len(self._agreement)
        pairs = columns["label"][known] * len(OUTCOMES) + outcome[known]
        counts = np.bincount(pairs, minlength=classes * len(OUTCOMES))
        self._agreement += counts.reshape(classes, len(OUTCOMES))
        where = np.flatnonzero(known & (first != second))
        surest = -columns["margin"][where].min(axis=1)
        group = outcome[where].astype(np.int64) - 1
        self._differing.offer(group, surest, where, columns, [0, 1])

    def result(self) -> dict[str, Any]:
        """Return all of it, as `highlights.json` has it.

        `samples`, for each metric and kind: columns of label, predicted (positions among the
        classes), split, sample, distance, margin, label_distance, and `part` and `row`, the index
        in the prediction tables; class by class, the first of a class first. `margins`, for each
        metric: how many that were right and wrong have a margin in each bin of 1 / `bins`, without
        the empty bins at the end. `agreement`, of two metrics: per class how many were right by
        both, only the first, only the second, neither; and `samples`, of which one metric is right
        and both are sure, with the values of both.
        """
        margins = {
            name: {"right": _trimmed(right), "wrong": _trimmed(wrong)}
            for name, (right, wrong) in zip(self._metrics, self._margins, strict=True)
        }
        agreement = None
        if len(self._metrics) == 2:
            counts = zip(OUTCOMES, self._agreement.T.tolist(), strict=True)
            samples = self._differing.result(self._splits)
            agreement = {"counts": dict(counts), "samples": samples}
        return {
            "samples": {
                name: {kind: best.result(self._splits) for kind, best in kinds.items()}
                for name, kinds in zip(self._metrics, self._best, strict=True)
            },
            "margins": {"bins": BINS, **margins},
            "agreement": agreement,
        }


def _trimmed(counts: npt.NDArray[np.int64]) -> list[int]:
    occupied = np.flatnonzero(counts)
    return list(counts[: occupied[-1] + 1 if len(occupied) else 0].tolist())


def prototype_distances(prototypes: Float64Array, threads: int = 1) -> dict[str, Float64Array]:
    """Measure prototypes against each other.

    Parameters
    ----------
    prototypes
        [class, pixel]; in units of full scale.
    threads
        How many cores to use.

    Returns
    -------
    `l1`, the mean of absolute differences, and `l2`, the root of the mean of squared ones: both
    [class, class], from 0 to 1.
    """
    pixels = prototypes.shape[1]
    # the size alone decides, so that the last bits are the same for any number of threads
    if len(prototypes) ** 2 * pixels <= _LITTLE:
        absolute, squared = in_numpy.differences(prototypes)
    else:
        absolute, squared = cpu_differences.differences(prototypes, threads)
    return {"l1": absolute / pixels, "l2": np.sqrt(squared / pixels)}


def closest_classes(
    numerators: Int64Array,
    denominators: Int64Array,
    full_scale: int,
    metrics: Sequence[str],
    threads: int = 1,
) -> dict[str, Any]:
    """Return which classes have prototypes that are close to each other.

    Parameters
    ----------
    numerators, denominators
        [class, ...] and [class]; the exact prototypes. A denominator of 0 is a class without one.
    full_scale
        The pixel value that counts as 1.
    metrics
        `l1`, `l2`.
    threads
        How many cores to use.

    Returns
    -------
    `skipped`, why nothing was measured, or None; and for each metric `pairs`, the closest pairs as
    [class, class, distance]; of each class its `nearest` other one and the `distance` to it, None
    where there is none; and `matrix`, all distances, where classes are few, else None. Classes are
    positions.
    """
    present = np.flatnonzero(denominators > 0)
    reason = _too_much(len(present), numerators[0].size)
    result: dict[str, Any] = {"skipped": reason}
    if reason:
        return result
    flat = numerators.reshape(len(numerators), -1)[present]
    images = flat / (denominators[present, None] * float(full_scale))
    distances = prototype_distances(images, threads)
    return result | {m: _similarity(distances[m], present, len(numerators)) for m in metrics}


def _too_much(classes: int, pixels: int) -> str | None:
    """Say why prototypes are not compared, where that would take too long."""
    work = classes * (classes - 1) // 2 * pixels
    if classes <= MAX_CLASSES and work <= MAX_WORK:
        return None
    return (
        f"{classes:,} prototypes of {pixels:,} pixels were not compared with each other: that "
        f"takes {work:.1g} differences, and is done for up to {MAX_CLASSES:,} classes and "
        f"{MAX_WORK:.0e} differences"
    )


def _similarity(
    distances: Float64Array, present: npt.NDArray[np.int64], classes: int
) -> dict[str, Any]:
    count = len(present)
    first, second = np.triu_indices(count, 1)
    values = distances[first, second]
    order = np.argsort(values, kind="stable")[:CLOSEST]
    pairs = [[int(present[first[at]]), int(present[second[at]]), float(values[at])] for at in order]
    nearest: list[int | None] = [None] * classes
    lowest: list[float | None] = [None] * classes
    if count > 1:
        others = distances + np.diag(np.full(count, np.inf))
        for position, other in zip(present.tolist(), others.argmin(axis=1).tolist(), strict=True):
            nearest[position] = int(present[other])
        for position, value in zip(present.tolist(), others.min(axis=1).tolist(), strict=True):
            lowest[position] = value
    matrix = None
    if classes <= MAX_MATRIX:
        every: npt.NDArray[Any] = np.full((classes, classes), None, object)
        every[np.ix_(present, present)] = distances
        matrix = every.tolist()
    return {"pairs": pairs, "nearest": nearest, "distance": lowest, "matrix": matrix}
