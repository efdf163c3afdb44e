"""The order inside a command: what can be refused or is finished asks for no worker."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from functools import partial
from pathlib import Path

import pytest
from order_for_tests import here_job, job, make_floats, make_folder

import pipeline
from pipeline.cli import main
from pipeline.config.cluster_settings import ClusterSettings
from pipeline.core.errors import (
    ConfigError,
    ConflictError,
    IncompleteError,
    LabelError,
    MemoryLimitError,
    SourceError,
    StoreError,
)
from pipeline.storage import claims, manifest


def other_run(here):
    pipeline.run_job(here_job())
    return job(metrics="l1")


def other_run_begun(here):
    claims.start(here / "run", manifest.RUN, {"fit": "test"})
    return job()


def foreign_run(here):
    (here / "run").mkdir()
    (here / "run" / "thesis.txt").write_text("years of work")
    return job()


def not_to_resume(here):
    pipeline.run_job(here_job())
    return job()


def no_source(here):
    return job(images="gone")


def no_split(here):
    return job(evaluate="valid")


def no_class(here):
    return job(classes=["emu"])


def no_split_in_a_store(here):
    pipeline.ingest("set")
    return job(evaluate="valid")


def no_memory(here):
    return job(cluster={"kind": "local", "memory": "1 MB"})


def foreign_store(here):
    (here / "data/stores/set.zarr").mkdir(parents=True)
    (here / "data/stores/set.zarr" / "thesis.txt").write_text("years of work")
    return job()


def other_store(here):
    pipeline.ingest({"source": "set", "resize": 2})
    return job()


def other_store_begun(here):
    claims.start(here / "data/stores/set.zarr", manifest.IMAGES, {"source": {"kind": "other"}})
    return job()


def unfinished_store(here):
    claims.start(here / "s.zarr", manifest.IMAGES, {"source": {"kind": "other"}})
    return job(images="s.zarr")


def twin_splits(here):
    (here / "list.csv").write_text(
        "path,label,split\ntrain/cat/0.png,cat,train\ntrain/dog/1.png,dog,Train\n"
    )
    return job(images={"source": "list.csv", "root": "set"})


def no_split_of_floats(here):
    make_floats(here / "f.npz")
    return job(images="f.npz", evaluate="valid")


def no_split_on_a_scheduler(here):
    return job(evaluate="valid", cluster="tcp://127.0.0.1:1")


def no_place(here):
    return job(output="/proc/out")


def no_folder(here):
    (here / "file").write_text("x")
    return job(output="file/out")


def no_place_for_the_store(here):
    return job(images={"source": "set", "store": "/proc/x.zarr"})


def no_data_folder(here):
    os.environ["PIXSIM_DATA"] = "/proc/data"  # as `monkeypatch` has set it, and sets it back
    return job(output="run")


def named(value):
    return getattr(value, "__name__", "")


REFUSED = [
    (other_run, ConflictError, "'metrics' there is"), (other_run_begun, ConflictError, "'fit'"),
    (foreign_run, ConflictError, "is no pixsim run"),
    (not_to_resume, ConflictError, "was not to be resumed"),
    (no_source, ConfigError, "images 'gone'"), (no_split, StoreError, "no split 'valid'"),
    (no_class, LabelError, "'emu'"), (no_split_in_a_store, StoreError, "no split 'valid'"),
    (no_memory, MemoryLimitError, "expected at most"),
    (no_split_of_floats, StoreError, "no split 'valid'"),
    (no_split_on_a_scheduler, StoreError, "no split 'valid'"),
    (no_place, StoreError, "no file can be made in /proc"), (no_folder, StoreError, "no folder"),
    (no_place_for_the_store, StoreError, "/proc/x.zarr: cannot be written"),
    (no_data_folder, StoreError, "PIXSIM_DATA"),
    (foreign_store, ConflictError, "is no pixsim image set"),
    (other_store, ConflictError, "nothing in it was touched"),
    (other_store_begun, ConflictError, "'source.kind' there is"),
    (unfinished_store, IncompleteError, "incomplete"), (twin_splits, SourceError, "'Train'"),
]  # fmt: skip


@pytest.mark.parametrize(("prepare", "error", "said"), REFUSED, ids=named)
def test_what_can_be_refused_without_a_worker_asks_for_none(
    here, monkeypatch, prepare, error, said
):
    monkeypatch.setenv("PIXSIM_DATA", "data")
    settings = prepare(here)
    with pytest.raises(error, match=said):
        pipeline.run_job(settings, resume=prepare is not not_to_resume)


@pytest.mark.parametrize(("prepare", "error", "said"), [
    (no_source, ConfigError, "images 'gone'"), (foreign_store, ConflictError, "is no pixsim"),
    (other_store, ConflictError, "nothing in it was touched"),
    (other_store_begun, ConflictError, "'source.kind' there is"),
    (twin_splits, SourceError, "'Train'"),
    (no_place_for_the_store, StoreError, "--output"), (no_data_folder, StoreError, "PIXSIM_DATA"),
], ids=named)  # fmt: skip
@pytest.mark.parametrize("do", [pipeline.ingest, pipeline.plan_ingest])
def test_an_ingest_that_is_refused_asks_for_no_worker(here, monkeypatch, do, prepare, error, said):
    monkeypatch.setenv("PIXSIM_DATA", "data")
    images = prepare(here).images
    with pytest.raises(error, match=said):
        do(images, cluster="local")


def test_a_plan_is_refused_where_the_run_would_be(here, monkeypatch):
    monkeypatch.setenv("PIXSIM_DATA", "data")
    for prepare in (no_place, no_place_for_the_store, foreign_run, foreign_store, no_memory):
        with pytest.raises((StoreError, ConflictError, MemoryLimitError)):
            pipeline.forecast(prepare(here))
    shutil.rmtree(here / "run")
    shutil.rmtree(here / "data")
    before = sorted(here.rglob("*"))
    pipeline.forecast(job())
    assert sorted(here.rglob("*")) == before


MEMORY = {"process": {"kind": "local", "workers": 1, "memory": "1 MB"},
          "threads": {"kind": "threads", "workers": 2, "memory": "1 MB"},
          "shards": {"kind": "local", "threads_per_worker": 2, "memory": "250 MB"}}  # fmt: skip


@pytest.mark.parametrize("kind", MEMORY)
@pytest.mark.parametrize("do", ["ingest", "append", "verify"])
def test_a_memory_that_nothing_fits_into_is_found_before_a_worker_is_asked_for(
    here, monkeypatch, do, kind
):
    store = pipeline.ingest("set", "s.zarr")
    make_folder(here / "more", seed=1, splits={"train": 2})
    if kind == "shards":  # as if they were that large
        monkeypatch.setattr("pipeline.storage.image_store.image_bytes", lambda *_: 10**8)
        monkeypatch.setattr("pipeline.jobs.repair.image_bytes", lambda *_: 10**8)
    asked = ClusterSettings(**MEMORY[kind])
    call = {
        "verify": partial(pipeline.verify, store),
        "ingest": partial(pipeline.ingest, "set", "t.zarr"),
        "append": partial(pipeline.ingest, "more", store, append=True),
    }[do]
    with pytest.raises(MemoryLimitError, match=r"expected at most 0.*\(cluster\.memory"):
        call(cluster=asked)
    assert not (here / "t.zarr").exists()
    monkeypatch.undo()
    monkeypatch.chdir(here)
    pipeline.ingest("more", store, append=True)  # it blocks nothing
    assert pipeline.verify(store) == []


@pytest.mark.parametrize("words", [
    ["ingest", "set", "-o", "{}.zarr"], ["ingest", "set", "-o", "{}.zarr", "--only", "plan"],
    ["run", "j.yml", "-o", "{}"], ["plan", "j.yml", "-o", "{}"], ["report", "run", "-o", "{}.html"],
    ["show", "run", "--grid", "{}.png"], ["ingest", "set", "--cluster", "local", "--profile", "{}"],
    ["explain", "run", "--split", "test", "--sample", "0", "--picture", "{}.png"],
], ids=lambda words: words[0])  # fmt: skip
def test_every_output_that_cannot_be_written_is_one_line_with_a_cure(
    here, monkeypatch, capsys, words
):
    pipeline.run_job(here_job())
    (here / "j.yml").write_text("images: set\nreport: false\n")
    (here / "file").write_text("x")
    (here / "full").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "TemporaryFile", read_only_below(here / "full"))
        for place in ("/proc/x", "file/x", "full/x"):
            capsys.readouterr()
            assert main([word.format(place) for word in words]) == 2
            line = capsys.readouterr().err.splitlines()[-1]
            assert "[Errno" not in line
            assert "--" in line
            assert ("cannot be written to" in line) or "there is no folder file" in line
        assert not list((here / "full").iterdir())
    if "--profile" not in words:
        assert main([word.format("full/good") for word in words]) == 0


def read_only_below(folder):
    """Return what makes a temporary file as where a disk is mounted to be read."""
    make = tempfile.TemporaryFile

    def make_or_refuse(dir):
        if folder in (Path(dir).absolute(), *Path(dir).absolute().parents):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return make(dir=dir)

    return make_or_refuse


def test_what_cannot_be_written_to_is_not_repaired_and_a_finished_one_needs_no_writing(
    here, monkeypatch
):
    store = pipeline.ingest("set", "s.zarr")
    monkeypatch.setattr(tempfile, "TemporaryFile", read_only_below(here))
    assert pipeline.ingest("set", "s.zarr") == store
    assert pipeline.verify(store) == []
    with pytest.raises(StoreError, match="Read-only file system"):
        pipeline.verify(store, repair=True, cluster="local")
