"""Growing an image set: all new samples or none, whatever happens on the way."""

from __future__ import annotations

import errno
import os
import shutil
from functools import cache

import numpy as np
import pyarrow.parquet as pq
import pytest
import xarray as xr
from sources_for_tests import NAMES, Faulty, make_arrays
from stores_for_tests import Stop, stopped

import pipeline
from pipeline.core.errors import BadSamplesError, ConflictError, InUseError, ShapeError, StoreError
from pipeline.ingestion import append, steps
from pipeline.ingestion.duplicates import DUPLICATES
from pipeline.ingestion.ingest import ingest
from pipeline.report.description import describe
from pipeline.sources.arrays import from_arrays
from pipeline.storage import folders, image_store, manifest, store_array, tables, zarr_arrays
from pipeline.storage.atomic import PARTIAL_SUFFIX
from pipeline.storage.image_content import digest_images
from pipeline.storage.locks import is_lock
from pipeline.storage.sample_tables import SAMPLES

SHARD = 8
BASE = make_arrays({"train": 21, "test": 5}, seed=1)
MORE = {
    "the end of a shard": make_arrays({"train": 3}, seed=2),
    "one sample": make_arrays({"train": 1}, seed=2),
    "several shards": make_arrays({"train": 40, "test": 9}, seed=2),
    "a new split": make_arrays({"extra": 19}, seed=2),
    "both": make_arrays({"extra": 3, "test": 30}, seed=2),
}


def joined(*sets):
    """Arrays end to end, split by split."""
    splits = dict.fromkeys(split for one in sets for split in one)
    return {
        split: tuple(
            np.concatenate([one[split][part] for one in sets if split in one]) for part in (0, 1)
        )
        for split in splits
    }


@pytest.fixture(scope="module")
def base_store(tmp_path_factory):
    """Return what puts a store of `BASE` into a folder; each is made once, and copied."""

    @cache
    def made(shard):
        return ingest(from_arrays(BASE, NAMES), tmp_path_factory.mktemp("base") / "s", shard)

    return lambda folder, shard=SHARD: shutil.copytree(made(shard), folder / "s")


def content(path):
    return manifest.read_manifest(path, manifest.IMAGES)


def holds(path, arrays):
    for split, (images, labels) in arrays.items():
        found = pipeline.open_images(path, split).compute()
        np.testing.assert_array_equal(found["image"].values, images)
        np.testing.assert_array_equal(found["label"].values, labels)
        plain = xr.open_zarr(path, group=split)
        np.testing.assert_array_equal(plain["image"].values, images)
    return True


@pytest.mark.parametrize("what", MORE)
@pytest.mark.parametrize("shard", [SHARD, None, pytest.param(1, marks=pytest.mark.slow)])
def test_the_grown_store_is_that_of_all_samples_at_once(base_store, tmp_path, what, shard):
    path = base_store(tmp_path, shard=shard)
    ingest(from_arrays(MORE[what], NAMES), path, shard, append=True)
    everything = joined(BASE, MORE[what])
    whole = ingest(from_arrays(everything, NAMES), tmp_path / "whole", shard)
    assert content(path)["digest"] == content(whole)["digest"] == digest_images(path)
    assert holds(path, everything)
    assert not append.append_path(path).parent.exists()
    described = describe(path)["splits"]
    assert {name: split["count"] for name, split in described.items()} == {
        name: len(labels) for name, (_, labels) in everything.items()
    }


def test_a_store_may_grow_again_and_again(base_store, tmp_path):
    path = base_store(tmp_path)
    parts = [make_arrays({"train": n, "test": 1}, seed=n) for n in (2, 9, 5)]
    for part in parts:
        ingest(from_arrays(part, NAMES), path, SHARD, append=True)
    assert holds(path, joined(BASE, *parts))
    assert [entry["splits"] for entry in content(path)["appended"]] == [
        {"train": n, "test": 1} for n in (2, 9, 5)
    ]


def test_new_classes_become_the_last_ones_and_old_codes_stay(base_store, tmp_path):
    path = base_store(tmp_path)
    images = MORE["one sample"]["train"][0].repeat(4, axis=0)
    labels = np.array([0, 1, 2, -1], np.int32)
    ingest(from_arrays({"train": (images, labels)}, ["yak", "emu", "ant"]), path, append=True)
    assert content(path)["class_names"] == [*NAMES, "yak", "ant"]
    found = pipeline.open_images(path, "train")
    assert found["label"].values[21:].tolist() == [3, 2, 4, -1]
    assert found.attrs["class_names"] == [*NAMES, "yak", "ant"]
    assert xr.open_zarr(path, group="train").attrs["class_names"] == [*NAMES, "yak", "ant"]
    assert content(path)["splits"]["train"]["labels"] == [7, 7, 8, 1, 1]
    assert content(path)["splits"]["train"]["unlabelled"] == 1
    rows = pq.read_table(path / SAMPLES).to_pylist()[-4:]
    assert [(r["sample"], r["label"], r["label_name"]) for r in rows] == [
        (21, 3, "yak"), (22, 2, "emu"), (23, 4, "ant"), (24, None, None),
    ]  # fmt: skip


