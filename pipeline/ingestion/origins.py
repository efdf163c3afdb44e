"""What a store was made from, as its manifest records it: to open it again, and to recognise it.

A finished store is known by what was asked for, so that it can be used where its source is gone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.config.image_settings import ImageSettings
from pipeline.config.job_settings import make_images
from pipeline.core.errors import ConfigError, ConflictError, SourceError
from pipeline.sources.catalog import load_catalog
from pipeline.sources.registry import CATALOG, TORCHVISION, catalog_name, places_of
from pipeline.storage import claims, manifest
from pipeline.storage.folders import exists


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
            split: [_absolute(place) for place in places]
            for split, places in plain["splits"].items()
        }
    return plain | ({} if shard is None else {"shard": shard})


def _absolute(place: str) -> str:
    """Return a place, a local one from the root; names of data sets and URLs as they are."""
    local = "://" not in place and not place.startswith(TORCHVISION)
    return str(Path(place).absolute()) if local else place


def reopened_settings(recorded: Mapping[str, Any]) -> ImageSettings:
    """Return settings that a manifest recorded; older ones name a set of the catalog by itself."""
    source = recorded.get("source")
    name = {"source": f"{CATALOG}{source}"} if source in load_catalog() else {}
    return make_images({**recorded, **name})


def is_made(images: ImageSettings, path: Path) -> bool:
    """Tell whether a place holds a finished store that was asked for with the same settings.

    What the source holds by now is not looked at.

    Raises
    ------
    ConflictError
        Where it was made from the same source with other settings, and that source is gone.
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
        raise ConflictError(claims.conflict(path, manifest.IMAGES, now_is, was))
    return was == now_is


def _decisive(images: ImageSettings) -> dict[str, Any]:
    """Return what of settings decides a finished store."""
    return images.model_dump(mode="json", exclude={"store", "max_bad"})


def is_gone(images: ImageSettings) -> bool:
    """Tell whether nothing is left of the source that settings name."""
    if str(images.source).startswith(TORCHVISION):
        return False
    try:
        places = [place for places in places_of(images).values() for place in places]
    except SourceError:  # a pattern that nothing matches
        return True
    return not any(exists(place) for place in places)
