"""What images can come from: one small reader per kind of input, all behind one protocol.

A source says what it has without reading pixels, then reads any range of samples of a split.
It travels to worker processes, so it is small (paths and counts) or shared (arrays).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class SplitInfo:
    """What a split of a source holds: `count` images of `shape` and `dtype`."""

    count: int
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Block:
    """A range of samples.

    Attributes
    ----------
    images
        [sample, y, x] or [sample, y, x, channel]; uint8 or uint16.
    labels
        [sample]; int32 codes, -1 where unlabelled.
    origins
        Where each sample comes from: a path, or the file and the place in it.
    """

    images: npt.NDArray[Any]
    labels: npt.NDArray[np.int32]
    origins: Sequence[str]


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
        """Return what there is, in a fixed order, without reading pixels."""
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
