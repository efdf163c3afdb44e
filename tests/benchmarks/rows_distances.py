"""Distances of 10,000 images in memory to ten means and to 1,000, against all who measure some."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import ours, peers_arrays
from benchmarks.compare import FLOAT32_TOLERANCE, require_close, require_equal, require_nearest
from benchmarks.measure import Contestant, race
from benchmarks.peers_arrays import ReadyArrays
from benchmarks.results import Row, speed_row
from benchmarks.workbench import Workbench

IMAGES = 10_000
TRAIN_IMAGES = 60_000

OURS = "l1, l2"
OURS_PREDICT = "l1, l2, nearest"
ONE_L1 = "the nearest by l1 alone"
ONE_L2 = "the nearest by l2 alone"
MANY = 1000
BROADCAST = "the article's broadcasting in torch, l1"
TORCH_L1 = "torch.cdist(p=1), l1"
TORCH_L2 = "torch.cdist(p=2), l2"
SCIPY = "scipy cdist cityblock, l1, float64"
NEAREST = "scikit-learn NearestCentroid.predict, l2"
FAISS_L1 = "faiss IndexFlat, nearest by l1"
FAISS_L2 = "faiss IndexFlat, nearest by l2"
DASK_L1 = "dask-ml pairwise_distances, l1"
DASK_L2 = "dask-ml pairwise_distances, l2"

# How many times as fast as each ours is to be; the others are reported.
WANTED = {BROADCAST: 50.0, TORCH_L1: 12.0, SCIPY: 10.0, NEAREST: 6.0}
_WANTED_OF_FEW = {(ONE_L1, FAISS_L1): 2.0}
_WANTED_OF_MANY = {(OURS, FAISS_L1): 2.0, (OURS, NEAREST): 1.5, (ONE_L2, NEAREST): 4.0}
PEERS = (
    TORCH_L1, BROADCAST, NEAREST, SCIPY, TORCH_L2, FAISS_L1, FAISS_L2, DASK_L1, DASK_L2,
)  # fmt: skip
# These predict, so ours takes the nearest mean as well.
PREDICTING = (NEAREST, FAISS_L1, FAISS_L2)


def rows(bench: Workbench) -> Iterator[Row]:
    """Measure distances in memory; peers have float32 (scipy: float64) ready, ours has uint8."""
    peers_arrays.set_threads(bench.threads)
    for originals in bench.sets:
        yield from _to_few(bench.of(originals))
        yield from _nearest(bench.of(originals), None)
        yield from _nearest(bench.of(originals), MANY)


def _nearest(bench: Workbench, classes: int | None) -> Iterator[Row]:
    """Measure what predicts: the nearest mean, and all distances beside it."""
    images, _ = bench.arrays("test", IMAGES)
    fitted = bench.class_sums(TRAIN_IMAGES, classes)
    reference, threads = fitted.reference(), bench.threads
    ready = peers_arrays.make_ready(images, fitted.means, threads)
    contestants = [
        Contestant(OURS, lambda: ours.distances(images, reference, threads)),
        Contestant(ONE_L1, lambda: ours.nearest(images, reference, "l1", threads)),
        Contestant(ONE_L2, lambda: ours.nearest(images, reference, "l2", threads)),
        Contestant(FAISS_L1, lambda: peers_arrays.search(ready, "l1")),
        Contestant(NEAREST, lambda: peers_arrays.predict_nearest(ready)),
    ]

    def check(results: Mapping[str, Any]) -> None:
        l1, l2 = results[OURS]
        require_equal(ONE_L1, results[ONE_L1], l1.argmin(axis=1))
        require_equal(ONE_L2, results[ONE_L2], l2.argmin(axis=1))
        require_nearest(FAISS_L1, results[FAISS_L1][1], l1)
        require_nearest(NEAREST, results[NEAREST], l2)

    times = race(contestants, bench.repeats, check)
    means = len(reference.denominators)
    what = f"{IMAGES:,} images of {bench.originals.title} to {means:,} means: "
    wanted = _WANTED_OF_MANY if classes else _WANTED_OF_FEW
    for mine, metrics in ((OURS, 2), (ONE_L1, 1), (ONE_L2, 1)):
        rounded = mine != OURS  # a bound spares the digits
        limit = ours.limit_seconds(IMAGES, reference, metrics, threads, rounded)
        for peer in (FAISS_L1, NEAREST):
            yield speed_row(
                what + mine, peer, times[mine], times[peer], wanted.get((mine, peer)), limit=limit
            )


def _to_few(bench: Workbench) -> Iterator[Row]:
    images, _ = bench.arrays("test", IMAGES)
    fitted = bench.class_sums(TRAIN_IMAGES)
    reference = fitted.reference()
    ready = peers_arrays.make_ready(images, fitted.means, bench.threads)
    contestants = [
        Contestant(OURS, lambda: ours.distances(images, reference, bench.threads)),
        Contestant(OURS_PREDICT, lambda: ours.predict_by_l2(images, reference, bench.threads)),
        *_peers(ready),
    ]
    times = race(contestants, bench.repeats, partial(_check, pixels=ready.images.shape[1]))
    means = len(reference.denominators)
    limit = ours.limit_seconds(IMAGES, reference, 2, bench.threads)
    for peer in PEERS:
        mine = OURS_PREDICT if peer in PREDICTING else OURS
        what = f"{IMAGES:,} images of {bench.originals.title} to {means} means: {mine}"
        yield speed_row(what, peer, times[mine], times[peer], WANTED.get(peer), limit=limit)


def _peers(ready: ReadyArrays) -> list[Contestant]:
    return [
        Contestant(BROADCAST, lambda: peers_arrays.broadcast_l1(ready)),
        Contestant(TORCH_L1, lambda: peers_arrays.cdist(ready, 1)),
        Contestant(TORCH_L2, lambda: peers_arrays.cdist(ready, 2)),
        Contestant(SCIPY, lambda: peers_arrays.scipy_l1(ready)),
        Contestant(NEAREST, lambda: peers_arrays.predict_nearest(ready)),
        Contestant(FAISS_L1, lambda: peers_arrays.search(ready, "l1")),
        Contestant(FAISS_L2, lambda: peers_arrays.search(ready, "l2")),
        Contestant(DASK_L1, lambda: peers_arrays.dask_ml(ready, "manhattan")),
        Contestant(DASK_L2, lambda: peers_arrays.dask_ml(ready, "euclidean")),
    ]


def _check(results: Mapping[str, Any], pixels: int) -> None:
    """Compare all with ours, in our units: the mean over pixels, or the root of that."""
    l1, l2 = results[OURS]
    in_our_units: dict[str, npt.NDArray[Any]] = {
        BROADCAST: results[BROADCAST],
        TORCH_L1: results[TORCH_L1] / pixels,
        SCIPY: results[SCIPY] / pixels,
        DASK_L1: results[DASK_L1] / pixels,
        TORCH_L2: results[TORCH_L2] / np.sqrt(pixels),
        DASK_L2: results[DASK_L2] / np.sqrt(pixels),
    }
    for name, found in in_our_units.items():
        require_close(name, found, l2 if name in (TORCH_L2, DASK_L2) else l1, FLOAT32_TOLERANCE)
    nearest, numbers = results[FAISS_L1]
    require_close(FAISS_L1, nearest / pixels, l1.min(axis=1), FLOAT32_TOLERANCE)
    require_nearest(FAISS_L1, numbers, l1)
    nearest, numbers = results[FAISS_L2]
    require_close(FAISS_L2, np.sqrt(nearest / pixels), l2.min(axis=1), FLOAT32_TOLERANCE)
    require_nearest(FAISS_L2, numbers, l2)
    require_nearest(NEAREST, results[NEAREST], l2)
    require_equal(OURS_PREDICT, results[OURS_PREDICT], l2.argmin(axis=1))
