"""Neighbours: those of NumPy, scikit-learn and the definition, for any chunks, lazily."""

from __future__ import annotations

import dask
import numpy as np
import pytest
from distributed import Client
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors
from strategies import (
    SEARCHING,
    as_dataset,
    chunkings,
    image_pairs,
    oracle_lists,
    oracle_numerators,
    raise_if_computed,
)

import pipeline
from pipeline.core.errors import SchemaError, ShapeError
from pipeline.core.exact import NOWHERE, finish_neighbours, largest_within
from pipeline.ops import search_tasks
from pipeline.ops.neighbours import vote_block

METRICS = ("l1", "l2")


def datasets(pair, chunks=(None, None)):
    queries, references = (
        as_dataset(images, np.arange(len(images), dtype=np.int32) % 3, list("abc"), cut)
        for images, cut in zip(pair, chunks, strict=True)
    )
    return queries, references


def values_of(images):
    return int(np.prod(images.shape[1:])), int(np.iinfo(images.dtype).max)


# kernels have the many examples; here it is what dask makes of them
few_examples = settings(max_examples=20)


@pytest.mark.parametrize("device", SEARCHING)
@few_examples
@given(data=st.data(), pair=image_pairs(), k=st.integers(1, 8))
def test_neighbours_are_those_of_the_definition_for_any_chunks(device, data, pair, k):
    chunks = [data.draw(chunkings(len(images))) for images in pair]
    result = pipeline.neighbours(*datasets(pair, chunks), k=k, device=device).compute()
    labels = np.arange(len(pair[1])) % 3
    for row, metric in enumerate(METRICS):
        numerators, indices = oracle_lists(oracle_numerators(*pair, metric), k)
        assert np.array_equal(
            result["neighbour"].values[row], np.where(indices == NOWHERE, -1, indices)
        )
        expected = finish_neighbours(numerators, metric, *values_of(pair[0]))
        assert result["distance"].values[row].tobytes() == expected.tobytes()
        known = np.where(indices == NOWHERE, -1, labels[np.minimum(indices, len(labels) - 1)])
        assert np.array_equal(result["neighbour_label"].values[row], known)


@pytest.mark.parametrize("device", SEARCHING)
@few_examples
@given(data=st.data(), pair=image_pairs())
def test_searched_in_itself_no_image_is_its_own_neighbour(device, data, pair):
    images, k = pair[1], 4
    whole = as_dataset(images, np.zeros(len(images), np.int32), ["a"])
    whole = whole.chunk({"sample": data.draw(chunkings(len(images)))})
    result = pipeline.neighbours(whole, k=k, metrics="l2", device=device)
    numerators = oracle_numerators(images, images, "l2")
    np.fill_diagonal(numerators, NOWHERE)
    _, indices = oracle_lists(numerators, k)
    expected = np.where(indices == NOWHERE, -1, indices)
    assert np.array_equal(result["neighbour"].values[0], expected)


def test_groups_of_references_do_not_change_the_result(monkeypatch):
    rng = np.random.default_rng(0)
    pair = rng.integers(0, 9, (40, 5, 6)).astype(np.uint8), rng.integers(0, 9, (700, 5, 6))
    pair = pair[0], pair[1].astype(np.uint8)
    whole = pipeline.neighbours(*datasets(pair), k=20).compute()
    pairs = pipeline.pairs_within(*datasets(pair), radius=0.008)
    monkeypatch.setattr(search_tasks, "_GROUP_BYTES", 30 * 130)
    monkeypatch.setattr(search_tasks, "_LEAST_QUERIES", 7)
    cut = pipeline.neighbours(*datasets(pair, (9, 50)), k=20)
    assert whole.identical(cut.compute())
    assert pairs.sizes["pair"] > 10
    assert pairs.identical(pipeline.pairs_within(*datasets(pair, (9, 50)), radius=0.008))


@pytest.mark.parametrize("persisted", [False, True])
def test_on_a_cluster_it_is_the_same_for_images_in_its_memory_too(persisted):
    rng = np.random.default_rng(2)
    pair = [rng.integers(0, 9, (count, 4, 6)).astype(np.uint8) for count in (30, 90)]
    chunked = datasets(pair, (7, 20))
    expected = pipeline.neighbours(*chunked, k=4).compute(scheduler="synchronous")
    with Client(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None):
        given = [images.persist() if persisted else images for images in chunked]
        assert pipeline.neighbours(*given, k=4).compute().identical(expected)
        assert pipeline.pairs_within(*given, radius=1).sizes["pair"] == 30 * 90


def test_nothing_is_computed_before_it_is_asked_for():
    images = np.zeros((20, 3, 3), np.uint8)
    queries, references = datasets((images, images), (5, 5))
    with dask.config.set(scheduler=raise_if_computed):
        result = pipeline.neighbours(queries, references, k=3)
        predicted = pipeline.vote(result, 2)
        with pytest.raises(AssertionError, match="computed"):
            predicted.compute()