def test_the_table_of_samples_lists_old_samples_then_new_ones(base_store, tmp_path):
    path = base_store(tmp_path)
    before = pq.read_table(path / SAMPLES).to_pylist()
    ingest(from_arrays(MORE["both"], NAMES), path, append=True)
    rows = pq.read_table(path / SAMPLES).to_pylist()
    assert rows[: len(before)] == before
    numbers = [(row["split"], row["sample"]) for row in rows[len(before) :]]
    assert numbers == [("extra", n) for n in range(3)] + [("test", 5 + n) for n in range(30)]


def test_duplicates_of_old_samples_are_found(base_store, tmp_path):
    path = base_store(tmp_path)
    images, labels = BASE["train"]
    ingest(from_arrays({"test": (images[3:5], labels[3:5])}, NAMES), path, append=True)
    assert content(path)["duplicates"] == 2
    assert [tuple(row.values()) for row in pq.read_table(path / DUPLICATES).to_pylist()] == [
        ("test", 5, "train", 3), ("test", 6, "train", 4),
    ]  # fmt: skip


def test_the_same_samples_are_not_added_twice(base_store, tmp_path):
    path = base_store(tmp_path)
    source = from_arrays(MORE["several shards"], NAMES)
    ingest(source, path, SHARD, append=True)
    digest = content(path)["digest"]
    ingest(source, path, SHARD, append=True)
    assert content(path)["digest"] == digest == digest_images(path)


@pytest.mark.parametrize(
    ("arrays", "names", "scale", "word"),
    [
        (make_arrays({"train": 3}, (3, 4)), NAMES, 255, r"\[3, 4\]"),
        (make_arrays({"train": 3}, dtype=np.uint16), NAMES, 65535, "full_scale"),
        (make_arrays({"extra": 3}, (5, 3, 3)), NAMES, 255, r"\[5, 3, 3\]"),
    ],
)
def test_other_images_are_refused_and_nothing_changes(
    base_store, tmp_path, arrays, names, scale, word
):
    path = base_store(tmp_path)
    with pytest.raises(ShapeError, match=word):
        ingest(from_arrays(arrays, names, scale), path, append=True)
    assert holds(path, BASE)
    assert digest_images(path) == content(path)["digest"]


def test_bad_samples_among_the_new_ones_are_refused_or_left_out(base_store, tmp_path):
    path = base_store(tmp_path)
    source = Faulty(MORE["several shards"], {("train", 0), ("test", 8)})
    with pytest.raises(BadSamplesError):
        ingest(source, path, SHARD, append=True)
    assert digest_images(path) == content(path)["digest"]
    assert holds(path, BASE)
    ingest(source, path, SHARD, append=True, max_bad=2)
    assert holds(path, joined(BASE, source.good()))
    assert content(path)["samples"] == {"listed": 75, "left_out": {"unreadable": 2}}


def test_only_a_finished_image_set_grows(tmp_path):
    with pytest.raises(StoreError, match="no such folder"):
        ingest(from_arrays(BASE, NAMES), tmp_path / "nothing", append=True)
    assert not (tmp_path / "nothing").exists()


def test_samples_of_another_source_wait_for_those_that_were_begun(base_store, tmp_path):
    path = base_store(tmp_path)
    begun = Faulty(MORE["several shards"], {("train", 0)})
    with pytest.raises(BadSamplesError):
        ingest(begun, path, SHARD, append=True)
    with pytest.raises(ConflictError, match="begun to be added to it and not finished"):
        ingest(from_arrays(MORE["one sample"], NAMES), path, SHARD, append=True)


def test_while_samples_are_added_others_are_refused_and_readers_see_what_was_there(
    base_store, tmp_path
):
    path = base_store(tmp_path)
    old, seen = content(path)["digest"], []

    class Meanwhile(Faulty):
        def read(self, split, start, stop):
            with pytest.raises(InUseError, match=r"in use by process \d+ of .*append"):
                ingest(from_arrays(MORE["one sample"], NAMES), path, SHARD, append=True)
            assert holds(path, BASE)
            seen.append(digest_images(path))
            return super().read(split, start, stop)

    ingest(Meanwhile(MORE["several shards"], {}), path, SHARD, append=True)
    assert set(seen) == {old}
    assert holds(path, joined(BASE, MORE["several shards"]))
    assert not [name for name in path.iterdir() if is_lock(name.name)]


