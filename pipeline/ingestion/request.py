"""What an ingest is asked for: what to read, how, and the store to write it to.

A finished store is recognised by what was asked for, as its manifest records it, so that it can be
used where its source is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from pipeline.config.image_settings import ImageSettings
from pipeline.config.job_settings import load_environment, make_images
from pipeline.core.blocks import Source, is_source
from pipeline.core.errors import (
    ConfigError,
    ConflictError,
    JobInterruptedError,
    SourceError,
    StoreError,
    describe,
)
from pipeline.core.paths import is_path_like, locate, short_name, shown
from pipeline.execution.executor import Executor
from pipeline.ingestion.plan import IngestPlan, plan_source
from pipeline.sources.catalog import load_catalog
from pipeline.sources.encoded import EncodedSource
from pipeline.sources.registry import (
    CATALOG,
    TORCHVISION,
    catalog_name,
    decoded,
    open_source,
    packed,
    paths_by_split,
    release,
)
from pipeline.storage import claims, manifest
from pipeline.storage.folders import exists
from pipeline.storage.image_store import is_own_store
from pipeline.storage.replacing import conflict, is_made_name


def recorded_settings(images: ImageSettings, shard: int | None) -> dict[str, Any]:
    """Return what opens a source again from any working directory; see `repair`."""
    plain = images.model_dump(mode="json", exclude_unset=True, exclude={"store"})
    name = catalog_name(images)
    if name is not None:
        plain["source"] = f"{CATALOG}{name}"
    elif images.source is not None:
        plain["source"] = _absolute(plain["source"])
    if plain.get("root"):
        plain["root"] = _absolute(plain["root"])
    if plain.get("splits"):
        plain["splits"] = {
            split: [_absolute(text) for text in texts] for split, texts in plain["splits"].items()
        }
    return plain | ({} if shard is None else {"shard": shard})


def _absolute(text: str) -> str:
    """Return a local path as an absolute one; names of data sets and URLs as they are."""
    local = "://" not in text and not text.startswith(TORCHVISION)
    return str(Path(text).absolute()) if local else text


def reopened_settings(recorded: Mapping[str, Any]) -> ImageSettings:
    """Return settings that a manifest recorded; older ones name a set of the catalog by itself."""
    source = recorded.get("source")
    name = {"source": f"{CATALOG}{source}"} if source in load_catalog() else {}
    return make_images({**recorded, **name})


def is_made(images: ImageSettings, path: Path) -> bool:
    """Tell whether there is a finished store that was asked for with the same settings.

    What the source holds by now is not looked at. `ConflictError` where the store was made from the
    same source with other settings, and that source is gone.
    """
    if manifest.kind_of(path) != manifest.IMAGES:
        return False
    recorded = manifest.read_manifest(path, manifest.IMAGES).get("settings")
    if recorded is None:
        return False
    try:
        made = reopened_settings(recorded)
    except ConfigError:
        return False
    was = _decisive(made)
    now_is = _decisive(make_images(recorded_settings(images, images.shard)))
    same_source = (was["source"], was["splits"]) == (now_is["source"], now_is["splits"])
    if was != now_is and same_source and catalog_name(images) is None and is_gone(images):
        raise ConflictError(conflict(path, manifest.IMAGES, now_is, was))
    return was == now_is


def _decisive(images: ImageSettings) -> dict[str, Any]:
    """Return what of settings decides a finished store."""
    return images.model_dump(mode="json", exclude={"store", "max_bad"})


def is_gone(images: ImageSettings) -> bool:
    """Tell whether nothing is left of the source that settings name."""
    if str(images.source).startswith(TORCHVISION):
        return False
    try:
        paths = [path for paths in paths_by_split(images).values() for path in paths]
    except SourceError:  # a pattern that nothing matches
        return True
    return not any(exists(path) for path in paths)


def default_store(name: str) -> Path:
    """Return where the store of a source goes by default: `data/stores/NAME.zarr`."""
    return load_environment().data / "stores" / f"{short_name(name)}.zarr"


def store_path(images: ImageSettings, options: Mapping[str, Any] | None = None) -> Path:
    """Return where the store of a job's images is, or will be."""
    if images.store is not None:
        return locate(images.store, options)
    if images.source is not None:
        return default_store(images.source)
    return default_store(next(iter((images.splits or {}).values()))[0])


def find_images(images: ImageSettings, options: Mapping[str, Any] | None = None) -> Path | None:
    """Return the finished store of what a job calls `images`, or None where it is not made yet."""
    if images.source is not None and images.kind is None:
        path = locate(images.source, options)
        refuse_results(path)
        if manifest.kind_of(path) == manifest.IMAGES:
            return path
        if exists(path / manifest.WORK) or is_own_store(path):
            manifest.read_manifest(path, manifest.IMAGES)  # says what is missing
    target, name = store_path(images, options), catalog_name(images)
    if name in load_catalog() and _holds_dataset(target, str(name)):
        return target  # the catalog's checksums decide the content; the files may be gone
    return target if is_made(images, target) else None


