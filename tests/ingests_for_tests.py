"""Arrays that are ingested, a source that is watched, and what a store holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sources_for_tests import Faulty

import pipeline
from pipeline.config.cluster_settings import ClusterSettings
from pipeline.core.errors import SourceError
from pipeline.ingestion.ingest import ingest
from pipeline.storage import manifest

ROOT = Path(__file__).resolve().parents[1]
NAMES = ["cat", "dog", "emu"]
COUNTS = {"test": 9, "train": 30}
SHARD = 8
ONE = ClusterSettings(workers=1)


def make_arrays(shape=(4, 3), dtype=np.uint8, seed=0):
    """Make two splits; labels are in order, as a folder gives them, and each class occurs."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for split, count in COUNTS.items():
        images = rng.integers(0, np.iinfo(dtype).max, (count, *shape), dtype, endpoint=True)
        arrays[split] = images, np.sort(np.arange(count, dtype=np.int32) % 3)
    return arrays


class Watched(Faulty):
    """A source that remembers what was read, and fails where it is told to."""

    def __init__(self, arrays=None, fails_at=None, names=NAMES):
        super().__init__(arrays or make_arrays(), (), fails_at, names)
        self.provenance = self.inner.provenance


PARTITIONS = [("test", 0), ("test", 8), *(("train", start) for start in range(0, 30, 8))]


def digest_of(path):
    return manifest.read_manifest(path, manifest.IMAGES)["digest"]


def snapshot(folder):
    """Every file below a folder with what it holds and when it was written."""
    return {
        item: (item.read_bytes(), item.stat().st_mtime_ns)
        for item in folder.rglob("*")
        if item.is_file()
    }


def shards(path):
    return {
        (split, SHARD * int(file.name if name == "label" else file.parent.parent.name), name): file
        for split in COUNTS
        for name in ("image", "label")
        for file in (path / split / name / "c").rglob("*")
        if file.is_file()
    }


def holds(path, arrays):
    for split, (images, labels) in arrays.items():
        found = pipeline.open_images(path, split).compute()
        np.testing.assert_array_equal(found["image"].values, images)
        np.testing.assert_array_equal(found["label"].values, labels)
    return True


def interrupted(path, fails_at=("train", 16)):
    """Begin a store whose source fails in the middle; return what was read before."""
    source = Watched(fails_at=fails_at)
    with pytest.raises(SourceError, match="made a noise"):
        ingest(source, path, SHARD, ONE)
    assert source.closed
    assert fails_at not in source.reads
    return source.reads
