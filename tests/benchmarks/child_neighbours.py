"""One search on a store in a process of its own: prints seconds and peak memory as JSON.

Run as `python -m benchmarks.child_neighbours pairs|neighbours STORE THREADS`. A small search comes
first, so that imports and the making of compiled code are not counted.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import pipeline
from benchmarks.measure import equal_threads
from benchmarks.rows_neighbours import RADIUS, K
from pipeline.execution.memory import peak_memory

QUERIES = 2_000


def main(what: str, store: str, threads: str) -> None:
    """Search among the train images of a store."""
    train, test = (pipeline.open_images(store, name) for name in ("train", "test"))
    with equal_threads(int(threads)):
        _search(what, train.isel(sample=slice(500)), test.isel(sample=slice(50)))
        started = time.perf_counter()
        found = _search(what, train, test.isel(sample=slice(QUERIES)))
        seconds = time.perf_counter() - started
    result = {"seconds": seconds, "peak_memory": peak_memory(), "pairs": found.sizes.get("pair")}
    sys.stdout.write(json.dumps(result) + "\n")


def _search(what: str, train: Any, test: Any) -> Any:
    if what == "pairs":
        return pipeline.pairs_within(train, radius=RADIUS)
    return pipeline.neighbours(test, train, k=K, metrics="l1").compute()


if __name__ == "__main__":
    main(*sys.argv[1:])
