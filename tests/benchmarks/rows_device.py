"""On a machine with a GPU: the bytes of images that are measured a second, against copying them.

Ours begins with pixels in ordinary memory and ends with distances there. The copies are the
least that any way of doing it has to do: once over the bus from pinned memory, or once
through the memory of the device.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from benchmarks import ours
from benchmarks.compare import require_equal
from benchmarks.measure import Contestant, Readings, SkippedError, race
from benchmarks.results import Row, speed_row
from benchmarks.workbench import Workbench

DEVICE = "cuda"
IMAGES = 200_000
TRAIN_IMAGES = 60_000
# One thread feeds the device, as one task of a job does.
DEVICE_THREADS = 1
# On the device this many copies of the images are copied at once, to be out of its caches.
COPIES = 8

OURS = "pixsim on the device, l1 and l2"
TO_DEVICE = "copying the same bytes to the device, from pinned memory"
ON_DEVICE = "reading and writing as many bytes in the device's memory"


def rows(bench: Workbench) -> Iterator[Row]:
    """Measure distances from images in memory; two copies are the peers."""
    if not torch.cuda.is_available():
        raise SkippedError("torch finds no GPU")
    images, _ = bench.arrays("test", IMAGES)
    fitted = bench.class_sums(TRAIN_IMAGES)
    reference = fitted.reference(DEVICE)
    pinned = torch.from_numpy(images).pin_memory()
    there = torch.empty_like(pinned, device=DEVICE)
    source = pinned.to(DEVICE).repeat(COPIES, 1, 1)
    target = torch.empty_like(source)
    contestants = [
        Contestant(OURS, lambda: ours.distances(images, reference, DEVICE_THREADS)),
        Contestant(TO_DEVICE, lambda: _copy(there, pinned)),
        Contestant(ON_DEVICE, lambda: _copy(target, source)),
    ]

    def check(results: Mapping[str, Any]) -> None:
        expected = ours.distances(images, fitted.reference(), bench.threads)
        require_equal("distances on the device", results[OURS], expected)
        require_equal(TO_DEVICE, np.asarray(there.cpu()), images)

    times = race(contestants, bench.repeats, check)
    # a copy on the device reads each byte and writes it
    once_through = Readings(tuple(s / (2 * COPIES) for s in times[ON_DEVICE].values))
    what = f"{IMAGES:,} images to {len(reference.denominators)} means: {OURS}"
    for peer, readings in ((TO_DEVICE, times[TO_DEVICE]), (ON_DEVICE, once_through)):
        note = f"{_rate(images, times[OURS])} GB/s against {_rate(images, readings)}"
        yield speed_row(what, peer, times[OURS], readings, note=note)


def _copy(target: torch.Tensor, source: torch.Tensor) -> None:
    target.copy_(source, non_blocking=True)
    torch.cuda.synchronize()


def _rate(images: Any, readings: Readings) -> str:
    return f"{images.nbytes / readings.median / 1e9:.2f}"
