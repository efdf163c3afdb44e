"""Medians: those of NumPy, exact halves, for any chunks and device."""

from __future__ import annotations

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
    labelled_blocks,
    oracle_sums,
    raise_if_computed,
)

import pipeline
from pipeline.core.classes import select_classes
from pipeline.core.errors import LabelError, SchemaError
from pipeline.kernels import backends
from pipeline.ops.medians import (
    AROUND,
    first_bytes,
    histograms_block,
    images_counted,
    low_histograms_block,
    median_numerators,
    middle_ranks,
    select_bytes,
)
from pipeline.ops.prototypes import flat_images


def oracle_medians(images, labels, classes):
    """Twice the medians of each class by NumPy, and 0 for a class without images."""
    found = np.zeros((classes, *images.shape[1:]))
    for code in range(classes):
        if (labels == code).any():
            found[code] = 2 * np.median(images[labels == code], axis=0)
    return found


@given(data=st.data(), block=labelled_blocks(max_samples=12))
def test_medians_are_those_of_numpy_for_any_chunks_and_device(data, block):
    images, labels, names = block
    doubled = oracle_medians(images, labels, len(names))
    *_, counts = oracle_sums(images, labels, len(names))
    chunks = data.draw(chunkings(len(images)))
    for device in DEVICES_HERE:
        dataset = as_dataset(images, labels, names, chunks)
        found = pipeline.class_medians(dataset, device=device).compute()
        assert found["numerator"].dtype == found["denominator"].dtype == np.int64
        assert np.array_equal(found["numerator"], doubled)
        assert np.array_equal(found["denominator"], np.where(counts, 2, 0))
        assert np.array_equal(found["count"], counts)
        assert np.isnan(found["prototype"].values[counts == 0]).all()
        assert np.array_equal(found["prototype"].values[counts > 0], doubled[counts > 0] / 2)
        means = pipeline.prototypes(pipeline.class_sums(dataset, device=device))
        assert np.array_equal(found["std"], means["std"], equal_nan=True)
        for code in np.flatnonzero(counts):
            expected = images[labels == code].std(axis=0)
            np.testing.assert_allclose(found["std"].values[code], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("values", [
    [255, 256], [255, 256, 257], [0, 65535], [511, 512, 512, 511], [65279, 65280], [65535] * 4,
    [0, 255, 256, 65535], [256, 255, 0], [300, 300, 301, 301], [1, 65535, 65534, 0], [7],
    [0, 0, 1], [127, 128], [254, 255], [512, 512, 767, 767, 768, 768],
])  # fmt: skip
def test_the_two_in_the_middle_may_lie_on_both_sides_of_a_border(device, dtype, values):
    images = np.array(values)[:, None, None].astype(dtype)
    labels = np.zeros(len(values), np.int32)
    found = pipeline.class_medians(as_dataset(images, labels, ["a"], 2), device=device)
    expected = 2 * np.median(images, axis=0)[0, 0]
    assert found["numerator"].values.tolist() == [[[expected]]]


def small(chunks=2, dtype="uint8", **attributes):
    rng = np.random.default_rng(0)
    images = rng.integers(0, np.iinfo(dtype).max + 1, (7, 3, 4)).astype(dtype)
    labels = np.array([0, 1, 2, 0, 1, 2, 0], np.int32)
    return as_dataset(images, labels, ["a", "b", "c"], chunks, **attributes)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_images_that_are_left_out_and_unlabelled_do_not_count(dtype):
    images = small(dtype=dtype)
    images["label"] = images["label"].copy(data=np.array([0, 1, -1, 0, 1, 2, -1], np.int32))
    found = pipeline.class_medians(images, ["c", "a"]).compute()
    assert found["class_name"].values.tolist() == ["a", "c"]
    assert found["count"].values.tolist() == [2, 1]
    pixels = images["image"].values.astype(int)
    assert np.array_equal(found["numerator"], [pixels[0] + pixels[3], 2 * pixels[5]])


def test_the_result_is_labelled_as_means_are():
    found = pipeline.class_medians(small(full_scale=200), ["c", "a"])
    means = pipeline.prototypes(pipeline.class_sums(small(full_scale=200), ["c", "a"]))
    assert found.attrs == {**means.attrs, "prototypes": "median"}
    assert list(found.variables) == list(means.variables)
    for name, variable in found.variables.items():
        assert (variable.dims, variable.dtype) == (means[name].dims, means[name].dtype)
        assert variable.attrs == means[name].attrs


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_nothing_is_computed_before_it_is_asked_for(dtype):
    with dask.config.set(scheduler=raise_if_computed):
        found = pipeline.class_medians(small(dtype=dtype))
        with pytest.raises(AssertionError, match="something was computed"):
            found["numerator"].compute()


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_medians_alone_need_no_sums(monkeypatch, dtype):
    monkeypatch.setattr("pipeline.ops.prototypes.class_sums_block", raise_if_computed)
    found = pipeline.class_medians(small(dtype=dtype))
    assert found["count"].values.tolist() == [3, 2, 2]
    pixels = small(dtype=dtype)["image"].values
    labels = small()["label"].values
    assert np.array_equal(found["numerator"], oracle_medians(pixels, labels, 3))
    assert not np.isnan(found["prototype"]).any()
    if dtype == "uint8":  # the counts say all
        assert not np.isnan(found["std"]).any()
    else:
        with pytest.raises(AssertionError, match="something was computed"):
            found["std"].compute()


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("change", [
    lambda d: d.chunk({"y": 2, "x": 1}), lambda d: d.compute(), lambda d: d.reset_coords("label"),
    lambda d: d.chunk({"sample": (0, 3, 0, 4, 0)}), lambda d: d.chunk({"sample": 7}),
], ids=["across pixels", "in memory", "label a variable", "empty chunks", "one chunk"])  # fmt: skip
def test_other_forms_of_the_same_images_give_the_same_medians(dtype, change):
    expected = pipeline.class_medians(small(dtype=dtype)).compute()
    assert pipeline.class_medians(change(small(dtype=dtype))).compute().identical(expected)


def test_an_image_set_without_images_has_no_medians():
    for dtype in ("uint8", "uint16"):
        found = pipeline.class_medians(small(dtype=dtype).isel(sample=slice(0))).compute()
        assert found["denominator"].values.tolist() == [0, 0, 0]
        assert not found["numerator"].any()
        assert np.isnan(found["prototype"]).all()


def test_what_is_wrong_is_refused_as_for_sums():
    with pytest.raises(SchemaError, match="no 'image', expected image"):
        pipeline.class_medians(small().rename(image="pixels"))
    with pytest.raises(LabelError, match="'B' is not in the image set; did you mean 'b'"):
        pipeline.class_medians(small(), classes=["B"])
    wrong = small(chunks=(2, 2, 3))
    wrong["label"] = wrong["label"].copy(data=np.array([0, 1, 2, 0, 1, 9, 0], np.int32))
    with pytest.raises(LabelError, match="sample 5 has label 9"):
        pipeline.class_medians(wrong)["numerator"].compute()


def test_distances_to_medians_are_those_to_their_halves():
    dataset, ideals = small(), pipeline.class_medians(small())
    found = pipeline.distances(dataset, ideals).values
    x, p = flat(dataset["image"].values / 255), flat(ideals["prototype"].values / 255)
    np.testing.assert_allclose(found[0], np.abs(x[:, None] - p).mean(axis=2), rtol=1e-12)
    np.testing.assert_allclose(found[1], ((x[:, None] - p) ** 2).mean(axis=2) ** 0.5, rtol=1e-12)


# -- block by block, as a job goes


@given(block=labelled_blocks(max_samples=12), cut=st.integers(0, 12), threads=st.integers(1, 3))
def test_counts_of_blocks_add_up_to_medians(block, cut, threads):
    images, labels, names = block
    use, positions = backends.load("cpu", threads), select_classes(names).positions(labels)
    parts = [
        (use, flat_images(images[part]), positions[part], len(names))
        for part in (slice(None, cut), slice(cut, None))
    ]
    counts = sum(histograms_block(*part) for part in parts)
    assert counts.dtype == np.uint32
    assert np.array_equal(images_counted(counts), oracle_sums(images, labels, len(names))[2])
    high, rest = first_bytes(counts)
    if images.dtype == np.uint8:
        numerators = median_numerators(high)
    else:
        more = sum(low_histograms_block(*part, high) for part in parts)
        low, _ = select_bytes(more, rest)
        numerators = median_numerators(high, low)
    assert np.array_equal(numerators, flat(oracle_medians(images, labels, len(names))))


@pytest.mark.parametrize(("images", "ranks"), [
    (0, (0, 0)), (1, (0, 0)), (2, (0, 1)), (3, (1, 1)), (4, (1, 2)), (2**32 - 1, (2**31 - 1,) * 2),
])  # fmt: skip
def test_the_middle_of_so_many(images, ranks):
    counts = np.zeros((1, 2, 256), np.uint32)
    counts[0, :, 9] = images
    found = middle_ranks(counts)
    assert found.dtype == np.int64
    assert found.tolist() == [[[rank, rank]] for rank in ranks]
    around = middle_ranks(counts, AROUND)[:, 0, 0].tolist()
    last = max(images - 1, 0)
    assert around == [max(ranks[1] - 1, 0), *ranks, min(ranks[0] + 1, last)]


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_medians_made_to_leave_one_out_are_the_same(dtype):
    plain = pipeline.class_medians(small(dtype=dtype)).compute()
    found = pipeline.class_medians(small(dtype=dtype), leave_one_out=True).compute()
    assert (
        found.drop_vars(["rise", "fall"])
        .drop_attrs(deep=False)
        .identical(plain.drop_attrs(deep=False))
    )
    assert found.attrs == {**plain.attrs, "shifts": ["rise", "fall"]}
    assert (found["rise"] >= 0).all()
    assert (found["fall"] >= 0).all()
