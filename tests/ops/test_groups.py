"""Groups: connected components of pairs, in whatever order the pairs come."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.exact import finish_neighbours
from pipeline.ops import graph as module
from pipeline.ops.graph import connect, diameter, smallest_edges

IMAGES = st.integers(0, 30) | st.integers(10**12, 10**12 + 3)
PAIRS = st.lists(st.tuples(IMAGES, IMAGES), max_size=40)


def ends(pairs):
    return np.array(pairs, np.int64).reshape(-1, 2).T


def union_find(pairs):
    """The components as sorted lists, in the order of their smallest members."""
    parent = {}

    def root(image):
        parent.setdefault(image, image)
        while parent[image] != image:
            image = parent[image]
        return image

    for first, second in pairs:
        parent[root(first)] = root(second)
    components = {}
    for image in parent:
        components.setdefault(root(image), []).append(image)
    return sorted(sorted(members) for members in components.values())


@given(data=st.data(), pairs=PAIRS)
def test_groups_are_the_connected_components_in_any_order_of_pairs(data, pairs):
    expected = union_find(pairs)
    shuffled = [data.draw(st.permutations(pair)) for pair in data.draw(st.permutations(pairs))]
    for given_pairs in (pairs, shuffled, [*shuffled, *pairs]):
        found = connect(*ends(given_pairs))
        assert found.members.tolist() == [image for part in expected for image in part]
        assert found.group.tolist() == [part[0] for part in expected for _ in part]
        assert found.sizes().tolist() == [len(part) for part in expected]
        assert found.starts.tolist() == np.cumsum([0, *map(len, expected)]).tolist()
        each = found.each(np.arange(len(expected)))
        assert each.tolist() == [at for at, part in enumerate(expected) for _ in part]


@given(data=st.data(), pairs=PAIRS)
def test_the_smallest_edge_of_each_group_is_that_of_its_pairs(data, pairs):
    values = data.draw(st.lists(st.floats(0, 1), min_size=len(pairs), max_size=len(pairs)))
    first, second = ends(pairs)
    found = connect(first, second)
    expected = [
        min(value for (image, _), value in zip(pairs, values, strict=True) if image in part)
        for part in union_find(pairs)
    ]
    for images in (first, second):
        assert smallest_edges(found, images, np.array(values)).tolist() == expected


def test_a_pair_that_is_given_often_still_joins():
    found = connect(np.full(256, 7), np.full(256, 9))  # as many as eight bits count
    assert found.members.tolist() == [7, 9]
    assert found.group.tolist() == [7, 7]


def test_of_no_pairs_there_are_no_groups():
    found = connect(*ends([]))
    assert found.members.tolist() == found.sizes().tolist() == []
    assert found.starts.tolist() == [0]
    assert smallest_edges(found, *ends([])[:1], np.array([])).tolist() == []


@pytest.mark.parametrize("block", [1, 2**20])
@pytest.mark.parametrize("metric", ["l1", "l2"])
@pytest.mark.parametrize(("dtype", "shape"), [(np.uint8, (3, 4)), (np.uint16, (2, 5, 3))])
def test_a_diameter_is_the_largest_distance(metric, dtype, shape, block, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", block)
    largest = int(np.iinfo(dtype).max)
    images = np.random.default_rng(0).integers(0, largest + 1, (7, *shape)).astype(dtype)
    images[3] = images[0]
    wide = images.astype(np.int64).reshape(7, -1)
    between = np.abs(wide[:, None] - wide)
    numerators = (between if metric == "l1" else between**2).sum(-1)
    expected = finish_neighbours(np.array([numerators.max()]), metric, wide.shape[1], largest)[0]
    assert diameter(images, metric, largest) == expected
    assert diameter(images[[0, 3]], metric, largest) == 0
    assert diameter(images[:1], metric, largest) == 0
