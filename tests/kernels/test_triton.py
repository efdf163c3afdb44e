"""The kernels of a GPU, on the CPU one program after the other: the integers of NumPy.

The same checks as in `test_kernels` and `test_nearest`, with fewer examples, since interpreting a
program takes a millisecond for each of its lines; and the edges that only these kernels have.
On a machine with a GPU the other tests run them there, and these are left out.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks_for_tests import (
    METRICS,
    check_classes,
    check_distances,
    check_search,
    oracle_lists,
    oracle_numerators,
    search,
    some_prototypes,
)
from strategies import HAS_CUDA, flat, image_pairs, labelled_blocks

from pipeline.core import accumulators
from pipeline.core.errors import ConfigError
from pipeline.core.exact import NOWHERE, Arithmetic, choose_arithmetic
from pipeline.kernels import backends

DEVICE = "triton:cpu"
pytestmark = pytest.mark.skipif(HAS_CUDA, reason="this machine has a GPU, where all tests run them")
few = settings(max_examples=2)
TYPES = pytest.mark.parametrize("dtype", [np.uint8, np.uint16])


@few
@given(block=labelled_blocks(), seed=st.integers(0, 2**32 - 1))
def test_sums_and_histograms_are_those_of_numpy(block, seed):
    images, labels, names = block
    x = flat(images)
    high = np.random.default_rng(seed).integers(0, 256, (len(names), x.shape[1]), np.uint8)
    if len(x):
        high[:] = np.where(high % 2, high, x[0] >> 8)
    check_classes(DEVICE, x, labels.astype(np.int64), len(names), 1, high)


@pytest.mark.parametrize(
    ("arithmetic", "most"),
    [(Arithmetic("digits", 2**40, 1), 128), (Arithmetic("digits", 2**40, 2), 32_640),
     (Arithmetic("digits", 2**50, 4), 2_139_062_144), (Arithmetic("int64", 2**60), 10**9)],
)  # fmt: skip
@few
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_distances_are_counted_as_numpy_counts_them(arithmetic, most, data, seed):
    dtypes = [np.uint8] if arithmetic.name == "digits" else [np.uint8, np.uint16]
    images, _, names = data.draw(labelled_blocks(dtypes=dtypes))
    x, rng = flat(images), np.random.default_rng(seed)
    largest = int(np.iinfo(images.dtype).max)
    numerators, n = some_prototypes(rng, len(names), x.shape[1], largest, most)
    check_distances(DEVICE, x, numerators, n, arithmetic)


@TYPES
@pytest.mark.parametrize("largest_window", [False, True])
def test_classes_of_as_many_images_as_32_bits_hold(monkeypatch, dtype, largest_window):
    """Segments that are full, at the largest value, and one more image after them."""
    sums = pytest.importorskip("pipeline.kernels.triton_sums")
    if largest_window:
        monkeypatch.setattr(sums, "_LEAST_WINDOW", accumulators.SEGMENT)
    monkeypatch.setattr(sums, "SUMS", {**sums.SUMS, "ROWS": 1024, "COLUMNS": 2})
    images = np.full((accumulators.SEGMENT + 300, 2), np.iinfo(dtype).max, dtype)
    images[7, 0] = 3
    positions = np.zeros(len(images), np.int64)
    found, squares, counts = backends.load(DEVICE).class_sums(images, positions, 1)
    wide = images.astype(np.int64)
    assert np.array_equal(found[0], wide.sum(axis=0))
    assert np.array_equal(squares[0], (wide * wide).sum(axis=0))
    assert counts.tolist() == [len(images)]
    assert squares[0, 1] > 2**31


@pytest.mark.parametrize(
    ("pixels", "most"), [(127, 1), (129, 256), (66, 65536), (127, 2**31 - 8 * 10**6)]
)
def test_images_of_several_chunks_at_the_extremes(monkeypatch, pixels, most):
    """Chunks of the largest products, and ends that fill no word, tile or chunk."""
    triton = pytest.importorskip("pipeline.kernels.triton")
    monkeypatch.setattr(triton, "_CHUNK_WORDS", 16)
    monkeypatch.setattr(triton, "BYTES", {**triton.BYTES, "COLUMNS": 16})
    images = np.zeros((3, pixels), np.uint8)
    images[0], images[1, ::3] = 255, 255
    n = np.array([most, most, 1])
    numerators = np.zeros((3, pixels), np.int64)
    numerators[0], numerators[1] = 254 * most + most - 1, most - 1
    numerators[2, 5:] = 255
    check_distances(DEVICE, images, numerators, n, choose_arithmetic(most, pixels, "uint8"))


def test_a_chunk_as_long_as_its_accumulators_hold_is_exact(monkeypatch):
    triton = pytest.importorskip("pipeline.kernels.triton")
    monkeypatch.setattr(triton, "_CHUNK_WORDS", accumulators.CHUNK // 4)
    monkeypatch.setattr(triton, "BYTES", {"ROWS": 2, "COLUMNS": 4096, "num_warps": 4})
    images = np.full((1, accumulators.CHUNK + 5), 255, np.uint8)
    numerators = np.full((1, images.shape[1]), 255 * 256 - 1)
    numerators[0, ::2] = 0
    check_distances(DEVICE, images, numerators, np.array([256]), Arithmetic("digits", 2**45, 2))


@few
@given(data=st.data(), pair=image_pairs(), k=st.integers(1, 12), metric=st.sampled_from(METRICS))
def test_lists_are_those_of_a_stable_sort_for_any_parts(data, pair, k, metric):
    queries, references = pair
    cuts = sorted(data.draw(st.lists(st.integers(0, len(references)), max_size=2)))
    check_search(DEVICE, queries, references, metric, k, cuts=cuts)


@TYPES
@pytest.mark.parametrize("metric", METRICS)
def test_ties_go_to_the_lowest_index_within_and_between_groups_and_tiles(dtype, metric):
    rng = np.random.default_rng(3)
    few_images = rng.integers(0, np.iinfo(dtype).max + 1, (3, 4, 5)).astype(dtype)
    references = few_images[rng.integers(0, 3, 140)]  # each many times
    queries, own = references[[0, 139, 31]], np.array([0, 139, -1])
    check_search(DEVICE, queries, references, metric, 40, cuts=[129], skip=own)


@TYPES
@pytest.mark.parametrize("metric", METRICS)
def test_more_neighbours_than_references_and_than_a_tile_has(dtype, metric):
    rng = np.random.default_rng(4)
    images = rng.integers(0, np.iinfo(dtype).max + 1, (70, 3, 3)).astype(dtype)
    check_search(DEVICE, images[:2], images, metric, 80, skip=np.arange(2))
    check_search(DEVICE, images[:2], images[:1], metric, 3, skip=np.array([0, -1]))


@TYPES
@pytest.mark.parametrize("metric", METRICS)
def test_distances_in_64_bits_are_those_in_32(monkeypatch, dtype, metric):
    """Whatever needs 64 bits in images that are too large to be interpreted here."""
    rng = np.random.default_rng(6)
    monkeypatch.setattr("pipeline.kernels.triton_nearest.fits_int32", lambda _: False)
    monkeypatch.setattr("pipeline.kernels.triton_tiles.DEPTH", 128)
    images = rng.integers(0, 2, (40, 5, 53)) * np.iinfo(dtype).max
    check_search(DEVICE, images[:3].astype(dtype), images.astype(dtype), metric, 4)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "metric"), [(np.uint8, "l2"), (np.uint16, "l1")])
def test_distances_beyond_32_bits_are_exact(dtype, metric):
    """More pixels than a distance of 32 bits, or a sum of products, may have."""
    pixels = 2**31 // (255**2 if metric == "l2" else 65535) + 7
    if metric == "l2":
        pixels = accumulators.DEPTH + 129  # flushed once, and then some
    assert not accumulators.fits_int32(
        accumulators.largest_distance(metric, pixels, np.dtype(dtype).name)
    )
    images = np.zeros((5, 1, pixels), dtype)
    images[0], images[1], images[2, 0, ::2] = np.iinfo(dtype).max, 1, np.iinfo(dtype).max
    use = backends.load(DEVICE)
    prepared = use.prepare_search(images[:, 0], (1, pixels), metric)
    lists = np.full((2, 1, 3), NOWHERE)
    use.nearest(images[:1, 0], prepared, np.array([-1]), *lists)
    expected = oracle_lists(oracle_numerators(images[:1], images, metric), 3)
    assert np.array_equal(lists, expected)


def test_where_a_key_would_not_fit_plain_torch_searches(monkeypatch):
    monkeypatch.setattr("pipeline.kernels.triton_nearest.key_bits", lambda *_: None)
    images = np.random.default_rng(5).integers(0, 256, (40, 3, 3), np.uint8)
    found = search(images[:4], images, "l2", 5, DEVICE)
    expected = oracle_lists(oracle_numerators(images[:4], images, "l2"), 5)
    assert np.array_equal(found, expected)
    check_search(DEVICE, images[:4], images, "l1", 5)


# which kernels a device gets -----------------------------------------------------------------


def test_a_kernel_that_counts_wrong_is_not_used(monkeypatch):
    """The block that is compared before a device is used tells."""
    triton = pytest.importorskip("pipeline.kernels.triton")
    assert backends.why_not_triton("cpu") is None
    backends.why_not_triton.cache_clear()
    measure = triton.measure
    monkeypatch.setattr(triton, "measure", lambda *given: tuple(x + 1 for x in measure(*given)))
    try:
        reason = backends.why_not_triton("cpu")
        assert reason == (
            f"Triton {triton.VERSION} is of no use here (a small block is counted wrong)"
        )
        backends.load.cache_clear()
        with pytest.raises(ConfigError, match=r"counted wrong.*; use device: torch:cpu"):
            backends.load("triton:cpu")
    finally:
        backends.why_not_triton.cache_clear()
        backends.load.cache_clear()


@pytest.mark.parametrize(("error", "reason"), [
    (ModuleNotFoundError("No module named 'triton'"), "cannot be imported (No module named"),
    (None, "Triton's kernels run on a CUDA device"),
])  # fmt: skip
def test_without_triton_a_cuda_device_gets_plain_torch_and_says_why(monkeypatch, error, reason):
    real = backends.importlib.import_module

    def load(name):
        if error and name == "pipeline.kernels.triton":
            raise error
        return real(name)

    monkeypatch.setattr(backends.importlib, "import_module", load)
    monkeypatch.setattr("pipeline.kernels.triton.INTERPRETED", False)
    monkeypatch.setattr("pipeline.kernels.torch.is_available", lambda _: True)
    monkeypatch.setattr("pipeline.kernels.torch.device_name", lambda _: "NVIDIA H100")
    monkeypatch.setattr("pipeline.kernels.torch.device_memory", lambda _: 80 * 10**9)
    backends.why_not_triton.cache_clear()
    backends.load.cache_clear()
    try:
        assert reason in (backends.why_not_triton("cpu") or "")
        if error:
            use = backends.load("cuda:3")
            assert (use.device, use.memory) == ("torch:cuda:3", 80 * 10**9)
            assert use.description.startswith("NVIDIA H100, plain torch ")
            assert reason in use.description
    finally:
        backends.why_not_triton.cache_clear()
        backends.load.cache_clear()
