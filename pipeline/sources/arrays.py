"""Images that are arrays in memory; and what all sources of arrays share.

That is: which pixel types are taken and in which type they are given, how labels, codes or texts,
become codes, and how one split is read that lies in several parts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from pipeline.core.blocks import UNREADABLE, Block, Problem
from pipeline.core.digests import array_digest
from pipeline.core.errors import ConfigError, ShapeError, SourceError
from pipeline.core.exact import largest_pixel
from pipeline.core.messages import describe
from pipeline.core.paths import is_remote
from pipeline.core.schema import UNLABELLED
from pipeline.sources.array_likes import as_names, as_scale, as_splits
from pipeline.sources.labels import Labelling, Survey, check_form
from pipeline.sources.protocol import SplitInfo
from pipeline.storage.blobs import Version

_CHANNELS = (1, 3, 4)
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
    where: str,
    images: Sequence[int],
    labels: Sequence[int] | None,
    dtype: np.dtype[Any],
    asked_last: bool = False,
) -> bool:
    """Raise unless images have 3 or 4 dimensions, and labels of a usable type are as many.

    Returns whether the images are stored with their channels first; where that may be either,
    they come last if callers are `asked` to give them so, else it is an error.
    """
    if labels is not None and len(labels) and images and labels[0] == images[0]:
        check_form(where, images[0], labels, dtype)
    first = has_channels_first(where, images, asked_last)
    if labels is not None:
        check_form(where, images[0], labels, dtype)
    return first


def has_channels_first(where: str, shape: Sequence[int], asked_last: bool = False) -> bool:
    """Tell whether images without named dimensions are [sample, channel, y, x].

    That is plain where 1, 3 or 4 stands second and not last. Where few stand last, or fewer than
    rows and columns, they are [sample, y, x, channel].

    Raises
    ------
    ShapeError
        Where it cannot be told, or these are no images.
    """
    if len(shape) == 2:
        raise ShapeError(
            f"{where}: images of shape {tuple(shape)}, which are flat: {shape[1]} values each; "
            f"expected (sample, y, x) or (sample, y, x, channel); {_unflattened(shape[1])}"
        )
    if len(shape) not in (3, 4):
        raise ShapeError(
            f"{where}: images of shape {tuple(shape)}, expected (sample, y, x) or "
            "(sample, y, x, channel)"
        )
    if len(shape) == 3:
        return False
    second, middle, last = shape[1:]
    if last in (*_CHANNELS, 2):
        either = second in _CHANNELS and last in _CHANNELS and middle == last != second
        if either and not asked_last:
            raise _either(where, shape)
        return False
    if second in _CHANNELS:
        return True
    if last < min(second, middle):
        return False
    if second == middle == last:
        raise ShapeError(
            f"{where}: images of shape {tuple(shape)}, which are 3-D: as many layers as rows and "
            "columns; expected (sample, y, x) or (sample, y, x, channel); choose one layer, such "
            f"as images[:, {second // 2}]"
        )
    raise _either(where, shape)


def _either(where: str, shape: Sequence[int]) -> ShapeError:
    return ShapeError(
        f"{where}: images of shape {tuple(shape)} are 3-D, or may have their channels first or "
        "last; expected (sample, y, x, channel) with fewer channels than rows and columns; turn "
        "them: np.moveaxis(images, 1, -1), or choose one layer: images[:, 0]"
    )


def _unflattened(size: int) -> str:
    for channels, shape in ((1, "(-1, {0}, {0})"), (3, "(-1, 3, {0}, {0})")):
        side = math.isqrt(size // channels)
        if channels * side * side == size:
            return f"give them their shape: images.reshape{shape.format(side)}"
    return "give them their shape: images.reshape(-1, HEIGHT, WIDTH)"


def image_shape(shape: Sequence[int], channels_first: bool) -> tuple[int, ...]:
    """Return the shape of images as they are given: the channels last."""
    return (shape[0], *shape[2:], shape[1]) if channels_first else tuple(shape)


def as_images(images: Array, channels_first: bool) -> Array:
    """Return images with their channels last."""
    return np.ascontiguousarray(np.moveaxis(images, 1, -1)) if channels_first else images


def has_lone_channel(shapes: Iterable[Sequence[int]]) -> bool:
    """Tell whether some images are [y, x] and others [y, x, 1], which is then dropped."""
    found = list(shapes)
    return {len(shape) for shape in found} == {2, 3} and all(
        shape[2] == 1 for shape in found if len(shape) == 3
    )


def check_alike(kinds: Mapping[str, np.dtype[Any]]) -> None:
    """Raise `SourceError` where the pixels of two places do not mean the same.

    `kinds` is the type of the images by what to call their place. 8 and 16 bits are told apart
    when the set is planned: a depth, or a full scale that both have, brings them together.
    """
    names = list(kinds)
    for name in names[1:]:
        one, other = kinds[names[0]], kinds[name]
        if one.kind != other.kind:
            raise SourceError(
                f"{names[0]} has images of {one} and {name} of {other}, whose values do not mean "
                f"the same; convert them to one type, as with (images / {scale_of(other)})"
                '.astype("float32") or .astype("uint8")'
            )


def described(path: Path, version: Version) -> dict[str, Any]:
    """Return what tells another file of the same name and size apart, for the provenance."""
    return {"version": version.tag} if is_remote(path) else {"mtime_ns": int(version.tag)}


def in_parts(counts: Sequence[int], start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Yield, for a range of samples that lie in parts of `counts`, each part and its range."""
    before = 0
    for number, count in enumerate(counts):
        first, last = max(start - before, 0), min(stop - before, count)
        if first < last or (start == stop and number == 0):
            yield number, min(first, last), last
        before += count


