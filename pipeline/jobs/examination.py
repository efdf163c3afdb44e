"""What is damaged of a finished folder: every file is read, and compared with its manifest."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy.typing as npt

from pipeline.core.digests import sample_records
from pipeline.core.errors import DamagedError, IncompleteError, OtherFileError
from pipeline.core.paths import shown
from pipeline.core.schema import DISTANCE
from pipeline.execution.executor import Executor
from pipeline.execution.progress import Reporter
from pipeline.report.description import refuse_unfinished
from pipeline.storage import claims, image_store, manifest, run_files
from pipeline.storage.folders import exists, list_folder
from pipeline.storage.image_content import records_digest
from pipeline.storage.recorded_files import FOREIGN, foreign_parts
from pipeline.storage.run_files import part_names
from pipeline.storage.store_array import StoreArray, gathered_metadata

# those that are cut into partitions
_RUN_ARRAYS = [f"{run_files.DISTANCES}/{n}" for n in (DISTANCE.name, *run_files.PER_SAMPLE)]


@dataclass(frozen=True, order=True)
class Damage:
    """One file, by its path below the folder, that is not as it was written, and why.

    `partition` is the one whose content it holds; -1 where it belongs to the whole.
    """

    file: str
    reason: str
    partition: int = -1


def read_finished(path: Path) -> tuple[dict[str, Any], list[Damage]]:
    """Read the manifest of a finished folder, or its copy, and tell what is wrong with the two.

    `StoreError` where there is no such folder, or it was never finished; `DamagedError` where
    neither can be read.
    """
    if exists(path / manifest.PLAN) or not exists(path / manifest.COPY):
        refuse_unfinished(path)
    if exists(path / manifest.APPEND):
        raise IncompleteError(
            f"{shown(path)}: samples were being added to it; {manifest.append_cure(path)}, then "
            "verify it"
        )
    content, wrong = manifest.read_either(path)
    return content, [Damage(name, reason) for name, reason in wrong.items()]


def examine(path: Path, executor: Executor, reporter: Reporter) -> list[Damage]:
    """Read all of a finished image set, run or audit; return what is damaged, by file."""
    content, damages = read_finished(path)
    damages += _damaged_files(path, content)
    task = Examination(
        path.absolute(), claims.identity(content), frozenset(damage.file for damage in damages)
    )
    if content["kind"] != manifest.IMAGES:
        damages += _foreign_tables(path, content)
        partitioned = _RUN_ARRAYS
    else:
        partitioned = [n for split in content["splits"] for n in image_store.array_names(split)]
    for name in content["arrays"]:
        if name not in partitioned:
            damages += task.whole_array(name)
    count = len(_parts_of(content)) or len(content["partitions"])
    with reporter.phase(f"verify {path.name}", count) as phase:
        for damaged in executor.map(task, count, phase):
            damages += damaged
    return sorted(set(damages))


def _damaged_files(path: Path, content: Mapping[str, Any]) -> Iterator[Damage]:
    """Check documents and tables, but the tables of partitions."""
    parts = {name for name, _ in _parts_of(content)}
    for name, digest in content["files"].items():
        if name not in parts:
            yield from _damaged_file(path, name, digest)


def _foreign_tables(path: Path, content: Mapping[str, Any]) -> list[Damage]:
    """Return the tables that readers of a folder take for a part of what it holds."""
    folders = run_files.tables_of(content)
    there = [f"{folder}/{name}" for folder in folders for name in list_folder(path / folder)]
    names = [name for name, _ in _parts_of(content)]
    return [Damage(name, FOREIGN) for name in foreign_parts(there, names)]


def _parts_of(content: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Return the parts of the tables of a run, and the number of each in its folder."""
    if content["kind"] == manifest.IMAGES:
        return []
    return [
        (name, number)
        for folder, parts in run_files.tables_of(content).items()
        for number, name in enumerate(part_names(len(parts), folder))
    ]


