"""Image sets and runs at URLs: digests as on a disk, in bad weather too, and no secret seen."""

from __future__ import annotations

import contextlib
import copy
import http.server
import io
import logging
import os
import pickle
import re
import shutil
import socket
import tarfile
import threading
import traceback
import urllib.parse
from pathlib import Path
from typing import ClassVar

import dask
import distributed
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xarray as xr
from forks_for_tests import in_fork
from moto.s3.models import s3_backends
from object_store import BUCKET, KEY, SECRET, object_store
from PIL import Image
from sources_for_tests import NAMES, Faulty, make_arrays

import pipeline
from pipeline.core import errors, paths
from pipeline.core.errors import IncompleteError, PixsimError, RemoteError, SourceError, StoreError
from pipeline.execution.progress import LogReporter
from pipeline.ingestion import write_partition
from pipeline.ingestion.plan import plan_source
from pipeline.jobs import evaluate_pass
from pipeline.sources.arrays import from_arrays
from pipeline.storage import blobs, folders, run_arrays, store_array, zarr_arrays

TOKEN = "pixsim/session+token=of&tests"
QUERY_TOKEN = "query-token-0f-tests"
PASSWORD = "pa55word/of tests"
SECRETS = [
    spelling
    for secret in (KEY, SECRET, TOKEN, QUERY_TOKEN, PASSWORD)
    for spelling in (secret, urllib.parse.quote(secret), urllib.parse.quote(secret, safe=""))
]
# what becomes of one request after the other, again and again
STORM = [
    *["ok"] * 7,
    503,
    *["ok"] * 9,
    500,
    *["ok"] * 11,
    "dropped",
    *["ok"] * 13,
    "slow",
    503,
    503,
]
ARRAYS = make_arrays({"train": 21, "test": 9})
SHARD = 8


def found_secrets(text):
    return sorted({secret for secret in SECRETS if secret in text})


class Remote:
    """A bucket of its own for a test; `url("a")` is a place in it."""

    number = 0

    def __init__(self, weather, options):
        Remote.number += 1
        self.weather, self.options = weather, options
        self.folder = f"{BUCKET}/{Remote.number}"
        self.files = paths.locate(f"s3://{self.folder}", options).fs

    def url(self, name):
        return f"s3://{self.folder}/{name}"

    def put(self, folder, name):
        self.files.put(str(folder), f"{self.folder}/{name}", recursive=True)
        return self.url(name)

    def copy_of(self, url):
        """Copy a folder of the bucket into the place of this test."""
        name, old = url.rpartition("/")[2], url.removeprefix("s3://")
        self.files.copy(old, f"{self.folder}/{name}", recursive=True)
        return self.url(name)

    def names(self, place=""):
        start = len(self.folder) + 1
        self.files.invalidate_cache()
        return [name[start:] for name in self.files.find(f"{self.folder}/{place}".rstrip("/"))]


@pytest.fixture(scope="module", autouse=True)
def _no_credentials_of_this_machine(tmp_path_factory):
    """Nothing but what a test gives opens anything, and nothing is asked for but the server."""
    nowhere = tmp_path_factory.mktemp("aws") / "none"
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_CONFIG_FILE", str(nowhere))
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(nowhere))
        yield


@pytest.fixture(scope="module")
def server():
    """The S3 server; at the end no object in it holds a secret."""
    with object_store() as (weather, given):
        options = {**given, "token": TOKEN}
        place = paths.locate(f"s3://{BUCKET}", options)
        place.fs.mkdir(BUCKET)
        yield weather, options
        weather.change("ok")
        (backend,) = (found["aws"] for found in s3_backends.values() if found["aws"].buckets)
        objects = backend.buckets[BUCKET].keys
        assert objects
        for name, data in ((name, objects[name].value) for name in objects):
            text = data.decode("latin-1")
            if name.endswith(".parquet"):
                table = pq.read_table(io.BytesIO(data))
                text += str(table.to_pydict()) + str(table.schema.metadata)
            assert not found_secrets(text), name


@pytest.fixture
def remote(server, monkeypatch):
    weather, options = server
    weather.change("ok")
    monkeypatch.setattr(blobs, "FIRST_PAUSE_SECONDS", 0.01)
    yield Remote(weather, options)
    weather.change("ok")


