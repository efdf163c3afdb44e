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

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.core.errors import (
    DamagedError,
    IncompleteError,
    InUseError,
    SourceError,
)
from pipeline.core.paths import is_remote
from pipeline.execution.executor import Executor
from pipeline.execution.progress import Reporter
from pipeline.images.decoder_choice import recorded
from pipeline.ingestion.compaction import compact, good_templates, is_compacted
from pipeline.ingestion.duplicates import DUPLICATES, tables_of, write_duplicates
from pipeline.ingestion.plan import IngestPlan
from pipeline.ingestion.restart import Successor, ingest_token
from pipeline.sources.encoded import EncodedSource
from pipeline.storage import claims, image_store, manifest, tables
from pipeline.storage.atomic import copy_file
from pipeline.storage.folders import list_folder
from pipeline.storage.image_content import summarise
from pipeline.storage.locks import held
from pipeline.storage.recorded_files import list_files
from pipeline.storage.sample_tables import (
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

Planned = Callable[..., AbstractContextManager[IngestPlan]]


def listing_place(path: Path) -> Path:
    """Return where a store that is being made keeps the listing of its samples."""
    return path / manifest.WORK / "listing"


@contextmanager
def begun(planned: Planned, path: Path, reporter: Reporter) -> Iterator[IngestPlan | None]:
    """Hold a store and make it empty, as a plan says; what exists of the same one is kept.

    Parameters
    ----------
    planned
        Plans the store, given a folder for what is needed for a while, if there is one.
    path, reporter
        The store, and who is told.

    Yields
    ------
    The plan, its source ready to be read by tasks anywhere; None where the store is finished.

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
    decoders = recorded(claims.read_plan(path, manifest.IMAGES)["plan"]["source"])
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
