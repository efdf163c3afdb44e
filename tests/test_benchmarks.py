"""The benchmarks' own parts: what they measure is the same for all, and compared first."""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks.images import FURTHEST, SIDE, Originals, ShiftedImages
from benchmarks.measure import Contestant, MismatchError, Readings, race
from benchmarks.results import speed_row


@pytest.fixture
def made():
    rng = np.random.default_rng(0)
    side = SIDE + 2 * FURTHEST
    splits = {"train": (rng.integers(0, 256, (7, side, side), np.uint8), np.arange(7, dtype="i4"))}
    originals = Originals("seven", splits, tuple("abcdefg"), {"name": "seven"})
    return ShiftedImages(originals, {"train": 40})


def test_made_images_are_the_same_however_they_are_cut(made):
    whole = made.read("train", 0, 40)
    parts = [made.read("train", start, min(start + 9, 40)) for start in range(0, 40, 9)]
    assert np.array_equal(whole.images, np.concatenate([part.images for part in parts]))
    assert whole.labels.tolist() == [number % 7 for number in range(40)]
    assert len({image.tobytes() for image in whole.images}) > 30  # shifted, not repeated


def test_a_mismatch_is_raised_before_anything_is_timed():
    calls = []

    def check(results):
        raise MismatchError(f"{results}")

    contestants = [Contestant(name, lambda name=name: calls.append(name)) for name in "ab"]
    with pytest.raises(MismatchError):
        race(contestants, 5, check)
    assert calls == ["a", "b"]


def test_contestants_take_turns_and_clean_up_after_each_call(monkeypatch):
    monkeypatch.setattr("benchmarks.measure.TURN_SECONDS", 0.0)
    monkeypatch.setattr("benchmarks.measure.REST_SECONDS", 0.0)
    clock = iter(range(10**6))
    monkeypatch.setattr("benchmarks.measure.time.perf_counter", lambda: float(next(clock)))
    monkeypatch.setattr("benchmarks.measure.TURN_SECONDS", 1.0)
    calls = []
    contestants = [
        Contestant(n, lambda n=n: calls.append(n), lambda n=n: calls.append(f"after {n}"))
        for n in "ab"
    ]
    found = race(contestants, 3, lambda results: None)
    assert calls == ["a", "b", "after a", "after b", *["a", "after a", "b", "after b"] * 3]
    assert found["a"].values == (1.0,) * 3


@pytest.mark.parametrize(("ours", "holds"), [(1.0, True), (1.1, False)])
def test_a_row_says_whether_its_target_holds(ours, holds):
    row = speed_row("what", "peer", Readings((ours,) * 5), Readings((8.0,) * 5), 8.0)
    assert row.holds is holds
    assert row.value == 8.0 / ours
