"""Sources whose splits are arrays in parts: files, or groups of stores, one after the other.

A part knows where its arrays lie and how ranges of them are read. What is done with parts is the
same for all kinds of them: the samples of a split are counted through, labels become codes, and
the parts of a split must fit together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pipeline.core.blocks import Block
from pipeline.core.errors import ShapeError
from pipeline.core.schema import UNLABELLED
from pipeline.sources.arrays import (
    Gaps,
    block_length,
    check_alike,
    finished,
    has_lone_channel,
    in_parts,
    joined,
    pixel_type,
    refuse_pixels,
)
from pipeline.sources.labels import Labelling, Survey
from pipeline.sources.protocol import SplitInfo

_SHOWN = 3

Array = npt.NDArray[Any]


class Part(Protocol):
    """Images, and perhaps labels, that lie in one place; small, and travels to workers."""

    @property
    def title(self) -> str:
        """How the place is named in messages and origins."""
        ...

    @property
    def label_title(self) -> str:
        """How the labels are named in messages."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the images: (sample, y, x) or (sample, y, x, channel)."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the images as they are stored."""
        ...

    @property
    def gaps(self) -> Gaps:
        """What stands for missing pixels."""
        ...

    @property
    def label_dtype(self) -> np.dtype[Any] | None:
        """Of the labels; None where there are none."""
        ...

    def read_pixels(self, start: int, stop: int) -> Array:
        """Read images [sample, y, x] or [sample, y, x, channel], as `as_pixels` gives them."""
        ...

    def read_labels(self, start: int, stop: int) -> Array:
        """Read labels [sample], or [sample, class], where there are any, as they are stored."""
        ...

    def close(self) -> None:
        """Close what reading left open in this process."""
        ...


@dataclass(frozen=True)
class PartedSource:
    """Splits of arrays in parts.

    Attributes
    ----------
    parts
        For each split its parts, in order.
    labelling
        How labels become codes.
    full_scale
        The pixel value that counts as 1.
    provenance
        Where they come from.
    encoding
        `scale_factor` and `add_offset` of packed integers, by the CF conventions.
    fills
        Stored labels that stand for none.
    remarks
        What was decided by guess, or left out: lines for the user.
    """

    parts: Mapping[str, Sequence[Part]]
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
        return has_lone_channel(p.shape[1:] for several in self.parts.values() for p in several)

    def splits(self) -> dict[str, SplitInfo]:
        found, sides = {}, 2 if self.drops_channel else 3
        for name, parts in self.parts.items():
            count = sum(part.shape[0] for part in parts)
            found[name] = SplitInfo(
                count, parts[0].shape[1:][:sides], pixel_type(parts[0].dtype) or ""
            )
        return found

    def read(self, split: str, start: int, stop: int) -> Block:
        parts = self.parts[split]
        counts = [part.shape[0] for part in parts]
        return joined(
            [
                self._read_part(parts[number], first, last)
                for number, first, last in in_parts(counts, start, stop)
            ]
        )

    def _read_part(self, part: Part, start: int, stop: int) -> Block:
        codes = np.full(stop - start, UNLABELLED, np.int32)
        if part.label_dtype is not None:
            labels = without(part.read_labels(start, stop), self.fills)
            codes = self.labelling.apply(labels, part.label_title, start)
        origins = [f"{part.title}[{index}]" for index in range(start, stop)]
        pixels = part.read_pixels(start, stop)
        if self.drops_channel and pixels.ndim > len(part.shape[:3]):
            pixels = pixels.reshape(pixels.shape[:3])
        return finished(pixels, codes, origins, part.gaps)

    def close(self) -> None:
        for parts in self.parts.values():
            for part in parts:
                part.close()


def without(labels: Array, unlabelled: frozenset[Any]) -> Array:
    """Return labels with -1, or "", for those that stand for none."""
    kind = labels.dtype.kind
    fills = [v for v in unlabelled if isinstance(v, str) == (kind in "USOT")]
    if not fills or labels.ndim > 1:
        return labels
    hidden = np.isin(labels, fills)
    if kind in "USOT":
        return np.where(hidden, "", labels)
    return np.where(hidden, UNLABELLED, labels if kind == "f" else labels.astype(np.int64))


def check_parts(parts: Mapping[str, Sequence[Part]]) -> None:
    """Check the images of all splits.

    Raises
    ------
    SourceError
        Where they are of a type that cannot be used, or of types that mean other things.
    ShapeError
        Where the parts of a split do not fit together.
    """
    for split, several in parts.items():
        first = several[0]
        for part in several:
            if pixel_type(part.dtype) is None:
                refuse_pixels(f"{part.title} (split '{split}')", part.dtype, pixel_blocks(part))
            if part.shape[1:] != first.shape[1:] or part.dtype.name != first.dtype.name:
                raise ShapeError(
                    f"{part.title}: images of shape {part.shape[1:]} and {part.dtype}, expected "
                    f"{first.shape[1:]} and {first.dtype} as in {first.title}"
                )
    check_alike({several[0].title: several[0].dtype for several in parts.values()})


def survey_parts(
    parts: Mapping[str, Sequence[Part]],
    class_names: Sequence[str] | None,
    fills: frozenset[Any] = frozenset(),
) -> Survey:
    """Look at all labels of all splits once; `fills` stand for none.

    Raises
    ------
    LabelError
        Where one is no label, or outside the classes.
    """
    everything = [part for several in parts.values() for part in several]
    titles = [part.label_title for part in everything if part.label_dtype is not None]
    survey = Survey(", ".join(titles[:_SHOWN]) or everything[0].title, class_names)
    for several in parts.values():
        before = 0
        for part in several:
            for start, block in label_blocks([part]):
                survey.add(without(block, fills), part.label_title, before + start)
            before += part.shape[0]
    return survey


def remarks_on(parts: Mapping[str, Sequence[Part]], labelling: Labelling) -> list[str]:
    """Return what to tell of images without labels."""
    bare = [p.title for several in parts.values() for p in several if p.label_dtype is None]
    found = [f"no labels for {', '.join(bare)}: kept as unlabelled images"] if bare else []
    if not labelling.class_names and len(bare) < sum(map(len, parts.values())):
        found.append("no image has a label")
    return found


def pixel_blocks(part: Part) -> Iterator[Array]:
    """Read all images of a part, block by block."""
    return (part.read_pixels(start, stop) for start, stop in _ranges(part.shape, part.dtype))


def label_blocks(parts: Iterable[Part]) -> Iterator[tuple[int, Array]]:
    """Read all labels of the parts of a split, each block with the number of its first sample."""
    before = 0
    for part in parts:
        count = part.shape[0]
        for start, stop in _ranges((count,), part.label_dtype) if part.label_dtype else ():
            yield before + start, part.read_labels(start, stop)
        before += count


def _ranges(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Iterator[tuple[int, int]]:
    step = block_length(shape, dtype)
    return ((start, min(start + step, shape[0])) for start in range(0, shape[0], step))
