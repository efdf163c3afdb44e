"""Commands in a folder where nothing may open a cluster."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

import pipeline

ROOT = Path(__file__).resolve().parents[1]
SPLITS = {"train": 6, "test": 4}


def make_folder(folder, size=(4, 4), seed=0, names=("cat", "dog"), splits=SPLITS):
    """Write a tiny image set of files."""
    rng = np.random.default_rng(seed)
    for split, count in splits.items():
        for number in range(count):
            place = folder / split / names[number % len(names)] / f"{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(place)
    return folder


def make_floats(path, low=0.0):
    """Write a tiny image set of floats."""
    rng = np.random.default_rng(3)
    arrays = {}
    for split, count in SPLITS.items():
        arrays[f"{split}_images"] = rng.uniform(low, 1, (count, 4, 4)).astype(np.float32)
        arrays[f"{split}_labels"] = np.arange(count) % 2
    np.savez(path, **arrays)
    return path


class Asked(Exception):
    """The cluster was asked for."""


def job(**settings):
    """Return a job on the folder `set`, on worker processes."""
    content = {"name": "j", "images": "set", "output": "run", "report": False, "cluster": "local"}
    return pipeline.make_job(content | settings)


def here_job(**settings):
    return job(cluster="threads", **settings)
