"""Images that are arrays in memory; and what all sources of arrays share.

That is: which pixel types are taken and in which type they are given, how labels, codes or texts,
become codes, and how one split is read that lies in several parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from pipeline.classes import check_labels
from pipeline.digests import array_digest
from pipeline.errors import ConfigError, LabelError, ShapeError, SourceError
from pipeline.exact import largest_pixel
from pipeline.places import is_remote, version_tag
from pipeline.schema import UNLABELLED
from pipeline.settings import nearest
from pipeline.sources import Block, SplitInfo
from pipeline.sources.given import as_names, as_scale, as_splits
from pipeline.yaml_files import describe

_MOST_CODES = 10**6  # without names; one code more is more likely an error than a class
_MOST_CLASSES = 2**31 - 1  # codes are int32
_FLOAT_BYTES = 8
_BLOCK_BYTES = 2**24

Array = npt.NDArray[Any]
Arrays = Mapping[str, tuple[Array, Array]]


def pixel_type(dtype: np.dtype[Any]) -> str | None:
    """Return the type in which images of `dtype` are given, None where they cannot be used.

    Truth values are given as 0 and 1, 16-bit floats as 32-bit ones; bytes in native order.
    """
    if dtype.kind == "b":
        return "uint8"
    if dtype.kind == "f" and dtype.itemsize <= _FLOAT_BYTES:
        return "float64" if dtype.itemsize == _FLOAT_BYTES else "float32"
    return dtype.name if dtype.name in ("uint8", "uint16") else None


def as_pixels(images: Array) -> Array:
    """Return images in the type that `pixel_type` says."""
    return images.astype(pixel_type(images.dtype) or images.dtype, copy=False)


def scale_of(dtype: np.dtype[Any]) -> int:
    """Return the pixel value that counts as 1 in images of `dtype`, unless one is given."""
    return largest_pixel(dtype) if dtype.kind == "u" else 1


def block_length(shape: Sequence[int], dtype: np.dtype[Any]) -> int:
    """Return how many samples of an array to read at once where all are looked at."""
    sample = int(np.prod(shape[1:], dtype=object)) * dtype.itemsize
    return max(1, _BLOCK_BYTES // max(1, sample))


def refuse_pixels(where: str, dtype: np.dtype[Any], blocks: Iterable[Array]) -> NoReturn:
    """Raise `SourceError` for images of a type that cannot be used; `blocks` are their values."""
    if dtype.kind not in "iu":
        raise SourceError(
            f"{where}: images of {dtype}, expected uint8, uint16, bool, float16, float32 or "
            'float64; convert them, as with .astype("float32")'
        )
    ranges = [(int(block.min()), int(block.max())) for block in blocks if block.size]
    lowest = min((low for low, _ in ranges), default=0)
    highest = max((high for _, high in ranges), default=0)
    fitting = next((t for t in ("uint8", "uint16") if highest <= np.iinfo(t).max), None)
    cure = f'the values fit .astype("{fitting}")'
    if fitting is None or lowest < 0:
        cure = 'scale the values to 0 to 65535 and use .astype("uint16"), or .astype("float64")'
    raise SourceError(
        f"{where}: images of {dtype} with values {lowest} to {highest}, expected uint8, uint16, "
        f"bool or floats; {cure}"
    )


def check_shapes(
    where: str, images: Sequence[int], labels: Sequence[int] | None, dtype: np.dtype[Any]
) -> None:
    """Raise unless images have 3 or 4 dimensions, and labels of a usable type are as many."""
    many = labels is None or tuple(labels) in ((*images[:1],), (*images[:1], 1))
    if len(images) not in (3, 4) or not many:
        raise ShapeError(
            f"{where}: images of shape {tuple(images)} and labels of "
            f"{'none' if labels is None else tuple(labels)}; expected (sample, y, x) or "
            "(sample, y, x, channel), and one label for each image"
        )
    if labels is not None and dtype.kind not in "iuUS":
        raise SourceError(f"{where}: labels of {dtype}, expected integer codes or text")


@dataclass(frozen=True)
class Labelling:
    """How the labels of a source become codes.

    Attributes
    ----------
    class_names
        The name of each code.
    codes
        The code of each text or value; None: the values are the codes.
    """

    class_names: tuple[str, ...]
    codes: Mapping[Any, int] | None = None

    def apply(self, labels: Array) -> npt.NDArray[np.int32]:
        """Return the code of each label.

        Raises
        ------
        LabelError
            Where a label is none of the classes.
        """
        if self.codes is None:
            check_labels(labels, len(self.class_names))
            return labels.astype(np.int32)
        values, places = np.unique(as_text(labels), return_inverse=True)
        for value in values.tolist():
            if value not in self.codes:
                known = [str(known) for known in self.codes]
                raise LabelError(
                    f"label '{value}' is none of the classes; {nearest(str(value), known)}"
                )
        codes = [self.codes[value] for value in values.tolist()]
        return np.array(codes, np.int32)[places]


def as_text(labels: Array) -> Array:
    """Return text labels given as bytes as text, other labels as they are.

    Raises
    ------
    SourceError
        Where the bytes are not UTF-8.
    """
    if labels.dtype.kind != "S":
        return labels
    try:
        return np.char.decode(labels, "utf-8")
    except UnicodeDecodeError as error:
        raise SourceError(f"labels of bytes that are not UTF-8: {error}") from None


def survey_labels(
    blocks: Iterable[tuple[int, Array]], class_names: Sequence[str] | None
) -> Labelling:
    """Look at all labels once and say how they become codes.

    Parameters
    ----------
    blocks
        Of all splits: the number of the first sample in its split, and [sample]; integer codes or
        texts.
    class_names
        The name of each code; default: the texts, sorted, or the codes themselves as text.

    Raises
    ------
    LabelError
        Where a label is outside the classes, or some are codes and some texts.
    """
    texts: set[str] = set()
    largest, kinds = UNLABELLED, set()
    most = _MOST_CLASSES if class_names is None else len(class_names)
    for first, block in blocks:
        kinds.add("codes" if block.dtype.kind in "iu" else "texts")
        if block.dtype.kind in "iu":
            check_labels(block, most, first)
            largest = max(largest, int(block.max()) if len(block) else UNLABELLED)
        else:
            texts.update(np.unique(as_text(block)).tolist())
        if class_names is None and max(largest, len(texts) - 1) >= _MOST_CODES:
            raise LabelError(
                f"label {largest} or {len(texts)} different texts, expected at most {_MOST_CODES} "
                "classes without names; correct the labels or give class_names"
            )
    if len(kinds) > 1:
        raise LabelError("some labels are codes and some texts, expected one kind in all splits")
    if "texts" in kinds:
        return _text_labelling(texts, class_names)
    names = map(str, range(largest + 1)) if class_names is None else class_names
    return Labelling(tuple(names))


def _text_labelling(texts: set[str], class_names: Sequence[str] | None) -> Labelling:
    names = tuple(sorted(texts)) if class_names is None else tuple(class_names)
    unknown = sorted(texts - set(names))
    if unknown:
        raise LabelError(
            f"label '{unknown[0]}' is none of the classes; {nearest(unknown[0], names)}"
        )
    return Labelling(names, {name: code for code, name in enumerate(names)})


def version_of(path: Path) -> dict[str, Any]:
    """Return what tells another file of the same name and size apart, without reading it."""
    if not is_remote(path):
        return {"mtime_ns": path.stat().st_mtime_ns}
    found = path.fs.info(path.path)  # type: ignore[attr-defined]
    return {"version": version_tag(found)}


def in_parts(counts: Sequence[int], start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Yield, for a range of samples that lie in parts of `counts`, each part and its range."""
    before = 0
    for number, count in enumerate(counts):
        first, last = max(start - before, 0), min(stop - before, count)
        if first < last or (start == stop and number == 0):
            yield number, min(first, last), last
        before += count


