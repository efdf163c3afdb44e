"""Samples that are left out, and the arrays without them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

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
