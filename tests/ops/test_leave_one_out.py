"""Images measured without themselves: as if each was deleted and its prototype made anew."""

from __future__ import annotations

from fractions import Fraction

import dask
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import (
    DEVICES_HERE,
    as_dataset,
    check_left_out,
    chunkings,
    labelled_blocks,
    raise_if_computed,
)

import pipeline
from pipeline.core.errors import ExactnessError, SchemaError
from pipeline.core.exact import check_square_bound
from pipeline.ops.distance_blocks import distances_block, make_reference
from pipeline.ops.leave_one_out import others_of

KINDS = ["mean", "median"]


def prototypes_of(dataset, kind, classes=None, device="cpu"):
    if kind == "median":
        return pipeline.class_medians(dataset, classes, device, leave_one_out=True)
    return pipeline.prototypes(pipeline.class_sums(dataset, classes, device))


def measure(block, kind, chunks=None, device="cpu", leave_one_out=True, classes=None):
    dataset = as_dataset(*block, chunks)
    ideals = prototypes_of(dataset, kind, classes, device)
    return pipeline.distances(dataset, ideals, device=device, leave_one_out=leave_one_out)


@pytest.mark.parametrize("kind", KINDS)
@given(block=labelled_blocks(max_samples=8))
def test_as_if_the_image_was_deleted_and_the_prototype_made_anew(kind, block):
    plain = measure(block, kind, leave_one_out=False)
    found = measure(block, kind)
    assert found.attrs == plain.attrs
    assert list(found.coords) == list(plain.coords)
    check_left_out(*block[:2], kind, found.values, plain.values)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data(), block=labelled_blocks(max_samples=12))
def test_any_chunks_and_device_give_the_same_bits(kind, data, block):
    expected = measure(block, kind).values.tobytes()
    chunks = data.draw(chunkings(len(block[0])))
    for device in DEVICES_HERE:
        assert measure(block, kind, chunks, device).values.tobytes() == expected


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("values", [
    [255, 256], [255, 256, 257], [0, 65535], [511, 512, 512, 511], [65279, 65280], [65535] * 4,
    [0, 255, 256, 65535], [256, 255, 0], [300, 300, 301, 301], [1, 65535, 65534, 0], [7],
    [0, 300, 65535], [255, 511, 767, 1023, 1279], [5, 5, 5], [5, 5, 9], [5, 9, 9], [1, 5, 5, 5, 9],
    [0, 0, 1], [127, 128], [512, 512, 767, 767, 768, 768], [1, 2, 3, 4, 5, 6, 7],
])  # fmt: skip
def test_medians_of_the_others_may_lie_on_any_side_of_a_border(dtype, values):
    images = np.array(values)[:, None, None].astype(dtype)
    block = images, np.zeros(len(values), np.int32), ["a"]
    plain = measure(block, "median", leave_one_out=False)
    check_left_out(*block[:2], "median", measure(block, "median").values, plain.values)


@pytest.mark.parametrize("kind", KINDS)
def test_prototypes_of_a_selection_in_any_order_leave_out_their_own(kind):
    rng = np.random.default_rng(3)
    block = rng.integers(0, 256, (30, 3, 4)).astype(np.uint8), rng.integers(-1, 4, 30), list("abcd")
    block = block[0], block[1].astype(np.int32), block[2]
    expected = measure(block, kind).sel(class_name=["d", "b"])
    dataset = as_dataset(*block, 7)
    chosen = prototypes_of(dataset, kind, ["b", "d"]).isel(class_name=[1, 0])
    found = pipeline.distances(dataset, chosen, leave_one_out=True)
    assert found.values.tobytes() == expected.values.tobytes()


def test_an_image_alone_in_its_class_is_never_predicted_as_it():
    images = np.array([9, 1, 2, 3], np.uint8)[:, None, None]
    block = images, np.array([0, 1, 1, -1], np.int32), ["alone", "pair", "empty"]
    for kind in KINDS:
        distances = measure(block, kind)
        assert np.isnan(distances.values[:, 0, [0, 2]]).all()
        assert np.isfinite(distances.values[:, 1:, :2]).all()
        found = pipeline.predict(distances).compute()
        assert found["predicted"].values[:, 0].tolist() == [1, 1]
        assert found["label_rank"].values[:, 0].tolist() == [-1, -1]
        assert np.isnan(found["label_distance"].values[:, 0]).all()
        assert np.isnan(found["margin"].values[:, 0]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_computed_before_it_is_asked_for(kind):
    block = np.zeros((5, 2, 2), np.uint8), np.zeros(5, np.int32), ["a"]
    with dask.config.set(scheduler=raise_if_computed):
        found = measure(block, kind, 2)
        with pytest.raises(AssertionError, match="something was computed"):
            found.compute()


def test_prototypes_that_do_not_tell_are_refused():
    dataset = as_dataset(np.zeros((5, 2, 2), np.uint8), np.zeros(5, np.int32), ["a"])
    with pytest.raises(SchemaError, match="expected means, or medians with 'rise' and 'fall'"):
        pipeline.distances(dataset, pipeline.class_medians(dataset), leave_one_out=True)
    means = prototypes_of(dataset, "mean")
    del means.attrs["prototypes"]
    with pytest.raises(SchemaError, match="do not tell what they are without one image"):
        pipeline.distances(dataset, means, leave_one_out=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threads", [1, 3])
def test_a_block_measures_only_those_without_themselves_that_it_is_told(kind, threads):
    rng = np.random.default_rng(5)
    images = rng.integers(0, 65536, (1100, 4, 4)).astype(np.uint16)
    labels = rng.integers(0, 3, 1100).astype(np.int32)
    dataset = as_dataset(images, labels, list("abc"))
    ideals = prototypes_of(dataset, kind).compute()
    fractions = ideals["numerator"].values, ideals["denominator"].values
    reference = make_reference(*fractions, "uint16", 65535, "cpu", others_of(ideals))
    own = np.where(np.arange(1100) % 2, labels, -1)
    found = distances_block(images, reference, ["l1", "l2"], threads, own)
    for leave_one_out in (False, True):
        whole = pipeline.distances(dataset, ideals, leave_one_out=leave_one_out).values
        mine = slice(int(leave_one_out), None, 2)
        assert found[:, mine].tobytes() == whole[:, mine].tobytes()
    plain = distances_block(images, reference, ["l1", "l2"], threads)
    assert (plain != distances_block(images, reference, ["l1", "l2"], own=labels)).any()


def test_of_many_images_a_mean_differs_in_the_last_places():
    """Rounding the plain distance and then correcting it is not the same."""
    rng = np.random.default_rng(8)
    images = rng.integers(0, 256, (999, 5, 7)).astype(np.uint8)
    block = images, np.zeros(999, np.int32), ["a"]
    found, plain = (
        measure(block, "mean", leave_one_out=way).values[0, :, 0] for way in (True, False)
    )
    sums = images.astype(np.int64).sum(axis=0)
    counted = np.abs(999 * images.astype(np.int64) - sums).sum(axis=(1, 2)).tolist()
    assert found.tolist() == [float(Fraction(n, 998 * 35 * 255)) for n in counted]
    assert (found != plain * 999 / 998).any()


@pytest.mark.parametrize(("dtype", "pixels"), [("uint16", 2**29), ("uint8", 2**45)])
def test_sums_of_squares_of_medians_are_proved_to_fit(dtype, pixels):
    check_square_bound(pixels - 1, dtype)
    with pytest.raises(ExactnessError, match="beyond int64"):
        check_square_bound(pixels * 2, dtype)
