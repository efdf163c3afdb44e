"""What a report says, in plain values: sentences, rows and figures from what a run has written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.core.errors import format_bytes
from pipeline.report.look import one_line

EXTREMES = 10  # of many classes the best and the worst that are shown
MANY = 24  # classes from which on only some are shown
PAIRS = 12  # rows of pairs of classes
NEAREST = 3  # bars of a sample
MEANING = {
    "l1": "the mean absolute difference between their pixels",
    "l2": "the root of the mean squared difference between their pixels",
}
KINDS = {
    "typical": ("Most typical", "right, and closest to their own prototype"),
    "hardest": ("Hardest", "right, but another class was nearly as close"),
    "wrong": ("Most confidently wrong", "one wrong class was much closer than all others"),
}


@dataclass(frozen=True)
class Findings:
    """What a run has written, as far as a report needs it.

    Attributes
    ----------
    content, metrics, highlights
        Its manifest, `metrics.json` and `highlights.json`.
    """

    content: Mapping[str, Any]
    metrics: Mapping[str, Any]
    highlights: Mapping[str, Any]

    @property
    def names(self) -> list[str]:
        return list(self.content["class_names"])

    @property
    def measures(self) -> list[str]:
        """The metrics, in the order of the job."""
        return list(self.content["settings"]["metrics"])

    @property
    def main(self) -> str:
        """The metric that is right more often; the first of equals."""
        return max(self.measures, key=lambda name: self.metrics[name]["accuracy"] or 0.0)

    def accuracy(self, name: str, metric: str) -> float | None:
        """The accuracy of a class, None where it has no images."""
        share: float | None = self.metrics[metric]["per_class"][name]["accuracy"]
        return share

    def counts(self, metric: str) -> npt.NDArray[np.int64]:
        """[label, predicted]; the confusion counts of a metric."""
        return np.array(self.metrics[metric]["confusion"]["counts"], np.int64)

    @property
    def ranked(self) -> list[int]:
        """Positions of the classes with images, the most accurate first."""
        shares = [self.accuracy(name, self.main) for name in self.names]
        known = [at for at, share in enumerate(shares) if share is not None]
        return sorted(known, key=lambda at: -(shares[at] or 0.0))

    @property
    def shown(self) -> list[int]:
        """Positions of the classes that are shown one by one, the most accurate first."""
        ranked = self.ranked or list(range(min(len(self.names), MANY)))
        if len(ranked) <= MANY:
            return ranked
        return [*ranked[:EXTREMES], *ranked[-EXTREMES:]]


def percent(share: float | None, digits: int = 1) -> str:
    """Return a share as text."""
    return "–" if share is None else f"{100 * share:.{digits}f} %"


def number(count: int, noun: str, plural: str = "") -> str:
    """Return a count with its noun."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def quoted(names: Sequence[str]) -> str:
    """Return names in quotation marks, each on one line."""
    return " and ".join(f"‘{one_line(name)}’" for name in names)


def asked(findings: Findings) -> str:
    """Return what was asked, in two or three sentences."""
    settings, kind = findings.content["settings"], findings.content["settings"]["prototypes"]
    left_out, held = "", findings.content.get("holdout")
    if "leave_one_out" in findings.metrics:
        fitted = quoted([findings.metrics["leave_one_out"]])
        left_out = f" For an image in {fitted} the {kind} of its own class is that without it."
    images = f"each image in {quoted(settings['evaluate'])}"
    if held:
        images = f"each of the {held['held_out']:,} images that were held out of it"
    return (
        f"How far does the simplest possible model get? Each class is represented by one image, "
        f"the {kind} of its images in {quoted([settings['fit']])}, and {images} is given the class "
        f"whose {kind} is nearest.{left_out}"
    )


def answer(findings: Findings) -> str:
    """Return the answer in one sentence."""
    main = findings.metrics[findings.main]
    if main["accuracy"] is None:
        return "None of the measured images has a label, so there is no accuracy to tell."
    others = [
        f"{percent(findings.metrics[name]['accuracy'])} by {name}"
        for name in findings.measures
        if name != findings.main
    ]
    also = f" ({' and '.join(others)})" if others else ""
    classes = number(len(findings.names), "class", "classes")
    return (
        f"It is right for {percent(main['accuracy'])} of {number(main['count'], 'image')} by "
        f"{findings.main}{also}; guessing among {classes} would "
        f"be right for {percent(1 / len(findings.names), 1 if len(findings.names) < 200 else 2)}."
    )