@pytest.mark.parametrize(
    "moment", [n if n % 2 else pytest.param(n, marks=pytest.mark.slow) for n in range(18)]
)
def test_stopped_anywhere_the_store_is_what_it_was_and_the_command_completes_it(
    base_store, tmp_path, monkeypatch, moment
):
    path = base_store(tmp_path)
    old = content(path)["digest"]
    more = MORE["both"] | MORE["several shards"]
    source = from_arrays(more, NAMES)
    watched = {
        image_store: ["write_images", "grow_images", "create_images"],
        steps: ["write_duplicates", "consolidate"],
        append: ["copy_file", "remove_tree"],
        tables: ["join"],
        manifest: ["write_manifest"],
    }
    with stopped(monkeypatch, moment, watched):
        ingest(source, path, SHARD, append=True)
    whole = joined(BASE, more)
    found = content(path)["digest"]
    assert digest_images(path) == found
    if found == old:
        for split, (images, _) in BASE.items():
            np.testing.assert_array_equal(pipeline.open_images(path, split)["image"].values, images)
    ingest(source, path, SHARD, append=True)
    assert holds(path, whole)
    assert digest_images(path) == content(path)["digest"] != old
    assert len(pq.read_table(path / SAMPLES)) == sum(len(labels) for _, labels in whole.values())
    assert not append.append_path(path).parent.exists()


def files_of(path):
    """The bytes of all files, but for when they were written."""
    found = {name: (path / name).read_bytes() for name in folders.files_below(path)}
    for name in (manifest.MANIFEST, manifest.COPY):
        lines = found[name].splitlines()
        found[name] = [x for x in lines if b'"finished"' not in x and b'"checksum"' not in x]
    return found


MORE_ONCE = MORE["both"] | {"train": MORE["several shards"]["train"]}
EXPECTED_SHARDS = 3 + 6 + 1  # those that the append writes, of two arrays each


@pytest.fixture(scope="module")
def grown(base_store, tmp_path_factory):
    """The bytes of a store to which nothing happened while it grew."""
    path = base_store(tmp_path_factory.mktemp("grown"))
    return files_of(ingest(from_arrays(MORE_ONCE, NAMES), path, SHARD, append=True))


@pytest.mark.parametrize("number", range(0, 2 * EXPECTED_SHARDS, 3))
@pytest.mark.parametrize("code", [errno.EIO, pytest.param(errno.ENOSPC, marks=pytest.mark.slow)])
def test_metadata_that_cannot_be_read_once_ends_in_an_error_and_never_in_other_bytes(
    base_store, grown, tmp_path, monkeypatch, number, code
):
    path = base_store(tmp_path)
    source = from_arrays(MORE_ONCE, NAMES)
    asked = 0

    def read(file):
        nonlocal asked
        if file.is_relative_to(path) and append.append_path(path) not in file.parents:
            asked += 1
            if asked == number + 1:
                raise OSError(code, os.strerror(code), str(file))
        return read_json(file)

    read_json = zarr_arrays.read_json
    with monkeypatch.context() as patch:
        patch.setattr(zarr_arrays, "read_json", read)
        patch.setattr(store_array, "read_json", read)
        with pytest.raises(OSError, match=r"zarr\.json|space left"):
            ingest(source, path, SHARD, append=True)
    ingest(source, path, SHARD, append=True)
    assert files_of(path) == grown


def failing_removal(path):
    raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))


@pytest.mark.parametrize("killed", [True, False])
def test_killed_or_failed_after_the_manifest_the_same_command_tidies_up(
    base_store, tmp_path, monkeypatch, killed
):
    path = base_store(tmp_path)
    more = joined(MORE["one sample"], MORE["one sample"])  # one is a copy of the other
    source = from_arrays(more, NAMES)

    def stop(*_):
        raise Stop

    with monkeypatch.context() as patch:
        if killed:
            write = manifest.put_manifest
            patch.setattr(
                manifest, "put_manifest", lambda at, *of: (write(at, *of), at == path and stop())
            )
        else:
            patch.setattr(append, "_discard", stop)
            patch.setattr(manifest, "remove_tree", failing_removal)
        with pytest.raises(Stop):
            ingest(source, path, SHARD, append=True)
    assert (path / manifest.WORK / "duplicates" / "part-000000.parquet").is_file()
    for debris in (".lock.0123456789abcdef", f"{SAMPLES}.x{PARTIAL_SUFFIX}"):
        (path / debris).write_bytes(b"")
    ingest(source, path, SHARD, append=True)
    assert holds(path, joined(BASE, more))
    assert sorted(item.name for item in path.iterdir()) == [
        manifest.COPY, DUPLICATES, manifest.MANIFEST, SAMPLES, "test", "train", "zarr.json",
    ]  # fmt: skip