def refuse_results(path: Path) -> None:
    """Raise `StoreError` where what is to be read as images is a run, an audit or part of one."""
    kind = manifest.made_in(path)
    folder, kind = (path, kind) if kind else manifest.made_around(path) or (path, None)
    part = "" if folder == path else path.relative_to(folder).parts[0]
    if kind not in (manifest.RUN, manifest.AUDIT) or (part and not is_made_name(kind, part)):
        return
    what = f"is a {kind}" if not part else f"lies in the {kind} {shown(folder)}"
    made_of = (manifest.find_manifest(folder, kind) or {}).get("images", {}).get("path")
    of = f"; its images are {made_of}" if made_of else ""
    raise StoreError(
        f"{shown(path)}: {what}, expected images, or an image set; 'pixsim show {shown(folder)}' "
        f"prints its result{of}"
    )


def _holds_dataset(path: Path, name: str) -> bool:
    if manifest.kind_of(path) != manifest.IMAGES:
        return False
    content = manifest.read_manifest(path, manifest.IMAGES)
    entry = load_catalog()[name]
    return bool(content["provenance"] == entry.provenance)


Images = Source | ImageSettings | str | Path | Mapping[str, Any]
Check = Callable[[IngestPlan], None]


@dataclass(frozen=True)
class Request:
    """What to read (a source, else what the settings say), where to write it, and how.

    `check` may refuse the plan, and `early` what is known of it before any worker is asked for.
    With `overwrite` a store that is there and another is replaced. `prefix` stands before the keys
    of images where a message names one, as the caller has them.
    """

    source: Source | None
    settings: ImageSettings
    path: Path
    shard: int | None
    check: Check | None = None
    early: Check | None = None
    overwrite: bool = False
    prefix: str = ""

    @contextmanager
    def planned(
        self, executor: Executor, *, listing: Path | None = None, scratch: Path | None = None
    ) -> Iterator[IngestPlan]:
        """Open the source, see `open_source`, and plan its store.

        Without `scratch` the store is finished, and no worker is needed.
        """
        opened = self.source
        if opened is None:
            opened = open_source(self.settings, listing, scratch)
        try:
            if self.early is not None and scratch is not None:
                # of floats, before their range is measured
                self.early(plan_source(packed(opened, self.settings), self.path, self.shard))
            plan = self._plan(opened, executor, listing is not None)
            if self.check is not None:
                self.check(plan)
            yield plan
        finally:
            release(opened)

    def _plan(self, opened: Source, executor: Executor, planned: bool) -> IngestPlan:
        """Plan the store; of floats that it was begun with, or made of, the range is known.

        Where it was `planned` before, the decoders are those of then.
        """
        there = claims.plan_there(self.path, manifest.IMAGES)
        known = there.get("source", {})
        if manifest.same_source(known, opened.provenance):
            if manifest.IGNORED in known and isinstance(opened, EncodedSource):
                kept = {manifest.IGNORED: known[manifest.IGNORED]}  # by when it was listed first
                opened = replace(opened, provenance={**opened.provenance, **kept})
            ready = packed(opened, self.settings, executor.map, known)
        else:
            ready = packed(opened, self.settings, executor.map)
        ready = decoded(ready, known if planned else None)
        recorded = None if self.source is not None else recorded_settings(self.settings, self.shard)
        remarks = tuple(getattr(opened, "remarks", ()))
        plan = plan_source(ready, self.path, self.shard)
        return replace(plan, settings=recorded, remarks=remarks)


def _is_store(settings: ImageSettings, target: Path) -> bool:
    """Tell whether what is to be ingested is the store itself that it would be ingested to."""
    if settings.source is None or manifest.kind_of(target) != manifest.IMAGES:
        return False
    source = locate(settings.source, settings.storage_options)
    return shown(source.absolute()).rstrip("/") == shown(target.absolute()).rstrip("/")


def make_request(
    source: Images,
    output: Path | str | None,
    shard: int | None,
    storage_options: Mapping[str, Any] | None = None,
    max_bad: int | str | None = None,
) -> Request:
    named = isinstance(source, Mapping | ImageSettings) or is_path_like(source)
    if not named and not is_source(source):
        raise ConfigError(
            f"images: {describe(source)}, expected a text or a path, a mapping of settings, or a "
            "source such as from_arrays() returns"
        )
    changes = [] if max_bad is None else [f"max_bad={max_bad}"]
    settings = make_images(cast(str, source) if named else "a source object", changes)
    if named and settings.source is not None and settings.kind is None:
        refuse_results(locate(settings.source, settings.storage_options))
    options = settings.storage_options if storage_options is None else storage_options
    if output is None and not named:
        raise ConfigError("ingest() of a source object needs an output, the folder of the store")
    path = store_path(settings, options) if output is None else locate(output, options)
    if named and _is_store(settings, path):
        raise ConflictError(
            f"{shown(path)}: is an image set already, which 'pixsim run' and 'pixsim audit' take "
            "as it is; to copy it name another place (--output)"
        )
    opened = None if named else cast(Source, source)
    return Request(opened, settings, path, settings.shard if shard is None else shard)


@contextmanager
def interruptible(path: Path) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise JobInterruptedError(
            f"interrupted: {shown(path)} is incomplete; run the same command again to complete it"
        ) from None
