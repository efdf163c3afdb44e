"""Which arrays in NumPy's files are images and which labels, and of which split: by their names.

In an archive `SPLIT_images` and `SPLIT_labels`, or `x_SPLIT` and `y_SPLIT` as Keras has it, belong
together; so do files of such names that lie beside each other. The data of every array of an
archive that is used is compared with its checksum here, once, before any of it is read.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import SourceError
from pipeline.places import exists
from pipeline.sources.arrays import as_pixels, check_shapes
from pipeline.sources.labels import decoded
from pipeline.sources.stored_arrays import Archive, StoredArray, open_archive, open_array
from pipeline.urls import shown

CLASS_NAMES = "class_names"
_NAMES_BYTES = 2**26


@dataclass(frozen=True)
class Pair:
    """The images of one part of a split and their labels; None where there are none."""

    images: StoredArray
    labels: StoredArray | None

    @property
    def title(self) -> str:
        return self.images.title

    @property
    def shape(self) -> tuple[int, ...]:
        return self.images.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.images.dtype

    @property
    def label_dtype(self) -> np.dtype[Any] | None:
        return None if self.labels is None else self.labels.dtype

    def read_pixels(self, start: int, stop: int) -> npt.NDArray[Any]:
        return as_pixels(self.images.read(start, stop))

    def read_labels(self, start: int, stop: int) -> npt.NDArray[Any]:
        assert self.labels is not None  # noqa: S101 # else there is no `label_dtype`
        return self.labels.read(start, stop)

    def close(self) -> None:
        for array in (self.images, self.labels):
            if array is not None:
                array.close()

    def describe(self) -> dict[str, Any]:
        """Return which arrays it is made of, for the provenance."""
        return {
            "file": self.images.path.name,
            "images": dict(self.images.identity),
            "labels": None if self.labels is None else dict(self.labels.identity),
        }


@dataclass
class Found:
    """What was found in all files so far.

    Attributes
    ----------
    default
        The split of arrays whose names tell of none.
    pairs
        For each split its parts.
    class_names
        Where a file holds them.
    """

    default: str
    pairs: dict[str, list[Pair]] = field(default_factory=dict)
    class_names: tuple[str, ...] | None = None

    def add_archive(self, path: Path, split: str | None) -> None:
        """Open an `.npz` archive and check the content of every array that is used.

        Parameters
        ----------
        path
            The file.
        split
            The one that it holds; None: those that its names tell of.

        Raises
        ------
        SourceError
            Where it is damaged, or its names do not tell images and labels apart.
        """
        with open_archive(path) as archive:
            pairs = _chosen(archive, split, self.default)
            names = [name for pair in pairs.values() for name in pair if name is not None]
            arrays = {name: archive.open(name) for name in names}
            for part, (images, labels) in pairs.items():
                self._add(part, arrays[images], None if labels is None else arrays[labels])
            if CLASS_NAMES in archive.names:
                self._add_names(archive.open(CLASS_NAMES))
            for name in names:
                archive.check(name)

    def add_arrays(self, paths: Sequence[Path], split: str | None) -> None:
        """Open `.npy` files: those of images, each with the labels given or beside it.

        Parameters
        ----------
        paths
            The files.
        split
            Of the images; None: the one that the name of each tells of.

        Raises
        ------
        SourceError
            Where one is damaged, or there are labels only.
        """
        given = [path for path in paths if _is_labels(path.stem)]
        named = [path for path in paths if path.stem == CLASS_NAMES]
        images = [path for path in paths if path not in given and path not in named]
        for path in named:
            self._add_names(open_array(path))
        if given and not images:
            raise SourceError(f"{shown(given[0])}: holds labels, expected images as well")
        for path in images:
            labels = _labels_beside(path, given)
            if labels is None and len(images) == len(given) == 1:
                labels = given[0]
            part = split or _split_of(path.stem) or self.default
            self._add(part, open_array(path), None if labels is None else open_array(labels))

    def _add(self, split: str, images: StoredArray, labels: StoredArray | None) -> None:
        shape, dtype = (None, images.dtype) if labels is None else (labels.shape, labels.dtype)
        check_shapes(images.title, images.shape, shape, dtype)
        self.pairs.setdefault(split, []).append(Pair(images, labels))

    def _add_names(self, array: StoredArray) -> None:
        size = math.prod(array.shape) * array.dtype.itemsize
        if len(array.shape) != 1 or size > _NAMES_BYTES:
            raise SourceError(
                f"{array.title}: has shape {array.shape} and {size} bytes, expected one name a "
                "class"
            )
        names = tuple(
            str(name) for name in decoded(array.read(0, array.shape[0]), array.title).tolist()
        )
        if self.class_names not in (None, names):
            raise SourceError(f"{shown(array.path)}: names other classes than the file before it")
        self.class_names = names


# names -------------------------------------------------------------------------------------------


def _chosen(archive: Archive, split: str | None, default: str) -> dict[str, tuple[str, str | None]]:
    """Return the pairs of an archive that are wanted: all, or those of one split."""
    title, names = shown(archive.path), archive.names
    pairs = _named_pairs(names, default)
    if not pairs:
        raise SourceError(
            f"{title}: holds {', '.join(names) or 'nothing'}; expected arrays such as "
            "train_images and train_labels, test_images and test_labels"
        )
    used = {name for pair in pairs.values() for name in pair} | {CLASS_NAMES}
    others = [*archive.others, *(name for name in names if name not in used)]
    for images, labels in pairs.values():
        if labels is None and others:  # one of them may be the labels, under a damaged name
            raise SourceError(
                f"{title}: holds {images} without {_labels_of(images)}, and "
                f"{', '.join(others)}; name the labels so, or save unlabelled images alone"
            )
    if split is None:
        return pairs
    if split not in pairs and len(pairs) > 1:
        raise SourceError(
            f"{title}: holds the splits {', '.join(pairs)}, expected '{split}' or one only"
        )
    return {split: pairs.get(split) or next(iter(pairs.values()))}


def _named_pairs(names: Collection[str], default: str) -> dict[str, tuple[str, str | None]]:
    """Return for each split that names of arrays tell of the images' name and the labels'."""
    pairs: dict[str, tuple[str, str | None]] = {}
    for name in names:
        split, labels = _split_of(name), _labels_of(name)
        if split is None or labels is None:
            continue
        if labels in names or not name.startswith("x_"):  # x_mean may be anything
            pairs[split or default] = name, labels if labels in names else None
    return pairs


def _split_of(name: str) -> str | None:
    """Return the split that the name of an array tells of; "" for the only one, None for none."""
    if name == "images":
        return ""
    if name.endswith("_images"):
        return name.removesuffix("_images")
    if name.startswith(("images_", "x_")):
        return name.removeprefix("images_").removeprefix("x_")
    return None


def _labels_of(name: str) -> str | None:
    """Return what the labels are called that belong to images of this name."""
    if name.startswith("x_"):
        return "y_" + name.removeprefix("x_")
    return name.replace("images", "labels") if "images" in name else None


def _labels_beside(images: Path, given: Collection[Path]) -> Path | None:
    """Return the file of labels that belongs to one of images by its name, if there is one."""
    name = _labels_of(images.stem)
    path = None if name is None else images.with_name(name + images.suffix)
    return path if path is not None and (path in given or exists(path)) else None


def _is_labels(name: str) -> bool:
    return "labels" in name or name.startswith("y_")
