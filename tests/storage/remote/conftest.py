"""Fixtures of the tests of URLs: an S3 server in this process, and what is read from it."""

from __future__ import annotations

import io
import logging
import os

import numpy as np
import pyarrow.parquet as pq
import pytest
from moto.s3.models import s3_backends
from object_store import BUCKET, object_store
from PIL import Image
from remote_for_tests import ARRAYS, SHARD, TOKEN, Remote, found_secrets, job
from sources_for_tests import NAMES

import pipeline
from pipeline.core import paths
from pipeline.sources.arrays import from_arrays
from pipeline.storage import blobs


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


@pytest.fixture(scope="module")
def local_run(pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return pipeline.run_job(job(pictures, folder / "i.zarr", folder / "run"))


@pytest.fixture(scope="module")
def store(server):
    """An image set in the bucket, to be read only."""
    there = Remote(*server)
    url = there.url("store.zarr")
    return str(
        pipeline.ingest(from_arrays(ARRAYS, NAMES), url, SHARD, storage_options=there.options)
    )
