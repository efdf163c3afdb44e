"""Images in files of arrays, of any size, local or remote: `.npz`, `.npy`, IDX and HDF5.

Names tell which arrays are images and which labels, as `array_names` says, for the
arrays of an archive as for files that lie beside each other. Only headers are read at first, then
ranges, so that memory stays that of one partition. The data of every array of an archive that is
used is compared with its checksum once, before any of it is read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

from pipeline.core.errors import ShapeError, SourceError, listed
from pipeline.core.paths import shown
from pipeline.sources.array_files import (
    ARCHIVE_SUFFIX,
    ARRAY_SUFFIX,
    IDX_SUFFIXES,
    Archive,
    StoredArray,
    open_archive,
    open_array,
    open_idx,
)
from pipeline.sources.array_names import (
    IMAGE,
    LABEL,
    NAMES,
    Role,
    choose,
    label_spellings,
    pick_splits,
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
from pipeline.sources.file_names import files_in, is_container, split_of, words_of
from pipeline.sources.hdf5 import SUFFIXES as HDF5_SUFFIXES
from pipeline.sources.hdf5 import Hdf5Archive, StoredDataset, open_hdf5, open_only
from pipeline.sources.labels import decoded
from pipeline.sources.notes import Notes
from pipeline.storage.folders import exists

SUFFIXES = (ARCHIVE_SUFFIX, ARRAY_SUFFIX, *IDX_SUFFIXES, *HDF5_SUFFIXES)
_SHOWN = 5
Array = StoredArray | StoredDataset
_NAMES_BYTES = 2**26


def open_numpy(
    paths: Mapping[str | None, Sequence[Path]],
    class_names: Sequence[str] | None = None,
    split: str = "train",
    variables: Mapping[str, str] | None = None,
    shape: tuple[int, ...] | None = None,
) -> ArraySource:
    """Open images in `.npz`, `.npy`, IDX and HDF5 files.

    An archive, `.npz` or HDF5, holds `SPLIT_images` and `SPLIT_labels`, or `x_SPLIT` and `y_SPLIT`
    as Keras has it, or arrays of other usual names (see `array_names`), and optionally
    `class_names`. A file of one array holds the images of one split, named like `train_images.npy`
    or `train-images-idx3-ubyte.gz`; its labels are beside it as `train_labels.npy`, or are given
    with it. A file `class_names.npy` may be among those given.

    `paths` are for each split its files, or folders of them, in order; for None those whose names,
    or the names in which, say what the splits are, else they are `split`. `class_names` are by
    default those in the archive, else the distinct texts, sorted, else the codes themselves.
    `variables` say what `image` and `label` are called, if not as usual; `{split}` in it stands for
    the split. `shape` is that of images whose pixels lie in a row.
    """
    reader = _Reader(split, variables or {}, shape)
    for name, files in files_in(paths, SUFFIXES).items():
        reader.add_files(files, name)
    if not reader.parts:
        raise SourceError("no .npz or .npy file was given, expected one at least")
    check_parts(reader.parts)
    names = reader.notes.class_names if class_names is None else class_names
    labelling = survey_parts(reader.parts, names)
    everything = all_parts(reader.parts)
    arrays = {name: [_provenance(part) for part in parts] for name, parts in reader.parts.items()}
    kinds = {_kind(part.images) for part in everything}
    provenance = {"kind": kinds.pop() if len(kinds) == 1 else "numpy", "arrays": arrays}
    return ArraySource(
        reader.parts,
        labelling,
        max(scale_of(part.images.dtype) for part in everything),
        provenance if shape is None else {**provenance, "shape": list(shape)},
        remarks=remarks_on(reader.parts, labelling, reader.notes),
    )


def _kind(images: Any) -> str:
    suffix = images.path.suffix.lower()
    if suffix in (ARCHIVE_SUFFIX, ARRAY_SUFFIX):
        return str(suffix[1:])
    return "hdf5" if suffix in HDF5_SUFFIXES else "idx"


def _provenance(part: ArrayPart) -> dict[str, Any]:
    images, labels = cast(Any, part.images), cast(Any, part.labels)
    return {
        "file": images.path.name,
        "images": dict(images.identity),
        "labels": None if labels is None else dict(labels.identity),
    }


class _Lone(NamedTuple):
    """A file of one array: what its name says, and how it is opened."""

    path: Path
    role: Role | None
    open: Callable[[], Array]


@dataclass
class _Reader:
    """Opens files one by one, and keeps what they hold."""

    default: str
    variables: Mapping[str, str]
    shape: tuple[int, ...] | None = None
    parts: dict[str, list[ArrayPart]] = field(default_factory=dict)
    notes: Notes = field(default_factory=Notes)

    def add_files(self, paths: Sequence[Path], split: str | None) -> None:
        """Open files; `split` is the one that they hold, None: those that their names tell of."""
        lone = []
        for path in paths:
            suffix = path.suffix.lower()
            if suffix == ARCHIVE_SUFFIX:
                # of one alone its arrays tell, as they always did
                default = split_of(path.name) if len(paths) > 1 else None
                with open_archive(path) as archive:
                    self._add_archive(path, archive, split, default)
            elif suffix in HDF5_SUFFIXES:
                with open_hdf5(path) as file:
                    if len(file.names) == 1:
                        role = role_of(file.names[0], self.variables)
                        lone.append(_Lone(path, _of_file(path, role), partial(open_only, path)))
                    else:
                        self._add_archive(path, file, split, split_of(path.name))
            elif suffix == ARRAY_SUFFIX:
                role = _stem_role(path.stem, self.variables)
                lone.append(_Lone(path, role, partial(open_array, path)))
            elif _is_idx(path):
                if path.with_suffix("") not in paths or suffix != ".gz":  # it lies beside unpacked
                    role = _stem_role(_idx_parts(path)[0], self.variables)
                    lone.append(_Lone(path, _of_file(path, role), partial(open_idx, path)))
            else:
                raise SourceError(
                    f"{shown(path)}: expected a file named .npz, .npy, .h5, or as IDX files are, "
                    "such as train-images-idx3-ubyte"
                )
        self._add_lone(lone, split)

    def _add_archive(
        self, path: Path, archive: Archive | Hdf5Archive, split: str | None, default: str | None
    ) -> None:
        """Add what an archive holds, and check the content of every array that is used."""
        title, headers = shown(path), _headers(archive)
        default = default or self.default
        chosen = choose(title, headers, default, self.variables, archive.others)
        pairs = pick_splits(f"{title}: holds the splits", chosen.pairs, split)
        names = [name for pair in pairs.values() for name in pair if name is not None]
        arrays = {name: headers[name] or archive.open(name) for name in names}
        for part, (images, labels) in pairs.items():
            self._add(part, arrays[images], None if labels is None else arrays[labels])
        if chosen.names is not None:
            self._add_names(archive.open(chosen.names))
        for name in names:
            archive.check(name)
        if chosen.left_out:
            self.notes.remarks.append(f"{title}: left out {', '.join(chosen.left_out)}")

    def _add_lone(self, files: Sequence[_Lone], split: str | None) -> None:
        """Add files of one array: those of images, each with the labels given or beside it."""
        of_kind: dict[str, list[_Lone]] = {IMAGE: [], LABEL: [], NAMES: []}
        for file in files:
            of_kind[IMAGE if file.role is None else file.role.kind].append(file)
        images, given = of_kind[IMAGE], {file.path: file for file in of_kind[LABEL]}
        for file in of_kind[NAMES]:
            self._add_names(file.open())
        if given and not images:
            raise SourceError(f"{shown(next(iter(given)))}: holds labels, expected images as well")
        if split is None:
            _check_sets([file.path for file in images])
        used = set()
        for file in images:
            mine = file.role.split if file.role is not None else None
            path = _labels_beside(file.path, given)
            only = len(images) == len(given) == 1
            alike = [p for p, label in given.items() if only or label.role.split == mine]  # type: ignore[union-attr]
            if path is None and len(alike) == 1:
                path = alike[0]
            used.add(path)
            labels = given[path].open() if path in given else path and _open_lone(path)
            self._add(split or mine or self.default, file.open(), labels)
        _check_left_over([file.path for file in images], [p for p in given if p not in used])
        if used <= {None}:
            _check_series([file.path for file in images if file.role is None])

    def _add(self, split: str, images: Any, labels: Any) -> None:
        if self.shape is not None and len(images.shape) == 2:
            images = _folded(images, self.shape)
        shape, dtype = (None, images.dtype) if labels is None else (labels.shape, labels.dtype)
        first = check_shapes(images.title, images.shape, shape, dtype)
        if first:
            self.notes.remarks.append(
                f"{images.title}: channels first, as its shape {images.shape} shows"
            )
        self.parts.setdefault(split, []).append(ArrayPart(images, labels, first))

    def _add_names(self, array: Array) -> None:
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


def _headers(archive: Archive | Hdf5Archive) -> dict[str, Array | None]:
    """Return each array of an archive; None for one that cannot be read."""
    headers: dict[str, Array | None] = dict.fromkeys(archive.names)
    for name in archive.names:
        with suppress(Exception):  # of one that is used it comes again
            headers[name] = archive.open(name)
    return headers


def _folded(images: Array, sides: tuple[int, ...]) -> Array:
    """Return images whose pixels lie in a row with the sides that they have."""
    count, size = images.shape
    if math.prod(sides) != size or getattr(images, "fortran", False):
        raise ShapeError(
            f"{images.title}: {size:,} pixels in a row, expected {math.prod(sides):,} in C order "
            f"for shape {list(sides)}; correct shape, or save np.ascontiguousarray(...)"
        )
    return replace(images, shape=(count, *sides))


def _open_lone(path: Path) -> Array:
    return open_array(path) if path.suffix.lower() == ARRAY_SUFFIX else open_idx(path)


def _stem_role(stem: str, variables: Mapping[str, str]) -> Role | None:
    """Return what the name of a file of one array says."""
    role = role_of(stem, variables)
    if role is None and "labels" in stem.lower():
        return Role(LABEL, "", "labels")
    return role


def _of_file(path: Path, role: Role | None) -> Role | None:
    """Return a role of which the name of the file says the split."""
    split = split_of(path.name)
    return role if role is None or split is None else role._replace(split=split)


def _is_idx(path: Path) -> bool:
    return path.name.lower().endswith(IDX_SUFFIXES)


def _idx_parts(path: Path) -> tuple[str, str]:
    """Return what an IDX file is called, and the rest: `train-images`, `-idx3-ubyte.gz`."""
    ending = max((s for s in IDX_SUFFIXES if path.name.lower().endswith(s)), key=len, default="")
    stem = path.name[: len(path.name) - len(ending)].rstrip("-.")
    return stem, path.name[len(stem) :]


def _labels_beside(images: Path, given: Collection[Path]) -> Path | None:
    """Return the file of labels that belongs to one of images by its name, if there is one."""
    stem, endings = images.stem, [images.suffix]
    if _is_idx(images):
        stem, ending = _idx_parts(images)
        plain = re.sub(r"idx\d", "idx1", ending.removesuffix(".gz"))
        endings = [plain, f"{plain}.gz"]
    paths = [images.with_name(name + e) for name in label_spellings(stem) for e in endings]
    return next((path for path in paths if path in given or exists(path)), None)


def _check_sets(images: Sequence[Path]) -> None:
    """Raise where IDX files are those of several sets, as EMNIST comes."""
    sets: dict[str, list[str]] = {}
    for path in images:
        if _is_idx(path):
            words = words_of(_idx_parts(path)[0].encode())
            rest = " ".join(w for w in words if len(w) > 1 and not is_container(w.encode()))
            sets.setdefault(rest, []).append(path.name)
    if len(sets) > 1:
        raise SourceError(
            f"{shown(images[0].parent)}: holds IDX files of {len(sets)} sets, {listed(sets)}; give "
            "those of one by a pattern, such as "
            f"'{shown(images[0].parent)}/{next(iter(sets)).replace(' ', '-')}*'"
        )


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
