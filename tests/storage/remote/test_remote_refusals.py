"""What is refused at URLs is one error that tells the cure and no secret."""

from __future__ import annotations

import copy
import pickle
import socket

import pytest
from object_store import SECRET
from remote_for_tests import ARRAYS, found_secrets, job, refused
from sources_for_tests import NAMES

import pipeline
from pipeline.core import errors
from pipeline.core.errors import RemoteError, StoreError
from pipeline.ingestion import write_partition
from pipeline.ingestion.plan import plan_source
from pipeline.sources.arrays import from_arrays


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
