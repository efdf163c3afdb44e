"""The nearest of many images: against everyone who searches, and against ourselves without bounds.

Ours has its references ready as the peers have their indexes; what that takes is a row of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import pipeline
from benchmarks import peers_neighbours as peers
from benchmarks.images import FURTHEST, TRAIN_TO_TEST
from benchmarks.measure import Contestant, MismatchError, Readings, SkippedError, race
from benchmarks.ours import remove_run
from benchmarks.peers_arrays import set_threads
from benchmarks.results import Row, growth_row, note_row, speed_row
from benchmarks.workbench import CIFAR, Workbench, cifar_store
from pipeline.core.exact import NOWHERE
from pipeline.core.schema import IMAGE
from pipeline.kernels import cpu_nearest, search_data

K = 10
QUERIES, REFERENCES = 10_000, 60_000
FEW = 500  # queries of peers that take minutes for all
NOISE = 20_000
RADIUS = 0.01
LARGER = 10
# Seconds from which one turn of a contestant has to do.
LONG = 5.0

OURS = "ours"
PLAIN = "our own plain loop without the bounds"
PREPARED = "preparing the references"
KERNELS = "the kernels alone, images in memory"
# How many times as fast as each ours is to be, by metric; the others are reported.
WANTED = {
    "l1": {peers.FAISS_L1: 60.0, PLAIN: 8.0},
    "l2": {peers.FAISS_L2: 5.0, peers.NUMKONG: 2.0, peers.FAISS_BYTES: 2.0},
}
CIFAR_WANTED = {peers.FAISS_L1: 30.0}
MOST_TIME, MOST_MEMORY, MOST_AROUND = 6.0, 1.1, 1.15

TESTS = Path(__file__).resolve().parent.parent
Flat = npt.NDArray[np.uint8]


class Ours:
    """A search of ours, its references prepared, and what each stage of it left."""

    def __init__(self, references: Flat, shape: tuple[int, ...], metric: str, threads: int) -> None:
        self.given = references, shape, metric
        self.threads = threads
        self.prepared = self.prepare()
        self.seen = np.zeros(4)

    def prepare(self, bounded: bool = True) -> search_data.References:
        return search_data.prepare_search(*self.given, bounded=bounded, threads=self.threads)

    def search(self, queries: Flat, prepared: search_data.References) -> peers.Found:
        """Return the distances and the indices of the nearest."""
        lists = np.full((2, len(queries), K), NOWHERE)
        skip = np.full(len(queries), -1)
        seen = cpu_nearest.nearest(queries, prepared, skip, *lists, self.threads)
        if prepared is self.prepared:
            self.seen = seen
        return lists[0], lists[1]

    @property
    def left(self) -> str:
        """What share of the candidates each stage left."""
        pairs, coarse, fine, _ = self.seen / max(self.seen[0], 1)
        return f"coarse sketches left {coarse:.2%}, fine ones {fine:.2%}" if pairs else ""


def rows(bench: Workbench) -> Iterator[Row]:
    """Measure searches among 60,000 images; then noise, pairs, and how memory grows."""
    set_threads(bench.threads)
    inner = slice(FURTHEST, -FURTHEST)
    splits = bench.originals.splits
    train, test = (splits[name][0][:, inner, inner] for name in ("train", "test"))
    title = bench.originals.title
    few = test[: min(QUERIES, bench.count // TRAIN_TO_TEST)], train[: min(REFERENCES, bench.count)]
    for metric in ("l1", "l2"):
        yield from _searches(bench, title, few, metric)
    yield from _on_cifar(bench)
    yield from _on_noise(bench)
    yield from _job(bench)
    yield from _pairs(bench)
    yield from _memory(bench)


def _flat(images: npt.NDArray[np.uint8]) -> Flat:
    return np.ascontiguousarray(images).reshape(len(images), -1)


def _searches(
    bench: Workbench, title: str, images: tuple[Any, Any], metric: str, cifar: bool = False
) -> Iterator[Row]:
    queries, references = map(_flat, images)
    mine = Ours(references, images[1].shape[1:], metric, bench.threads)
    what = f"{len(queries):,} of {title} among {len(references):,}, {metric}"
    few = queries[:FEW]
    plain = mine.prepare(bounded=False)
    fast = [Contestant(OURS, lambda: mine.search(queries, mine.prepared))]
    slow = [Contestant(OURS, lambda: mine.search(few, mine.prepared))]
    fast.append(Contestant(PLAIN, lambda: mine.search(queries, plain)))
    fast.append(_contestant(f"faiss {metric}", peers.faiss_flat(queries, references, K, metric)))
    names = {f"faiss {metric}": peers.FAISS_L1 if metric == "l1" else peers.FAISS_L2}
    if metric == "l2":
        fast.append(_contestant(peers.FAISS_BYTES, peers.faiss_bytes(queries, references, K)))
        numkong = peers.numkong_products(queries, references, K, bench.threads)
        fast.append(_contestant(peers.NUMKONG, numkong))
    if not cifar:
        slow.append(
            _contestant(peers.SKLEARN[metric], peers.sklearn_brute(few, references, K, metric))
        )
        slow.append(_contestant(peers.TORCH[metric], peers.torch_cdist(few, references, K, metric)))
    wanted = CIFAR_WANTED if cifar else WANTED[metric]
    for group, count in ((fast, len(queries)), (slow, len(few))):
        if len(group) < 2:
            continue
        wrong: dict[str, str] = {}
        times = _take_turns(group, bench.repeats, wrong)
        note = mine.left if group is fast else f"{count} queries"
        for contestant in group[1:]:
            peer = names.get(contestant.name, contestant.name)
            notes = "; ".join(filter(None, [note, wrong.get(contestant.name)]))
            yield speed_row(
                what, peer, times[OURS], times[contestant.name], wanted.get(peer), notes
            )
    yield _prepared_row(mine, what, times_of=lambda: mine.search(queries, mine.prepared))


def _contestant(name: str, search: peers.Search) -> Contestant:
    return Contestant(name, search)


def _take_turns(
    contestants: list[Contestant], repeats: int, notes: dict[str, str]
) -> dict[str, Readings]:
    """Run each once and compare the results; those that are not long have their turns then."""
    results, seconds = {}, {}
    for contestant in contestants:
        started = time.perf_counter()
        results[contestant.name] = contestant.run()
        seconds[contestant.name] = time.perf_counter() - started
    _check(results, notes)
    short = [contestant for contestant in contestants if seconds[contestant.name] < LONG]
    times = race(short, repeats, lambda _: None)
    return {name: times.get(name, Readings((once,))) for name, once in seconds.items()}


def _prepared_row(mine: Ours, what: str, times_of: Any) -> Row:
    contestants = [Contestant(PREPARED, mine.prepare), Contestant(OURS, times_of)]
    times = race(contestants, 1, lambda _: None)
    note = f"{PREPARED} takes {times[PREPARED].median:.2f} s, the search {times[OURS].median:.2f} s"
    return note_row(what, note)


def _check(results: Mapping[str, Any], notes: dict[str, str]) -> None:
    """Compare distances with ours; count neighbours that are others, or in another order."""
    mine = results[OURS]
    for name, (distances, indices) in results.items():
        if name == PLAIN and not all(map(np.array_equal, results[name], mine)):
            raise MismatchError(f"{name}: other neighbours than with them")
        close = np.isclose(np.asarray(distances, np.float64), mine[0], rtol=1e-4, atol=64)
        if (
            close.mean() < 0.99
        ):  # the products of torch and scikit-learn cancel where images are alike
            raise MismatchError(f"{name}: {1 - close.mean():.2%} of the distances are not ours")
        differing = int((np.asarray(indices) != mine[1]).sum())
        if differing:
            notes[name] = f"{differing:,} of {mine[1].size:,} neighbours differ or stand elsewhere"


def _on_cifar(bench: Workbench) -> Iterator[Row]:
    store = cifar_store(bench)
    if store is None:
        yield note_row(CIFAR, "the archive is not at hand (PIXSIM_DATASETS)")
        return
    splits = [pipeline.open_images(store, name)["image"].values for name in ("test", "train")]
    images = splits[0][: min(QUERIES, bench.count // TRAIN_TO_TEST)], splits[1][: bench.count]
    yield from _searches(bench, "CIFAR-10", images, "l1", cifar=True)


def _on_noise(bench: Workbench) -> Iterator[Row]:
    rng = np.random.default_rng(0)
    references = rng.integers(0, 256, (NOISE, 784), np.uint8)
    queries = rng.integers(0, 256, (FEW, 784), np.uint8)
    mine = Ours(references, (28, 28), "l1", bench.threads)
    plain = mine.prepare(bounded=False)
    contestants = [
        Contestant(OURS, lambda: mine.search(queries, mine.prepared)),
        Contestant(PLAIN, lambda: mine.search(queries, plain)),
    ]
    times = race(contestants, bench.repeats, partial(_check, notes={}))
    what = f"{FEW} of uniform noise among {NOISE:,}, l1"
    yield speed_row(what, PLAIN, times[OURS], times[PLAIN], 0.95)


def _job(bench: Workbench) -> Iterator[Row]:
    """Measure a whole job, its tables written, beside the kernels on images in memory."""
    count = min(bench.count, REFERENCES)
    store, output = bench.store(count), bench.run_folder("neighbours")
    images = pipeline.open_images(store, "train")[IMAGE.name].values
    flat = _flat(images)

    def kernels() -> npt.NDArray[np.int64]:
        mine = Ours(flat, images.shape[1:], "l1", bench.threads)
        lists = np.full((2, count, K), NOWHERE)
        cpu_nearest.nearest(flat, mine.prepared, np.arange(count), *lists, bench.threads)
        return lists[1]

    settings = {
        "name": "neighbours", "images": str(store), "output": str(output), "metrics": "l1",
        "evaluate": "train", "neighbours": {"k": K}, "distances": "skip", "report": False,
        "cluster": {"workers": bench.threads}, "device": "cpu",
    }  # fmt: skip
    contestants = [
        Contestant(OURS, lambda: pipeline.run_job(settings), after=lambda: remove_run(output)),
        Contestant(KERNELS, kernels),
    ]

    def check(results: Mapping[str, Any]) -> None:
        frame = results[OURS].neighbours.compute()
        if not np.array_equal(frame["neighbour"].to_numpy(), results[KERNELS].reshape(-1)):
            raise MismatchError("the tables of the job have other neighbours than the kernels")

    times = race(contestants, bench.repeats, check)
    what = f"a job with neighbours, {count:,} among {count:,}, l1, tables written"
    yield growth_row(what, KERNELS, times[OURS], times[KERNELS], MOST_AROUND)


def _child(bench: Workbench, what: str, count: int) -> dict[str, Any]:
    """Search a store in a process of its own; return seconds, peak memory and what it found."""
    command = [
        sys.executable, "-m", "benchmarks.child_neighbours",
        what, str(bench.store(count)), str(bench.threads),
    ]  # fmt: skip
    paths = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise MismatchError(f"{what} on {count:,} images failed: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _sizes(bench: Workbench) -> tuple[int, int]:
    large = max(bench.count, LARGER)
    return large // LARGER, large


def _pairs(bench: Workbench) -> Iterator[Row]:
    counts = _sizes(bench)
    try:
        found = [_child(bench, "pairs", count) for count in counts]
    except SkippedError as error:
        yield note_row("pairs within a radius", str(error))
        return
    times = [Readings((one["seconds"] / count,)) for one, count in zip(found, counts, strict=True)]
    note = ", ".join(
        f"{one['pairs']:,} pairs of {n:,} in {one['seconds']:.1f} s"
        for one, n in zip(found, counts, strict=True)
    )
    what = f"time an image of the pairs within {RADIUS} among {counts[1]:,}, l1"
    yield growth_row(what, f"among {counts[0]:,}", times[1], times[0], MOST_TIME, note=note)


def _memory(bench: Workbench) -> Iterator[Row]:
    counts = _sizes(bench)
    try:
        found = [_child(bench, "neighbours", count) for count in counts]
    except SkippedError as error:
        yield note_row("peak memory", str(error))
        return
    peaks = [Readings((float(one["peak_memory"]),)) for one in found]
    what = f"peak memory of {K} neighbours of 2,000 images among {counts[1]:,}, l1"
    yield growth_row(what, f"among {counts[0]:,}", peaks[1], peaks[0], MOST_MEMORY, "bytes")
