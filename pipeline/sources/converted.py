"""Sources of arrays whose images are brought to another shape while they are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.core.blocks import Block
from pipeline.core.errors import ShapeError
from pipeline.images.conversion import Conversion
from pipeline.sources.protocol import Source, SplitInfo


@dataclass(frozen=True)
class ConvertedSource:
    """A source with a conversion applied to each image.

    Attributes
    ----------
    source
        Gives images of one shape.
    conversion
        What is done to each.
    """

    source: Source
    conversion: Conversion

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.source.class_names

    @property
    def full_scale(self) -> int:
        """That of the source, or of the depth that its images are brought to."""
        depth = self.conversion.depth
        return self.source.full_scale if depth is None else 2**depth - 1

    @property
    def remarks(self) -> tuple[str, ...]:
        return tuple(getattr(self.source, "remarks", ()))

    @property
    def provenance(self) -> Mapping[str, Any]:
        return {**self.source.provenance, "conversion": self.conversion.describe()}

    @property
    def encoding(self) -> Mapping[str, float]:
        """What pixel values mean, where the source says so; see `quantize`."""
        found: Mapping[str, float] = getattr(self.source, "encoding", {})
        return found

    def splits(self) -> dict[str, SplitInfo]:
        return {
            name: replace(
                info,
                shape=self.conversion.output(info.shape),
                dtype=self.conversion.output_type(info.dtype),
            )
            for name, info in self.source.splits().items()
        }

    def read(self, split: str, start: int, stop: int) -> Block:
        block = self.source.read(split, start, stop)
        count, *shape = block.images.shape
        dtype = self.conversion.output_type(str(block.images.dtype))
        images = np.zeros((count, *self.conversion.output(shape)), dtype)
        for number, image in enumerate(block.images):
            if number not in block.problems:  # its zeros stay, whatever is done
                images[number] = self.conversion.apply(image)
        sizes = block.sizes
        if sizes is None:
            sizes = np.full((count, 2), shape[1::-1], np.int32)
        return replace(block, images=images, sizes=sizes)

    def close(self) -> None:
        self.source.close()


def converted(source: Source, conversion: Conversion) -> ConvertedSource:
    """Return a source with a conversion applied to each image.

    Raises
    ------
    ShapeError
        Where its images cannot be converted so.
    """
    splits = source.splits()
    for name, info in splits.items():
        try:
            conversion.output(info.shape)
            conversion.output_type(info.dtype)
        except ShapeError as error:
            raise ShapeError(f"split '{name}': {error}") from None
    if conversion.depth is not None:
        full = max(int(np.iinfo(info.dtype).max) for info in splits.values())
        if source.full_scale != full:
            raise ShapeError(
                f"depth: {conversion.depth} is for images whose full scale is {full}, it is "
                f"{source.full_scale} here; leave the depth out"
            )
    return ConvertedSource(source, conversion)
