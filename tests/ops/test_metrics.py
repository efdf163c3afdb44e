"""Metrics, against scikit-learn."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix

from pipeline.ops.metrics import confusion_counts, summarise


@given(pairs=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
def test_counts_and_accuracies_are_those_of_scikit_learn(pairs):
    labels, predicted = (np.array(column) for column in zip(*pairs, strict=True))
    counts = confusion_counts(labels, predicted, 4)
    assert np.array_equal(counts, confusion_matrix(labels, predicted, labels=range(4)))
    found = summarise(counts, "abcd")
    assert found["count"] == len(pairs)
    assert found["accuracy"] == accuracy_score(labels, predicted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes without images, which are left out
        expected = balanced_accuracy_score(labels, predicted)
    assert found["balanced_accuracy"] == pytest.approx(expected)
    json.dumps(found, allow_nan=False)


def test_what_is_not_known_does_not_count():
    counts = confusion_counts(np.array([-1, 0, 1]), np.array([0, -1, 1]), 2)
    assert counts.tolist() == [[0, 0], [0, 1]]


def test_an_accuracy_of_nothing_is_none():
    found = summarise(np.zeros((2, 2), np.int64), ["a", "b"])
    assert found["accuracy"] is None
    assert found["balanced_accuracy"] is None
    assert found["per_class"]["a"] == {"accuracy": None, "count": 0}
    half = summarise(np.array([[3, 1], [0, 0]]), ["a", "b"])
    assert half["balanced_accuracy"] == half["accuracy"] == 0.75
