"""Every kernel on every device: the integers of NumPy, and so the same bits."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import labelled_blocks, oracle_sums

from pipeline import kernels
from pipeline.errors import ConfigError
from pipeline.exact import Arithmetic

DEVICES = ["cpu", "torch:cpu", pytest.param("cuda", marks=pytest.mark.skipif(
    not torch.cuda.is_available(), reason="torch sees no CUDA device"))]  # fmt: skip
ARITHMETICS = [
    Arithmetic("int32", 2**40, tile=3),
    Arithmetic("int32", 2**40, tile=10_000),
    Arithmetic("float64", 2**40),
    Arithmetic("int64", 2**60),
]


def flat(images):
    return images.reshape(len(images), int(np.prod(images.shape[1:])))


@pytest.mark.parametrize("device", DEVICES)
@given(block=labelled_blocks())
def test_class_sums_are_those_of_numpy(device, block):
    images, labels, names = block
    sums, counts = kernels.load(device).class_sums(
        flat(images), labels.astype(np.int64), len(names)
    )
    expected_sums, expected_counts = oracle_sums(images, labels, len(names))
    assert sums.dtype == counts.dtype == np.int64
    assert np.array_equal(sums, flat(expected_sums))
    assert np.array_equal(counts, expected_counts)


@pytest.mark.parametrize("device", DEVICES)
def test_class_sums_of_more_images_than_a_32_bit_partial_sum_holds(device):
    images = np.full((2**16 + 3, 1), 65535, np.uint16)
    sums, counts = kernels.load(device).class_sums(images, np.zeros(len(images), np.int64), 1)
    assert (sums.tolist(), counts.tolist()) == ([[len(images) * 65535]], [len(images)])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("arithmetic", ARITHMETICS, ids=lambda a: f"{a.name}-{a.tile}")
@given(block=labelled_blocks(), seed=st.integers(0, 2**32 - 1))
def test_distances_are_counted_as_numpy_counts_them(device, arithmetic, block, seed):
    images, _, names = block
    assume(arithmetic.name != "int32" or images.dtype == np.uint8)  # it is for 8 bits
    x = flat(images)
    rng = np.random.default_rng(seed)
    denominators = rng.integers(0, 50, len(names))
    largest = int(np.iinfo(images.dtype).max)
    numerators = np.stack([rng.integers(0, n * largest + 1, x.shape[1]) for n in denominators])
    use, wide = kernels.load(device), x.astype(np.int64)
    l1 = use.l1_numerators(x, numerators, denominators, arithmetic)
    scaled = denominators[None, :, None] * wide[:, None, :]
    assert l1.dtype == np.int64
    assert np.array_equal(l1, np.abs(scaled - numerators).sum(axis=2))
    assert np.array_equal(
        use.dot_products(x, numerators, denominators, arithmetic), wide @ numerators.T
    )
    assert np.array_equal(use.squared_norms(x), (wide * wide).sum(axis=1))


@pytest.mark.parametrize("device", DEVICES)
def test_read_only_and_strided_images_are_read_as_they_are(device):
    images = np.arange(400, dtype=np.uint8).reshape(20, 20)
    images.flags.writeable = False
    use, positions = kernels.load(device), np.arange(20) % 3
    for part in (images, images[::2], images[:, ::2]):
        wide = part.astype(np.int64)
        sums, _ = use.class_sums(part, positions[: len(part)], 3)
        assert np.array_equal(sums, oracle_sums(wide, positions[: len(part)], 3)[0])
        assert np.array_equal(use.squared_norms(part), (wide * wide).sum(axis=1))


def test_batches_on_the_device_do_not_show(monkeypatch):
    on_torch = pytest.importorskip("pipeline.kernels.torch")
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (23, 10), np.uint8)
    numerators = rng.integers(0, 2550, (2, 10))
    whole = on_torch.l1_numerators(
        images, numerators, np.array([10, 10]), ARITHMETICS[0], device="cpu"
    )
    monkeypatch.setitem(on_torch._BATCH_BYTES, "cpu", 8 * 10 * 3)
    batched = on_torch.l1_numerators(
        images, numerators, np.array([10, 10]), ARITHMETICS[0], device="cpu"
    )
    assert np.array_equal(whole, batched)


@pytest.mark.parametrize("device", ["gpu", "torch", "torch:nothing", "", "cpu:0"])
def test_an_unknown_device_is_refused(device):
    with pytest.raises(ConfigError, match=f"device '{device}'"):
        kernels.load(device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_device_that_is_not_there_is_refused_with_the_cure():
    with pytest.raises(ConfigError, match="no such device on this machine; use device: auto"):
        kernels.load("cuda")


@pytest.mark.skipif(kernels.has_cuda_driver(), reason="this machine has the CUDA driver")
def test_auto_without_a_gpu_is_the_cpu_and_imports_no_torch():
    script = (
        "import sys; from pipeline import kernels; "
        "print(kernels.load('auto').device, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.split() == ["cpu", "False"], done.stderr


@pytest.mark.parametrize("device", DEVICES)
def test_images_at_any_negative_position_are_left_out(device):
    images = np.arange(10, dtype=np.uint8).reshape(5, 2)
    positions = np.array([-1, 1, -7, 1, -(2**40)])
    sums, counts = kernels.load(device).class_sums(images, positions, 2)
    assert (sums.tolist(), counts.tolist()) == ([[0, 0], [8, 10]], [0, 2])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("view", [
    lambda a: a[::2], lambda a: a[:, ::-1], lambda a: a[1:4, 2:5], np.asfortranarray,
], ids=["every second", "mirrored", "window", "column by column"])  # fmt: skip
def test_distances_of_images_in_any_memory_layout(device, view):
    rng = np.random.default_rng(1)
    images = view(rng.integers(0, 256, (6, 7), np.uint8))
    wide, use = images.astype(np.int64), kernels.load(device)
    numerators, fives = rng.integers(0, 1276, (3, images.shape[1])), np.array([5, 5, 5])
    l1 = use.l1_numerators(images, numerators, fives, ARITHMETICS[0])
    assert np.array_equal(l1, np.abs(5 * wide[:, None] - numerators).sum(2))
    assert np.array_equal(
        use.dot_products(images, numerators, fives, ARITHMETICS[0]), wide @ numerators.T
    )


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
def test_read_only_prototypes_are_used_without_a_warning(device):
    # what dask hands on from another process is read-only
    rng = np.random.default_rng(2)
    images, numerators = rng.integers(0, 256, (5, 9), np.uint8), rng.integers(0, 1786, (2, 9))
    sevens = np.array([7, 7])
    for array in (images, numerators, sevens):
        array.flags.writeable = False
    wide, use = images.astype(np.int64), kernels.load(device)
    l1 = use.l1_numerators(images, numerators, sevens, ARITHMETICS[0])
    assert np.array_equal(l1, np.abs(7 * wide[:, None] - numerators).sum(2))
    assert np.array_equal(
        use.dot_products(images, numerators, sevens, ARITHMETICS[0]), wide @ numerators.T
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("arithmetic", ARITHMETICS, ids=lambda a: f"{a.name}-{a.tile}")
def test_blocks_of_several_batches_are_exact_in_every_kernel(device, arithmetic):
    # more pixels than torch widens at once on a CPU
    images = np.random.default_rng(3).integers(0, 256, (10, 512 * 512), np.uint8)
    positions, wide = np.arange(10) % 3, images.astype(np.int64)
    use = kernels.load(device)
    sums, counts = use.class_sums(images, positions, 3)
    assert np.array_equal(sums, [wide[positions == k].sum(0) for k in range(3)])
    assert counts.tolist() == [4, 3, 3]
    l1 = use.l1_numerators(images, sums, counts, arithmetic)
    expected = [[np.abs(n * x - p).sum() for p, n in zip(sums, counts, strict=True)] for x in wide]
    assert np.array_equal(l1, expected)
    products = use.dot_products(images, sums, counts, arithmetic)
    assert np.array_equal(products, [[(x * p).sum() for p in sums] for x in wide])
    assert np.array_equal(use.squared_norms(images), (wide * wide).sum(1))


@pytest.mark.parametrize("device", ["cuda:9999", "cuda:first", "torch:"])
def test_a_device_that_torch_does_not_find_is_refused_with_the_cure(device):
    with pytest.raises(ConfigError, match="no such device on this machine; use device: auto"):
        kernels.load(device)


def test_auto_with_a_driver_but_no_device_is_the_cpu(monkeypatch):
    monkeypatch.setattr(kernels, "has_cuda_driver", lambda: True)
    monkeypatch.setattr("pipeline.kernels.torch.is_available", lambda device: device == "cpu")
    kernels.load.cache_clear()
    try:
        assert kernels.load("auto").device == "cpu"
    finally:
        kernels.load.cache_clear()
