"""Images in NumPy's files: `.npz` archives and `.npy` arrays, of any size, local or remote.

Only headers are read at first, then ranges, so that memory stays that of one partition. No
partition is written from a damaged archive: its checksums are compared when it is opened.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.core.errors import SourceError
from pipeline.core.urls import shown
from pipeline.sources.array_parts import PartedSource, check_parts, remarks_on, survey_parts
from pipeline.sources.arrays import scale_of
from pipeline.sources.file_names import files_in
from pipeline.sources.numpy_arrays import ARCHIVE_SUFFIX, ARRAY_SUFFIX
from pipeline.sources.numpy_splits import Found

_SUFFIXES = (ARCHIVE_SUFFIX, ARRAY_SUFFIX)


def open_numpy(
    places: Mapping[str | None, Sequence[Path]],
    class_names: Sequence[str] | None = None,
    split: str = "train",
    variables: Mapping[str, str] | None = None,
) -> PartedSource:
    """Open images in `.npz` and `.npy` files.

    An archive holds `SPLIT_images` and `SPLIT_labels`, or `x_SPLIT` and `y_SPLIT` as Keras has it,
    or arrays of other usual names (see `array_names`), and optionally `class_names`. A `.npy` file
    holds the images of one split, named like `train_images.npy`; its labels lie beside it as
    `train_labels.npy`, or are given with it. A file `class_names.npy` may be among those given.

    Parameters
    ----------
    places
        For each split its files, or folders of them, in order; for None those whose names, or the
        names in which, tell of the splits.
    class_names
        The name of each label code; default: those in the archive, else the distinct texts, sorted,
        else the codes themselves.
    split
        The split of files of None whose names tell of none.
    variables
        What `image` and `label` are called, if not as usual; `{split}` in it stands for the split.

    Raises
    ------
    SourceError
        Where a file is missing, damaged, not of its kind, or holds another type of images.
    ShapeError
        Where images and labels, or the parts of a split, do not fit together.
    LabelError
        Where a label is outside the classes.
    """
    found = Found(split, variables or {})
    for name, paths in files_in(places, _SUFFIXES).items():
        kinds = {path: path.suffix.lower() for path in paths}
        for path, kind in kinds.items():
            if kind not in _SUFFIXES:
                raise SourceError(f"{shown(path)}: expected a file named .npz or .npy")
            if kind == ARCHIVE_SUFFIX:
                found.add_archive(path, name)
        found.add_arrays([path for path in paths if kinds[path] == ARRAY_SUFFIX], name)
    return _make_source(found, class_names)


def _make_source(found: Found, class_names: Sequence[str] | None) -> PartedSource:
    everything = [pair for pairs in found.pairs.values() for pair in pairs]
    if not everything:
        raise SourceError("no .npz or .npy file was given, expected one at least")
    check_parts(found.pairs)
    names = found.class_names if class_names is None else class_names
    labelling = survey_parts(found.pairs, names).labelling()
    scale = max(scale_of(pair.dtype) for pair in everything)
    kinds = {pair.images.path.suffix.lower()[1:] for pair in everything}
    provenance = {
        "kind": kinds.pop() if len(kinds) == 1 else "numpy",
        "arrays": {split: [p.describe() for p in pairs] for split, pairs in found.pairs.items()},
    }
    remarks = (*found.remarks, *remarks_on(found.pairs, labelling))
    return PartedSource(found.pairs, labelling, scale, provenance, remarks=remarks)


def read_npz(path: Path) -> PartedSource:
    """Open an `.npz` file with `SPLIT_images` and `SPLIT_labels`, and optionally `class_names`.

    The layout `x_train`, `y_train`, `x_test`, `y_test` that Keras uses is read too. Nothing is
    ever unpickled.

    Raises
    ------
    SourceError
        Where the file is no such archive.
    """
    return open_numpy({None: [path]})
