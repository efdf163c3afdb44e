"""A row of the table: ours, a peer, their ratio, and what was wanted of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.measure import Readings

Bound = Literal["at least", "at most"]
Kind = Literal["seconds", "bytes", "share"]
Unit = Literal["x", "s", "%"]


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes
    ----------
    what, against
        What is measured of ours, and what it is held against.
    ours, peer
        The readings of both; None where the row was skipped.
    value
        What is wanted of them: a ratio, the seconds between them, or ours as a percentage.
    unit
        `x` for a ratio, `s` for seconds, `%` for a share.
    kind
        What the readings are: `seconds`, `bytes`, or `share`, from 0 to 1.
    wanted, bound
        The target and whether it is a least or a most; no target where None.
    note
        Why it was skipped, or what else is to be known.
    limit
        The seconds that ours would take at the limit of the processor, or of reading, where that
        is known.
    """

    what: str
    against: str
    ours: Readings | None = None
    peer: Readings | None = None
    value: float | None = None
    unit: Unit = "x"
    kind: Kind = "seconds"
    wanted: float | None = None
    bound: Bound = "at least"
    note: str = ""
    limit: float | None = None

    @property
    def share(self) -> float | None:
        """The share of the limit that ours reaches, 0 to 1."""
        if self.limit is None or self.ours is None:
            return None
        return self.limit / self.ours.median

    @property
    def holds(self) -> bool | None:
        """Whether the target is met; None where there is none, or nothing was measured."""
        if self.value is None or self.wanted is None:
            return None
        return self.value >= self.wanted if self.bound == "at least" else self.value <= self.wanted

    def as_dict(self) -> dict[str, Any]:
        return {
            "what": self.what,
            "against": self.against,
            "ours": _readings_dict(self.ours),
            "peer": _readings_dict(self.peer),
            "kind": self.kind,
            "value": self.value,
            "unit": self.unit,
            "wanted": self.wanted,
            "bound": self.bound if self.wanted is not None else None,
            "holds": self.holds,
            "note": self.note,
            "share_of_limit": self.share,
        }


def _readings_dict(readings: Readings | None) -> dict[str, Any] | None:
    if readings is None:
        return None
    return {"median": readings.median, "spread": readings.spread, "values": list(readings.values)}


def speed_row(
    what: str,
    against: str,
    ours: Readings,
    peer: Readings,
    wanted: float | None = None,
    note: str = "",
    limit: float | None = None,
) -> Row:
    """Return a row of how many times as fast as a peer ours is."""
    value = peer.median / ours.median
    return Row(what, against, ours, peer, value, wanted=wanted, note=note, limit=limit)


def share_row(
    what: str,
    against: str,
    ours: Sequence[float],
    peer: Sequence[float] = (),
    wanted: float | None = None,
    note: str = "",
) -> Row:
    """Return a row of a share of what there is to find, of each trial, 0 to 1; as a percentage."""
    mine = Readings(tuple(map(float, ours)))
    theirs = Readings(tuple(map(float, peer))) if peer else None
    return Row(what, against, mine, theirs, 100 * mine.median, "%", "share", wanted, note=note)


def note_row(what: str, note: str) -> Row:
    """Return a row that only says something: why nothing was measured, where a picture is."""
    return Row(what, "", note=note)


def growth_row(
    what: str,
    against: str,
    large: Readings,
    small: Readings,
    most: float,
    kind: Kind = "seconds",
    note: str = "",
) -> Row:
    """Return a row of how many times as much as a small task a large one takes."""
    value = large.median / small.median
    return Row(what, against, large, small, value, "x", kind, most, "at most", note)
