"""Sources of arrays, wherever they lie: in memory, in files, or in groups of stores.

Whoever stores them gives the shape and type of each array, and reads ranges of it (`Stored`). The
rest is the same for all: a split is one part or several in a row, whose samples are counted
through; labels become codes; parts must fit together; the user sees where labels come from.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol

import numpy as np
import numpy.typing as npt

from pipeline.core.blocks import UNREADABLE, Block, Problem, SplitInfo
from pipeline.core.errors import ShapeError, SourceError
from pipeline.core.exact import largest_pixel
from pipeline.core.schema import UNLABELLED
from pipeline.sources.labels import Labelling, Survey
from pipeline.sources.notes import Notes, lines_of

_BLOCK_BYTES = 2**24
_FLOAT_BYTES = 8
_SHOWN = 3

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Gaps:
    """What stands for missing pixels, besides numbers that are not finite.

    Each of `values` does, and what is below `lowest` or above `highest`; `reason` tells what says
    so, and what to do where it is wrong.
    """

    values: tuple[Any, ...] = ()
    lowest: Any = None
    highest: Any = None
    reason: str = ""

    def find(self, images: Array) -> npt.NDArray[np.bool_] | None:
        """Return which pixels are missing, None where it is none."""
        is_float = images.dtype.kind == "f"
        bounded = self.lowest is not None or self.highest is not None
        if not images.size or not (is_float or self.values or bounded):
            return None
        low, high = images.min(), images.max()  # NaN, if there is one; masks only where needed
        odd = is_float and not (np.isfinite(low) and np.isfinite(high))
        masks = [~np.isfinite(images)] if odd else []
        masks += [images == value for value in self.values if odd or low <= value <= high]
        for bound, wrong in ((self.lowest, np.less), (self.highest, np.greater)):
            if bound is not None and (odd or wrong(low, bound) or wrong(high, bound)):
                masks.append(wrong(images, bound))
        missing = np.logical_or.reduce(masks) if masks else None
        return missing if missing is not None and missing.any() else None


NO_GAPS = Gaps(reason="replace such values")


class Stored(Protocol):
    """An array that lies somewhere; small, and travels to workers."""

    @property
    def title(self) -> str:
        """How it is named in messages, and in the origins of its images."""

    @property
    def name(self) -> str:
        """What it is, and what it is called: `array 'y_train'`."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the values that `read` returns."""

    def read(self, start: int, stop: int) -> Array:
        """Read samples `start` to `stop`."""

    def close(self) -> None:
        """Close what reading left open in this process."""


@dataclass(frozen=True)
class ArrayPart:
    """Images of a split that lie together, and their labels; None where there are none.

    `channels_first` tells whether the images are stored as [sample, channel, y, x]; `gaps` what
    stands for missing pixels; `origin` what the origins of the images begin with, if not its title.
    """

    images: Stored
    labels: Stored | None
    channels_first: bool = False
    gaps: Gaps = NO_GAPS
    origin: str = ""

    @property
    def title(self) -> str:
        return self.images.title

    @property
    def shape(self) -> tuple[int, ...]:
        count, *sides = self.images.shape
        return (count, *sides[1:], sides[0]) if self.channels_first else (count, *sides)

    def read_pixels(self, start: int, stop: int) -> Array:
        return as_pixels(as_images(self.images.read(start, stop), self.channels_first))

    def label_blocks(self, fills: frozenset[Any]) -> Iterator[tuple[Array, str, int]]:
        """Read all labels in blocks, each with its title and the number of its first sample."""
        if self.labels is not None:
            for start, stop in _ranges(self.labels.shape, self.labels.dtype):
                yield _without(self.labels.read(start, stop), fills), self.labels.title, start

    def close(self) -> None:
        for array in (self.images, self.labels):
            if array is not None:
                array.close()


Parts = Mapping[str, Sequence[ArrayPart]]


