"""Class means of a store, end to end: against flox, and against nothing but reading it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks import ours, peers_store
from benchmarks.compare import require_close, require_equal
from benchmarks.measure import Contestant, race
from benchmarks.results import Row, speed_row
from benchmarks.workbench import Workbench

OURS = "pixsim"
FLOX = "xarray groupby, flox"
FLOX_FASTEST = "xarray groupby, flox, engine='flox'"
OUR_READING = "only reading and decoding, pixsim"
READING = "only reading and decoding, dask"
FLOX_WANTED = 12.0
READING_WANTED = 0.85
# Means are divided in float64 by everyone.
TOLERANCE = 1e-9


PART = 10  # the smaller store has a tenth of the images


def rows(bench: Workbench) -> Iterator[Row]:
    """Measure class means of stores of both kinds of images, in two sizes."""
    for originals in bench.sets:
        for count in (bench.count, max(1, bench.count // PART)):
            yield from _rows(bench.of(originals), count)


def _rows(bench: Workbench, count: int) -> Iterator[Row]:
    store = bench.store(count)
    contestants = [
        Contestant(OURS, lambda: ours.class_means(store)),
        Contestant(READING, lambda: peers_store.read(store, "train")),
        Contestant(OUR_READING, lambda: ours.pass_over(store, bench.threads, ["train"])),
        Contestant(FLOX, lambda: peers_store.flox_means(store)),
        Contestant(FLOX_FASTEST, lambda: peers_store.flox_means(store, engine="flox")),
    ]

    def check(results: Mapping[str, Any]) -> None:
        for name in (FLOX, FLOX_FASTEST):
            require_close(name, results[name], results[OURS], TOLERANCE)
        for name in (READING, OUR_READING):
            require_equal(name, results[name], count)

    times = race(contestants, bench.repeats, check)
    what = f"class means of a store of {count:,} images, {bench.originals.title}"
    limit = times[OUR_READING].median  # every image must be read once
    targets = {FLOX: FLOX_WANTED, FLOX_FASTEST: None, READING: READING_WANTED}
    for peer, wanted in targets.items():
        aim = wanted if count == bench.count else None
        yield speed_row(what, peer, times[OURS], times[peer], aim, limit=limit)