def _damaged_file(path: Path, name: str, digest: str, partition: int = -1) -> Iterator[Damage]:
    try:
        if manifest.file_hash(path / name) != digest:
            yield Damage(name, "was changed after it was written", partition)
    except (FileNotFoundError, IsADirectoryError):
        yield Damage(name, "is missing", partition)


def _read_shard(
    array: StoreArray, number: int, partition: int
) -> tuple[npt.NDArray[Any] | None, list[Damage]]:
    """Read a file of an array; return its values, where it can be read, and what is wrong."""
    file, reason = array.file(number), ""
    start, stop = number * array.shard, min((number + 1) * array.shard, array.shape[array.axis])
    for expected in (array.expected, ()):  # a file of elsewhere may be read all the same
        try:
            values = replace(array, expected=expected).samples(start, stop)
            break
        except OtherFileError:
            reason = "is not the file that was written there"
        except DamagedError:
            there = exists(array.path / file)
            reason = "cannot be read: it was cut short or changed" if there else "is missing"
            return None, [Damage(file, reason, partition)]
    return values, [Damage(file, reason, partition)] if reason else []


@lru_cache(maxsize=2)
def _content(path: Path, identity: str) -> dict[str, Any]:
    """Read the manifest, or its copy, once for all tasks of a process."""
    content, _ = manifest.read_either(path)
    if claims.identity(content) != identity:
        raise DamagedError(f"{shown(path)}: was changed while it was verified; verify it again")
    return content


@lru_cache(maxsize=2)
def _parts(path: Path, identity: str) -> list[tuple[str, int]]:
    """Return the same, once for all tasks of a process."""
    return _parts_of(_content(path, identity))


@dataclass(frozen=True)
class Examination:
    """Reads one partition of an image set or run; `broken` are the files known to be so."""

    path: Path
    identity: str
    broken: Container[str]

    @property
    def _content(self) -> dict[str, Any]:
        return _content(self.path, self.identity)

    def __call__(self, index: int) -> list[Damage]:
        """Return what is damaged of partition `index`."""
        if self._content["kind"] == manifest.IMAGES:
            return self._images(index)
        name, number = _parts(self.path, self.identity)[index]
        damages = list(_damaged_file(self.path, name, self._content["files"][name], number))
        if index == number:  # a table of predictions, beside which distances may lie
            for array in map(self._array, _RUN_ARRAYS):
                damages += [] if array is None else _read_shard(array, index, index)[1]
        return damages

    def _images(self, index: int) -> list[Damage]:
        part = self._content["partitions"][index]
        number = part["start"] // self._content["splits"][part["split"]]["shard"]
        arrays = [self._array(name) for name in image_store.array_names(part["split"])]
        read = [_read_shard(array, number, index) for array in arrays if array is not None]
        damages = [damage for _, wrong in read for damage in wrong]
        values = [read_values for read_values, _ in read if read_values is not None]
        if len(values) < 2:
            return damages
        # what an append that was cut short has put behind them does not count
        images, labels = (stored[: part["stop"] - part["start"]] for stored in values)
        if records_digest(sample_records(images, labels)) == part["digest"]:
            return []
        files = [array.file(number) for array in arrays if array is not None]
        return damages or [Damage(f, "holds other samples than were written", index) for f in files]

    def whole_array(self, name: str) -> list[Damage]:
        """Return what is damaged of an array that is not cut into partitions."""
        array = self._array(name)
        numbers = range(0 if array is None else array.files)
        return [d for number in numbers if array for d in _read_shard(array, number, -1)[1]]

    def _array(self, name: str) -> StoreArray | None:
        """Return an array, also where its metadata is damaged; None where that is nowhere else."""
        if name not in self._content["arrays"]:
            return None
        axis = 1 if name == f"{run_files.DISTANCES}/{DISTANCE.name}" else 0
        array = StoreArray(self.path, name, axis, tuple(self._content["arrays"][name]))
        if f"{name}/zarr.json" not in self.broken:
            return array
        metadata = gathered_metadata(self.path, name, self.broken)
        return None if metadata is None else replace(array, metadata=metadata)
