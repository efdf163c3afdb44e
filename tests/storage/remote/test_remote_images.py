"""Image sets at URLs: digests as on a disk, in bad weather too, and no secret seen."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor

import dask
import numpy as np
import pytest
import xarray as xr
from forks_for_tests import in_fork
from object_store import KEY, SECRET
from remote_for_tests import ARRAYS, SHARD, STORM, TOKEN, found_secrets, refused
from sources_for_tests import NAMES, Faulty, make_arrays

import pipeline
from pipeline.core import errors, paths
from pipeline.core.errors import IncompleteError, RemoteError
from pipeline.execution.progress import LogReporter
from pipeline.ingestion import write_partition
from pipeline.sources.arrays import from_arrays
from pipeline.storage import blobs, folders, store_array, zarr_arrays


def test_a_forked_process_has_connections_of_its_own(remote, local):
    url = remote.put(local, "a.zarr")
    path = paths.locate(url, remote.options)
    found = pipeline.open_images(url, "test", remote.options)
    expected = found.image.values.tolist()
    names = folders.list_folder(path)

    def child():
        assert folders.list_folder(path) == names
        with dask.config.set(scheduler="synchronous"):
            assert found.image.values.tolist() == expected

    in_fork(child)
    assert folders.list_folder(path) == names


def test_threads_share_connections_that_retry_nothing_themselves(remote):
    path = paths.locate(remote.url("a"), remote.options)
    with ThreadPoolExecutor(4) as pool:
        clients = list(pool.map(blobs.file_system, [path / str(n) for n in range(40)]))
    assert len(set(map(id, clients))) == 1
    assert clients[0].retries == 1
    blobs.put_bytes(path, b"1")
    config = clients[0].s3.meta.config
    assert config.retries["total_max_attempts"] == 1
    given = {**remote.options, "config_kwargs": {"retries": {"max_attempts": 2}}}
    other = blobs.file_system(paths.locate(remote.url("a"), given))
    assert other.config_kwargs["retries"] == {"max_attempts": 2}


def test_an_image_set_in_a_bucket_is_the_one_on_a_disk(remote, local):
    url = remote.url("a.zarr")
    made = pipeline.ingest(from_arrays(ARRAYS, NAMES), url, SHARD, storage_options=remote.options)
    assert str(made) == url
    assert pipeline.digest(url, remote.options) == pipeline.digest(local)
    here, there = pipeline.describe(local), pipeline.describe(url, remote.options)
    assert there.pop("path") == url
    assert here.pop("path") != url
    assert there == here
    # but for when it was made, what lies there is what lies here
    files = {
        path.relative_to(local).as_posix(): path for path in local.rglob("*") if path.is_file()
    }
    assert remote.names("a.zarr") == sorted(f"a.zarr/{name}" for name in files)
    stored = remote.files.cat([f"{remote.folder}/{name}" for name in remote.names("a.zarr")])
    for name in set(files) - {"manifest.json", ".manifest.json"}:
        assert stored[f"{remote.folder}/a.zarr/{name}"] == files[name].read_bytes(), name


def test_a_finished_image_set_is_recognised(store, remote):
    messages = io.StringIO()
    pipeline.ingest(
        from_arrays(ARRAYS, NAMES), store, SHARD,
        reporter=LogReporter(messages), storage_options=remote.options,
    )  # fmt: skip
    assert f"{store} is complete already" in messages.getvalue()
    assert all(method in ("GET", "HEAD") for method, _, _ in remote.weather.requests)


def test_open_images_and_plain_xarray_read_it(store, remote):
    for split, (images, labels) in ARRAYS.items():
        ours = pipeline.open_images(store, split, remote.options)
        theirs = xr.open_zarr(store, group=split, storage_options=remote.options)
        for found in (ours, theirs):
            assert np.array_equal(found["image"].values, images)
            assert np.array_equal(found["label"].values, labels)
        assert ours["image"].data.numblocks[0] == -(-len(images) // SHARD)
        assert np.array_equal(ours["image"][9:11].values, images[9:11])
        assert not found_secrets(repr(ours) + repr(ours["image"].data.dask) + repr(theirs))


def test_a_part_of_a_shard_is_read_by_ranges_and_most_of_it_at_once(remote):
    path = paths.locate(remote.url("large.zarr"), remote.options)
    values = np.random.default_rng(0).integers(0, 255, (64, 30, 30), np.uint8)
    zarr_arrays.create_group(path, {})
    dims, chunks, shards = ("sample", "y", "x"), (4, 30, 30), (64, 30, 30)
    template = zarr_arrays.ArrayTemplate(dims, values.shape, "uint8", chunks, shards)
    zarr_arrays.create_array(path, "image", template)
    zarr_arrays.write_shard(path, "image", 0, 0, values)
    array = store_array.StoreArray(path, "image")
    assert np.array_equal(array.samples(7, 9), values[7:9])
    for start, stop, few in ((40, 41, True), (0, 33, False), (0, 64, False)):
        remote.weather.requests.clear()
        assert np.array_equal(array.samples(start, stop), values[start:stop])
        asked = [(how, part) for how, name, part in remote.weather.requests if "/c/" in name]
        parts = [part.removeprefix("bytes=").split("-") for how, part in asked if how == "GET"]
        assert len(parts) == (2 if few else 1)
        assert all(last for _, last in parts) is few  # the others read to the end
        if few:
            assert sum(int(b) - int(a) + 1 for a, b in parts) < values.nbytes / 8


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "flipped"])
def test_damage_in_a_bucket_is_found(store, remote, damage):
    copied = remote.copy_of(store)
    place = f"{remote.folder}/store.zarr/train/image/c/1/0/0"
    data = bytearray(remote.files.cat_file(place))
    data[20] ^= 1
    changed = {"empty": b"", "cut": bytes(data[:-5]), "flipped": bytes(data)}
    if damage == "missing":
        remote.files.rm_file(place)
    else:
        remote.files.pipe_file(place, changed[damage])
    opened = pipeline.open_images(copied, "train", remote.options)
    with refused(errors.DamagedError, r"train/image.*(missing|cannot be read).*--repair"):
        opened["image"].load()
    with refused(errors.DamagedError, "train/image"):
        pipeline.digest(copied, remote.options)


def test_an_unfinished_image_set_is_refused_and_completed(remote, local, monkeypatch):
    url = remote.url("a.zarr")
    whole = write_partition.IngestPartition.__call__

    def call(task, number):
        if number == 3:
            raise OSError(5, "the machine was lost")
        return whole(task, number)

    source = from_arrays(ARRAYS, NAMES)
    with monkeypatch.context() as patch:
        patch.setattr(write_partition.IngestPartition, "__call__", call)
        with pytest.raises(OSError, match="machine was lost"):
            pipeline.ingest(source, url, SHARD, storage_options=remote.options)
    with refused(IncompleteError, "incomplete"):
        pipeline.open_images(url, "train", remote.options)
    pipeline.ingest(source, url, SHARD, storage_options=remote.options)
    assert pipeline.digest(url, remote.options) == pipeline.digest(local)
    assert not [name for name in remote.names() if ".work" in name]


def test_pictures_are_drawn_of_what_is_in_a_bucket(store, remote, local, tmp_path):
    pipeline.draw_grid(store, tmp_path / "there.png", "test", remote.options)
    pipeline.draw_grid(local, tmp_path / "here.png", "test")
    assert (tmp_path / "there.png").read_bytes() == (tmp_path / "here.png").read_bytes()


def test_environment_gives_credentials(store, remote, local, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
    monkeypatch.setenv("AWS_ENDPOINT_URL", remote.options["endpoint_url"])
    assert pipeline.digest(store) == pipeline.digest(local)


BAD = {("train", 2), ("train", 9), ("train", 10), ("test", 8)}


@pytest.mark.slow
def test_leaving_out_bad_samples_and_adding_others_survives_failures(remote, tmp_path):
    faulty, more, found = Faulty(ARRAYS, BAD), make_arrays({"train": 5, "extra": 4}, seed=5), []
    good = faulty.good()
    for place, options in ((tmp_path / "a.zarr", None), (remote.url("a.zarr"), remote.options)):
        remote.weather.change(*STORM)
        with refused(errors.BadSamplesError, r"4 of 30 .*bad_samples\.csv"):
            pipeline.ingest(faulty, place, SHARD, storage_options=options)
        pipeline.ingest(faulty, place, SHARD, max_bad=4, storage_options=options)
        pipeline.ingest(
            from_arrays(more, NAMES), place, SHARD, append=True, storage_options=options
        )
        remote.weather.change("ok")
        found.append(pipeline.digest(place, options))
        for split, count in {"train": 23, "test": 8, "extra": 4}.items():
            parts = [arrays[split] for arrays in (good, more) if split in arrays]
            for opened in (
                pipeline.open_images(place, split, options),
                xr.open_zarr(place, group=split, storage_options=options),
            ):
                assert len(opened["image"]) == count
                for at, name in enumerate(("image", "label")):
                    expected = np.concatenate([part[at] for part in parts])
                    assert np.array_equal(opened[name].values, expected)
    assert found[0] == found[1]
    left = (".work", ".append", "bad_samples")
    assert not [name for name in remote.names() if any(word in name for word in left)]


def test_failures_that_do_not_pass_end_in_one_error(store, remote):
    remote.weather.change(503)
    with refused(RemoteError, r"s3://.*store\.zarr.*does not answer.*run the command again"):
        pipeline.open_images(store, "train", remote.options)
    assert remote.weather.bad == blobs.TRIES
