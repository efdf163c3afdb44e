"""Verifying what is finished, and making again what is damaged, and only that.

Every file of an image set or run is read again and compared with its manifest. Documents and tables
must have the SHA-256 that the manifest has for them. Of arrays every chunk must pass its checksum,
and every file must be the one that was written there; the samples of an image set must have their
SHA-256 besides. What is not as it was is named, file by file.

A repair is a resume: a run goes on as if it had been cut short before what is damaged was written,
and so does an image set, see `repair_images`; a manifest is made from its copy. The result is
compared with what the manifest had recorded, so a repair ends with the digest that was there
before, or says why it cannot.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy.typing as npt

from pipeline.config.cluster_settings import ClusterSettings
from pipeline.config.job_settings import make_job
from pipeline.core.arguments import checked
from pipeline.core.digests import sample_records
from pipeline.core.errors import (
    ConflictError,
    DamagedError,
    IncompleteError,
    OtherFileError,
    StoreError,
)
from pipeline.core.partitions import image_bytes
from pipeline.core.paths import locate, shown
from pipeline.core.schema import DISTANCE
from pipeline.execution.executor import Executor, deferred_executor
from pipeline.execution.progress import Reporter, SilentReporter
from pipeline.execution.workers import require_room
from pipeline.jobs.job import EFFORT, record_prototypes, resume_plan
from pipeline.jobs.plan import JobPlan, plan_job
from pipeline.jobs.repair_images import ImageRepair
from pipeline.report.description import likely_kind
from pipeline.report.opened import Run
from pipeline.report.page import add_report
from pipeline.storage import claims, image_store, manifest, run_files
from pipeline.storage.atomic import require_writable
from pipeline.storage.folders import exists, is_folder, list_folder, remove_tree
from pipeline.storage.image_content import records_digest
from pipeline.storage.locks import held
from pipeline.storage.recorded_files import FOREIGN, foreign_parts
from pipeline.storage.run_files import REPORT_FILE, part_names
from pipeline.storage.sample_lists import EXCLUDED
from pipeline.storage.store_array import StoreArray, gathered_metadata

# those that are cut into partitions
_RUN_ARRAYS = [f"{run_files.DISTANCES}/{n}" for n in (DISTANCE.name, *run_files.PER_SAMPLE)]
_SHOWN = 5
_ELSEWHERE = ("images", "output", "cluster")  # settings that this command has


@dataclass(frozen=True, order=True)
class Damage:
    """One file, by its path below the folder, that is not as it was written, and why.

    `partition` is the one whose content it holds; -1 where it belongs to the whole.
    """

    file: str
    reason: str
    partition: int = -1


@checked
def verify(
    path: Path | str,
    *,
    repair: bool = False,
    cluster: ClusterSettings | str | None = None,
    reporter: Reporter | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> list[Damage]:
    """Read a finished image set or run whole, and tell which of its files are damaged.

    Parameters
    ----------
    path
        Its folder, or URL.
    repair
        Whether to make these files again: parts of an image set from its source, parts of a run
        from its image set.
    cluster
        Where tasks run; default: threads.
    reporter
        Told of the progress.
    storage_options
        fsspec's options for a URL; default: credentials from the environment.

    Returns
    -------
    The damaged files; where `repair`, those that were damaged and are whole again.

    Raises
    ------
    StoreError
        Where there is no such folder, or it was never finished.
    DamagedError
        Where neither the manifest nor its copy can be read, or something is damaged that cannot
        be made again; says why.
    SourceError, ConflictError
        Where the source, or the image set of a run, is not there or not what it was.
    InUseError
        Where another process repairs it.
    """
    folder, listener = locate(path, storage_options), reporter or SilentReporter()
    content, _ = read_finished(folder)
    if repair:
        require_writable(folder)
    with deferred_executor(cluster, listener) as executor:
        if content["kind"] == manifest.IMAGES:
            splits = content["splits"].values()
            shards = [
                (min(s["shard"], s["count"]), image_bytes(s["shape"], s["dtype"])) for s in splits
            ]
            require_room(shards, len(content["partitions"]), executor.layout)
        damages = examine(folder, executor, listener)
        if not repair or not damages:
            return damages
        with held(folder, "repair", listener.say):
            repaired = _repair(folder, damages, executor, listener, storage_options or {})
    return repaired


def _repair(
    path: Path,
    damages: Sequence[Damage],
    executor: Executor,
    reporter: Reporter,
    options: Mapping[str, Any],
) -> list[Damage]:
    """Make damaged files again, until none is left; return all that were.

    What hides behind damaged metadata shows once that is repaired, so there may be several rounds.
    """
    content, _ = read_finished(path)
    repaired: set[Damage] = set()
    left = list(damages)
    while left:
        if repaired.issuperset(left):
            named = ", ".join(damage.file for damage in left[:_SHOWN])
            raise DamagedError(
                f"{shown(path)}: {len(left)} files are damaged still ({named}); make it anew"
            )
        repaired |= set(left)
        if content["kind"] == manifest.IMAGES:
            content = ImageRepair(path, content, executor, reporter, options).run(
                {damage.file: damage.partition for damage in left}
            )
        else:
            content = _resume_run(path, content, left, executor, reporter, options)
        left = examine(path, executor, reporter)
    return sorted(repaired)


def _resume_run(
    path: Path,
    content: Mapping[str, Any],
    damages: Sequence[Damage],
    executor: Executor,
    reporter: Reporter,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Remove the damaged files of a run, and resume it as if it had been cut short."""
    files = {damage.file for damage in damages} - {manifest.MANIFEST, manifest.COPY}
    foreign = {damage.file for damage in damages if damage.reason == FOREIGN}
    report = Run(path, options)
    if files - foreign <= {REPORT_FILE}:
        for file in foreign:
            remove_tree(path / file)
        whole = dict(content)
        if REPORT_FILE in files:
            whole = add_report(report, whole)
    else:
        plan = _plan_again(path, content, executor, options, files)
        for file in files:
            remove_tree(path / file)
        if any(file.startswith(f"{run_files.PROTOTYPES}/") for file in files):
            remove_tree(path / run_files.PROTOTYPES)
        else:
            record_prototypes(plan, content["digests"]["prototypes"])
        resume_plan(plan, executor, reporter, lambda _: {name: content[name] for name in EFFORT})
        made = manifest.read_manifest(path, manifest.RUN)
        if made["digests"] != content["digests"]:
            raise DamagedError(
                f"{shown(path)}: has digest {made['digests']['run']} after it was repaired, "
                f"recorded was {content['digests']['run']}; run the job anew, to another place"
            )
        # it stays the run that it was; what a newer library writes otherwise has other hashes
        whole = dict(content) | {key: made[key] for key in ("files", "arrays", "sizes")}
        if REPORT_FILE in whole["files"]:
            whole = add_report(report, whole)
    manifest.put_manifest(path, whole)
    return whole


