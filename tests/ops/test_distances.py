"""Distances: those of the definition, of torch and of SciPy, for any chunks."""

from __future__ import annotations

from fractions import Fraction

import dask
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from strategies import (
    DEVICES,
    DEVICES_HERE,
    as_dataset,
    chunkings,
    is_root,
    labelled_blocks,
    oracle_distances,
    raise_if_computed,
)

import pipeline
from pipeline.core.errors import ExactnessError, SchemaError, ShapeError
from pipeline.core.exact import choose_arithmetic
from pipeline.ops.distance_blocks import distances_block, make_reference, nearest_block


def measure(images, labels, names, chunks=None, device="cpu", **attributes):
    dataset = as_dataset(images, labels, names, chunks, **attributes)
    ideals = pipeline.prototypes(pipeline.class_sums(dataset, device=device))
    return ideals, pipeline.distances(dataset, ideals, device=device)


@given(data=st.data(), block=labelled_blocks())
def test_any_chunks_and_device_give_the_same_bits(data, block):
    images, _, _ = block
    _, expected = measure(*block)
    chunks = data.draw(chunkings(len(images)))
    for device in DEVICES_HERE:
        _, found = measure(*block, chunks, device)
        assert found.values.tobytes() == expected.values.tobytes()


@given(block=labelled_blocks(max_samples=5))
def test_distances_are_those_of_the_definition(block):
    images = block[0]
    ideals, found = measure(*block)
    full_scale = int(np.iinfo(images.dtype).max)
    for sample, image in enumerate(images):
        for position in range(len(block[2])):
            numerator = ideals["numerator"].values[position]
            denominator = ideals["denominator"].values[position]
            exact = oracle_distances(image, numerator, denominator, full_scale)
            l1, l2 = found.values[:, sample, position]
            if exact is None:
                assert np.isnan([l1, l2]).all()
            else:
                assert l1 == float(exact[0])
                assert is_root(l2, exact[1])
                assert 0 <= l1 <= 1
                assert 0 <= l2 <= 1


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(1, 1), (28, 28), (9, 7, 3)])
def test_distances_are_those_of_torch_and_scipy(dtype, shape):
    rng = np.random.default_rng(5)
    largest = int(np.iinfo(dtype).max)
    images = rng.integers(0, largest + 1, (40, *shape)).astype(dtype)
    labels = (np.arange(40) % 3).astype(np.int32)
    ideals, found = measure(images, labels, ["a", "b", "c"], 16)
    scaled = torch.tensor(images.astype(np.float64)) / largest
    means = torch.tensor(ideals["prototype"].values) / largest
    for sample in range(40):
        for position in range(3):
            l1, l2 = found.values[:, sample, position]
            assert abs(l1 - F.l1_loss(scaled[sample], means[position]).item()) < 1e-6
            assert abs(l2 - F.mse_loss(scaled[sample], means[position]).sqrt().item()) < 1e-6
    x, m = scaled.reshape(40, -1).numpy(), means.reshape(3, -1).numpy()
    size = x.shape[1]
    np.testing.assert_allclose(found[0], cdist(x, m, "cityblock") / size, atol=1e-12)
    np.testing.assert_allclose(found[1], cdist(x, m) / size**0.5, atol=1e-12)


def small(chunks=2, **attributes):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 200, (7, 3, 4), np.uint8)
    labels = np.array([0, 1, 2, 0, 1, 2, 0], np.int32)
    return as_dataset(images, labels, ["a", "b", "c"], chunks, **attributes)


def ideals_of(dataset, classes=None):
    return pipeline.prototypes(pipeline.class_sums(dataset, classes))


def test_the_result_is_labelled():
    found = pipeline.distances(small(), ideals_of(small(), ["c", "a"]), metrics=["l2"])
    assert found.dims == ("metric", "sample", "class_name")
    assert found.shape == (1, 7, 2)
    assert found["metric"].values.tolist() == ["l2"]
    assert found["class_name"].values.tolist() == ["a", "c"]
    assert found["class_code"].values.tolist() == [0, 2]
    assert found["label"].values.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert found["sample"].values.tolist() == list(range(7))
    assert found.attrs["units"] == "1"


