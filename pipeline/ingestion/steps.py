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
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.core.errors import (
    DamagedError,
    IncompleteError,
    InUseError,
    SourceError,
    hide_in,
)
from pipeline.core.paths import is_remote
from pipeline.core.urls import shown
from pipeline.execution.executor import Executor
from pipeline.execution.progress import Reporter
from pipeline.images.decoders import to_resume
from pipeline.ingestion.compaction import (
    compact,
    forget_compaction,
    good_templates,
    is_compacted,
)
from pipeline.ingestion.duplicates import DUPLICATES, tables_of, write_duplicates
from pipeline.ingestion.plan import IngestPlan, ingest_token
from pipeline.sources.encoded import EncodedSource
from pipeline.storage import claims, image_store, manifest, tables
from pipeline.storage.atomic import PARTIAL_SUFFIX, copy_file
from pipeline.storage.finished_images import list_files
from pipeline.storage.folders import list_folder, remove_tree
from pipeline.storage.image_content import summarise
from pipeline.storage.locks import held
from pipeline.storage.sample_tables import (
    BAD_SAMPLES,
    SAMPLES,
    Parts,
    Tally,
    part_path,
    refuse_bad_samples,
    tally,
    write_samples,
)
from pipeline.storage.store_array import StoreArray
from pipeline.storage.zarr_arrays import consolidate

# what lies in a store that is being made, beside its splits
_FILES = ("zarr.json", SAMPLES, DUPLICATES, BAD_SAMPLES)

Planned = Callable[..., AbstractContextManager[IngestPlan]]


def listing_place(path: Path) -> Path:
    """Return where a store that is being made keeps the listing of its samples."""
    return path / manifest.WORK / "listing"


@contextmanager
def begun(planned: Planned, path: Path, reporter: Reporter) -> Iterator[IngestPlan | None]:
    """Lock a store and make it empty, as a plan says; what exists of the same one is kept.

    `planned` plans the store, given a folder for temporary files, if there is one. Yields the plan,
    its source ready to be read by tasks anywhere; None where the store is finished.

    Raises
    ------
    ConflictError
        Where the folder holds something else.
    InUseError
        Where another process makes it.
    """
    # what cannot be the store of any plan is refused before anything is listed
    if claims.could_hold(path, manifest.IMAGES):
        _compare(planned, path, reporter)
        claims.tidy(path)
        yield None
        return
    with claims.only_if_filled(path), ExitStack() as stack:
        try:
            stack.enter_context(held(path, "image set", reporter.say))
        except InUseError:
            # to wait for the other is of no use where it makes another
            _compare(planned, path, reporter)
            raise
        plan = stack.enter_context(planned(path / manifest.WORK))
        # another process may have had it in the meantime
        done = claims.start(
            path, manifest.IMAGES, plan.content, Successor(plan, reporter, listing_place(path))
        )
        yield None if done is not None else _empty_store(plan, path)


def _compare(planned: Planned, path: Path, reporter: Reporter) -> None:
    """Refuse a plan that is not that of what a folder holds; nothing is written there."""
    with planned() as plan:
        claims.recognise(
            path, manifest.IMAGES, plan.content, Successor(plan, reporter, listing_place(path))
        )


def _empty_store(plan: IngestPlan, path: Path) -> IngestPlan:
    """Make the arrays of a store, and its listing readable by all tasks."""
    source = plan.source
    decoders = to_resume(claims.read_plan(path, manifest.IMAGES)["plan"]["source"])
    if decoders is not None:
        decoders.require()
    if isinstance(source, EncodedSource):
        source = with_listing_in(source.decoded_by(decoders), listing_place(path))
    if not is_compacted(path, plan.identity):
        image_store.create_images(path, plan.attributes, plan.templates, plan.encoding)
        ingest_token(path, plan.identity).issue()
    return replace(plan, source=source)


