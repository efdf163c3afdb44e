"""Scores of an audit, against loops over images and votes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.ops import audit_scores
from pipeline.ops.audit_scores import fence, misfit, nearness, remoteness

DISTANCES = st.sampled_from([0.0, 1e-9, 0.125, 0.25, 0.5, 1.0]) | st.floats(1e-9, 1)


@st.composite
def ranked_lists(draw):
    """[image, rank] distances, ascending, NaN at the end where there are fewer."""
    k = draw(st.integers(1, 6))
    rows = draw(st.lists(st.lists(DISTANCES, max_size=k), max_size=6))
    padded = [[*sorted(row), *[np.nan] * (k - len(row))] for row in rows]
    return np.array(padded, float).reshape(-1, k)


@given(distance=ranked_lists())
def test_nearness_is_one_less_the_part_of_the_usual_distance(distance):
    found = nearness(distance)
    assert found.shape == distance.shape
    for row, scores in zip(distance.tolist(), found.tolist(), strict=True):
        others = [value for value in row[1:] if value == value]
        mean = sum(others) / len(others) if others else 0.0
        for value, score in zip(row, scores, strict=True):
            expected = 0.0 if value != value or mean == 0 else min(max(1 - value / mean, 0), 1)
            assert score == pytest.approx(expected, abs=1e-9)
        assert all(0 <= score <= 1 for score in scores)
        assert scores == sorted(scores, reverse=True)


def test_nearness_of_copies():
    nan = np.nan
    distance = np.array([[0, 0.2, 0.2], [0, 0, 0.2], [0, 0, 0], [0.1, nan, nan], [nan, nan, nan]])
    assert nearness(distance).tolist() == [[1, 0, 0], [1, 1, 0], [0] * 3, [0] * 3, [0] * 3]


def slow_misfit(labels, neighbours, classes):
    """Score, other label, and both votes of each image, vote by vote."""
    votes = [Counter() for _ in labels]
    for image, row in enumerate(neighbours):
        for other in row:
            if other < 0:
                continue
            if labels[other] >= 0:
                votes[image][labels[other]] += 1
            if labels[image] >= 0:
                votes[other][labels[image]] += 1
    results = []
    for label, mine in zip(labels, votes, strict=True):
        own = mine[label]
        rest = [(-mine[code], code) for code in range(classes) if code != label and mine[code]]
        most, other = min(rest, default=(0, -1))
        if label < 0 or (own == 0 and most == 0):
            results.append((0.0, -1, 0, 0))
        else:
            results.append(((1 - most) / (2 + own - most), other, own, -most))
    return results


@st.composite
def voters(draw):
    """Labels, -1 among them, and lists of neighbours of few images: votes are often equal."""
    count, classes = draw(st.integers(1, 12)), draw(st.integers(1, 5))
    k = draw(st.integers(0, 4))
    labels = draw(st.lists(st.integers(-1, classes - 1), min_size=count, max_size=count))
    rows = []
    for image in range(count):
        others = [other for other in range(count) if other != image]
        row = draw(st.lists(st.sampled_from(others), unique=True, max_size=k)) if others else []
        rows.append([*row, *[-1] * (k - len(row))])
    neighbours = np.array(rows, np.int64).reshape(count, k)
    return np.array(labels, np.int32), neighbours, classes


@pytest.mark.parametrize("block", [1, 7, 2**25])
@given(given_votes=voters())
def test_misfit_counts_votes_in_both_directions(block, given_votes):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audit_scores, "_BLOCK_VOTES", block)
        score, other, votes = misfit(*given_votes)
    found = list(zip(score.tolist(), other.tolist(), *votes.T.tolist(), strict=True))
    assert found == slow_misfit(given_votes[0].tolist(), given_votes[1].tolist(), given_votes[2])


def test_misfit_by_hand():
    labels = np.array([0, 1, 1, 2, -1, 2], np.int32)
    neighbours = np.array([[1, 2], [2, 0], [1, 0], [4, -1], [0, 3], [-1, -1]])
    score, other, votes = misfit(labels, neighbours, 4)
    # of image 0: both its neighbours, and both that list it, are of class 1
    assert other.tolist() == [1, 0, 0, -1, -1, -1]
    assert votes.tolist() == [[0, 4], [2, 2], [2, 2], [0, 0], [0, 0], [0, 0]]
    assert score.tolist() == [5 / 6, 3 / 6, 3 / 6, 0, 0, 0]
    assert len(misfit(labels[:0], neighbours[:0], 4)[0]) == 0


def test_of_equal_votes_the_lowest_code_is_suggested():
    labels = np.array([1, 2, 0, 3], np.int32)
    _, other, votes = misfit(labels, np.array([[1, 2, 3], [-1] * 3, [-1] * 3, [-1] * 3]), 4)
    assert other.tolist() == [0, 1, 1, 1]
    assert votes.tolist() == [[0, 1]] * 4


@given(st.lists(DISTANCES | st.just(np.nan), max_size=9))
def test_remoteness_is_relative_to_the_image_in_the_middle(values):
    nearest = np.array(values, float)
    known = sorted(value for value in values if value == value)
    middle = (known[(len(known) - 1) // 2] + known[len(known) // 2]) / 2 if known else 0.0
    expected = [max(1 - middle / value, 0) if value > 0 else 0.0 for value in values]
    assert remoteness(nearest).tolist() == pytest.approx(expected, abs=1e-9)


def test_a_fence_is_beyond_what_is_usual():
    logs = np.array([0.0, 1, 2, 3, 4])  # quartiles 1 and 3
    assert fence(-np.expm1(-logs)) == pytest.approx(1 - np.exp(-9))
    assert fence(np.append(-np.expm1(-logs), 1.0)) == pytest.approx(1 - np.exp(-9))  # copies: none
    assert fence(np.array([])) == 1
    assert fence(np.ones(4)) == 1
    assert fence(np.full(4, 0.25)) == 1
    usual = np.random.default_rng(0).uniform(0.1, 0.3, 1000)
    assert usual.max() < fence(usual) < 0.9
    assert fence(np.append(usual, np.full(20, 0.95))) < 0.95
