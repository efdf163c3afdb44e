"""How much memory a job takes: plain arithmetic on what is known before it starts.

Each term is what the code keeps at that moment; the factors that cannot be counted in the code
(copies inside Zarr and Arrow, what the allocator holds back) were measured, as the peak of a
fresh process on two cores, and rounded up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.core.partitions import accumulator_bytes, ceil_div
from pipeline.execution.devices import Device
from pipeline.execution.workers import Workers
from pipeline.kernels.backends import NUMPY
from pipeline.ops.reduction import LARGE_BYTES, WIDE

# A process with everything imported, in which the loops are compiled: about 150 MB less are taken
# where they were compiled before.
_BASE = 450 * 10**6
# The same where there is so little to do that NumPy counts, and no loops are loaded.
_BASE_NUMPY = 200 * 10**6
# A worker process of dask, and the client of such, which loads no kernels.
_BASE_WORKER = 400 * 10**6
_BASE_CLIENT = 370 * 10**6
# Bytes that a task takes for each byte of pixels it reads: those, and a compressed chunk.
_READ = 1.6
# What the allocator keeps of accumulators that were given back.
_HELD_BACK = 1.12
# Bytes that writing prototypes takes at most: chunks, as they are and encoded.
_ENCODED = 64 * 10**6
# Bytes of a row of predictions, in NumPy, Arrow and as it is encoded.
_ROW = 450
# Copies of a task's distances while they are written, by one task at a time.
_WRITTEN = 3
# Steps whose distances are in memory at once when they are read back, copies counted in.
_READ_BACK = 5
# Bytes of a confusion count: as an integer of NumPy, of Python, and as text.
_CONFUSION = 60
# The share of the memory that tiles of pixels are made to fit.
_SHARE = 0.9
# Bytes of pixels of a batch on a device at most, and the share of its memory, see `transfers`; and
# how often kernels that widen pixels take them.
_SENT, _SHARE_OF_BATCH, _WIDENED = 128 * 2**20, 1 / 24, 28


@dataclass(frozen=True)
class Load:
    """What decides how much memory a job takes.

    Attributes
    ----------
    classes, pixels
        Of the prototypes.
    sample_bytes
        Bytes of one image.
    shard, partitions
        Images a partition of the first pass, and their number.
    tables
        Tables of 256 counts that an accumulator holds for each class and pixel, for medians.
    digits
        Digits of 8 bits that hold a remainder, 0 where the arithmetic has none.
    step, steps
        Images that a task of the second pass measures, and the number of tasks.
    evaluated_shard
        Images a shard of what is measured.
    metrics, splits
        How many metrics are measured, on how many splits.
    write
        Whether distances are written.
    shifts
        Whether medians come with how far they move without one image.
    votes
        Numbers of neighbours by whose votes is predicted.
    read_back
        Bytes of tables of neighbours that are in memory at once when they are read back.
    listed
        Bytes that a process keeps of lists of samples.
    """

    classes: int
    pixels: int
    sample_bytes: int
    shard: int
    partitions: int
    tables: int
    digits: int
    step: int
    steps: int
    evaluated_shard: int
    metrics: int
    splits: int
    write: bool
    shifts: bool = False
    votes: int = 0
    read_back: int = 0
    listed: int = 0

    @property
    def shard_bytes(self) -> int:
        """Bytes of the images of a partition of the first pass."""
        return self.shard * self.sample_bytes


@dataclass(frozen=True)
class Footprint:
    """Peaks of memory in bytes.

    Attributes
    ----------
    fit, evaluate, search
        Of a worker process, in each pass; 0 where there is no search.
    client
        Of the process that runs the job; 0 where its threads do the work.
    processes
        Worker processes, likewise.
    accumulator
        What one task of the first pass returns.
    device_fit, device_evaluate, device_search
        Of a process on its device, in each pass; 0 where the device has no memory of its own.
    """

    fit: int
    evaluate: int
    search: int
    client: int
    processes: int
    accumulator: int
    device_fit: int = 0
    device_evaluate: int = 0
    device_search: int = 0

    @property
    def device(self) -> int:
        """The peak of one process on its device."""
        return max(self.device_fit, self.device_evaluate, self.device_search)

    @property
    def worker(self) -> int:
        """The peak of one worker process."""
        return max(self.fit, self.evaluate, self.search)

    @property
    def total(self) -> int:
        """The peak of all processes together."""
        if self.processes == 0:
            return self.worker
        return self.processes * self.worker + self.client


def _accumulators(load: Load, workers: Workers, size: int) -> int:
    """Return how many accumulators a process holds at once.

    Small ones are added up in a tree: one for each addition that waits for its others. Of large
    ones there is one for each task that runs at once, on workers a copy of it while the task adds
    to it, and in the end their sum.
    """
    tasks = min(workers.tasks, load.partitions)
    if size > LARGE_BYTES and workers.processes:
        return max(2 * tasks, tasks + 2)  # one worker fetches another's to add the two
    if size > LARGE_BYTES:
        return tasks + (1 if tasks > 1 else 0)
    levels = max(1, math.ceil(math.log(max(load.partitions, 2), WIDE)))
    return min(load.partitions, (WIDE - 1) * levels) + tasks + 1


def _fit_bytes(load: Load, workers: Workers, width: int) -> int:
    """Return what the first pass takes on top of the process, for tiles of `width` pixels."""
    tasks = min(workers.tasks, load.partitions)
    read = load.shard_bytes
    copied = read * width // load.pixels if width < load.pixels else 0
    added = [_accumulators(load, workers, size) * size for size in _accumulator_sizes(load, width)]
    return int(tasks * (_READ * read + copied) + _HELD_BACK * max(added))


def _accumulator_sizes(load: Load, width: int) -> list[int]:
    """Return the bytes of an accumulator in each pass over the images."""
    first = accumulator_bytes(load.classes, width, min(load.tables, 1))
    if load.tables < 2:
        return [first]
    return [
        first,
        accumulator_bytes(load.classes, width, load.tables)
        - accumulator_bytes(load.classes, width),
    ]


def _assembled_bytes(load: Load) -> int:
    """Return what the client makes of the sums: images, deviations, and medians' integers."""
    return 8 * load.classes * load.pixels * ((4 if load.tables else 3) + 2 * load.shifts)


