"""Class sums and prototypes: exact for any chunks, lazy, refused with a reason."""

from __future__ import annotations

from fractions import Fraction

import dask
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import (
    DEVICES,
    DEVICES_HERE,
    as_dataset,
    chunkings,
    flat,
    is_root,
    labelled_blocks,
    oracle_sums,
    raise_if_computed,
)

import pipeline
from pipeline.core.classes import select_classes
from pipeline.core.errors import EmptyClassError, ExactnessError, LabelError, SchemaError
from pipeline.kernels import backends
from pipeline.ops.prototypes import class_sums_block, flat_images, label_sums, refuse_empty_classes


def exact_variance(values):
    """The variance of a list of integers, as a fraction."""
    n, total = len(values), sum(values)
    return Fraction(n * sum(value * value for value in values) - total * total, n * n)


@given(data=st.data(), block=labelled_blocks())
def test_sums_means_and_deviations_are_exact_for_any_chunks_and_device(data, block):
    images, labels, names = block
    sums, squares, counts = oracle_sums(images, labels, len(names))
    chunks = data.draw(chunkings(len(images)))
    bits = set()
    for device in DEVICES_HERE:
        lazy = pipeline.class_sums(as_dataset(images, labels, names, chunks), device=device)
        found = pipeline.prototypes(lazy).assign(lazy[["pixel_sum", "pixel_square_sum"]]).compute()
        assert np.array_equal(found["pixel_square_sum"], squares)
        assert np.array_equal(found["pixel_sum"], sums)
        assert np.array_equal(found["numerator"], sums)
        assert np.array_equal(found["denominator"], counts)
        assert np.array_equal(found["count"], counts)
        for code, count in enumerate(counts.tolist()):
            mean, spread = found["prototype"].values[code], found["std"].values[code]
            if not count:
                assert np.isnan([mean, spread]).all()
                continue
            assert np.array_equal(mean, sums[code] / count)
            of_class = images[labels == code].astype(object)
            for place in np.ndindex(spread.shape):
                assert is_root(spread[place], exact_variance(of_class[:, *place].tolist()))
        bits.add(found["std"].values.tobytes())
    assert len(bits) == 1


@given(block=labelled_blocks(), cut=st.integers(0, 9), threads=st.integers(1, 3))
def test_sums_of_blocks_add_up_to_sums_and_prototypes(block, cut, threads):
    images, labels, names = block
    selection = select_classes(names)
    use, positions = backends.load("cpu", threads), selection.positions(labels)
    packed = sum(
        class_sums_block(use, flat_images(images[part]), positions[part], len(names))
        for part in (slice(None, cut), slice(cut, None))
    )
    sums, squares, counts = oracle_sums(images, labels, len(names))
    assert packed.dtype == np.int64
    expected = np.concatenate([flat(sums), flat(squares), counts[:, None]], axis=1)
    assert np.array_equal(packed, expected)
    dataset = as_dataset(images, labels, names)
    assert label_sums(packed, selection, dataset).identical(pipeline.class_sums(dataset).compute())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_the_deviation_of_many_bright_images_is_that_of_numpy(device, dtype):
    # n * sum x*x is beyond 2**63 for 16 bits
    rng = np.random.default_rng(6)
    largest = np.iinfo(dtype).max
    images = (largest - rng.integers(0, 3, (70_000, 1, 2))).astype(dtype)
    dataset = as_dataset(images, np.zeros(70_000, np.int32), ["a"], 30_000)
    found = pipeline.prototypes(pipeline.class_sums(dataset, device=device)).compute()
    for pixel in range(2):
        variance = exact_variance(images[:, 0, pixel].tolist())
        assert is_root(found["std"].values[0, 0, pixel], variance)
    np.testing.assert_allclose(found["std"][0], images.std(axis=0), rtol=1e-9)


def small(chunks=2, **attributes):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (7, 3, 4), np.uint8)
    return as_dataset(
        images, np.array([0, 1, 2, 0, 1, 2, 0], np.int32), ["a", "b", "c"], chunks, **attributes
    )


def test_the_result_is_labelled():
    sums = pipeline.class_sums(small(), classes=["c", "a"])
    assert sums["pixel_sum"].dims == sums["pixel_square_sum"].dims == ("class_name", "y", "x")
    assert sums["class_name"].values.tolist() == ["a", "c"]
    assert sums["class_code"].values.tolist() == [0, 2]
    assert {sums[name].dtype for name in sums} == {np.dtype(np.int64)}
    assert set(sums) == {"pixel_sum", "pixel_square_sum", "count"}
    found = pipeline.prototypes(sums)
    assert found.attrs == {
        "class_names": ["a", "b", "c"], "full_scale": 255, "pixel_dtype": "uint8",
        "prototypes": "mean",
    }  # fmt: skip
    assert found["count"].values.tolist() == [3, 2]
    assert found["std"].dims == found["prototype"].dims == ("class_name", "y", "x")
    assert found["std"].dtype == found["prototype"].dtype == np.float64
    assert "standard deviation" in found["std"].attrs["long_name"]


