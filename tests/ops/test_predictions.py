"""Predictions: the nearest prototype, ties to the lowest code, ranks, margins and accuracies."""

from __future__ import annotations

import json
import warnings

import dask
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix
from sklearn.neighbors import NearestCentroid
from strategies import as_dataset, raise_if_computed

import pipeline
from pipeline.core.errors import LabelError, SchemaError
from pipeline.ops.predictions import confusion_counts, predict_block, summarise

NAN = float("nan")


def predict_row(distances, position=-1, codes=None):
    block = np.array(distances, np.float64)[None, None]
    codes = np.arange(len(distances)) if codes is None else np.array(codes)
    return predict_block(block, codes, np.array([position]))[0, 0]


def test_the_smallest_distance_is_predicted_with_its_margin():
    row = predict_row([0.4, 0.1, 0.3], position=2)
    assert (row["predicted"], row["distance"], row["margin"]) == (1, 0.1, 0.3 - 0.1)
    assert (row["label_distance"], row["label_rank"]) == (0.3, 2)


def test_a_tie_goes_to_the_lowest_code():
    row = predict_row([0.5, 0.2, 0.2], position=2, codes=[3, 5, 8])
    assert (row["predicted"], row["margin"], row["label_rank"]) == (5, 0.0, 2)
    assert predict_row([0.2, 0.2], position=0)["label_rank"] == 1


def test_a_class_without_images_is_never_predicted_and_has_no_rank():
    row = predict_row([NAN, 0.9, 0.8], position=0)
    assert row["predicted"] == 2
    assert np.isnan(row["label_distance"])
    assert row["label_rank"] == -1
    assert predict_row([NAN, 0.9, 0.8], position=1)["label_rank"] == 2


def test_without_a_second_prototype_there_is_no_margin():
    assert np.isnan(predict_row([0.5])["margin"])
    assert np.isnan(predict_row([NAN, 0.5])["margin"])


def test_without_any_prototype_nothing_is_predicted():
    row = predict_row([NAN, NAN], position=1)
    assert row["predicted"] == -1
    assert np.isnan(row["distance"])


def test_an_unlabelled_image_is_predicted_without_rank():
    row = predict_row([0.3, 0.2])
    assert (row["predicted"], row["label_rank"]) == (1, -1)
    assert np.isnan(row["label_distance"])


levels = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.just(NAN))


@given(
    distance=hnp.arrays(np.float64, hnp.array_shapes(min_dims=3, max_dims=3, max_side=5),
                        elements=levels),
    data=st.data(),
)  # fmt: skip
def test_every_row_is_what_sorting_says(distance, data):
    metrics, samples, classes = distance.shape
    positions = data.draw(hnp.arrays(np.int64, samples, elements=st.integers(-1, classes - 1)))
    rows = predict_block(distance, np.arange(classes), positions)
    for metric in range(metrics):
        for sample in range(samples):
            row, values = rows[metric, sample], distance[metric, sample]
            order = sorted((v, c) for c, v in enumerate(values.tolist()) if not np.isnan(v))
            assert row["predicted"] == (order[0][1] if order else -1)
            if len(order) > 1:
                assert row["margin"] == order[1][0] - order[0][0]
            own = positions[sample]
            if own >= 0 and not np.isnan(values[own]):
                assert row["label_rank"] == 1 + [c for _, c in order].index(own)
                assert row["label_distance"] == values[own]


def measured(chunks=16):
    rng = np.random.default_rng(3)
    centres = rng.integers(0, 256, (4, 6, 5))
    labels = rng.integers(0, 4, 120).astype(np.int32)
    images = np.clip(centres[labels] + rng.integers(-90, 90, (120, 6, 5)), 0, 255)
    dataset = as_dataset(images.astype(np.uint8), labels, ["a", "b", "c", "d"], chunks)
    ideals = pipeline.prototypes(pipeline.class_sums(dataset))
    return dataset, pipeline.distances(dataset, ideals)


