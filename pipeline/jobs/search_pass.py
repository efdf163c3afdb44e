"""The search of a job, task by task; lists of the nearest are saved, so that it can be resumed.

A task compares some steps of queries with a share of the groups of references, group after group:
the lists of one are the first bound for the next. After each group they are saved in the run
folder, with how many groups they cover; so a job that is killed loses what was in flight. A process
prepares a group once, for all its tasks, and keeps as many as `search_plan` says.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.core.classes import ClassSelection
from pipeline.core.exact import Int64Array
from pipeline.core.host_memory import allocated_by
from pipeline.core.partitions import Concatenation
from pipeline.core.threads import OwnLock
from pipeline.execution import signals
from pipeline.execution.checkpoints import Tell
from pipeline.jobs.search_plan import Arrangement, Measure, Search
from pipeline.kernels import backends
from pipeline.ops.looks import look_at
from pipeline.ops.neighbours import empty_lists, search_block
from pipeline.ops.search_tasks import flattened
from pipeline.storage import tables
from pipeline.storage.claims import Token
from pipeline.storage.image_content import read_checked
from pipeline.storage.manifest import WORK
from pipeline.storage.run_files import (
    DIGESTED_NEIGHBOURS,
    NEIGHBOURS,
    part_path,
    read_own_part,
    rows_digest,
)
from pipeline.storage.sample_lists import ListedSamples, taken_of
from pipeline.storage.tables import part_name

_LISTS = ("distance", "neighbour")
Prepared = Mapping[Measure, Any]
"""A group of references by measure, as `protocols.PrepareSearch` returns it, where it has any."""


@dataclass(frozen=True)
class SearchedJob:
    """What the tasks of the pass know of the job, or of an audit.

    Attributes
    ----------
    output, identity
        The folder that is filled, and the identity of its plan.
    images, digest
        The image set and its digest.
    search
        What is searched for what.
    selection
        The classes that it is about; None for all images, labelled or not.
    pixels, full_scale
        Of an image.
    """

    output: Path
    images: Path
    digest: str
    search: Search
    selection: ClassSelection | None
    identity: str
    pixels: int
    full_scale: int
    taken: tuple[ListedSamples, ...] = ()
    searched: tuple[ListedSamples, ...] = ()

    @property
    def work(self) -> Path:
        """The folder of lists that are not those of all references yet."""
        return self.output / WORK / NEIGHBOURS

    def token(self, stage: str) -> Token:
        """Lets tasks of a stage write."""
        return Token(self.output / WORK, self.identity, stage)

    def of_classes(self, labels: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Tell which samples, by their labels, are of the classes that it is about."""
        if self.selection is None:
            return np.ones(len(labels), bool)
        return self.selection.positions(labels) >= 0

    def measured(
        self, labels: npt.NDArray[Any], pieces: Iterable[tuple[str, int, int]]
    ) -> npt.NDArray[np.bool_]:
        """Tell which samples of some ranges have neighbours, [sample]: as in predictions, all that
        are taken but those of other classes.
        """
        return (self.of_classes(labels) | (labels < 0)) & taken_of(self.taken, pieces)

    def is_written(self, step: int) -> bool:
        """Tell whether the table of a step is there, whole."""
        path = part_path(self.output, step, NEIGHBOURS)
        return read_own_part(path, DIGESTED_NEIGHBOURS, self.identity) is not None


@dataclass(frozen=True)
class SavedLists:
    """The lists of a step that a share of the groups has given so far, saved and read back."""

    job: SearchedJob
    arrangement: Arrangement
    step: int
    share: int

    @property
    def path(self) -> Path:
        name = part_name(self.step).removesuffix(".parquet")
        return self.job.work / f"{name}-{self.share + 1}-of-{self.arrangement.shares}.parquet"

    @property
    def _identity(self) -> str:
        return f"{self.job.identity} groups of {self.job.search.references.step}"

    def save(self, lists: Int64Array, done: int) -> None:
        """Save lists, [measure, 2, query, k], of the groups before `done`."""
        columns = {name: lists[:, at].reshape(-1) for at, name in enumerate(_LISTS)}
        notes = {"identity": self._identity, "done": str(done)}
        tables.write_part(self.path, columns, notes | {"digest": rows_digest(columns)})

    def load(self, queries: int) -> tuple[Int64Array, int]:
        """Return the lists of so many queries, and the group that follows."""
        search, groups = self.job.search, self.arrangement.groups(self.job.search, self.share)
        measures = len(search.measures)
        saved = read_own_part(self.path, _LISTS, self._identity)
        if saved is None:
            return np.stack([empty_lists(queries, search.k)] * measures), groups.start
        columns, notes = saved
        parts = [columns[name].reshape(measures, queries, search.k) for name in _LISTS]
        return np.stack(parts, axis=1), int(notes["done"])


class _Groups:
    """Prepared groups that the tasks of a process share: those used last, each prepared once."""

    def __init__(self) -> None:
        self._lock = OwnLock()
        self._slots: dict[Any, _Slot] = {}

    def get(self, key: Any, prepare: Callable[[], Prepared], most: int) -> Prepared:
        """Return the group of a key, of which at most so many are kept."""
        with self._lock.held():
            slot = self._slots.pop(key, None) or _Slot()
            self._slots[key] = slot  # the last one now
            while len(self._slots) > most:
                del self._slots[next(iter(self._slots))]
        with slot.lock:
            if slot.value is None:
                slot.value = prepare()
            return slot.value

    def clear(self) -> None:
        """Forget all of them."""
        with self._lock.held():
            self._slots.clear()


