"""Sums that outlive the process that makes them, so that a pass which is cut short goes on.

The first pass adds every partition to an array of integers. A *piece* is a file with such a sum
and with the numbers of the partitions in it. It is written aside and renamed, without waiting for
the disk: one that is torn all the same is found out by its checksums, and then it is as if it were
not there. So is a piece of another pass or plan, of another shape, or of a name that it does not
belong to; the worst that can happen to a piece is that its partitions are read again.

Each partition is counted exactly once, for two reasons.

1. A piece always holds just the sum that it names. It is written only from an accumulator whose
   numbers are known: those of pieces that were added to it, and those of the partitions that were.
   Header and sums are under checksums that are compared before a sum is used, so this is true of
   each file by itself, whoever wrote it, when, and how often: a task that ran twice, a worker that
   was given up and wrote all the same, an earlier try with more workers or fewer.
2. What is added up has no number twice and misses none. Where accumulators are small, a piece is
   named by the range that its task is to count, used by no other task (`checkpointed_sum`). Where
   they are large, `find` chooses pieces whose numbers are disjoint, and what is left to count is
   their complement. A piece that took in another one overlaps with it, so at most one of the two
   is chosen, whether or not the older one was removed.

How many partitions lie between two pieces follows from bytes alone: what is written in all is at
most an eighth of the pixels that are read, or some MB; see `partitions_a_piece`.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt

from pipeline.core.errors import DamagedError, StoreError
from pipeline.core.exact import Int64Array
from pipeline.core.partitions import ceil_div
from pipeline.core.paths import is_remote
from pipeline.core.ranges import Ranges, joined, size_of
from pipeline.core.urls import shown
from pipeline.storage.atomic import aside_of, replaced, storage_errors
from pipeline.storage.blobs import open_binary, put_bytes, read_bytes
from pipeline.storage.folders import exists, list_folder, remove_tree

SUFFIX = ".sums"
WHOLE = "whole"
"""The name of the piece that holds all partitions."""

# What stands in a remote folder for the folder itself: as long as it is there, the pass goes on.
_BEGUN = "begun"

# Pieces may be written for as many bytes as this share of the pixels that are read, or as these.
_SHARE, _FREE_BYTES = 8, 64 * 2**20
# Before the header: what the file is, and the length of the header and its CRC-32.
_LEAD, _MAGIC = struct.Struct("<8sII"), b"pixsums1"
_HEADER_BYTES, _MOST_HEADER_BYTES = 2**14, 2**26
# Sums that are read at a time where they are added to others.
_BLOCK = 2**17


def partitions_a_piece(partitions: int, piece_bytes: int, read_bytes: int) -> int:
    """Return how many partitions are counted between two pieces.

    Parameters
    ----------
    partitions
        All there are.
    piece_bytes
        Of a piece.
    read_bytes
        Bytes of pixels in all partitions.

    Returns
    -------
    The least number with which all pieces together stay within an eighth of the pixels, or within
    64 MiB where that is more; more than there are partitions where not even one piece does.
    """
    pieces = max(read_bytes // _SHARE, _FREE_BYTES) // max(piece_bytes, 1)
    return max(1, ceil_div(partitions, pieces)) if pieces else partitions + 1


@dataclass(frozen=True)
class Piece:
    """The name of a piece, and the numbers that its header states."""

    name: str
    numbers: Ranges


class _UnusableError(Exception):
    """A file is no piece of this pass, or damaged."""


# what reading meets where there is no piece, or one that nobody wrote so
_NOT_THERE = (OSError, ValueError, KeyError, TypeError, AttributeError, _UnusableError)


@dataclass(frozen=True)
class _About:
    """What the header of a piece says: where its sums begin, their numbers and CRC-32."""

    path: Path
    end: int
    numbers: Ranges
    checksum: int


@dataclass(frozen=True)
class Checkpoints:
    """The pieces of one pass over the images.

    Reading never fails: what is not there, cannot be read, is damaged or belongs elsewhere is None.

    Attributes
    ----------
    folder
        Where they lie; made with the first one.
    identity
        A digest of everything that decides the sums, the layout of the partitions included.
    shape
        Of the sums, which are int64.
    every
        Partitions that are counted between two pieces.
    """

    folder: Path
    identity: str
    shape: tuple[int, ...]
    every: int

    def begin(self) -> None:
        """Make the folder. Where it is gone the pass is over, and no task writes to it any more."""
        if is_remote(self.folder):
            put_bytes(self.folder / _BEGUN, b"")
            return
        with storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)

    def save(self, name: str, numbers: Ranges, sums: Int64Array) -> None:
        """Write a piece, in place of an earlier one of that name; nothing where the pass is over.

        Raises
        ------
        StorageFullError
            Where the disk is full.
        StoreError
            Where the sums are not what the pass counts: nothing is cast.
        """
        if sums.dtype != np.int64 or sums.shape != self.shape:
            raise StoreError(
                f"{shown(self._path(name))}: holds int64 and {self.shape}, the sums to be written "
                f"are {sums.dtype} and {sums.shape}; run the same command again"
            )
        data = np.ascontiguousarray(sums, "<i8").reshape(-1).view(np.uint8).data
        about = {
            "identity": self.identity, "name": name, "numbers": numbers, "shape": self.shape,
            "crc32": zlib.crc32(data),
        }  # fmt: skip
        header = json.dumps(about, separators=(",", ":")).encode()
        lead = _LEAD.pack(_MAGIC, len(header), zlib.crc32(header))
        if is_remote(self.folder) and not exists(self.folder / _BEGUN):
            return  # a folder of this machine that is gone takes no files
        _write(self._path(name), (lead, header, data))

    def covered(self, name: str) -> Ranges | None:
        """Return the numbers that a piece states; its sums are not looked at."""
        try:
            return self._header(name).numbers
        except _NOT_THERE:
            return None

    def load(self, name: str) -> tuple[Ranges, Int64Array] | None:
        """Return the numbers of a piece and their sums, checked."""
        try:
            about = self._header(name)
            sums = np.empty(self.shape, "<i8")
            for part, block in self._blocks(about, sums.reshape(-1)):
                del part, block  # they are in place
        except _NOT_THERE:
            return None
        return about.numbers, sums.astype(np.int64, copy=False)

    def load_numbers(self, name: str, numbers: Ranges) -> Int64Array | None:
        """Return the sums of a piece that holds just these numbers."""
        found = self.load(name) if self.covered(name) == numbers else None
        return found[1] if found is not None and found[0] == numbers else None

    def add(self, piece: Piece, total: Int64Array) -> bool:
        """Add a piece to a total of the same shape, in C order; False where it cannot be used.

        It is read twice, block by block: checked, then added.

        Raises
        ------
        DamagedError
            Where it was changed in between; the total is worth nothing then.
        """
        flat = total.reshape(-1)
        try:
            about = self._header(piece.name)
            if about.numbers != piece.numbers:
                return False
            for _ in self._blocks(about):
                pass
        except _NOT_THERE:
            return False
        try:
            for part, block in self._blocks(about):
                flat[part] += block
        except _NOT_THERE as error:
            raise DamagedError(
                f"{shown(self._path(piece.name))}: was changed while it was read ({error}); run "
                "the same command again"
            ) from None
        return True

    def find(self, count: int) -> list[Piece]:
        """Choose pieces to go on from, and remove all other files of the pass.

        Parameters
        ----------
        count
            Partitions of the pass.

        Returns
        -------
        Pieces with disjoint numbers below `count`, those that hold most first.
        """
        names = [name for name in list_folder(self.folder) if name != _BEGUN]
        stated = (self._piece(name) for name in names)
        pieces = [piece for piece in stated if piece and piece.numbers[-1][1] <= count]
        pieces.sort(key=lambda piece: (-size_of(piece.numbers), piece.name))
        chosen: list[Piece] = []
        taken: Ranges = ()
        for piece in pieces:
            union = joined(taken, piece.numbers)
            if size_of(union) == size_of(taken) + size_of(piece.numbers):
                chosen.append(piece)
                taken = union
        kept = {self._path(piece.name).name for piece in chosen}
        with storage_errors(self.folder):
            for name in names:
                if name not in kept:
                    remove_tree(self.folder / name)
        return chosen

    def _piece(self, file: str) -> Piece | None:
        """Return what a file of the folder holds, where that is a piece of this pass."""
        name = file.removesuffix(SUFFIX)
        usual = file.endswith(SUFFIX) and name != WHOLE  # that one was looked for before
        numbers = self.covered(name) if usual else None
        return Piece(name, numbers) if numbers else None

    def _path(self, name: str) -> Path:
        return self.folder / (name + SUFFIX)

    def _header(self, name: str) -> _About:
        """Read the header of a piece and compare it with this pass."""
        path = self._path(name)
        data = read_bytes(path, 0, _HEADER_BYTES)
        if len(data) < _LEAD.size:
            raise _UnusableError("it is shorter than any piece")
        magic, length, checksum = _LEAD.unpack_from(data)
        if magic != _MAGIC or length > _MOST_HEADER_BYTES:
            raise _UnusableError("it is no piece")
        end = _LEAD.size + length
        header = (data if end <= len(data) else read_bytes(path, 0, end))[_LEAD.size : end]
        if len(header) != length or zlib.crc32(header) != checksum:
            raise _UnusableError("its header does not pass its checksum")
        about = json.loads(header)
        mine = {"identity": self.identity, "name": name, "shape": list(self.shape)}
        if any(about.get(key) != value for key, value in mine.items()):
            raise _UnusableError("it belongs elsewhere")
        numbers = tuple((int(start), int(stop)) for start, stop in about["numbers"])
        if joined(numbers) != numbers or not numbers or numbers[0][0] < 0:
            raise _UnusableError("it does not say what it holds")
        return _About(path, end, numbers, int(about["crc32"]))

    def _blocks(
        self, about: _About, into: npt.NDArray[np.int64] | None = None
    ) -> Iterator[tuple[slice, npt.NDArray[np.int64]]]:
        """Yield the sums of a piece, block by block, and their places in the flat array.

        Into the array, where one is given, else each into the same memory. The checksum is
        compared after the last one.
        """
        count, checksum = int(np.prod(self.shape)), 0
        memory = np.empty(min(_BLOCK, count), "<i8") if into is None else into
        with open_binary(about.path) as file:
            file.seek(about.end)
            for start in range(0, count, _BLOCK):
                part = slice(start, min(start + _BLOCK, count))
                block = memory[: part.stop - start] if into is None else into[part]
                checksum = zlib.crc32(_filled(file, block), checksum)
                yield part, block
            if file.read(1) or checksum != about.checksum:
                raise _UnusableError("its sums do not pass their checksum")


def _filled(file: IO[bytes], block: npt.NDArray[np.int64]) -> memoryview:
    """Fill a block from a file, and return its bytes."""
    view = block.view(np.uint8).data
    done = 0
    while done < len(view):
        read = cast(Any, file).readinto(view[done:])
        if not read:
            raise _UnusableError("it is cut short")
        done += read
    return view


def _write(path: Path, parts: Sequence[bytes | memoryview]) -> None:
    """Write a file: whole or not at all, unless the machine fails before its disk has it.

    Several may write the same at once, each beside it under a name of its own.
    """
    if is_remote(path):
        with replaced(path) as aside, aside.open("wb") as file:
            file.writelines(parts)
        return
    aside = aside_of(path)
    with storage_errors(path), suppress(FileNotFoundError):
        try:
            # as few calls as can be: after each, a thread waits for those that count
            number = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            try:
                _write_all(number, [memoryview(part) for part in parts])
            finally:
                os.close(number)
            aside.replace(path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise


def _write_all(number: int, parts: list[memoryview]) -> None:
    """Write to a file, in one call where the system takes all of it in one."""
    while parts:
        written = os.writev(number, parts)
        while parts and written >= len(parts[0]):
            written -= len(parts.pop(0))
        if parts:
            parts[0] = parts[0][written:]
