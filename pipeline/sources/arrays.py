"""Images that are arrays in memory, or in an `.npz` file."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.classes import check_labels
from pipeline.digests import array_digest
from pipeline.errors import ShapeError, SourceError
from pipeline.exact import largest_pixel
from pipeline.sources import Block, SplitInfo

_MOST_CLASSES = 2**31 - 1  # codes are int32
_NPZ_ERRORS = (
    OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError,
    RuntimeError, KeyError,
)  # fmt: skip

Arrays = Mapping[str, tuple[npt.NDArray[Any], npt.NDArray[Any]]]


@dataclass(frozen=True)
class ArraySource:
    """Splits given as arrays.

    Attributes
    ----------
    arrays
        For each split its images, [sample, y, x] or [sample, y, x, channel], uint8 or uint16,
        and its labels, [sample], integers.
    class_names
        The name of each label code.
    full_scale
        The pixel value that counts as 1.
    provenance
        Where the arrays come from.
    """

    arrays: Arrays
    class_names: tuple[str, ...]
    full_scale: int
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def splits(self) -> dict[str, SplitInfo]:
        return {
            name: SplitInfo(len(images), images.shape[1:], str(images.dtype))
            for name, (images, _) in self.arrays.items()
        }

    def read(self, split: str, start: int, stop: int) -> Block:
        images, labels = (array[start:stop] for array in self.arrays[split])
        origins = [f"{split}[{index}]" for index in range(start, stop)]
        return Block(images, labels.astype(np.int32), origins)

    def close(self) -> None:
        """Nothing is left open."""


def from_arrays(
    arrays: Arrays,
    class_names: Sequence[str] | None = None,
    full_scale: int | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> ArraySource:
    """Make a source of arrays.

    Parameters
    ----------
    arrays
        Split name -> (images, labels).
    class_names
        The name of each label code; default: the codes themselves, as text.
    full_scale
        The pixel value that counts as 1; default: the largest of the pixel type.
    provenance
        Where they come from; default: digests of the arrays.

    Raises
    ------
    ShapeError
        Where a split has not one label per image.
    SourceError, LabelError
        Where labels are not integers, or outside the classes.
    """
    for name, (images, labels) in arrays.items():
        if images.ndim not in (3, 4) or labels.shape != images.shape[:1]:
            raise ShapeError(
                f"split '{name}': images of shape {images.shape} and labels of {labels.shape}; "
                "expected (sample, y, x) or (sample, y, x, channel), and one label for each image"
            )
        if labels.dtype.kind not in "iu":
            raise SourceError(f"split '{name}': labels of {labels.dtype}, expected integer codes")
        check_labels(labels, _MOST_CLASSES if class_names is None else len(class_names))
    if class_names is None:
        largest = max(int(labels.max()) if len(labels) else -1 for _, labels in arrays.values())
        class_names = [str(code) for code in range(largest + 1)]
    if full_scale is None:
        first = next(iter(arrays.values()))[0]
        full_scale = largest_pixel(first.dtype) if first.dtype.kind == "u" else 1
    if provenance is None:
        digests = {k: [array_digest(a) for a in pair] for k, pair in arrays.items()}
        provenance = {"kind": "arrays", "sha256": digests}
    return ArraySource(dict(arrays), tuple(class_names), full_scale, dict(provenance))


def read_npz(path: Path) -> ArraySource:
    """Read an `.npz` file with `SPLIT_images` and `SPLIT_labels`, and optionally `class_names`.

    The layout `x_train`, `y_train`, `x_test`, `y_test` that Keras uses is read too. Nothing is
    ever unpickled.

    Raises
    ------
    SourceError
        Where the file is no such archive.
    """
    try:
        with zipfile.ZipFile(path):  # else NumPy would take a lone array, or a pickle, as well
            archive = np.load(path, allow_pickle=False)
        with archive:
            content = {name: archive[name] for name in archive.files}
    except _NPZ_ERRORS as error:
        raise SourceError(
            f"{path}: cannot be read as an .npz file without pickle: {error}"
        ) from None
    pairs: dict[str, tuple[npt.NDArray[Any], npt.NDArray[Any]]] = {}
    for name in content:
        for images, labels, split in (
            (name, name.removesuffix("_images") + "_labels", name.removesuffix("_images")),
            (name, "y_" + name.removeprefix("x_"), name.removeprefix("x_")),
        ):
            if split != name and labels in content:
                pairs[split] = content[images], content[labels].reshape(-1)
    if not pairs:
        raise SourceError(
            f"{path}: holds {', '.join(content) or 'nothing'}; expected arrays such as "
            "train_images and train_labels, test_images and test_labels"
        )
    names = [str(name) for name in content["class_names"]] if "class_names" in content else None
    source = from_arrays(pairs, names)
    provenance = {**source.provenance, "kind": "npz", "file": path.name}
    return ArraySource(source.arrays, source.class_names, source.full_scale, provenance)
