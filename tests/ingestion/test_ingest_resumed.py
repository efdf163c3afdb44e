"""An ingest that is cut short anywhere is resumed, and nothing is lost or believed."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from ingests_for_tests import (
    NAMES,
    ONE,
    PARTITIONS,
    ROOT,
    SHARD,
    Watched,
    digest_of,
    holds,
    interrupted,
    make_arrays,
    shards,
    snapshot,
)

import pipeline
from pipeline.core.errors import (
    ConflictError,
    DamagedError,
    IncompleteError,
    InUseError,
    SourceError,
    StorageFullError,
)
from pipeline.ingestion.ingest import finish_ingest, ingest, ingest_partitions, plan_ingest
from pipeline.storage import image_store, manifest
from pipeline.storage.image_content import digest_images
from pipeline.storage.lock_files import LOCK
from pipeline.storage.locks import held
from pipeline.storage.sample_tables import SAMPLES, part_path


def test_an_interrupted_store_is_incomplete_and_not_opened(tmp_path):
    interrupted(tmp_path / "s")
    assert manifest.kind_of(tmp_path / "s") is None
    with pytest.raises(IncompleteError, match="run the same command"):
        pipeline.open_images(tmp_path / "s")


@pytest.mark.parametrize("fails_at", PARTITIONS)
def test_a_resume_writes_what_is_missing_only_and_ends_with_the_same_digest(
    tmp_path, undisturbed, fails_at
):
    path = tmp_path / "s"
    done = interrupted(path, fails_at)
    before = {key: snapshot(file.parent)[file] for key, file in shards(path).items()}
    source = Watched()
    ingest(source, path, SHARD, ONE)
    assert sorted(source.reads + done) == sorted(PARTITIONS)
    after = {key: snapshot(file.parent)[file] for key, file in shards(path).items()}
    untouched = [key for key in before if key[:2] in done]
    assert len(untouched) == 2 * len(done)
    assert all(after[key] == before[key] for key in untouched)
    assert digest_of(path) == digest_images(path) == digest_of(undisturbed)
    assert holds(path, make_arrays())
    rows = pq.read_table(path / SAMPLES)
    assert rows.equals(pq.read_table(undisturbed / SAMPLES))
    assert not (path / manifest.WORK).exists()


def test_a_store_may_be_interrupted_again_and_again(tmp_path, undisturbed):
    path = tmp_path / "s"
    reads = []
    for fails_at in (("test", 8), ("train", 24), ("train", 8)):
        source = Watched(fails_at=fails_at)
        try:
            ingest(source, path, SHARD, ONE)
        except SourceError:
            reads += source.reads
        else:
            pytest.fail("a partition that failed was taken for done")
        if ("train", 8) in reads:
            break
    last = Watched()
    ingest(last, path, SHARD, ONE)
    assert sorted(reads + last.reads) == sorted(PARTITIONS)
    assert digest_of(path) == digest_of(undisturbed)


def flip(file):
    data = bytearray(file.read_bytes())
    place = len(data) // 3
    if file.suffix == ".parquet":  # in what a checksum covers: the rest is the description
        column = pq.read_metadata(file).row_group(0).column(0)
        place = column.data_page_offset + column.total_compressed_size - 2
    data[place] ^= 4
    file.write_bytes(data)


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


DAMAGES = {"flipped": flip, "truncated": cut, "empty": lambda file: file.write_bytes(b""),
           "deleted": lambda file: file.unlink()}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("what", ["image", "label", "table"])
def test_a_damaged_partition_of_an_unfinished_store_is_made_again(
    tmp_path, undisturbed, damage, what
):
    path = tmp_path / "s"
    done = interrupted(path, ("train", 24))
    victim = done[1]
    if what == "table":
        file = part_path(path, PARTITIONS.index(victim))
    else:
        file = shards(path)[(*victim, what)]
    DAMAGES[damage](file)
    source = Watched()
    ingest(source, path, SHARD, ONE)
    assert sorted(source.reads) == sorted([*set(PARTITIONS).difference(done), victim])
    assert digest_of(path) == digest_images(path) == digest_of(undisturbed)


def test_a_shard_with_other_images_and_right_checksums_is_made_again(tmp_path, undisturbed):
    path = tmp_path / "s"
    done = interrupted(path, ("train", 24))
    black = np.ones((SHARD, 4, 3), np.uint8)
    split, start = next(place for place in done if place[0] == "train")
    image_store.write_images(path, split, start, black, np.zeros(SHARD, np.int32))
    source = Watched()
    ingest(source, path, SHARD, ONE)
    assert (split, start) in source.reads
    assert digest_of(path) == digest_images(path) == digest_of(undisturbed)


def test_damage_to_a_finished_store_is_found_when_its_digest_is_taken(tmp_path):
    path = ingest(Watched(), tmp_path / "s", SHARD)
    flip(shards(path)["train", 8, "image"])
    with pytest.raises(DamagedError):
        digest_images(path)


def test_a_killed_process_is_resumed_and_ends_with_the_same_digest(tmp_path, undisturbed):
    arrays = make_arrays()
    np.savez(
        tmp_path / "a.npz",
        **{f"{k}{n}": v[n] for k, v in arrays.items() for n in (0, 1)},
    )
    (tmp_path / "child.py").write_text(
        f"""\
