"""What images can come from: one small reader per kind of input, all behind one protocol.

A source says what it has without reading pixels, then reads any range of samples of a split.
It travels to worker processes, so it is small (paths and counts) or shared (arrays).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from pipeline.core.blocks import Block


@dataclass(frozen=True)
class SplitInfo:
    """What a split of a source holds: `count` images of `shape` and `dtype`.

    `dtype` is `uint8` or `uint16`; or `float32` or `float64`, which the ingest packs to uint16.
    """

    count: int
    shape: tuple[int, ...]
    dtype: str


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
