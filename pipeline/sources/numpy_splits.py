"""Which arrays in NumPy's files are images and which labels, and of which split: by their names.

Which names belong together is said in `array_names`, for the arrays of an archive as for files that
lie beside each other. The data of every array of an archive that is used is compared with its
checksum here, once, before any of it is read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.core.errors import SourceError
from pipeline.core.urls import shown
from pipeline.sources.array_names import (
    IMAGE,
    LABEL,
    NAMES,
    Header,
    Role,
    choose,
    label_spellings,
    role_of,
)
from pipeline.sources.arrays import NO_GAPS, Gaps, as_images, as_pixels, check_shapes, image_shape
from pipeline.sources.labels import decoded
from pipeline.sources.numpy_arrays import Archive, StoredArray, open_archive, open_array
from pipeline.storage.folders import exists

_SHOWN = 5
_NAMES_BYTES = 2**26


@dataclass(frozen=True)
class Pair:
    """The images of one part of a split and their labels; None where there are none.

    `channels_first` tells whether the images are stored as [sample, channel, y, x].
    """

    images: StoredArray
    labels: StoredArray | None
    channels_first: bool = False

    @property
    def title(self) -> str:
        return self.images.title

    @property
    def label_title(self) -> str:
        return self.title if self.labels is None else self.labels.title

    @property
    def shape(self) -> tuple[int, ...]:
        return image_shape(self.images.shape, self.channels_first)

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.images.dtype

    @property
    def gaps(self) -> Gaps:
        return NO_GAPS

    @property
    def label_dtype(self) -> np.dtype[Any] | None:
        return None if self.labels is None else self.labels.dtype

    def read_pixels(self, start: int, stop: int) -> npt.NDArray[Any]:
        return as_pixels(as_images(self.images.read(start, stop), self.channels_first))

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
    variables
        What `image` and `label` are called, if not as usual.
    class_names
        Where a file holds them.
    remarks
        What was left out, for the user.
    """

    default: str
    variables: Mapping[str, str] = field(default_factory=dict)
    pairs: dict[str, list[Pair]] = field(default_factory=dict)
    class_names: tuple[str, ...] | None = None
    remarks: list[str] = field(default_factory=list)

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
            title = shown(path)
            chosen = choose(title, _headers(archive), self.default, self.variables, archive.others)
            pairs = _wanted(title, chosen.pairs, split)
            names = [name for pair in pairs.values() for name in pair if name is not None]
            arrays = {name: archive.open(name) for name in names}
            for part, (images, labels) in pairs.items():
                self._add(part, arrays[images], None if labels is None else arrays[labels])
            if chosen.names is not None:
                self._add_names(archive.open(chosen.names))
            for name in names:
                archive.check(name)
            if chosen.left_out:
                self.remarks.append(f"{title}: left out {', '.join(chosen.left_out)}")

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
        roles = {path: _stem_role(path, self.variables) for path in paths}
        kinds = {path: IMAGE if role is None else role.kind for path, role in roles.items()}
        given = [path for path in paths if kinds[path] == LABEL]
        images = [path for path in paths if kinds[path] == IMAGE]
        for path in (path for path in paths if kinds[path] == NAMES):
            self._add_names(open_array(path))
        if given and not images:
            raise SourceError(f"{shown(given[0])}: holds labels, expected images as well")
        used: set[Path | None] = set()
        split_of = {p: r.split for p, r in roles.items() if r is not None}
        for path in images:
            labels = _labels_beside(path, given)
            alike = [p for p in given if p in split_of and split_of[p] == split_of.get(path)]
            if labels is None and len(images) == len(given) == 1:
                labels = given[0]
            elif labels is None and len(alike) == 1:
                labels = alike[0]
            used.add(labels)
            part = split or split_of.get(path) or self.default
            self._add(part, open_array(path), None if labels is None else open_array(labels))
        self._check_files(images, [p for p in images if roles[p] is None], given, used)

    def _check_files(
        self,
        images: Sequence[Path],
        unknown: Sequence[Path],
        given: Sequence[Path],
        used: Collection[Path | None],
    ) -> None:
        """Raise where files of labels are left over, or each file seems to be a class."""
        for path in given:
            if path not in used:
                names = ", ".join(p.name for p in images[:_SHOWN])
                raise SourceError(
                    f"{shown(path)}: holds labels of none of the images {names}; name both alike, "
                    "as train_images.npy and train_labels.npy, or give each split its two files: "
                    "splits: {train: [IMAGES.npy, LABELS.npy]}"
                )
        if len(unknown) > 1 and set(used) <= {None} and not _is_series(unknown):
            names = ", ".join(p.name for p in unknown[:_SHOWN])
            raise SourceError(
                f"{shown(unknown[0])}: is one of {len(unknown)} files without labels whose names "
                f"tell of no split ({names}, ...); if each is a class, save them as one archive: "
                "np.savez('all.npz', images=np.concatenate(ARRAYS), labels=np.repeat(NAMES, "
                "[len(a) for a in ARRAYS])); if they are parts, number them"
            )

    def _add(self, split: str, images: StoredArray, labels: StoredArray | None) -> None:
        shape, dtype = (None, images.dtype) if labels is None else (labels.shape, labels.dtype)
        first = check_shapes(images.title, images.shape, shape, dtype)
        if first:
            self.remarks.append(
                f"{images.title}: channels first, as its shape {images.shape} shows"
            )
        self.pairs.setdefault(split, []).append(Pair(images, labels, first))

    def _add_names(self, array: StoredArray) -> None:
        size = math.prod(array.shape) * array.dtype.itemsize
        if len(array.shape) != 1 or array.dtype.kind not in "iuSU" or size > _NAMES_BYTES:
            raise SourceError(
                f"{array.title}: holds {array.dtype} of shape {array.shape}, expected one name a "
                "class"
            )
        names = tuple(
            str(name) for name in decoded(array.read(0, array.shape[0]), array.title).tolist()
        )
        if self.class_names not in (None, names):
            raise SourceError(f"{shown(array.path)}: names other classes than the file before it")
        self.class_names = names


