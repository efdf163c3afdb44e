"""What a store or a run is, in plain values and as a grid; and the digests of what it holds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.core.arguments import checked
from pipeline.core.digests import ColumnDigest
from pipeline.core.errors import DamagedError, InputError
from pipeline.core.partitions import image_bytes
from pipeline.core.paths import locate, shown
from pipeline.core.schema import DISTANCE
from pipeline.report.opened import open_run
from pipeline.report.opened_audit import open_audit
from pipeline.report.pictures import draw_prototypes, image_grid, save_picture
from pipeline.storage import audit_files, image_store, manifest, run_files, tables
from pipeline.storage.atomic import require_file
from pipeline.storage.folders import exists, sizes_below
from pipeline.storage.image_content import digest_images, partition_table, read_checked
from pipeline.storage.recorded_files import require_files_of, require_tables
from pipeline.storage.run_files import (
    DIGESTED,
    DIGESTED_NEIGHBOURS,
    METRICS_FILE,
    NEIGHBOURS,
    PREDICTIONS,
    RunDigests,
    distance_columns,
    part_path,
    prototypes_digest,
)
from pipeline.storage.sample_tables import SAMPLES

MAX_CLASSES, PER_CLASS = 12, 8  # of an image set that are drawn


def folder_bytes(path: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(sizes_below(path).values())


@checked
def describe(path: Path | str, storage_options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Describe an image set, a run or an audit from its manifest.

    Parameters
    ----------
    path
        The folder of a store or of a run, or its URL.
    storage_options
        fsspec's options for a URL; default: credentials from the environment.

    Returns
    -------
    For an image set `kind`, `digest`, `class_names`, `provenance` and for each of `splits` its
    count, shape, dtype, chunk, shard, partitions, bytes of pixels, bytes on disk, images per
    class and unlabelled ones. For a run `kind`, `name`, `images`, the splits `fit` and `evaluate`,
    `leave_one_out` (the split whose images were measured without themselves, or None),
    `classes`, `metrics`, `neighbours` (accuracy by metric and number of votes), `excluded` (how
    many samples were left out of each split, and why), `holdout` (which split was divided, and
    how), `arrays`, the rows of the prediction table, `digests`, `seconds`, bytes on disk. For an
    audit `kind`, `name`, `images`, `summary` (what `audit.json` holds), `digests`, `seconds`, bytes
    on disk.

    Raises
    ------
    StoreError
        Where the folder is neither, or was never finished.
    """
    folder = locate(path, storage_options)
    kind = kind_or_refuse(folder)
    if kind == manifest.RUN:
        return _describe_run(folder)
    if kind == manifest.AUDIT:
        return _describe_audit(folder)
    return _describe_images(folder)


def _describe_images(folder: Path) -> dict[str, Any]:
    content = manifest.read_manifest(folder, manifest.IMAGES)
    require_files_of(folder, content)
    require_tables(folder, content, SAMPLES)
    splits = {}
    for name, split in content["splits"].items():
        splits[name] = {
            "count": split["count"],
            "shape": split["shape"],
            "dtype": split["dtype"],
            "chunk": split["chunk"],
            "shard": split["shard"],
            "partitions": len(partition_table(content, [name])),
            "bytes": split["count"] * image_bytes(split["shape"], split["dtype"]),
            "stored_bytes": folder_bytes(folder / name),
            "classes": dict(zip(content["class_names"], split["labels"], strict=True)),
            "unlabelled": split["unlabelled"],
        }
    return {
        "kind": manifest.IMAGES,
        "path": shown(folder),
        "digest": content["digest"],
        "class_names": content["class_names"],
        "full_scale": content["full_scale"],
        "provenance": content["provenance"],
        "splits": splits,
        "samples": content.get("samples", {}),
        "duplicates": content.get("duplicates", 0),
        "appended": content.get("appended", []),
    }


def _describe_run(folder: Path) -> dict[str, Any]:
    run = open_run(folder)
    content = run.manifest
    arrays = {name: array.data for name, array in run.stored_prototypes.data_vars.items()}
    if content["digests"]["distances"] is not None:
        arrays[DISTANCE.name] = run.stored_distances
    return {
        "kind": manifest.RUN,
        "path": shown(folder),
        "name": content["name"],
        "images": content["images"]["path"],
        "fit": content["settings"]["fit"],
        "evaluate": content["settings"]["evaluate"],
        "leave_one_out": run.metrics.get("leave_one_out"),
        "classes": content["class_names"],
        "metrics": {name: run.metrics[name] for name in content["settings"]["metrics"]},
        "neighbours": run.metrics.get("neighbours", {}),
        "excluded": content.get("excluded", {}),
        "holdout": content.get("holdout"),
        "arrays": {
            name: {
                "sizes": dict(zip(array.dims, array.shape, strict=True)),
                "dtype": str(array.dtype),
                "chunk": list(array.chunk),
                "bytes": math.prod(array.shape) * array.dtype.itemsize,
            }
            for name, array in arrays.items()
        },
        "rows": sum(part["rows"] for part in content["partitions"]),
        "digests": content["digests"],
        "arithmetic": content["arithmetic"],
        "executor": content["executor"],
        "seconds": content["seconds"],
        "stored_bytes": folder_bytes(folder),
    }