def test_l2_predicts_as_scikit_learns_nearest_centroid():
    dataset, distances = measured()
    pixels = dataset["image"].values.reshape(120, -1).astype(np.float64)
    oracle = NearestCentroid().fit(pixels, dataset["label"].values).predict(pixels)
    found = pipeline.predict(distances).sel(metric="l2")
    assert (found["margin"] > 0).all()
    assert np.array_equal(found["predicted"], oracle)
    assert found["predicted_name"].values.tolist() == ["abcd"[code] for code in oracle]


def test_predictions_are_labelled_and_the_same_for_any_chunks():
    one, many = (pipeline.predict(measured(chunks)[1]).compute() for chunks in (120, 7))
    assert one.identical(many)
    assert one["predicted"].dims == ("metric", "sample")
    assert set(one.data_vars) == {
        "predicted", "predicted_name", "distance", "margin", "label_distance", "label_rank",
    }  # fmt: skip
    assert ((one["label_rank"] == 1) == (one["predicted"] == one["label"])).all()


def test_nothing_is_computed_before_it_is_asked_for():
    with dask.config.set(scheduler=raise_if_computed):
        found = pipeline.predict(measured()[1])
        with pytest.raises(AssertionError, match="something was computed"):
            found.compute()


def test_distances_without_labels_or_dask_are_predicted_too():
    _, distances = measured()
    plain = xr.DataArray(
        distances.values, {"class_name": ["a", "b", "c", "d"]}, distances.dims, "distance"
    )
    found = pipeline.predict(plain)
    assert "label_rank" not in found
    assert np.array_equal(found["predicted"], pipeline.predict(distances)["predicted"])


def test_codes_of_a_subset_are_those_of_the_image_set():
    dataset, _ = measured()
    ideals = pipeline.prototypes(pipeline.class_sums(dataset, ["b", "d"]))
    found = pipeline.predict(pipeline.distances(dataset, ideals)).compute()
    assert set(np.unique(found["predicted"])) == {1, 3}
    of_others = found["label_rank"].where(found["label"].isin([0, 2]), drop=True)
    assert (of_others == -1).all()


def test_something_else_than_distances_is_refused():
    _, distances = measured()
    with pytest.raises(SchemaError, match="'distance' has dimensions"):
        pipeline.predict(distances.isel(class_name=0))
    with pytest.raises(SchemaError, match="dtype float32"):
        pipeline.predict(distances.astype("float32"))


def tied(**coordinates):
    """One image, as far from the classes 0 and 1, farther from 2, labelled 1."""
    coordinates = {
        "metric": ["l1"],
        "class_name": ["a", "b", "c"],
        "class_code": ("class_name", np.arange(3, dtype=np.int32)),
        "label": ("sample", np.array([1], np.int32)),
    } | coordinates
    dims = ("metric", "sample", "class_name")
    return xr.DataArray([[[0.25, 0.25, 0.5]]], coordinates, dims, "distance")


def test_a_tie_goes_to_the_lowest_code_whatever_the_order_of_classes():
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        found = pipeline.predict(tied().isel(class_name=order)).compute()
        assert found["predicted"].item() == 0
        assert found["predicted_name"].item() == "a"
        assert found["label_rank"].item() == 2


def test_a_label_that_is_no_code_is_refused_with_its_value():
    with pytest.raises(LabelError, match="sample 0 has label -2"):
        pipeline.predict(tied(label=("sample", np.array([-2], np.int32)))).compute()


def test_distances_may_be_cut_along_any_dimension():
    _, distances = measured()
    pieces = distances.chunk({"metric": 1, "sample": 50, "class_name": 3})
    assert pipeline.predict(pieces).compute().identical(pipeline.predict(distances).compute())


def test_an_image_near_no_prototype_has_no_name():
    found = pipeline.predict(tied().where(False)).compute()
    assert found["predicted"].item() == -1
    assert found["predicted_name"].item() == ""
    assert found["label_rank"].item() == -1


def test_names_of_a_subset_are_those_of_its_codes():
    codes = ("class_name", np.array([2, 5, 8], np.int32))
    found = pipeline.predict(tied(class_code=codes, label=("sample", np.array([5], np.int32))))
    assert (found["predicted"].values.item(), found["predicted_name"].values.item()) == (2, "a")
    assert found["label_rank"].values.item() == 2


# accuracies, against scikit-learn


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
