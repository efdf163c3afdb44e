"""The few rows of an audit's tables that its page shows, and the neighbours of a few images.

Tables have up to as many rows as there are images: of each only its beginning is looked at, or the
columns of numbers that say which rows are wanted.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.core.exact import Int64Array
from pipeline.core.schema import SAMPLE
from pipeline.report.shown_samples import Key, NearImage
from pipeline.storage import audit_files, run_files, tables
from pipeline.storage.tables import TableRows

MOST_LEAKS, MOST_COPIES, MOST_LABELS, MOST_OUTLIERS = 24, 12, 24, 24
BELOW = 6  # of what does not reach a threshold, that are shown beside what does
GROUPS, MEMBERS = 8, 12  # groups of each kind; pictures of a group
NEAREST = 3  # images that vote against a label
_NAMED = 6  # labels of a group that are named

Rows = list[dict[str, Any]]


def read_pairs(path: Path, *, leaks: bool) -> tuple[Rows, Rows]:
    """Read the surest pairs between two splits, or within one; and the best below the threshold."""

    def among(rows: TableRows) -> npt.NDArray[np.bool_]:
        mine = rows.texts("split").astype(str), rows.texts("other_split").astype(str)
        return np.asarray((mine[0] != mine[1]) == leaks)

    return _read_both(path, audit_files.PAIRS, MOST_LEAKS if leaks else MOST_COPIES, among)


def read_labels(path: Path) -> tuple[Rows, Rows]:
    """Read the labels that fit least; and the next below the threshold."""
    return _read_both(
        path, audit_files.LABELS, MOST_LABELS, lambda rows: rows.integers("suggested") >= 0
    )


def read_outliers(path: Path) -> tuple[Rows, Rows]:
    """Read the images that are furthest from all others; and the next below the threshold."""
    return _read_both(
        path, audit_files.OUTLIERS, MOST_OUTLIERS, lambda rows: rows.floats("score") > 0
    )


def _read_both(path: Path, name: str, most: int, among: Any) -> tuple[Rows, Rows]:
    file = path / audit_files.table_file(name)

    def found(rows: TableRows) -> npt.NDArray[np.bool_]:
        return np.asarray(among(rows) & (rows.integers("finding") > 0))

    def others(rows: TableRows) -> npt.NDArray[np.bool_]:
        below = (rows.integers("finding") == 0) & (rows.floats("score") > 0)
        return np.asarray(among(rows) & below)

    return tables.first_rows(file, most, found), tables.first_rows(file, BELOW, others)


def read_groups(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Read the largest groups whose images have several labels, and the largest of the others.

    Returns
    -------
    `conflict` and `largest`; each group with its `rows`, the image that represents it first, then
    of each label some; its `size`; `labels`, how many images have which; and the distances.
    """
    file = path / audit_files.table_file(audit_files.GROUPS)
    names = ["group", "size", "label_conflict", "representative", "label"]
    columns = tables.read_part(file, names)
    _, starts = np.unique(columns["group"], return_index=True)
    size, conflict = (columns[name][starts] for name in ("size", "label_conflict"))
    order = np.lexsort((starts, -size))
    chosen = {
        kind: order[conflict[order] == (kind == "conflict")][:GROUPS].tolist()
        for kind in ("conflict", "largest")
    }
    every = {at: _members(columns, starts[at]) for kind in chosen.values() for at in kind}
    wanted = [row for members, _ in every.values() for row in members.tolist()]
    rows = dict(zip(wanted, tables.read_rows(file, wanted), strict=True))
    named = _names_of_labels(columns["label"], every.values(), file)
    return {
        kind: [_group([rows[at] for at in every[g][0].tolist()], every[g][1], named) for g in ats]
        for kind, ats in chosen.items()
    }


def _members(
    columns: Mapping[str, npt.NDArray[Any]], start: int
) -> tuple[Int64Array, Counter[int]]:
    """Return which rows of a group are shown, and how many of its images have which label."""
    members = np.flatnonzero(columns["group"] == columns["group"][start])
    labels = columns["label"][members]
    values, code = np.unique(labels, return_inverse=True)
    order = np.argsort(code, kind="stable")
    counts = np.bincount(code)
    turn = np.empty(len(members), np.int64)  # how many of its label come before each
    turn[order] = np.arange(len(members)) - np.repeat(np.cumsum(counts) - counts, counts)
    ranked = np.lexsort((members, turn, ~columns["representative"][members]))
    return members[ranked][:MEMBERS], Counter(
        dict(zip(values.tolist(), counts.tolist(), strict=True))
    )


