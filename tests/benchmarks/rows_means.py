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
READING = "only reading and decoding, dask"
FLOX_WANTED = 12.0
READING_WANTED = 0.85
# Means are divided in float64 by everyone.
TOLERANCE = 1e-9


def rows(bench: Workbench) -> Iterator[Row]:
    """Measure class means of the store."""
    store = bench.store(bench.count)
    contestants = [
        Contestant(OURS, lambda: ours.class_means(store)),
        Contestant(READING, lambda: peers_store.read(store, "train")),
        Contestant(FLOX, lambda: peers_store.flox_means(store)),
        Contestant(FLOX_FASTEST, lambda: peers_store.flox_means(store, engine="flox")),
    ]

    def check(results: Mapping[str, Any]) -> None:
        for name in (FLOX, FLOX_FASTEST):
            require_close(name, results[name], results[OURS], TOLERANCE)
        require_equal(READING, results[READING], bench.count)

    times = race(contestants, bench.repeats, check)
    what = f"class means of a store of {bench.count:,} images"
    yield speed_row(what, FLOX, times[OURS], times[FLOX], FLOX_WANTED)
    yield speed_row(what, FLOX_FASTEST, times[OURS], times[FLOX_FASTEST])
    yield speed_row(what, READING, times[OURS], times[READING], READING_WANTED)