@pytest.fixture(autouse=True)
def _no_secret_is_shown(capfd, caplog):
    """After every test: what was printed and logged holds no secret."""
    caplog.set_level(logging.INFO)
    yield
    printed = capfd.readouterr()
    assert not found_secrets(printed.out + printed.err + caplog.text)


@contextlib.contextmanager
def refused(kind, match):
    """Expect an error that tells what to do, and in which no secret is seen."""
    with pytest.raises(kind, match=match) as caught:
        yield caught
    error = caught.value
    texts = [str(error), repr(error), "".join(traceback.format_exception(error))]
    error.__context__ = None  # as an error leaves a worker; dask would send it along
    again = pickle.loads(pickle.dumps(error))
    assert not found_secrets("".join([*texts, str(again), repr(again)]))


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """The image set of `ARRAYS` on a disk."""
    path = tmp_path_factory.mktemp("local") / "a.zarr"
    return pipeline.ingest(from_arrays(ARRAYS, NAMES), path, SHARD)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of PNG files: split/class/number.png."""
    folder = tmp_path_factory.mktemp("pictures") / "set"
    rng = np.random.default_rng(3)
    for split, count in {"train": 8, "test": 3}.items():
        for place, name in enumerate(NAMES):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(60 * place, 60 * place + 90, (6, 4), np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    return folder


def job(images, store, output, **settings):
    content = {"source": str(images), "store": str(store), "shard": 5}
    return pipeline.make_job(
        {"name": "r", "images": content, "output": str(output), "distances": "write", **settings}
    )


@pytest.fixture(scope="module")
def local_run(pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return pipeline.run_job(job(pictures, folder / "i.zarr", folder / "run"))


# image sets --------------------------------------------------------------------------------------


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


@pytest.fixture(scope="module")
def store(server):
    """An image set in the bucket, to be read only."""
    there = Remote(*server)
    url = there.url("store.zarr")
    return str(
        pipeline.ingest(from_arrays(ARRAYS, NAMES), url, SHARD, storage_options=there.options)
    )


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


# jobs --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bucket_run(server, pictures):
    """The same job as `local_run` with all in the bucket, done while the server often fails."""
    there = Remote(*server)
    settings = job(
        there.put(pictures, "set"), there.url("i.zarr"), there.url("run"),
        storage_options=there.options,
    )  # fmt: skip
    messages = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blobs, "FIRST_PAUSE_SECONDS", 0.01)
        there.weather.change(*STORM)
        run = pipeline.run_job(settings, LogReporter(messages))
    assert there.weather.bad > 30
    there.weather.change("ok")
    assert "is complete already" not in messages.getvalue()
    return settings, run


def test_a_whole_job_in_a_bucket_is_the_one_on_a_disk(bucket_run, local_run, remote):
    settings, run = bucket_run
    url = str(settings.output)
    assert str(run.path) == url
    assert url.startswith("s3://")
    assert pipeline.digest(url, remote.options) == pipeline.digest(local_run.path)
    messages = io.StringIO()
    pipeline.run_job(settings, LogReporter(messages))
    assert f"{url} is complete already" in messages.getvalue()
    assert not found_secrets(messages.getvalue())
    assert not [name for name in folders.files_below(run.path.parent) if ".work" in name]


def test_a_run_in_a_bucket_opens_whole(bucket_run, local_run, remote):
    settings, made = bucket_run
    url = str(settings.output)
    run = pipeline.open_run(url, remote.options)
    assert run.metrics == local_run.metrics
    xr.testing.assert_identical(run.distances.load(), local_run.distances.load())
    xr.testing.assert_identical(run.prototypes.load(), local_run.prototypes.load())
    assert run.predictions.compute().equals(local_run.predictions.compute())
    with xr.open_zarr(f"{url}/distances.zarr", storage_options=remote.options) as plain:
        assert plain["distance"].shape == run.distances.shape
    here, there = pipeline.describe(local_run.path), pipeline.describe(url, remote.options)
    for key in ("classes", "metrics", "arrays", "rows", "digests"):
        assert there[key] == here[key]
    assert there["images"] == str(run.images) == str(made.images) == settings.images.store
    explained = pipeline.explain(url, "test", 4, remote.options)
    expected = pipeline.explain(local_run.path, "test", 4)
    assert np.array_equal(explained.image, expected.image)
    assert np.array_equal(explained.distances, expected.distances)
    assert not found_secrets(repr(run) + repr(run.predictions) + repr(run.distances))


def test_a_run_on_a_disk_finds_its_images_in_a_bucket(bucket_run, remote, tmp_path):
    settings, made = bucket_run
    settings = pipeline.make_job(
        {"name": "r", "images": settings.images.store, "output": str(tmp_path / "run"),
         "storage_options": remote.options}
    )  # fmt: skip
    run = pipeline.run_job(settings)
    assert pipeline.digest(run.path)["predictions"] == made.manifest["digests"]["predictions"]
    explained = pipeline.explain(tmp_path / "run", "test", 4, remote.options)
    expected = pipeline.explain(str(made.path), "test", 4, remote.options)
    assert np.array_equal(explained.distances, expected.distances)
    assert pipeline.open_images(run.images)["image"].shape[0] == 24


@pytest.fixture(scope="module")
def workers():
    """The address of a scheduler with one worker process, and its client."""
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=2, dashboard_address=None, scheduler_port=0
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        yield cluster.scheduler_address, client


def logs_of(client):
    """What workers and scheduler logged, and what of their tasks they can show."""
    logs = {**client.get_worker_logs(), "scheduler": client.get_scheduler_logs()}
    return str(logs) + str(client.get_events())


@pytest.mark.slow
def test_worker_processes_know_what_to_hide(remote, bucket_run, local_run, workers, monkeypatch):
    address, client = workers
    images = bucket_run[0].images
    settings = job(
        images.source, images.store, remote.url("run"),
        storage_options=remote.options, cluster={"kind": "scheduler", "address": address},
    )  # fmt: skip
    run = pipeline.run_job(settings)
    assert pipeline.digest(run.path) == pipeline.digest(local_run.path)
    monkeypatch.setattr(pipeline.ingestion.ingest, "write_partitions", _write_partitions_nowhere)
    with refused(errors.StoreError, "s3://nobody/.*holds no array"):
        pipeline.ingest(
            settings.images, remote.url("other.zarr"), cluster=settings.cluster,
            storage_options=remote.options,
        )  # fmt: skip
    logs = logs_of(client)
    assert "IngestPartition" in logs or "holds no array" in logs
    assert not found_secrets(logs)


def _write_partitions_nowhere(plan, path, executor, reporter, numbers=None):
    """Write partitions of which the first fails on its worker, since its bucket is not there."""
    nowhere = paths.locate("s3://nobody/a.zarr", paths.options_of(path))
    write_partition.write_partitions(plan, nowhere, executor, reporter, numbers)


def test_pictures_are_drawn_of_what_is_in_a_bucket(store, remote, local, tmp_path):
    pipeline.draw_grid(store, tmp_path / "there.png", "test", remote.options)
    pipeline.draw_grid(local, tmp_path / "here.png", "test")
    assert (tmp_path / "there.png").read_bytes() == (tmp_path / "here.png").read_bytes()


def test_a_job_that_is_interrupted_goes_on(bucket_run, remote, local_run, monkeypatch):
    settings = job(
        bucket_run[0].images.source, bucket_run[0].images.store, remote.url("run"),
        storage_options=remote.options, cluster={"kind": "threads", "workers": 1},
    )  # fmt: skip
    whole, done = evaluate_pass.EvaluatePartition.__call__, []

    def call(task, number):
        if done:
            raise KeyboardInterrupt
        done.append(number)
        return whole(task, number)

    with monkeypatch.context() as patch:
        patch.setattr(evaluate_pass.EvaluatePartition, "__call__", call)
        with refused(errors.JobInterruptedError, "is incomplete, 1 of its prediction tables"):
            pipeline.run_job(settings)
    assert not remote.files.exists(f"{remote.folder}/run/manifest.json")
    with refused(IncompleteError, "incomplete"):
        pipeline.open_run(remote.url("run"), remote.options)
    pipeline.run_job(settings)
    assert pipeline.digest(remote.url("run"), remote.options) == pipeline.digest(local_run.path)


def test_a_whole_job_in_memory(pictures, local_run):
    files = paths.locate("memory://pixsim-tests").fs
    try:
        files.put(str(pictures), "/pixsim-tests/set", recursive=True)
        root = "memory://pixsim-tests"
        run = pipeline.run_job(job(f"{root}/set", f"{root}/i.zarr", f"{root}/run"))
        assert pipeline.digest(f"{root}/run") == pipeline.digest(local_run.path)
        assert run.metrics == local_run.metrics
    finally:
        files.rm("/pixsim-tests", recursive=True)


def test_environment_gives_credentials(store, remote, local, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
    monkeypatch.setenv("AWS_ENDPOINT_URL", remote.options["endpoint_url"])
    assert pipeline.digest(store) == pipeline.digest(local)


# sources -----------------------------------------------------------------------------------------


def pack(folder, target, names):
    with tarfile.open(target, "w") as archive:
        for name in names:
            archive.add(folder / name, name)


def labelled_files(folder, split):
    return [
        (path, NAMES.index(path.parent.name)) for path in sorted((folder / split).rglob("*.png"))
    ]


@pytest.fixture(scope="module")
def kinds(pictures, tmp_path_factory):
    """A folder with the same pictures as sources of every kind; kind -> settings."""
    root = tmp_path_factory.mktemp("kinds")
    found = {split: labelled_files(pictures, split) for split in ("train", "test")}
    names = [path.relative_to(pictures).as_posix() for files in found.values() for path, _ in files]
    pack(pictures, root / "set.tar", names)
    for part, start in enumerate(range(0, len(found["train"]), 9)):
        with tarfile.open(root / f"w-{part:04d}.tar", "w") as archive:
            for number, (path, label) in enumerate(found["train"][start : start + 9]):
                for suffix, data in (("png", path.read_bytes()), ("cls", f"{label}".encode())):
                    info = tarfile.TarInfo(f"{start + number:05d}.{suffix}")
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
    for split, files in found.items():
        columns = {
            "image": [{"bytes": path.read_bytes(), "path": path.name} for path, _ in files],
            "label": [label for _, label in files],
        }
        pq.write_table(pa.table(columns), root / f"{split}.parquet", row_group_size=10)
        rows = [f"set/{path.relative_to(pictures).as_posix()},{label}" for path, label in files]
        (root / f"{split}.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    arrays = {
        f"{split}_{what}": np.array(values)
        for split, files in found.items()
        for what, values in {
            "images": [np.array(Image.open(path)) for path, _ in files],
            "labels": [label for _, label in files],
        }.items()
    }
    np.savez_compressed(root / "set.npz", **arrays)
    shutil.copytree(pictures, root / "set")
    both = ("train", "test")
    return root, {
        "folder": {"source": "{root}/set"},
        "tar": {"source": "{root}/set.tar"},
        "webdataset": {"source": "{root}/w-{{0000..0002}}.tar"},
        "pattern": {"source": "{root}/w-*.tar"},
        "parquet": {"splits": {split: "{root}/" + split + ".parquet" for split in both}},
        "list": {"splits": {split: "{root}/" + split + ".csv" for split in both}},
        "npz": {"source": "{root}/set.npz"},
    }


KINDS = ["folder", "tar", "webdataset", "pattern", "parquet", "list", "npz"]


def at(settings, root):
    """Return the settings of a source for a root."""
    if isinstance(settings, dict):
        return {key: at(value, root) for key, value in settings.items()}
    return settings.format(root=root)


@pytest.fixture(scope="module")
def uploaded(server, kinds):
    """The root of the sources in the bucket."""
    there = Remote(*server)
    return there.put(f"{kinds[0]}/", "kinds")


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_in_a_bucket_is_the_one_on_a_disk(kind, kinds, uploaded, remote, tmp_path):
    root, settings = kinds
    here = pipeline.ingest(at(settings[kind], root), tmp_path / "here.zarr", 7)
    images = pipeline.make_images(
        at(settings[kind], uploaded) | {"storage_options": remote.options}
    )
    there = pipeline.ingest(images, tmp_path / "there.zarr", 7)
    assert pipeline.digest(there) == pipeline.digest(here)
    source = pipeline.open_source(images)
    shown = [repr(source), repr(images), str(images.model_dump()), images.model_dump_json()]
    assert not found_secrets("".join(shown) + repr(dict(source.provenance)))
    for path in [item for item in there.rglob("*") if item.is_file()]:
        assert not found_secrets(path.read_bytes().decode("latin-1")), path
    content = str(pq.read_table(there / "samples.parquet").to_pydict())
    assert not found_secrets(content)


# bad weather -------------------------------------------------------------------------------------


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


def test_a_server_that_is_gone_while_a_run_is_read_is_no_damage(bucket_run, remote, monkeypatch):
    monkeypatch.setattr(blobs, "TRIES", 1)
    path = bucket_run[1].path / "distances.zarr"
    assert len(run_arrays.read_distances(path, 0, 5)["sample"]) == 5
    remote.weather.change(503)
    with refused(RemoteError, r"s3://.*distances\.zarr.*does not answer"):
        run_arrays.read_distances(path, 0, 5)


# refused -----------------------------------------------------------------------------------------


def test_a_missing_bucket_is_named(remote):
    source = from_arrays(ARRAYS, NAMES)
    with refused(RemoteError, r"s3://nobody/a\.zarr.*no such place to write to.*does not exist"):
        pipeline.ingest(source, "s3://nobody/a.zarr", storage_options=remote.options)
    for function in (pipeline.describe, pipeline.digest, pipeline.open_run):
        with refused(StoreError, r"s3://nobody/a\.zarr: no such folder"):
            function("s3://nobody/a.zarr", remote.options)


@pytest.mark.parametrize("given", [{"key": "AKIAWRONG"}, {"key": None, "secret": None}])
def test_refused_access_is_one_error_with_the_cure(store, remote, given):
    options = {**remote.options, **given}
    options = {name: value for name, value in options.items() if value is not None}
    if "secret" not in options:
        del options["token"]
    refusal = r"s3://.*: access was refused \(.*\); give storage_options, or credentials"
    for call in (
        lambda: pipeline.open_images(store, "train", options),
        lambda: pipeline.describe(store, options),
        lambda: pipeline.ingest(
            from_arrays(ARRAYS, NAMES), remote.url("b.zarr"), storage_options=options
        ),
        lambda: pipeline.run_job(
            job(store, remote.url("i.zarr"), remote.url("r"), storage_options=options)
        ),
    ):
        with refused(RemoteError, refusal):
            call()


def test_a_source_that_refuses_or_is_not_there_is_named(remote, tmp_path):
    wrong = {**remote.options, "key": "AKIAWRONG"}
    for options, kind, reason in (
        (remote.options, errors.InputError, "nothing"),
        (wrong, RemoteError, "access was refused"),
    ):
        for name in ("nothing/", "nothing.tar"):
            images = {"source": remote.url(name), "storage_options": options}
            with refused(kind, f"s3://.*{reason}"):
                pipeline.ingest(images, tmp_path / "a.zarr")


def test_no_server_at_the_address(remote):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        options = {**remote.options, "endpoint_url": address}
        with refused(RemoteError, rf"s3://.*does not answer.*{address}.*check the address"):
            pipeline.describe(remote.url("a.zarr"), options)


def test_wrong_options_are_refused(remote):
    for options in ({"kye": "x"}, {"key": 5, "secret": SECRET}):
        with refused(RemoteError, "correct the URL or storage_options"):
            pipeline.describe(remote.url("a.zarr"), remote.options | options)


# secrets -----------------------------------------------------------------------------------------


def test_no_repr_of_settings_sources_and_tasks_shows_a_secret(remote, pictures, tmp_path):
    url = remote.put(pictures, "set")
    settings = job(url, remote.url("i.zarr"), remote.url("run"), storage_options=remote.options)
    source = pipeline.open_source(settings.images)
    plan = plan_source(source, settings.output)
    task = write_partition.IngestPartition(
        settings.output, source, plan.table, plan.templates, plan.identity, 1, range(1)
    )
    for thing in (settings, settings.images, source, plan, task, settings.output):
        again = pickle.loads(pickle.dumps(thing)) if thing is not plan else copy.copy(thing)
        assert not found_secrets(repr(thing) + str(thing) + repr(again))
    dumped = settings.model_dump_json() + settings.images.model_dump_json()
    assert not found_secrets(dumped + str(settings.model_dump()))
    assert pickle.loads(pickle.dumps(settings.output)).storage_options == remote.options


# the web -----------------------------------------------------------------------------------------


class _Web(http.server.SimpleHTTPRequestHandler):
    """Serves files, and parts of them, to those who know the token or the password."""

    ranges = True
    seen: ClassVar[list] = []
    left: ClassVar[list] = [-1]  # requests until access ends

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, body):
        name, _, query = self.path.partition("?")
        self.seen.append((self.command, name))
        self.left[0] -= 1
        token = urllib.parse.parse_qs(query).get("token", [""])[0]
        known = token == QUERY_TOKEN or "Basic" in self.headers.get("Authorization", "")
        if not known or not self.left[0]:
            self.left[0] += not self.left[0]  # from now on
            self.send_error(403)
            return
        file = Path(self.translate_path(name))
        if not file.is_file():
            self.send_error(404)
            return
        data = file.read_bytes()
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if part and self.ranges:
            start, stop = int(part[1]), int(part[2] or len(data) - 1) + 1
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
            data = data[start:stop]
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Type", "application/octet-stream")
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def web(folder, ranges=True):
    def handler(*arguments):
        return type("Web", (_Web,), {"ranges": ranges})(*arguments, directory=str(folder))

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def site(kinds):
    with web(kinds[0]) as address:
        yield address


@pytest.mark.parametrize("name", ["set.tar", "set.npz", "train.parquet"])
@pytest.mark.parametrize("secret", ["query", "password"])
def test_files_of_the_web_are_those_on_a_disk(name, secret, kinds, site, tmp_path):
    url = f"{site}/{name}?token={QUERY_TOKEN}&x=1"
    if secret == "password":
        user = urllib.parse.quote(PASSWORD, safe="")
        url = f"{site}/{name}".replace("://", f"://somebody:{user}@")
    settings = pipeline.make_images(url)
    there = pipeline.ingest(settings, tmp_path / "there.zarr", 7)
    here = pipeline.ingest(str(kinds[0] / name), tmp_path / "here.zarr", 7)
    assert pipeline.digest(there) == pipeline.digest(here)
    described = repr(pipeline.describe(there)) + repr(settings.model_dump_json())
    assert not found_secrets(described + repr(pipeline.open_source(settings)))
    for path in [item for item in there.rglob("*") if item.is_file()]:
        assert not found_secrets(path.read_bytes().decode("latin-1")), path


def test_a_listing_that_is_kept_holds_no_secret(site, tmp_path):
    url = f"{site}/set.tar?token={QUERY_TOKEN}"
    pipeline.plan_ingest(url, tmp_path / "a.zarr")
    kept = [path for path in (tmp_path / "a.zarr").rglob("*") if path.is_file()]
    assert any("listing" in path.parts for path in kept)
    for path in kept:
        assert not found_secrets(path.read_bytes().decode("latin-1")), path


def test_a_web_server_that_refuses_is_named_at_once(site, tmp_path):
    for name in ("set.tar", "set.npz", "train.parquet"):
        _Web.seen.clear()
        wrong = QUERY_TOKEN[::-1]
        with refused(PixsimError, f"{site}/{name}") as caught:
            pipeline.ingest(f"{site}/{name}?token={wrong}", tmp_path / "a.zarr")
        assert wrong not in "".join(traceback.format_exception(caught.value))
        assert len(_Web.seen) < 10


@pytest.mark.parametrize(
    "name",
    ["set.tar", *(pytest.param(n, marks=pytest.mark.slow) for n in ("set.npz", "train.parquet"))],
)
def test_access_that_ends_half_way_is_one_error_without_secrets(site, tmp_path, name):
    found = []
    for requests in range(2, 40):
        _Web.left[0] = requests
        try:
            pipeline.ingest(f"{site}/{name}?token={QUERY_TOKEN}", tmp_path / "a.zarr")
            break
        except PixsimError as error:
            found.append((str(error), repr(error) + "".join(traceback.format_exception(error))))
        finally:
            _Web.left[0] = -1
    assert len(found) > 4
    assert all(site in text for text, _ in found)
    assert not found_secrets(str(found))


def test_a_web_server_without_parts_of_files_is_named(kinds, tmp_path):
    with (
        web(kinds[0], ranges=False) as address,
        refused(SourceError, rf"{address}/set\.tar: this server sends whole files"),
    ):
        pipeline.ingest(f"{address}/set.tar?token={QUERY_TOKEN}", tmp_path / "a.zarr")