def _fit_here_bytes(load: Load, workers: Workers, width: int) -> int:
    """Return what the first pass takes where threads of the client do the work.

    The client makes prototypes of the sums once the tasks are done.
    """
    size, assembled = accumulator_bytes(load.classes, width, load.tables), _assembled_bytes(load)
    encoded = min(assembled, _ENCODED)
    return max(_fit_bytes(load, workers, width), size + assembled) + encoded


def _evaluate_bytes(load: Load, workers: Workers) -> int:
    """Return what the second pass takes on top of the process."""
    tasks = min(workers.tasks, load.steps)
    prepared = load.classes * load.pixels * (8 + (1 + load.digits if load.digits else 24))
    prepared += load.shifts * load.classes * load.pixels * (2 * 8 + 3 * 4)  # as read, and as used
    distances = 8 * load.metrics * load.step * load.classes
    copies = tasks + _WRITTEN if load.write else 0
    rows = load.metrics * load.step * _ROW
    read = min(load.step, load.evaluated_shard) * load.sample_bytes
    if load.listed:  # a copy of the images that are taken, and of distances with the others'
        read, copies = 2 * read, copies + tasks * load.write
    return prepared + int(tasks * (_READ * read + rows) + copies * distances)


def _finish_bytes(load: Load) -> int:
    """Return what the client takes to read everything back.

    Confusion counts, of all samples and of each split, and the distances of some steps: those that
    were read ahead, and copies of those that are digested; later the neighbours of some steps.
    """
    tables = (load.splits + 1 if load.splits > 1 else 1) * (1 + load.votes)
    distances = 8 * load.metrics * load.step * load.classes if load.write else 0
    read = max(_READ_BACK * distances, load.read_back)
    return _CONFUSION * load.classes**2 * load.metrics * tables + read