def test_metrics_come_in_the_order_asked():
    both = pipeline.distances(small(), ideals_of(small()), ["l2", "l1"])
    assert np.array_equal(both.values[::-1], pipeline.distances(small(), ideals_of(small())).values)


def test_nothing_is_computed_before_it_is_asked_for():
    with dask.config.set(scheduler=raise_if_computed):
        found = pipeline.distances(small(), ideals_of(small()))
        with pytest.raises(AssertionError, match="something was computed"):
            found.compute()


def test_distances_are_in_units_of_full_scale():
    _, at_255 = measure(*_parts(small()))
    _, at_200 = measure(*_parts(small()), full_scale=200)
    np.testing.assert_allclose(at_200.values, at_255.values * 255 / 200, rtol=1e-15)


def _parts(dataset):
    return dataset["image"].values, dataset["label"].values, dataset.attrs["class_names"]


def test_a_selection_of_images_and_of_prototypes_in_memory_is_measured_alike():
    whole = pipeline.distances(small(), ideals_of(small())).values
    part = pipeline.distances(small().isel(sample=[5, 1]), ideals_of(small()).compute())
    assert np.array_equal(part.values, whole[:, [5, 1]])
    assert part["sample"].values.tolist() == [5, 1]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda d: d.isel(x=slice(0, 3)), r"shape \(3, 3\).*expected those.*\(3, 4\)"),
        (lambda d: d.astype("uint16").assign_coords(label=d.label), "dtype uint16.*and uint8"),
        (lambda d: d.assign_attrs(full_scale=100), "full scale 100, expected .* 255"),
    ],
)
def test_images_unlike_the_prototypes_are_refused(wrong, message):
    with pytest.raises(ShapeError, match=message):
        pipeline.distances(wrong(small()), ideals_of(small()))


def test_an_unknown_metric_is_refused():
    with pytest.raises(SchemaError, match="metric 'l3', expected l1 or l2"):
        pipeline.distances(small(), ideals_of(small()), ["l3"])


def test_prototypes_of_more_images_than_any_arithmetic_holds_are_refused():
    ideals = ideals_of(small()).compute()
    ideals["denominator"] = ideals["denominator"] * 0 + 2**50
    with pytest.raises(ExactnessError, match="reach sums of"):
        pipeline.distances(small(), ideals).compute()


def test_labels_may_be_a_variable_as_well_as_a_coordinate():
    found = pipeline.distances(small().reset_coords("label"), ideals_of(small()))
    assert found.compute().identical(pipeline.distances(small(), ideals_of(small())).compute())


def check_bits(images, numerators, counts, dtype, full_scale):
    """Compare every device with the definition, and with each other."""
    bits = set()
    for device in DEVICES_HERE:
        reference = make_reference(numerators, counts, dtype, full_scale, device)
        found = distances_block(images, reference, ["l1", "l2"])
        bits.add(found.tobytes())
    assert len(bits) == 1
    for sample, position in np.ndindex(found.shape[1:]):
        l1, l2 = found[:, sample, position]
        exact = oracle_distances(images[sample], numerators[position], counts[position], full_scale)
        if exact is None:
            assert np.isnan([l1, l2]).all()
        else:
            assert abs(Fraction(float(l1)) - exact[0]) <= exact[0] * Fraction(3, 2**53)
            assert is_root(l2, exact[1])


