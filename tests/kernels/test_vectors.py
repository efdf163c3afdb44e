"""The inner loops in each set of instructions: the integers of NumPy, from what was meant."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
from llvmlite import binding

# for each: the features it needs, the settings under which numba compiles for it, its name in
# `vectors`, and what the machine code must and must not hold
VARIANTS = {
    "AVX-512 VNNI": (
        {"avx512bw", "avx512vnni"}, {}, "_VNNI", {"psadbw", "vpdpbusd", "zmm"}, {"vpmaddwd"},
    ),
    "AVX2": (
        {"avx2"}, {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2"}, "_AVX2",
        {"psadbw", "vpmaddwd", "ymm"}, {"vpdpbusd", "zmm"},
    ),
    "portable": (
        set(), {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": "+sse2"}, "_ANYWHERE",
        set(), {"vpdpbusd", "vpmaddwd", "ymm", "zmm"},
    ),
}  # fmt: skip

SCRIPT = """
import sys
import numpy as np
from numba import njit
from numba.core.registry import cpu_target
from pipeline.core import exact
from pipeline.core.exact import choose_arithmetic
from pipeline.kernels import cpu_distances as cpu
from pipeline.kernels import cpu_predictions, vectors

chosen = vectors._instructions(cpu_target.target_context)
print(*[name for name in ("_VNNI", "_AVX2", "_ANYWHERE") if getattr(vectors, name) is chosen])
rng = np.random.default_rng(0)
cpu_predictions._LEFT = 1  # also where it does not pay