def test_nothing_is_computed_before_it_is_asked_for():
    with dask.config.set(scheduler=raise_if_computed):
        found = pipeline.prototypes(pipeline.class_sums(small()))
        with pytest.raises(AssertionError, match="something was computed"):
            found.compute()


def test_images_without_dask_are_taken_too():
    lazy = pipeline.class_sums(small()).compute()
    assert lazy.identical(pipeline.class_sums(small(chunks=None)).compute())


def test_chunks_across_pixels_are_put_together():
    cut = small().chunk({"y": 2, "x": 1})
    assert pipeline.class_sums(cut).compute().identical(pipeline.class_sums(small()).compute())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda d: d.rename(image="pixels"), "no 'image', expected image"),
        (lambda d: d.drop_vars("label"), "no 'label', expected label"),
        (lambda d: d.isel(y=0), r"expected \('sample', 'y', 'x'\) or .*'channel'"),
        (lambda d: d.astype("float32"), "dtype float32, expected uint8 or uint16"),
        (lambda d: d.assign_coords(label=d.label.astype("str")), "dtype <U.*, expected codes"),
    ],
)
def test_a_wrong_data_set_is_refused_at_the_door(wrong, message):
    with pytest.raises(SchemaError, match=message):
        pipeline.class_sums(wrong(small()))


def test_an_unknown_class_is_refused_with_the_nearest():
    with pytest.raises(LabelError, match="'B' is not in the image set; did you mean 'b'"):
        pipeline.class_sums(small(), classes=["B"])


@pytest.mark.parametrize("label", [3, -2, 2**31 - 1])
def test_a_label_outside_the_classes_is_an_error_when_it_is_met(label):
    wrong = small()
    wrong["label"] = wrong["label"].copy(data=np.array([0, 1, 2, 0, 1, label, 0], np.int32))
    lazy = pipeline.class_sums(wrong)
    with pytest.raises(LabelError, match=f"has label {label}, expected 0 to 2"):
        lazy.compute()


def test_more_images_than_int64_holds_the_squares_of_are_refused(monkeypatch):
    monkeypatch.setattr("pipeline.core.exact.INT64_LIMIT", 7 * 255**2)
    with pytest.raises(ExactnessError, match="sums of squared pixels of 7 images"):
        pipeline.class_sums(small())
    pipeline.class_sums(small().isel(sample=slice(6)))


def test_classes_without_images_are_named():
    refuse_empty_classes(["a", "b"], [1, 2], "train")
    names = [f"c{number}" for number in range(9)]
    with pytest.raises(EmptyClassError, match=r"'c0', 'c1', 'c2', 'c3', 'c4', .* in split 'train'"):
        refuse_empty_classes(names, [0] * 9, "train")


def test_labels_may_be_a_variable_as_well_as_a_coordinate():
    found = pipeline.class_sums(small().reset_coords("label")).compute()
    assert found.identical(pipeline.class_sums(small()).compute())


def test_images_and_labels_may_be_cut_in_different_places():
    images = small(chunks=(3, 4))
    images["label"] = small(chunks=None)["label"].chunk({"sample": (2, 2, 3)})
    found = pipeline.class_sums(images).compute()
    assert found.identical(pipeline.class_sums(small()).compute())


def test_empty_chunks_add_nothing():
    found = pipeline.class_sums(small(chunks=(0, 3, 0, 4, 0))).compute()
    assert found.identical(pipeline.class_sums(small()).compute())


def test_a_wrong_label_is_named_by_its_sample_in_the_data_set_not_in_its_chunk():
    wrong = small()
    wrong["label"] = wrong["label"].copy(data=np.array([0, 1, 2, 0, 1, 9, 0], np.int32))
    with pytest.raises(LabelError, match="sample 5 has label 9"):
        pipeline.class_sums(wrong.chunk({"sample": (2, 2, 3)})).compute()


@pytest.mark.parametrize("name", ["pixel_sum", "pixel_square_sum", "count"])
def test_sums_of_the_wrong_kind_are_refused(name):
    sums = pipeline.class_sums(small())
    with pytest.raises(SchemaError, match=f"'{name}' has dtype float64"):
        pipeline.prototypes(sums.assign({name: sums[name].astype(float)}))
    with pytest.raises(SchemaError, match=f"'{name}' has dimensions"):
        pipeline.prototypes(sums.assign({name: sums[name].expand_dims("z")}))
