"""What is disturbed: small commands that, between them, go through every phase."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

import pipeline
from faults.objects import PROTOCOL
from faults.phases import APPEND, AUDIT, INGEST, RUN

CLASSES = ("ant", "bee", "cat")
SHARD = 5
STORE, RESULT, OBJECTS = "images.zarr", "run", "objects"
_JOB = """\
name: disturbed
images: {{source: pictures, store: "{at}images.zarr", shard: 5, max_bad: 2}}
evaluate: [test, train]
distances: write
neighbours: {{k: 3, among: [train, test]}}
device: cpu
cluster: {{workers: 2}}
output: "{at}run"
storage_options: {options}
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
    words
        The command line.
    results
        What it makes.
    phases
        Those that it is disturbed in; it may go through others first.
    at
        Where results lie, before their names: nothing for the folder itself, or a bucket.
    """

    name: str
    words: tuple[str, ...]
    results: tuple[str, ...]
    phases: tuple[str, ...]
    at: str = ""

    @property
    def options(self) -> dict[str, str]:
        """fsspec's options for what lies in a bucket."""
        return {"folder": OBJECTS} if self.at else {}

    @property
    def watched(self) -> str:
        """The folder, below that of the scene, whose operations fail."""
        return OBJECTS if self.at else ""

    def prepare(self, folder: Path) -> None:
        """Write what the command finds: pictures and a job, or an image set and more pictures."""
        if "--append" not in self.words:
            write_pictures(folder / "pictures", {"train": 4, "test": 1})
            (folder / "job.yml").write_text(_JOB.format(at=self.at, options=self.options))
            return
        write_pictures(folder / "base", {"train": 4, "test": 1}, seed=1)
        write_pictures(folder / "more", {"train": 1, "extra": 2}, seed=2)
        place = f"{self.at}{STORE}" if self.at else folder / STORE
        options = {name: str(folder / value) for name, value in self.options.items()}
        pipeline.ingest(str(folder / "base"), place, SHARD, max_bad=1, storage_options=options)


def _scenes(at: str = "", prefix: str = "") -> list[Scene]:
    store, run = f"{at}{STORE}", f"{at}{RESULT}"
    append = f"ingest more --append --output {store} --set max_bad=1 shard={SHARD}".split()
    if at:
        append.append(f"storage_options.folder={OBJECTS}")
    return [
        Scene(f"{prefix}ingest", ("ingest", "job.yml"), (store,), INGEST, at),
        Scene(f"{prefix}append", tuple(append), (store,), APPEND, at),
        Scene(f"{prefix}run", ("run", "job.yml"), (store, run), RUN, at),
    ]


_AUDIT = Scene("audit", ("audit", "job.yml", "--output", "audit"), (STORE, "audit"), AUDIT)
LOCAL = {scene.name: scene for scene in (*_scenes(), _AUDIT)}
REMOTE = {scene.name: scene for scene in _scenes(f"{PROTOCOL}://bucket/", "remote ")}
