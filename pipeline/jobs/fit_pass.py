"""The first pass of a job: prototypes from the images of one split.

Every task takes one partition and adds it to an array of integers, and these arrays are added up.
The array, the accumulator, holds for each class and pixel the sum and the sum of squares, and for
medians the 256 counts of a histogram (of 16-bit pixels that of the high bytes;
a further pass counts low bytes). Where accumulators of whole images would not fit into memory
beside each other, the pixels are taken in tiles, one after the other, each in a pass of its own.

What was counted is kept in the run folder until the prototypes are made, see `checkpoints`: each
pass has a folder of sums, whose identity is that of the plan, of the partitions, and of what the
pass counts. So a fit that is cut short is resumed with the batches that are done of the pass that
it was in, the results of finished tiles, and of 16-bit medians the counts of high bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.core.arrays import Arrays
from pipeline.core.classes import ClassSelection
from pipeline.core.digests import array_digest, json_digest
from pipeline.core.exact import Int64Array
from pipeline.core.host_memory import allocated_by
from pipeline.core.partitions import PartitionTable
from pipeline.core.schema import COUNT, IMAGE, PIXEL_SUM
from pipeline.execution.checkpoints import ALL, Checkpoints, batch_size, saved_batches
from pipeline.execution.executor import Executor
from pipeline.execution.progress import Phase, Reporter
from pipeline.jobs.plan import JobPlan
from pipeline.kernels import backends
from pipeline.ops.medians import BINS, first_bytes, label_medians, median_images, select_bytes
from pipeline.ops.prototypes import flat_images, label_prototypes, label_sums
from pipeline.storage import claims, image_store, store_array, zarr_arrays
from pipeline.storage.folders import remove_tree
from pipeline.storage.image_content import read_checked
from pipeline.storage.sample_lists import ListedSamples, taken_of

# Two counts of 32 bits in one integer of 64: sums of halves never carry, since no class has
# 2**32 images (`exact.check_count_bound`).
_PAIRS = BINS // 2

SUMS = "sums"
"""The folder, among what a run keeps until it is finished, of what was counted."""


@dataclass(frozen=True)
class FitPartition:
    """Counts the pixels `tile` of one partition, class by class; called with its number.

    `histograms` counts values as well. `high` is the folder with the high bytes of the middle
    values: then low bytes are counted, and nothing else. Only samples that `taken` lets count do.
    """

    images: Path
    digest: str
    table: PartitionTable
    selection: ClassSelection
    device: str
    threads: int
    tile: tuple[int, int]
    histograms: bool
    high: Path | None = None
    taken: tuple[ListedSamples, ...] = ()

    def __call__(self, index: int, total: Int64Array) -> None:
        """Add partition `index` to an accumulator, [class, ...]; see `accumulator_columns`."""
        part = self.table[index]
        use = backends.load(self.device, self.threads)
        with allocated_by(use.empty):
            piece = part.split, part.start, part.stop
            images, labels = read_checked(self.images, self.digest, *piece)
        tile = np.ascontiguousarray(flat_images(images)[:, slice(*self.tile)])
        del images
        classes, width = len(self.selection.codes), self.tile[1] - self.tile[0]
        positions = self.selection.positions(labels, part.start)
        positions[~taken_of(self.taken, [(part.split, part.start, part.stop)])] = -1
        if self.high is not None:
            high = _read_high(self.high)
            for table, wanted in zip(_tables(total, len(high)), high, strict=True):
                use.histograms(tile, positions, classes, wanted, into=table)
            return
        sums = total[:, :width], total[:, width : 2 * width], total[:, 2 * width]
        counts = _tables(total[:, 2 * width + 1 :], 1)[0] if self.histograms else None
        use.class_sums(tile, positions, classes, into=sums, counts=counts)


def accumulator_columns(width: int, histograms: bool, low: int) -> int:
    """Return how many integers of 64 bits an accumulator has for each class.

    The sums of `width` pixels, those of squares, and the number of images; then, where values are
    counted, 256 counts for each pixel, two counts in an integer. Where low bytes are counted, `low`
    such tables alone: one for each middle value.
    """
    if low:
        return low * width * _PAIRS
    return 2 * width + 1 + (width * _PAIRS if histograms else 0)


def _tables(packed: Int64Array, number: int) -> list[npt.NDArray[np.uint32]]:
    """Return the tables of counts that lie in columns of an accumulator, [class, pixel, 256]."""
    flat = packed.view(np.uint32)
    width = flat.shape[1] // number
    columns = [flat[:, at * width : (at + 1) * width] for at in range(number)]
    return [column.reshape(len(packed), -1, BINS) for column in columns]


@lru_cache(maxsize=1)
def _read_high(path: Path) -> npt.NDArray[np.uint8]:
    """Read the high bytes of a tile, once for all tasks of a process; the path has a digest."""
    values: npt.NDArray[np.uint8] = store_array.StoreArray(path, "high")[:]
    return values


def fit(plan: JobPlan, executor: Executor, reporter: Reporter) -> Arrays:
    """Make the prototypes of a job, in memory."""
    partitions, passes = len(plan.fit), len(plan.tiles) * plan.passes
    size = passes * _read_bytes(plan)
    if len(plan.tiles) > 1:
        reporter.say(plan.tiling)
    name = f"prototypes from '{plan.settings.fit}'"
    with reporter.phase(name, passes * partitions, size) as phase:
        parts = [_fit_tile(plan, executor, phase, tile) for tile in plan.tiles]
    sums, medians = zip(*parts, strict=True)
    labelled = label_sums(_join(plan, sums), plan.selection, _like(plan))
    if not plan.counts_values:
        counts = labelled[COUNT.name].data
        return label_prototypes(labelled, labelled[PIXEL_SUM.name].data, counts, "mean")
    return label_medians(labelled, np.concatenate(medians, axis=2))


def _join(plan: JobPlan, sums: Sequence[Int64Array]) -> Int64Array:
    """Put the sums of tiles side by side: as one tile of all pixels."""
    if len(sums) == 1:
        return sums[0]
    widths = [stop - start for start, stop in plan.tiles]
    values = [part[:, :width] for part, width in zip(sums, widths, strict=True)]
    squares = [part[:, width:-1] for part, width in zip(sums, widths, strict=True)]
    return np.concatenate([*values, *squares, sums[0][:, -1:]], axis=1)


def _fit_tile(
    plan: JobPlan, executor: Executor, phase: Phase, tile: tuple[int, int]
) -> tuple[Int64Array, Int64Array]:
    """Return the sums of a tile, [class, 2 * pixel + 1], and what `median_images` makes of it.

    Of several tiles each is kept once it is done, and what it was made of is removed.
    """
    if len(plan.tiles) == 1:
        return _count_tile(plan, executor, phase, tile)
    width = tile[1] - tile[0]
    last = 2 * width + 1
    kept = _kept(plan, "tile", tile, last + width * _images_of_medians(plan))
    done = kept.load(ALL)
    if done is not None:
        phase.advance(plan.passes * len(plan.fit))
        return done[:, :last], done[:, last:].reshape(len(done), -1, width).swapaxes(0, 1)
    sums, medians = _count_tile(plan, executor, phase, tile)
    kept.token.issue()
    kept.save(ALL, np.concatenate([sums, *medians], axis=1))
    remove_tree(plan.work / SUMS / _name("counts", tile))
    remove_tree(plan.work / SUMS / _name("low", tile))
    return sums, medians


def _count_tile(
    plan: JobPlan, executor: Executor, phase: Phase, tile: tuple[int, int]
) -> tuple[Int64Array, Int64Array]:
    """Return the same from one pass over the images, or two."""
    total = _pass(plan, executor, phase, tile, None)
    last = 2 * (tile[1] - tile[0]) + 1
    if not plan.counts_values:
        return total, np.empty((0, len(total), tile[1] - tile[0]), np.int64)
    (counts,) = _tables(total[:, last:], 1)
    high, rest = first_bytes(counts, plan.middle, plan.device.host)
    sums = total[:, :last].copy()  # without the counts
    del total, counts
    if plan.passes == 1:
        return sums, median_images(high)
    path = plan.work / f"high-{array_digest(high)}.zarr"
    remove_tree(path)  # what a try that was cut short left of it
    zarr_arrays.create_group(path, {})
    zarr_arrays.write_array(path, "high", ("middle", "class_name", "pixel"), high, {})
    tables = _tables(_pass(plan, executor, phase, tile, path), plan.middle)
    remove_tree(path)
    low, _ = select_bytes(tables, rest, plan.device.host)
    return sums, median_images(high, low)


def _images_of_medians(plan: JobPlan) -> int:
    return 1 + 2 * plan.shifts if plan.counts_values else 0


def _pass(
    plan: JobPlan, executor: Executor, phase: Phase, tile: tuple[int, int], high: Path | None
) -> Int64Array:
    """Add up the accumulators of all partitions for one tile of pixels."""
    partitions = len(plan.fit)
    task = FitPartition(
        plan.images, plan.content["digest"], plan.fit, plan.selection, plan.device.name,
        executor.threads_for(partitions), tile, plan.counts_values, high,
        plan.choice.fitted,
    )  # fmt: skip
    low = 0 if high is None else plan.middle
    columns = accumulator_columns(tile[1] - tile[0], plan.counts_values, low)
    kept = _kept(plan, "counts" if high is None else "low", tile, columns, high)
    another = high is None and plan.passes > 1  # pass follows, which begins with the sum of this
    total = kept.load(ALL) if another else None
    if total is not None:
        phase.advance(partitions)
        return total
    kept.token.issue()
    total = executor.add(task, kept, phase)
    if another:
        kept.save(ALL, total)
    return total


def _kept(
    plan: JobPlan, stage: str, tile: tuple[int, int], columns: int, high: Path | None = None
) -> Checkpoints:
    """Return the saved sums of one stage of a tile; `high` is named by a digest of it."""
    decides = {
        "plan": claims.identity(plan.decides()),
        "partitions": asdict(plan.fit),
        "tile": tile,
        "stage": stage,
        "high": high and high.name,
    }
    shape = len(plan.selection.codes), columns
    size = batch_size(len(plan.fit), 8 * math.prod(shape), _read_bytes(plan))
    folder = plan.work / SUMS / _name(stage, tile)
    return Checkpoints(folder, json_digest(decides), shape, len(plan.fit), size)


def _name(stage: str, tile: tuple[int, int]) -> str:
    return f"{stage}-{tile[0]}-{tile[1]}"


def _read_bytes(plan: JobPlan) -> int:
    """Return the bytes of pixels that one pass reads."""
    return sum(count for _, count, _ in plan.fit.splits) * plan.sample_bytes


def kept_files(plan: JobPlan) -> tuple[int, int]:
    """Return how many files with sums a fit keeps at most until it is done, and their bytes."""
    classes, partitions, workers = len(plan.selection.codes), len(plan.fit), plan.workers
    width = max(stop - start for start, stop in plan.tiles)
    files, total = 0, 0
    for low in (False, True)[: plan.passes]:
        size = 8 * classes * accumulator_columns(width, plan.counts_values, low * plan.middle)
        batch = batch_size(partitions, size, _read_bytes(plan))
        sums = saved_batches(partitions, batch, workers.at_once)
        sums += plan.passes - 1 - low  # that of all partitions
        files, total = files + sums, total + sums * size
    if len(plan.tiles) > 1:
        results = 8 * classes * plan.pixels * (2 + _images_of_medians(plan))
        files, total = files + len(plan.tiles), total + results
    return files, total


def forget(plan: JobPlan) -> None:
    """Remove what was kept of sums, once the prototypes are made or the sums known to be wrong."""
    remove_tree(plan.work / SUMS)


def _like(plan: JobPlan) -> Arrays:
    """Return an empty data set of images, for what it says of their shape."""
    dims = image_store.pixel_dims(plan.shape)
    coordinates = {
        dim: np.arange(n, dtype=np.int32) for dim, n in zip(dims, plan.shape, strict=True)
    }
    return Arrays(
        {IMAGE.name: ((IMAGE.dims[0], *dims), np.empty((0, *plan.shape), plan.dtype))},
        coordinates,
        {"full_scale": plan.full_scale},
    )
