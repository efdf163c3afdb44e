"""The benchmarks' own parts: what they measure is the same for all, and compared first."""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks import rows_audit
from benchmarks.changed_images import CHANGES
from benchmarks.images import FURTHEST, SIDE, Originals, ShiftedImages
from benchmarks.measure import Contestant, MismatchError, Readings, race
from benchmarks.results import share_row, speed_row
from benchmarks.workbench import Workbench


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


def test_a_row_of_a_share_is_a_percentage():
    row = share_row("what", "peer", (0.5, 0.7, 0.6), (0.0, 0.0), wanted=60)
    assert row.value == 60
    assert row.holds
    assert row.as_dict()["peer"]["spread"] == 0


@pytest.mark.parametrize("shape", [(24, 20), (24, 20, 3)])
@pytest.mark.parametrize("kind", CHANGES)
def test_a_changed_copy_is_an_image_of_the_same_form_and_not_the_same(kind, shape):
    ramp = np.linspace(40, 200, np.prod(shape)).reshape(1, *shape)
    images = np.concatenate([ramp, ramp[:, ::-1]]).astype(np.uint8).repeat(20, 0)
    changed = CHANGES[kind](images, np.random.default_rng(0))
    assert changed.shape == images.shape
    assert changed.dtype == np.uint8
    differ = (changed != images).reshape(40, -1).any(1)
    assert not differ.any() if kind == "exact" else differ.mean() > 0.9


def test_recall_counts_up_to_the_last_false_alarm():
    kinds = np.array([0, 0, -1, 1, 2, -1, 2, -1, 2])
    assert rows_audit.recall(kinds, 2, 2)[:4].tolist() == [1, 0.5, 1, 0]
    assert rows_audit.recall(kinds, 2, 0)[:4].tolist() == [1, 0, 0, 0]


def test_precision_of_equal_scores_is_what_is_expected_of_those_drawn():
    score, wrong = np.array([3, 2, 2, 2, 1.0]), np.array([1, 1, 0, 0, 0], bool)
    assert rows_audit.precision(score, wrong) == pytest.approx((1 + 1 / 3) / 2)
    assert rows_audit.precision(np.zeros(5), wrong) == pytest.approx(0.4)


@pytest.mark.parametrize("similar", [None, np.array([1, 2, 0])])
def test_changed_labels_are_as_many_as_asked_and_all_wrong(similar):
    labels = np.arange(300, dtype=np.int32) % 3
    noisy, wrong = rows_audit.with_noise(labels, 0.1, similar, 0)
    assert wrong.sum() == 30
    assert np.array_equal(noisy != labels, wrong)
    assert similar is None or np.array_equal(noisy[wrong], similar[labels[wrong]])


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """A short run, of images without any likeness."""
    rng = np.random.default_rng(0)
    side = SIDE + 2 * FURTHEST
    splits = {
        name: (rng.integers(0, 256, (count, side, side), np.uint8), np.arange(count, dtype="i4"))
        for name, count in {"train": 120, "test": 40}.items()
    }
    splits = {name: (images, labels % 4) for name, (images, labels) in splits.items()}
    originals = Originals("noise", splits, tuple("abcd"), {"name": "noise"})
    short = Workbench(count=240, repeats=1, threads=2, folder=tmp_path, pictures=tmp_path)
    monkeypatch.setitem(short.__dict__, "originals", originals)
    monkeypatch.delenv("PIXSIM_DATASETS", raising=False)
    return short


def test_copies_among_images_without_likeness_are_all_found(bench):
    images = rows_audit._fashion(bench)
    injected, sources = rows_audit.with_copies(images, 2)
    assert len(set(sources.tolist())) == len(sources) == 2 * len(CHANGES)
    for name in ("exact", "mirrored"):
        at = 120 + 2 * [*CHANGES].index(name)
        mine, test = injected.splits["train"][0][at], images.splits["test"][0][sources[at - 120]]
        assert np.array_equal(mine, test if name == "exact" else test[:, ::-1])
    found = [row.value for row in rows_audit._copies(bench, images)]
    assert found == [100] * (len(CHANGES) + 1)


def test_the_time_of_an_audit_is_held_against_its_neighbours(bench):
    row = rows_audit._time(bench, rows_audit._fashion(bench))
    assert row.wanted == 4
    assert row.ours.median > 0
    assert row.what == "an audit of 120 + 40 images of noise"


def test_without_data_sets_a_row_says_so(bench):
    assert rows_audit._cifar(bench) is None
    assert len(list(rows_audit._wrong_labels(rows_audit._fashion(bench)))) >= 6
