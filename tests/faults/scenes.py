"""What is disturbed: small commands that, between them, go through every phase."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

import pipeline
from faults.phases import APPEND, INGEST, RUN

CLASSES = ("ant", "bee", "cat")
SHARD = 5
_JOB = """\
name: disturbed
images: {source: pictures, store: images.zarr, shard: 5, max_bad: 2}
evaluate: [test, train]
distances: write
device: cpu
cluster: {workers: 2}
output: run
"""


def write_pictures(folder: Path, counts: Mapping[str, int], seed: int = 0) -> None:
    """Write splits of small pictures, a folder a class: a bad one and a copy of another among them.

    `counts` is how many pictures each class of a split has.
    """
    rng = np.random.default_rng(seed)
    for split, count in counts.items():
        for code, name in enumerate(CLASSES):
            place = folder / split / name
            place.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(60 * code, 60 * code + 130, (5, 4), np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")
        first = folder / split / CLASSES[0]
        shutil.copy(first / "0.png", first / "copy.png")
    (first / "1.png").write_bytes((first / "0.png").read_bytes()[:40])


@dataclass(frozen=True)
class Scene:
    """A command in a folder of its own.

    Attributes
    ----------
    name
        Names it in figures.
    prepare
        Makes what the folder holds before.
    words
        The command line.
    results
        What it makes, below the folder.
    phases
        Those that it is disturbed in; it may go through others first.
    """

    name: str
    prepare: Callable[[Path], None]
    words: tuple[str, ...]
    results: tuple[str, ...]
    phases: tuple[str, ...]


def _prepare_job(folder: Path) -> None:
    write_pictures(folder / "pictures", {"train": 4, "test": 1})
    (folder / "job.yml").write_text(_JOB)


def _prepare_growth(folder: Path) -> None:
    write_pictures(folder / "base", {"train": 4, "test": 1}, seed=1)
    write_pictures(folder / "more", {"train": 1, "extra": 2}, seed=2)
    pipeline.ingest(str(folder / "base"), folder / "images.zarr", SHARD, max_bad=1)


_APPEND = "ingest more --append --output images.zarr --set max_bad=1 shard=5"
SCENES = {
    scene.name: scene
    for scene in (
        Scene("ingest", _prepare_job, ("ingest", "job.yml"), ("images.zarr",), INGEST),
        Scene("append", _prepare_growth, tuple(_APPEND.split()), ("images.zarr",), APPEND),
        Scene("run", _prepare_job, ("run", "job.yml"), ("images.zarr", "run"), RUN),
    )
}
