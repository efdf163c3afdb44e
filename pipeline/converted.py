"""Sources of arrays whose images are brought to another shape while they are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.conversion import Conversion
from pipeline.sources import Block, Source, SplitInfo


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
        return self.source.full_scale

    @property
    def remarks(self) -> tuple[str, ...]:
        return tuple(getattr(self.source, "remarks", ()))

    @property
    def provenance(self) -> Mapping[str, Any]:
        return {**self.source.provenance, "conversion": self.conversion.describe()}

    @property
    def encoding(self) -> Mapping[str, float]:
        """What pixel values mean, where the source says so; see `packing`."""
        found: Mapping[str, float] = getattr(self.source, "encoding", {})
        return found

    def splits(self) -> dict[str, SplitInfo]:
        return {
            name: replace(info, shape=self.conversion.output(info.shape))
            for name, info in self.source.splits().items()
        }

    def read(self, split: str, start: int, stop: int) -> Block:
        block = self.source.read(split, start, stop)
        count, *shape = block.images.shape
        images = np.zeros((count, *self.conversion.output(shape)), block.images.dtype)
        for number, image in enumerate(block.images):
            if number not in block.problems:  # its zeros stay, whatever is done
                images[number] = self.conversion.apply(image)
        sizes = block.sizes
        if sizes is None:
            sizes = np.full((count, 2), shape[1::-1], np.int32)
        return replace(block, images=images, sizes=sizes)

    def close(self) -> None:
        self.source.close()
