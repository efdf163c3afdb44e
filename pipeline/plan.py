"""The plan of a job: everything that is known before a pixel is read.

What cannot be is refused here, with the reason: a split, a class or an image of it that is not
there, images of two shapes, sums that no arithmetic holds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import manifest, store
from pipeline.classes import ClassSelection, select_classes
from pipeline.config import JobSettings
from pipeline.errors import ShapeError
from pipeline.exact import Arithmetic, choose_arithmetic
from pipeline.ingestion import partition_table
from pipeline.partitions import Concatenation, PartitionTable, image_bytes
from pipeline.prototype import refuse_empty_classes

MAX_AUTO_DISTANCES = 10**8


@dataclass(frozen=True)
class JobPlan:
    """Everything that is known before a pixel is read.

    Attributes
    ----------
    settings
        The job file.
    images, content
        The folder of the image set, absolute: a worker may run elsewhere; and its manifest.
    output
        The run folder, absolute.
    selection
        The classes.
    fit, evaluate
        The partitions of the two passes.
    shape, dtype, full_scale
        Of one image.
    arithmetic
        The number type in which every sum is exact.
    write_distances
        Whether every distance is written.
    """

    settings: JobSettings
    images: Path
    content: Mapping[str, Any]
    output: Path
    selection: ClassSelection
    fit: PartitionTable
    evaluate: Concatenation
    shape: tuple[int, ...]
    dtype: str
    full_scale: int
    arithmetic: Arithmetic
    write_distances: bool

    @property
    def sample_bytes(self) -> int:
        return image_bytes(self.shape, self.dtype)

    @property
    def pixels(self) -> int:
        return math.prod(self.shape)

    def decides(self) -> dict[str, Any]:
        """What decides the result and its files; a folder with another such plan is refused."""
        settings = self.settings
        return {
            "images": self.content["digest"],
            "classes": list(self.selection.names),
            "fit": settings.fit,
            "evaluate": list(settings.evaluate),
            "prototypes": settings.prototypes,
            "metrics": list(settings.metrics),
            "distances": "write" if self.write_distances else "skip",
            "allow_empty_classes": settings.allow_empty_classes,
            "step": self.evaluate.step,
        }


def plan_job(settings: JobSettings, images: Path) -> JobPlan:
    """Work out a job on an image set, and refuse what cannot be.

    Raises
    ------
    StoreError, LabelError, EmptyClassError, ShapeError, ExactnessError
        Where a split, a class, an image of a class, one shape, or an exact arithmetic is
        missing.
    """
    content = manifest.read_manifest(images, manifest.IMAGES)
    selection = select_classes(content["class_names"], settings.classes)
    fit = store.require_split(content, settings.fit, images)
    counts = [fit["labels"][code] for code in selection.codes]
    if not any(counts) or not settings.allow_empty_classes:
        refuse_empty_classes(selection.names, counts, settings.fit)
    evaluated = {name: store.require_split(content, name, images) for name in settings.evaluate}
    for name, split in evaluated.items():
        if (split["shape"], split["dtype"]) != (fit["shape"], fit["dtype"]):
            raise ShapeError(
                f"split '{name}' has images of {split['shape']} {split['dtype']}, expected those "
                f"of '{settings.fit}', {fit['shape']} {fit['dtype']}; bring both to one shape"
            )
    arithmetic = choose_arithmetic(max(counts), math.prod(fit["shape"]), fit["dtype"])
    step = max(split["shard"] for split in evaluated.values())
    concatenation = Concatenation(tuple((n, s["count"]) for n, s in evaluated.items()), step)
    values = len(settings.metrics) * concatenation.total * len(selection.codes)
    write = settings.distances == "write" or (
        settings.distances == "auto" and values <= MAX_AUTO_DISTANCES
    )
    return JobPlan(
        settings=settings,
        images=images.absolute(),
        content=content,
        output=settings.output.absolute(),
        selection=selection,
        fit=partition_table(content, [settings.fit]),
        evaluate=concatenation,
        shape=tuple(fit["shape"]),
        dtype=fit["dtype"],
        full_scale=content["full_scale"],
        arithmetic=arithmetic,
        write_distances=write,
    )
