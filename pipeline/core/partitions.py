"""Pure arithmetic on chunks, shards and partitions: integers in, integers out.

A partition is the range of samples that one task handles: one whole shard of the store. Codec and
sizes were chosen by measurement on two cores, Fashion-MNIST, every chunk closed with crc32c.
Decoding a chunk of 4,096 images (3.2 MB), one thread:

| codec | size | decoded, GB/s | encoded, GB/s |
| --- | --- | --- | --- |
| zstd, level 1 | 0.561 | 1.3 | 0.43 |
| zstd, level -1 | 0.589 | 2.4 | 0.54 |
| lz4 in blosc, level 5 | 0.674 | 4.2 | 1.15 |
| lz4hc | 0.587 | 5.9 | 0.07 |

A fifth more bytes than with zstd, and no longer the decoder that everything waits for. Reading
294,912 images shifted by up to 3 pixels from the page cache (see `shards`), GB of pixels a second:

| inner chunk | shard | one thread | two threads |
| --- | --- | --- | --- |
| 1,024 images (0.8 MB) | 16,384 images (12.8 MB) | 3.0 | 4.0 |
| 4,096 images (3.2 MB) | 16,384 images (12.8 MB) | 3.2 | 4.7 |
| 16,384 images (12.8 MB) | 16,384 images (12.8 MB) | 3.0 | 5.5 |
| 4,096 images (3.2 MB) | 4,096 images (3.2 MB) | 3.3 | 5.5 |

Between the last three lies less than between two runs. Small chunks let a reader take a few images
without decoding a shard, large shards keep the number of files down.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

CHUNK_BYTES = 4 * 2**20
CHUNKS_PER_SHARD = 4


@dataclass(frozen=True)
class Partition:
    """A range of samples of one split: `start <= sample < stop`."""

    index: int
    split: str
    start: int
    stop: int

    @property
    def count(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Layout:
    """How many samples an inner chunk and a shard of a split hold."""

    chunk: int
    shard: int


def ceil_div(a: int, b: int) -> int:
    """Return a / b rounded up."""
    return -(-a // b)


def image_bytes(shape: Sequence[int], dtype: str) -> int:
    """Return the bytes of one image."""
    return math.prod(shape) * np.dtype(dtype).itemsize


def choose_layout(count: int, sample_bytes: int, shard_samples: int | None = None) -> Layout:
    """Choose chunk and shard sizes for `count` samples of `sample_bytes` bytes each.

    An inner chunk holds the power of two of samples that fits `CHUNK_BYTES` (one at least), a
    shard `CHUNKS_PER_SHARD` of them; a small split gets one shard no larger than itself.

    Parameters
    ----------
    count
        Samples in the split.
    sample_bytes
        Bytes of one image.
    shard_samples
        Samples per shard where the user asks for a size; chunks then divide it.
    """
    fitting = max(1, CHUNK_BYTES // max(sample_bytes, 1))
    chunk = 1 << (fitting.bit_length() - 1)
    if shard_samples is not None:
        parts = max(1, ceil_div(shard_samples, chunk))
        while shard_samples % parts:
            parts += 1
        return Layout(shard_samples // parts, shard_samples)
    if count <= chunk:
        return Layout(max(count, 1), max(count, 1))
    return Layout(chunk, chunk * min(CHUNKS_PER_SHARD, ceil_div(count, chunk)))


def accumulator_bytes(classes: int, pixels: int, histograms: int = 0) -> int:
    """Return the bytes of what the tasks of the first pass return, and what is added up.

    Parameters
    ----------
    classes, pixels
        As many classes, and as many pixels of the image.
    histograms
        Tables of 256 counts for each pixel and class, 4 bytes a count.

    Returns
    -------
    8 bytes for each sum of pixels and of squares, and for the number of images; and the tables.
    """
    return classes * (8 * (2 * pixels + 1) + 1024 * pixels * histograms)


def pixel_tiles(pixels: int, fitting: int) -> tuple[tuple[int, int], ...]:
    """Cut the pixels of an image into as few equal tiles as hold at most `fitting` each.

    Returns
    -------
    (first pixel, one after the last) of each tile.
    """
    number = ceil_div(pixels, max(fitting, 1))
    edges = [pixels * tile // number for tile in range(number + 1)]
    return tuple(itertools.pairwise(edges))


def choose_step(shard: int, sample_bytes: int, most: int) -> int:
    """Choose how many samples one task of the second pass measures: a shard, or an even part.

    Parameters
    ----------
    shard
        Samples of a shard of images.
    sample_bytes
        Bytes of the distances of one sample.
    most
        Bytes of distances that one task may hold.
    """
    parts = 1
    while parts < shard and ceil_div(shard, parts) * sample_bytes > most:
        parts *= 2
    return ceil_div(shard, parts)


@dataclass(frozen=True)
class PartitionTable:
    """The partitions of a store: the shards of each split, splits in the given order.

    A table of 100,000 partitions is a handful of numbers; each partition is worked out when
    asked for.

    Attributes
    ----------
    splits
        (name, samples, samples per shard) of each split.
    """

    splits: tuple[tuple[str, int, int], ...]

    def __len__(self) -> int:
        return sum(ceil_div(count, shard) for _, count, shard in self.splits)

    def __getitem__(self, index: int) -> Partition:
        number = index
        for split, count, shard in self.splits:
            shards = ceil_div(count, shard)
            if 0 <= number < shards:
                start = number * shard
                return Partition(index, split, start, min(start + shard, count))
            number -= shards
        raise IndexError(f"partition {index} of {len(self)}")

    def indices(self, split: str) -> range:
        """Return the numbers of the partitions of a split."""
        first = 0
        for name, count, shard in self.splits:
            shards = ceil_div(count, shard)
            if name == split:
                return range(first, first + shards)
            first += shards
        raise IndexError(f"split '{split}' is not in the table")

    def __iter__(self) -> Iterator[Partition]:
        return (self[index] for index in range(len(self)))


@dataclass(frozen=True)
class Concatenation:
    """Several splits end to end on one sample axis, cut into equal steps.

    One step is one shard of an output array, so no two tasks write to one file. For a single
    split whose shard is the step, a step is a shard of the input as well; where splits follow
    each other, a step may read the end of one split and the start of the next.
    """

    counts: tuple[tuple[str, int], ...]
    step: int

    @property
    def total(self) -> int:
        return sum(count for _, count in self.counts)

    @property
    def steps(self) -> int:
        return ceil_div(self.total, self.step)

    def bounds(self, index: int) -> tuple[int, int]:
        """Return start and stop of a step on the concatenated axis."""
        return index * self.step, min((index + 1) * self.step, self.total)

    def pieces(self, index: int) -> Iterator[tuple[str, int, int]]:
        """Yield (split, start, stop) for each split that a step touches."""
        start, stop = self.bounds(index)
        offset = 0
        for split, count in self.counts:
            first, last = max(start - offset, 0), min(stop - offset, count)
            if first < last:
                yield split, first, last
            offset += count
