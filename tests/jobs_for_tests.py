"""Small image sets of trees, jobs on them, and what they must find, in NumPy."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import pipeline
from pipeline.execution.progress import SilentReporter
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


OUT = {"train": [0, 7, 8, 63, 64, 65, 140, 229], "test": [3, 31, 88]}


def table_of(out=OUT, reason=None, **more):
    """A table of samples: pairs of split and sample, in no order."""
    pairs = [(split, sample) for split, samples in out.items() for sample in samples][::-1]
    columns = {"split": [split for split, _ in pairs], "sample": [at for _, at in pairs]}
    if reason is not None:
        columns["reason"] = [reason] * len(pairs)
    return columns | more


def write_table(path, out=OUT, **more):
    pq.write_table(pa.table(table_of(out, **more)), path)
    return path


def kept(arrays, out=OUT):
    """The index of each sample that is left, by split."""
    return {
        split: np.setdiff1d(np.arange(len(labels)), out.get(split, []))
        for split, (_, labels) in arrays.items()
    }


def without(arrays, out=OUT):
    left = kept(arrays, out)
    return {split: tuple(part[left[split]] for part in arrays[split]) for split in arrays}


def nearest_by_hand(arrays, key, among, metric, codes, full_scale=255):
    """Return (split, sample, label, distance) of every image that is searched, the nearest first.

    `arrays` are images and labels by split, `key` is split and sample, `codes` are those of the
    classes of the run. Of equal distances that of the first split comes first, then the lowest
    sample.
    """
    image = arrays[key[0]][0][key[1]].astype(np.int64)
    found = []
    for place, split in enumerate(among):
        images, labels = arrays[split]
        difference = np.abs(images.astype(np.int64) - image)
        total = (difference**2 if metric == "l2" else difference).reshape(len(images), -1).sum(1)
        found += [
            (int(total[sample]), place, sample, int(labels[sample]))
            for sample in range(len(images))
            if labels[sample] in codes and (split, sample) != key
        ]
    rows = []
    for total, place, sample, label in sorted(found):
        mean = total / image.size
        distance = np.sqrt(mean) / full_scale if metric == "l2" else mean / full_scale
        rows.append((among[place], sample, label, float(distance)))
    return rows


class Heard(SilentReporter):
    """A reporter that keeps what it is told."""

    def __init__(self):
        self.lines = []

    def say(self, message):
        self.lines.append(message)
