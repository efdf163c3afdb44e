"""Where the store of an image set lies, and whether it is there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.config.image_settings import ImageSettings
from pipeline.config.job_settings import load_environment
from pipeline.core.paths import locate
from pipeline.core.urls import shown
from pipeline.ingestion.origins import is_made
from pipeline.sources.catalog import load_catalog
from pipeline.sources.registry import (
    catalog_name,
)
from pipeline.storage import manifest
from pipeline.storage.folders import exists
from pipeline.storage.image_store import is_own_store


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


def _holds_dataset(path: Path, name: str) -> bool:
    if manifest.kind_of(path) != manifest.IMAGES:
        return False
    content = manifest.read_manifest(path, manifest.IMAGES)
    entry = load_catalog()[name]
    return bool(content["provenance"] == entry.provenance)
