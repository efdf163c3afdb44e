"""A task that comes late writes nothing: not into what is finished, nor for another plan."""

from __future__ import annotations

import pickle
from functools import partial

import numpy as np
import pytest
from image_files_for_tests import make_folder
from sources_for_tests import NAMES, Faulty, make_arrays

import pipeline
from pipeline.core.errors import (
    BadSamplesError,
    ConflictError,
    DamagedError,
    SourceError,
    StoreError,
)
from pipeline.core.paths import locate
from pipeline.execution.checkpoints import Checkpoints
from pipeline.ingestion import append, compaction, steps, write_partition
from pipeline.jobs import evaluate_pass
from pipeline.sources.arrays import from_arrays
from pipeline.storage import claims, manifest
from pipeline.storage.folders import files_below, remove_tree
from pipeline.storage.image_content import digest_images

SHARD = 8
BAD = {("train", 1), ("train", 12)}
COUNTS = {"train": 30, "test": 10}
TASKS = {
    "ingest": write_partition.IngestPartition, "compact": compaction.CompactPartition,
    "append": append.AppendPartition, "measure": evaluate_pass.EvaluatePartition,
}  # fmt: skip


def content(path):
    return manifest.read_manifest(path, manifest.IMAGES)


def snapshot(folder):
    return {
        item.relative_to(folder).as_posix(): item.read_bytes() if item.is_file() else None
        for item in folder.rglob("*")
    }


@pytest.fixture
def called(monkeypatch):
    """The tasks that ran, as a worker has them, with their numbers."""
    found = {kind: [] for kind in TASKS}
    for kind, task in TASKS.items():

        def call(self, number, kind=kind, original=task.__call__):
            found[kind].append((pickle.dumps(self), number))
            return original(self, number)

        monkeypatch.setattr(task, "__call__", call)
    return found


def _second_time(left, require, token):
    if next(left, token) is token:
        require(token)


@pytest.fixture(params=["begins late", "wakes up before it writes"])
def late(request, monkeypatch):
    """Call tasks late: when they begin, or as if they had read what they write by now."""

    require = claims.Token.require

    def call(tasks):
        assert tasks
        for pickled, number in list(tasks):
            task, left = pickle.loads(pickled), iter([None])
            with monkeypatch.context() as patch:
                if request.param != "begins late":
                    second = partial(_second_time, left, require)
                    patch.setattr(claims.Token, "require", lambda token, call=second: call(token))
                read = np.zeros((SHARD, 4, 3), np.uint8), np.zeros(SHARD, np.int32)
                patch.setattr(TASKS["compact"], "_good_rows", lambda *_, read=read: read)
                if task.__class__ in (TASKS["measure"], TASKS["ingest"]):
                    patch.setattr(task.__class__, "_is_done", lambda *_: False)
                # what a task reads may be gone as well
                with pytest.raises((StoreError, DamagedError)):
                    task(number)

    return call


def ingested(path, bad=(), arrays=None):
    source = Faulty(arrays or make_arrays(COUNTS), bad)
    return pipeline.ingest(source, path, SHARD, max_bad=len(bad)), source


@pytest.mark.parametrize("bad", [set(), BAD])
def test_a_partition_does_not_write_into_a_finished_store(tmp_path, called, late, bad):
    path, source = ingested(tmp_path / "s", bad)
    before = snapshot(path)
    late(called["ingest"])
    assert snapshot(path) == before
    images = source.good()["train"][0]
    np.testing.assert_array_equal(pipeline.open_images(path).image.values, images)


def test_a_partition_does_not_write_over_shards_without_bad_samples(
    tmp_path, called, late, monkeypatch
):
    """After they took the place of the others, and before the manifest is written."""
    whole = steps.write_samples
    monkeypatch.setattr(steps, "write_samples", lambda *a: late(called["ingest"]) or whole(*a))
    path, source = ingested(tmp_path / "s", BAD)
    assert content(path)["digest"] == digest_images(path)
    np.testing.assert_array_equal(
        pipeline.open_images(path).image.values, source.good()["train"][0]
    )
    assert pipeline.verify(path) == []


