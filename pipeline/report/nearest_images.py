"""What a report says of the nearest images: how much more often they are right than prototypes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.report.page_content import Findings, percent, quoted

SHOWN = 3  # nearest images of a sample
_MEANS = (
    "By the votes of the k nearest means that an image is given the class that most of its k "
    "nearest images have, and where several classes have equally many, that of the nearest image "
    "among these."
)


def search_of(findings: Findings) -> dict[str, Any] | None:
    """Return which neighbours a run has: `k`, `among` and `metrics`; None where it has none."""
    search: dict[str, Any] | None = findings.content["plan"].get("neighbours")
    return search


def metric_of(findings: Findings, search: Mapping[str, Any]) -> str:
    """Return the metric whose neighbours are shown: the main one, else the first they have."""
    return findings.main if findings.main in search["metrics"] else str(search["metrics"][0])


def comparison(findings: Findings) -> dict[str, Any] | None:
    """Compare the nearest images with the prototypes, in all and class by class.

    Returns
    -------
    None where the run has no neighbours. `asked`, `means`, `answer` and `shown`, the last on the
    nearest images of single samples, are sentences. `rows` have a name, and a share for each of
    `measures`. `classes` have a name, a count, a share for each of `columns` (by the prototypes,
    and by the votes of as many of the nearest as are best in all) and the gain.
    """
    search = search_of(findings)
    if search is None:
        return None
    metric = metric_of(findings, search)
    against = metric if metric in findings.measures else findings.main
    known = findings.metrics["neighbours"]
    best = max(known[metric], key=lambda votes: known[metric][votes]["accuracy"] or 0.0)
    prototypes, votes = findings.metrics[against], known[metric][best]
    columns = [f"nearest prototype ({against})", f"{_voters(best)} ({metric})"]
    measures = list(dict.fromkeys([*findings.measures, *search["metrics"]]))
    rows = [("nearest prototype", {m: findings.metrics[m] for m in findings.measures})]
    rows += [(_voters(k), {m: known[m][k] for m in search["metrics"]}) for k in known[metric]]
    return {
        "asked": _asked(search), "shown": _shown(search, metric),
        "means": _MEANS if len(known[metric]) > 1 else "",
        "answer": _answer(columns, prototypes["accuracy"], votes["accuracy"]),
        "measures": measures, "columns": columns,
        "rows": [
            (name, [figures[m]["accuracy"] if m in figures else None for m in measures])
            for name, figures in rows
        ],
        "classes": [
            _class_row(name, prototypes["per_class"][name], votes["per_class"][name])
            for name in (findings.names[at] for at in findings.shown)
        ],
    }  # fmt: skip


def _class_row(name: str, prototype: Mapping[str, Any], votes: Mapping[str, Any]) -> dict[str, Any]:
    shares = prototype["accuracy"], votes["accuracy"]
    gain = None if None in shares else 100 * (shares[1] - shares[0])
    return {"name": name, "count": prototype["count"], "shares": shares, "gain": gain}


def points(gain: float | None) -> str:
    """Return a gain in percentage points as text, with its sign."""
    text = "–" if gain is None else f"{gain:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def _voters(votes: str) -> str:
    return "nearest image" if votes == "1" else f"votes of the {votes} nearest"


def _asked(search: Mapping[str, Any]) -> str:
    return (
        "Here an image is given the class of the images that are nearest to it in "
        f"{quoted(search['among'])}, instead of that of the nearest prototype. No image is its own "
        "neighbour."
    )


def _answer(columns: list[str], prototype: float | None, votes: float | None) -> str:
    """Return how much better the votes are in one sentence, nothing where no image has a label."""
    if prototype is None or votes is None:
        return ""
    gain = 100 * (votes - prototype)
    what = f"a {'loss' if gain < 0 else 'gain'} of {abs(gain):.1f} percentage points"
    return (
        f"By the {columns[1]} {percent(votes)} are right, by the {columns[0]} "
        f"{percent(prototype)}: {what}."
    )


def _shown(search: Mapping[str, Any], metric: str) -> str:
    most = min(SHOWN, search["k"])
    near = "is its nearest image" if most == 1 else f"are its {most} nearest images"
    return (
        f"Below each {near} in {quoted(search['among'])} by {metric}, with class, distance, "
        "split and index: the name of its own class in blue, another in orange."
    )
