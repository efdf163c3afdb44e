"""What a source of images gives: blocks of samples, and why some of them cannot be used.

All sources are behind one protocol: a source says what it has without reading pixels, then reads
any range of samples of a split. It travels to worker processes, so it is small (paths and counts)
or shared (arrays).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

STATUSES = ("ok", "unreadable", "truncated", "wrong size", "too large", "label unknown")
SEVERAL_FRAMES = "the first of several frames or pages"
OK, UNREADABLE, TRUNCATED, WRONG_SIZE, TOO_LARGE, LABEL_UNKNOWN = range(len(STATUSES))


@dataclass(frozen=True)
class Problem:
    """Why a sample cannot be used.

    Attributes
    ----------
    status
        `UNREADABLE`, `TRUNCATED`, `WRONG_SIZE`, `TOO_LARGE` or `LABEL_UNKNOWN`.
    detail
        What there is, what was expected, and what to do about it, in a few words.
    width, height
        Of the image as its file says, 0 where that is not known.
    """

    status: int
    detail: str
    width: int = 0
    height: int = 0


@dataclass(frozen=True)
class Block:
    """A range of samples.

    Attributes
    ----------
    images
        [sample, y, x] or [sample, y, x, channel]; of the type that `SplitInfo` says.
    labels
        [sample]; int32 codes, -1 where unlabelled.
    origins
        Where each sample comes from, as text that may be shown and stored: a path, or the file and
        the position in it.
    problems
        By index in the block, why a sample cannot be used; its image is 0, its label -1.
    sizes
        [sample, 2]; int32 width and height of each image before it was brought to one shape. None:
        those of the images.
    hashes
        [sample]; the SHA-256 of the pixels of each image, 32 bytes, where reading took it.
    remarks
        By index in the block, what there is to say of a sample that can be used.
    """

    images: npt.NDArray[Any]
    labels: npt.NDArray[np.int32]
    origins: Sequence[str]
    problems: Mapping[int, Problem] = field(default_factory=dict)
    sizes: npt.NDArray[np.int32] | None = None
    hashes: npt.NDArray[np.void] | None = None
    remarks: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SplitInfo:
    """What a split of a source holds: `count` images of `shape` and `dtype`.

    `dtype` is `uint8` or `uint16`; or `float32` or `float64`, which the ingest packs to uint16.
    `labelled` is False where it is known that none of them has a label.
    """

    count: int
    shape: tuple[int, ...]
    dtype: str
    labelled: bool = True


class Source(Protocol):
    """A labelled image set that can be read in ranges."""

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def full_scale(self) -> int:
        """The pixel value that counts as 1."""
        ...

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Where the images come from: kind, files, checksums, licence; plain JSON values.

        Two sources of equal provenance hold the same images.
        """
        ...

    def splits(self) -> Mapping[str, SplitInfo]:
        """Return the splits in a fixed order, without reading pixels."""
        ...

    def read(self, split: str, start: int, stop: int) -> Block:
        """Read samples `start` to `stop` of a split.

        Raises
        ------
        SourceError
            Where a file is missing, truncated or not what it claims to be.
        """
        ...

    def close(self) -> None:
        """Close the files that reading left open in this process."""
        ...


def is_source(value: object) -> bool:
    """Tell whether an object has the methods of a source."""
    return all(callable(getattr(value, name, None)) for name in ("splits", "read", "close"))
