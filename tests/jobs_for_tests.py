"""Small image sets of trees, and jobs on them."""

from __future__ import annotations

import numpy as np

import pipeline
from pipeline.sources.arrays import from_arrays

NAMES = ["ash", "birch", "cedar", "dogwood"]


def make_arrays(seed=0, train=230, test=90, shape=(5, 4), dtype=np.uint8, classes=4):
    rng = np.random.default_rng(seed)
    largest = np.iinfo(dtype).max
    centres = rng.integers(0, largest, (classes, *shape))
    arrays = {}
    for split, count in {"train": train, "test": test}.items():
        labels = rng.integers(0, classes, count).astype(np.int32)
        noise = rng.integers(-largest // 3, largest // 3, (count, *shape))
        arrays[split] = np.clip(centres[labels] + noise, 0, largest).astype(dtype), labels
    return arrays


def make_images(path, arrays=None, shard=64, names=NAMES):
    return pipeline.ingest(from_arrays(arrays or make_arrays(), names), path, shard_samples=shard)


def make_settings(images, output, **settings):
    return pipeline.make_job(
        {"name": "trees", "images": str(images), "output": str(output), **settings}
    )


def run(images, output, **settings):
    return pipeline.run_job(make_settings(images, output, **settings))
