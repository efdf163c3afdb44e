"""What a store or a run is, in plain values: for `pixsim show` and `pixsim digest`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.core.arguments import checked
from pipeline.core.errors import DamagedError, StoreError
from pipeline.core.partitions import image_bytes
from pipeline.core.paths import locate
from pipeline.core.urls import shown
from pipeline.report.run import digest_run, open_run
from pipeline.storage import manifest
from pipeline.storage.folders import exists, is_folder, sizes_below
from pipeline.storage.image_content import digest_images, partition_table
from pipeline.storage.recorded_files import require_files_of, require_tables
from pipeline.storage.run_files import METRICS_FILE
from pipeline.storage.sample_tables import SAMPLES


def folder_bytes(path: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(sizes_below(path).values())


@checked
def describe(path: Path | str, storage_options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Describe an image set or a run from its manifest.

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
    `classes`, `metrics`, `arrays`, the rows of the prediction table, `digests`, `seconds`, bytes on
    disk.

    Raises
    ------
    StoreError
        Where the folder is neither, or was never finished.
    """
    folder = locate(path, storage_options)
    if kind_or_refuse(folder) == manifest.RUN:
        return _describe_run(folder)
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
    arrays = dict(run.prototypes.data_vars)
    if content["digests"]["distances"] is not None:
        arrays["distance"] = run.distances
    return {
        "kind": manifest.RUN,
        "path": shown(folder),
        "name": content["name"],
        "images": content["images"]["path"],
        "fit": content["settings"]["fit"],
        "evaluate": content["settings"]["evaluate"],
        "classes": content["class_names"],
        "metrics": {name: run.metrics[name] for name in content["settings"]["metrics"]},
        "arrays": {
            str(name): {
                "sizes": {str(dim): size for dim, size in array.sizes.items()},
                "dtype": str(array.dtype),
                "chunk": list(array.data.chunksize),
                "bytes": array.nbytes,
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


def kind_or_refuse(path: Path) -> str:
    """Return what a folder holds, or raise the error that says why it holds neither."""
    kind = manifest.kind_of(path)
    if kind is not None:
        return kind
    if is_folder(path) and not exists(path / manifest.MANIFEST):
        looks_like_run = exists(path / METRICS_FILE) or exists(path / "predictions")
        manifest.read_manifest(path, manifest.RUN if looks_like_run else manifest.IMAGES)
    if not is_folder(path):
        raise StoreError(f"{path}: no such folder, expected an image set or a run")
    raise DamagedError(f"{path / manifest.MANIFEST}: cannot be read; make it anew")


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
    if kind_or_refuse(folder) == manifest.IMAGES:
        recorded = {"images": manifest.read_manifest(folder, manifest.IMAGES)["digest"]}
        found: dict[str, str | None] = {"images": digest_images(folder)}
    else:
        recorded = open_run(folder).manifest["digests"]
        found = digest_run(folder).as_dict()
    for name, value in found.items():
        if recorded[name] != value:
            raise DamagedError(
                f"{folder}: {name} have digest {value}, the manifest recorded {recorded[name]}; "
                "they were changed after they were written: make it anew"
            )
    return found
