"""Hypothesis strategies and oracles that the tests of the numeric core share."""

from __future__ import annotations

from fractions import Fraction
from math import isqrt

import numpy as np
import pytest
import xarray as xr
from hypothesis import strategies as st
from kernel_checks_for_tests import oracle_lists as oracle_lists
from kernel_checks_for_tests import oracle_numerators as oracle_numerators
from kernel_checks_for_tests import oracle_sums as oracle_sums

from pipeline.core.errors import ConfigError
from pipeline.kernels import backends


def _has_cuda():
    try:
        return backends.has_cuda_driver() and bool(backends.load("cuda"))
    except ConfigError:
        return False


HAS_CUDA = _has_cuda()
SEARCHING = ("cpu", "torch:cpu", *(["cuda"] if HAS_CUDA else []))
DEVICES_HERE = ("cpu", "numpy", "torch:cpu", *(["cuda"] if HAS_CUDA else []))
DEVICES = ["cpu", "numpy", "torch:cpu", pytest.param("cuda", marks=pytest.mark.skipif(
    not HAS_CUDA, reason="torch sees no CUDA device"))]  # fmt: skip


@st.composite
def labelled_blocks(draw, max_samples=9, dtypes=(np.uint8, np.uint16)):
    """Images, labels and class names: every shape, type and distribution that is allowed.

    Empty classes, unlabelled images, constant, black and saturated images all occur, and values
    beside those where the high byte of a 16-bit pixel changes.
    """
    samples = draw(st.integers(0, max_samples))
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 5)))
    if draw(st.booleans()):
        shape = (*shape, draw(st.integers(1, 4)))
    dtype = draw(st.sampled_from(dtypes))
    classes = draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    largest = np.iinfo(dtype).max
    borders = [0, 1, 254, 255, 256, 257, 511, 512, 65279, 65280, 65534, 65535]
    kind = draw(
        st.sampled_from(["random", "black", "saturated", "constant", "extremes", "borders"])
    )
    images = {
        "random": lambda: rng.integers(0, largest + 1, (samples, *shape)),
        "black": lambda: np.zeros((samples, *shape)),
        "saturated": lambda: np.full((samples, *shape), largest),
        "constant": lambda: np.full((samples, *shape), rng.integers(0, largest + 1)),
        "extremes": lambda: rng.integers(0, 2, (samples, *shape)) * largest,
        "borders": lambda: rng.choice([v for v in borders if v <= largest], (samples, *shape)),
    }[kind]().astype(dtype)
    labels = rng.integers(-1, classes, samples).astype(np.int32)
    return images, labels, [f"class {code}" for code in range(classes)]


@st.composite
def chunkings(draw, samples):
    """A way to cut `samples` into chunks."""
    if not samples:
        return (0,)
    cuts = draw(st.sets(st.integers(1, max(samples - 1, 1)), max_size=samples - 1))
    edges = [0, *sorted(cut for cut in cuts if cut < samples), samples]
    return tuple(np.diff(edges).tolist())


def as_dataset(images, labels, names, chunks=None, **attributes):
    """Build what `open_images` returns, of arrays in memory."""
    dims = ("sample", "y", "x", "channel")[: images.ndim]
    dataset = xr.Dataset(
        {"image": (dims, images)},
        {"label": ("sample", labels), "sample": np.arange(len(images))},
        {"class_names": names, **attributes},
    )
    return dataset if chunks is None else dataset.chunk({"sample": chunks})


def flat(images):
    """Images, [sample, ...], as the kernels take them, [sample, pixel]."""
    return images.reshape(len(images), int(np.prod(images.shape[1:])))


def oracle_distances(image, numerator, denominator, full_scale):
    """The exact l1, and the exact square of l2, as fractions; None for a class without images."""
    if not denominator:
        return None
    x, p = image.reshape(-1).tolist(), numerator.reshape(-1).tolist()
    differences = [a - Fraction(b, int(denominator)) for a, b in zip(x, p, strict=True)]
    scale = len(x) * full_scale
    l1 = sum((abs(d) for d in differences), Fraction(0)) / scale
    l2_squared = sum((d * d for d in differences), Fraction(0)) / (scale * full_scale)
    return l1, l2_squared


def is_root(value, square):
    """Tell whether a double is the root of a fraction, but for three roundings."""
    exact = Fraction(isqrt((square.numerator << 400) // square.denominator), 1 << 200)
    return abs(Fraction(float(value)) - exact) <= exact * Fraction(3, 2**53)


def raise_if_computed(*_arguments, **_settings):
    """A dask scheduler under which nothing may compute."""
    raise AssertionError("something was computed")


@st.composite
def image_pairs(draw):
    """Two sets of images of one shape and type, some of them equal or nearly so.

    Constant, black, saturated and worst-case images occur, and images that differ in one pixel.
    """
    shape = draw(st.tuples(st.integers(1, 9), st.integers(1, 20)))
    if draw(st.booleans()):
        shape = (*shape, draw(st.integers(1, 3)))
    dtype = draw(st.sampled_from([np.uint8, np.uint16]))
    counts = draw(st.integers(1, 9)), draw(st.integers(1, 150))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    largest = np.iinfo(dtype).max
    kind = draw(st.sampled_from(["random", "few", "constant", "extremes", "near"]))
    total = (sum(counts), *shape)
    base = rng.integers(0, largest + 1, (3, *shape))
    images = {
        "random": lambda: rng.integers(0, largest + 1, total),
        "few": lambda: base[rng.integers(0, 3, total[0])],
        "constant": lambda: np.full(total, rng.integers(0, largest + 1)),
        "extremes": lambda: rng.integers(0, 2, total) * largest,
        "near": lambda: base[0] // 2 + rng.integers(0, 2, total),
    }[kind]().astype(dtype)
    return images[: counts[0]], images[counts[0] :]


def fraction_of(images, kind):
    """The prototype of some images as an integer image and its denominator; None of no image."""
    if not len(images):
        return None
    if kind == "mean":
        return images.astype(object).sum(axis=0), len(images)
    return (2 * np.median(images, axis=0)).astype(np.int64), 2


def check_left_out(images, labels, kind, found, plain):
    """Compare distances with those to prototypes that are made of all images but one.

    `found` and `plain` are [metric, sample, class], without the image and with it: of other classes
    they are the same.
    """
    full_scale = int(np.iinfo(images.dtype).max)
    for sample, (image, label) in enumerate(zip(images, labels, strict=True)):
        others = [code for code in range(found.shape[2]) if code != label]
        left, right = found[:, sample, others], plain[:, sample, others]
        assert left.tobytes() == right.tobytes()
        if label < 0:
            continue
        rest = np.delete(images, sample, axis=0)[np.delete(labels, sample) == label]
        prototype = fraction_of(rest, kind)
        l1, l2 = found[:, sample, label]
        if prototype is None:
            assert np.isnan([l1, l2]).all()
            continue
        exact = oracle_distances(image, *prototype, full_scale)
        assert l1 == float(exact[0])
        assert is_root(l2, exact[1])
