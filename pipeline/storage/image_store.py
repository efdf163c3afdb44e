"""The image-set store: one group per split, labelled so that any xarray user can open it.

`xr.open_zarr(path, group="train")` reads it without pixsim:

- attributes of the root and of each group: `class_names`, `full_scale`, `provenance`;
- `SPLIT/image` (sample, y, x[, channel]) uint8 or uint16, sharded; `SPLIT/label` (sample)
  int32, one chunk a shard, with `flag_values` and `flag_meanings`, which are CF's names of codes;
  `SPLIT/y`, `SPLIT/x`, `SPLIT/channel`, pixel positions;
- `samples.parquet` and `manifest.json` beside the groups.

The sample index is the position along `sample` and is not stored: as a coordinate it would be
read at every opening, one file per shard. `image_content.open_images` adds it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.core.classes import class_flags
from pipeline.core.errors import SchemaError, ShapeError, StoreError
from pipeline.core.partitions import Layout, image_bytes
from pipeline.core.paths import ABSENT
from pipeline.core.schema import CHANNEL, IMAGE, LABEL, PIXEL_DIMS, SAMPLE
from pipeline.storage.atomic import read_json
from pipeline.storage.store_array import StoreArray
from pipeline.storage.zarr_arrays import (
    ArrayTemplate,
    create_array,
    create_group,
    grow_array,
    write_array,
    write_shard,
)


@dataclass(frozen=True)
class SplitTemplate:
    """What a split of a store will hold: `count` images of `shape` and `dtype`."""

    count: int
    shape: tuple[int, ...]
    dtype: str
    layout: Layout

    @property
    def sample_bytes(self) -> int:
        return image_bytes(self.shape, self.dtype)

    def describe(self) -> dict[str, Any]:
        """Return it in plain values, as a manifest has it."""
        return {
            "count": self.count,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "chunk": self.layout.chunk,
            "shard": self.layout.shard,
        }


def pixel_dims(shape: Sequence[int]) -> tuple[str, ...]:
    return PIXEL_DIMS if len(shape) == 2 else (*PIXEL_DIMS, CHANNEL)


def _check_pixels(name: str, shape: Sequence[int], dtype: str) -> None:
    if dtype not in IMAGE.dtypes or len(shape) not in (2, 3) or 0 in shape:
        raise SchemaError(
            f"{name}: images of shape {tuple(shape)} and dtype {dtype}; expected (y, x) or "
            f"(y, x, channel), no side of them 0, in {' or '.join(IMAGE.dtypes)}"
        )


def create_images(
    path: Path,
    attributes: Mapping[str, Any],
    splits: Mapping[str, SplitTemplate],
    encoding: Mapping[str, Any] | None = None,
) -> None:
    """Create the empty arrays of an image set, or raise `SchemaError`; what exists is kept.

    `attributes` are those of the root and of each group, `encoding` is CF's `scale_factor` and
    `add_offset` of quantized images.
    """
    for name, template in splits.items():
        _check_pixels(name, template.shape, template.dtype)
    create_group(path, attributes)
    for split, template in splits.items():
        create_group(path, attributes, split)
        count, shape, layout = template.count, template.shape, template.layout
        dims = pixel_dims(shape)
        images = ArrayTemplate(
            (SAMPLE, *dims), (count, *shape), template.dtype,
            chunks=(layout.chunk, *shape),
            shards=(layout.shard, *shape),
            attributes=IMAGE.attributes | {"coordinates": LABEL.name} | dict(encoding or {}),
        )  # fmt: skip
        labels = ArrayTemplate(
            LABEL.dims, (count,), "int32", (layout.shard,), None, -1, LABEL.attributes,
            remarks=label_flags(attributes),
        )  # fmt: skip
        create_array(path, f"{split}/{IMAGE.name}", images)
        create_array(path, f"{split}/{LABEL.name}", labels)
        for dim, size in zip(dims, shape, strict=True):
            write_array(path, f"{split}/{dim}", (dim,), np.arange(size, dtype=np.int32), {})


def label_flags(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flags of labels in plain values, from the attributes of an image set."""
    flags = class_flags(dict(enumerate(attributes.get("class_names", ()))))
    return flags | {"flag_values": flags["flag_values"].tolist()}


