"""What estimators make of values: exact integers, floats in steps, and values beyond the range."""

from __future__ import annotations

import math

import dask.array as da
import numpy as np
import pytest
import torch
import xarray as xr
from estimators_for_tests import KINDS, answers, assert_same, make_estimator, make_images
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.core.errors import InputError
from pipeline.estimators.pixels import choose_encoding
from pipeline.sources.quantize import Packing

METRICS = ["l1", "l2"]


def by_hand(images, train, labels, kind, metric, full_scale=255):
    """Return distances to prototypes in Python's integers: one image, one class, one pixel each."""
    rows = images.reshape(len(images), -1).tolist()
    mine = [train.reshape(len(train), -1)[labels == position] for position in range(3)]
    result = np.empty((len(rows), 3))
    for position, others in enumerate(mine):
        if kind == "mean":
            n, whole = len(others), others.sum(0, dtype=np.int64).tolist()
        else:
            n, whole = 2, (2 * np.median(others, axis=0)).astype(int).tolist()
        for number, row in enumerate(rows):
            gaps = [abs(n * x - p) for x, p in zip(row, whole, strict=True)]
            if metric == "l1":
                result[number, position] = sum(gaps) / (n * len(row) * full_scale)
            else:
                total = sum(gap * gap for gap in gaps)
                result[number, position] = math.sqrt(
                    float(total) / float(n * n * len(row) * full_scale**2)
                )
    return result


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", ["mean", "median"])
@given(values=hnp.arrays(np.int64, (3, 5, 4), elements=st.integers(-(2**20), 2**20)))
def test_images_beyond_the_range_are_measured_exactly(kind, metric, values):
    train, labels = make_images(21)
    values[0] = np.clip(values[0], 0, 255)
    values[1] = np.clip(values[1], -40, 300)
    model = make_estimator(kind, metric).fit(train, labels)
    expected = by_hand(values, train, labels, kind, metric)
    np.testing.assert_array_equal(model.distances(values), expected)
    np.testing.assert_array_equal(model.predict(values), expected.argmin(1))


def test_squares_beyond_64_bits_are_exact():
    train, labels = make_images(21, "uint16")
    values = np.random.default_rng(0).integers(-(2**20), 2**20, (9, 5, 4))
    model = make_estimator("mean", "l2").fit(train, labels, sample_weight=10_001)
    expected = by_hand(values, train.repeat(10_001, 0), labels.repeat(10_001), "mean", "l2", 65535)
    np.testing.assert_array_equal(model.distances(values), expected)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("weighted", [False, True])
@given(values=hnp.arrays(np.int64, (4, 20), elements=st.integers(-400, 700)))
def test_neighbours_of_images_beyond_the_range_are_exact(metric, weighted, values):
    train, labels = make_images(30)
    values[0] = np.clip(values[0], 0, 255)
    weights = np.arange(30) % 3 + 1 if weighted else np.ones(30, int)
    model = make_estimator("images", metric).fit(train, labels, sample_weight=weights)
    gaps = np.abs(values[:, None].astype(np.int64) - train.reshape(30, 20).repeat(weights, 0))
    totals = (gaps if metric == "l1" else gaps**2).sum(2)
    order = np.argsort(totals, axis=1, kind="stable")[:, :3]
    distance, number = model.kneighbors(values)
    np.testing.assert_array_equal(number, np.arange(30).repeat(weights)[order])
    means = np.take_along_axis(totals, order, 1) / (20 * (255 if metric == "l1" else 255**2))
    np.testing.assert_array_equal(distance, means if metric == "l1" else np.sqrt(means))


def test_a_value_too_far_away_is_refused_with_the_cure():
    train, labels = make_images(21)
    for kind in KINDS:
        model = make_estimator(kind).fit(train, labels)
        for far in (2**30, 2**45, -(2**62)):
            with pytest.raises(ValueError, match=r"bring .* to one scale"):
                model.predict(np.full((1, 5, 4), far))


