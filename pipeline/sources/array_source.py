"""Sources of arrays, wherever they lie: in memory, in files, or in groups of stores.

Whoever stores them gives the shape and type of each array, and reads ranges of it (`Stored`). The
rest is the same for all: a split is one part or several in a row, whose samples are counted
through; labels become codes; parts must fit together; the user sees where labels come from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pipeline.core.blocks import Block, Problem
from pipeline.core.errors import ShapeError
from pipeline.core.paths import is_remote
from pipeline.core.schema import UNLABELLED
from pipeline.sources.array_pixels import (
    NO_GAPS,
    Gaps,
    as_images,
    as_pixels,
    block_of,
    check_alike,
    has_lone_channel,
    pixel_type,
    refuse_pixels,
)
from pipeline.sources.labels import Labelling, Survey
from pipeline.sources.notes import Notes, lines_of
from pipeline.sources.protocol import SplitInfo
from pipeline.storage.blobs import Version

_BLOCK_BYTES = 2**24
_SHOWN = 3

Array = npt.NDArray[Any]


class Stored(Protocol):
    """An array that lies somewhere; small, and travels to workers."""

    @property
    def title(self) -> str:
        """How it is named in messages, and in the origins of its images."""
        ...

    @property
    def name(self) -> str:
        """What it is, and what it is called: `array 'y_train'`."""
        ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the values that `read` returns."""
        ...

    def read(self, start: int, stop: int) -> Array:
        """Read samples `start` to `stop`."""
        ...

    def close(self) -> None:
        """Close what reading left open in this process."""
        ...


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
    def label_title(self) -> str:
        return self.title if self.labels is None else self.labels.title

    @property
    def shape(self) -> tuple[int, ...]:
        count, *sides = self.images.shape
        return (count, *sides[1:], sides[0]) if self.channels_first else (count, *sides)

    def read_pixels(self, start: int, stop: int) -> Array:
        return as_pixels(as_images(self.images.read(start, stop), self.channels_first))

    def label_blocks(self) -> Iterator[tuple[int, Array]]:
        """Read all labels, each block with the number of its first sample."""
        if self.labels is not None:
            for start, stop in _ranges(self.labels.shape, self.labels.dtype):
                yield start, self.labels.read(start, stop)

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
            labels = without(part.labels.read(start, stop), self.fills)
            codes = self.labelling.apply(labels, part.label_title, start)
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


def described(path: Path, version: Version) -> dict[str, Any]:
    """Return what tells another file of the same name and size apart, for the provenance."""
    return {"version": version.tag} if is_remote(path) else {"mtime_ns": int(version.tag)}


def all_parts(parts: Parts) -> list[ArrayPart]:
    return [part for several in parts.values() for part in several]


def without(labels: Array, unlabelled: frozenset[Any]) -> Array:
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
    everything = all_parts(parts)
    titles = [part.label_title for part in everything if part.labels is not None]
    survey = Survey(", ".join(titles[:_SHOWN]) or "the labels", class_names)
    for several in parts.values():
        before = 0
        for part in several:
            for start, block in part.label_blocks():
                survey.add(without(block, fills), part.label_title, before + start)
            before += part.shape[0]
    return survey.labelling()


def _ranges(shape: Sequence[int], dtype: np.dtype[Any]) -> Iterator[tuple[int, int]]:
    sample = int(np.prod(shape[1:], dtype=object)) * dtype.itemsize
    step = max(1, _BLOCK_BYTES // max(1, sample))
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
