"""Adding up what tasks count, so that what was counted survives them; see `checkpoints`.

A task counts whole partitions into an accumulator. Where accumulators are small, a task makes one
of its own: of a partition, or of as many in a row as a piece takes in. The range names the piece;
a task whose piece is there reads it and counts nothing, whether it belongs to a run that goes on
or to one whose worker died. The accumulators are added up in a tree.

Large accumulators are as many as tasks run at once. A *lane* starts from the pieces that it is
given, and counts its share of the other partitions one after the other, a task each; every so
often it writes its total over its own piece, whose name no other try uses. A task hands its total
on to the next. It hands on nothing where the lane's piece holds as much already, which happens
when dask runs a lane again after a worker died: the first task that is not behind the piece reads
it and goes on from there. So a task may always make the lane's total by itself, from the
lane's piece where there is one, else from the pieces it started with, and counts what is missing:
whatever it finds, it ends with the pieces given to the lane and the first so many of its
partitions, each once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import dask.array as da
import numpy as np

from pipeline.core.exact import Int64Array
from pipeline.core.partitions import ceil_div
from pipeline.core.ranges import Ranges, cut, each, joined, size_of, without
from pipeline.execution.checkpoints import Checkpoints, Piece

AddPartition = Callable[[int, Int64Array], None]


class Watch(Protocol):
    """What a task says and asks while it works; it travels with the task."""

    def task(self) -> AbstractContextManager[None]:
        """Surround all that a task does."""
        ...

    def tell(self, partitions: int) -> None:
        """Be told that so many partitions more are done, now or by an earlier try."""
        ...

    def ends(self) -> bool:
        """Whether the job was told to stop, so that no other task may come."""
        ...


@dataclass(frozen=True)
class Batch:
    """Makes the accumulator of some partitions in a row.

    Attributes
    ----------
    function
        Adds a partition, given its number, to an accumulator.
    watch
        Who watches over the task.
    shape
        Of the accumulator.
    count, size
        All partitions, and those of a batch.
    kept
        Their pieces, where there are any.
    """

    function: AddPartition
    watch: Watch
    shape: tuple[int, ...]
    count: int
    size: int
    kept: Checkpoints | None

    def block(self, block_id: tuple[int, ...]) -> Int64Array:
        """Return the accumulator of one block, [1, *shape]."""
        with self.watch.task():
            return self(block_id[0])[None]

    def __call__(self, number: int) -> Int64Array:
        """Return the accumulator of a batch."""
        start, stop = number * self.size, min((number + 1) * self.size, self.count)
        name = f"{start:06d}-{stop:06d}"
        found = self.kept.load_numbers(name, ((start, stop),)) if self.kept else None
        if found is not None:
            self.watch.tell(stop - start)
            return found
        total = np.zeros(self.shape, np.int64)
        for index in range(start, stop):
            self.function(index, total)
            self.watch.tell(1)
        if self.kept:
            self.kept.save(name, ((start, stop),), total)
        return total


@dataclass(frozen=True)
class Lane:
    """Makes an accumulator of many partitions, one after the other.

    Attributes
    ----------
    function, watch, shape, kept
        As of a batch.
    name
        Of its piece.
    given
        The pieces that it starts from.
    numbers
        The partitions that it counts.
    copies
        Whether to leave an accumulator as it is that a task is handed: dask may run a task again
        on a worker. Threads of one process run each task once.
    """

    function: AddPartition
    watch: Watch
    shape: tuple[int, ...]
    kept: Checkpoints | None
    name: str
    given: tuple[Piece, ...]
    numbers: Ranges
    copies: bool

    def __call__(self, stop: int, before: Int64Array | None = None) -> Int64Array | None:
        """Count as far as before place `stop` of the lane's partitions; not all of them.

        Parameters
        ----------
        stop
            The place.
        before
            What the task before this one handed on: the total as far as place `stop - 1`.

        Returns
        -------
        The total; or None where the lane's piece holds as much.
        """
        with self.watch.task():
            if before is None and self._held() >= stop:
                return None
            total, done = self._count(stop, before)
            return total if done == stop else None

    def last(self, stop: int, before: Int64Array | None = None) -> Int64Array:
        """Count all partitions of the lane, [1, *shape]."""
        with self.watch.task():
            return self._count(stop, before)[0][None]

    def _count(self, stop: int, before: Int64Array | None) -> tuple[Int64Array, int]:
        """Return the total as far as place `stop`, or as far as the lane's piece is; and where."""
        if before is None:
            total, done = self._start()
        else:
            total, done = before.copy() if self.copies else before, stop - 1
        if done >= stop:
            return total, done
        for index in each(cut(self.numbers, done, stop)):
            self.function(index, total)
            self.watch.tell(1)
        if self.kept and (stop % self.kept.every == 0 or self.watch.ends()):
            self.kept.save(self.name, self._covered(stop), total)
        return total, stop

    def _start(self) -> tuple[Int64Array, int]:
        """Return a total to go on from, and how many of the lane's partitions are in it."""
        if self._held() and self.kept:
            found = self.kept.load(self.name)
            done = self._place(found[0]) if found is not None else 0
            if found is not None and done:
                return found[1], done
        return self._given(), 0

    def _held(self) -> int:
        """Return how many of the lane's partitions its piece states to hold."""
        covered = self.kept.covered(self.name) if self.kept else None
        return self._place(covered) if covered is not None else 0

    def _place(self, covered: Ranges) -> int:
        done = size_of(covered) - sum(size_of(piece.numbers) for piece in self.given)
        return done if done > 0 and self._covered(done) == covered else 0

    def _covered(self, done: int) -> Ranges:
        return joined(*(piece.numbers for piece in self.given), cut(self.numbers, 0, done))

    def _given(self) -> Int64Array:
        """Return the sum of the pieces that the lane starts from; what is damaged is counted."""
        total = np.zeros(self.shape, np.int64)
        for piece in self.given:
            if self.kept is None or not self.kept.add(piece, total):
                for index in each(piece.numbers):
                    self.function(index, total)
        return total


