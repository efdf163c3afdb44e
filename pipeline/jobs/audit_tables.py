"""The tables of an audit, as they are written: rows for people, digests of what decides them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.core.blocks import OK, STATUSES
from pipeline.core.exact import Float64Array, Int64Array
from pipeline.execution.executor import Executor
from pipeline.jobs.audit_findings import (
    REASONS,
    UNREADABLE,
    FoundGroups,
    FoundPairs,
    Images,
    Plain,
    Suspects,
    WrongLabels,
    count_reasons,
    counts_of,
    find_groups,
    find_outliers,
    find_pairs,
    find_wrong_labels,
    read_lists,
    reasons_of,
)
from pipeline.jobs.audit_lists import ListTables
from pipeline.jobs.audit_plan import AuditPlan
from pipeline.jobs.audit_ranks import prototype_ranks
from pipeline.storage import tables
from pipeline.storage.atomic import write_json, write_text
from pipeline.storage.audit_files import (
    AUDIT_FILE,
    DROP_FILE,
    GROUPS,
    KEEP,
    LABELS,
    OUTLIERS,
    PAIRS,
    TAGS_FILE,
    write_table,
)
from pipeline.storage.sample_tables import SAMPLES, sources_of

_BINS = 60
KINDS = ("exact", "near")


class Rows:
    """Columns that say which image a row is about, by the numbers of images."""

    def __init__(self, plan: AuditPlan, images: Images, wanted: Int64Array) -> None:
        self._images, self._splits = images, list(plan.splits)
        self._classes = list(plan.content["class_names"])
        keys = zip(*self._keys(wanted), strict=True)
        self._sources = sources_of(plan.images, set(keys))

    def _keys(self, numbers: Int64Array) -> tuple[list[str], list[int]]:
        split = self._images.split_of(numbers)
        return [self._splits[at] for at in split], self._images.sample_of(numbers).tolist()

    def about(self, numbers: Int64Array, prefix: str = "") -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what decides, and what is written, of the columns about images."""
        split, sample = self._images.split_of(numbers), self._images.sample_of(numbers)
        label = self._images.labels[numbers]
        keys = zip(*self._keys(numbers), strict=True)
        decides = {"split": split, "sample": sample, "label": label}
        written = {
            "split": tables.dictionary(split, self._splits),
            "sample": sample,
            "source": [self._sources.get(key) for key in keys],
            "label": tables.nullable(label, label < 0),
            "label_name": tables.dictionary(label, self._classes),
        }
        return (
            {f"{prefix}{name}": column for name, column in decides.items()},
            {f"{prefix}{name}": column for name, column in written.items()},
        )


def write_findings(
    plan: AuditPlan, lists: ListTables, copies: Int64Array, executor: Executor
) -> dict[str, str]:
    """Put all tables together and write them; return the digest of each.

    `copies` are the pairs of an image and a copy of it, [pair, 2], by their numbers.
    """
    images = Images(plan)
    finders, plain = read_lists(plan, lists)
    pairs = find_pairs(plan, images, finders, copies)
    groups = find_groups(plan, images, pairs)
    reasons = reasons_of(plan, images, groups)
    wrong, outliers = find_wrong_labels(plan, images, plain), find_outliers(plan, plain)
    numbers = (
        pairs.pairs.first, pairs.pairs.second, groups.groups.members, wrong.suspects.numbers,
        outliers.numbers,
    )  # fmt: skip
    rows = Rows(plan, images, np.unique(np.concatenate(numbers)))
    ranks = prototype_ranks(plan, images.read, images.labels, wrong.suspects.numbers, executor)
    digests = {
        PAIRS: _write_pairs(plan, rows, pairs),
        GROUPS: _write_groups(plan, images, rows, groups),
        LABELS: _write_labels(plan, rows, wrong, ranks),
        OUTLIERS: _write_outliers(plan, rows, outliers, plain),
        KEEP: _write_keep(plan, reasons),
    }
    summary = _summary(plan, images, pairs, groups, reasons)
    summary["labels"] = _suspects_summary(wrong.suspects)
    summary["outliers"] = _suspects_summary(outliers)
    write_json(plan.output / AUDIT_FILE, summary, indent=2)
    return digests


def _write_pairs(plan: AuditPlan, rows: Rows, found: FoundPairs) -> str:
    decides, written = rows.about(found.pairs.first)
    others, other_texts = rows.about(found.pairs.second, "other_")
    kind = np.where(found.exact, 0, 1).astype(np.int32)
    decides |= others | {
        "distance": found.distance,
        "score": found.pairs.score,
        "kind": kind,
        "mirrored": found.pairs.mirrored,
        "finding": found.near,
    }
    written |= other_texts | {
        name: decides[name] for name in ("distance", "score", "kind", "mirrored", "finding")
    }
    written["kind"] = tables.dictionary(kind, KINDS)
    return write_table(plan.output, PAIRS, decides, written)


def _write_groups(plan: AuditPlan, images: Images, rows: Rows, found: FoundGroups) -> str:
    groups, names = found.groups, list(plan.splits)
    decides, written = rows.about(groups.members)
    split = images.split_of(groups.members)
    within = [
        ", ".join(names[at] for at in sorted(set(part.tolist())))
        for part in np.split(split, groups.starts[1:-1])
    ]
    facts = {
        "group": groups.group,
        "size": groups.each(groups.sizes()),
        "smallest_distance": groups.each(found.smallest),
        "diameter": groups.each(found.largest),
        "label_conflict": groups.each(found.conflict),
        "representative": groups.members == groups.each(found.kept),
    }
    written |= facts
    if len(groups.members):
        written["splits"] = np.repeat(np.array(within, object), groups.sizes())
    else:
        written["splits"] = np.array([], object)
    return write_table(plan.output, GROUPS, decides | facts, written)


