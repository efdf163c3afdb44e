"""The plan of a job: everything that is known before a pixel is read.

What cannot be is refused here, with the reason: a split, a class or an image of it that is not
there, images of two shapes, sums that no arithmetic holds, accumulators that no memory does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from pipeline.config.job_settings import ChosenJob, JobSettings
from pipeline.core.classes import ClassSelection, select_classes
from pipeline.core.errors import MemoryLimitError
from pipeline.core.exact import (
    Arithmetic,
    check_count_bound,
    check_square_bound,
    check_sum_bound,
    choose_arithmetic,
)
from pipeline.core.partitions import (
    Concatenation,
    PartitionTable,
    choose_step,
    image_bytes,
    pixel_tiles,
)
from pipeline.execution.devices import Device, find_device
from pipeline.execution.workers import Workers, find_workers
from pipeline.jobs.memory_model import Footprint, Load, base_bytes, fitting_pixels, footprint
from pipeline.jobs.sample_choice import SampleChoice, choose_samples
from pipeline.jobs.search_plan import Arrangement, Search, arrange_search, plan_search
from pipeline.ops.medians import AROUND, MIDDLE
from pipeline.ops.prototypes import refuse_empty_classes
from pipeline.storage import image_store, manifest
from pipeline.storage.image_content import partition_table

MAX_AUTO_DISTANCES = 10**8

# Bytes of distances that one task of the second pass holds.
_STEP_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Outline:
    """What is known of a job before its workers are.

    Paths are absolute, since workers may run elsewhere; `content` is the manifest of the images,
    which counts labels without those that are left out, as `choice` says.
    `fit` and `evaluate` are the partitions of the two passes, `arithmetic` the number type in which
    every sum is exact; `shape`, `dtype` and `full_scale` are those of an image; `search` is what is
    searched for the nearest images, if anything.
    """

    settings: ChosenJob
    images: Path
    content: Mapping[str, Any]
    output: Path
    selection: ClassSelection
    choice: SampleChoice
    fit: PartitionTable
    evaluate: Concatenation
    shape: tuple[int, ...]
    dtype: str
    full_scale: int
    arithmetic: Arithmetic
    write_distances: bool
    search: Search | None

    @property
    def sample_bytes(self) -> int:
        return image_bytes(self.shape, self.dtype)

    @property
    def pixels(self) -> int:
        return math.prod(self.shape)

    @property
    def work(self) -> Path:
        """The folder of what a run keeps until it is finished."""
        return self.output / manifest.WORK

    @property
    def counts_values(self) -> bool:
        """Whether the first pass counts values, for medians."""
        return self.settings.prototypes == "median"

    @property
    def middle(self) -> int:
        """How many values around the middle medians need, see `medians.middle_ranks`."""
        return AROUND if self.settings.leaves_one_out else MIDDLE

    @property
    def shifts(self) -> bool:
        """Whether medians come with how far they move without one image."""
        return self.counts_values and self.settings.leaves_one_out

    @property
    def passes(self) -> int:
        """How often the first pass reads each tile."""
        return passes_of(self.settings.prototypes, self.dtype)

    @property
    def additions(self) -> int:
        """How often the two passes add a pixel, or compare it with that of a prototype."""
        classes, metrics = len(self.selection.codes), len(self.settings.metrics)
        added = 3 * sum(count for _, count, _ in self.fit.splits) * self.passes
        if self.counts_values:  # each of 256 counts of a pixel is looked at
            added = 2 * added + 4 * 256 * classes * self.middle
        return self.pixels * (added + 2 * metrics * classes * self.evaluate.total)

    def decides(self) -> dict[str, Any]:
        """What decides the result and its files; a folder with another such plan is refused."""
        known = {
            "images": self.content["digest"],
            "classes": list(self.selection.names),
            **self.settings.decides(),
            "distances": "write" if self.write_distances else "skip",
            "step": self.evaluate.step,
            **self.choice.decides(),
        }
        if self.search is not None:
            known["neighbours_step"] = self.search.queries.step
        # not in the plans of runs that were made before one could ask for them
        return {key: value for key, value in known.items() if value is not None}


@dataclass(frozen=True)
class JobPlan(Outline):
    """Everything that is known before a pixel is read; the first pass takes tile after tile."""

    tiles: tuple[tuple[int, int], ...]
    device: Device
    arrangement: Arrangement | None
    workers: Workers
    footprint: Footprint

    @property
    def tiling(self) -> str:
        """One line that says why the pixels are taken in tiles."""
        room = self.device.memory
        of_device = "" if room is None else f", and {room / 1e9:.3g} GB of the device"
        return (
            f"the sums of {len(self.selection.codes):,} classes of {self.pixels:,} pixels are made "
            f"in {len(self.tiles)} tiles of pixels, each in a pass of its own, to fit "
            f"{self.workers.memory / 1e9:.3g} GB{of_device}"
        )


def passes_of(prototypes: str, dtype: str) -> int:
    """Return how often prototypes of that kind read the images."""
    return 2 if prototypes == "median" and dtype == "uint16" else 1


def outline_job(
    settings: JobSettings, images: Path, content: Mapping[str, Any] | None = None
) -> Outline:
    """Work out what of a job needs no workers to be known, and refuse what cannot be.

    `content` is the manifest of an image set that is about to be made; default: it is read.

    Raises
    ------
    StoreError, LabelError, EmptyClassError, ShapeError, ExactnessError
        Where a split, a class, an image of a class, one shape or an exact arithmetic is missing.
    SourceError, SchemaError, InputError, ConflictError
        Where samples are to be left out that a table does not name as it should.
    DamagedError
        Where what the image set says of itself was changed.
    """
    if content is None:
        content = manifest.read_manifest(images, manifest.IMAGES)
        outline = outline_job(settings, images, content)
        splits = dict.fromkeys((outline.settings.fit, *outline.settings.evaluate))
        arrays = [name for split in splits for name in image_store.array_names(split)]
        manifest.require_files(images, content, [f"{name}/zarr.json" for name in arrays])
        return outline
    settings = settings.with_splits(image_store.labelled_counts(content))
    choice, content, measured = choose_samples(settings, images, content)
    selection = select_classes(content["class_names"], settings.classes)
    fit = image_store.require_split(content, settings.fit, images)
    counts = [fit["labels"][code] for code in selection.codes]
    if not any(counts) or not settings.allow_empty_classes:
        refuse_empty_classes(selection.names, counts, settings.fit)
    evaluated = {
        name: image_store.require_split(content, name, images) for name in settings.evaluate
    }
    for name, split in evaluated.items():
        image_store.require_alike(name, split, settings.fit, fit)
    _check_bounds(settings, fit, max(counts))
    denominator = 2 if settings.prototypes == "median" else max(counts)
    row = 8 * len(settings.metrics) * len(selection.codes)
    step = choose_step(max(split["shard"] for split in evaluated.values()), row, _STEP_BYTES)
    concatenation = Concatenation(tuple((n, s["count"]) for n, s in evaluated.items()), step)
    write = settings.distances == "write" or (
        settings.distances == "auto" and concatenation.total * row // 8 <= MAX_AUTO_DISTANCES
    )
    return Outline(
        settings=settings,
        images=images.absolute(),
        content=content,
        output=settings.output.absolute(),
        selection=selection,
        choice=choice,
        fit=partition_table(content, [settings.fit]),
        evaluate=concatenation,
        shape=tuple(fit["shape"]),
        dtype=fit["dtype"],
        full_scale=content["full_scale"],
        arithmetic=choose_arithmetic(denominator, math.prod(fit["shape"]), fit["dtype"]),
        write_distances=write,
        search=plan_search(settings, content, images, selection, fit, measured),
    )


def _check_bounds(settings: ChosenJob, fit: Mapping[str, Any], largest: int) -> None:
    """Raise `ExactnessError` where sums or counts of the largest class would not be exact."""
    check_sum_bound(largest, fit["dtype"])
    if settings.prototypes == "median":
        check_count_bound(largest)
        if settings.leaves_one_out:
            check_square_bound(math.prod(fit["shape"]), fit["dtype"])


def plan_job(
    settings: JobSettings,
    images: Path,
    workers: Workers | None = None,
    outline: Outline | None = None,
) -> JobPlan:
    """Fit a job on an image set to the memory of its workers, or refuse it.

    By default the workers are what `find_workers` finds, and the outline is made now.

    Raises
    ------
    MemoryLimitError
        Where it needs more memory than there is; else as `outline_job`.
    """
    outline = outline or outline_job(settings, images)
    settings = outline.settings
    content, offered = outline.content, workers or find_workers(settings.named_cluster)
    load = Load(
        classes=len(outline.selection.codes),
        pixels=outline.pixels,
        sample_bytes=outline.sample_bytes,
        shard=content["splits"][settings.fit]["shard"],
        partitions=len(outline.fit),
        tables=outline.counts_values * (outline.middle if outline.passes > 1 else 1),
        digits=outline.arithmetic.digits,
        step=outline.evaluate.step,
        evaluated_shard=max(content["splits"][name]["shard"] for name in settings.evaluate),
        steps=outline.evaluate.steps,
        metrics=len(settings.metrics),
        splits=len(settings.evaluate),
        write=outline.write_distances,
        shifts=outline.shifts,
        votes=len(outline.search.votes) if outline.search else 0,
        read_back=outline.search.read_back if outline.search else 0,
        listed=outline.choice.memory,
    )
    device = find_device(settings.device, offered, settings.cluster.kind, outline.additions)
    tiles = pixel_tiles(outline.pixels, fitting_pixels(load, offered, device))
    arranged = None
    if outline.search is not None:
        base = base_bytes(offered) + load.listed
        arranged = arrange_search(outline.search, offered, base, device)
    needed = footprint(load, offered, tiles, arranged.memory if arranged else 0, device)
    needed = replace(needed, device_search=arranged.device if arranged else 0)
    _refuse_what_does_not_fit(needed, offered, settings, load)
    known = {field.name: getattr(outline, field.name) for field in fields(Outline)}
    _refuse_what_the_device_has_not(needed, device, offered, settings)
    return JobPlan(
        **known, tiles=tiles, device=device, arrangement=arranged, workers=offered, footprint=needed
    )


def _refuse_what_the_device_has_not(
    peaks: Footprint, device: Device, workers: Workers, settings: JobSettings
) -> None:
    if device.memory is None or peaks.device <= device.memory:
        return
    cures = [f"run fewer tasks at once ({_fewer(settings)})"] if workers.tasks > 1 else []
    if workers.processes > 1 and settings.cluster.kind != "gpus":
        cures.append(f"let fewer worker processes share it (cluster.workers, {workers.processes})")
    cures += ["end what else uses it", "take fewer classes", "run it with --set device=cpu"]
    searched = f", neighbours {peaks.device_search / 1e9:.3g}" if peaks.device_search else ""
    raise MemoryLimitError(
        f"the job needs {peaks.device / 1e9:.3g} GB of {device.description} for one process "
        f"(prototypes {peaks.device_fit / 1e9:.3g}, distances {peaks.device_evaluate / 1e9:.3g}"
        f"{searched}), expected at most {device.memory / 1e9:.3g} GB, what it may take; "
        f"{', or '.join(cures)}"
    )


def _refuse_what_does_not_fit(
    peaks: Footprint, workers: Workers, settings: JobSettings, load: Load
) -> None:
    needed = peaks.worker
    if needed <= workers.memory:
        return
    cures = ["take a smaller neighbours.k"] if needed == peaks.search else []
    cures += ["give it more memory (cluster.memory, where the limit is not the machine's)"]
    if workers.memory > base_bytes(workers):  # else nothing that it does fits
        if workers.tasks > 1:
            cures.append(f"run fewer tasks at once ({_fewer(settings)})")
        cures.append(f"ingest with smaller shards (now {load.shard:,} images)")
        if load.classes > 1:
            cures.append("take fewer classes")
    searched = f", neighbours {peaks.search / 1e9:.3g}" if peaks.search else ""
    raise MemoryLimitError(
        f"the job needs {needed / 1e9:.3g} GB in one process (prototypes {peaks.fit / 1e9:.3g}, "
        f"distances {peaks.evaluate / 1e9:.3g}{searched}), expected at most "
        f"{workers.memory / 1e9:.3g} GB, what it may take; {', or '.join(cures)}"
    )


def _fewer(settings: JobSettings) -> str:
    if settings.cluster.kind == "threads":
        return "--set cluster.workers=1"
    return "threads_per_worker: 1"
