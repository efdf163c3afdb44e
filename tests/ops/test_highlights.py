"""Highlights: what plain loops over all rows find, however the rows are cut into tables."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from pipeline.core.classes import ClassSelection
from pipeline.ops.highlights import (
    BINS,
    DISAGREEMENTS,
    KEPT,
    Highlights,
    closest_classes,
    prototype_distances,
)

NAMES = ("a", "b", "c", "d")
SPLITS = ("test", "more")
METRICS = ("l1", "l2")


def make_rows(rng, samples, metrics=2, codes=(0, 1, 3), ties=6):
    """Return the columns of a prediction table; few different values, so that many are equal."""
    count = samples * metrics
    label = np.repeat(rng.choice([-1, *codes], samples), metrics).astype(np.int32)
    distance = rng.integers(1, ties, count) / 64
    predicted = np.where(rng.random(count) < 0.6, label, rng.choice(codes, count))
    predicted = np.where(predicted < 0, codes[0], predicted).astype(np.int32)
    margin = rng.integers(0, ties, count) / 128
    margin[rng.random(count) < 0.05] = np.nan
    return {
        "sample": np.repeat(np.arange(samples), metrics),
        "split": np.repeat(np.sort(rng.integers(0, 2, samples)), metrics).astype(np.int32),
        "label": label,
        "metric": np.tile(np.arange(metrics, dtype=np.int32), samples),
        "predicted": predicted,
        "distance": distance,
        "margin": margin,
        "label_distance": np.where(predicted == label, distance, distance + 0.25),
    }


def gather(rows, cuts, metrics=METRICS, codes=(0, 1, 3), order=None):
    found = Highlights(ClassSelection(NAMES, codes), metrics, SPLITS)
    times = len(metrics)
    edges = [0, *sorted(cuts), len(rows["sample"]) // times]
    parts = list(enumerate(itertools.pairwise(edges)))
    # some tables by themselves, others together
    groups = [parts[at : at + 2] for at in range(0, len(parts), 2)]
    if order is not None:
        groups = [[parts[at]] for at in order(len(parts))]
    for group in groups:
        (first, (start, _)), (_, (_, stop)) = group[0], group[-1]
        piece = slice(start * times, stop * times)
        lengths = [(last - begin) * times for _, (begin, last) in group]
        found.add(first, {name: values[piece] for name, values in rows.items()}, lengths)
    return found.result()


def without_places(found):
    """Return highlights less where in the tables the samples are."""
    if isinstance(found, dict):
        return {k: without_places(v) for k, v in found.items() if k not in ("part", "row")}
    return found


def oracle(rows, metric, kind, code):
    """Return [split, sample] of what is kept, by plain loops."""
    ranked = []
    for at in range(len(rows["sample"])):
        if rows["metric"][at] != metric or rows["label"][at] != code:
            continue
        right = rows["predicted"][at] == code
        key = {"typical": rows["label_distance"][at], "hardest": rows["margin"][at],
               "wrong": -rows["margin"][at]}[kind]  # fmt: skip
        if right == (kind != "wrong") and not np.isnan(key):
            ranked.append((key, rows["split"][at], rows["sample"][at]))
    return [(SPLITS[split], int(sample)) for _, split, sample in sorted(ranked)[:KEPT]]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 120), st.lists(st.integers(0, 120), max_size=6))
def test_any_partitions_give_what_plain_loops_find(seed, samples, cuts):
    rng = np.random.default_rng(seed)
    rows = make_rows(rng, samples)
    found = gather(rows, [cut for cut in cuts if cut < samples])
    for metric, name in enumerate(METRICS):
        for kind, columns in found["samples"][name].items():
            mine = zip(columns["label"], columns["split"], columns["sample"], strict=True)
            mine = list(mine)
            for position, code in enumerate((0, 1, 3)):
                kept = [(split, sample) for label, split, sample in mine if label == position]
                assert kept == oracle(rows, metric, kind, code)
    whole = gather(rows, [], order=None)
    assert without_places(found) == without_places(whole)
    backwards = gather(rows, [c for c in cuts if c < samples], order=lambda n: range(n)[::-1])
    assert without_places(backwards) == without_places(whole)


def test_a_sample_is_in_the_row_that_is_named():
    rows = make_rows(np.random.default_rng(1), 90)
    found = gather(rows, [30, 60])
    for metric, name in enumerate(METRICS):
        for columns in found["samples"][name].values():
            for part, row, sample in zip(
                columns["part"], columns["row"], columns["sample"], strict=True
            ):
                at = 60 * part + row
                assert rows["sample"][at] == sample
                assert rows["metric"][at] == metric


def test_margins_and_agreement_are_counted():
    rows = make_rows(np.random.default_rng(2), 400)
    found = gather(rows, [100])
    label, predicted = (rows[name].reshape(-1, 2) for name in ("label", "predicted"))
    right = (label == predicted) & (label >= 0)
    for metric, name in enumerate(METRICS):
        for kind, mine in (("right", right), ("wrong", ~right & (label >= 0))):
            margins = rows["margin"].reshape(-1, 2)[mine[:, metric], metric]
            expected = np.bincount((margins[~np.isnan(margins)] * BINS).astype(int))
            assert found["margins"][name][kind] == expected.tolist()
    counts = found["agreement"]["counts"]
    for position, code in enumerate((0, 1, 3)):
        mine = right[label[:, 0] == code]
        pairs = [tuple(pair) for pair in mine.tolist()]
        assert counts["both"][position] == pairs.count((True, True))
        assert counts["first"][position] == pairs.count((True, False))
        assert counts["second"][position] == pairs.count((False, True))
        assert counts["neither"][position] == pairs.count((False, False))
    samples = found["agreement"]["samples"]
    assert len(samples["sample"]) <= 2 * DISAGREEMENTS
    for sample in samples["sample"]:
        assert right[sample].sum() == 1


def test_a_single_metric_is_compared_with_nothing():
    rows = make_rows(np.random.default_rng(3), 50, metrics=1)
    assert gather(rows, [], ("l2",))["agreement"] is None


def test_rows_in_another_order_are_refused():
    rows = make_rows(np.random.default_rng(4), 6)
    rows["metric"] = rows["metric"][::-1]
    with pytest.raises(ValueError, match="expected sample by sample"):
        gather(rows, [])


@pytest.mark.parametrize(("classes", "pixels"), [(1, 5), (2, 3), (70, 2100)])
@pytest.mark.parametrize("threads", [1, 3])
def test_prototypes_are_as_far_apart_as_scipy_says(classes, pixels, threads):
    images = np.random.default_rng(0).random((classes, pixels))
    found = prototype_distances(images, threads)
    np.testing.assert_allclose(found["l1"], cdist(images, images, "cityblock") / pixels, atol=1e-14)
    np.testing.assert_allclose(found["l2"], cdist(images, images) / pixels**0.5, atol=1e-14)
    for metric in METRICS:
        assert (found[metric] == prototype_distances(images)[metric]).all()


def test_closest_pairs_leave_out_classes_without_a_prototype():
    numerators = np.array([[0, 0], [9, 9], [20, 20], [22, 22]])
    found = closest_classes(numerators, np.array([1, 0, 1, 2]), 100, ["l1"])
    assert found["skipped"] is None
    assert [pair[:2] for pair in found["l1"]["pairs"]] == [[2, 3], [0, 3], [0, 2]]
    assert found["l1"]["nearest"] == [3, None, 3, 2]
    assert found["l1"]["distance"][2] == pytest.approx(0.09)
    assert found["l1"]["matrix"][0][1] is None


def test_too_many_prototypes_are_not_compared_and_that_is_said():
    numerators = np.zeros((4001, 1), np.int64)
    found = closest_classes(numerators, np.ones(4001, np.int64), 255, ["l1", "l2"])
    assert "4,001 prototypes of 1 pixels were not compared" in found["skipped"]