@pytest.mark.parametrize(("dtype", "n", "name"), [
    ("uint8", 128, "digits"), ("uint8", 32_641, "digits"), ("uint8", 2_139_062_144, "digits"),
    ("uint8", 2_139_062_145, "float64"), ("uint8", 2**44, "int64"),
    ("uint16", 2, "float64"), ("uint16", 2**20, "float64"), ("uint16", 2**35, "int64"),
])  # fmt: skip
def test_every_arithmetic_has_the_same_bits_on_every_device(dtype, n, name):
    rng, largest = np.random.default_rng(4), int(np.iinfo(dtype).max)
    images = rng.integers(0, largest + 1, (9, 4, 4)).astype(dtype)
    images[:3] = largest - images[:3] % 16
    counts = np.array([n, n // 3 + 1, 1, 0])
    assert choose_arithmetic(n, 16, dtype).name == name
    numerators = rng.integers(0, largest + 1, (4, 4, 4)) * counts[:, None, None]
    numerators[0] = np.maximum(images[0] * counts[0] - 1, 0)  # as near as can be
    numerators[1] = images[1] * counts[1]
    check_bits(images, numerators, counts, dtype, largest)
    check_bits(images, np.maximum(numerators - 1, 0), counts, dtype, 200)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("samples", [0, 1, 4, 5, 13, 40])
def test_any_number_of_threads_gives_the_same_bits(monkeypatch, device, dtype, samples):
    rng, largest = np.random.default_rng(samples), int(np.iinfo(dtype).max)
    images = rng.integers(0, largest + 1, (samples, 5, 3)).astype(dtype)
    counts = np.array([9000, 0, 7])
    numerators = rng.integers(0, largest + 1, (3, 5, 3)) * counts[:, None, None]
    reference = make_reference(numerators, counts, dtype, largest, device)
    alone = distances_block(images, reference, ["l2", "l1"])
    assert alone.shape == (2, samples, 3)
    assert np.isnan(alone[:, :, 1]).all()
    assert not np.isnan(alone[:, :, [0, 2]]).any()
    monkeypatch.setattr("pipeline.ops.distance_blocks._BLOCK_BYTES", 0)  # four samples at a time
    for threads in (1, 2, 3, 4):
        found = distances_block(images, reference, ["l2", "l1"], threads)
        assert found.tobytes() == alone.tobytes()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize(("classes", "spread"), [(3, 200), (40, 200), (40, 1), (40, 0), (1, 9)])
def test_the_nearest_alone_is_the_first_least_of_all_distances(device, dtype, classes, spread):
    # far from each other; near to each other, where a bound leaves most; and all equal
    rng, largest = np.random.default_rng(classes), int(np.iinfo(dtype).max)
    images = rng.integers(0, 256, (700, 6, 11)).astype(dtype)
    counts = np.full(classes, 100)
    middle = rng.integers(0, 255 - spread, (1, 6, 11)) * 100
    numerators = middle + rng.integers(0, 100 * spread + 1, (classes, 6, 11))
    counts[1:2], numerators[1:2] = 0, 0
    reference = make_reference(numerators, counts, dtype, largest, device)
    for metric in ("l1", "l2"):
        every = distances_block(images, reference, [metric])[0]
        positions, nearest = nearest_block(images, reference, metric, 2)
        assert np.array_equal(positions, np.nanargmin(every, axis=1))
        assert nearest.tobytes() == np.nanmin(every, axis=1).tobytes()


def test_no_samples_give_an_empty_table():
    found = pipeline.distances(small().isel(sample=slice(0)), ideals_of(small())).compute()
    assert found.shape == (2, 0, 3)


def test_prototypes_of_the_wrong_kind_are_refused():
    ideals = ideals_of(small())
    with pytest.raises(SchemaError, match="'numerator' has dtype float64, expected int64"):
        pipeline.distances(small(), ideals.assign(numerator=ideals["prototype"]))
    with pytest.raises(SchemaError, match=r"'numerator' has dim.*\.isel\(class_name=\[0\]\)"):
        pipeline.distances(small(), ideals.isel(class_name=0))
    with pytest.raises(SchemaError, match="'denominator' has dtype int32"):
        pipeline.distances(small(), ideals.assign(denominator=ideals["denominator"].astype("i4")))