def fitting_pixels(load: Load, workers: Workers, device: Device | None = None) -> int:
    """Return how many pixels a tile of the first pass may have to fit into the memory.

    Into that of the processes, and of the device. All of them where no tile would be small enough:
    what else is needed is too much then.
    """
    room = int(_SHARE * workers.memory) - base_bytes(workers, device) - load.listed
    needed = _fit_bytes if workers.processes else _fit_here_bytes
    number = 1
    while number <= load.pixels:
        width = ceil_div(load.pixels, number)
        if needed(load, workers, width) <= room and _fits_device(load, workers, device, width):
            return width
        number += 1 + number // 8
    return load.pixels


def _fits_device(load: Load, workers: Workers, device: Device | None, width: int) -> bool:
    if device is None or device.memory is None:
        return True
    return _device_fit_bytes(load, workers, device, width) <= _SHARE * device.memory


def _batch_bytes(load: Load, tasks: int, device: Device) -> int:
    """Return what the pixels of a batch of each task take on a device: those, and the next ones.

    Batches are smaller where there is less, so this is what makes them reasonably large.
    """
    pixels = min(load.shard_bytes, _SENT, _SHARE_OF_BATCH * (device.memory or 0))
    return int(tasks * pixels * (_WIDENED if device.widens else 3))


def _device_fit_bytes(load: Load, workers: Workers, device: Device, width: int) -> int:
    """Return what the first pass takes on the device of a process: sums, and counts of values."""
    tasks = min(workers.tasks, load.partitions)
    sums = 16 * (load.classes + 1) * width
    counts = 256 * load.classes * width * (24 if device.widens else 4) * (load.tables > 0)
    return tasks * (sums + counts) + _batch_bytes(load, tasks, device)


def _device_evaluate_bytes(load: Load, workers: Workers, device: Device) -> int:
    """Return what the second pass takes there: prototypes once, and what is counted of a batch."""
    tasks = min(workers.tasks, load.steps)
    in_bytes = load.digits and not device.widens
    prototypes = load.classes * load.pixels * (5 if in_bytes else 24)
    samples = min(load.step, max(1, _SENT // max(load.sample_bytes, 1)))
    return prototypes + tasks * 48 * load.classes * samples + _batch_bytes(load, tasks, device)


def base_bytes(workers: Workers, device: Device | None = None) -> int:
    """Return what a process takes that has read nothing yet; default: one that counts in loops."""
    if workers.processes:
        return _BASE_WORKER
    return _BASE_NUMPY if device is not None and device.name == NUMPY else _BASE


def footprint(
    load: Load,
    workers: Workers,
    tiles: Sequence[tuple[int, int]],
    search: int = 0,
    device: Device | None = None,
) -> Footprint:
    """Work out the peaks of a job.

    Parameters
    ----------
    load
        The job.
    workers
        What it runs on.
    tiles
        The ranges of pixels of the first pass.
    search
        What a search for neighbours takes on top of the process; 0 where there is none.
    device
        What it computes on; default: what has no memory of its own.
    """
    width = max(stop - start for start, stop in tiles)
    # a search is done in loops
    base = base_bytes(workers, None if search else device) + load.listed
    assembled = _assembled_bytes(load)
    evaluate, third = _evaluate_bytes(load, workers), base + search if search else 0
    size, there = accumulator_bytes(load.classes, width, load.tables), dict[str, int]()
    if device is not None and device.memory is not None:
        there["device_fit"] = _device_fit_bytes(load, workers, device, width)
        there["device_evaluate"] = _device_evaluate_bytes(load, workers, device)
    if not workers.processes:
        fit, second = _fit_here_bytes(load, workers, width), max(evaluate, _finish_bytes(load))
        return replace(Footprint(base + fit, base + second, third, 0, 0, size), **there)
    fit = _fit_bytes(load, workers, width)
    client = _BASE_CLIENT + load.listed + max(assembled + 2 * size, _finish_bytes(load))
    peaks = Footprint(base + fit, base + evaluate, third, client, workers.processes, size)
    return replace(peaks, **there)
