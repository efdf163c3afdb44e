"""Beginning an unfinished image set anew, with other files or other settings of the same source."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.errors import hide_in
from pipeline.core.urls import shown
from pipeline.execution.progress import Reporter
from pipeline.ingestion.compaction import forget_compaction
from pipeline.ingestion.duplicates import DUPLICATES
from pipeline.ingestion.plan import IngestPlan
from pipeline.storage import manifest
from pipeline.storage.atomic import PARTIAL_SUFFIX
from pipeline.storage.claims import Token
from pipeline.storage.folders import list_folder, remove_tree
from pipeline.storage.sample_tables import BAD_SAMPLES, SAMPLES

# what lies in a store that is being made, beside its splits
_FILES = ("zarr.json", SAMPLES, DUPLICATES, BAD_SAMPLES)


def ingest_token(path: Path, identity: str) -> Token:
    """Return what lets the partitions of a plan be written."""
    return Token(path / manifest.WORK, identity, "ingest")


@dataclass(frozen=True)
class Successor:
    """Lets a plan take the place of another one of the same source that was not finished.

    So what a failed ingest tells to change can be changed: files are mended, removed or replaced,
    images are resized, a full scale is given. Nothing that was written is of use then.

    Attributes
    ----------
    plan, reporter
        The plan, and who is told.
    listing
        Where the listing of its samples is, which stays.
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
