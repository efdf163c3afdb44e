"""Small image sets and folders that tests of storage make, on this machine or a remote one."""

from __future__ import annotations

import itertools
import json
import uuid
from contextlib import contextmanager

import numpy as np
import pytest

from pipeline.core.paths import locate
from pipeline.ingestion.ingest import ingest
from pipeline.sources.arrays import from_arrays
from pipeline.storage import atomic

NAMES = ["cat", "large dog", "é 字"]
KINDS = {
    "grey uint8": ((5, 4), np.uint8),
    "RGB uint8": ((5, 4, 3), np.uint8),
    "grey uint16": ((3, 6), np.uint16),
    "RGB uint16": ((2, 3, 3), np.uint16),
}
SHARD = 8
COUNT = 21  # two whole shards and a short one


def make_arrays(shape=(5, 4), dtype=np.uint8, count=COUNT, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, np.iinfo(dtype).max, (count, *shape), dtype, endpoint=True)
    return images, rng.integers(-1, len(NAMES), count).astype(np.int32)


def make_store(path, arrays, shard=SHARD, names=NAMES):
    return ingest(from_arrays(arrays, names), path, shard_samples=shard)


def metadata(path, name):
    return json.loads((path / name / "zarr.json").read_text())


def chunk_files(path, name):
    return sorted(item for item in (path / name / "c").rglob("*") if item.is_file())


def _swap(one, two):
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)


@contextmanager
def swapped(folder, *names):
    """Put two files in each other's place for a while."""
    one, two = (folder / name for name in names)
    _swap(one, two)
    try:
        yield
    finally:
        _swap(one, two)


def memory():
    return locate(f"memory://tests-{uuid.uuid4().hex}")


def put(path, data=b"data"):
    with atomic.replaced(path) as aside:
        aside.write_bytes(data)


class Stop(Exception):
    """The machine is switched off."""


@contextmanager
def stopped(monkeypatch, moment, watched):
    """Stop at a call of functions, the first is number 0; `watched` are their names by module."""
    calls = itertools.count()

    def counted(function):
        def step(*arguments, **keywords):
            if next(calls) == moment:
                raise Stop
            return function(*arguments, **keywords)

        return step

    with monkeypatch.context() as patch:
        for module, names in watched.items():
            for name in names:
                patch.setattr(module, name, counted(getattr(module, name)))
        with pytest.raises(Stop):
            yield
