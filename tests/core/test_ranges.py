"""Sets of numbers as runs: those of Python, whatever the runs."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.ranges import cut, each, joined, size_of, without

NUMBERS = st.frozensets(st.integers(0, 30))
RUNS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=8)


def runs_of(numbers):
    return joined((number, number + 1) for number in numbers)


@given(NUMBERS, RUNS)
def test_runs_are_joined_to_the_fewest_there_can_be(numbers, runs):
    found = joined(((number, number + 1) for number in numbers), runs)
    expected = numbers | {number for run in runs for number in range(*run)}
    assert list(each(found)) == sorted(expected)
    assert size_of(found) == len(expected)
    assert all(start < stop for start, stop in found)
    assert all(left[1] < right[0] for left, right in itertools.pairwise(found))


@given(NUMBERS, NUMBERS)
def test_without_is_the_difference(numbers, other):
    assert without(runs_of(numbers), runs_of(other)) == runs_of(numbers - other)


@given(NUMBERS, st.integers(0, 35), st.integers(0, 35))
def test_cut_takes_numbers_by_their_place(numbers, first, last):
    assert cut(runs_of(numbers), first, last) == runs_of(sorted(numbers)[first:last])