def _plan_again(
    path: Path,
    content: Mapping[str, Any],
    executor: Executor,
    options: Mapping[str, Any],
    damaged: Container[str],
) -> JobPlan:
    """Plan the job of a run once more; its image set must be the one that it was.

    So must the samples that it leaves out: those of its copy, unless that is `damaged`.
    """
    kept = {k: v for k, v in content["settings"].items() if k not in _ELSEWHERE}
    place = content["images"]["path"]
    changed = {"images": place, "output": str(path), "storage_options": dict(options)}
    if EXCLUDED in content["files"] and EXCLUDED not in damaged:
        changed["exclude"] = str(path.absolute() / EXCLUDED)
    plan = plan_job(make_job(kept | changed), locate(place, options), executor.layout)
    if claims.identity(plan.decides()) != content["identity"]:
        raise ConflictError(
            f"{shown(path)}: was made from an image set with digest {content['images']['digest']}, "
            f"{place} has {plan.content['digest']} now; bring back that one to repair the run, "
            "or run the job anew"
        )
    return plan


def read_finished(path: Path) -> tuple[dict[str, Any], list[Damage]]:
    """Read the manifest of a finished folder, or its copy, and tell what is wrong with the two.

    `StoreError` where there is no such folder, or it was never finished; `DamagedError` where
    neither can be read.
    """
    if not is_folder(path):
        raise StoreError(f"{shown(path)}: no such folder, expected an image set or a run")
    if not exists(path / manifest.MANIFEST):
        begun = exists(path / manifest.WORK / "plan.json")
        if begun or not exists(path / manifest.COPY):
            manifest.read_manifest(path, likely_kind(path))
    if exists(path / manifest.APPEND):
        raise IncompleteError(
            f"{shown(path)}: samples were being added to it; {manifest.append_cure(path)}, then "
            "verify it"
        )
    content, wrong = manifest.read_either(path)
    return content, [Damage(name, reason) for name, reason in wrong.items()]


def examine(path: Path, executor: Executor, reporter: Reporter) -> list[Damage]:
    """Read all of a finished image set or run; return what is damaged, by file."""
    content, damages = read_finished(path)
    damages += _damaged_files(path, content)
    task = Examination(
        path.absolute(), claims.identity(content), frozenset(damage.file for damage in damages)
    )
    if content["kind"] == manifest.RUN:
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
    if content["kind"] != manifest.RUN:
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
