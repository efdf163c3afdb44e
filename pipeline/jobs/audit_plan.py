"""The plan of an audit: every image of every split among all images of every split.

Images are compared as they are, and as images of one brightness and contrast (`ops.looks`); each
split is searched by itself, so that what is usual between test and train can be told from what is
usual within train. `search_plan` cuts the search, as that of a job.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config.audit_settings import AuditSettings
from pipeline.core.errors import ConfigError, EmptyClassError, MemoryLimitError, nearest
from pipeline.core.exact import choose_arithmetic
from pipeline.core.partitions import image_bytes
from pipeline.execution.devices import Device, find_device
from pipeline.execution.workers import Workers
from pipeline.jobs.memory_model import base_bytes
from pipeline.jobs.search_plan import Arrangement, Measure, Search, arrange_search, cut_search
from pipeline.storage import image_store, manifest


@dataclass(frozen=True)
class AuditPlan:
    """Everything that is known of an audit before a pixel is read.

    Attributes
    ----------
    settings
        What was asked for.
    images, content
        The folder of the image set, and its manifest.
    output
        The folder of the audit.
    search, arrangement
        What is searched, and what of it a task does.
    device
        What it computes on.
    """

    settings: AuditSettings
    images: Path
    content: Mapping[str, Any]
    output: Path
    search: Search
    arrangement: Arrangement
    device: Device

    @property
    def splits(self) -> dict[str, int]:
        """The splits that hold images, and how many each; in the order of sample indices."""
        return dict(self.search.queries.counts)

    @cached_property
    def like(self) -> Mapping[str, Any]:
        """What the manifest says of a split: shape and dtype are those of all."""
        split: Mapping[str, Any] = self.content["splits"][next(iter(self.splits))]
        return split

    @property
    def firsts(self) -> list[int]:
        """The number of the first image of each split, counted over all splits."""
        edges: list[int] = np.cumsum([0, *self.splits.values()]).tolist()
        return edges[:-1]

    @property
    def pixels(self) -> int:
        return math.prod(self.like["shape"])

    @property
    def keep(self) -> tuple[str, ...]:
        """The splits by which keeps its images first."""
        asked = self.settings.keep or ()
        rest = [name for name in self.splits if name not in asked]
        # what a model is measured on is kept, what it is made from is what can spare an image
        return (*asked, *sorted(rest, key=lambda name: (name == "train", rest.index(name))))

    def decides(self) -> dict[str, Any]:
        """Return what decides the result and its files."""
        return {
            "images": self.content["digest"],
            "checks": self.settings.checks | {"keep": list(self.keep)},
            "step": self.search.queries.step,
        }


def plan_audit(settings: AuditSettings, images: Path, workers: Workers) -> AuditPlan:
    """Plan an audit of an image set, or refuse it.

    Raises
    ------
    StoreError, ShapeError, EmptyClassError, ConfigError
        Where the image set is incomplete, has images of two shapes, or fewer than two; where
        `keep` names a split that it does not have.
    MemoryLimitError
        Where the search does not fit the memory of a worker.
    """
    content = manifest.read_manifest(images, manifest.IMAGES)
    held = {name: split for name, split in content["splits"].items() if split["count"]}
    counts = {name: split["count"] for name, split in held.items()}
    if sum(counts.values()) < 2:
        raise EmptyClassError(
            f"{images}: holds {sum(counts.values())} images, expected 2 or more to compare"
        )
    settings = settings.keeping(image_store.labelled_counts(content))
    first = next(iter(held))
    for name, split in held.items():
        image_store.require_alike(name, split, first, held[first])
    for name in settings.keep or ():
        if name not in content["splits"]:
            hint = nearest(name, content["splits"])
            raise ConfigError(f"keep: unknown split '{name}'; {hint}")
    arrays = [name for split in held for name in image_store.array_names(split)]
    manifest.require_files(images, content, [f"{name}/zarr.json" for name in arrays])
    shape, dtype = held[first]["shape"], held[first]["dtype"]
    choose_arithmetic(1, math.prod(shape), dtype)
    search = cut_search(
        counts, counts, settings.k, measures_of(settings, list(held)), image_bytes(shape, dtype)
    )
    device = find_device(settings.device, workers, settings.cluster.kind)
    arrangement = arrange_search(search, workers, base_bytes(workers), device)
    needed = base_bytes(workers) + arrangement.memory
    if needed > workers.memory:
        raise MemoryLimitError(
            f"the audit needs {needed / 1e9:.3g} GB in one process, expected at most "
            f"{workers.memory / 1e9:.3g} GB, what it may take; take a smaller k, run fewer tasks "
            "at once (cluster.workers), or give it more memory (cluster.memory)"
        )
    if device.memory is not None and arrangement.device > device.memory:
        raise MemoryLimitError(
            f"the audit needs {arrangement.device / 1e9:.3g} GB of {device.description} for one "
            f"process, expected at most {device.memory / 1e9:.3g} GB, what it may take; take a "
            "smaller k, run fewer tasks at once (cluster.workers), or run it with --set device=cpu"
        )
    return AuditPlan(
        settings, images.absolute(), content, settings.output.absolute(), search, arrangement,
        device,
    )  # fmt: skip


def measures_of(settings: AuditSettings, splits: list[str]) -> list[Measure]:
    """Return the measures of an audit, each for every split by itself."""
    metric = settings.metric
    looks = [False, True] if "mirror" in settings.variants else [False]
    plain = [Measure(metric, split=split) for split in splits]
    return plain + [Measure(metric, True, look, split) for look in looks for split in splits]
