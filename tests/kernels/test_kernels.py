"""Every kernel on every device, in any number of threads: the integers of NumPy."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_checks_for_tests import (
    check_classes,
    check_distances,
    check_histograms,
    oracle_sums,
    some_prototypes,
)
from strategies import DEVICES, DEVICES_HERE, flat, labelled_blocks

from pipeline.core.errors import ConfigError
from pipeline.core.exact import Arithmetic, choose_arithmetic
from pipeline.kernels import backends

# each with the largest n that it is for
ARITHMETICS = [
    (Arithmetic("digits", 2**40, 1), 128),
    (Arithmetic("digits", 2**40, 2), 32_640),
    (Arithmetic("digits", 2**45, 3), 8_355_712),
    (Arithmetic("digits", 2**50, 4), 2_139_062_144),
    (Arithmetic("float64", 2**50), 10**6),
    (Arithmetic("int64", 2**60), 10**9),
]
BY_ARITHMETIC = pytest.mark.parametrize(
    ("arithmetic", "most"), ARITHMETICS, ids=[f"{a.name}{a.digits or ''}" for a, _ in ARITHMETICS]
)
# 16 bits are counted in two passes; 8 bits in one
TYPES = pytest.mark.parametrize("dtype", [np.uint8, np.uint16])


@pytest.mark.parametrize("device", DEVICES)
@given(block=labelled_blocks(), threads=st.integers(1, 3), seed=st.integers(0, 2**32 - 1))
def test_sums_and_histograms_are_those_of_numpy(device, block, threads, seed):
    images, labels, names = block
    x = flat(images)
    high = np.random.default_rng(seed).integers(0, 256, (len(names), x.shape[1]), np.uint8)
    if len(x):
        high[:] = np.where(high % 2, high, x[0] >> 8)  # some that occur
    check_classes(device, x, labels.astype(np.int64), len(names), threads, high)


@pytest.mark.parametrize("device", DEVICES)
@BY_ARITHMETIC
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_distances_are_counted_as_numpy_counts_them(device, arithmetic, most, data, seed):
    dtypes = [np.uint8] if arithmetic.name == "digits" else [np.uint8, np.uint16]
    images, _, names = data.draw(labelled_blocks(dtypes=dtypes))
    x, rng = flat(images), np.random.default_rng(seed)
    largest = int(np.iinfo(images.dtype).max)
    numerators, n = some_prototypes(rng, len(names), x.shape[1], largest, most)
    check_distances(device, x, numerators, n, arithmetic)


@pytest.mark.parametrize("device", DEVICES)
@TYPES
def test_classes_of_more_images_than_a_narrow_partial_sum_or_table_holds(device, dtype):
    # sums of squares, sums, tables of uint16, and each of them a second time
    brightest, more = np.iinfo(dtype).max, 2 * 2**16 + 5
    positions = np.tile([0, 1, -1], more)[: 2 * more]
    images = np.full((len(positions), 2), brightest, dtype)
    images[1] = 3
    sums, squares, counts = backends.load(device).class_sums(images, positions, 2)
    wide = np.int64(brightest)
    expected = np.bincount(positions[positions >= 0], minlength=2)
    assert counts.tolist() == expected.tolist()
    assert min(counts) > 2**16 + 1000
    lost = np.array([0, 1])
    assert np.array_equal(sums[:, 0], counts * wide - lost * (wide - 3))
    assert np.array_equal(squares[:, 1], counts * wide**2 - lost * (wide**2 - 9))
    for high in (None, np.full((2, 2), 255, np.uint8))[: images.itemsize]:
        found = backends.load(device).histograms(images, positions, 2, high)
        assert found[:, 0, 255].tolist() == [counts[0], counts[1] - 1]
        assert found[1, 1, 3 if images.itemsize == 1 else 0] == (high is None)
        assert found.sum() == 2 * counts.sum() - (0 if high is None else 2)


@pytest.mark.parametrize("device", DEVICES)
@TYPES
@pytest.mark.parametrize("beside", [-1, 0, 1])
def test_counts_are_exact_where_a_partial_sum_or_table_is_full(device, dtype, beside):
    images = np.full((2**16 + beside, 1), np.iinfo(dtype).max, dtype)
    images[0] = 0
    positions, use = np.zeros(len(images), np.int64), backends.load(device)
    sums, squares, _ = use.class_sums(images, positions, 1)
    bright, count = int(np.iinfo(dtype).max), len(images) - 1
    assert (sums.tolist(), squares.tolist()) == ([[count * bright]], [[count * bright**2]])
    assert use.histograms(images, positions, 1)[0, 0, [0, 255]].tolist() == [1, count]


@pytest.mark.parametrize("threads", [1, 2, 3])
@TYPES
@pytest.mark.parametrize("pixels", [1, 2, 1023, 1024, 1025, 2047, 2048, 2049, 4101])
def test_any_number_of_threads_gives_the_same_sums_and_histograms(threads, dtype, pixels):
    rng = np.random.default_rng(pixels)
    images = rng.integers(0, 2**16, (11, pixels)).astype(dtype)
    positions, columns = np.array([2, 0, 0, -1, 2, 0, 2, 2, 0, -3, 0]), np.arange(pixels)
    high = (images[0] >> 8).astype(np.uint8)
    use = backends.load("cpu", threads)
    sums, squares, _ = use.class_sums(images, positions, 3)
    expected = oracle_sums(images, np.maximum(positions, -1), 3)
    assert np.array_equal(sums, expected[0])
    assert np.array_equal(squares, expected[1])
    counts = use.histograms(images, positions, 3)
    again = np.zeros_like(counts)
    shift = 8 * (images.itemsize - 1)
    for image, position in zip(images, positions, strict=True):
        again[position, columns, image >> shift] += position >= 0
    assert np.array_equal(counts, again)
    if dtype == np.uint16:
        low = use.histograms(images, positions, 3, np.stack([high] * 3))
        again[:] = 0
        for image, position in zip(images, positions, strict=True):
            again[position, columns, image & 255] += (position >= 0) & (image >> 8 == high)
        assert np.array_equal(low, again)


def test_histograms_of_many_images_are_those_of_numpy_whatever_value_is_usual():
    check_histograms()


@given(data=st.data(), seed=st.integers(0, 2**32 - 1), classes=st.integers(1, 3))
def test_a_rank_is_found_as_in_a_sorted_list(data, seed, classes):
    images = data.draw(st.integers(0, 30))
    rng = np.random.default_rng(seed)
    values = rng.choice([0, 1, 7, 254, 255, rng.integers(256)], (images, classes, 4))
    ranks = rng.integers(0, images + 3, (classes, 4))
    counts = (values[..., None] == np.arange(256)).sum(axis=0).astype(np.uint32)
    for device in DEVICES_HERE:
        found, rest = backends.load(device).select_ranks(counts, ranks)
        assert (found.dtype, rest.dtype) == (np.uint8, np.int64)
        for place in np.ndindex(ranks.shape):
            ordered = np.sort(values[:, *place])
            if ranks[place] < images:
                assert found[place] == ordered[ranks[place]]
                assert rest[place] == ranks[place] - (ordered < found[place]).sum()
            else:
                assert (found[place], rest[place]) == (0, 0)


def test_a_rank_beyond_what_32_signed_bits_count_is_found():
    counts = np.zeros((1, 1, 256), np.uint32)
    counts[0, 0, [3, 9]] = 2**32 - 1
    for rank, value, rest in [
        (2**32 - 2, 3, 2**32 - 2),
        (2**32 - 1, 9, 0),
        (2**33 - 3, 9, 2**32 - 2),
    ]:
        found = backends.load("cpu").select_ranks(counts, np.array([[rank]]))
        assert [part.item() for part in found] == [value, rest]


@pytest.mark.parametrize("device", DEVICES)
@TYPES
@pytest.mark.parametrize("classes", [1, 3])
def test_no_images_count_nothing(device, dtype, classes):
    images, use = np.zeros((0, 5), dtype), backends.load(device)
    high = np.zeros((classes, 5), np.uint8)
    check_classes(device, images, np.zeros(0, np.int64), classes, 2, high)
    numerators, n = np.zeros((classes, 5), np.int64), np.ones(classes, np.int64)
    prepared = use.prepare(numerators, n, choose_arithmetic(1, 5, dtype))
    assert use.l1_numerators(images, prepared).shape == (0, classes)
    assert [part.shape for part in use.dot_products(images, prepared)] == [(0, classes)] * 2
    assert use.squared_norms(images).shape == (0,)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("samples", [1, 2, 3, 4, 5, 8, 9, 64, 67])
def test_any_number_of_images_is_measured(device, samples):
    rng = np.random.default_rng(samples)
    images = rng.integers(0, 256, (samples, 70), np.uint8)
    numerators, n = some_prototypes(rng, 5, 70, 255, 6000)
    check_distances(device, images, numerators, n, choose_arithmetic(6000, 70, "uint8"))


@pytest.mark.parametrize("device", DEVICES)
def test_squares_of_long_images_are_exact(device):
    for dtype in (np.uint8, np.uint16):
        for pixels in (2**16 - 1, 2**16, 2**16 + 1, 2 * 2**16 + 5):
            images = np.full((2, pixels), np.iinfo(dtype).max, dtype)
            images[1, ::2] = 1
            wide = images.astype(np.int64)
            found = backends.load(device).squared_norms(images)
            assert np.array_equal(found, (wide * wide).sum(axis=1))


@pytest.mark.parametrize("device", DEVICES)
def test_images_at_any_negative_position_are_left_out(device):
    images = np.arange(10, dtype=np.uint8).reshape(5, 2)
    positions = np.array([-1, 1, -7, 1, -(2**40)])
    sums, squares, counts = backends.load(device).class_sums(images, positions, 2)
    assert (sums.tolist(), counts.tolist()) == ([[0, 0], [8, 10]], [0, 2])
    assert squares.tolist() == [[0, 0], [4 + 36, 9 + 49]]
    found = backends.load(device).histograms(images, positions, 2)
    assert found.sum() == 4
    assert (found[1, [0, 0, 1, 1], [2, 6, 3, 7]] == 1).all()


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


@pytest.fixture
def _every_torch_warning():
    """Make torch give each warning every time, not once a process."""
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(before)


@pytest.mark.usefixtures("_every_torch_warning")
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("device", DEVICES)
@TYPES
@pytest.mark.parametrize("view", [
    lambda a: a[::2], lambda a: a[:, ::-1], lambda a: a[1:4, 2:5], np.asfortranarray, read_only,
    lambda a: read_only(a)[:, ::2],
], ids=["every second", "mirrored", "window", "column by column", "read only", "both"])  # fmt: skip
def test_images_and_prototypes_in_any_memory_layout_are_read_without_a_warning(device, dtype, view):
    # what dask hands on from another process is read-only
    rng, largest = np.random.default_rng(1), int(np.iinfo(dtype).max)
    images = view(rng.integers(0, largest + 1, (6, 10)).astype(dtype))
    numerators, n = map(read_only, some_prototypes(rng, 3, images.shape[1], largest, 6000))
    high = read_only(np.tile((images[0] >> 8).astype(np.uint8), (3, 1)))
    check_classes(device, images, read_only(np.arange(len(images)) % 3), 3, 2, high)
    check_distances(device, images, numerators, n, choose_arithmetic(6000, 10, dtype))
    check_distances(device, images, numerators, n, Arithmetic("int64", 2**60))


@pytest.mark.parametrize("device", DEVICES)
@BY_ARITHMETIC
def test_blocks_of_several_batches_are_exact_in_every_kernel(device, arithmetic, most):
    # more pixels than torch widens at once on a CPU, and than a CPU compares at once
    rng = np.random.default_rng(3)
    images = rng.integers(0, 256, (10, 300 * 300), np.uint8)
    numerators, n = some_prototypes(rng, 2, images.shape[1], 255, most)
    bound = max(arithmetic.bound, most * 255 * images.shape[1])
    check_distances(device, images, numerators, n, replace(arithmetic, bound=bound))


@pytest.mark.parametrize("device", ["gpu", "torch", "torch:nothing", "", "cpu:0"])
def test_an_unknown_device_is_refused(device):
    with pytest.raises(ConfigError, match=f"device '{device}'"):
        backends.load(device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_device_that_is_not_there_is_refused_with_the_cure():
    with pytest.raises(ConfigError, match="no such device on this machine; use device: auto"):
        backends.load("cuda")


@pytest.mark.skipif(backends.has_cuda_driver(), reason="this machine has the CUDA driver")
def test_auto_without_a_gpu_is_the_cpu_and_imports_no_torch():
    script = (
        "import sys; from pipeline.kernels import backends; "
        "print(backends.load('auto').device, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.split() == ["cpu", "False"], done.stderr


@pytest.mark.parametrize("device", ["cuda:9999", "cuda:first", "torch:"])
def test_a_device_that_torch_does_not_find_is_refused_with_the_cure(device):
    with pytest.raises(ConfigError, match="no such device on this machine; use device: auto"):
        backends.load(device)


def test_auto_with_a_driver_but_no_device_is_the_cpu(monkeypatch):
    monkeypatch.setattr(backends, "has_cuda_driver", lambda: True)
    monkeypatch.setattr("pipeline.kernels.torch.is_available", lambda device: device == "cpu")
    backends.load.cache_clear()
    try:
        assert backends.load("auto").device == "cpu"
    finally:
        backends.load.cache_clear()
