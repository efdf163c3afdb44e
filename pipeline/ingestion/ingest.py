"""Ingesting: an image set becomes a store, in one call or in three steps, or grows.

`ingest` plans, writes every partition and finishes. `plan_ingest`, `ingest_partitions` and
`finish_ingest` are its steps, for clusters that run array jobs: the plan is written into the
store, each task writes some of its partitions, the last step puts them together.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from pipeline.config.cluster_settings import ClusterSettings
from pipeline.config.image_settings import ImageSettings
from pipeline.config.job_settings import load_environment, make_images
from pipeline.core.arguments import checked
from pipeline.core.errors import ConfigError, JobInterruptedError
from pipeline.core.messages import describe
from pipeline.core.paths import is_place, locate
from pipeline.core.urls import shown
from pipeline.execution.executor import Executor, deferred_executor
from pipeline.execution.progress import Reporter, SilentReporter
from pipeline.images.decoder_choice import difference
from pipeline.ingestion.append import append_images, plan_growth
from pipeline.ingestion.memory_limit import require_memory
from pipeline.ingestion.origins import is_gone, is_made, recorded_settings
from pipeline.ingestion.plan import IngestPlan, check_names, plan_source
from pipeline.ingestion.steps import begun, finish, listing_place, write_partitions
from pipeline.sources.catalog import load_catalog
from pipeline.sources.protocol import Source, is_source
from pipeline.sources.registry import (
    catalog_name,
    decoded,
    folder_note,
    open_source,
    packed,
    release,
)
from pipeline.storage import claims, manifest
from pipeline.storage.folders import exists
from pipeline.storage.image_store import is_own_store
from pipeline.storage.locks import held

Images = Source | ImageSettings | str | Path | Mapping[str, Any]
Check = Callable[[IngestPlan], None]


@checked
def ingest(
    source: Images,
    output: Path | str | None = None,
    shard_samples: int | None = None,
    cluster: ClusterSettings | str | None = None,
    reporter: Reporter | None = None,
    *,
    append: bool = False,
    max_bad: int | str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    profile: Path | None = None,
) -> Path:
    """Write an image set as a store.

    Parameters
    ----------
    source
        A source object; a text, such as a name of the catalog, a path or a URL; or a mapping of
        settings, see `ImageSettings`.
    output
        The folder or URL of the store; default, for all but source objects: `default_store`. Where
        it holds the same image set already, nothing is done; where it holds a part of it, the
        rest is added.
    shard_samples
        Samples per shard; default: a few MB's worth.
    cluster
        Where tasks run; default: the dask client that this process has opened, else threads.
    reporter
        Told of the progress.
    append
        Whether to add the samples to the image set at `output`, all of them or none. Splits and
        classes that it does not have become its last ones.
    max_bad
        How many samples may be left out because they cannot be used, or a share such as `1%`;
        default: what the settings say, else none.
    storage_options
        fsspec's options for `output`, where it is a URL; default: those of the source.
    profile
        A page of HTML to write dask's performance report into; needs worker processes.

    Returns
    -------
    The folder of the store.

    Raises
    ------
    SourceError, ShapeError, LabelError
        Where the source is not what it should be. The store stays without manifest.
    BadSamplesError
        Where more samples cannot be used than the settings allow; says which.
    ConflictError
        Where the folder holds something else.
    InUseError
        Where another process makes the store, or adds to it.
    """
    work = _work(source, output, shard_samples, storage_options, max_bad)
    listener = reporter or SilentReporter()
    with _interruptible(work.path), deferred_executor(cluster, listener, profile) as executor:
        if append:
            return _append(work, executor, listener)
        claims.require_place(work.path)
        if _is_left(work, listener):
            return work.path
        return _fill(work, work.path, executor, listener)


def _is_left(work: _Work, reporter: Reporter) -> bool:
    """Tell whether a store is finished whose source is not there any more, or needs no look."""
    asked = work.settings.model_copy(update={"shard": work.shard})
    if work.source is not None or not is_made(asked, work.path):
        return False
    named = catalog_name(asked) is not None  # the catalog's checksums decide what it holds
    if named or is_gone(asked):
        gone = "" if named else "; its source is not there any more"
        reporter.say(f"{shown(work.path)} is complete already{gone}")
        return True
    return False


@dataclass(frozen=True)
class _Work:
    """What to read (a source, else what the settings say), where to write it, and how."""

    source: Source | None
    settings: ImageSettings
    path: Path
    shard: int | None

    @contextmanager
    def planned(
        self,
        path: Path,
        executor: Executor,
        *,
        listing: Path | None = None,
        scratch: Path | None = None,
        base: Mapping[str, Any] | None = None,
        early: Check | None = None,
    ) -> Iterator[IngestPlan]:
        """Open the source and plan its store; see `open_source`.

        `base` is what it is added to; `early` may refuse the plan, of floats before their range is
        measured, which takes workers.
        """
        opened = self.source
        if opened is None:
            opened = open_source(self.settings, listing, scratch)
        try:
            if early is not None:
                early(plan_source(packed(opened, self.settings), path, self.shard))
            yield self._plan(opened, path, executor, listing is not None, base)
        finally:
            release(opened)

    def _plan(
        self,
        opened: Source,
        path: Path,
        executor: Executor,
        planned: bool,
        base: Mapping[str, Any] | None,
    ) -> IngestPlan:
        """Plan the store; of floats that it was begun with, or made of, the range is known.

        Where it was `planned` before, the decoders are those of then.
        """
        there = claims.plan_there(path, manifest.IMAGES)
        known = there.get("source", {})
        same = {key: value for key, value in known.items() if key != "packing"}
        if claims.identity(same) == claims.identity(opened.provenance):
            ready = packed(opened, self.settings, executor.map, known)
        else:
            ready = packed(opened, self.settings, executor.map)
        ready = decoded(ready, known if planned else None, base)
        recorded = None if self.source is not None else recorded_settings(self.settings, self.shard)
        remarks = tuple(getattr(opened, "remarks", ()))
        plan = plan_source(ready, path, self.shard)
        return replace(plan, settings=recorded, remarks=remarks)


def make_store(
    images: ImageSettings, path: Path, executor: Executor, reporter: Reporter, *, append: bool
) -> Path:
    """Ingest images into a store at a place, or add them to the one there."""
    work = _Work(None, images, path, images.shard)
    return (_append if append else _fill_there)(work, executor, reporter)


def _fill_there(work: _Work, executor: Executor, reporter: Reporter) -> Path:
    return _fill(work, work.path, executor, reporter)


def _append(work: _Work, executor: Executor, reporter: Reporter) -> Path:
    """Add samples to a store, once it is known that they fit it."""

    def fill(place: Path) -> Path:
        base = manifest.read_manifest(work.path, manifest.IMAGES)

        def fits(plan: IngestPlan) -> None:
            growth = plan_growth(work.path, base, plan.content)
            check_names(growth.class_names, growth.templates, unlabelled=True)
            remark = difference(base["provenance"], plan.content["source"])
            if remark:
                reporter.say(f"{shown(work.path)} and what is added have other decoders{remark}")

        if _is_left(replace(work, path=place), reporter):
            return place
        return _fill(work, place, executor, reporter, fits, base["provenance"])

    return append_images(work.path, fill, executor, reporter)


def _work(
    source: Images,
    output: Path | str | None,
    shard: int | None,
    storage_options: Mapping[str, Any] | None,
    max_bad: int | str | None = None,
) -> _Work:
    named = isinstance(source, Mapping | ImageSettings) or is_place(source)
    if not named and not is_source(source):
        raise ConfigError(
            f"images: {describe(source)}, expected a text or a path, a mapping of settings, or a "
            "source such as from_arrays() returns"
        )
    changes = [] if max_bad is None else [f"max_bad={max_bad}"]
    settings = make_images(cast(str, source) if named else "a source object", changes)
    options = settings.storage_options if storage_options is None else storage_options
    if output is None and not named:
        raise ConfigError("ingest() of a source object needs an output, the folder of the store")
    path = store_place(settings, options) if output is None else locate(output, options)
    opened = None if named else cast(Source, source)
    return _Work(opened, settings, path, settings.shard if shard is None else shard)


@contextmanager
def _interruptible(path: Path) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise JobInterruptedError(
            f"interrupted: {shown(path)} is incomplete; run the same command again to complete it"
        ) from None


def _fill(
    work: _Work,
    path: Path,
    executor: Executor,
    reporter: Reporter,
    check: Check | None = None,
    base: Mapping[str, Any] | None = None,
    early: Check | None = None,
) -> Path:
    """Make the store at a place, or what is missing of it.

    `check` may refuse the plan before, `early` what is known of it before any worker is asked for;
    `base` is the provenance of what it is added to.
    """

    def fits(plan: IngestPlan) -> None:
        if early is not None:
            early(plan)
        if executor.offered is not None:
            require_memory(plan, executor.offered)

    with _begun(work, path, executor, reporter, check, base, fits) as ready:
        if ready is None:
            reporter.say(f"{shown(path)} is complete already")
            return path
        require_memory(ready, executor.layout)
        write_partitions(ready, path, executor, reporter)
        finish(ready, path, work.settings.allowed_bad(ready.count), executor, reporter)
    return path


@contextmanager
def _begun(
    work: _Work,
    path: Path,
    executor: Executor,
    reporter: Reporter,
    check: Check | None = None,
    base: Mapping[str, Any] | None = None,
    early: Check | None = None,
) -> Iterator[IngestPlan | None]:
    """Plan a store and begin it; None where it is finished.

    A store that is to be filled is held while its samples are listed: the listing goes below its
    `.work`, where a process that was killed may leave it. Beside a finished one nothing is written.
    """

    @contextmanager
    def planned(scratch: Path | None = None) -> Iterator[IngestPlan]:
        asked = None if scratch is None else early  # what is finished needs no workers
        with work.planned(path, executor, scratch=scratch, base=base, early=asked) as plan:
            if check is not None:
                check(plan)
            yield plan

    note = None if work.source is not None else folder_note(work.settings)
    if note is not None:
        reporter.say(note)
    with begun(planned, path, reporter) as ready:
        for line in () if ready is None else (*ready.remarks, *ready.notes):
            reporter.say(line)
        yield ready


@checked
def plan_ingest(
    source: Images,
    output: Path | str | None = None,
    shard_samples: int | None = None,
    cluster: ClusterSettings | str | None = None,
    reporter: Reporter | None = None,
    *,
    storage_options: Mapping[str, Any] | None = None,
) -> int:
    """List and number the samples, and make the empty store: the first step of `ingest`.

    Returns
    -------
    How many partitions there are to write; 0 where the store is finished.

    Raises
    ------
    SourceError, ConflictError, InUseError
        As `ingest`.
    """
    work = _work(source, output, shard_samples, storage_options)
    listener = reporter or SilentReporter()
    claims.require_place(work.path)
    with (
        deferred_executor(cluster) as executor,
        _interruptible(work.path),
        _begun(work, work.path, executor, listener) as ready,
    ):
        return 0 if ready is None else len(ready.table)


@checked
def ingest_partitions(
    source: Images,
    start: int,
    stop: int,
    output: Path | str | None = None,
    shard_samples: int | None = None,
    cluster: ClusterSettings | str | None = None,
    reporter: Reporter | None = None,
    *,
    storage_options: Mapping[str, Any] | None = None,
) -> None:
    """Write the partitions `start` to `stop` of a store that `plan_ingest` began.

    Nothing is listed again. Each partition is written whole or not at all, and not again where it
    is there, so that any number of these may run at once, and again.

    Raises
    ------
    IncompleteError
        Where the store was not planned.
    ConflictError
        Where it was planned from another source or with other settings.
    ConfigError
        Where there are no such partitions.
    """
    work = _work(source, output, shard_samples, storage_options)
    with (
        _interruptible(work.path),
        deferred_executor(cluster, reporter) as executor,
        _resumed(work, executor) as plan,
    ):
        if not 0 <= start < stop <= len(plan.table):
            raise ConfigError(
                f"partitions {start} to {stop}, expected numbers from 0 to {len(plan.table)}, the "
                f"partitions of {shown(work.path)}"
            )
        require_memory(plan, executor.layout, stop - start)
        write_partitions(
            plan, work.path, executor, reporter or SilentReporter(), range(start, stop)
        )


@checked
def finish_ingest(
    source: Images,
    output: Path | str | None = None,
    shard_samples: int | None = None,
    cluster: ClusterSettings | str | None = None,
    reporter: Reporter | None = None,
    *,
    storage_options: Mapping[str, Any] | None = None,
) -> Path:
    """Check that every partition is written, and finish the store: the last step of `ingest`.

    Raises
    ------
    IncompleteError
        Where partitions are missing; lists them.
    BadSamplesError
        Where more samples cannot be used than the settings allow.
    InUseError
        Where another process finishes it, or makes it whole.
    """
    work = _work(source, output, shard_samples, storage_options)
    with (
        _interruptible(work.path),
        deferred_executor(cluster, reporter) as executor,
        _resumed(work, executor) as plan,
    ):
        listener, allowed = reporter or SilentReporter(), work.settings.allowed_bad(plan.count)
        with held(work.path, "finish an ingest", listener.say):
            claims.read_plan(work.path, manifest.IMAGES)  # another may have finished it
            finish(plan, work.path, allowed, executor, listener)
    return work.path


@contextmanager
def _resumed(work: _Work, executor: Executor) -> Iterator[IngestPlan]:
    """Open the source of a store that was planned, with the listing made then."""
    record = claims.read_plan(work.path, manifest.IMAGES)
    claims.require_place(work.path)
    with work.planned(work.path, executor, listing=listing_place(work.path)) as plan:
        claims.require_same(work.path, manifest.IMAGES, record, plan.content)
        yield plan


def default_store(name: str) -> Path:
    """Return where the store of a source goes by default: `data/stores/NAME.zarr`."""
    return load_environment().data / "stores" / f"{source_name(name)}.zarr"


def source_name(text: str) -> str:
    """Return a short name of a source: the last part of its path, without suffix or pattern."""
    last = shown(text).rstrip("/").rpartition("/")[2].rpartition(":")[2]
    stem = re.sub(r"(\.tar)?\.[A-Za-z]\w*$", "", last) if "." in last[1:] else last
    return re.sub(r"[^\w.-]+|[-_.]?\{[^}]*\}|\*", "", stem).strip("-_.") or "images"


def store_place(images: ImageSettings, options: Mapping[str, Any] | None = None) -> Path:
    """Return where the store of a job's images is, or will be."""
    if images.store is not None:
        return locate(images.store, options)
    if images.source is not None:
        return default_store(images.source)
    return default_store(next(iter((images.splits or {}).values()))[0])