def joined(blocks: Sequence[Block]) -> Block:
    """Return blocks, one after the other, as one."""
    if len(blocks) == 1:
        return blocks[0]
    problems: dict[int, Problem] = {}
    before = 0
    for block in blocks:
        problems |= {before + place: problem for place, problem in block.problems.items()}
        before += len(block.images)
    return Block(
        np.concatenate([block.images for block in blocks]),
        np.concatenate([block.labels for block in blocks]),
        [origin for block in blocks for origin in block.origins],
        problems,
    )


@dataclass(frozen=True)
class Gaps:
    """What stands for missing pixels, besides numbers that are not finite.

    Attributes
    ----------
    values
        Each stands for a missing pixel.
    lowest, highest
        Of what is valid; None: no bound.
    said
        What says so, and what to do where it is wrong.
    """

    values: tuple[Any, ...] = ()
    lowest: Any = None
    highest: Any = None
    said: str = ""

    def find(self, images: Array) -> npt.NDArray[np.bool_] | None:
        """Return which pixels are missing, None where it is none."""
        bounded = self.lowest is not None or self.highest is not None
        if not images.size or not (images.dtype.kind == "f" or self.values or bounded):
            return None
        low, high = images.min(), images.max()  # NaN, if there is one; masks only where needed
        found = None
        if images.dtype.kind == "f" and not (np.isfinite(low) and np.isfinite(high)):
            found = ~np.isfinite(images)
        for value in self.values:
            if found is not None or low <= value <= high:
                found = (images == value) | (False if found is None else found)
        for bound, wrong in ((self.lowest, np.less), (self.highest, np.greater)):
            if bound is not None and (found is not None or wrong(low, bound) or wrong(high, bound)):
                found = wrong(images, bound) | (False if found is None else found)
        return found if found is not None and found.any() else None


NO_GAPS = Gaps(said="replace such values")


def finished(
    images: Array, codes: npt.NDArray[np.int32], origins: Sequence[str], gaps: Gaps = NO_GAPS
) -> Block:
    """Return a block of which the images with missing pixels are bad samples."""
    missing = gaps.find(images)
    if missing is None:
        return Block(images, codes, origins)
    images, codes = images.copy(), codes.copy()
    counts = missing.reshape(len(images), -1).sum(axis=1)
    problems = {}
    for place in np.flatnonzero(counts).tolist():
        first = np.unravel_index(int(np.argmax(missing[place])), missing.shape[1:])
        where, value = ", ".join(str(int(i)) for i in first), images[place][first].item()
        problems[place] = Problem(
            UNREADABLE,
            f"has {counts[place]} of {missing[place].size} pixels missing: pixel ({where}) is "
            f"{value}; {gaps.said}, or leave such images out with max_bad",
        )
    images[list(problems)], codes[list(problems)] = 0, UNLABELLED
    return Block(images, codes, origins, problems)


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

    @property
    def unlabelled(self) -> bool:
        """Whether no image has a label, so that there are no classes."""
        return not self.class_names

    def splits(self) -> dict[str, SplitInfo]:
        return {
            name: SplitInfo(len(images), images.shape[1:], pixel_type(images.dtype) or "")
            for name, (images, _) in self.arrays.items()
        }

    def read(self, split: str, start: int, stop: int) -> Block:
        images, labels = (array[start:stop] for array in self.arrays[split])
        origins = [f"{split}[{index}]" for index in range(start, stop)]
        return finished(as_pixels(images), labels.astype(np.int32), origins)

    def close(self) -> None:
        """Nothing is left open."""


def _coded(labelling: Labelling, labels: Array, where: str) -> Array:
    """Return the code of each label; codes as they are, so that their digest stays theirs."""
    are_codes = labelling.codes is None and labels.dtype.kind in "iu"
    if are_codes and labels.size == len(labels) and not np.ma.isMaskedArray(labels):
        return labels.reshape(-1)
    return labelling.apply(labels, where)


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
        first = check_shapes(f"split '{name}'", images.shape, labels.shape, labels.dtype, True)
        if pixel_type(images.dtype) is None:
            refuse_pixels(f"split '{name}'", images.dtype, [images])
        given = {**given, name: (as_images(images, first), labels)}
    check_alike({f"split '{name}'": images.dtype for name, (images, _) in given.items()})
    if has_lone_channel(images.shape[1:] for images, _ in given.values()):
        given = {n: (i.reshape(i.shape[:3]), labels) for n, (i, labels) in given.items()}
    survey = Survey("the labels", class_names)
    for name, (_, labels) in given.items():
        survey.add(labels, f"split '{name}'")
    labelling = survey.labelling()
    coded = {
        name: (images, _coded(labelling, labels, f"split '{name}'"))
        for name, (images, labels) in given.items()
    }
    if full_scale is None:
        full_scale = max((scale_of(images.dtype) for images, _ in given.values()), default=1)
    if not isinstance(provenance, Mapping | None):
        raise ConfigError(f"provenance: {describe(provenance)}, expected a mapping of plain values")
    if provenance is None:
        digests = {k: [array_digest(a) for a in pair] for k, pair in coded.items()}
        provenance = {"kind": "arrays", "sha256": digests}
    return ArraySource(coded, labelling.class_names, full_scale, dict(provenance))
