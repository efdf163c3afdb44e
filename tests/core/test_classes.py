"""Classes: codes, names and positions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.core.classes import check_labels, class_flags, flagged_names, select_classes
from pipeline.core.errors import LabelError

NAMES = ["ash", "birch", "cedar", "dogwood"]


def test_classes_stand_in_the_order_of_their_codes():
    chosen = select_classes(NAMES, ["dogwood", "ash"])
    assert (chosen.codes, chosen.names) == ((0, 3), ("ash", "dogwood"))
    assert select_classes(NAMES).names == tuple(NAMES)


def test_positions_leave_out_other_classes_and_unlabelled_images():
    chosen = select_classes(NAMES, ["dogwood", "birch"])
    labels = np.array([3, 0, 1, -1, 2], np.int32)
    assert chosen.positions(labels).tolist() == [1, -1, 0, -1, -1]


@pytest.mark.parametrize("label", [4, -2, 255])
def test_a_label_outside_the_classes_names_sample_value_and_expectation(label):
    labels = np.array([0, -1, 3, label], np.int32)
    with pytest.raises(LabelError, match=f"sample 103 has label {label}, expected 0 to 3"):
        check_labels(labels, 4, first=100)
    with pytest.raises(LabelError):
        select_classes(NAMES).positions(labels)


def test_an_unknown_class_is_refused_with_the_nearest_or_with_all():
    with pytest.raises(LabelError, match="'brich' is not in the image set; did you mean 'birch'"):
        select_classes(NAMES, ["brich"])
    with pytest.raises(LabelError, match="known are ash, birch, cedar, dogwood"):
        select_classes(NAMES, ["zzz"])


def test_no_class_at_all_is_refused():
    with pytest.raises(LabelError, match="classes is empty, expected one name at least"):
        select_classes(NAMES, [])


@given(names=st.lists(st.text(max_size=4), max_size=8, unique=True))
@example(names=["a b", "a_b", "a/b", "a_b_2"])
@example(names=["unlabelled", "", " ", "-1"])
def test_flags_are_one_word_for_each_code_and_one_for_none(names):
    flags = class_flags(dict(enumerate(names)))
    words = flags["flag_meanings"].split(" ")
    assert flags["flag_values"].dtype == np.int32  # the type of labels, as CF has it
    assert flags["flag_values"].tolist() == [*range(len(names)), -1]
    assert words == flags["flag_meanings"].split()
    assert len({*words}) == len(words) == len(names) + 1
    assert all(mark.isalnum() or mark in "_-.+@" for word in words for mark in word)
    for name, word in zip(names, words, strict=False):
        if name and all(mark.isalnum() or mark in "_-.+@" for mark in name):
            assert word == name
    assert list(flagged_names(flags).values()) == words[:-1]


def test_flags_of_other_people_are_read_where_they_fit():
    assert flagged_names({"flag_values": np.array([3, 1]), "flag_meanings": "c a"}) == {
        3: "c",
        1: "a",
    }
    assert flagged_names({"flag_values": [1], "flag_meanings": "c a"}) == flagged_names({}) == {}
