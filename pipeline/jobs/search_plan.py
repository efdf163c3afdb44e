"""How a job's search for the nearest images is cut into tasks, and the memory that it takes.

Queries are cut into steps, each one table of the run; references into groups that are small beside
the memory of a worker. Neither depends on where the job runs, so a resume may run elsewhere. What
does is the arrangement: where all references fit, a process prepares each group once and keeps it,
and a task takes a step. Where they do not, a task takes as many steps as its memory holds, since
all references are read once for each task. Where there are fewer tasks than can run at once, the
groups are shared out among several for the same steps, whose lists are merged in the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.config.job_settings import ChosenJob
from pipeline.core.classes import ClassSelection
from pipeline.core.errors import EmptyClassError
from pipeline.core.exact import Int64Array
from pipeline.core.partitions import Concatenation, ceil_div, image_bytes
from pipeline.execution.devices import Device
from pipeline.execution.workers import Workers
from pipeline.storage import image_store

# Bytes of pixels of a step of queries, and of a group of references, at most.
_STEP_BYTES, _GROUP_BYTES = 16 * 2**20, 64 * 2**20
# Steps that even a small job is cut into, of so many queries at least.
_STEPS, _LEAST_QUERIES = 8, 1024
# Bytes that a search keeps of each image beside its pixels: sketches, norms, indices, padding.
_SKETCHES = 600
# Bytes of the block sums of the images that a thread sketches; and of the sample that partition and
# components are made of.
_SKETCHING, _SAMPLED = 16 * 10**6, 32 * 2**20
# Bytes of pixels that are read, for each that is used: itself, decoded, and a compressed chunk.
_READ = 1.3
# Bytes of a row of the table, in NumPy, Arrow and as it is encoded.
_ROW = 250
# Bytes of a row while tables are read back: of three tables, with what is made of one.
_READ_BACK = 350
# The share of the memory that references may fill.
_SHARE = 0.8


@dataclass(frozen=True)
class Measure:
    """One way in which a search compares images; each gives lists of its own.

    Attributes
    ----------
    metric
        `l1` or `l2`.
    normalized
        Whether all images are brought to one brightness and contrast first, see `ops.looks`.
    mirrored
        Whether each query is mirrored left to right.
    split
        The only split that is searched; default: all.
    """

    metric: str
    normalized: bool = False
    mirrored: bool = False
    split: str | None = None

    @property
    def name(self) -> str:
        """How tables call it."""
        looks = ["normalized"] * self.normalized + ["mirrored"] * self.mirrored
        place = [] if self.split is None else [f"in {self.split}"]
        return " ".join([*looks, self.metric, *place])

    @property
    def references(self) -> Measure:
        """What decides how the images that are searched are prepared."""
        return replace(self, mirrored=False)


VOTES = (1, 3, 5, 10)
"""Numbers of neighbours, up to k, by whose votes is predicted."""


@dataclass(frozen=True)
class Search:
    """What is searched for what.

    Attributes
    ----------
    queries, references
        The splits that are measured, cut into steps; those that are searched, cut into groups.
    k, measures
        How many neighbours, by which measures.
    sample_bytes
        Bytes of an image.
    pairs
        How many distances a search without bounds would measure.
    """

    queries: Concatenation
    references: Concatenation
    k: int
    measures: tuple[Measure, ...]
    sample_bytes: int
    pairs: int

    @property
    def read_back(self) -> int:
        """How many bytes the tables take that are in memory at once when they are read back."""
        rows = len(self.measures) * self.k * self.queries.step
        return _READ_BACK * rows

    @property
    def names(self) -> list[str]:
        """The names of the measures."""
        return [measure.name for measure in self.measures]

    @property
    def prepared(self) -> int:
        """How often each image is prepared, as the measures want it."""
        return len({replace(m, mirrored=False, split=None) for m in self.measures})

    @property
    def votes(self) -> list[int]:
        """The numbers of nearest images by whose votes is predicted."""
        return [k for k in VOTES if k <= self.k]

    def within(self, split: str | None, references: Int64Array) -> npt.NDArray[np.bool_]:
        """Tell which references are of a split; all are, where that is None."""
        if split is None:
            return np.ones(len(references), bool)
        number = [name for name, _ in self.references.counts].index(split)
        return np.equal(self.sample_of(references)[0], number)

    def own(self, split: str, samples: Int64Array) -> Int64Array:
        """Return the indices of samples of a split among the references, -1 where they are none."""
        first = 0
        for name, count in self.references.counts:
            if name == split:
                return samples + first
            first += count
        return np.full(len(samples), -1)

    def sample_of(self, references: Int64Array) -> tuple[npt.NDArray[np.int32], Int64Array]:
        """Return the split, as its number among those searched, and the sample of references."""
        edges = np.cumsum([0, *(count for _, count in self.references.counts)])
        split = np.searchsorted(edges, references, side="right") - 1
        return split.astype(np.int32), references - edges[split]


@dataclass(frozen=True)
class Arrangement:
    """What one task of a search does.

    Attributes
    ----------
    batch
        Steps of queries that it takes.
    shares
        Parts that the groups of references are cut into, each for a task of its own.
    resident
        Prepared groups that a process keeps for its tasks.
    memory
        Bytes that all tasks of a process take, beside the process itself.
    device
        Bytes that they take on a device; 0 where it has no memory of its own.
    """

    batch: int
    shares: int
    resident: int
    memory: int
    device: int = 0

    def tasks(self, search: Search) -> int:
        """Return how many tasks there are."""
        return ceil_div(search.queries.steps, self.batch) * self.shares

    def reads(self, search: Search, workers: Workers) -> int:
        """Return how often all references are read, at most."""
        batches = self.tasks(search) // self.shares
        if self.resident < search.references.steps:
            return batches
        return min(batches, max(1, workers.processes))

    def steps(self, search: Search, task: int) -> range:
        """Return the steps of queries of a task."""
        first = task // self.shares * self.batch
        return range(first, min(first + self.batch, search.queries.steps))

    def groups(self, search: Search, share: int) -> range:
        """Return the groups of references of a share."""
        edges = [search.references.steps * at // self.shares for at in (share, share + 1)]
        return range(*edges)


def _even(total: int, parts: int) -> int:
    return max(1, ceil_div(total, max(parts, 1)))


def plan_search(
    settings: ChosenJob,
    content: Mapping[str, Any],
    images: Path,
    selection: ClassSelection,
    like: Mapping[str, Any],
    counted: Mapping[str, Any],
) -> Search | None:
    """Cut the search of a job into steps and groups; None where it asks for none.

    Parameters
    ----------
    settings
        The job.
    content, images
        The manifest of its image set, and the folder.
    selection
        Its classes.
    like
        What the manifest says of the split that prototypes are made from.
    counted
        The manifest again, which counts the labels of what is measured.

    Raises
    ------
    StoreError, ShapeError, EmptyClassError
        Where a split that is to be searched is not there, has other images, or none of the classes.
    """
    asked = settings.decides()["neighbours"]
    if asked is None:
        return None
    among = {name: image_store.require_split(content, name, images) for name in asked["among"]}
    for name, split in among.items():
        image_store.require_alike(name, split, settings.fit, like)
    labelled = sum(split["labels"][code] for split in among.values() for code in selection.codes)
    if labelled < 2:
        raise EmptyClassError(
            f"neighbours: images of the classes in {', '.join(among)}: {labelled}, expected 2 or "
            "more to search among; name splits with labelled images in neighbours.among"
        )
    measured = [counted["splits"][name] for name in settings.evaluate]
    queries = sum(
        split["unlabelled"] + sum(split["labels"][code] for code in selection.codes)
        for split in measured
    )
    counts = {name: content["splits"][name]["count"] for name in (*settings.evaluate, *among)}
    search = cut_search(
        {name: counts[name] for name in settings.evaluate},
        {name: counts[name] for name in among},
        asked["k"],
        [Measure(metric) for metric in asked["metrics"]],
        image_bytes(like["shape"], like["dtype"]),
    )
    return replace(search, pairs=queries * labelled * len(search.measures))


def cut_search(
    measured: Mapping[str, int],
    among: Mapping[str, int],
    k: int,
    measures: Sequence[Measure],
    size: int,
) -> Search:
    """Cut a search into steps and groups, given the images of each split and the bytes of one."""
    total, searched = sum(measured.values()), sum(among.values())
    steps = max(ceil_div(total * size, _STEP_BYTES), min(_STEPS, total // _LEAST_QUERIES))
    steps = 1 << max(0, steps - 1).bit_length()
    groups = ceil_div(searched * size, _GROUP_BYTES)
    compared = sum(searched if m.split is None else among[m.split] for m in measures)
    return Search(
        Concatenation(tuple(measured.items()), _even(total, steps)),
        Concatenation(tuple(among.items()), _even(searched, groups)),
        k,
        tuple(measures),
        size,
        total * compared,
    )


def _on_device(search: Search, device: Device) -> tuple[int, int]:
    """Return the bytes that a group of references takes on a device, and what a task does.

    Of a batch of queries there is the least distance to each few references, or each distance.
    """
    group, pixels = search.references.step, search.sample_bytes
    if device.widens:
        return search.prepared * group * (8 * pixels + 16), 64 * 2**24
    of_query = 6 * pixels + group + 2**11 * min(search.k, group // 32 + 1)
    batch = min(search.queries.step, max(1, (device.memory or 0) // (8 * of_query)))
    return search.prepared * group * (pixels + 160), batch * of_query + 3 * group * pixels


def arrange_search(
    search: Search, workers: Workers, base: int, device: Device | None = None
) -> Arrangement:
    """Fit a search to the memory of workers whose processes take `base` bytes by themselves.

    And to that of the device that each of them has: prepared groups are kept there.
    """
    tasks = min(workers.tasks, search.queries.steps * search.references.steps)
    size, looks = search.sample_bytes, search.prepared
    step, group = search.queries.step, search.references.step
    prepared = looks * group * (size + _SKETCHES)
    rows = len(search.measures) * search.k * step
    lists = 16 * rows
    # a group is prepared by one task, for all of a process
    sampled = min(_SAMPLED, group * size)
    fixed = min(tasks, search.references.steps) * (int(_READ * size * group) + sampled)
    fixed += tasks * (step * (2 * size + _SKETCHES) + _SKETCHING + _ROW * rows)
    room = int(_SHARE * workers.memory) - base - fixed
    more = step * size + lists  # of another step in the same task
    resident, batch = search.references.steps, 1
    of_group, of_task = 0, 0
    if device is not None and device.memory is not None:
        of_group, of_task = _on_device(search, device)
        left = int(_SHARE * device.memory) - tasks * of_task
        resident = max(min(resident, tasks), min(resident, left // of_group))
    if resident * prepared > room or resident < search.references.steps:
        resident = min(resident, tasks)
        batch = 1 + max(0, (room - resident * prepared) // (tasks * more))
    steps, groups = search.queries.steps, search.references.steps
    # as few batches as memory allows, but for workers that would have nothing to do
    batches = max(1, ceil_div(steps, batch), min(steps, ceil_div(workers.at_once, groups)))
    batch = max(1, ceil_div(steps, batches))
    shares = min(groups, ceil_div(workers.at_once, batches))
    taken = resident * prepared + fixed + tasks * (batch - 1) * more
    return Arrangement(batch, shares, resident, taken, resident * of_group + tasks * of_task)
