"""Images in NumPy's files: `.npz` archives and `.npy` arrays, of any size, local or remote.

Names tell which arrays are images and which labels, as `array_names` says, for the
arrays of an archive as for files that lie beside each other. Only headers are read at first, then
ranges, so that memory stays that of one partition. The data of every array of an archive that is
used is compared with its checksum once, before any of it is read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from pipeline.core.errors import SourceError
from pipeline.core.paths import shown
from pipeline.sources.array_files import (
    ARCHIVE_SUFFIX,
    ARRAY_SUFFIX,
    Archive,
    StoredArray,
    open_archive,
    open_array,
)
from pipeline.sources.array_names import (
    IMAGE,
    LABEL,
    NAMES,
    ArrayHeader,
    Role,
    choose,
    label_spellings,
    role_of,
)
from pipeline.sources.array_source import (
    ArrayPart,
    ArraySource,
    all_parts,
    check_parts,
    remarks_on,
    scale_of,
    survey_parts,
)
from pipeline.sources.arrays import check_shapes
from pipeline.sources.file_names import files_in
from pipeline.sources.labels import decoded
from pipeline.sources.notes import Notes
from pipeline.storage.folders import exists

_SUFFIXES = (ARCHIVE_SUFFIX, ARRAY_SUFFIX)
_SHOWN = 5
_NAMES_BYTES = 2**26


def open_numpy(
    paths: Mapping[str | None, Sequence[Path]],
    class_names: Sequence[str] | None = None,
    split: str = "train",
    variables: Mapping[str, str] | None = None,
) -> ArraySource:
    """Open images in `.npz` and `.npy` files.

    An archive holds `SPLIT_images` and `SPLIT_labels`, or `x_SPLIT` and `y_SPLIT` as Keras has it,
    or arrays of other usual names (see `array_names`), and optionally `class_names`. A `.npy` file
    holds the images of one split, named like `train_images.npy`; its labels are beside it as
    `train_labels.npy`, or are given with it. A file `class_names.npy` may be among those given.

    `paths` are for each split its files, or folders of them, in order; for None those whose names,
    or the names in which, say what the splits are, else they are `split`. `class_names` are by
    default those in the archive, else the distinct texts, sorted, else the codes themselves.
    `variables` say what `image` and `label` are called, if not as usual; `{split}` in it stands for
    the split.
    """
    reader = _Reader(split, variables or {})
    for name, files in files_in(paths, _SUFFIXES).items():
        for path in files:
            if path.suffix.lower() not in _SUFFIXES:
                raise SourceError(f"{shown(path)}: expected a file named .npz or .npy")
            if path.suffix.lower() == ARCHIVE_SUFFIX:
                reader.add_archive(path, name)
        reader.add_arrays([p for p in files if p.suffix.lower() == ARRAY_SUFFIX], name)
    if not reader.parts:
        raise SourceError("no .npz or .npy file was given, expected one at least")
    check_parts(reader.parts)
    names = reader.notes.class_names if class_names is None else class_names
    labelling = survey_parts(reader.parts, names)
    everything = all_parts(reader.parts)
    arrays = {name: [_provenance(part) for part in parts] for name, parts in reader.parts.items()}
    kinds = {item["file"].lower().rpartition(".")[2] for items in arrays.values() for item in items}
    return ArraySource(
        reader.parts,
        labelling,
        max(scale_of(part.images.dtype) for part in everything),
        {"kind": kinds.pop() if len(kinds) == 1 else "numpy", "arrays": arrays},
        remarks=remarks_on(reader.parts, labelling, reader.notes),
    )


def _provenance(part: ArrayPart) -> dict[str, Any]:
    images, labels = cast(StoredArray, part.images), cast(StoredArray | None, part.labels)
    return {
        "file": images.path.name,
        "images": dict(images.identity),
        "labels": None if labels is None else dict(labels.identity),
    }


@dataclass
class _Reader:
    """Opens files one by one, and keeps what they hold."""

    default: str
    variables: Mapping[str, str]
    parts: dict[str, list[ArrayPart]] = field(default_factory=dict)
    notes: Notes = field(default_factory=Notes)

    def add_archive(self, path: Path, split: str | None) -> None:
        """Open an `.npz` archive and check the content of every array that is used.

        `split` is the one that it holds; None: those that its names tell of.
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
                self.notes.remarks.append(f"{title}: left out {', '.join(chosen.left_out)}")

    def add_arrays(self, paths: Sequence[Path], split: str | None) -> None:
        """Open `.npy` files: those of images, each with the labels given or beside it.

        `split` is that of the images; None: the one that the name of each tells of.
        """
        roles = {path: _stem_role(path, self.variables) for path in paths}
        of_kind: dict[str, list[Path]] = {IMAGE: [], LABEL: [], NAMES: []}
        for path, role in roles.items():
            of_kind[IMAGE if role is None else role.kind].append(path)
        images, given = of_kind[IMAGE], of_kind[LABEL]
        for path in of_kind[NAMES]:
            self._add_names(open_array(path))
        if given and not images:
            raise SourceError(f"{shown(given[0])}: holds labels, expected images as well")
        split_of = {path: role.split for path, role in roles.items() if role is not None}
        used = set()
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
        _check_left_over(images, [path for path in given if path not in used])
        unknown = [path for path in images if roles[path] is None]
        if used <= {None}:
            _check_series(unknown)

    def _add(self, split: str, images: StoredArray, labels: StoredArray | None) -> None:
        shape, dtype = (None, images.dtype) if labels is None else (labels.shape, labels.dtype)
        first = check_shapes(images.title, images.shape, shape, dtype)
        if first:
            self.notes.remarks.append(
                f"{images.title}: channels first, as its shape {images.shape} shows"
            )
        self.parts.setdefault(split, []).append(ArrayPart(images, labels, first))

    def _add_names(self, array: StoredArray) -> None:
        size = math.prod(array.shape) * array.dtype.itemsize
        if len(array.shape) != 1 or array.dtype.kind not in "iuSU" or size > _NAMES_BYTES:
            raise SourceError(
                f"{array.title}: holds {array.dtype} of shape {array.shape}, expected one name a "
                "class"
            )
        values = decoded(array.read(0, array.shape[0]), array.title).tolist()
        names = tuple(str(name) for name in values)
        if self.notes.class_names not in (None, names):
            raise SourceError(f"{shown(array.path)}: names other classes than the file before it")
        self.notes.class_names = names