def _names_of_labels(
    labels: npt.NDArray[Any], groups: Iterable[tuple[Int64Array, Counter[int]]], file: Path
) -> dict[int, str]:
    """Return the names of the labels that groups are said to have."""
    codes = sorted({code for _, counts in groups for code, _ in counts.most_common(_NAMED)})
    first = [int(np.argmax(labels == code)) for code in codes]
    rows = tables.read_rows(file, first)
    return {code: row["label_name"] for code, row in zip(codes, rows, strict=True)}


def _group(rows: Rows, labels: Counter[int], names: Mapping[int, str]) -> dict[str, Any]:
    common = labels.most_common(_NAMED)
    first = rows[0]
    return {
        "rows": rows, "size": first["size"], "more": first["size"] - len(rows),
        "splits": first["splits"], "smallest": first["smallest_distance"],
        "largest": first["diameter"],
        "labels": [(names[code], count) for code, count in common],
        "other_labels": len(labels) - len(common),
    }  # fmt: skip


def unreadable_by_split(path: Path) -> dict[str, int]:
    """Count the samples of each split that could not be read."""
    bad: Counter[str] = Counter()
    file = path / audit_files.table_file(audit_files.KEEP)
    for rows in tables.read_groups(file, ["split", SAMPLE]):
        bad.update(map(str, rows.where(rows.integers(SAMPLE) < 0).texts("split")))
    return dict(bad)


def read_votes(
    path: Path, content: Mapping[str, Any], splits: Mapping[str, int], metric: str, wanted: Rows
) -> dict[Key, list[NearImage]]:
    """Read which images with the suggested label are nearest to those whose label is suspect.

    Parameters
    ----------
    path, content
        The audit, and its manifest.
    splits
        How many images each split has, in the order of the lists of neighbours.
    metric
        Of the audit; only neighbours by it of the images as they are, in any split, are looked at.
    wanted
        Rows of the table of labels.

    Returns
    -------
    The nearest first; nothing of an image that is suspect only as it is near to others.
    """
    firsts = dict(zip(splits, np.cumsum([0, *splits.values()]).tolist(), strict=False))
    by_part = defaultdict[int, Rows](list)
    for row in wanted:
        at = firsts[row["split"]] + row["sample"]
        parts = content[run_files.NEIGHBOURS]["partitions"]
        by_part[next(n for n, p in enumerate(parts) if p["start"] <= at < p["stop"])].append(row)
    plain = [f"{metric} in {split}" for split in splits]
    found: dict[Key, list[NearImage]] = {}
    for number, rows in sorted(by_part.items()):
        part = run_files.part_path(path, number, run_files.NEIGHBOURS)
        found |= _votes_in(part, rows, plain, firsts)
    return found


def _votes_in(
    part: Path, wanted: Rows, measures: list[str], firsts: Mapping[str, int]
) -> dict[Key, list[NearImage]]:
    samples = np.array([row["sample"] for row in wanted], np.int64)
    near = defaultdict[Key, list[NearImage]](list)
    suggested = {(row["split"], row["sample"]): row["suggested"] for row in wanted}
    for group in tables.read_groups(part):
        rows = group.where(
            np.isin(group.integers(SAMPLE), samples) & (group.integers("neighbour") >= 0)
        )
        rows = rows.where(np.isin(rows.texts("metric").astype(str), measures))
        columns = (
            rows.texts("split"), rows.integers(SAMPLE), rows.texts("neighbour_split"),
            rows.integers("neighbour"), rows.integers("neighbour_label"), rows.floats("distance"),
        )  # fmt: skip
        for split, sample, other, neighbour, label, distance in zip(
            *(column.tolist() for column in columns), strict=True
        ):
            if suggested.get((split, sample)) == label:
                near[split, sample].append(NearImage((other, neighbour), label, distance))
    return {
        key: sorted(each, key=lambda n: (n.distance, firsts[n.key[0]] + n.key[1]))[:NEAREST]
        for key, each in near.items()
    }
