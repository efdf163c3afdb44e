"""Grids of what a store or a run holds: sample images of each class, or the prototypes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.core.arguments import checked
from pipeline.core.errors import InputError
from pipeline.core.paths import locate
from pipeline.report.pictures import draw_prototypes, image_grid, save_picture
from pipeline.report.run import open_run
from pipeline.storage import image_store, manifest
from pipeline.storage.atomic import require_file

MAX_CLASSES = 12
PER_CLASS = 8


def grid_of_images(path: Path, split: str) -> Image.Image:
    """Draw the first images of each class of a split, a row a class."""
    content = manifest.read_manifest(path, manifest.IMAGES)
    info = image_store.require_split(content, split, path)
    images, labels = image_store.read_images(path, split, 0, min(info["shard"], info["count"]))
    if not len(images):
        raise InputError(f"{path}: split '{split}' holds no image to draw")
    codes = [code for code in range(len(content["class_names"])) if (labels == code).any()]
    chosen = [
        int(i) for code in codes[:MAX_CLASSES] for i in np.flatnonzero(labels == code)[:PER_CLASS]
    ]
    if not chosen:
        chosen = list(range(min(len(images), PER_CLASS * 2)))
    names = [content["class_names"][labels[i]] if labels[i] >= 0 else "no label" for i in chosen]
    return image_grid([images[i] for i in chosen], names, PER_CLASS, content["full_scale"])


def grid_of_prototypes(path: Path) -> Image.Image:
    """Draw the prototypes of a run."""
    return draw_prototypes(open_run(path).prototypes)


@checked
def draw_grid(
    path: Path | str,
    picture: Path,
    split: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> None:
    """Draw sample images of an image set, or the prototypes of a run, as a PNG file.

    Parameters
    ----------
    path
        The folder of the store or run, or its URL.
    picture
        The file to write.
    split
        The split of the image set to draw from; default: its first.
    storage_options
        fsspec's options for a URL; default: credentials from the environment.
    """
    folder = locate(path, storage_options)
    require_file(picture, "--grid")
    if manifest.kind_of(folder) == manifest.RUN:
        save_picture(grid_of_prototypes(folder), picture)
        return
    content = manifest.read_manifest(folder, manifest.IMAGES)
    save_picture(grid_of_images(folder, split or next(iter(content["splits"]))), picture)
