"""What a search among all images of large sets costs: rates measured here, the rest worked out.

Rates are those of a search that has seen other groups before, as nearly all of a large one has. How
often images are read, and what a worker takes, is what `pixsim plan` would say.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

import pipeline
from benchmarks.peers_arrays import set_threads
from benchmarks.results import Row, note_row
from benchmarks.rows_neighbours import K
from benchmarks.workbench import CIFAR, Workbench, cifar_store
from pipeline.core.exact import NOWHERE
from pipeline.core.schema import IMAGE
from pipeline.execution.workers import Workers
from pipeline.jobs.memory_model import base_bytes
from pipeline.jobs.search_plan import arrange_search, cut_search
from pipeline.kernels import cpu_nearest, search_data

SIDE = 256  # to which pictures are enlarged, for want of as many that large
GROUPS, GROUP_BYTES = 4, 64 * 2**20
QUERIES = 85  # of large images; of small ones a hundred times as many
COUNTS, CORES = (10**6, 10**7, 10**8), (1, 100, 1000)
MEMORY = 4 * 10**9  # of a worker process with one core


@dataclass(frozen=True)
class Rates:
    """Seconds on one core: of a pair of images, and to prepare an image once."""

    pair: float
    prepare: float


def rows(bench: Workbench) -> Iterator[Row]:
    """Measure rates on small and large images; then say what large sets take with them."""
    set_threads(bench.threads)
    size = 28 * 28
    store = bench.store(bench.count)
    train, test = (pipeline.open_images(store, name)[IMAGE.name] for name in ("train", "test"))
    count = GROUPS * GROUP_BYTES // size
    small = _flat(train[:count].values), _flat(test[: 100 * QUERIES].values), (28, 28)
    yield from _sets(bench, "28 x 28", size, *small)
    store = cifar_store(bench)
    if store is None:
        yield note_row(CIFAR, "the archive is not at hand (PIXSIM_DATASETS)")
        return
    size = SIDE * SIDE * 3
    train, test = (pipeline.open_images(store, name)[IMAGE.name] for name in ("train", "test"))
    large = (
        _enlarged(train[: GROUPS * GROUP_BYTES // size].values), _enlarged(test[:QUERIES].values),
        (SIDE, SIDE, 3),
    )  # fmt: skip
    yield from _sets(bench, f"{SIDE} x {SIDE} x 3", size, *large)


def _flat(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return images.reshape(len(images), -1)


def _enlarged(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    pictures = [Image.fromarray(image).resize((SIDE, SIDE)) for image in images]
    return _flat(np.stack([np.asarray(picture) for picture in pictures]))


def _sets(
    bench: Workbench, what: str, size: int, references: Any, queries: Any, shape: tuple[int, ...]
) -> Iterator[Row]:
    for metric in ("l1", "l2"):
        rates = measure(references, queries, shape, metric, bench.threads)
        yield note_row(
            f"the {K} nearest among images of {what}, {metric}",
            f"{1e9 * rates.pair:.3g} ns a pair and core; {1e6 * rates.prepare:.3g} us a core to "
            "prepare an image, whenever its group is read",
        )
        if metric == "l1":
            for count, cores in itertools.product(COUNTS, CORES):
                yield note_row(
                    f"all of {count:,} images of {what}, l1", cost(rates, count, cores, size)
                )


def measure(
    references: Any, queries: Any, shape: tuple[int, ...], metric: str, threads: int
) -> Rates:
    """Search group after group; take the rates of the last."""
    lists = np.full((2, len(queries), K), NOWHERE)
    edges = [len(references) * at // GROUPS for at in range(GROUPS + 1)]
    for start, stop in itertools.pairwise(edges):
        begun = time.perf_counter()
        indices, part = np.arange(start, stop), references[start:stop]
        prepared = search_data.prepare_search(part, shape, metric, indices, threads=threads)
        between = time.perf_counter()
        cpu_nearest.nearest(queries, prepared, np.full(len(queries), -1), *lists, threads)
        ended = time.perf_counter()
    count = stop - start
    return Rates(
        threads * (ended - between) / (count * len(queries)), threads * (between - begun) / count
    )


def cost(rates: Rates, count: int, cores: int, size: int) -> str:
    """Say what the nearest of all images of a set among each other cost, a process a core."""
    search = cut_search({"all": count}, {"all": count}, K, ["l1"], size)
    workers = Workers(cores, 1, cores, MEMORY, apart=True)
    arrangement = arrange_search(search, workers, base_bytes(workers))
    reads = arrangement.reads(search, workers)
    read = (reads + arrangement.shares) * count * size
    busy = min(cores, arrangement.tasks(search))
    seconds = (rates.pair * count**2 + rates.prepare * reads * count) / busy
    memory = base_bytes(workers) + arrangement.memory
    return (
        f"{cores:,} core{'s' if cores > 1 else ''}: {_duration(seconds)}; {float(count) ** 2:.0e} "
        f"pairs, {_bytes(read)} read ({_bytes(read / seconds)}/s), {_bytes(memory)} a worker"
    )


def _duration(seconds: float) -> str:
    for unit, size in (("years", 365 * 86400), ("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def _bytes(size: float) -> str:
    for unit, factor in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size:.0f} bytes"
