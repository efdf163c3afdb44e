"""Which samples of an image set the passes of a job take: all, or not those that it leaves out.

A sample that a pass does not take is one that it does not select, as are those of classes that the
job does not select: it stays where it is in the image set, and has a row in no table of the pass.
So it is with samples that a table excludes from all passes; and, where a part of a split is held
out, with these samples in the fit and in what is searched, and with all others in what is measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.config.job_settings import ChosenJob
from pipeline.core.errors import EmptyClassError
from pipeline.core.holdout import hold_out
from pipeline.core.paths import shown
from pipeline.ingestion.duplicates import stored_records
from pipeline.storage.folders import exists
from pipeline.storage.image_content import read_labels
from pipeline.storage.manifest import require_files
from pipeline.storage.sample_lists import (
    EXCLUDED,
    HELD_OUT,
    ListedSamples,
    SampleList,
    copied_from,
    read_copy,
    read_list,
)
from pipeline.storage.sample_tables import SAMPLES


@dataclass(frozen=True)
class SampleChoice:
    """The samples that a job does not take in all passes.

    Attributes
    ----------
    output
        The folder of the run, which keeps copies of the lists.
    source
        Where the list of those that are excluded is from.
    excluded
        Those that are left out; None where there are none.
    held_out
        Those of the fitted split that are measured, and no others; None where all are fitted.
    share, left
        How much of it was to be held out, and how many are fitted.
    """

    output: Path
    source: str = ""
    excluded: SampleList | None = None
    held_out: SampleList | None = None
    share: float = 0.0
    left: int = 0

    @property
    def fitted(self) -> tuple[ListedSamples, ...]:
        """The lists that say which samples are fitted, and searched for the nearest."""
        return self._lists(held_out=False)

    @property
    def measured(self) -> tuple[ListedSamples, ...]:
        """The lists that say which samples are measured."""
        return self._lists(held_out=True)

    def _lists(self, held_out: bool) -> tuple[ListedSamples, ...]:
        known = {EXCLUDED: (self.excluded, False), HELD_OUT: (self.held_out, held_out)}
        return tuple(
            ListedSamples(self.output / name, listed.digest, taken)
            for name, (listed, taken) in known.items()
            if listed is not None
        )

    @property
    def memory(self) -> int:
        """How many bytes a process keeps of the lists."""
        return sum(8 * each.total for each in (self.excluded, self.held_out) if each is not None)

    def decides(self) -> dict[str, Any]:
        """Return what of it decides the result of a run, beside the settings."""
        if self.excluded is None:
            return {}
        counts = {name: len(rows) for name, rows in self.excluded.samples.items()}
        return {"exclude": {"samples": counts, "digest": self.excluded.digest}}

    def recorded(self) -> dict[str, Any]:
        """Return what a run records: how many samples were left out, why, and how many held out."""
        known: dict[str, Any] = {}
        if self.excluded is not None:
            known["excluded"] = self.excluded.counts()
        if self.held_out is not None:
            (split,) = self.held_out.samples
            count = self.held_out.total
            known["holdout"] = {
                "split": split, "share": self.share, "held_out": count, "fitted": self.left,
            }  # fmt: skip
        return known

    @property
    def files(self) -> list[str]:
        """The names of the copies in the folder of the run."""
        lists = {EXCLUDED: self.excluded, HELD_OUT: self.held_out}
        return [name for name, listed in lists.items() if listed is not None]

    def write(self) -> None:
        """Write the copies, which are all that a run needs from now on."""
        copy = self.output / EXCLUDED
        if self.excluded is not None and self.source != shown(copy):
            self.excluded.write(copy, self.source)
        if self.held_out is not None:
            self.held_out.write(self.output / HELD_OUT, "")


Content = Mapping[str, Any]
"""The manifest of an image set."""


def choose_samples(
    settings: ChosenJob, images: Path, content: Content
) -> tuple[SampleChoice, Content, Content]:
    """Return which samples a job takes, and its manifest with labels of these alone.

    One counts those that are fitted, and searched for the nearest, one those that are measured. Of
    an image set that is not made yet all are taken as far as is known; that the table of what is
    excluded can be read is checked all the same.

    Raises
    ------
    SourceError, SchemaError, InputError, ConflictError
        As `read_list`.
    EmptyClassError
        Where a part is to be held out, and no image is.
    """
    choice, content = _exclude(settings, images, content)
    if (
        settings.holdout is None
        or content["digest"] is None
        or settings.fit not in content["splits"]
    ):
        return choice, content, content
    path, split = images.absolute(), settings.fit
    require_files(path, content, [SAMPLES])
    records = np.concatenate(list(stored_records(path, split)))
    kept = np.ones(len(records), bool)
    if choice.excluded is not None:
        kept[choice.excluded.samples_of(split)] = False
    labels, rows = records["label"], np.flatnonzero(kept)
    words = np.ascontiguousarray(records["sha256"]).view(">u8").reshape(-1, 4)[kept, 0]
    held = hold_out(words.astype(np.uint64), labels[kept], settings.holdout)
    if not held.any():
        raise EmptyClassError(
            f"holdout: {settings.holdout:g} of each class of the {len(rows):,} images in '{split}' "
            "is none of them, expected one at least to measure; take a larger share"
        )
    listed = SampleList({split: rows[held]}, {split: np.full(int(held.sum()), -1, np.int32)})
    choice = replace(
        choice, held_out=listed, share=settings.holdout, left=int(np.count_nonzero(~held))
    )
    fitted, measured = (
        without_labels(content, {split: labels[rows[gone]]}) for gone in (held, ~held)
    )
    return choice, fitted, measured


def _exclude(settings: ChosenJob, images: Path, content: Content) -> tuple[SampleChoice, Content]:
    """Read what is excluded. A run that has its copy needs the table no more, where it has gone."""
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
