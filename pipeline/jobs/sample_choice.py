"""Which samples of an image set a job takes: all, but those that it leaves out.

A sample that is left out is one that no pass selects, as are those of classes that the job does not
select: it stays where it is in the image set, and has a row in no table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.config.job_settings import JobSettings
from pipeline.core.paths import shown
from pipeline.storage.folders import exists
from pipeline.storage.image_content import read_labels
from pipeline.storage.sample_lists import (
    EXCLUDED,
    ListedSamples,
    SampleList,
    copied_from,
    read_copy,
    read_list,
)


@dataclass(frozen=True)
class SampleChoice:
    """The samples that a job does not take.

    Attributes
    ----------
    output
        The folder of the run, which keeps a copy of the list.
    source
        Where the list is from.
    excluded
        Those that are left out; None where there are none.
    """

    output: Path
    source: str = ""
    excluded: SampleList | None = None

    @property
    def taken(self) -> tuple[ListedSamples, ...]:
        """What tasks look up: lists that together say which samples they take."""
        if self.excluded is None:
            return ()
        return (ListedSamples(self.output / EXCLUDED, self.excluded.digest, taken=False),)

    @property
    def memory(self) -> int:
        """How many bytes a process keeps of the lists."""
        return 0 if self.excluded is None else 8 * self.excluded.total

    def decides(self) -> dict[str, Any]:
        """Return what of it decides the result of a run; nothing where all samples are taken."""
        if self.excluded is None:
            return {}
        counts = {name: len(rows) for name, rows in self.excluded.samples.items()}
        return {"exclude": {"samples": counts, "digest": self.excluded.digest}}

    def recorded(self) -> dict[str, Any]:
        """Return how many samples are left out of each split, and why, as a run records it."""
        if self.excluded is None:
            return {}
        return {"excluded": self.excluded.counts()}

    @property
    def files(self) -> list[str]:
        """The names of the copies in the folder of the run."""
        return [] if self.excluded is None else [EXCLUDED]

    def write(self) -> None:
        """Write the copies, which are all that a run needs from now on."""
        copy = self.output / EXCLUDED
        if self.excluded is not None and self.source != shown(copy):
            self.excluded.write(copy, self.source)


def choose_samples(
    settings: JobSettings, images: Path, content: Mapping[str, Any]
) -> tuple[SampleChoice, Mapping[str, Any]]:
    """Return which samples a job takes, and the manifest of its images with these labels alone.

    Of an image set that is not made yet all are taken as far as is known; that the list can be read
    is checked all the same. A run that has its copy needs the list no more, where it has gone.

    Raises
    ------
    SourceError, SchemaError, InputError, ConflictError
        As `read_list`.
    """
    output = settings.output.absolute()
    if settings.exclude is None:
        return SampleChoice(output), content
    source, made = shown(settings.exclude), content["digest"] is not None
    if not exists(settings.exclude) and copied_from(output / EXCLUDED) == source:
        listed = read_copy(output / EXCLUDED)
    else:
        listed = read_list(settings.exclude, content if made else None)
    if not made or not listed.total:
        return SampleChoice(output), content
    gone = {
        split: labels_of(images.absolute(), content, split, samples)
        for split, samples in listed.samples.items()
    }
    return SampleChoice(output, source, listed), without_labels(content, gone)


def labels_of(
    images: Path, content: Mapping[str, Any], split: str, samples: npt.NDArray[np.int64]
) -> npt.NDArray[np.int32]:
    """Read the labels of some samples of a split, ascending, shard by shard, [sample]."""
    shard, count = (content["splits"][split][key] for key in ("shard", "count"))
    found = []
    for number in np.unique(samples // shard).tolist():
        start, stop = number * shard, min((number + 1) * shard, count)
        first, last = np.searchsorted(samples, (start, stop))
        labels = read_labels(images, content["digest"], split, start, stop)
        found.append(labels[samples[first:last] - start])
    return np.concatenate(found)


def without_labels(
    content: Mapping[str, Any], gone: Mapping[str, npt.NDArray[np.int32]]
) -> dict[str, Any]:
    """Return a manifest whose counts of labels are without some labels, by split; else the same."""
    splits = dict(content["splits"])
    for name, labels in gone.items():
        counts = np.bincount(labels[labels >= 0], minlength=len(content["class_names"]))
        left = np.array(splits[name]["labels"], np.int64) - counts
        unlabelled = splits[name]["unlabelled"] - int(np.count_nonzero(labels < 0))
        splits[name] = splits[name] | {"labels": left.tolist(), "unlabelled": unlabelled}
    return {**content, "splits": splits}
