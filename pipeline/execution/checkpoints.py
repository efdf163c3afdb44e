"""Sums of partitions that outlive the process that makes them, so that a pass can be resumed.

The first pass adds every partition to an array of integers, an accumulator. Partitions in a row
are a *batch*. A task counts a batch and saves its sum in a file of the run folder; where the file
is there, from a run that was cut short or a task that dask runs twice, it does nothing. Then as
many tasks as run at once add up the files, a share of the batches each, and what they return is
added up in a tree. So no process holds more accumulators than it runs tasks, however many
partitions there are, and a job that is killed loses a batch per task at most.

Each partition is counted once, whatever is left of earlier tries: batches are disjoint and cover
all partitions, and a file is used for a batch only where it holds just its sum. It is an archive
of NumPy with one array, whose name is a digest of everything that decides the sums (the partitions
included) and the range of the batch; its CRC-32 is compared before a sum is used. A file that is
torn, damaged, or belongs elsewhere is as good as none: the batch is counted again.

What is written is at most a sixteenth of the pixels that are read, or 16 MiB; see `batch_size`.
Where not even one file for each task would stay within that, nothing is saved.
"""

from __future__ import annotations

import math
import zipfile
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.core.errors import DamagedError, StoreError
from pipeline.core.exact import Int64Array
from pipeline.core.partitions import ceil_div
from pipeline.core.paths import shown
from pipeline.execution import signals
from pipeline.storage.atomic import replaced
from pipeline.storage.blobs import open_binary
from pipeline.storage.claims import Token

AddPartition = Callable[[int, Int64Array], None]
"""Adds a partition, given its number, to an accumulator."""
Tell = Callable[[int], None]
"""Takes how many partitions more are done."""

ALL = "all"
"""The name of the sum of all partitions."""

# Files may take this share of the bytes of the pixels that are read, or so many bytes.
_SHARE, _FREE_BYTES = 16, 16 * 2**20
# Integers that are read at a time.
_BLOCK = 2**17


