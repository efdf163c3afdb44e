"""The search kernels: the lists of NumPy, and bounds that exclude nothing that is near enough."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_checks_for_tests import METRICS, check_within, oracle_lists, oracle_numerators, search
from strategies import SEARCHING, image_pairs

from pipeline.core.exact import NOWHERE
from pipeline.kernels import cpu_nearest, sketches
from pipeline.kernels.search_data import prepare_search


@pytest.mark.parametrize("device", SEARCHING)
@given(data=st.data(), pair=image_pairs(), k=st.integers(1, 12), metric=st.sampled_from(METRICS))
def test_lists_are_those_of_a_stable_sort_for_any_parts(device, data, pair, k, metric):
    queries, references = pair
    cuts = sorted(data.draw(st.lists(st.integers(0, len(references)), max_size=3)))
    distances, found = search(queries, references, metric, k, device, cuts=cuts)
    expected = oracle_lists(oracle_numerators(queries, references, metric), k)
    assert np.array_equal(distances, expected[0])
    assert np.array_equal(found, expected[1])


@pytest.mark.parametrize("device", SEARCHING)
@given(pair=image_pairs(), metric=st.sampled_from(METRICS))
def test_a_reference_that_is_left_out_is_in_no_list(device, pair, metric):
    _, references = pair
    _, found = search(
        references, references, metric, len(references), device, skip=np.arange(len(references))
    )
    numerators = oracle_numerators(references, references, metric)
    np.fill_diagonal(numerators, NOWHERE)
    assert np.array_equal(found, oracle_lists(numerators, len(references))[1])


@given(pair=image_pairs(), metric=st.sampled_from(METRICS))
def test_the_first_of_more_neighbours_are_the_nearest(pair, metric):
    few, many = (search(*pair, metric, k) for k in (3, 9))
    assert np.array_equal(few[0], many[0][:, :3])
    assert np.array_equal(few[1], many[1][:, :3])


@pytest.mark.parametrize("device", SEARCHING)
@given(data=st.data(), pair=image_pairs(), metric=st.sampled_from(METRICS))
def test_pairs_are_all_up_to_the_radius_in_order(device, data, pair, metric):
    queries, references = pair
    numerators = oracle_numerators(queries, references, metric)
    values = [0, *numerators.reshape(-1).tolist()]
    most = data.draw(st.sampled_from(values)) - data.draw(st.integers(0, 1))
    check_within(device, queries, references, metric, most, numerators)


@given(data=st.data(), pair=image_pairs(), metric=st.sampled_from(METRICS))
def test_a_sketch_never_exceeds_the_distance(data, pair, metric):
    queries, references = pair
    shape = references.shape[1:]
    # sketched as other images ask for, whatever is cut off by it
    model = data.draw(st.sampled_from([queries, references, references // 5]))
    sketcher = sketches.make_sketcher(model.reshape(len(model), -1), shape, metric)
    mine = sketcher.sketch(queries.reshape(len(queries), -1))
    theirs = sketcher.sketch(references.reshape(len(references), -1))
    numerators = oracle_numerators(queries, references, metric)
    scales = sketcher.coarse, sketcher.fine
    for a, b, scale in zip(mine, theirs, scales, strict=True):
        between = a.values[:, None].astype(np.int64) - b.values[None]
        rests = a.rests[:, None].astype(np.float64) + b.rests[None]
        if metric == "l1":
            assert (scale.unit * np.abs(between).sum(2) <= numerators + rests).all()
        else:
            bound = scale.unit * np.sqrt((between**2).sum(2))
            assert (bound <= np.sqrt(numerators) * (1 + 1e-12) + rests).all()
        assert np.array_equal(a.norms, (a.values.astype(np.int64) ** 2).sum(1))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_images_that_sit_on_the_bound_are_in_the_lists(metric, dtype):
    """Each differs from the query by the same amount in each pixel: sketch and image are as far."""
    largest = np.iinfo(dtype).max
    base = np.full((1, 16, 16), largest // 2, dtype)
    offsets = np.arange(1, 1200) % 90
    references = (base + offsets[:, None, None].astype(dtype)).astype(dtype)
    distances, found = search(base, references, metric, 40)
    expected = oracle_lists(oracle_numerators(base, references, metric), 40)
    assert np.array_equal(distances, expected[0])
    assert np.array_equal(found, expected[1])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", ["blobs", "noise", "sorted", "repeated"])
def test_more_references_than_a_tile(metric, kind):
    rng = np.random.default_rng(5)
    grid = np.arange(12)
    centres = rng.uniform(0, 12, (5000, 2))
    blobs = 255 * np.exp(-((grid[:, None] - centres[:, 0, None, None]) ** 2 / 9)
                         - (grid - centres[:, 1, None, None]) ** 2 / 9)  # fmt: skip
    images = {
        "blobs": lambda: blobs,
        "noise": lambda: rng.integers(0, 256, (5000, 12, 12)),
        "sorted": lambda: blobs[np.argsort(centres[:, 0])],
        "repeated": lambda: blobs[rng.integers(0, 60, 5000)],
    }[kind]().astype(np.uint8)
    queries, references = images[::100], images[1:]
    distances, found = search(queries, references, metric, 10)
    expected = oracle_lists(oracle_numerators(queries, references, metric), 10)
    assert np.array_equal(distances, expected[0])
    assert np.array_equal(found, expected[1])


def test_sketches_that_exclude_little_are_left_alone():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (40_000, 28, 28), np.uint8)
    prepared = prepare_search(noise.reshape(len(noise), -1), (28, 28), "l1")
    lists = np.full((2, 8, 5), NOWHERE)
    seen = cpu_nearest.nearest(noise[:8].reshape(8, -1), prepared, np.full(8, -1), *lists)
    assert seen[0] == 8 * len(noise)
    assert seen[3] > 0.8 * seen[0]


def test_sketches_that_exclude_much_are_used():
    rng = np.random.default_rng(0)
    flat = rng.integers(0, 256, (20_000, 1, 1)) + rng.integers(0, 4, (20_000, 28, 28))
    images = flat.clip(0, 255).astype(np.uint8)
    prepared = prepare_search(images.reshape(len(images), -1), (28, 28), "l1")
    lists = np.full((2, 8, 5), NOWHERE)
    seen = cpu_nearest.nearest(images[:8].reshape(8, -1), prepared, np.full(8, -1), *lists)
    assert seen[3] == 0
    assert seen[1] < 0.1 * seen[0]


def test_a_partition_holds_each_pixel_once():
    rng = np.random.default_rng(1)
    weights = rng.random((9, 13)) + 0.01
    boxes = sketches.partition_pixels(weights, 40)
    covered = np.zeros(weights.shape, int)
    for top, bottom, left, right in boxes:
        covered[top:bottom, left:right] += 1
    assert (covered == 1).all()
    assert len(boxes) == 40
    assert len(sketches.partition_pixels(weights, 500)) == weights.size