class _Slot:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.value: Prepared | None = None


_groups = _Groups()


def forget_groups() -> None:
    """Give back the memory of the groups that this process keeps."""
    _groups.clear()


@dataclass(frozen=True)
class SearchPart:
    """Compares some steps of queries with a share of the groups; called with its number.

    Each task searches in `threads`. A group is prepared in all `cores` of the process: the other
    tasks wait for it then. Where a task has all groups, `finish` takes the lists of each step.
    """

    job: SearchedJob
    arrangement: Arrangement
    device: str
    threads: int
    cores: int
    finish: Callable[[int, Int64Array], None] | None = None

    @property
    def token(self) -> Token:
        """Lets it save lists."""
        return self.job.token("search")

    def __call__(self, index: int, tell: Tell) -> int:
        """Search what is not searched yet; return how many images were read."""
        search, share = self.job.search, index % self.arrangement.shares
        groups = self.arrangement.groups(search, share)
        waiting: dict[int, tuple[SavedLists, Queries, list[Any]]] = {}
        for step in self.arrangement.steps(search, index):
            if self.job.is_written(step):
                tell(len(groups))
                continue
            with allocated_by(backends.load(self.device).empty):
                queries = Queries.read(self.job, step)
            saved = SavedLists(self.job, self.arrangement, step, share)
            waiting[step] = saved, queries, list(saved.load(len(queries.images)))
            tell(waiting[step][2][1] - groups.start)
        read = [len(q.images) for _, q, (_, done) in waiting.values() if done < groups.stop]
        for group in groups:
            prepared: Prepared | None = None
            for step, (saved, queries, state) in waiting.items():
                if state[1] > group:
                    continue
                signals.stop_if_requested()
                if prepared is None:
                    prepared = self._prepared(group, read)
                state[:] = self._search(prepared, queries, state[0]), group + 1
                self.token.require()
                if self.finish is not None and group == groups[-1]:
                    self.finish(step, state[0])
                else:
                    saved.save(*state)
                tell(1)
        return sum(read)

    def _prepared(self, group: int, read: list[int]) -> Prepared:
        """Return a group, prepared by this task or another; note the images that were read."""
        key = self.job.identity, self.job.digest, str(self.job.images), self.device, group
        return _groups.get(key, partial(self._prepare, group, read), self.arrangement.resident)

    def _search(self, prepared: Prepared, queries: Queries, lists: Int64Array) -> Int64Array:
        """Return the lists with what a group has that is nearer."""
        result = lists.copy()
        for at, measure in enumerate(self.job.search.measures):
            if measure.references in prepared and len(queries.images):
                result[at] = search_block(
                    queries.seen_by(measure), prepared[measure.references], lists[at],
                    queries.own, self.device, self.threads,
                )  # fmt: skip
        return result

    def _prepare(self, group: int, read: list[int]) -> Prepared:
        search = self.job.search
        with allocated_by(backends.load(self.device).empty):
            images, labels = read_images(self.job, search.references, group)
        read.append(len(images))
        indices = np.arange(*search.references.bounds(group))
        wanted = self.job.of_classes(labels)
        wanted &= taken_of(self.job.searched, search.references.pieces(group))
        if not wanted.all():
            images, indices = images[wanted], indices[wanted]
        use, prepared = backends.load(self.device), dict[Measure, Any]()
        for measure in dict.fromkeys(each.references for each in search.measures):
            mine = np.flatnonzero(search.within(measure.split, indices))
            if len(mine):
                part = slice(mine[0], mine[-1] + 1)  # those of a split lie side by side
                seen = look_at(images[part], measure.normalized)
                prepared[measure] = use.prepare_search(
                    flattened(seen), seen.shape[1:], measure.metric, indices[part],
                    threads=self.cores,
                )  # fmt: skip
        return prepared


def read_images(
    job: SearchedJob, which: Concatenation, number: int
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int32]]:
    """Read a step or group: images and labels."""
    pieces = [read_checked(job.images, job.digest, *at) for at in which.pieces(number)]
    if len(pieces) == 1:
        return pieces[0]
    images, labels = zip(*pieces, strict=True)
    return np.concatenate(images), np.concatenate(labels)


@dataclass(frozen=True)
class Queries:
    """The measured images of a step, and the index of each among the references or -1."""

    images: npt.NDArray[Any]
    own: Int64Array
    _seen: dict[tuple[bool, bool], npt.NDArray[Any]] = field(default_factory=dict)

    def seen_by(self, measure: Measure) -> npt.NDArray[Any]:
        """Return the images as a measure compares them."""
        look = measure.normalized, measure.mirrored
        if look not in self._seen:
            self._seen[look] = look_at(self.images, *look)
        return self._seen[look]

    @classmethod
    def read(cls, job: SearchedJob, step: int) -> Queries:
        """Read those of a step."""
        images, labels = read_images(job, job.search.queries, step)
        pieces = list(job.search.queries.pieces(step))
        own = [job.search.own(split, np.arange(a, b)) for split, a, b in pieces]
        kept = job.measured(labels, pieces)
        if kept.all():
            return cls(images, np.concatenate(own))
        return cls(images[kept], np.concatenate(own)[kept])