def _write_labels(plan: AuditPlan, rows: Rows, found: WrongLabels, ranks: Int64Array) -> str:
    decides, written = rows.about(found.suspects.numbers)
    facts = {
        "suggested": found.other,
        "score": found.suspects.score,
        "votes": found.votes[:, 0],
        "suggested_votes": found.votes[:, 1],
        "distance": found.nearest[:, 0],
        "suggested_distance": found.nearest[:, 1],
        "prototype_rank": ranks,
        "finding": found.suspects.score >= found.suspects.cut,
    }
    written |= facts | {
        "suggested": tables.nullable(found.other, found.other < 0),
        "suggested_name": tables.dictionary(found.other, list(plan.content["class_names"])),
        "prototype_rank": tables.nullable(ranks, ranks < 0),
    }
    return write_table(plan.output, LABELS, decides | facts, written)


def _write_outliers(plan: AuditPlan, rows: Rows, found: Suspects, plain: Plain) -> str:
    decides, written = rows.about(found.numbers)
    nearest = plain.distance[:, 0]
    known = np.sort(nearest[np.isfinite(nearest)])
    facts = {
        "score": found.score,
        "distance": nearest[found.numbers],
        "quantile": np.searchsorted(known, nearest[found.numbers]) / max(len(known), 1),
        "finding": found.score >= found.cut,
    }
    return write_table(plan.output, OUTLIERS, decides | facts, written | facts)


def _write_keep(plan: AuditPlan, reasons: npt.NDArray[np.int32]) -> str:
    """Write a row for every image, and for every sample that could not be read."""
    names, firsts = list(plan.splits), dict(zip(plan.splits, plan.firsts, strict=True))
    parts: list[dict[str, Any]] = []
    drop, tags = [], {}
    for rows in tables.read_groups(plan.images / SAMPLES, ["split", "sample", "source", "status"]):
        split, sample, source = rows.texts("split"), rows.integers("sample"), rows.texts("source")
        first = np.array([firsts.get(str(name), 0) for name in split], np.int64)
        good = rows.texts("status") == STATUSES[OK]
        reason = np.full(len(split), UNREADABLE, np.int32)
        reason[good] = reasons[first[good] + sample[good]]
        parts.append({"split": split, "sample": sample, "source": source, "reason": reason})
        for at in np.flatnonzero(reason):
            drop.append(str(source[at]))
            tags[str(source[at])] = [REASONS[reason[at]].replace(" ", "_")]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    every = list(dict.fromkeys([*names, *map(str, columns["split"])]))
    code = np.array([every.index(str(name)) for name in columns["split"]], np.int32)
    keep = columns["reason"] == 0
    write_text(plan.output / DROP_FILE, "".join(f"{source}\n" for source in drop))
    write_json(plan.output / TAGS_FILE, tags, indent=None)
    return write_table(
        plan.output, KEEP,
        {"split": code, "sample": columns["sample"], "keep": keep, "reason": columns["reason"]},
        {
            "split": tables.dictionary(code, every),
            "sample": tables.nullable(columns["sample"], columns["sample"] < 0),
            "source": columns["source"],
            "keep": keep,
            "reason": tables.dictionary(columns["reason"], REASONS),
        },
    )  # fmt: skip


def _summary(
    plan: AuditPlan,
    images: Images,
    pairs: FoundPairs,
    groups: FoundGroups,
    reasons: npt.NDArray[np.int32],
) -> dict[str, Any]:
    """Return what `audit.json` says of copies."""
    names = list(plan.splits)
    split = images.split_of(np.arange(len(reasons)))
    between = {}
    for sides, cut in pairs.cuts.items():
        first, second = pairs.pairs.first, pairs.pairs.second
        mine = (images.split_of(first) == sides[0]) & (images.split_of(second) == sides[1])
        between[f"{names[sides[0]]} in {names[sides[1]]}"] = {
            "threshold": cut,
            "threshold_is_given": plan.settings.near is not None,
            "quantile": float(np.mean(pairs.best[sides] < cut)),
            "pairs": int(np.count_nonzero(pairs.near & mine)),
            "images": len(np.unique(first[pairs.near & mine])),
            "scores": _histogram(pairs.best[sides], 1.0),
            "distances": _histogram(pairs.nearest[sides], _largest(pairs.nearest)),
        }
    return {
        "name": plan.settings.name,
        "checks": plan.settings.checks | {"keep": list(plan.keep)},
        "splits": plan.splits,
        "left_out": dict(plan.content["samples"].get("left_out", {})),
        "copies": counts_of(groups, pairs),
        "between": between,
        "keep": {name: count_reasons(reasons[split == at]) for at, name in enumerate(names)},
    }


def _suspects_summary(found: Suspects) -> dict[str, Any]:
    return {"threshold": found.cut, "images": int(np.count_nonzero(found.score >= found.cut))}


def _largest(nearest: Mapping[Any, Float64Array]) -> float:
    known = [float(np.nanmax(values)) for values in nearest.values() if np.isfinite(values).any()]
    return max(known, default=1.0) or 1.0


def _histogram(values: Float64Array, largest: float) -> dict[str, Any]:
    """Count values between 0 and the largest in equal bins."""
    counts, edges = np.histogram(values[np.isfinite(values)], _BINS, (0, largest))
    return {"from": 0.0, "to": float(edges[-1]), "counts": counts.tolist()}
