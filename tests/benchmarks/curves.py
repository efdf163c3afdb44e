"""What ours and its peers cost with more images, and with more classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks import ours, peers_arrays, peers_store
from benchmarks.compare import FLOAT32_TOLERANCE, require_close, require_equal
from benchmarks.images import TRAIN_TO_TEST
from benchmarks.measure import Check, Contestant, race
from benchmarks.workbench import ClassSums, Workbench

# Medians of three: a picture spans decades.
TURNS = 3
IMAGE_STEPS = (1_000, 3_000, 10_000, 30_000, 100_000, 300_000)
# Broadcasting 30,000 images holds 2 GB at once.
MOST_IN_MEMORY = 30_000
CLASSES = (2, 10, 30, 100, 300, 1000)
CLASS_IMAGES = 5_000
TRAIN_IMAGES = 60_000

MEANS, JOB = "pixsim", "pixsim"
DISTANCES = "pixsim, l1 and l2"
OURS = (MEANS, DISTANCES)
READING = "only reading, dask"
FLOX = "xarray with flox"
FLOX_FASTEST = "xarray with flox, engine='flox'"
BROADCAST = "broadcasting, l1"
CDIST = "torch.cdist, l1"
NEAREST = "NearestCentroid, l2"
FAISS = "faiss flat, l1"


@dataclass(frozen=True)
class Panel:
    """Seconds over something, for each contestant.

    Attributes
    ----------
    title, across
        What is measured, and what is counted along x.
    places
        The values along x.
    seconds
        Contestant -> median seconds at each of them.
    """

    title: str
    across: str
    places: tuple[int, ...]
    seconds: Mapping[str, Sequence[float]]

    def as_dict(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "across": self.across,
            "places": list(self.places),
            "seconds": {name: list(values) for name, values in self.seconds.items()},
        }


Entry = tuple[list[Contestant], Check]


def _measure(
    title: str, across: str, places: Sequence[int], enter: Callable[[int], Entry]
) -> Panel:
    """Let the contestants of each place race, one place after the other."""
    seconds: dict[str, list[float]] = {}
    for place in places:
        contestants, check = enter(place)
        for name, readings in race(contestants, TURNS, check).items():
            seconds.setdefault(name, []).append(readings.median)
    return Panel(title, across, tuple(places), seconds)


def image_counts(most: int) -> list[int]:
    """Return the numbers of images along x, up to `most`."""
    return [*(step for step in IMAGE_STEPS if step < most), most]


def means_panel(bench: Workbench) -> Panel:
    """Measure class means of stores."""

    def enter(count: int) -> Entry:
        store = bench.store(count)

        def check(results: Mapping[str, Any]) -> None:
            for name in (FLOX, FLOX_FASTEST):
                require_close(name, results[name], results[MEANS], 1e-9)

        return [
            Contestant(MEANS, lambda: ours.class_means(store)),
            Contestant(READING, lambda: peers_store.read(store, "train")),
            Contestant(FLOX, lambda: peers_store.flox_means(store)),
            Contestant(FLOX_FASTEST, lambda: peers_store.flox_means(store, "flox")),
        ], check

    return _measure("class means of a store", "images", image_counts(bench.count), enter)


def job_panel(bench: Workbench) -> Panel:
    """Measure the whole job on stores."""

    def enter(count: int) -> Entry:
        store, output = bench.store(count), bench.run_folder("curves")

        def check(results: Mapping[str, Any]) -> None:
            tested = results[JOB].metrics["l1"]["count"]
            require_equal("images tested", tested, count // TRAIN_TO_TEST)

        return [
            Contestant(
                JOB,
                lambda: ours.run_job(store, output, bench.threads),
                after=lambda: ours.remove_run(output),
            ),
            Contestant(READING, lambda: peers_store.read(store, "train", "test")),
        ], check

    title = f"whole job, a test image for every {TRAIN_TO_TEST} train images"
    return _measure(title, "train images", image_counts(bench.count), enter)


def distances_panel(bench: Workbench) -> Panel:
    """Measure distances to the means of all classes."""
    fitted = bench.class_sums(TRAIN_IMAGES)

    def enter(count: int) -> Entry:
        return _distances(bench, count, fitted, broadcast=True)

    title = f"distances to {len(fitted.counts)} means, in memory"
    return _measure(title, "images", image_counts(MOST_IN_MEMORY), enter)


def classes_panel(bench: Workbench) -> Panel:
    """Measure distances to the means of made-up classes; broadcasting would not fit memory."""

    def enter(classes: int) -> Entry:
        fitted = bench.class_sums(TRAIN_IMAGES, classes)
        return _distances(bench, CLASS_IMAGES, fitted, broadcast=False)

    return _measure(f"distances of {CLASS_IMAGES:,} images, in memory", "classes", CLASSES, enter)


def _distances(bench: Workbench, count: int, fitted: ClassSums, broadcast: bool) -> Entry:
    peers_arrays.set_threads(bench.threads)
    images, _ = bench.arrays("test", count)
    reference = fitted.reference()
    ready = peers_arrays.make_ready(images, fitted.means, bench.threads)

    def check(results: Mapping[str, Any]) -> None:
        found = results[CDIST] / np.float32(fitted.sums.shape[1])
        require_close(CDIST, found, results[DISTANCES][0], FLOAT32_TOLERANCE)

    contestants = [
        Contestant(DISTANCES, lambda: ours.distances(images, reference, bench.threads)),
        Contestant(CDIST, lambda: peers_arrays.cdist(ready, 1)),
        Contestant(NEAREST, lambda: peers_arrays.predict_nearest(ready)),
        Contestant(FAISS, lambda: peers_arrays.search(ready, "l1")),
    ]
    if broadcast:
        contestants.append(Contestant(BROADCAST, lambda: peers_arrays.broadcast_l1(ready)))
    return contestants, check