# names -------------------------------------------------------------------------------------------


def _headers(archive: Archive) -> dict[str, Header | None]:
    """Return what each array of an archive is; None for one that cannot be read."""
    found: dict[str, Header | None] = {}
    for name in archive.names:
        found[name] = None
        with suppress(Exception):  # of one that is used it comes again
            array = archive.open(name)
            found[name] = Header(array.shape, array.dtype)
    return found


def _wanted(
    title: str, pairs: dict[str, tuple[str, str | None]], split: str | None
) -> dict[str, tuple[str, str | None]]:
    """Return the pairs of an archive that are wanted: all, or those of one split."""
    if split is None:
        return pairs
    if split not in pairs and len(pairs) > 1:
        raise SourceError(
            f"{title}: holds the splits {', '.join(pairs)}, expected '{split}' or one only"
        )
    return {split: pairs.get(split) or next(iter(pairs.values()))}


def _stem_role(path: Path, variables: Mapping[str, str]) -> Role | None:
    """Return what the name of a file of one array says."""
    role = role_of(path.stem, variables)
    if role is None and "labels" in path.stem.lower():
        return Role(LABEL, "", "labels")
    return role


def _is_series(paths: Sequence[Path]) -> bool:
    """Tell whether the names of files differ by numbers only."""
    return len({re.sub(r"\d+", "", path.stem) for path in paths}) <= 1


def _labels_beside(images: Path, given: Collection[Path]) -> Path | None:
    """Return the file of labels that belongs to one of images by its name, if there is one."""
    places = [images.with_name(name + images.suffix) for name in label_spellings(images.stem)]
    return next((path for path in places if path in given or exists(path)), None)
