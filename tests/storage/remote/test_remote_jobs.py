"""Jobs whose images, output, or both are at URLs; what workers show of secrets."""

from __future__ import annotations

import io

import distributed
import numpy as np
import pytest
import xarray as xr
from remote_for_tests import STORM, Remote, found_secrets, job, refused

import pipeline
from pipeline.core import errors, paths
from pipeline.core.errors import IncompleteError, RemoteError
from pipeline.execution.progress import LogReporter
from pipeline.ingestion import write_partition
from pipeline.jobs import evaluate_pass
from pipeline.storage import blobs, folders, run_files

pytestmark = pytest.mark.slow


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


def test_a_server_that_is_gone_while_a_run_is_read_is_no_damage(bucket_run, remote, monkeypatch):
    monkeypatch.setattr(blobs, "TRIES", 1)
    path = bucket_run[1].path / "distances.zarr"
    assert len(run_files.read_distances(path, 0, 5)["sample"]) == 5
    remote.weather.change(503)
    with refused(RemoteError, r"s3://.*distances\.zarr.*does not answer"):
        run_files.read_distances(path, 0, 5)
