"""The median image of each class: ours out of core, NumPy's with all images in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import ours
from benchmarks.compare import require_equal
from benchmarks.measure import Contestant, race
from benchmarks.results import Row, speed_row
from benchmarks.workbench import Workbench

# Of the images that most rows read; 60,000 of 600,000.
PART, FEWEST = 10, 200
OURS = "pixsim"
READING = "reading and decoding alone"
NUMPY = "numpy.median per class, all in memory"
WANTED = 5.0


def numpy_medians(
    images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int32], classes: int
) -> npt.NDArray[np.float64]:
    """Return the median of each class, [class, y, x]."""
    return np.stack([np.median(images[labels == code], axis=0) for code in range(classes)])


def rows(bench: Workbench) -> Iterator[Row]:
    """Measure medians of stores, of two sizes, against those of arrays that were in memory."""
    for originals in bench.sets:
        for part in (PART, PART**2):
            yield from _rows(bench.of(originals), max(FEWEST, bench.count // part))


def _rows(bench: Workbench, count: int) -> Iterator[Row]:
    store = bench.store(count)
    images, labels = bench.arrays("train", count)
    classes = len(bench.originals.class_names)
    contestants = [
        Contestant(OURS, lambda: ours.class_medians(store)),
        Contestant(READING, lambda: ours.pass_over(store, bench.threads, ["train"])),
        Contestant(NUMPY, lambda: numpy_medians(images, labels, classes)),
    ]

    def check(results: Mapping[str, Any]) -> None:
        require_equal(READING, results[READING], count)
        require_equal(NUMPY, results[NUMPY], results[OURS])

    times = race(contestants, bench.repeats, check)
    what = f"class medians of a store of {count:,} images, {bench.originals.title}"
    aim = WANTED if count == bench.count // PART else None
    limit = times[READING].median  # every image must be read once
    yield speed_row(what, NUMPY, times[OURS], times[NUMPY], aim, limit=limit)