# the kernels, at lengths beside those of vectors and tiles
for most in (128, 2139062144):
    for pixels in (1, 63, 64, 65, 784, 2**14 + 1, 2**16 + 1):
        images = rng.integers(0, 256, (6, pixels), np.uint8)
        images[0], images[1] = 255, 0
        n = np.array([most, 1, rng.integers(1, most + 1)])
        numerators = rng.integers(0, 255 * n[:, None] + 1, (3, pixels))
        numerators[0, ::2] = rng.integers(0, 255) * most + most - 1
        prepared = cpu.prepare(numerators, n, choose_arithmetic(most, pixels, "uint8"))
        x = images.astype(np.int64)
        l1 = [np.abs(k * x - p).sum(axis=1) for k, p in zip(n, numerators)]
        assert np.array_equal(cpu.l1_numerators(images, prepared), np.transpose(l1)), "l1"
        wholes, rests = cpu.dot_products(images, prepared)
        assert np.array_equal(wholes, x @ (numerators // n[:, None]).T), "wholes"
        assert np.array_equal(rests, x @ (numerators % n[:, None]).T), "rests"

        # divided, and the nearest alone, as the host divides
        pixel_scales = {m: exact.scale_of(m, n, pixels, 255) for m in ("l1", "l2")}
        if exact.squares_fit(n, pixels, 255):
            norms = exact.prototype_norms(numerators, n)
            totals = exact.sum_squares((x * x).sum(1), (wholes, rests), norms, n, pixels, 255)
            expected = {
                "l1": exact.finish_l1(np.transpose(l1), n, pixels, 255),
                "l2": exact.finish_l2(totals, n, pixels, 255),
            }
            into = {m: np.empty((6, 3)) for m in expected}
            assert cpu.distances(images, prepared, pixel_scales, into)
            for m, right in expected.items():
                assert np.array_equal(into[m], right), m
                at, far = np.empty(6, np.int64), np.empty(6)
                scale = pixel_scales[m]
                assert cpu_predictions.nearest_prototype(images, prepared, m, scale, at, far)
                assert np.array_equal(at, right.argmin(1)), m
                assert np.array_equal(far, right.min(1)), m

# the loops themselves, over as many pixels as they may take, at the extremes
@njit
def count(images, planes, steps, shape, more, out):
    strides = images.shape[1], 0, planes.shape[1]
    vectors.measure(images, planes, strides, steps, shape, more, out)

length, steps, rows = vectors.TILE, vectors.TILE // vectors.WIDTH, vectors.ROWS
images = np.zeros((rows, length), np.uint8)
images[0], images[2], images[3] = 255, 1, rng.integers(0, 256, length)
x = images.astype(np.int64)
shape = vectors.shape_of(rows, 1, 1, vectors.BOTH)
for quotient in (0, 128, 255):
    for digit in (-128, 127):
        planes = np.stack([np.full(length, quotient), np.full(length, digit)]).astype(np.uint8)
        out = np.full((4, rows), -1, np.int64)
        for times in (1, 2):
            count(images, planes, steps, shape, times == 2, out.reshape(-1))
            expected = [
                np.abs(x - quotient).sum(1), digit * (x > quotient).sum(1),
                (quotient - 128) * x.sum(1), digit * x.sum(1),
            ]
            assert np.array_equal(out, times * np.array(expected)), (quotient, digit)

# any number of images, prototypes and digits, so that sums fill no whole vector
for rows, prototypes, digits in ((1, 1, 0), (2, 3, 1), (3, 1, 2), (4, 5, 0)):
    shape = vectors.shape_of(rows, prototypes, digits, vectors.BOTH)
    images = rng.integers(0, 256, (rows, 192), np.uint8)
    planes = rng.integers(0, 256, (prototypes, 1 + digits, 192), np.uint8)
    out = np.empty(prototypes * 2 * (1 + digits) * rows, np.int64)

    @njit
    def count_more(images, planes, shape, out):
        strides = 192, planes.shape[1] * 192, 192
        vectors.measure(images, planes, strides, 3, shape, False, out)

    count_more(images, planes, shape, out)
    x, m = images.astype(np.int64), planes[:, 0].astype(np.int64)
    d = planes[:, 1:].view(np.int8).astype(np.int64)
    expected = []
    for one, others in zip(m, d):
        expected += [np.abs(x - one).sum(1), *((other * (x > one)).sum(1) for other in others)]
        expected += [(x * (one - 128)).sum(1), *((other * x).sum(1) for other in others)]
    assert np.array_equal(out, np.ravel(expected)), (rows, prototypes, digits)

code = "".join(count.inspect_asm().values())
print(*[name for name in ("psadbw", "vpdpbusd", "vpmaddwd", "ymm", "zmm") if name in code])
"""

SEARCH = """
import numpy as np
from pipeline.core.exact import NOWHERE
from pipeline.kernels import cpu_nearest
from pipeline.kernels.search_data import prepare_search

rng = np.random.default_rng(0)
base = rng.integers(0, 200, (3, 12, 23))
images = base[rng.integers(0, 3, 700)] + rng.integers(0, 50, (700, 12, 23))
extremes = rng.integers(0, 2, (700, 12, 23)) * 255
for kind in (images, extremes):
    for dtype, factor in ((np.uint8, 1), (np.uint16, 257)):
        x = (kind * factor).astype(dtype)
        flat = x.reshape(len(x), -1)
        between = flat[:9, None].astype(np.int64) - flat
        for metric, numerators in (("l1", np.abs(between).sum(2)), ("l2", (between**2).sum(2))):
            lists = np.full((2, 9, 20), NOWHERE)
            prepared = prepare_search(flat, x.shape[1:], metric)
            cpu_nearest.nearest(flat[:9], prepared, np.full(9, -1), *lists)
            order = np.argsort(numerators, axis=1, kind="stable")[:, :20]
            assert np.array_equal(lists[1], order), (metric, dtype)
            assert np.array_equal(lists[0], np.take_along_axis(numerators, order, 1))
            most = int(np.median(numerators))
            prepared = prepare_search(flat, x.shape[1:], metric, pairs=True)
            pairs = cpu_nearest.within(flat[:9], prepared, most)
            assert np.array_equal(pairs[:, :2], np.transpose(np.nonzero(numerators <= most)))
sweeps = cpu_nearest._sweep
code = "".join(asm for asm in sweeps.inspect_asm().values())
print(*[name for name in ("psadbw", "vpdpbusd", "vpmaddwd", "ymm", "zmm") if name in code])
"""

HISTOGRAMS = """
from kernel_checks_for_tests import check_histograms
from pipeline.kernels import cpu_histograms

check_histograms()
print(cpu_histograms._can_note())
"""


of_x86 = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"),
    reason="the instructions of x86-64; on others the portable loops are what all tests run",
)
# those of this processor are what all tests run
variants = pytest.mark.parametrize("variant", [*VARIANTS])


@pytest.mark.slow
@of_x86
@variants
def test_each_set_of_instructions_counts_as_numpy_does(variant, tmp_path):
    name, present, absent = VARIANTS[variant][2:]
    chosen, found = run_under(variant, SCRIPT, tmp_path)
    assert chosen == name
    assert present <= set(found.split())
    assert not absent & set(found.split())


@of_x86
@pytest.mark.slow
def test_histograms_of_processors_that_take_no_notes_are_those_of_numpy(tmp_path):
    # those of this processor are what `test_kernels` compares
    assert run_under("portable", HISTOGRAMS, tmp_path) == ["False"]


@pytest.mark.slow
@of_x86
@variants
def test_each_set_of_instructions_finds_the_nearest_that_numpy_does(variant, tmp_path):
    present, absent = VARIANTS[variant][3:]
    [found] = run_under(variant, SEARCH, tmp_path)
    assert present <= set(found.split())
    assert not absent & set(found.split())


def run_under(variant, script, tmp_path):
    """Run a script for which numba compiles with a set of instructions; return what it prints."""
    needed, settings, *_ = VARIANTS[variant]
    features = binding.get_host_cpu_features()
    if missing := sorted(feature for feature in needed if not features.get(feature)):
        pytest.skip(f"this processor has no {' and no '.join(missing)}")
    own = {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("NUMBA_")}
    done = subprocess.run(
        [sys.executable, "-c", script], env=inherited | settings | own,
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
