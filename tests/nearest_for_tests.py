"""The nearest images found by comparing one with all others, in NumPy."""

from __future__ import annotations

import numpy as np


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
