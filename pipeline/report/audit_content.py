"""What the page of an audit says, in plain values: sentences, counts and rows of its summary."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.core.paths import shown
from pipeline.report.look import one_line
from pipeline.report.page_content import MEANING, number, percent, quoted

REASONS = ("leak", "copy", "label conflict", "unreadable")
_SAME = "the same, or nearly the same,"


@dataclass(frozen=True)
class Between:
    """What an audit says of the images of one split beside those of another, or the same one.

    Attributes
    ----------
    first, second
        The splits: that whose images are looked at, and that in which they are looked for.
    count
        The images of the first.
    known
        What `audit.json` has of the two.
    """

    first: str
    second: str
    count: int
    known: Mapping[str, Any]

    @property
    def leak(self) -> bool:
        """Whether they are two splits, so that what is found is in both of them."""
        return self.first != self.second

    @property
    def share(self) -> float:
        """The share of the images of the first that are found in the second."""
        return int(self.known["images"]) / max(self.count, 1)


def kept_first(summary: Mapping[str, Any]) -> list[str]:
    """Return the splits that hold images, that which keeps its images first before the others."""
    return [name for name in summary["checks"]["keep"] if name in summary["splits"]]


def sides_of(summary: Mapping[str, Any]) -> list[Between]:
    """Return what is known of each two splits, those that are two first."""
    splits, order = summary["splits"], kept_first(summary)
    every = [
        Between(first, second, splits[first], summary["between"][f"{first} in {second}"])
        for at, first in enumerate(order)
        for second in order[at:]
    ]
    return sorted(every, key=lambda sides: not sides.leak)


def heading(sides: Between) -> str:
    """Return which images are looked at, and where they are looked for."""
    if not sides.leak:
        return f"Images of {quoted([sides.first])} among the others of it"
    return f"Images of {quoted([sides.first])} among those of {quoted([sides.second])}"


def answer(summary: Mapping[str, Any]) -> str:
    """Return the worst that was found, in one sentence.

    A leak is worse than a copy within a split, a copy than a label, a label than an outlier.
    """
    total = sum(summary["splits"].values())
    leaks = [sides for sides in sides_of(summary) if sides.leak and sides.known["images"]]
    copies, labels, outliers = (summary[k]["images"] for k in ("copies", "labels", "outliers"))
    if leaks:
        worst = max(leaks, key=lambda sides: sides.share)
        first, second = quoted([worst.first]), quoted([worst.second])
        found = int(worst.known["images"])
        return f"{_part(found, worst.count, first)} {_are(found)} {_SAME} as images of {second}."
    if copies:
        return f"{_part(copies, total)} {_are(copies)} {_SAME} as another one of the same split."
    if labels:
        return (
            f"{_part(labels, total)} {'has' if labels == 1 else 'have'} a label that does not fit."
        )
    if outliers:
        return f"{_part(outliers, total)} {_are(outliers)} like no other image."
    if bad := unreadable(summary):
        return f"{number(bad, 'image')} could not be read; nothing else was found."
    return f"Nothing was found: no copy among {number(total, 'image')}, no wrong label, no outlier."


def _part(found: int, total: int, split: str = "") -> str:
    of = f" of {split}" if split else ""
    return f"{found:,} of {number(total, 'image')}{of} ({percent(found / max(total, 1))})"


def _are(found: int) -> str:
    return "is" if found == 1 else "are"


def unreadable(summary: Mapping[str, Any]) -> int:
    """Return how many samples could not be read."""
    return sum(summary["left_out"].values())


def facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the counts, each with what it counts."""
    copies = summary["copies"]
    return [
        (label, f"{count:,}")
        for label, count in (
            ("images that have a copy or near copy", copies["images"]),
            ("pairs of such images", copies["pairs"]),
            ("copies to remove, until one of each group is left", copies["copies_to_remove"]),
            ("labels that do not fit", summary["labels"]["images"]),
            ("outliers", summary["outliers"]["images"]),
            ("unreadable samples", unreadable(summary)),
        )
    ]


def counted(summary: Mapping[str, Any]) -> str:
    """Return how the counts of copies are connected."""
    copies = summary["copies"]
    if not copies["pairs"]:
        return ""
    return (
        f"The same copies are counted in three ways: {number(copies['images'], 'image')} "
        f"{_are(copies['images'])} in {number(copies['pairs'], 'pair')} "
        f"({copies['exact_pairs']:,} of them the same pixel by pixel), which join into "
        f"{number(copies['groups'], 'group')}; with one image of each group left, "
        f"{number(copies['copies_to_remove'], 'copy', 'copies')} would go."
    )


def meanings(summary: Mapping[str, Any]) -> str:
    """Return what a distance is, and what a score."""
    checks = summary["checks"]
    meaning = MEANING.get(checks["metric"], "")
    return (
        f"The distance of two images is {checks['metric']}: {meaning}, 0 for equal ones, 1 for "
        "black against white. The score of a pair says how much nearer the two are than other "
        "images are: 1 for a copy, 0 for no nearer than usual. It is taken from the images as they "
        "are, and from images made alike in brightness and contrast."
    )


def compared(sides: Iterable[Between]) -> list[dict[str, Any]]:
    """Return a row for each two splits: how many images and pairs, and the threshold."""
    return [
        {
            "first": each.first, "second": each.second, "count": each.count,
            "images": each.known["images"], "share": each.share, "pairs": each.known["pairs"],
            "threshold": each.known["threshold"],
        }
        for each in sides
    ]  # fmt: skip


def kept(summary: Mapping[str, Any], bad: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return what would be left of each split; `bad` are its samples that could not be read."""
    rows = []
    for name in dict.fromkeys([*summary["splits"], *bad]):
        known = summary["keep"].get(name, {})
        count = summary["splits"].get(name, 0)
        rows.append({
            "name": name, "count": count + bad.get(name, 0), "kept": known.get("kept", 0),
            "share": known.get("kept", 0) / max(count + bad.get(name, 0), 1),
            "reasons": [known.get(reason, 0) for reason in REASONS[:-1]] + [bad.get(name, 0)],
        })  # fmt: skip
    return rows


def command(path: Any) -> str:
    """Return what measures without the images that are not kept."""
    return f"pixsim run JOB.yml --without {shlex.quote(shown(path))}"


def provenance(content: Mapping[str, Any], summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return how an audit was made: names and values."""
    given = {key: value for key, value in summary["checks"].items() if value not in (None, [])}
    return [
        ("audit", content["name"]),
        *((f"setting: {key}", ", ".join(map(one_line, value)) if isinstance(value, list)
           else str(value)) for key, value in given.items()),
        ("image set", content["images"]["path"]),
        ("digest of the image set", f"sha256:{content['images']['digest']}"),
        *((f"digest: {name}", f"sha256:{value}")
          for name, value in content["digests"].items()),
        ("ran on", content["executor"]),
        ("finished", content["finished"]),
        ("time", f"{content['seconds']:,.1f} s, before this page"),
        ("versions", ", ".join(f"{name} {value}" for name, value in content["versions"].items())),
    ]  # fmt: skip