def explained_metrics(findings: Findings) -> list[tuple[str, str]]:
    """Return the metrics, and what each measures between two images."""
    return [(name, MEANING.get(name, "")) for name in findings.measures]


def accuracies(findings: Findings) -> dict[str, Any]:
    """Return rows of the classes that are shown: name, images, and a share for each metric."""

    def row(at: int) -> dict[str, Any]:
        name = findings.names[at]
        return {
            "name": name,
            "count": findings.metrics[findings.main]["per_class"][name]["count"],
            "shares": [(metric, findings.accuracy(name, metric)) for metric in findings.measures],
        }  # fmt: skip

    metrics, main = findings.metrics, findings.main
    shown = [row(at) for at in findings.shown]
    split = len(findings.ranked) > MANY
    empty = len(findings.names) - len(findings.ranked)
    return {
        "groups": [
            (f"The {EXTREMES} most accurate classes", shown[:EXTREMES]),
            (f"The {EXTREMES} least accurate classes", shown[EXTREMES:]),
        ] if split else [("", shown)],
        "chance": 1 / len(findings.names),
        "empty": empty,
        "balanced": [(name, metrics[name]["balanced_accuracy"]) for name in findings.measures],
        "splits": [
            (split, values[main]["count"], [values[m]["accuracy"] for m in findings.measures])
            for split, values in metrics.get("splits", {}).items()
        ],
    }  # fmt: skip


def mistakes(findings: Findings) -> list[dict[str, Any]]:
    """Return the most frequent mistakes: label, predicted, how often, and the share."""
    counts = findings.counts(findings.main)
    totals = counts.sum(axis=1)
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:PAIRS]
    rows = []
    for at in order.tolist():
        label, predicted = divmod(at, len(counts))
        if wrong[label, predicted]:
            rows.append({
                "label": findings.names[label], "predicted": findings.names[predicted],
                "count": int(wrong[label, predicted]),
                "share": int(wrong[label, predicted]) / int(totals[label]),
            })  # fmt: skip
    return rows


def closest(findings: Findings) -> dict[str, Any]:
    """Return the closest pairs of prototypes, and how many images were mistaken between them."""
    known = findings.highlights["prototypes"]
    if known["skipped"]:
        return {"skipped": known["skipped"], "pairs": []}
    counts = findings.counts(findings.main)
    pairs = known[findings.main]["pairs"][:PAIRS]
    longest = max((distance for *_, distance in pairs), default=1.0) or 1.0
    return {
        "skipped": None,
        "pairs": [
            {
                "names": (findings.names[one], findings.names[other]), "positions": (one, other),
                "distance": distance, "width": distance / longest,
                "mistaken": int(counts[one, other] + counts[other, one]),
            }
            for one, other, distance in pairs
        ],
        "all": len(findings.names) * (len(findings.names) - 1) // 2,
    }  # fmt: skip


def class_table(findings: Findings) -> list[dict[str, Any]]:
    """Return a row for each class, for the searchable table."""
    counts = findings.counts(findings.main)
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    confused = wrong.argmax(axis=1)
    close = findings.highlights["prototypes"].get(findings.main) or {}
    nearest = close.get("nearest") or [None] * len(counts)
    rows = []
    for at, name in enumerate(findings.names):
        most = int(wrong[at, confused[at]])
        rows.append({
            "name": name,
            "count": findings.metrics[findings.main]["per_class"][name]["count"],
            "shares": [findings.accuracy(name, metric) for metric in findings.measures],
            "nearest": "" if nearest[at] is None else findings.names[nearest[at]],
            "distance": None if nearest[at] is None else close["distance"][at],
            "confused": findings.names[confused[at]] if most else "",
            "times": most,
        })  # fmt: skip
    return rows