def is_own_store(path: Path) -> bool:
    """Tell whether a folder is a Zarr group as `create_images` makes it, finished or not."""
    try:
        attributes = read_json(path / "zarr.json").get("attributes", {})
    except (*ABSENT, ValueError, AttributeError):
        return False
    return {"class_names", "full_scale", "provenance"} <= set(attributes)


def write_images(
    path: Path,
    split: str,
    start: int,
    images: npt.NDArray[Any],
    labels: npt.NDArray[np.int32],
    total: int | None = None,
) -> tuple[str, str]:
    """Write one whole shard; return the fingerprints of the files of images and of labels.

    It begins at image `start` of a split. `total` is how many images the split will have, where its
    arrays are about to grow.
    """
    return (
        write_shard(path, f"{split}/{IMAGE.name}", 0, start, images, total),
        write_shard(path, f"{split}/{LABEL.name}", 0, start, labels, total),
    )


def grow_images(
    path: Path, attributes: Mapping[str, Any], splits: Mapping[str, SplitTemplate]
) -> None:
    """Make the arrays of an image set as long as the templates say; their shards are there."""
    create_group(path, attributes)
    for split, template in splits.items():
        create_group(path, attributes, split)
        grow_array(path, f"{split}/{IMAGE.name}", template.count, {})
        grow_array(path, f"{split}/{LABEL.name}", template.count, label_flags(attributes))


def read_images(
    path: Path, split: str, start: int, stop: int
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int32]]:
    """Read images `start` to `stop` of a split and their labels.

    A shard that is missing or damaged is a `DamagedError`.
    """
    images, labels = (StoreArray(path, name).samples(start, stop) for name in array_names(split))
    return images, labels


def by_array(
    splits: Iterable[str], written: Iterable[tuple[str, Iterable[str]]]
) -> dict[str, list[str]]:
    """Gather by array what `write_images` returned for each shard of a split, in order."""
    gathered: dict[str, list[str]] = {name: [] for split in splits for name in array_names(split)}
    for split, marks in written:
        for name, mark in zip(array_names(split), marks, strict=True):
            gathered[name].append(mark)
    return gathered


def array_names(split: str) -> tuple[str, str]:
    """Return the names of the arrays of images and of labels of a split."""
    return f"{split}/{IMAGE.name}", f"{split}/{LABEL.name}"


def require_split(manifest: Mapping[str, Any], split: str, path: Path) -> dict[str, Any]:
    """Return what the manifest says of a split, or raise `StoreError` with those there are."""
    try:
        return dict(manifest["splits"][split])
    except KeyError:
        known = ", ".join(manifest["splits"])
        raise StoreError(f"{path}: has no split '{split}', expected one of {known}") from None


def labelled_counts(manifest: Mapping[str, Any]) -> dict[str, int]:
    """Return how many labelled images each split has."""
    return {name: sum(split["labels"]) for name, split in manifest["splits"].items()}


def require_alike(
    split: str, description: Mapping[str, Any], other: str, expected: Mapping[str, Any]
) -> None:
    """Raise `ShapeError` unless a split has images of the shape and type of another one.

    `description` and `expected` are what the manifest says of the two.
    """
    mine, theirs = (f"{part['shape']} {part['dtype']}" for part in (description, expected))
    if mine != theirs:
        height, width = expected["shape"][:2]
        cure = "bring both to one shape"
        if list(description["shape"][:2]) != [height, width]:
            cure += f", where they are read from files with --set images.resize=[{height},{width}]"
        raise ShapeError(
            f"split '{split}' has images of {mine}, expected those of '{other}', {theirs}; {cure}"
        )