def find_images(images: ImageSettings, options: Mapping[str, Any] | None = None) -> Path | None:
    """Return the store of what a job calls `images`, or None where it is not made yet.

    Raises
    ------
    IncompleteError
        Where it is a store that was never finished.
    """
    if images.source is not None and images.kind is None:
        path = locate(images.source, options)
        if manifest.kind_of(path) == manifest.IMAGES:
            return path
        if exists(path / manifest.WORK) or is_own_store(path):
            manifest.read_manifest(path, manifest.IMAGES)  # says what is missing
    target, name = store_place(images, options), catalog_name(images)
    if name in load_catalog() and _holds_dataset(target, str(name)):
        return target  # the catalog's checksums decide the content; the files may be gone
    return target if is_made(images, target) else None


def prepare_images(
    images: ImageSettings,
    executor: Executor,
    reporter: Reporter,
    options: Mapping[str, Any] | None = None,
    early: Check | None = None,
) -> Path:
    """Return the store of what a job calls `images`, making it where it is missing.

    A store is used as it is. For a catalog name or another source the store is `store_place`,
    made now where it does not exist or is incomplete; one that was made with the same settings is
    used as it is too, whatever the source holds by now. `early` may refuse the plan of a store,
    before any worker is asked for.
    """
    found = find_images(images, options)
    if found is not None:
        if catalog_name(images) is None and shown(found) != images.title:
            reporter.say(f"using {shown(found)}, made from {images.title}, which is not read again")
        return found
    target = store_place(images, options)
    claims.require_place(target)
    if manifest.kind_of(target) != manifest.IMAGES:
        reporter.say(f"ingesting {images.title} into {shown(target)}")
    work = _Work(None, images, target, images.shard)
    return _fill(work, target, executor, reporter, early=early)


def _holds_dataset(path: Path, name: str) -> bool:
    if manifest.kind_of(path) != manifest.IMAGES:
        return False
    content = manifest.read_manifest(path, manifest.IMAGES)
    entry = load_catalog()[name]
    return bool(content["provenance"] == entry.provenance)