import os, signal
import numpy as np
from pipeline.config.cluster_settings import ClusterSettings
from pipeline.config.job_settings import make_images
from pipeline.ingestion.ingest import ingest
from pipeline.sources.array_source import ArraySource
from pipeline.sources.arrays import from_arrays

class Deadly(ArraySource):
    def read(self, split, start, stop):
        if (split, start) == ("train", 16):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(split, start, stop)

found = np.load({str(tmp_path / "a.npz")!r})
arrays = {{k: (found[k + "0"], found[k + "1"]) for k in ("test", "train")}}
source = from_arrays(arrays, {NAMES!r})
deadly = Deadly(source.parts, source.labelling, source.full_scale, source.provenance)
ingest(deadly, {str(tmp_path / "s")!r}, {SHARD}, ClusterSettings(workers=1))
""",
        encoding="utf-8",
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    child = subprocess.run([sys.executable, tmp_path / "child.py"], env=environment, check=False)
    assert child.returncode == -9
    with pytest.raises(IncompleteError):
        pipeline.open_images(tmp_path / "s")
    source = Watched()
    ingest(source, tmp_path / "s", SHARD)
    assert ("train", 16) in source.reads
    assert len(source.reads) < len(PARTITIONS)
    assert digest_of(tmp_path / "s") == digest_images(tmp_path / "s") == digest_of(undisturbed)


class Meanwhile(Watched):
    """A source that does something before its first samples are read."""

    def __init__(self, does, arrays=None):
        super().__init__(arrays)
        self.does = does

    def read(self, split, start, stop):
        does, self.does = self.does, lambda: None
        does()
        return super().read(split, start, stop)


def test_of_two_ingests_at_once_the_second_is_told_of_the_first(tmp_path, undisturbed):
    path, messages = tmp_path / "s", []

    def again():
        second = Watched()
        for function in (ingest, plan_ingest):
            with pytest.raises(InUseError, match=f"in use by process {os.getpid()} of") as caught:
                function(second, path, SHARD, ONE)
            messages.append(str(caught.value))
        with pytest.raises(ConflictError):
            ingest(Watched(make_arrays(seed=9)), path, SHARD, ONE)
        assert not second.reads

    ingest(Meanwhile(again), path, SHARD, ONE)
    assert len(messages) == 2
    assert digest_of(path) == digest_of(undisturbed)
    assert not (path / LOCK).exists()


def test_partitions_are_written_by_any_number_at_once_and_finished_by_one(tmp_path, undisturbed):
    path = tmp_path / "s"
    number = plan_ingest(Watched(), path, SHARD, ONE)
    assert not (path / LOCK).exists()
    ingest_partitions(
        Meanwhile(lambda: ingest_partitions(Watched(), 0, number, path, SHARD, ONE)),
        0, number, path, SHARD, ONE,
    )  # fmt: skip
    with held(path, "another"), pytest.raises(InUseError):
        finish_ingest(Watched(), path, SHARD, ONE)
    finish_ingest(Watched(), path, SHARD, ONE)
    assert digest_of(path) == digest_of(undisturbed)
    with pytest.raises(ConflictError, match="nothing left to do"):
        finish_ingest(Watched(), path, SHARD, ONE)
    assert not (path / LOCK).exists()


@pytest.mark.parametrize("array", ["image", "label"])
def test_a_full_disk_in_the_middle_is_named_and_the_resume_completes(
    tmp_path, undisturbed, monkeypatch, array
):
    path = tmp_path / "s"
    opened = Path.open

    def full(file, mode="r", *more, **keywords):
        # put aside in the folder of the array
        if "w" in mode and f"train/{array}/c.2." in str(file):
            raise OSError(errno.ENOSPC, "No space left on device")
        return opened(file, mode, *more, **keywords)

    with monkeypatch.context() as context:
        context.setattr(Path, "open", full)
        with pytest.raises(StorageFullError, match="free some space") as caught:
            ingest(Watched(), path, SHARD, ONE)
    assert str(path) in str(caught.value)
    assert manifest.kind_of(path) is None
    source = Watched()
    ingest(source, path, SHARD, ONE)
    assert ("train", 16) in source.reads
    assert digest_of(path) == digest_images(path) == digest_of(undisturbed)


def test_a_disk_that_is_full_at_the_very_end_leaves_no_manifest_and_the_resume_completes(
    tmp_path, undisturbed, monkeypatch
):
    path = tmp_path / "s"

    def full(_path, _content):
        raise StorageFullError("no space left")

    with monkeypatch.context() as context:
        context.setattr(manifest, "write_json", full)
        with pytest.raises(StorageFullError):
            ingest(Watched(), path, SHARD)
    source = Watched()
    ingest(source, path, SHARD)
    assert digest_of(path) == digest_of(undisturbed)