def with_listing_in(source: EncodedSource, place: Path) -> EncodedSource:
    """Copy the listing of a source to where every task finds it."""
    if source.listing != place:
        for name in list_folder(source.listing):
            copy_file(source.listing / name, place / name)
    return source.moved(place)


@dataclass(frozen=True)
class Successor:
    """Lets a plan take the place of another one of the same source that was not finished.

    So what a failed ingest tells to change can be changed: files are corrected, removed or
    replaced, images are resized, a full scale is given. Nothing that was written is of use then,
    but the listing of the samples.
    """

    plan: IngestPlan
    reporter: Reporter
    listing: Path

    @property
    def origin(self) -> dict[str, Any]:
        """The place of the source; of an object in memory nothing."""
        settings = self.plan.settings or {}
        return {key: settings[key] for key in ("source", "splits", "root") if settings.get(key)}

    def follows(self, begun: Mapping[str, Any]) -> bool:
        """Tell whether what was begun has the same source."""
        origin, plan = json.loads(json.dumps(hide_in([self.origin, self.plan.content])))
        other = begun.get("plan", {})
        if origin and begun.get("origin"):
            return bool(origin == begun["origin"])
        places = [content.get("source", {}).get("place") for content in (plan, other)]
        if places[0] is not None:
            return bool(places[0] == places[1])
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
            kept = name in ("plan.json", self.listing.name) or name.endswith(PARTIAL_SUFFIX)
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
) -> None:
    """Check that everything is there, put it together, write the manifest last.

    Raises
    ------
    IncompleteError
        Where partitions are missing; names them.
    BadSamplesError
        Where more samples cannot be used than `allowed_bad`.
    """
    fingerprints, several = _require_all(plan, path)
    parts = Parts(path, plan.table)
    found = tally(parts, plan.table)
    refuse_bad_samples(path, plan.table, found, allowed_bad)
    ingest_token(path, plan.identity).revoke()
    templates = plan.templates
    if found.bad:
        templates = good_templates(plan.templates, found)
        if not any(template.count for template in templates.values()):
            raise SourceError(f"{path}: none of {found.total:,} samples can be used")
        fingerprints = compact(path, plan, templates, found, executor, reporter)
    write_samples(path, plan.table, found)
    counts = {name: template.count for name, template in templates.items()}
    hashes = (part.records["sha256"][part.good] for part in parts)
    duplicates = write_duplicates(path, counts, hashes)
    if duplicates:
        reporter.say(f"{duplicates:,} samples are exact copies of others: see {DUPLICATES}")
    if several:
        reporter.say(f"of {several:,} images the first of several frames was taken: see {SAMPLES}")
    if found.bad:
        reporter.say(f"{found.bad:,} of {found.total:,} samples were left out: see {SAMPLES}")
    consolidate(path)
    files = list_files(path, fingerprints, tables_of(duplicates))
    _write_manifest(plan, path, templates, parts, found, duplicates, files)


def _require_all(plan: IngestPlan, path: Path) -> tuple[dict[str, list[str]], int]:
    """Check that every partition is written; return fingerprints, and how many remarks there are.

    The fingerprints are those of their files.
    """
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


def _write_manifest(
    plan: IngestPlan,
    path: Path,
    templates: Mapping[str, image_store.SplitTemplate],
    parts: Parts,
    found: Tally,
    duplicates: int,
    files: Mapping[str, Any],
) -> None:
    """Work out digests, labels and partitions from the tables, and write the manifest."""
    records = {
        name: (part.records[part.good] for part in parts.of_split(name)) for name in templates
    }
    manifest.write_manifest(
        path,
        manifest.IMAGES,
        {
            "identity": plan.identity,
            "plan": plan.content,
            **summarise(plan.header, templates, records),
            "provenance": plan.content["source"],
            "settings": plan.settings,
            "samples": {"listed": found.total, "left_out": found.by_status()},
            "duplicates": duplicates,
            **files,
        },
    )
