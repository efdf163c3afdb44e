"""Lists of the nearest as sparse graphs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from pipeline.core.errors import SchemaError
from pipeline.ops.graph import graph_of, merge_nearest


def lists(*rows):
    """[image, rank] distances and neighbours of rows of (distance, neighbour)."""
    array = np.array(rows, float)
    return array[..., 0], array[..., 1].astype(np.int64)


@given(data=st.data(), count=st.integers(1, 5), entries=st.integers(1, 8))
def test_merged_lists_are_those_of_a_sort(data, count, entries):
    k = data.draw(st.integers(1, entries))
    entry = st.tuples(st.sampled_from([0.0, 0.25, 0.5]), st.integers(0, 20))
    rows = [
        data.draw(st.lists(entry, max_size=entries, unique_by=lambda e: e[1])) for _ in range(count)
    ]
    padded = [[*row, *[(np.nan, -1)] * (entries - len(row))] for row in rows]
    distance, neighbour = merge_nearest(*lists(*padded), k)
    assert distance.shape == neighbour.shape == (count, k)
    for row, found in zip(rows, zip(distance, neighbour, strict=True), strict=True):
        wanted = sorted(row)[:k]
        assert list(zip(*(each[: len(wanted)].tolist() for each in found), strict=True)) == wanted
        assert np.isnan(found[0][len(wanted) :]).all()
        assert (found[1][len(wanted) :] == -1).all()


def test_a_graph_keeps_order_and_zeros():
    graph = graph_of(*lists([(0, 2), (0.5, 1)], [(0.25, 2), (0.5, 0)], [(0, 0), (0.25, 1)]))
    assert isinstance(graph, csr_matrix)
    assert graph.shape == (3, 3)
    assert graph.dtype == np.float64
    assert graph.indptr.tolist() == [0, 2, 4, 6]
    assert graph.indices.tolist() == [2, 1, 2, 0, 0, 1]
    assert graph.data.tolist() == [0, 0.5, 0.25, 0.5, 0, 0.25]


def test_what_is_not_there_is_left_out():
    graph = graph_of(*lists([(0.5, 1), (np.nan, -1)], [(0.5, 0), (np.nan, -1)]))
    assert graph.indptr.tolist() == [0, 1, 2]
    assert graph.data.tolist() == [0.5, 0.5]
    assert graph_of(*lists([(np.nan, -1)])).nnz == 0
    assert graph_of(np.zeros((0, 3)), np.zeros((0, 3), np.int64)).shape == (0, 0)


@pytest.mark.parametrize(("neighbour", "said"), [
    ([[1], [1]], "image 1 is its own neighbour"),
    ([[1], [2]], "neighbour 2, expected one of the 2"),
])  # fmt: skip
def test_lists_of_images_among_others_are_refused(neighbour, said):
    with pytest.raises(SchemaError, match=said) as caught:
        graph_of(np.zeros((2, 1)), np.array(neighbour))
    assert "\n" not in str(caught.value)
