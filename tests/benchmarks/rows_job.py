"""The whole job, in this process and after imports, against reading its images once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from benchmarks import ours, peers_arrays, peers_store
from benchmarks.compare import require_close, require_equal
from benchmarks.images import TRAIN_TO_TEST
from benchmarks.measure import Contestant, race
from benchmarks.results import Row, speed_row
from benchmarks.workbench import Workbench

OURS = "pixsim"
READING = "reading both splits once, dask"
READING_WANTED = 0.8
OUR_READING, LIMIT = "reading both splits once, pixsim", "reading and kernels, pixsim"

MEANS_OF = 60_000
PART = 10  # the smaller set has a tenth of the images
SPLITS = ("train", "test")

# Images that the oracle holds at once, and how much of its accuracy near-ties may change.
ORACLE_IMAGES = 16_384
ACCURACY_TOLERANCE = 1e-3


def rows(bench: Workbench) -> Iterator[Row]:
    """Measure means, distances, tables and metrics together, of both kinds of images.

    The limit is what a job cannot do without: both splits read once by pixsim, and the kernels.
    """
    for originals in bench.sets:
        for count in (bench.count, max(1, bench.count // PART)):
            yield from _rows(bench.of(originals), count)


def _rows(bench: Workbench, count: int) -> Iterator[Row]:
    store = bench.store(count)
    means = bench.class_sums(min(count, MEANS_OF)).reference()  # any will do for the time
    output = bench.run_folder("job")
    contestants = [
        Contestant(
            OURS,
            lambda: ours.run_job(store, output, bench.threads),
            after=lambda: ours.remove_run(output),
        ),
        Contestant(READING, lambda: peers_store.read(store, "train", "test")),
        Contestant(OUR_READING, lambda: ours.pass_over(store, bench.threads, SPLITS)),
        Contestant(LIMIT, lambda: ours.pass_over(store, bench.threads, SPLITS, means)),
    ]
    tested = count // TRAIN_TO_TEST

    def check(results: Mapping[str, Any]) -> None:
        for name in (READING, OUR_READING, LIMIT):
            require_equal(name, results[name], count + tested)
        found = results[OURS].metrics["l2"]
        require_equal("images tested", tested, found["count"])
        expected = nearest_mean_accuracy(store)
        require_close("accuracy by l2", expected, found["accuracy"], ACCURACY_TOLERANCE)

    times = race(contestants, bench.repeats, check)
    images = f"{count:,} train and {tested:,} test images, {bench.originals.title}"
    what = f"whole job less its report, {images}"
    reading, limit = times[OUR_READING].median, times[LIMIT].median
    note = f"reading takes {1e3 * reading:.0f} ms, with the kernels {1e3 * limit:.0f} ms"
    aim = READING_WANTED if count == bench.count else None
    yield speed_row(what, READING, times[OURS], times[READING], aim, note, limit)


def nearest_mean_accuracy(store: Path) -> float:
    """Return what the job is to find by l2, from flox's means and scikit-learn's predictions."""
    means = peers_store.flox_means(store, engine="flox")
    nearest = peers_arrays.fit_nearest(means.reshape(len(means), -1))
    test = xr.open_zarr(store, group="test", chunks=None)
    right = 0
    for start in range(0, test.sizes["sample"], ORACLE_IMAGES):
        part = test.isel(sample=slice(start, start + ORACLE_IMAGES)).load()
        images = part["image"].values.reshape(part.sizes["sample"], -1)
        predicted = nearest.predict(images.astype(np.float64))
        right += int((predicted == part["label"].values).sum())
    return right / int(test.sizes["sample"])
