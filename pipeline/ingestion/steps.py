"""From a source to an image-set store: plan, one partition per task, finish.

The plan lists and numbers the samples. A partition is one whole shard, read from the source,
checked, hashed and written by one task. Its last act is a small table of its samples, which says
what was written and its digest; a partition whose table and shard agree is not written again. The
finish checks that all is there, leaves out what cannot be used (or refuses, with a list of all of
it), looks for duplicates, puts the tables together as `samples.parquet` and writes the manifest,
last.

The three steps can run apart, on different machines that see the same store.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy.typing as npt

from pipeline.core.errors import DamagedError, IncompleteError, InUseError, SourceError, hide_in
from pipeline.core.paths import is_remote, shown
from pipeline.execution.executor import Executor
from pipeline.execution.progress import Reporter
from pipeline.images.decoders import to_resume
from pipeline.ingestion.compaction import compact, forget_compaction, good_templates, is_compacted
from pipeline.ingestion.duplicates import DUPLICATES, tables_of, write_duplicates
from pipeline.ingestion.plan import IngestPlan, ingest_token
from pipeline.ingestion.request import Request
from pipeline.sources.encoded import EncodedSource
from pipeline.sources.registry import folder_note
from pipeline.storage import claims, image_store, manifest, tables
from pipeline.storage.atomic import PARTIAL_SUFFIX, copy_file
from pipeline.storage.folders import list_folder, remove_tree
from pipeline.storage.image_content import summarise
from pipeline.storage.locks import held
from pipeline.storage.recorded_files import list_files
from pipeline.storage.replacing import REPLACED
from pipeline.storage.sample_tables import (
    BAD_SAMPLES,
    SAMPLES,
    Parts,
    part_path,
    refuse_bad_samples,
    tally,
    write_samples,
)
from pipeline.storage.store_array import StoreArray
from pipeline.storage.zarr_arrays import consolidate

# what lies in a store that is being made, beside its splits
_FILES = ("zarr.json", SAMPLES, DUPLICATES, BAD_SAMPLES)


def listing_path(path: Path) -> Path:
    """Return where a store that is being made keeps the listing of its samples."""
    return path / manifest.WORK / "listing"


@contextmanager
def begun(work: Request, executor: Executor, reporter: Reporter) -> Iterator[IngestPlan | None]:
    """Lock a store and make it empty, as is planned; what exists of the same one is kept.

    Yields the plan, its source ready to be read by tasks anywhere; None where the store is
    finished. One that is to be filled is locked while its samples are listed: the listing goes
    below its `.work`. Beside a finished one nothing is written. `ConflictError` where the folder
    holds something else, `InUseError` where another process makes it.
    """
    path = work.path
    note = None if work.source is not None else folder_note(work.settings)
    if note is not None:
        reporter.say(note)
    # what cannot be the store of any plan is refused before anything is listed
    if claims.could_hold(path, manifest.IMAGES) and _is_same(work, executor, reporter):
        claims.tidy(path)
        yield None
        return
    with claims.only_if_filled(path), ExitStack() as stack:
        try:
            stack.enter_context(held(path, "image set", reporter.say))
        except InUseError:
            # to wait for the other is of no use where it makes another
            _is_same(work, executor, reporter)
            raise
        plan = stack.enter_context(work.planned(executor, scratch=path / manifest.WORK))
        # another process may have had it in the meantime
        done = claims.start(
            path, manifest.IMAGES, plan.content, PlanSuccessor(plan, reporter), reporter.say,
            overwrite=work.overwrite,
        )  # fmt: skip
        if done is not None:
            yield None
            return
        ready = _empty_store(plan, path)
        for line in (*plan.remarks, *plan.notes):
            reporter.say(line)
        yield ready


def _is_same(work: Request, executor: Executor, reporter: Reporter) -> bool:
    """Tell whether a folder holds the finished store of a plan; nothing is written there.

    Another plan is refused, unless what is there may be replaced.
    """
    with work.planned(executor) as plan:
        done = claims.recognise(
            work.path, manifest.IMAGES, plan.content, PlanSuccessor(plan, reporter),
            overwrite=work.overwrite,
        )  # fmt: skip
    return done is not None


def _empty_store(plan: IngestPlan, path: Path) -> IngestPlan:
    """Make the arrays of a store, and its listing readable by all tasks."""
    source = plan.source
    decoders = to_resume(claims.read_plan(path, manifest.IMAGES)["plan"]["source"])
    if decoders is not None:
        decoders.require()
    if isinstance(source, EncodedSource):
        source = with_listing_in(source.decoded_by(decoders), listing_path(path))
    if not is_compacted(path, plan.identity):
        image_store.create_images(path, plan.attributes, plan.templates, plan.encoding)
        ingest_token(path, plan.identity).issue()
    return replace(plan, source=source)


def with_listing_in(source: EncodedSource, folder: Path) -> EncodedSource:
    """Copy the listing of a source to where every task finds it."""
    if source.listing != folder:
        for name in list_folder(source.listing):
            copy_file(source.listing / name, folder / name)
    return source.moved(folder)


@dataclass(frozen=True)
class PlanSuccessor:
    """Lets a plan take the place of another one of the same source that was not finished.

    So what a failed ingest tells to change can be changed: files are corrected, removed or
    replaced, images are resized, a full scale is given. Nothing that was written is of use then,
    but the listing of the samples.
    """

    plan: IngestPlan
    reporter: Reporter

    @property
    def origin(self) -> dict[str, Any]:
        """Where the source lies; of an object in memory nothing."""
        settings = self.plan.settings or {}
        return {key: settings[key] for key in ("source", "splits", "root") if settings.get(key)}

    def follows(self, begun: Mapping[str, Any]) -> bool:
        """Tell whether what was begun has the same source."""
        origin, plan = json.loads(json.dumps(hide_in([self.origin, self.plan.content])))
        other = begun.get("plan", {})
        if origin and begun.get("origin"):
            return bool(origin == begun["origin"])
        paths = [content.get("source", {}).get("place") for content in (plan, other)]
        if paths[0] is not None:
            return bool(paths[0] == paths[1])
        return all(plan[key] == other.get(key) for key in ("source", "class_names", "splits"))

    def clear(self, path: Path, begun: Mapping[str, Any]) -> None:
        """Remove what was written of it: first what says that something is written."""
        self.reporter.say(
            f"{shown(path)} was begun from other files or with other settings and not finished: "
            "it is made anew"
        )
        work = path / manifest.WORK
        ingest_token(path, begun["identity"]).revoke()
        forget_compaction(path)
        for name in list_folder(work):
            known = ("plan.json", listing_path(path).name, REPLACED)
            kept = name in known or name.endswith(PARTIAL_SUFFIX)
            if not kept:  # the last are what this process works with
                remove_tree(work / name)
        made = {*begun.get("plan", {}).get("splits", {}), *_FILES}
        for name in list_folder(path):
            if name in made:
                remove_tree(path / name)


def finish(
    plan: IngestPlan,
    path: Path,
    allowed_bad: int,
    executor: Executor,
    reporter: Reporter,
    prefix: str = "",
) -> None:
    """Check that everything is there, put it together, write the manifest last.

    `IncompleteError` where partitions are missing, which it names; `BadSamplesError` where more
    samples cannot be used than `allowed_bad`, with the keys of images after a `prefix`.
    """
    fingerprints, several = _require_all(plan, path)
    parts = Parts(path, plan.table)
    counted = tally(parts, plan.table)
    shape = next(iter(plan.templates.values())).shape[:2]
    resized = shape if (plan.settings or {}).get("resize") else ()
    refuse_bad_samples(path, plan.table, counted, allowed_bad, prefix, resized)
    ingest_token(path, plan.identity).revoke()
    templates = plan.templates
    if counted.bad:
        templates = good_templates(plan.templates, counted)
        if not any(template.count for template in templates.values()):
            raise SourceError(f"{path}: none of {counted.total:,} samples can be used")
        fingerprints = compact(path, plan, templates, counted, executor, reporter)
    write_samples(path, plan.table, counted)
    if several:
        reporter.say(f"of {several:,} images the first of several frames was taken: see {SAMPLES}")
    if counted.bad:
        reporter.say(f"{counted.bad:,} of {counted.total:,} samples were left out: see {SAMPLES}")
    about = {
        "identity": plan.identity,
        "plan": plan.content,
        **plan.header,
        "provenance": plan.content["source"],
        "settings": plan.settings,
        "samples": {"listed": counted.total, "left_out": counted.by_status()},
    }
    content = Content(about, templates, fingerprints)
    duplicates = commit(
        path, content, lambda name: (part.records[part.good] for part in parts.of_split(name))
    )
    if duplicates:
        reporter.say(f"{duplicates:,} samples are exact copies of others: see {DUPLICATES}")


@dataclass(frozen=True)
class Content:
    """What an image set holds: for its manifest, by split, and the fingerprints by array."""

    about: Mapping[str, Any]
    templates: Mapping[str, image_store.SplitTemplate]
    fingerprints: Mapping[str, Sequence[str]]


def commit(
    path: Path,
    content: Content,
    records_of: Callable[[str], Iterable[npt.NDArray[Any]]],
    before: Mapping[str, Any] | None = None,
) -> int:
    """Write what follows from the samples of an image set, and its manifest last.

    Parameters
    ----------
    path, content
        The folder, and what it holds; its table of samples and all its shards are there.
    records_of
        Returns the label and hash of each sample of a split, in order, in pieces of any size.
    before
        The manifest that is there, where the image set grows.

    Returns
    -------
    How many samples are exact copies of others.
    """
    templates = content.templates
    hashes = (records["sha256"] for name in templates for records in records_of(name))
    counts = {name: template.count for name, template in templates.items()}
    duplicates = write_duplicates(path, counts, hashes)
    consolidate(path, templates)
    files = list_files(path, content.fingerprints, tables_of(duplicates))
    summary = summarise(content.about, templates, {name: records_of(name) for name in templates})
    manifest.write_manifest(
        path, manifest.IMAGES, summary | {"duplicates": duplicates} | files, before
    )
    return duplicates


def _require_all(plan: IngestPlan, path: Path) -> tuple[dict[str, list[str]], int]:
    """Check that every partition is written; return fingerprints of files, and how many remarks."""
    missing, written, remarks = [], [], 0
    arrays: dict[str, list[StoreArray]] = {}
    if not is_remote(path) and not is_compacted(path, plan.identity):
        arrays = {
            name: [StoreArray(path, array) for array in image_store.array_names(name)]
            for name in plan.templates
        }
    for partition in plan.table:
        notes = tables.read_notes(part_path(path, partition.index))
        marks = notes.get("fingerprints", "").split()
        number = partition.start // plan.templates[partition.split].layout.shard
        files = zip(arrays.get(partition.split, ()), marks, strict=False)
        mine = notes.get("identity") == plan.identity and marks
        if mine and all(_is_file(array, number, mark) for array, mark in files):
            written.append((partition.split, marks))
            remarks += int(notes.get("remarks", 0))
        else:
            missing.append(partition.index)
    if missing:
        listed = ", ".join(map(str, missing[:20])) + (", ..." if len(missing) > 20 else "")
        raise IncompleteError(
            f"{path}: {len(missing):,} of {len(plan.table):,} partitions are not written "
            f"({listed}); write them, then finish again"
        )
    return image_store.by_array(plan.templates, written), remarks


def _is_file(array: StoreArray, number: int, mark: str) -> bool:
    """Tell whether a file of an array is the one that was written: a power cut may leave none."""
    try:
        return array.fingerprint(number) == mark
    except DamagedError:
        return False