@dataclass(frozen=True)
class ArraySource:
    """Splits of arrays, each of one part or several, in their order.

    `full_scale` is the pixel value that counts as 1; `encoding` the `scale_factor` and `add_offset`
    of packed integers, by the CF conventions; `fills` are stored labels that stand for none, and
    `remarks` lines for the user: what was decided by guess, or left out.
    """

    parts: Parts
    labelling: Labelling
    full_scale: int
    provenance: Mapping[str, Any]
    encoding: Mapping[str, float] = field(default_factory=dict)
    fills: frozenset[Any] = frozenset()
    remarks: tuple[str, ...] = ()

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.labelling.class_names

    @property
    def unlabelled(self) -> bool:
        """Whether no image has a label, so that there are no classes."""
        return not self.class_names

    @property
    def drops_channel(self) -> bool:
        """Whether some images are [y, x] and others [y, x, 1], which are given as [y, x]."""
        return has_lone_channel(part.shape[1:] for part in all_parts(self.parts))

    def splits(self) -> dict[str, SplitInfo]:
        sides = 3 if self.drops_channel else 4
        return {
            name: SplitInfo(
                sum(part.shape[0] for part in parts),
                parts[0].shape[1:sides],
                pixel_type(parts[0].images.dtype) or "",
                any(part.labels is not None for part in parts),
            )
            for name, parts in self.parts.items()
        }

    def read(self, split: str, start: int, stop: int) -> Block:
        blocks: list[Block] = []
        before = 0
        for part in self.parts[split]:
            first, last = max(start - before, 0), min(stop - before, part.shape[0])
            if first < last or (start == stop and not blocks):
                blocks.append(self._read_part(part, min(first, last), last))
            before += part.shape[0]
        return _joined(blocks)

    def _read_part(self, part: ArrayPart, start: int, stop: int) -> Block:
        codes = np.full(stop - start, UNLABELLED, np.int32)
        if part.labels is not None:
            labels = _without(part.labels.read(start, stop), self.fills)
            codes = self.labelling.apply(labels, part.labels.title, start)
        origins = [f"{part.origin or part.title}[{index}]" for index in range(start, stop)]
        pixels = part.read_pixels(start, stop)
        if self.drops_channel and pixels.ndim > 3:
            pixels = pixels.reshape(pixels.shape[:3])
        return block_of(pixels, codes, origins, part.gaps)

    def close(self) -> None:
        for part in all_parts(self.parts):
            part.close()


def _joined(blocks: Sequence[Block]) -> Block:
    """Return blocks, one after the other, as one."""
    if len(blocks) == 1:
        return blocks[0]
    problems: dict[int, Problem] = {}
    before = 0
    for block in blocks:
        problems |= {before + index: problem for index, problem in block.problems.items()}
        before += len(block.images)
    return Block(
        np.concatenate([block.images for block in blocks]),
        np.concatenate([block.labels for block in blocks]),
        [origin for block in blocks for origin in block.origins],
        problems,
    )


def all_parts(parts: Parts) -> list[ArrayPart]:
    return [part for several in parts.values() for part in several]


def _without(labels: Array, unlabelled: frozenset[Any]) -> Array:
    """Return labels with -1, or "", for those that stand for none."""
    is_text = labels.dtype.kind in "USOT"
    fills = [v for v in unlabelled if isinstance(v, str) == is_text]
    if not fills or labels.ndim > 1:
        return labels
    hidden = np.isin(labels, fills)
    if is_text:
        return np.where(hidden, "", labels)
    return np.where(hidden, UNLABELLED, labels if labels.dtype.kind == "f" else labels.astype(int))


def check_parts(parts: Parts) -> None:
    """Raise where images are of a type that cannot be used, or parts do not fit together."""
    for split, several in parts.items():
        first = several[0]
        for part in several:
            dtype = part.images.dtype
            if pixel_type(dtype) is None:
                blocks = (part.read_pixels(*span) for span in _ranges(part.shape, dtype))
                where = part.title if part.origin else f"{part.title} (split '{split}')"
                refuse_pixels(where, dtype, blocks)
            if part.shape[1:] != first.shape[1:] or dtype.name != first.images.dtype.name:
                raise ShapeError(
                    f"{part.title}: images of shape {part.shape[1:]} and {dtype}, expected "
                    f"{first.shape[1:]} and {first.images.dtype} as in {first.title}"
                )
    check_alike({several[0].title: several[0].images.dtype for several in parts.values()})


