"""Images are held out by what is in them: stratified, copies together, in any order."""

from __future__ import annotations

from collections import defaultdict
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.holdout import hold_out

IMAGES = st.lists(st.tuples(st.integers(0, 30), st.integers(-1, 3)), max_size=80)
SHARES = st.sampled_from([0.2, 0.05, 0.5, 1 / 3, 0.9])


def oracle(images, share):
    """The rule, content by content."""
    share, last = Fraction(repr(share)), 99
    labels = defaultdict(list)
    for key, label in images:
        labels[key].append(last if label < 0 else label)
    held = set()
    for code in sorted({label for found in labels.values() for label in found}):
        total = sum(found.count(code) for found in labels.values())
        mine = sorted(key for key, found in labels.items() if min(found) == code)
        reached = sum(labels[key].count(code) for key in held)
        best, most, taken = abs(reached - share * total), 0, 0
        for number, key in enumerate(mine, 1):
            taken += labels[key].count(code)
            if abs(reached + taken - share * total) < best:
                best, most = abs(reached + taken - share * total), number
        held |= set(mine[:most])
    return [key in held for key, _ in images]


def held_of(images, share):
    keys, labels = (np.array([image[at] for image in images]) for at in (0, 1))
    return hold_out(keys.astype(np.uint64), labels.astype(np.int32), share).tolist()


@given(IMAGES, SHARES)
def test_it_is_the_rule(images, share):
    assert held_of(images, share) == oracle(images, share)


@given(IMAGES, SHARES, st.randoms())
def test_order_plays_no_part_and_copies_are_on_one_side(images, share, random):
    known = dict(zip([key for key, _ in images], held_of(images, share), strict=True))
    assert held_of(images, share) == [known[key] for key, _ in images]
    shuffled = random.sample(images, len(images))
    assert held_of(shuffled, share) == [known[key] for key, _ in shuffled]


@pytest.mark.parametrize("share", [0.2, 0.07, 0.5])
def test_of_each_class_the_share_is_as_near_as_can_be(share):
    rng = np.random.default_rng(0)
    labels = rng.integers(-1, 7, 1000).astype(np.int32)
    held = hold_out(rng.permutation(10**6)[:1000].astype(np.uint64) << np.uint64(44), labels, share)
    for code in range(-1, 7):
        mine = labels == code
        assert abs(held[mine].sum() - share * mine.sum()) <= 0.5
