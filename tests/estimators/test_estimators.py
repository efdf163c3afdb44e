"""scikit-learn's estimators: its own checks, and the same bits as everything else here."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
import torch
import xarray as xr
from estimators_for_tests import (
    KINDS,
    answers,
    as_dataset,
    assert_same,
    make_estimator,
    make_images,
)
from hypothesis import given
from hypothesis import strategies as st
from sklearn.exceptions import NotFittedError
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.utils.estimator_checks import parametrize_with_checks

import pipeline
from pipeline import NearestImagesClassifier, NearestPrototypeClassifier

METRICS = ["l1", "l2"]


@parametrize_with_checks(
    [
        NearestPrototypeClassifier(),
        NearestPrototypeClassifier("median", "l2"),
        NearestImagesClassifier(),
        NearestImagesClassifier(1, "l2"),
    ]
)  # none is expected to fail
def test_what_scikit_learn_asks_of_an_estimator(estimator, check):
    check(estimator)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", ["mean", "median"])
def test_prototypes_and_distances_have_the_bits_of_pipeline(kind, metric, dtype):
    train, labels = make_images(40, dtype)
    test, _ = make_images(17, dtype, seed=1)
    model = make_estimator(kind, metric).fit(train, labels)
    data, queries = as_dataset(train, labels), as_dataset(test, np.zeros(17))
    made = (
        pipeline.prototypes(pipeline.class_sums(data))
        if kind == "mean"
        else pipeline.class_medians(data)
    )
    expected = pipeline.distances(queries, made, [metric], "cpu")
    np.testing.assert_array_equal(model.distances(test), expected.values[0])
    np.testing.assert_array_equal(model.predict(test), pipeline.predict(expected).predicted[0])
    np.testing.assert_array_equal(
        model.prototypes_.reshape(3, -1), made.prototype.values.reshape(3, -1)
    )
    assert model.class_count_.tolist() == [14, 13, 13]


@pytest.mark.parametrize("metric", METRICS)
def test_nearest_images_have_the_bits_of_pipeline(metric):
    train, labels = make_images(60)
    train[7] = train[31]  # a tie
    test, _ = make_images(25, seed=1)
    test[3] = train[7]
    model = NearestImagesClassifier(4, metric, "cpu").fit(train, labels)
    data, queries = as_dataset(train, labels), as_dataset(test, np.zeros(25))
    for images, among in ((queries, data), (data, None)):
        expected = pipeline.neighbours(images, among, 4, [metric], "cpu").isel(metric=0).compute()
        distance, number = model.kneighbors(None if among is None else test)
        np.testing.assert_array_equal(distance, expected.distance)
        np.testing.assert_array_equal(number, expected.neighbour)
        assert model.kneighbors(return_distance=False, n_neighbors=2).shape == (60, 2)
    votes = pipeline.vote(pipeline.neighbours(queries, data, 4, [metric], "cpu"), 4)
    np.testing.assert_array_equal(model.predict(test), votes[0])


def test_means_by_l2_predict_as_nearest_centroid_and_int64_do():
    train, labels = make_images(90)
    test, _ = make_images(60, seed=1)
    flat, rows = train.reshape(90, -1), test.reshape(60, -1)
    model = NearestPrototypeClassifier(metric="l2").fit(train, labels)
    peer = NearestCentroid(metric="euclidean").fit(flat.astype(float), labels)
    np.testing.assert_array_equal(model.predict(test), peer.predict(rows.astype(float)))
    np.testing.assert_allclose(model.prototypes_.reshape(3, -1), peer.centroids_, rtol=1e-13)
    by_hand = NearestPrototypeClassifier(metric="l1").fit(train, labels).distances(test)
    for position in range(3):
        mine = flat[labels == position].astype(np.int64)
        numerators = np.abs(len(mine) * rows.astype(np.int64) - mine.sum(0)).sum(1)
        np.testing.assert_array_equal(by_hand[:, position], numerators / (len(mine) * 20 * 255))


@pytest.mark.parametrize("metric", METRICS)
def test_nearest_images_are_those_of_kneighbors_classifier(metric):
    rng = np.random.default_rng(5)  # of 16 bits, so that none is as near as another
    train, test = rng.integers(0, 2**16, (2, 80, 12)).astype(np.uint16)
    labels = np.array(["a", "b", "c", "d"])[rng.integers(0, 4, 80)]
    name = {"l1": "manhattan", "l2": "euclidean"}[metric]
    peer = KNeighborsClassifier(5, metric=name, algorithm="brute").fit(train.astype(float), labels)
    model = NearestImagesClassifier(5, metric).fit(train, labels)
    distance, number = peer.kneighbors(test.astype(float))
    mine, numbers = model.kneighbors(test)
    np.testing.assert_array_equal(numbers, number)
    size = model.n_features_in_ ** (1 if metric == "l1" else 0.5)
    np.testing.assert_allclose(mine * model.full_scale_ * size, distance, rtol=1e-10)
    shares, others = model.predict_proba(test), peer.predict_proba(test.astype(float))
    clear = (others == others.max(1)[:, None]).sum(1) == 1
    np.testing.assert_array_equal(shares[clear], others[clear])
    expected = peer.predict(test.astype(float))
    np.testing.assert_array_equal(model.predict(test)[clear], expected[clear])
    assert 10 < clear.sum() < 80
    np.testing.assert_array_equal(model.classes_[shares.argmax(1)], model.predict(test))
    assert set(shares[~clear].max(1)) == {2.5 / 5.5}  # two and two, or one each and the nearest


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("kind", ["mean", "median"])
@given(order=st.permutations(range(5)), edges=st.lists(st.integers(1, 39), min_size=4, max_size=4))
def test_batches_in_any_order_fit_the_same(kind, dtype, order, edges):
    train, labels = make_images(40, dtype)
    test, _ = make_images(9, dtype, seed=1)
    batches = np.split(np.arange(40), sorted(edges))
    model = make_estimator(kind)
    for number in order:
        if len(batches[number]):
            mine = batches[number]
            model.partial_fit(train[mine], labels[mine], classes=[0, 1, 2])
    assert_same(answers(model, test), answers(make_estimator(kind).fit(train, labels), test))


def test_batches_of_images_are_numbered_in_their_order():
    train, labels = make_images(40)
    model = make_estimator("images").partial_fit(train[:13], labels[:13], [0, 1, 2])
    model.partial_fit(train[13:], labels[13:])
    assert_same(answers(model, train), answers(make_estimator("images").fit(train, labels), train))


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_counts_as_so_many_samples(kind, dtype, lazy):
    train, labels = make_images(30, "uint8" if dtype == "float32" else dtype)
    train = train / np.float32(7) if dtype == "float32" else train
    weights = np.random.default_rng(2).integers(0, 6, 30)
    weights[labels == 2] = 0  # a class that is not there then
    weights[0] = 1000
    given = da.from_array(train, chunks=(7, 2, 4)) if lazy else train
    model = make_estimator(kind).fit(given, labels, sample_weight=weights.astype(float))
    repeated = make_estimator(kind).fit(train.repeat(weights, 0), labels.repeat(weights))
    left, right = answers(model, train), answers(repeated, train)
    if kind == "images":
        right[-1] = np.arange(30).repeat(weights)[right[-1]]
        own, others = model.kneighbors(), repeated.kneighbors()
        first = np.unique(np.arange(30).repeat(weights), return_index=True)[1]
        np.testing.assert_array_equal(own[0], others[0][first])
    assert_same(left, right)
    assert model.classes_.tolist() == [0, 1]


def test_a_weighted_image_is_its_own_neighbour_one_time_less():
    train, labels = make_images(30)
    weights = np.ones(30, int)
    weights[4] = 2
    model = NearestImagesClassifier(3).fit(train, labels, sample_weight=weights)
    numbers = np.arange(30).repeat(weights)
    distance, number = NearestImagesClassifier(3).fit(train[numbers], labels[numbers]).kneighbors()
    first = np.unique(numbers, return_index=True)[1]
    np.testing.assert_array_equal(model.kneighbors()[0], distance[first])
    np.testing.assert_array_equal(model.kneighbors()[1], numbers[number][first])


def test_shares_are_inverse_squares_of_distances():
    train, labels = make_images(30)
    test, _ = make_images(9, seed=1)
    model = NearestPrototypeClassifier().fit(train, labels)
    weights = 1 / model.distances(test) ** 2
    expected = weights / weights.sum(1, keepdims=True)
    np.testing.assert_allclose(model.predict_proba(test), expected, rtol=1e-13)
    same = NearestPrototypeClassifier().fit([[1, 2], [1, 2], [3, 4]], ["a", "b", "c"])
    assert same.predict_proba([[1, 2]]).tolist() == [[0.5, 0.5, 0]]
    near = NearestPrototypeClassifier().fit(train[:2], [0, 1])
    one, other = near.distances(test).T
    np.testing.assert_array_equal(near.decision_function(test), (one - other) / (one + other))


def inputs(train):
    """The same images as different libraries have them."""
    labelled = xr.DataArray(train, dims=("sample", "y", "x"))
    return {
        "rows": train.reshape(len(train), -1),
        "dask": da.from_array(train, chunks=(7, 2, 3)),
        "xarray": labelled.transpose("x", "sample", "y"),
        "xarray of dask": labelled.chunk({"sample": 6, "x": 1}),
        "torch": torch.from_numpy(train),
        "int64": train.astype(np.int64),
        "list": train.tolist(),
        "int16, dask": da.from_array(train.astype(np.int16), chunks=9),
    }


@pytest.mark.parametrize("name", list(inputs(np.zeros((1, 5, 4), np.uint8))))
@pytest.mark.parametrize("kind", KINDS)
def test_arrays_of_any_library_give_the_same(kind, name):
    train, labels = make_images(40)
    given = inputs(train)[name]
    model = make_estimator(kind).fit(train, labels)
    expected = answers(model, train)
    targets = torch.from_numpy(labels) if name == "torch" else da.from_array(labels, chunks=11)
    other = make_estimator(kind, value_range=(0, 255)).fit(given, targets)
    assert_same(answers(model, given), expected)
    assert_same(answers(other, train)[:-1], expected[:-1])
    assert other.score(given, targets) == model.score(train, labels) > 0.8
    lazy = name in ("dask", "xarray of dask", "int16, dask")
    assert isinstance(other.predict(given), da.Array if lazy else np.ndarray)


def test_predictions_of_dask_arrays_are_lazy_and_of_the_time_they_were_asked_for():
    train, labels = make_images(40)
    test, _ = make_images(10, seed=1)

    def fail(block):
        raise AssertionError("computed")

    lazy = da.from_array(test, chunks=4)
    for kind in KINDS:
        model = make_estimator(kind).fit(train, labels)
        now = answers(model, test)
        waiting = [part for part in answers(model, lazy) if isinstance(part, da.Array)]
        answers(model, lazy.map_blocks(fail, dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8)))
        model.partial_fit(test, np.zeros(10, int))
        for part, expected in zip(waiting, now, strict=False):
            assert part.shape == expected.shape
            assert part.dtype == expected.dtype
            np.testing.assert_array_equal(part, expected)


def test_a_dask_array_is_summed_in_a_tree(monkeypatch):
    """No task adds up more than a few blocks."""
    train, labels = make_images(400)
    import pipeline.estimators.arithmetic as arithmetic

    made = []
    compute = arithmetic.da.compute
    monkeypatch.setattr(arithmetic.da, "compute", lambda *all: made.extend(all) or compute(*all))
    model = make_estimator("mean").fit(da.from_array(train, chunks=2), labels)
    graph = made[0].dask
    widest = max(len(keys) for keys in graph.get_all_dependencies().values())
    assert len(graph) > 400
    assert widest <= 16
    np.testing.assert_array_equal(model.pixel_sum_[0], train[labels == 0].reshape(134, -1).sum(0))


def test_classes_without_images_are_never_predicted():
    train, labels = make_images(30)
    for kind in KINDS:
        model = make_estimator(kind).partial_fit(train, labels, classes=[-1, 0, 1, 2, 7])
        assert model.classes_.tolist() == [-1, 0, 1, 2, 7]
        assert {*model.predict(train)} <= {0, 1, 2}
        assert (model.predict_proba(train)[:, [0, 4]] == 0).all()
        np.testing.assert_array_equal(
            model.classes_[model.decision_function(train).argmax(1)], model.predict(train)
        )
        only = make_estimator(kind).partial_fit(train, np.full(30, 1), classes=[1, 2])
        assert (only.decision_function(train) == -1).all()
        assert only.predict_proba(train[:1]).tolist() == [[1, 0]]
    assert np.isnan(
        make_estimator("mean").partial_fit(train, labels, [0, 1, 2, 3]).prototypes_[3]
    ).all()


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_array_may_be_written_over_after_it_was_fitted(kind, dtype):
    train, labels = make_images(40, dtype)
    expected = answers(make_estimator(kind).fit(train, labels), train)
    model, buffer = make_estimator(kind), np.empty_like(train[:10])
    for start in range(0, 40, 10):
        buffer[:] = train[start : start + 10]
        model.partial_fit(buffer, labels[start : start + 10], [0, 1, 2])
        buffer[:] = 0
    assert_same(answers(model, train), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_what_fails_leaves_nothing_half_fitted(kind):
    train, labels = make_images(40)
    model = make_estimator(kind).fit(train, labels)
    with pytest.raises(ValueError, match="expected one of the classes"):
        make_estimator(kind).partial_fit(train, labels, [0, 1])
    before = answers(model, train)
    wrong_labels = [([9] * 40, "9"), (["a"] * 40, "'a'"), (labels[:-1], "inconsistent numbers")]
    for wrong, message in wrong_labels:
        with pytest.raises(ValueError, match=message):
            model.partial_fit(train, wrong)
    with pytest.raises(ValueError, match="pixel value 300"):
        model.partial_fit(train.astype(int) * 0 + 300, labels)
    assert_same(answers(model, train), before)
    failing = da.from_array(train).map_blocks(np.linalg.inv, dtype=np.uint8)
    with pytest.raises(np.linalg.LinAlgError):
        model.fit(failing, labels)
    with pytest.raises(NotFittedError):
        model.predict(train)
