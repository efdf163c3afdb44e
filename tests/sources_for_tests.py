"""Sources that tests make up: with bad samples, and failing where they are told to."""

from __future__ import annotations

import numpy as np

from pipeline.core.blocks import UNREADABLE, Block, Problem
from pipeline.core.errors import SourceError
from pipeline.sources.arrays import from_arrays

NAMES = ("cat", "dog", "emu")


def make_arrays(counts, shape=(4, 3), seed=0, dtype=np.uint8):
    """Make splits of random images, labels in turn."""
    rng = np.random.default_rng(seed)
    return {
        split: (
            rng.integers(0, np.iinfo(dtype).max, (count, *shape), dtype, endpoint=True),
            np.arange(count, dtype=np.int32) % len(NAMES),
        )
        for split, count in counts.items()
    }


class Faulty:
    """Arrays as a source, some samples of which cannot be used.

    `bad` is a set of (split, sample); reading at `fails_at`, (split, start), raises.
    """

    def __init__(self, arrays, bad=(), fails_at=None, names=NAMES, title="faulty"):
        inner = from_arrays(arrays, names)
        self.arrays, self.bad, self.fails_at = arrays, frozenset(bad), fails_at
        self.class_names, self.full_scale = inner.class_names, inner.full_scale
        self.provenance = {**inner.provenance, "title": title}
        self.inner, self.reads, self.closed = inner, [], False

    def splits(self):
        return self.inner.splits()

    def read(self, split, start, stop):
        if (split, start) == self.fails_at:
            raise SourceError(f"{split} {start}: the disk made a noise")
        self.reads.append((split, start))
        block = self.inner.read(split, start, stop)
        places = [n - start for s, n in self.bad if s == split and start <= n < stop]
        images, labels = block.images.copy(), block.labels.copy()
        images[places], labels[places] = 0, -1
        problems = {place: Problem(UNREADABLE, "begins with nothing", 7, 5) for place in places}
        return Block(images, labels, block.origins, problems)

    def close(self):
        self.closed = True

    def good(self):
        """The arrays without the bad samples."""
        kept = {
            split: [n for n in range(len(labels)) if (split, n) not in self.bad]
            for split, (_, labels) in self.arrays.items()
        }
        return {s: (self.arrays[s][0][rows], self.arrays[s][1][rows]) for s, rows in kept.items()}
