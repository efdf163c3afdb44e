"""Ingesting: an image set becomes a store, in one call or in three steps, or grows.

`ingest` plans, writes every partition and finishes. `plan_ingest`, `ingest_partitions` and
`finish_ingest` are its steps, for clusters that run array jobs: the plan is written into the
store, each task writes some of its partitions, the last step puts them together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

from pipeline.config.cluster_settings import ClusterSettings
from pipeline.config.image_settings import ImageSettings
from pipeline.core.arguments import checked
from pipeline.core.errors import ConfigError
from pipeline.core.paths import shown
from pipeline.execution.executor import Executor, deferred_executor
from pipeline.execution.progress import Reporter, SilentReporter
from pipeline.images.decoders import difference
from pipeline.ingestion.append import append_images, plan_growth
from pipeline.ingestion.plan import IngestPlan, check_names, require_memory
from pipeline.ingestion.request import (
    Check,
    Images,
    Request,
    find_images,
    interruptible,
    is_gone,
    is_made,
    make_request,
    store_path,
)
from pipeline.ingestion.steps import begun, finish, listing_path
from pipeline.ingestion.write_partition import write_partitions
from pipeline.sources.registry import catalog_name
from pipeline.storage import claims, manifest
from pipeline.storage.locks import held


class StoreOptions(TypedDict, total=False):
    """How to get at a store."""

    storage_options: Mapping[str, Any] | None


class IngestOptions(StoreOptions, total=False):
    """What else an ingest takes; see `ingest`."""

    max_bad: int | str | None
    profile: Path | None
    overwrite: bool


@checked
def ingest(
    source: Images,
    output: Path | str | None = None,
    shard_samples: int | None = None,
    cluster: ClusterSettings | str | None = None,
    reporter: Reporter | None = None,
    *,
    append: bool = False,
    **options: Unpack[IngestOptions],
) -> Path:
    """Write an image set as a store.

    Parameters
    ----------
    source
        A source object; a text, such as a name of the catalog, a path or a URL; or a mapping of
        settings, see `ImageSettings`.
    output
        The folder or URL of the store; default, for all but source objects: `default_store`. What
        it holds of the same image set is kept, and the rest added.
    shard_samples
        Samples per shard; default: a few MB's worth.
    cluster
        Where tasks run; default: the dask client that this process has opened, else threads.
    reporter
        Told of the progress.
    append
        Whether to add the samples to the store, all of them or none; new splits and classes last.
    max_bad
        How many bad samples may be left out, or a share such as `1%`; default: as set, else none.
    storage_options
        fsspec's options for `output`, where it is a URL; default: those of the source.
    profile
        A page of HTML to write dask's performance report into; needs worker processes.
    overwrite
        Whether to replace another store that is there, once the new one is complete.

    Returns
    -------
    The folder of the store.

    Raises
    ------
    SourceError, ShapeError, LabelError
        Where the source is not what it should be.
    BadSamplesError
        Where more samples cannot be used than the settings allow; says which.
    ConflictError, InUseError
        Where the folder holds something else, or another process fills it.
    """
    work = make_request(
        source, output, shard_samples, options.get("storage_options"), options.get("max_bad")
    )
    listener, profile = reporter or SilentReporter(), options.get("profile")
    work = replace(work, overwrite=options.get("overwrite", False))
    with interruptible(work.path), deferred_executor(cluster, listener, profile) as executor:
        if append:
            return _append(work, executor, listener)
        claims.require_place(work.path)
        return work.path if _is_left(work, listener) else _fill(work, executor, listener)


def _is_left(work: Request, reporter: Reporter) -> bool:
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


def make_store(
    images: ImageSettings, path: Path, executor: Executor, reporter: Reporter, *, append: bool
) -> Path:
    """Ingest images into a store, or add them to the one that is there."""
    work = Request(None, images, path, images.shard)
    return (_append if append else _fill)(work, executor, reporter)


def _append(work: Request, executor: Executor, reporter: Reporter) -> Path:
    """Add samples to a store, once it is known that they fit it."""
    if work.overwrite:
        raise ConfigError("append and overwrite, expected one of the two; leave one out")

    def fill(aside: Path, base: Mapping[str, Any]) -> None:
        def fits(plan: IngestPlan) -> None:
            growth = plan_growth(work.path, base, plan.content)
            check_names(growth.class_names, growth.templates, unlabelled=True)
            remark = difference(base["provenance"], plan.content["source"])
            if remark:
                reporter.say(f"{shown(work.path)} and what is added have other decoders{remark}")

        added = replace(work, path=aside, check=fits)
        if not _is_left(added, reporter):
            _fill(added, executor, reporter)

    return append_images(work.path, fill, executor, reporter)


def _fill(work: Request, executor: Executor, reporter: Reporter) -> Path:
    """Make a store, or what is missing of it."""

    def fits(plan: IngestPlan) -> None:
        if work.early is not None:
            work.early(plan)
        if executor.offered is not None:
            require_memory(plan, executor.offered)

    with begun(replace(work, early=fits), executor, reporter) as ready:
        if ready is None:
            reporter.say(f"{shown(work.path)} is complete already")
            return work.path
        require_memory(ready, executor.layout)
        write_partitions(ready, work.path, executor, reporter)
        allowed = work.settings.allowed_bad(ready.count)
        finish(ready, work.path, allowed, executor, reporter, work.prefix)
    return work.path


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
    work = make_request(source, output, shard_samples, storage_options)
    listener = reporter or SilentReporter()
    claims.require_place(work.path)
    with (
        deferred_executor(cluster) as executor,
        interruptible(work.path),
        begun(work, executor, listener) as ready,
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
    **options: Unpack[StoreOptions],
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
    work = make_request(source, output, shard_samples, **options)
    with _resumed(work, cluster, reporter) as (plan, executor):
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
    work = make_request(source, output, shard_samples, storage_options)
    with _resumed(work, cluster, reporter) as (plan, executor):
        listener, allowed = reporter or SilentReporter(), work.settings.allowed_bad(plan.count)
        with held(work.path, "finish an ingest", listener.say):
            claims.read_plan(work.path, manifest.IMAGES)  # another may have finished it
            finish(plan, work.path, allowed, executor, listener)
    return work.path


@contextmanager
def _resumed(
    work: Request, cluster: ClusterSettings | str | None, reporter: Reporter | None
) -> Iterator[tuple[IngestPlan, Executor]]:
    """Open the source of a store that was planned, with the listing made then, and a cluster."""
    with interruptible(work.path), deferred_executor(cluster, reporter) as executor:
        record = claims.read_plan(work.path, manifest.IMAGES)
        claims.require_place(work.path)
        with work.planned(executor, listing=listing_path(work.path)) as plan:
            claims.require_same(work.path, manifest.IMAGES, record, plan.content)
            yield plan, executor


def prepare_images(
    images: ImageSettings,
    executor: Executor,
    reporter: Reporter,
    options: Mapping[str, Any] | None = None,
    early: Check | None = None,
    *,
    overwrite: bool = False,
) -> Path:
    """Return the store of what a job calls `images`, making it where it is missing.

    A store is used as it is. For a catalog name or another source the store is `store_path`,
    made now where it does not exist or is incomplete; one that was made with the same settings is
    used as it is too, whatever the source holds by now. `early` may refuse the plan of a store,
    before any worker is asked for. With `overwrite` a store of other settings is replaced.
    """
    store = find_images(images, options)
    if store is not None:
        if catalog_name(images) is None and shown(store) != images.title:
            reporter.say(f"using {shown(store)}, made from {images.title}, which is not read again")
        return store
    target = store_path(images, options)
    claims.require_place(target)
    there = catalog_name(images) is not None or not is_gone(images)  # else it is refused soon
    if there and manifest.kind_of(target) != manifest.IMAGES:
        reporter.say(f"ingesting {images.title} into {shown(target)}")
    work = Request(
        None, images, target, images.shard, early=early, overwrite=overwrite, prefix="images."
    )
    return _fill(work, executor, reporter)