def joined(blocks: Sequence[Block]) -> Block:
    """Return blocks without problems, one after the other, as one."""
    if len(blocks) == 1:
        return blocks[0]
    return Block(
        np.concatenate([block.images for block in blocks]),
        np.concatenate([block.labels for block in blocks]),
        [origin for block in blocks for origin in block.origins],
    )


@dataclass(frozen=True)
class ArraySource:
    """Splits given as arrays.

    Attributes
    ----------
    arrays
        For each split its images, [sample, y, x] or [sample, y, x, channel], uint8, uint16, bool
        or floats, and its labels, [sample], integer codes.
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
            name: SplitInfo(len(images), images.shape[1:], pixel_type(images.dtype) or "")
            for name, (images, _) in self.arrays.items()
        }

    def read(self, split: str, start: int, stop: int) -> Block:
        images, labels = (array[start:stop] for array in self.arrays[split])
        origins = [f"{split}[{index}]" for index in range(start, stop)]
        return Block(as_pixels(images), labels.astype(np.int32), origins)

    def close(self) -> None:
        """Nothing is left open."""


def from_arrays(
    arrays: Mapping[str, Any],
    class_names: Sequence[str] | None = None,
    full_scale: int | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> ArraySource:
    """Make a source of arrays.

    Parameters
    ----------
    arrays
        Split name -> (images, labels). Images are uint8, uint16, bool (taken as 0 and 1) or
        floats; labels integer codes or texts, or None. Lists, tensors and labelled arrays are
        taken as the arrays that they stand for; so is a data set with `image` and `label`.
    class_names
        The name of each label code; default: the codes themselves, as text, or the texts, sorted.
    full_scale
        The pixel value that counts as 1; default: the largest of the pixel type; 1 for bool and
        floats.
    provenance
        Where they come from; default: digests of the arrays.

    Raises
    ------
    ShapeError
        Where a split has not one label per image.
    SourceError, LabelError
        Where images are of another type, or labels neither codes nor texts, or outside the
        classes.
    """
    given, class_names, full_scale = as_splits(arrays), as_names(class_names), as_scale(full_scale)
    for name, (images, labels) in given.items():
        check_shapes(f"split '{name}'", images.shape, labels.shape, labels.dtype)
        if pixel_type(images.dtype) is None:
            refuse_pixels(f"split '{name}'", images.dtype, [images])
    flat = {name: labels.reshape(-1) for name, (_, labels) in given.items()}
    labelling = survey_labels(((0, labels) for labels in flat.values()), class_names)
    coded = {
        name: (images, flat[name] if labelling.codes is None else labelling.apply(flat[name]))
        for name, (images, _) in given.items()
    }
    if full_scale is None:
        full_scale = max((scale_of(images.dtype) for images, _ in given.values()), default=1)
    if not isinstance(provenance, Mapping | None):
        raise ConfigError(f"provenance: {describe(provenance)}, expected a mapping of plain values")
    if provenance is None:
        digests = {k: [array_digest(a) for a in pair] for k, pair in coded.items()}
        provenance = {"kind": "arrays", "sha256": digests}
    return ArraySource(coded, labelling.class_names, full_scale, dict(provenance))
