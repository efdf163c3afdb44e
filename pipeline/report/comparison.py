"""Runs side by side: how often each is right, what differs between them, and what they leave out.

Runs are compared over what they share: splits, metrics and classes, by name. Where one has classes
that another has not, only images of the shared ones count, whatever they were taken for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.arguments import checked
from pipeline.core.errors import InputError, listed
from pipeline.core.paths import shown
from pipeline.report.opened import Run, open_run

ALL, BALANCED = "all", "balanced"
_TEXT = 60  # characters of a setting


@dataclass(frozen=True)
class ComparedRow:
    """One accuracy of every run.

    Attributes
    ----------
    split, metric
        Of what, by what.
    votes
        By how many of the nearest images; 0 for the nearest prototype.
    name
        A class, or `all`, or `balanced`, the mean over classes; `is_class` tells them apart.
    accuracies
        [run]; None where no image counts.
    """

    split: str
    metric: str
    votes: int
    name: str
    is_class: bool
    accuracies: tuple[float | None, ...]

    @property
    def differences(self) -> tuple[float | None, ...]:
        """By how much each run is more accurate than the first, [run]."""
        first = self.accuracies[0]
        return tuple(
            None if value is None or first is None else value - first for value in self.accuracies
        )


@dataclass(frozen=True)
class Comparison:
    """Several runs side by side.

    Attributes
    ----------
    names, paths
        Of the runs.
    rows
        Their accuracies.
    settings
        What decides their results and is not the same: key -> a text for each run.
    excluded
        For each run how many samples were left out of each split, and why.
    remarks
        What they do not share, in sentences.
    """

    names: tuple[str, ...]
    paths: tuple[str, ...]
    rows: tuple[ComparedRow, ...]
    settings: Mapping[str, tuple[str, ...]]
    excluded: tuple[Mapping[str, Any], ...]
    remarks: tuple[str, ...]


@checked
def compare(
    runs: Sequence[Run | Path | str], storage_options: Mapping[str, Any] | None = None
) -> Comparison:
    """Compare finished runs: accuracies, settings that differ, samples that were left out.

    Parameters
    ----------
    runs
        Two or more, or their folders or URLs.
    storage_options
        fsspec's options for URLs; default: credentials from the environment.

    Raises
    ------
    InputError
        Where there are fewer than two, or they share no split, metric or class.
    StoreError
        Where one is no run, or was never finished.
    DamagedError
        Where files of one are missing or were changed.
    """
    if len(runs) < 2:
        given = "no runs" if not runs else "1 run"
        raise InputError(f"{given}, expected two or more to compare; name another")
    opened = [open_run(run.path if isinstance(run, Run) else run, storage_options) for run in runs]
    figures = [_by_split(run) for run in opened]
    splits, first = _shared("split", opened, figures)
    metrics, second = _shared("metric", opened, [run.manifest["settings"]["metrics"]
                                                 for run in opened])  # fmt: skip
    classes, third = _shared("class", opened, [run.manifest["class_names"] for run in opened])
    remarks = [*first, *second, *third]
    if len({run.manifest["images"]["digest"] for run in opened}) > 1:
        remarks.append("the image sets are not the same; splits and classes are those of one name")
    rows = [
        row
        for split in splits
        for row in _rows(split, metrics, classes, [known[split] for known in figures])
    ]
    return Comparison(
        names=tuple(run.manifest["name"] for run in opened),
        paths=tuple(shown(run.path) for run in opened),
        rows=tuple(rows),
        settings=_differing([run.manifest["plan"] for run in opened]),
        excluded=tuple(run.manifest.get("excluded", {}) for run in opened),
        remarks=tuple(remarks),
    )


def _by_split(run: Run) -> dict[str, Mapping[str, Any]]:
    """Return what a run's metrics say of each split."""
    metrics, evaluated = run.metrics, run.manifest["settings"]["evaluate"]
    return dict(metrics["splits"]) if "splits" in metrics else {evaluated[0]: metrics}


def _shared(
    what: str, runs: Sequence[Run], each: Sequence[Iterable[str]]
) -> tuple[list[str], list[str]]:
    """Return the names that all have, in the order of the first, and what to say of the others."""
    sets = [set(names) for names in each]
    common = set.intersection(*sets)
    plural = f"{what}es" if what.endswith("s") else f"{what}s"
    if not common:
        have = "; ".join(
            f"{shown(run.path)} has {listed(names)}" for run, names in zip(runs, each, strict=True)
        )
        raise InputError(f"the runs share no {what} ({have}); name runs that have one in common")
    others = sorted(set.union(*sets) - common)
    remark = f"compared over the {plural} that all have; not all have {listed(others)}"
    return [name for name in each[0] if name in common], [remark] if others else []


def _rows(
    split: str,
    metrics: Sequence[str],
    classes: Sequence[str],
    figures: Sequence[Mapping[str, Any]],
) -> Iterable[ComparedRow]:
    """Yield the rows of a split: by the prototypes, then by as many votes as all runs counted."""
    for metric in metrics:
        yield from _of(split, metric, 0, classes, [known[metric] for known in figures])
    votes = [known.get("neighbours", {}) for known in figures]
    for metric in votes[0]:
        for number in votes[0][metric]:
            counted = [known.get(metric, {}).get(number) for known in votes]
            if all(counted):
                yield from _of(split, metric, int(number), classes, counted)


def _of(
    split: str,
    metric: str,
    votes: int,
    classes: Sequence[str],
    summaries: Sequence[Mapping[str, Any]],
) -> Iterable[ComparedRow]:
    counted = [_counted(summary, classes) for summary in summaries]
    for name, is_class in ((ALL, False), (BALANCED, False), *((name, True) for name in classes)):
        values = tuple(known[name, is_class] for known in counted)
        yield ComparedRow(split, metric, votes, name, is_class, values)


def _counted(
    summary: Mapping[str, Any], classes: Sequence[str]
) -> dict[tuple[str, bool], float | None]:
    """Return the accuracy of each class, of all their images, and the mean over the classes."""
    position = {name: at for at, name in enumerate(summary["confusion"]["class_names"])}
    counts = np.array(summary["confusion"]["counts"], np.int64)
    mine = counts[[position[name] for name in classes]]
    right = sum(int(counts[position[name], position[name]]) for name in classes)
    total = int(mine.sum())
    shares = {name: summary["per_class"][name]["accuracy"] for name in classes}
    known = [share for share in shares.values() if share is not None]
    return {
        (ALL, False): right / total if total else None,
        (BALANCED, False): sum(known) / len(known) if known else None,
    } | {(name, True): share for name, share in shares.items()}


def _differing(plans: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    """Return what decides results and differs between plans, as texts."""
    keys = dict.fromkeys(key for plan in plans for key in plan)
    return {
        key: tuple(_text(plan.get(key)) for plan in plans)
        for key in keys
        if any(plan.get(key) != plans[0].get(key) for plan in plans)
    }


def _text(value: Any) -> str:
    """Return a value of a plan in few words."""
    if value is None:
        return "-"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(inner)}" for key, inner in value.items())
    text = listed(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text if len(text) <= _TEXT else f"{text[: _TEXT // 5]}..."