def share_out(
    count: int, lanes: int, pieces: Sequence[Piece]
) -> list[tuple[tuple[Piece, ...], Ranges]]:
    """Share pieces, and the partitions that none of them holds, among lanes.

    Parameters
    ----------
    count, lanes
        Partitions, and lanes at most.
    pieces
        With disjoint numbers below `count`.

    Returns
    -------
    For each lane its pieces, and its partitions: as even a share as can be, runs left whole.
    """
    left = without(((0, count),), joined(*(piece.numbers for piece in pieces)))
    number = max(1, min(lanes, size_of(left)))
    edges = [size_of(left) * lane // number for lane in range(number + 1)]
    return [
        (tuple(pieces[lane::number]), cut(left, edges[lane], edges[lane + 1]))
        for lane in range(number)
    ]


def batch_blocks(batch: Batch, name: str) -> da.Array:
    """Return [batch, *shape], lazy: an accumulator for each batch, for a tree of additions."""
    return da.map_blocks(
        batch.block,
        name=name,
        chunks=((1,) * ceil_div(batch.count, batch.size), *((size,) for size in batch.shape)),
        dtype=np.int64,
        meta=np.empty((0,) * (1 + len(batch.shape)), np.int64),
    )


def lane_blocks(lanes: Sequence[Lane], name: str) -> da.Array:
    """Return [lane, *shape], lazy: a large accumulator for each lane, a task for each partition.

    What a worker holds does not grow with the number of partitions, nor depend on the order in
    which a tree would be worked off.
    """
    graph: dict[Any, Any] = {}
    shape = lanes[0].shape
    for number, lane in enumerate(lanes):
        before: list[Any] = []
        for stop in range(1, size_of(lane.numbers)):
            graph[f"{name}-step", number, stop] = (lane, stop, *before)
            before = [(f"{name}-step", number, stop)]
        last = (lane.last, size_of(lane.numbers), *before)
        graph[name, number, *(0,) * len(shape)] = last
    chunks = ((1,) * len(lanes), *((size,) for size in shape))
    return da.Array(graph, name, chunks, np.int64)