def _describe_audit(folder: Path) -> dict[str, Any]:
    audit = open_audit(folder)
    require_files_of(folder, audit.manifest)
    content = audit.manifest
    return {
        "kind": manifest.AUDIT,
        "path": shown(folder),
        "name": content["name"],
        "images": content["images"]["path"],
        "summary": audit.summary,
        "digests": content["digests"],
        "executor": content["executor"],
        "seconds": content["seconds"],
        "stored_bytes": folder_bytes(folder),
    }


def kind_or_refuse(path: Path) -> str:
    """Return what a folder holds, or raise the error that says why it holds neither."""
    kind = manifest.kind_of(path)
    if kind is not None:
        return kind
    refuse_unfinished(path)
    raise DamagedError(f"{path / manifest.MANIFEST}: cannot be read; make it anew")


def refuse_unfinished(path: Path) -> None:
    """Raise `StoreError` where a folder is none that pixsim finished, or has lost its manifest."""
    if exists(path / manifest.MANIFEST):
        return
    manifest.refuse_other_place(path)
    of_run = (METRICS_FILE, PREDICTIONS, run_files.PROTOTYPES)
    is_run = any(exists(path / name) for name in of_run)
    kind = manifest.made_in(path) or (manifest.RUN if is_run else None)
    if kind is None:
        raise manifest.not_finished(path)
    manifest.read_manifest(path, kind)


@checked
def digest(
    path: Path | str, storage_options: Mapping[str, Any] | None = None
) -> dict[str, str | None]:
    """Read a store or a run whole and return its digests: equal content, equal digests.

    Parameters
    ----------
    path
        The folder of a store or of a run, or its URL.
    storage_options
        fsspec's options for a URL; default: credentials from the environment.

    Raises
    ------
    DamagedError
        Where what is there is not what the manifest recorded.
    """
    folder = locate(path, storage_options)
    kind = kind_or_refuse(folder)
    if kind == manifest.IMAGES:
        recorded = {"images": manifest.read_manifest(folder, manifest.IMAGES)["digest"]}
        computed: dict[str, str | None] = {"images": digest_images(folder)}
    elif kind == manifest.AUDIT:
        recorded = open_audit(folder).manifest["digests"]
        computed = digest_audit(folder)
    else:
        recorded = open_run(folder).manifest["digests"]
        computed = digest_run(folder).as_dict()
    for name, value in computed.items():
        if recorded[name] != value:
            raise DamagedError(
                f"{folder}: {name} have digest {value}, the manifest recorded {recorded[name]}; "
                "they were changed after they were written: make it anew"
            )
    return computed


def digest_audit(path: Path) -> dict[str, str | None]:
    """Read a whole audit and return the digests of what it holds now."""
    content, lists = open_audit(path).manifest, ColumnDigest()
    for index in range(len(content[NEIGHBOURS]["partitions"])):
        lists.update(tables.read_part(part_path(path, index, NEIGHBOURS), DIGESTED_NEIGHBOURS))
    found = {name: audit_files.read_digest(path, name) for name in audit_files.TABLES}
    digests = {NEIGHBOURS: lists.result(content["measures"]), **found}
    return {**digests, "audit": audit_files.audit_digest(digests)}


def digest_run(path: Path) -> RunDigests:
    """Read a whole run and return the digests of what it holds now."""
    content = open_run(path).manifest
    metrics, header = content["settings"]["metrics"], content["class_names"]
    written = content["digests"]["distances"] is not None
    predictions, distances = ColumnDigest(), ColumnDigest()
    for index, part in enumerate(content["partitions"]):
        predictions.update(tables.read_part(part_path(path, index), DIGESTED))
        if written:
            block = run_files.read_distances(
                path / run_files.DISTANCES, part["start"], part["stop"]
            )
            distances.update(distance_columns(block, metrics))
    opened = run_files.open_prototypes(
        path / run_files.PROTOTYPES, content["digests"]["prototypes"]
    )
    neighbours = ColumnDigest()
    searched = run_files.tables_of(content).get(NEIGHBOURS, [])
    for index in range(len(searched)):
        rows = tables.read_part(part_path(path, index, NEIGHBOURS), DIGESTED_NEIGHBOURS)
        neighbours.update(rows)
    return RunDigests(
        prototypes_digest(opened),
        distances.result(header) if written else None,
        predictions.result(header),
        neighbours.result(header) if NEIGHBOURS in content else None,
    )


def grid_of_images(path: Path, split: str) -> Image.Image:
    """Draw the first images of each class of a split, a row a class."""
    content = manifest.read_manifest(path, manifest.IMAGES)
    info = image_store.require_split(content, split, path)
    stop = min(info["shard"], info["count"])
    images, labels = read_checked(path, content["digest"], split, 0, stop)
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