def _headers(archive: Archive) -> dict[str, ArrayHeader | None]:
    """Return what each array of an archive is; None for one that cannot be read."""
    headers: dict[str, ArrayHeader | None] = dict.fromkeys(archive.names)
    for name in archive.names:
        with suppress(Exception):  # of one that is used it comes again
            array = archive.open(name)
            headers[name] = ArrayHeader(array.shape, array.dtype)
    return headers


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


def _labels_beside(images: Path, given: Collection[Path]) -> Path | None:
    """Return the file of labels that belongs to one of images by its name, if there is one."""
    paths = [images.with_name(name + images.suffix) for name in label_spellings(images.stem)]
    return next((path for path in paths if path in given or exists(path)), None)


def _check_left_over(images: Sequence[Path], labels: Sequence[Path]) -> None:
    if labels:
        names = ", ".join(path.name for path in images[:_SHOWN])
        raise SourceError(
            f"{shown(labels[0])}: holds labels of none of the images {names}; name both alike, "
            "as train_images.npy and train_labels.npy, or give each split its two files: "
            "splits: {train: [IMAGES.npy, LABELS.npy]}"
        )


def _check_series(unknown: Sequence[Path]) -> None:
    """Raise where each file seems to be a class: names that do not differ by numbers only."""
    if len({re.sub(r"\d+", "", path.stem) for path in unknown}) > 1:
        names = ", ".join(path.name for path in unknown[:_SHOWN])
        raise SourceError(
            f"{shown(unknown[0])}: is one of {len(unknown)} files without labels whose names "
            f"tell of no split ({names}, ...); if each is a class, save them as one archive: "
            "np.savez('all.npz', images=np.concatenate(ARRAYS), labels=np.repeat(NAMES, "
            "[len(a) for a in ARRAYS])); if they are parts, number them"
        )