@pytest.mark.parametrize("metric", METRICS)
def test_distances_are_those_of_scikit_learn(metric):
    rng = np.random.default_rng(3)
    # of 16 bits, so that no two are equally far: scikit-learn has no order for these
    pair = [rng.integers(0, 2**16, (count, 7, 5), np.uint16) for count in (30, 200)]
    result = pipeline.neighbours(*datasets(pair), k=5, metrics=metric)
    peer = NearestNeighbors(
        algorithm="brute", metric={"l1": "manhattan", "l2": "euclidean"}[metric]
    )
    peer.fit(pair[1].reshape(200, -1).astype(np.float64))
    distance, index = peer.kneighbors(pair[0].reshape(30, -1).astype(np.float64), 5)
    scale = 35 * 65535 if metric == "l1" else np.sqrt(35) * 65535
    assert np.array_equal(result["neighbour"].values[0], index)
    np.testing.assert_allclose(result["distance"].values[0], distance / scale, rtol=1e-12)


@few_examples
@given(data=st.data(), pair=image_pairs(), metric=st.sampled_from(METRICS))
def test_pairs_are_those_of_the_definition_each_once(data, pair, metric):
    images = pair[1]
    numerators = oracle_numerators(images, images, metric)
    distances = finish_neighbours(numerators, metric, *values_of(images))
    radius = float(data.draw(st.sampled_from(distances.reshape(-1).tolist())))
    whole = as_dataset(images, np.zeros(len(images), np.int32), ["a"])
    chunks = data.draw(chunkings(len(images)))
    result = pipeline.pairs_within(whole.chunk({"sample": chunks}), radius=radius, metric=metric)
    rows, columns = np.nonzero(np.triu(distances <= radius, 1))
    assert np.array_equal(result["sample"], rows)
    assert np.array_equal(result["neighbour"], columns)
    assert np.array_equal(result["distance"], distances[rows, columns])


@given(
    radius=st.floats(0, 1.5), metric=st.sampled_from(METRICS), pixels=st.integers(1, 200_000),
    full_scale=st.sampled_from([1, 255, 65535]),
)  # fmt: skip
def test_the_radius_is_where_the_shown_distance_passes_it(radius, metric, pixels, full_scale):
    most = largest_within(radius, metric, pixels, full_scale)
    beside = np.array([most, most + 1])
    inside, outside = finish_neighbours(beside, metric, pixels, full_scale)
    assert inside <= radius < outside


@pytest.mark.parametrize(
    ("labels", "winner"),
    [
        ([2, 1, 1], 1),
        ([2, 1, 1, 2], 2),  # equal votes: the nearest among them
        ([0, 1, 2], 0),
        ([-1, -1, 5], 5),
        ([-1, -1, -1], -1),
        ([-1, 3, 4, 4, 3], 3),
    ],
)
def test_votes(labels, winner):
    assert vote_block(np.array([labels], np.int32)).tolist() == [winner]


def test_votes_of_the_first_k_are_those_of_fewer_neighbours():
    rng = np.random.default_rng(0)
    pair = rng.integers(0, 4, (50, 3, 3)).astype(np.uint8), rng.integers(0, 4, (90, 3, 3))
    pair = pair[0], pair[1].astype(np.uint8)
    many = pipeline.neighbours(*datasets(pair), k=9)
    few = pipeline.neighbours(*datasets(pair), k=4)
    assert np.array_equal(pipeline.vote(many, 4), pipeline.vote(few, 4))
    assert pipeline.vote(few, 4).dims == ("metric", "sample")
    with pytest.raises(SchemaError, match=r"k is 5, expected 1 to 4.*neighbours\(\.\.\., k=5\)"):
        pipeline.vote(few, 5)


def test_no_references_and_no_queries():
    images = np.zeros((3, 2, 2), np.uint8)
    result = pipeline.neighbours(*datasets((images, images[:0])), k=2).compute()
    assert (result["neighbour"] == -1).all()
    assert np.isnan(result["distance"]).all()
    assert pipeline.neighbours(*datasets((images[:0], images)), k=2).compute().sizes["sample"] == 0
    assert pipeline.pairs_within(*datasets((images, images[:0])), radius=1).sizes["pair"] == 0


def test_what_cannot_be_compared_is_refused():
    small, large = np.zeros((3, 2, 2), np.uint8), np.zeros((3, 2, 3), np.uint8)
    with pytest.raises(ShapeError, match=r"shape \(2, 2\).*searched among, \(2, 3\)"):
        pipeline.neighbours(*datasets((small, large)))
    with pytest.raises(ShapeError, match="uint16"):
        pipeline.pairs_within(*datasets((small, small.astype(np.uint16))), radius=0.1)
    with pytest.raises(SchemaError, match="k is 0, expected a number of neighbours, 1 or more"):
        pipeline.neighbours(*datasets((small, small)), k=0)
    with pytest.raises(SchemaError, match="metric 'l3', expected l1 or l2"):
        pipeline.neighbours(*datasets((small, small)), metrics="l3")
    with pytest.raises(SchemaError, match="radius is -1"):
        pipeline.pairs_within(*datasets((small, small)), radius=-1)
    with pytest.raises(SchemaError, match="radius is nan"):
        pipeline.pairs_within(*datasets((small, small)), radius=float("nan"))
