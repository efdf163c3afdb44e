"""What a manifest names is on the disk before it, and what it named is never lost to a write."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from image_files_for_tests import make_folder
from sources_for_tests import NAMES, Faulty, make_arrays

import pipeline
from pipeline.core.errors import DamagedError, IncompleteError, StorageFullError
from pipeline.core.partitions import Layout
from pipeline.core.paths import locate
from pipeline.sources.arrays import from_arrays
from pipeline.storage import atomic, image_store, manifest
from pipeline.storage.image_content import digest_images
from pipeline.storage.sample_tables import part_path

SHARD = 8
COUNTS = {"train": 30, "test": 10}
BAD = {("train", 1), ("train", 12)}


def _content(item):
    return item.read_bytes() if item.is_file() else "folder"


class Disk:
    """Knows of files and folders whether they are on the disk, as far as the system promises it.

    A file is once it is flushed, until it is written again; a name once its folder is flushed.
    """

    def __init__(self, monkeypatch):
        self.bytes, self.names = {}, {}
        self.manifests = []
        self.lost = []
        replace = Path.replace

        def flushed(descriptor):
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            if path.is_dir():
                self.names[path] = {item.name: _content(item) for item in path.iterdir()}
            elif path.exists():
                self.bytes[path.stat().st_ino] = path.stat().st_mtime_ns

        def replaced(path, target):
            finished = any((folder / manifest.MANIFEST).exists() for folder in target.parents)
            finished = finished and manifest.WORK not in target.parts
            if finished and target.exists() and not self.has_bytes(path):
                self.lost.append(str(target))
            if target.name == manifest.MANIFEST:
                self.manifests.append((target.parent, self.missing(path)))
            return replace(path, target)

        monkeypatch.setattr(os, "fsync", flushed)
        monkeypatch.setattr(Path, "replace", replaced)

    def has_bytes(self, path):
        return self.bytes.get(path.stat().st_ino) == path.stat().st_mtime_ns

    def has(self, path):
        """Whether a file, and every name that leads to it, is on the disk."""
        known = [
            self.names.get(folder, {}).get(item.name) == _content(item)
            for item, folder in zip((path, *path.parents), path.parents, strict=False)
            if "pytest" in str(folder)
        ]
        return all(known) and self.has_bytes(path)

    def missing(self, written):
        """What a manifest names that is not on the disk."""
        folder, content = written.parent, atomic.read_json(written)
        named = [folder / name for name in (*content["files"], manifest.COPY)]
        for name, marks in content["arrays"].items():
            found = sorted(item for item in (folder / name / "c").rglob("*") if item.is_file())
            assert len(found) == len(marks)
            named += found
        assert self.has_bytes(written)
        # its copy has its bytes on the disk, and its name with that of the manifest
        return [str(p) for p in named if not (self.has(p) or p.name == manifest.COPY)]

    def check(self, count):
        assert [missing for _, missing in self.manifests] == [[]] * count
        assert self.lost == []
        for folder, _ in self.manifests:
            if folder.exists():
                assert self.has(folder / manifest.MANIFEST)
                assert self.has(folder / manifest.COPY)


@pytest.fixture
def disk(monkeypatch):
    return Disk(monkeypatch)


def ingest(path, bad=(), counts=COUNTS, seed=0, **options):
    source = Faulty(make_arrays(counts, seed=seed), bad)
    return pipeline.ingest(source, path, SHARD, max_bad=len(bad), **options)


def job(images, output):
    settings = {"name": "job", "images": str(images), "output": str(output)}
    return pipeline.run_job(pipeline.make_job(settings)).path


@pytest.mark.parametrize("bad", [set(), BAD])
def test_all_that_an_ingest_names_is_on_the_disk_before_its_manifest(tmp_path, disk, bad):
    ingest(tmp_path / "deep" / "s", bad)
    disk.check(1)


def test_all_that_an_append_names_is_on_the_disk_before_its_manifest(tmp_path, disk):
    path = ingest(tmp_path / "s")
    more = {"train": 13, "test": 2, "extra": 9}
    pipeline.ingest(from_arrays(make_arrays(more, seed=2), NAMES), path, append=True)
    disk.check(3)  # of the image set, of the new samples beside it, of the one that grew


def test_an_append_flushes_what_it_writes_and_not_what_was_there(tmp_path, monkeypatch):
    path = ingest(tmp_path / "s", counts={"train": 80})
    flushed = []
    monkeypatch.setattr(
        os, "fsync", lambda number: flushed.append(Path(f"/proc/self/fd/{number}").readlink())
    )
    pipeline.ingest(from_arrays(make_arrays({"train": 3}), NAMES), path, append=True)
    names = {p.relative_to(path).as_posix() for p in flushed if p.is_relative_to(path)}
    assert "train/image/c/10/0/0" in names
    assert not names & {f"train/{a}/c/{n}" for a in ("image", "label") for n in range(10)}


def test_all_that_a_run_names_is_on_the_disk_before_its_manifest(tmp_path, disk):
    path = ingest(tmp_path / "s")
    run = job(path, tmp_path / "runs" / "run")
    disk.check(2)
    pipeline.write_report(run)
    disk.check(3)


def test_all_that_a_repair_makes_again_is_on_the_disk_before_its_manifest(tmp_path, disk):
    path = pipeline.ingest(str(make_folder(tmp_path / "set", 12)), tmp_path / "s", SHARD)
    run = job(path, tmp_path / "run")
    digests = digest_images(path), pipeline.digest(run)
    for folder, name in (
        (path, "train/image/c/0/0/0"), (path, "train/label/zarr.json"), (path, "zarr.json"),
        (run, "predictions/part-000000.parquet"), (run, "distances.zarr/distance/c/0/0/0"),
    ):  # fmt: skip
        (folder / name).write_bytes(b"")
    before = len(disk.manifests)
    assert pipeline.verify(path, repair=True)
    assert pipeline.verify(run, repair=True)
    disk.check(len(disk.manifests))
    assert len(disk.manifests) > before + 1
    assert (digest_images(path), pipeline.digest(run)) == digests


def test_shards_without_bad_samples_are_on_the_disk_before_the_record_of_them(tmp_path, disk):
    seen = []
    record = Path.replace

    def replaced(path, target):
        if Path(target).name == "compacted.json":
            place = Path(target).parent / "compact"
            found = [item for item in place.rglob("*") if item.is_file()]
            seen.extend(found)
            assert all(disk.has_bytes(item) for item in found)
        return record(path, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", replaced)
        ingest(tmp_path / "s", BAD)
    assert seen


def test_what_takes_the_place_of_a_file_is_flushed_before(tmp_path, disk):
    template = image_store.SplitTemplate(8, (2, 2), "uint8", Layout(4, 4))
    images, labels = np.ones((4, 2, 2), np.uint8), np.zeros(4, np.int32)
    for attributes in ({}, {"full_scale": 255}):
        image_store.create_images(tmp_path / "s", attributes, {"train": template})
        (tmp_path / "s" / manifest.MANIFEST).touch()
        for start in (0, 4):
            image_store.write_images(tmp_path / "s", "train", start, images, labels)
    assert disk.lost == []


@pytest.mark.parametrize("torn", [b"", b"\0" * 200, None])
@pytest.mark.parametrize("what", ["image", "label"])
def test_a_shard_that_a_power_cut_took_is_not_vouched_for(tmp_path, torn, what):
    source = str(make_folder(tmp_path / "set", 12))
    path, shard = tmp_path / "s", SHARD
    count = pipeline.plan_ingest(source, path, shard)
    pipeline.ingest_partitions(source, 0, count, path, shard)
    file = path / "train" / what / ("c/0/0/0" if what == "image" else "c/0")
    file.unlink() if torn is None else file.write_bytes(torn)
    with pytest.raises(IncompleteError, match="1 of 3 partitions are not written"):
        pipeline.finish_ingest(source, path, shard)
    pipeline.ingest_partitions(source, 0, count, path, shard)
    pipeline.finish_ingest(source, path, shard)
    assert pipeline.verify(path) == []


@pytest.mark.parametrize("torn", ["empty", "cut"])
def test_a_table_that_a_power_cut_tore_is_written_again(tmp_path, torn):
    source = str(make_folder(tmp_path / "set", 12))
    count = pipeline.plan_ingest(source, tmp_path / "s", SHARD)
    pipeline.ingest_partitions(source, 0, count, tmp_path / "s", SHARD)
    part = part_path(tmp_path / "s", 1)
    part.write_bytes(b"" if torn == "empty" else part.read_bytes()[:-9])
    path = pipeline.ingest(source, tmp_path / "s", SHARD)
    assert pipeline.verify(path) == []


def test_a_disk_that_fails_when_it_is_flushed_leaves_no_manifest(tmp_path, monkeypatch):
    flush = atomic.flush

    def full(path):
        if path.name == "0" and "image" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(path)

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "flush", full)
        with pytest.raises(StorageFullError, match="free some space"):
            ingest(tmp_path / "s")
    assert manifest.kind_of(tmp_path / "s") is None
    path = ingest(tmp_path / "s")
    assert digest_images(path) == manifest.read_manifest(path, manifest.IMAGES)["digest"]


def test_a_file_that_is_named_and_not_there_leaves_no_manifest(tmp_path):
    content = {"files": {"table.parquet": "0" * 64}, "arrays": {}}
    with pytest.raises(DamagedError, match=r"table\.parquet: is missing"):
        manifest.put_manifest(tmp_path, content)
    assert not (tmp_path / manifest.MANIFEST).exists()


@pytest.mark.parametrize(("code", "folder"), [(errno.EINVAL, True), (errno.EINVAL, False)])
def test_only_of_folders_a_file_system_may_not_know_flushing(tmp_path, monkeypatch, code, folder):
    def fails(descriptor):
        raise OSError(code, os.strerror(code))

    (tmp_path / "file").write_text("content")
    monkeypatch.setattr(os, "fsync", fails)
    if folder:
        atomic.flush(tmp_path)
        return
    with pytest.raises(OSError, match="Invalid argument"):
        atomic.flush(tmp_path / "file")


def test_nothing_is_flushed_of_a_bucket(monkeypatch):
    place = locate("memory://durable/s")
    monkeypatch.setattr(os, "fsync", lambda number: pytest.fail("there is nothing to flush"))
    monkeypatch.setattr(atomic, "flush", lambda path: pytest.fail("there is nothing to flush"))
    atomic.flush_named(place, {"files": {"a": "0"}, "arrays": {"b": ["0"]}})
    atomic.flush_tree(place)