def test_a_shard_without_bad_samples_comes_late(tmp_path, called, late, monkeypatch):
    path, _ = ingested(tmp_path / "s", BAD)
    before = snapshot(path)
    late(called["compact"])
    assert snapshot(path) == before
    # or before the store is finished, by a finish that is cut short and completed
    called["compact"].clear()
    with monkeypatch.context() as patch:
        patch.setattr(steps, "write_samples", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            ingested(tmp_path / "t", BAD)
    late(called["compact"])
    path, _ = ingested(tmp_path / "t", BAD)
    assert content(path)["digest"] == digest_images(path)


def test_a_partition_does_not_write_for_another_plan(tmp_path, called, late):
    folder = make_folder(tmp_path / "set", 12, bad=(3,))
    with pytest.raises(BadSamplesError):
        pipeline.ingest(str(folder), tmp_path / "s", SHARD)
    old = list(called["ingest"])
    make_folder(tmp_path / "set", 12, seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.ingestion.ingest.finish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pipeline.ingest(str(folder), tmp_path / "s", SHARD)
    before = snapshot(tmp_path / "s")
    late(old)
    assert snapshot(tmp_path / "s") == before
    path = pipeline.ingest(str(folder), tmp_path / "s", SHARD)
    assert content(path)["digest"] == digest_images(path)


def test_a_partition_makes_no_folder_where_a_store_was_removed(tmp_path, called, late):
    path, _ = ingested(tmp_path / "s")
    remove_tree(path)
    late(called["ingest"])
    assert not path.exists()


def test_a_shard_of_an_append_does_not_shorten_a_store_that_grew_again(tmp_path, called, late):
    path, _ = ingested(tmp_path / "s")
    pipeline.ingest(from_arrays(make_arrays({"train": 3}, seed=2), NAMES), path, append=True)
    first = list(called["append"])
    before = snapshot(path)
    late(first)
    assert snapshot(path) == before
    pipeline.ingest(from_arrays(make_arrays({"train": 4}, seed=3), NAMES), path, append=True)
    before = snapshot(path)
    late(called["append"])
    assert snapshot(path) == before
    assert content(path)["digest"] == digest_images(path)


def test_a_step_does_not_write_into_a_finished_run(tmp_path, called, late):
    path, _ = ingested(tmp_path / "s")
    settings = {"name": "job", "images": str(path), "output": str(tmp_path / "run")}
    run = pipeline.run_job(pipeline.make_job(settings)).path
    before = snapshot(run)
    late(called["measure"])
    assert snapshot(run) == before


def test_repairs_and_appends_write_into_what_is_finished_and_late_ones_do_not(
    tmp_path, called, late
):
    folder = make_folder(tmp_path / "set", 12)
    path = pipeline.ingest(str(folder), tmp_path / "s", SHARD)
    run = pipeline.run_job(
        pipeline.make_job({"name": "job", "images": str(path), "output": str(tmp_path / "run")})
    ).path
    digests = content(path)["digest"], pipeline.digest(run)
    (path / "train/image/c/0/0/0").unlink()
    next((run / "predictions").iterdir()).unlink()
    assert pipeline.verify(path, repair=True)
    assert pipeline.verify(run, repair=True)
    assert (digest_images(path), pipeline.digest(run)) == digests
    for place in (path, run):
        assert not (place / manifest.WORK).exists()
    before = snapshot(tmp_path)
    late(called["ingest"])
    late(called["measure"])
    assert snapshot(tmp_path) == before


def planned(tmp_path, bad=()):
    folder = make_folder(tmp_path / "set", 12, bad=bad)
    arguments = str(folder), tmp_path / "s", SHARD
    return arguments, pipeline.plan_ingest(*arguments)


def test_a_range_of_partitions_of_a_finished_store_is_refused(tmp_path):
    (source, path, shard), count = planned(tmp_path)
    pipeline.ingest_partitions(source, 0, count, path, shard)
    pipeline.ingest_partitions(source, 0, count, path, shard)  # again: nothing to do
    pipeline.finish_ingest(source, path, shard)
    before = snapshot(path)
    with pytest.raises(ConflictError, match="is finished, there is nothing left to do"):
        pipeline.ingest_partitions(source, 0, count, path, shard)
    assert snapshot(path) == before


def test_partitions_are_written_after_a_finish_that_asked_for_them(tmp_path):
    (source, path, shard), count = planned(tmp_path, bad=(3,))
    pipeline.ingest_partitions(source, 0, 1, path, shard)
    with pytest.raises(pipeline.core.errors.IncompleteError, match="not written"):
        pipeline.finish_ingest(source, path, shard)
    pipeline.ingest_partitions(source, 1, count, path, shard)
    with pytest.raises(BadSamplesError):
        pipeline.finish_ingest(source, path, shard)
    (path / "train/image/c/0/0/0").unlink()
    pipeline.ingest_partitions(source, 0, count, path, shard)
    settings = {"source": source, "max_bad": 1}
    pipeline.finish_ingest(settings, path, shard)
    assert content(path)["digest"] == digest_images(path)


def test_a_task_asks_storage_a_few_times_only(tmp_path, called, monkeypatch):
    path, _ = ingested(tmp_path / "s")
    asked, require = [], claims.Token.require
    monkeypatch.setattr(claims.Token, "require", lambda self: asked.append(1) or require(self))
    called["ingest"].clear()
    ingested(tmp_path / "t")
    assert len(asked) == 2 * len(called["ingest"])
    assert content(path)["digest"] == content(tmp_path / "t")["digest"]


def test_sums_are_not_kept_for_a_pass_that_is_over():
    folder = locate("memory://late-sums/run")
    kept = Checkpoints(folder, "this pass", (2, 3), 4, 1)
    kept.token.issue()
    kept.save("a", np.ones((2, 3), np.int64))
    assert kept.has("a")
    remove_tree(folder)
    with pytest.raises(StoreError):
        kept.save("a", np.ones((2, 3), np.int64))
    assert files_below(folder) == []


def test_a_token_is_of_one_plan_and_stage(tmp_path):
    token = claims.Token(tmp_path / ".work", "plan", "write")
    with pytest.raises(StoreError, match="nothing was written"):
        token.require()
    token.issue()
    token.require()
    others = (
        claims.Token(token.folder, "other", "write"),
        claims.Token(token.folder, "plan", "finish"),
    )
    for other in others:
        with pytest.raises(StoreError, match="filled by another command"):
            other.require()
    (token.folder / claims.FENCE_FILE).write_text("")
    with pytest.raises(StoreError):
        token.require()
    token.issue()
    token.revoke()
    token.revoke()
    with pytest.raises(StoreError):
        token.require()


def test_a_source_that_fails_late_is_no_reason_to_write(tmp_path, called):
    path, _ = ingested(tmp_path / "s")
    task, number = called["ingest"][0]
    late_task = pickle.loads(task)
    late_task.source.fails_at = ("train", 0), ("test", 0)
    with pytest.raises(StoreError) as caught:
        late_task(number)
    assert not isinstance(caught.value, SourceError)
    assert pipeline.verify(path) == []