def survey_parts(
    parts: Parts, class_names: Sequence[str] | None, fills: frozenset[Any] = frozenset()
) -> Labelling:
    """Look at all labels of all splits once, and decide the classes; `fills` stand for none."""
    titles = [part.labels.title for part in all_parts(parts) if part.labels is not None]
    survey = Survey(", ".join(titles[:_SHOWN]) or "the labels", class_names)
    for several in parts.values():
        before = 0
        for part in several:
            for labels, title, start in part.label_blocks(fills):
                survey.add(labels, title, before + start)
            before += part.shape[0]
    return survey.labelling()


def _ranges(shape: Sequence[int], dtype: np.dtype[Any]) -> Iterator[tuple[int, int]]:
    step = max(1, _BLOCK_BYTES // max(1, math.prod(shape[1:]) * dtype.itemsize))
    return ((start, min(start + step, shape[0])) for start in range(0, shape[0], step))


def remarks_on(parts: Parts, labelling: Labelling, notes: Notes) -> tuple[str, ...]:
    """Return the lines for the user: what the notes say, and where the labels come from."""
    everything = all_parts(parts)
    bare = [part.title for part in everything if part.labels is None]
    if bare:
        notes.remarks.append(f"no labels for {', '.join(bare)}: kept as unlabelled images")
    if labelling.class_names:
        for part in everything:
            if part.labels is not None:
                notes.add_origin(part.labels.name)
    elif len(bare) < len(everything):
        notes.remarks.append("no image has a label")
    return lines_of(vars(notes), len(parts), len(labelling.class_names))


# pixels ------------------------------------------------------------------------------------------


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


def check_alike(kinds: Mapping[str, np.dtype[Any]]) -> None:
    """Raise `SourceError` where the pixels of two arrays do not mean the same.

    `kinds` is the type of the images by the name of the array. 8 and 16 bits are distinguished
    when the set is planned: a depth, or a full scale that both have, brings them together.
    """
    first = next(iter(kinds), "")
    for name, other in kinds.items():
        if other.kind != kinds[first].kind:
            raise SourceError(
                f"{first} has images of {kinds[first]} and {name} of {other}, whose values do not "
                f"mean the same; convert them to one type, as with (images / {scale_of(other)})"
                '.astype("float32") or .astype("uint8")'
            )


def block_of(
    images: Array, codes: npt.NDArray[np.int32], origins: Sequence[str], gaps: Gaps = NO_GAPS
) -> Block:
    """Return a block of which the images with missing pixels are bad samples."""
    missing = gaps.find(images)
    if missing is None:
        return Block(images, codes, origins)
    images, codes = images.copy(), codes.copy()
    counts = missing.reshape(len(images), -1).sum(axis=1)
    problems = {}
    for index in np.flatnonzero(counts).tolist():
        first = np.unravel_index(int(np.argmax(missing[index])), missing.shape[1:])
        where, value = ", ".join(str(int(i)) for i in first), images[index][first].item()
        problems[index] = Problem(
            UNREADABLE,
            f"has {counts[index]} of {missing[index].size} pixels missing: pixel ({where}) is "
            f"{value}; {gaps.reason}, or leave such images out with max_bad",
        )
    images[list(problems)], codes[list(problems)] = 0, UNLABELLED
    return Block(images, codes, origins, problems)


def as_images(images: Array, channels_first: bool) -> Array:
    """Return images with their channels last."""
    return np.ascontiguousarray(np.moveaxis(images, 1, -1)) if channels_first else images


def has_lone_channel(shapes: Iterable[Sequence[int]]) -> bool:
    """Tell whether some images are [y, x] and others [y, x, 1], which is then dropped."""
    several = list(shapes)
    deep = [shape for shape in several if len(shape) == 3]
    return {len(shape) for shape in several} == {2, 3} and all(shape[2] == 1 for shape in deep)
