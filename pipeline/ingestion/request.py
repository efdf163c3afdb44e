"""What an ingest was asked for: what to read, where to write it, and how."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from pipeline.config.image_settings import ImageSettings
from pipeline.config.job_settings import make_images
from pipeline.core.errors import ConfigError, JobInterruptedError
from pipeline.core.messages import describe
from pipeline.core.paths import is_path_like, locate
from pipeline.core.urls import shown
from pipeline.execution.executor import Executor
from pipeline.ingestion.origins import recorded_settings
from pipeline.ingestion.plan import IngestPlan, plan_source
from pipeline.ingestion.store_location import store_place
from pipeline.sources.protocol import Source, is_source
from pipeline.sources.registry import (
    decoded,
    open_source,
    packed,
    release,
)
from pipeline.storage import claims, manifest

Images = Source | ImageSettings | str | Path | Mapping[str, Any]
Check = Callable[[IngestPlan], None]


@dataclass(frozen=True)
class Request:
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


def make_request(
    source: Images,
    output: Path | str | None,
    shard: int | None,
    storage_options: Mapping[str, Any] | None,
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
    options = settings.storage_options if storage_options is None else storage_options
    if output is None and not named:
        raise ConfigError("ingest() of a source object needs an output, the folder of the store")
    path = store_place(settings, options) if output is None else locate(output, options)
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