@given(
    values=hnp.arrays(
        np.float64, (6, 7), elements=st.floats(-1e6, 1e6, allow_subnormal=False, width=32)
    )
)
def test_floats_are_rounded_by_at_most_what_is_stated(values):
    encoding = choose_encoding(values)
    kept = encoding.encode(values)
    assert kept.dtype == np.uint16
    back = encoding.lowest + encoding.scale * kept.astype(np.float64)
    slack = 1e-9 * max(1.0, float(np.abs(values).max()))
    assert np.abs(back - values).max() <= encoding.packing.rounding_error + slack
    assert encoding.scale <= 2 * np.ptp(values) / 65535 or np.ptp(values) == 0


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", KINDS)
def test_floats_are_packed_as_at_ingest(kind, metric):
    """The same distances as for the integers that an image set of these floats holds."""
    train, labels = make_images(40, "uint16")
    floats = np.sin(train).astype(np.float32)
    packing = Packing(float(floats.min()), float(floats.max()), True)
    model = make_estimator(kind, metric).fit(floats, labels)
    other = make_estimator(kind, metric).fit(packing.apply(floats), labels)
    assert model.value_range_ == (packing.lowest, packing.highest)
    left, right = answers(model, floats), answers(other, packing.apply(floats))
    if kind != "images":
        back = packing.lowest + packing.scale_factor * right.pop()
        np.testing.assert_array_equal(left.pop(), back)
    assert_same(left, right)


@pytest.mark.parametrize("highest", [1, 16, 255, 1000, 65535])
def test_floats_that_are_whole_numbers_are_exact(highest):
    values = np.random.default_rng(0).integers(0, highest + 1, (50, 6)) - 3.0
    values[0, :2] = -3, highest - 3
    encoding = choose_encoding(values)
    kept = encoding.encode(values).astype(np.int64)
    steps = round(1 / encoding.scale)
    np.testing.assert_array_equal(kept, (values + 3) * steps)
    assert steps == 65535 // highest


def test_images_over_255_are_exact_too():
    images, labels = make_images(40)
    scaled = images / np.float32(255)
    model = make_estimator("images").fit(scaled, labels)
    assert_same(
        answers(model, scaled), answers(make_estimator("images").fit(images, labels), images)
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("offset", [-(2**40), -128, 2**50])
def test_integers_are_shifted_into_the_range(kind, offset):
    images, labels = make_images(40)
    shifted = images.astype(np.int64) + offset
    shifted[0, 0, 0], shifted[1, 0, 0], images[0, 0, 0], images[1, 0, 0] = (
        offset,
        offset + 255,
        0,
        255,
    )
    model = make_estimator(kind).fit(shifted, labels)
    assert (model.pixel_dtype_, model.offset_, model.rounding_error_) == ("uint8", offset, 0)
    left, right = answers(model, shifted), answers(make_estimator(kind).fit(images, labels), images)
    if kind != "images":
        np.testing.assert_allclose(left.pop(), right.pop() + offset, rtol=1e-15)
    assert_same(left, right)


def test_truth_values_are_differences_of_full_scale():
    images = np.array([[True, False], [False, False]])
    for both in (images, da.from_array(images)):
        model = make_estimator("mean").fit(both, [0, 1])
        assert np.asarray(model.distances(both)).tolist() == [[0, 0.5], [0.5, 0]]


def test_a_range_given_is_that_of_all_batches():
    images, labels = make_images(40)
    floats = images / 7.0
    batches = [floats[:3], floats[3:]]
    for kind in KINDS:
        model = make_estimator(kind, value_range=(-1, 40))
        for batch, some in zip(batches, (labels[:3], labels[3:]), strict=True):
            model.partial_fit(batch, some, [0, 1, 2])
        whole = make_estimator(kind, value_range=(-1, 40)).fit(da.from_array(floats, 7), labels)
        assert_same(answers(model, floats), answers(whole, floats))
        assert (model.offset_, model.full_scale_) == (-1, pytest.approx(41))
        with pytest.raises(InputError, match=r"pixel value 41.0, expected -1.0 to 40.0"):
            model.partial_fit(floats[:1] * 0 + 41, [0])


def test_constant_images_are_fitted():
    for value in (0.0, 0.3, -1e300):
        for kind in KINDS:
            model = make_estimator(kind).fit(np.full((6, 3), value), [0, 1, 2] * 2)
            assert model.predict(np.full((2, 3), value)).tolist() == [0, 0]


def test_labelled_images_are_taken_by_the_names_of_their_dimensions():
    images, labels = make_images(40, shape=(5, 4, 3))
    dims = ("sample", "y", "x", "channel")
    labelled = xr.DataArray(images, dims=dims).transpose("channel", "x", "sample", "y")
    model = make_estimator("mean").fit(labelled, labels)
    assert model.image_shape_ == (5, 4, 3)
    assert_same(answers(model, images), answers(make_estimator("mean").fit(images, labels), images))
    own = xr.DataArray(images, dims=("sample", "lat", "lon", "band"))
    model = make_estimator("mean").fit(own, labels)
    assert_same(answers(model, own.transpose("band", "lon", "lat", "sample")), answers(model, own))
    with pytest.raises(InputError, match=r"\('sample', 'lat', 'lon', 'band'\) in any order"):
        model.predict(labelled)
    with pytest.raises(InputError, match=r"one named 'sample'; .rename"):
        model.fit(own.rename(sample="time"), labels)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int32, torch.bool])
