"""Verifying: every file of an image set or run is read again and compared with its manifest.

Documents and tables must have the SHA-256 that the manifest has for them. Of arrays every chunk
must pass its checksum, and every file must be the one that was written there; the samples of an
image set must have their SHA-256 besides. What is not as it was is named, file by file.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy.typing as npt

from pipeline.core.digests import sample_records
from pipeline.core.errors import DamagedError, IncompleteError, OtherFileError, StoreError
from pipeline.core.schema import DISTANCE
from pipeline.core.urls import shown
from pipeline.execution.executor import Executor
from pipeline.execution.progress import Reporter
from pipeline.storage import claims, image_store, manifest, run_files
from pipeline.storage.folders import exists, is_folder, list_folder
from pipeline.storage.image_content import records_digest
from pipeline.storage.recorded_files import FOREIGN, foreign_parts
from pipeline.storage.run_files import PREDICTIONS, part_names
from pipeline.storage.store_array import StoreArray, gathered_metadata
from pipeline.storage.tables import part_name

_OTHER = "is not the file that was written there"


@dataclass(frozen=True, order=True)
class Damage:
    """One file that is not as it was written.

    Attributes
    ----------
    file
        Its path below the folder.
    reason
        What is wrong with it.
    partition
        The partition whose content it holds; -1 where it belongs to the whole.
    """

    file: str
    reason: str
    partition: int = -1


def read_finished(path: Path) -> tuple[dict[str, Any], list[Damage]]:
    """Read the manifest of a finished folder, or its copy, and tell what is wrong with the two.

    Raises
    ------
    StoreError
        Where there is no such folder, or it was never finished.
    DamagedError
        Where neither can be read.
    """
    if not is_folder(path):
        raise StoreError(f"{shown(path)}: no such folder, expected an image set or a run")
    if not exists(path / manifest.MANIFEST):
        begun = exists(path / manifest.WORK / "plan.json")
        if begun or not exists(path / manifest.COPY):
            looks_like_run = exists(path / PREDICTIONS) or exists(path / run_files.PROTOTYPES)
            manifest.read_manifest(path, manifest.RUN if looks_like_run else manifest.IMAGES)
    if exists(path / manifest.APPEND):
        raise IncompleteError(
            f"{shown(path)}: samples were being added to it; {manifest.append_cure(path)}, then "
            "verify it"
        )
    content, wrong = manifest.read_either(path)
    return content, [Damage(name, reason) for name, reason in wrong.items()]


def examine(path: Path, executor: Executor, reporter: Reporter) -> list[Damage]:
    """Read a finished image set or run whole, and return what is damaged, by file.

    Raises
    ------
    StoreError
        Where there is no such folder, or it was never finished.
    DamagedError
        Where neither the manifest nor its copy can be read.
    """
    content, damages = read_finished(path)
    damages += _examine_files(path, content)
    broken = frozenset(damage.file for damage in damages)
    runs = content["kind"] == manifest.RUN
    if runs:
        damages += _foreign_tables(path, content)
    partitioned = partitioned_arrays() if runs else image_arrays(content)
    for name in content["arrays"]:
        if name not in partitioned:
            damages += _examine_array(path, content, name, broken)
    kind = ExamineRun if runs else ExamineImages
    task = kind(path.absolute(), claims.identity(content), broken)
    count = len(content["partitions"])
    with reporter.phase(f"verify {path.name}", count) as phase:
        for found in executor.map(task, count, phase):
            damages += found
    return sorted(set(damages))


def image_arrays(content: Mapping[str, Any]) -> list[str]:
    """Return the names of the arrays of an image set that are cut into partitions."""
    return [name for split in content["splits"] for name in image_store.array_names(split)]


def partitioned_arrays() -> list[str]:
    """Return the names of the arrays of a run that are cut into partitions."""
    return [f"{run_files.DISTANCES}/{name}" for name in (DISTANCE.name, *run_files.PER_SAMPLE)]


def _examine_files(path: Path, content: Mapping[str, Any]) -> Iterator[Damage]:
    """Check documents and tables, but the tables of partitions."""
    for name, digest in content["files"].items():
        if not name.startswith(f"{PREDICTIONS}/"):
            yield from _examine_file(path, name, digest)


def _foreign_tables(path: Path, content: Mapping[str, Any]) -> list[Damage]:
    """Return the tables among the predictions that whoever reads the folder takes for some."""
    found = dict.fromkeys(f"{PREDICTIONS}/{name}" for name in list_folder(path / PREDICTIONS))
    names = part_names(len(content["partitions"]))
    return [Damage(name, FOREIGN) for name in foreign_parts(found, names)]


def _examine_file(path: Path, name: str, digest: str, partition: int = -1) -> Iterator[Damage]:
    try:
        if manifest.file_hash(path / name) != digest:
            yield Damage(name, "was changed after it was written", partition)
    except (FileNotFoundError, IsADirectoryError):
        yield Damage(name, "is missing", partition)


def _examine_array(
    path: Path, content: Mapping[str, Any], name: str, broken: Container[str]
) -> Iterator[Damage]:
    """Check every file of an array that belongs to the whole."""
    array = _array(path, content, name, broken)
    for number in range(0 if array is None else array.files):
        _, damages = _examine_shard(array, number, -1)
        yield from damages


def _document(array: str) -> str:
    return f"{array}/zarr.json"


def _array(
    path: Path, content: Mapping[str, Any], name: str, broken: Container[str]
) -> StoreArray | None:
    """Return an array, also where its metadata is damaged; None where that is nowhere else."""
    axis = 1 if name == f"{run_files.DISTANCES}/{DISTANCE.name}" else 0
    expected = tuple(content["arrays"][name])
    if _document(name) not in broken:
        return StoreArray(path, name, axis, expected)
    metadata = gathered_metadata(path, name, broken)
    return None if metadata is None else StoreArray(path, name, axis, expected, metadata)


def _examine_shard(
    array: StoreArray | None, number: int, partition: int
) -> tuple[npt.NDArray[Any] | None, list[Damage]]:
    """Read a file of an array; return its values, where it can be read, and what is wrong."""
    if array is None:
        return None, []
    file = array.file(number)
    start, stop = number * array.shard, min((number + 1) * array.shard, array.shape[array.axis])
    reason = ""
    for expected in (array.expected, ()):  # a file of elsewhere may be read all the same
        reader = replace(array, expected=expected)
        try:
            values = reader.samples(start, stop)
        except OtherFileError:
            reason = _OTHER
        except DamagedError:
            there = exists(array.path / file)
            reason = "cannot be read: it was cut short or changed" if there else "is missing"
            return None, [Damage(file, reason, partition)]
        else:
            break
    return values, [Damage(file, reason, partition)] if reason else []


@lru_cache(maxsize=2)
def _content(path: Path, identity: str) -> dict[str, Any]:
    """Read the manifest, or its copy, once for all tasks of a process."""
    content, _ = manifest.read_either(path)
    if claims.identity(content) != identity:
        raise DamagedError(f"{shown(path)}: was changed while it was verified; verify it again")
    return content


@dataclass(frozen=True)
class ExamineImages:
    """Reads one partition of an image set; called with its number.

    Attributes
    ----------
    path
        The folder.
    identity
        Of its manifest.
    broken
        The files that are known to be damaged.
    """

    path: Path
    identity: str
    broken: Container[str]

    def __call__(self, index: int) -> list[Damage]:
        """Return what is damaged of partition `index`."""
        content = _content(self.path, self.identity)
        part = content["partitions"][index]
        number = part["start"] // content["splits"][part["split"]]["shard"]
        names = image_store.array_names(part["split"])
        count = part["stop"] - part["start"]
        arrays = [_array(self.path, content, name, self.broken) for name in names]
        read = [_examine_shard(array, number, index) for array in arrays]
        damages = [damage for _, found in read for damage in found]
        images, labels = (values for values, _ in read)
        if images is None or labels is None:
            return damages
        # what an append that was cut short has put behind them does not count
        found = records_digest(sample_records(images[:count], labels[:count]))
        if found == part["digest"]:
            return []
        reason = "holds other samples than were written"
        files = [array.file(number) for array in arrays if array is not None]
        return damages or [Damage(file, reason, index) for file in files]


@dataclass(frozen=True)
class ExamineRun:
    """Reads one partition of a run; see `ExamineImages`."""

    path: Path
    identity: str
    broken: Container[str]

    def __call__(self, index: int) -> list[Damage]:
        """Return what is damaged of partition `index`."""
        content = _content(self.path, self.identity)
        name = f"{PREDICTIONS}/{part_name(index)}"
        damages = list(_examine_file(self.path, name, content["files"][name], index))
        for array in partitioned_arrays():
            if array in content["arrays"]:
                opened = _array(self.path, content, array, self.broken)
                damages += _examine_shard(opened, index, index)[1]
        return damages
