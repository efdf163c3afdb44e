"""The image sets that are measured: Fashion-MNIST shifted by up to 3 pixels, in any number.

Image `i` of a split is image `i` modulo the number of originals, moved by a distance that follows
from `i` alone. So a set is the same however it is cut into blocks, and the first images of
a large set are those of a small one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import pipeline
from pipeline.core.blocks import Block, Source, SplitInfo
from pipeline.core.errors import DatasetNotFoundError
from pipeline.sources.catalog import open_dataset

SIDE = 28
FURTHEST = 3
# Digits have the values 0 to 16.
DIGITS_SCALE = 15
TRAIN_TO_TEST = 6

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Originals:
    """The images that are shifted.

    Attributes
    ----------
    title
        What they are.
    splits
        Split name -> images, [sample, y, x] with a border of `FURTHEST` zeros; and their
        labels, [sample].
    class_names
        The name of each label code.
    provenance
        Where they come from.
    """

    title: str
    splits: Mapping[str, tuple[Pixels, Labels]]
    class_names: tuple[str, ...]
    provenance: Mapping[str, Any]


def load_originals() -> Originals:
    """Read Fashion-MNIST; where it is not to be had, the digits that scikit-learn carries."""
    try:
        return _originals(open_dataset("fashion-mnist"), "Fashion-MNIST", 1)
    except DatasetNotFoundError:
        title = "scikit-learn's digits in a black frame (Fashion-MNIST is not at hand)"
        return _originals(open_dataset("digits"), title, DIGITS_SCALE)


def load_digits() -> Originals:
    """Read the digits that scikit-learn carries, in a black frame as large as other images."""
    return _originals(open_dataset("digits"), "digits in a black frame", DIGITS_SCALE)


def _originals(source: Source, title: str, scale: int) -> Originals:
    splits = {}
    for name, info in source.splits().items():
        block = source.read(name, 0, info.count)
        before = (SIDE - info.shape[0]) // 2 + FURTHEST
        after = SIDE - info.shape[0] - before + 2 * FURTHEST
        sides = (before, after)
        images = np.pad(block.images.astype(np.uint8) * np.uint8(scale), ((0, 0), sides, sides))
        splits[name] = images, block.labels
    source.close()
    return Originals(title, splits, source.class_names, source.provenance)


def scramble(numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return a number for each number that looks drawn at random (the finish of splitmix64)."""
    mixed = numbers * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


@dataclass(frozen=True)
class ShiftedImages:
    """A source of `counts` shifted images, by split."""

    originals: Originals
    counts: Mapping[str, int]
    full_scale: int = 255

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.originals.class_names

    @property
    def provenance(self) -> dict[str, Any]:
        return {
            "kind": "shifted",
            "furthest": FURTHEST,
            "counts": dict(self.counts),
            "originals": dict(self.originals.provenance),
        }

    def splits(self) -> dict[str, SplitInfo]:
        return {name: SplitInfo(n, (SIDE, SIDE), "uint8") for name, n in self.counts.items()}

    def read(self, split: str, start: int, stop: int) -> Block:
        images, labels = self.originals.splits[split]
        numbers = np.arange(start, stop, dtype=np.uint64)
        drawn = scramble(numbers)
        down, right = ((drawn >> np.uint64(bits)) % np.uint64(2 * FURTHEST + 1) for bits in (0, 32))
        original = numbers % np.uint64(len(images))
        windows = np.lib.stride_tricks.sliding_window_view(images, (SIDE, SIDE), axis=(1, 2))
        origins = [f"{split}[{number}]" for number in range(start, stop)]
        return Block(windows[original, down, right], labels[original], origins)

    def close(self) -> None:
        """Nothing is left open."""


def store_path(folder: Path, originals: Originals, count: int) -> Path:
    """Return where `make_store` puts a store."""
    return folder / f"{originals.provenance['name']}-shifted-{count}.zarr"


def make_store(folder: Path, originals: Originals, count: int) -> Path:
    """Return a store of `count` train and a sixth as many test images, made where it is missing."""
    source = ShiftedImages(originals, {"train": count, "test": max(1, count // TRAIN_TO_TEST)})
    return pipeline.ingest(source, store_path(folder, originals, count))


def arrays_of(originals: Originals, split: str, count: int) -> tuple[Pixels, Labels]:
    """Return the first `count` images of a split as arrays in memory."""
    block = ShiftedImages(originals, {split: count}).read(split, 0, count)
    return block.images, block.labels