def batch_size(partitions: int, sum_bytes: int, read_bytes: int) -> int:
    """Return how many partitions make a batch, given the bytes of a sum and of all pixels read.

    It is the least number with which the files of all batches stay within a sixteenth of the
    pixels, or within 16 MiB where that is more; more than there are partitions where not even one
    file does.
    """
    files = max(read_bytes // _SHARE, _FREE_BYTES) // max(sum_bytes, 1)
    return max(1, ceil_div(partitions, files)) if files else partitions + 1


def saved_batches(partitions: int, size: int, at_once: int) -> int:
    """Return how many batches are saved: none where there is not one for each task at once."""
    batches = ceil_div(partitions, size)
    return batches if size <= partitions and batches >= min(at_once, partitions) else 0


@dataclass(frozen=True)
class Checkpoints:
    """The saved sums, of int64 and `shape`, of one pass over `partitions`, in batches of `size`.

    `identity` is a digest of everything that decides the sums, the layout of the partitions
    included.
    """

    folder: Path
    identity: str
    shape: tuple[int, ...]
    partitions: int
    size: int

    @property
    def batches(self) -> int:
        return ceil_div(self.partitions, self.size)

    @property
    def token(self) -> Token:
        """Lets tasks save sums; gone with the folder once the pass is over."""
        return Token(self.folder, self.identity, "add up")

    def numbers(self, batch: int) -> range:
        """Return the partitions of a batch."""
        return range(batch * self.size, min((batch + 1) * self.size, self.partitions))

    def name(self, batch: int) -> str:
        """Return the name of the sum of a batch."""
        numbers = self.numbers(batch)
        return f"{numbers.start:06d}-{numbers.stop:06d}"

    def path(self, name: str) -> Path:
        """Return the file of a sum."""
        return self.folder / f"{name}.npz"

    def save(self, name: str, sums: Int64Array) -> None:
        """Save a sum: the file is written aside and renamed, without waiting for the disk.

        `StoreError` where the sums are not what the pass counts, since nothing is cast, or where
        the pass is over.
        """
        if sums.dtype != np.int64 or sums.shape != self.shape:
            raise StoreError(
                f"{shown(self.path(name))}: holds int64 and {self.shape}, the sums to be written "
                f"are {sums.dtype} and {sums.shape}; run the same command again"
            )
        self.token.require()
        with (
            replaced(self.path(name), lasting=False) as aside,
            zipfile.ZipFile(aside, "w") as archive,
            archive.open(self._member(name), "w", force_zip64=True) as member,
        ):
            ordered = np.ascontiguousarray(sums, "<i8")
            header = np.lib.format.header_data_from_array_1_0(ordered)
            np.lib.format.write_array_header_1_0(member, header)
            member.write(ordered.reshape(-1).view(np.uint8).data)  # all of it, and no copy

    def has(self, name: str) -> bool:
        """Tell whether the file of a sum seems to be there; its sums are not looked at."""
        try:
            with open_binary(self.path(name)) as file, zipfile.ZipFile(file) as archive:
                return archive.namelist() == [self._member(name)]
        except Exception:  # what damaged bytes raise has no end
            return False

    def load(self, name: str) -> Int64Array | None:
        """Return a sum, or None where its file cannot be used."""
        sums = np.zeros(self.shape, np.int64)
        return sums if self.add(name, sums) else None

    def add(self, name: str, total: Int64Array) -> bool:
        """Add a saved sum to a total, in C order; False where its file cannot be used.

        One of several blocks is read twice, block by block: checked, then added. `DamagedError`
        where it was changed in between; the total is worth nothing then.
        """
        flat = total.reshape(-1)
        try:
            last = deque(self._blocks(name), maxlen=1)
        except Exception:  # what damaged bytes raise has no end
            return False
        try:
            for part, block in last if flat.size <= _BLOCK else self._blocks(name):
                flat[part] += block
        except Exception as error:
            raise DamagedError(
                f"{shown(self.path(name))}: was changed while it was read ({error}); run the same "
                "command again"
            ) from None
        return True

    def _member(self, name: str) -> str:
        return f"{self.identity} {name}.npy"

    def _blocks(self, name: str) -> Iterator[tuple[slice, npt.NDArray[np.int64]]]:
        """Yield a sum block by block, and where each belongs; the checksum is compared at last."""
        count = math.prod(self.shape)
        with (
            open_binary(self.path(name)) as file,
            zipfile.ZipFile(file) as archive,
            archive.open(self._member(name)) as member,
        ):
            np.lib.format.read_magic(member)
            header = np.lib.format.read_array_header_1_0(member)
            if header != (self.shape, False, np.dtype("<i8")):
                raise ValueError("it holds other sums")
            for start in range(0, count, _BLOCK):
                part = slice(start, min(start + _BLOCK, count))
                yield part, np.frombuffer(member.read(8 * (part.stop - start)), "<i8")
            if member.read(1):
                raise ValueError("it holds more")


@dataclass(frozen=True)
class CheckpointedSum:
    """The tasks of a pass: `save` for each batch, then `add` for each share of the batches."""

    function: AddPartition
    kept: Checkpoints
    at_once: int

    @property
    def saves(self) -> bool:
        return saved_batches(self.kept.partitions, self.kept.size, self.at_once) > 0

    @property
    def shares(self) -> int:
        return min(self.at_once, self.kept.batches if self.saves else self.kept.partitions)

    def save(self, batch: int, tell: Tell) -> None:
        """Save the sum of a batch, unless it is there."""
        if self.kept.has(self.kept.name(batch)):
            tell(len(self.kept.numbers(batch)))
            return
        total = np.zeros(self.kept.shape, np.int64)
        for index in self.kept.numbers(batch):
            self.function(index, total)
            tell(1)
        self.kept.save(self.kept.name(batch), total)

    def add(self, share: int, tell: Tell) -> Int64Array:
        """Return the sum of every so many batches, [1, *shape]; what is not saved is counted."""
        total = np.zeros(self.kept.shape, np.int64)
        if self.saves:
            for batch in range(share, self.kept.batches, self.shares):
                if not self.kept.add(self.kept.name(batch), total):
                    for index in self.kept.numbers(batch):
                        self.function(index, total)
        else:
            for index in range(share, self.kept.partitions, self.shares):
                signals.stop_if_requested()
                self.function(index, total)
                tell(1)
        return total[None]