def margins(findings: Findings, bars: int = 60) -> dict[str, Any] | None:
    """Return the distribution of margins in some bins, and how it parts right from wrong."""
    known = findings.highlights["margins"]
    fine, mine = known["bins"], known[findings.main]
    width = max(len(mine["right"]), len(mine["wrong"]))
    right, wrong = (np.array(mine[k] + [0] * (width - len(mine[k]))) for k in ("right", "wrong"))
    total = int(right.sum() + wrong.sum())
    if not total:
        return None
    both = right + wrong
    # the few largest margins would leave most of the picture empty
    last = int(np.searchsorted(np.cumsum(both), math.ceil(0.998 * total))) + 1
    step = max(1, -(-last // bars))
    edges = np.arange(0, last + step, step)
    middle = int(np.searchsorted(np.cumsum(both), total / 2)) + 1
    above, below = (
        int(right[part].sum()) / max(1, int(both[part].sum()))
        for part in (slice(middle, None), slice(None, middle))
    )
    return {
        "edges": edges / fine,
        "right": np.add.reduceat(right, edges[:-1][edges[:-1] < width]),
        "wrong": np.add.reduceat(wrong, edges[:-1][edges[:-1] < width]),
        "above": above, "below": below, "middle": middle / fine,
        "several": width > 1,
    }  # fmt: skip


def agreement(findings: Findings) -> dict[str, Any] | None:
    """Return how two metrics agree, in all and where they differ most; None of a single one."""
    known = findings.highlights["agreement"]
    if known is None:
        return None
    first, second = findings.measures
    counts = np.array([known["counts"][k] for k in ("both", "first", "second", "neither")])
    total = int(counts.sum())
    totals = counts.sum(axis=1).tolist()
    gain = counts[2] - counts[1]
    order = np.argsort(-np.abs(gain), kind="stable")[:6]
    return {
        "first": first, "second": second, "total": total,
        "cells": [(count, count / max(total, 1)) for count in totals],
        "classes": [
            {
                "name": findings.names[at],
                "first": int(counts[1, at]), "second": int(counts[2, at]),
                "better": second if gain[at] > 0 else first,
            }
            for at in order.tolist() if gain[at]
        ],
    }  # fmt: skip


def columns_to_rows(columns: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Return columns of samples as a dictionary for each."""
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def provenance(findings: Findings) -> list[tuple[str, str]]:
    """Return how a run was computed: names and values."""
    content = findings.content
    settings, effort = content["settings"], content
    given = {
        key: settings[key]
        for key in ("classes", "fit", "evaluate", "prototypes", "metrics", "device", "distances")
        if settings.get(key) is not None
    }
    searched = content["plan"].get("neighbours")
    if content["plan"].get("leave_one_out"):
        given["leave one out"] = [settings["fit"]]
    rows = [
        ("job", content["name"]),
        *((f"job: {key}", value if isinstance(value, str) else ", ".join(map(one_line, value)))
          for key, value in given.items()),
        *([] if searched is None else [("job: neighbours", _searched(searched))]),
        *([("held out", _held_out(held))] if (held := content.get("holdout")) else []),
        *(("left out", _excluded(split, known))
          for split, known in content.get("excluded", {}).items()),
        ("image set", content["images"]["path"]),
        ("digest of the image set", f"sha256:{content['images']['digest']}"),
        *((f"digest of the {name}", "not written" if value is None else f"sha256:{value}")
          for name, value in content["digests"].items()),
        ("arithmetic", content["arithmetic"]),
        ("ran on", content["executor"]),
        ("finished", content["finished"]),
        ("time", f"{effort['seconds']:,.1f} s, before this report"),
    ]  # fmt: skip
    read = effort.get("pixel_bytes")
    if read and effort["seconds"]:
        speed = f"{format_bytes(read / effort['seconds'])} a second over all of it"
        rows.append(("pixels read", f"{format_bytes(read)}, {speed}"))
    if "memory" in effort:
        rows.append(("peak memory of a process", _memory(effort["memory"])))
    rows += [("versions", ", ".join(f"{k} {v}" for k, v in content["versions"].items()))]
    return rows


def _searched(search: Mapping[str, Any]) -> str:
    metrics, among = (", ".join(map(one_line, search[key])) for key in ("metrics", "among"))
    return f"{search['k']:,} by {metrics} among {among}"


def _held_out(held: Mapping[str, Any]) -> str:
    of = held["held_out"] + held["fitted"]
    return f"{held['held_out']:,} of {of:,} images of {quoted([held['split']])}, the others fitted"


def _excluded(split: str, known: Mapping[str, Any]) -> str:
    reasons = ", ".join(f"{count:,} {one_line(why)}" for why, count in known["reasons"].items())
    return f"{number(known['count'], 'image')} of {quoted([split])} ({reasons})"


def _memory(known: Mapping[str, Any]) -> str:
    planned = f"planned {format_bytes(known['planned'])}"
    if known["measured"] is None:
        return f"{planned}, not measured"
    if known["before"] is not None and known["measured"] <= known["before"]:
        before = format_bytes(known["before"])
        return f"{planned}; it held {before} before the run began, and no more since"
    return f"{planned}, measured {format_bytes(known['measured'])}"


def written_in_full(name: str) -> str:
    """Return a name on one line, cut only where it is very long."""
    return one_line(name, 160)
