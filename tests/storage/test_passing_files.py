"""Files that pass through the system's memory: let go of once they are on the disk, not changed."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
from ingests_for_tests import make_arrays

import pipeline
from pipeline.ingestion import write_partition
from pipeline.sources.arrays import from_arrays
from pipeline.storage import passing_files
from pipeline.storage.atomic import write_pieces
from pipeline.storage.passing_files import PassingFiles

pytestmark = pytest.mark.skipif(
    not hasattr(os, "posix_fadvise"), reason="this system keeps what it likes"
)


@pytest.fixture
def let_go(monkeypatch):
    """Return the inodes of the files that the system was told to let go of."""
    told, real = [], os.posix_fadvise

    def advise(number, offset, length, advice):
        assert (offset, length, advice) == (0, 0, os.POSIX_FADV_DONTNEED)
        told.append(os.fstat(number).st_ino)
        real(number, offset, length, advice)

    monkeypatch.setattr(os, "posix_fadvise", advise)
    return told


def write(folder, count, size=2**20):
    rng = np.random.default_rng(count)
    contents = {folder / str(number): rng.bytes(size) for number in range(count)}
    for path, content in contents.items():
        write_pieces(path, [content[:7], content[7:]], lasting=False)
    return contents


def test_large_files_are_let_go_of_when_some_more_are_written(tmp_path, let_go):
    passing = PassingFiles()
    with passing.written():
        contents = write(tmp_path, 7)
    inodes = [path.stat().st_ino for path in contents]
    assert let_go == inodes[: 7 - passing_files._WAITING]
    assert all(path.read_bytes() == content for path, content in contents.items())


def test_small_files_and_those_that_are_written_elsewhere_stay(tmp_path, let_go):
    passing = PassingFiles()
    with passing.written():
        write(tmp_path, 7, 2**20 - 1)
    write(tmp_path, 7)
    assert not let_go
    assert len(pickle.dumps(passing)) < 200


def test_a_file_that_is_gone_or_cannot_be_let_go_of_is_no_error(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "posix_fadvise")
    passing = PassingFiles()
    with passing.written():
        passing.add(tmp_path / "gone")
        contents = write(tmp_path, 6)
    assert all(path.read_bytes() == content for path, content in contents.items())


@pytest.mark.parametrize("memory", [10**12, 10**6])
def test_image_sets_that_take_much_of_the_memory_pass_through_it(
    tmp_path, monkeypatch, let_go, memory
):
    monkeypatch.setattr(write_partition, "machine_memory", lambda: memory)
    arrays = make_arrays((128, 1024, 3))  # 8 images of 3 times 128 KiB a shard
    source = from_arrays(arrays, ["cat", "dog", "emu"])
    store = pipeline.ingest(source, tmp_path / "s.zarr", shard_samples=8, cluster="threads")
    shards = {path.stat().st_ino for path in store.rglob("image/c/*/*/*/*")}
    assert set(let_go) <= shards
    assert bool(let_go) == (memory == 10**6)
    images = pipeline.open_images(store, "train")["image"].values
    assert np.array_equal(images, arrays["train"][0])