def test_tensors_of_any_type(dtype):
    images, labels = make_images(40)
    tensor = (torch.from_numpy(images) > 99).to(dtype).requires_grad_(dtype.is_floating_point)
    values = tensor.detach().to(torch.int64).numpy()
    model = make_estimator("images", "l2").fit(tensor, torch.from_numpy(labels))
    other = make_estimator("images", "l2").fit(values, labels)
    np.testing.assert_array_equal(model.kneighbors(tensor)[1], other.kneighbors(values)[1])


WRONG = {
    "negative weight": ({"sample_weight": [1, -1, 1]}, "sample_weight -1 .* of sample 1"),
    "half a weight": ({"sample_weight": [1, 1, 0.5]}, "sample_weight 0.5 .* of sample 2"),
    "NaN as weight": ({"sample_weight": [np.nan, 1, 1]}, "sample_weight nan"),
    "text as weight": ({"sample_weight": ["a", 1, 1]}, "sample_weight"),
    "wide integers": ({"X": [[0], [2**20], [5]]}, "make them floats"),
    "range of one": ({"value_range": 3}, "value_range 3"),
    "range of nothing": ({"value_range": (5, 5)}, "value_range"),
    "range too narrow": (
        {"value_range": (0, 1), "X": [[0], [300], [1]]},
        "pixel value 300, expected 0 to 255",
    ),
    "fractions for integers": ({"value_range": (0, 1.5)}, "expected whole numbers"),
    "metric": ({"metric": "manhattan"}, "expected l1 or l2"),
    "device": ({"device": "gpu"}, "expected auto, cpu, cuda"),
    "prototypes": ({"prototypes": "mode"}, "expected 'mean' or 'median'"),
    "k": ({"k": 0}, "k is 0"),
    "more neighbours than images": (
        {"k": 4},
        "expected at most the number of images to search, 3",
    ),
    "dask, one dimension": ({"X": da.ones(3)}, "Reshape your data"),
    "dask, too few labels": ({"X": da.ones((4, 2))}, "3 labels, expected 4"),
    "dask, NaN": ({"X": da.full((3, 2), np.nan)}, "NaN"),
    "dask, texts": ({"X": da.from_array([["a"], ["b"], ["c"]])}, "expected integers, floats"),
    "floats too large": ({"X": [[-1e308], [1e308], [0]]}, "cannot be packed"),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_what_cannot_be_is_refused_in_a_line(name):
    keywords, message = WRONG[name]
    more = dict(keywords)
    images = more.pop("X", [[0], [2], [255]])
    fitting = {key: more.pop(key) for key in ("sample_weight",) if key in more}
    kind = "images" if "k" in more else "mean"
    model = make_estimator(kind).set_params(**more)
    with pytest.raises(ValueError, match=message) as caught:
        model.fit(images, [0, 1, 2], **fitting).predict(images)
    assert "\n" not in str(caught.value)


def test_predictions_of_other_images_are_refused():
    images, labels = make_images(40)
    for fitted in (images, da.from_array(images, chunks=9)):
        model = make_estimator("mean").fit(fitted, labels)
        for wrong in (images.swapaxes(1, 2), da.from_array(images.swapaxes(1, 2), chunks=9)):
            with pytest.raises(ValueError, match=r"images of shape \(4, 5\), expected \(5, 4\)"):
                model.predict(wrong)
        for wrong in (images[:, 0], da.from_array(images[:, 0], chunks=9)):
            with pytest.raises(ValueError, match=r"4 features, but .* expecting 20 features"):
                model.predict(wrong)
        with pytest.raises(ValueError, match=r"pixel value \d+\.5, expected whole numbers"):
            model.predict(images.reshape(40, 20) + 0.5)
    with pytest.raises(ValueError, match="expected one of the classes"):
        model.partial_fit(images[:1], [9])
    with pytest.raises(ValueError, match="in the first call of partial_fit"):
        make_estimator("mean").partial_fit(images, labels)
    with pytest.raises(ValueError, match="expected those of the first call"):
        model.partial_fit(images, labels, classes=[0, 1])


def test_medians_of_a_dask_array_of_16_bits_keep_no_images():
    images, labels = make_images(40, "uint16")
    model = make_estimator("median").fit(da.from_array(images, 7), labels)
    assert_same(
        answers(model, images), answers(make_estimator("median").fit(images, labels), images)
    )
    with pytest.raises(ValueError, match="begin with partial_fit"):
        model.partial_fit(images, labels)
