"""A finished store needs no source, and a listing is left nowhere."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile

import numpy as np
import pytest
from jobs_for_tests import Heard
from order_for_tests import ROOT, here_job, job, make_folder
from PIL import Image

import pipeline
from pipeline.core.errors import ConfigError, ConflictError, PixsimError
from pipeline.sources.registry import open_source, release
from pipeline.storage import atomic, manifest
from pipeline.storage.atomic import PARTIAL_SUFFIX, make_scratch, remove_scratch, scratch_folder


@pytest.mark.parametrize("images", [
    "set", {"source": "set", "resize": 3}, {"splits": {"train": "set/train", "test": "set/test"}},
    {"source": "set", "kind": "folder"}, {"source": "set", "shard": 3},
    {"source": "set", "store": "own.zarr"}, {"source": "list.csv", "root": "set"},
], ids=str)  # fmt: skip
def test_a_finished_store_is_used_when_its_source_is_gone(here, monkeypatch, images):
    rows = [f"{p.relative_to(here / 'set')},{p.parent.name},{p.parts[-3]}"
            for p in sorted((here / "set").rglob("*.png"))]  # fmt: skip
    (here / "list.csv").write_text("\n".join(["path,label,split", *rows]))
    first = pipeline.run_job(here_job(images=images))
    digest = first.manifest["digests"]["run"]
    shutil.rmtree(here / "set")
    (here / "list.csv").unlink()
    listener = Heard()
    assert pipeline.run_job(job(images=images), listener).manifest["digests"]["run"] == digest
    again = pipeline.run_job(here_job(images=images, output="other"), listener)
    assert again.manifest["digests"]["run"] == digest
    assert any("which is not read again" in line for line in listener.lines)
    assert pipeline.forecast(job(images=images))["ingested"]
    listener = Heard()
    pipeline.ingest(here_job(images=images).images, cluster="local", reporter=listener)
    assert "is complete already; its source is not there any more" in listener.lines[-1]


def test_a_run_lists_the_source_of_a_finished_store_no_second_time(here, monkeypatch):
    pipeline.run_job(here_job())
    monkeypatch.setattr("pipeline.ingestion.request.open_source", pytest.fail)
    monkeypatch.setattr("pipeline.jobs.preview.open_source", pytest.fail)
    pipeline.run_job(here_job())
    pipeline.forecast(here_job())
    pipeline.run_job(here_job(output="other", images={"source": "set", "max_bad": 3}))


def test_other_settings_are_a_conflict_as_before(here):
    pipeline.run_job(here_job())
    with pytest.raises(ConflictError, match="nothing in it was touched"):
        pipeline.run_job(here_job(output="other", images={"source": "set", "resize": 2}))
    run = pipeline.run_job(
        here_job(output="other", images={"source": "set", "resize": 2, "store": "own.zarr"})
    )  # the cure that the message names
    assert run.images == here / "own.zarr"


def test_other_settings_are_a_conflict_that_names_them_also_where_the_source_is_gone(here):
    store = pipeline.ingest("set")
    shutil.rmtree(here / "set")
    assert pipeline.ingest("set") == store
    with pytest.raises(ConflictError, match="'resize' there is None, here 2"):
        pipeline.ingest({"source": "set", "resize": 2})
    with pytest.raises(ConflictError, match="'resize'"):
        pipeline.run_job(here_job(images={"source": "set", "resize": 2}))


def test_an_ingest_notices_that_its_source_changed(here):
    store = pipeline.ingest("set")
    make_folder(here / "set", seed=8, splits={"train": 8})
    with pytest.raises(ConflictError, match="--output"):
        pipeline.ingest("set")
    assert pipeline.ingest("set", "new.zarr") != store


def test_an_append_looks_at_its_source_each_time(here):
    store = pipeline.ingest("set", "s.zarr")
    make_folder(here / "more", seed=1, splits={"train": 2})
    pipeline.ingest("more", store, append=True)
    listener = Heard()
    pipeline.ingest("more", store, append=True, reporter=listener)
    assert listener.lines[-1].endswith("holds these samples already")
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(here / "more/train/cat/new.png")
    pipeline.ingest("more", store, append=True)
    assert pipeline.open_store(store).splits["train"] == 6 + 2 + 3
    shutil.rmtree(here / "more")
    with pytest.raises(ConfigError):
        pipeline.ingest("more", store, append=True)


def test_a_store_of_a_catalog_set_that_older_versions_recorded_is_known(here, monkeypatch):
    store = pipeline.ingest("digits")
    content = manifest.read_manifest(store, manifest.IMAGES)
    manifest.put_manifest(store, content | {"settings": {"source": "digits"}})
    monkeypatch.setattr("pipeline.sources.registry.open_dataset", pytest.fail)
    assert pipeline.ingest("digits", cluster="local") == store
    assert pipeline.ingest("catalog:digits", cluster="local") == store


def left_in(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if PARTIAL_SUFFIX in p.name)


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """Return a folder of this test's own for temporary files."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return tmp_path / "tmp"


KILLED = """
import os, signal, sys, tempfile
from pipeline.ingestion import ingest, request
from pipeline.sources import registry
import pipeline
def killed(*arguments, **keywords):
    os.kill(os.getpid(), signal.SIGKILL)
{patch} = killed
{command}
"""


@pytest.mark.parametrize(("patch", "command", "place"), [
    ("request.plan_source", "pipeline.ingest('set', 's.zarr')", "s.zarr/.work"),
    pytest.param(
        "ingest.write_partitions", "pipeline.ingest('set', 's.zarr')", "s.zarr/.work",
        marks=pytest.mark.slow,
    ),
    pytest.param(
        "request.plan_source", "pipeline.ingest('set', 'memory://b/s.zarr')", "data/.work",
        marks=pytest.mark.slow,
    ),
    ("registry.release", "pipeline.open_source('set'); registry.release()", "data/.work"),
])  # fmt: skip
def test_a_killed_process_leaves_its_listing_where_the_next_one_sweeps_it(
    here, temporary, monkeypatch, patch, command, place
):
    monkeypatch.setenv("PIXSIM_DATA", "data")
    code = KILLED.format(patch=patch, command=command)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    left = left_in(here)
    assert left
    assert all(name.startswith(place) for name in left), left
    assert not list(temporary.iterdir())
    if place.startswith("s.zarr"):
        store = pipeline.ingest("set", "s.zarr")
        assert not (store / manifest.WORK).exists()
    else:
        atomic._swept.clear()
        release(open_source("set"))
    assert not left_in(here)


@pytest.mark.parametrize("source", ["set", "nothing", "empty"])
def test_an_ingest_leaves_no_folder_beside_its_store(here, temporary, monkeypatch, source):
    monkeypatch.setenv("PIXSIM_DATA", "data")
    (here / "empty").mkdir()
    before = sorted(here.iterdir())
    if source == "set":
        pipeline.ingest("set", "a/s.zarr")
        shutil.rmtree(here / "a")
    else:
        with pytest.raises(PixsimError):
            pipeline.ingest(source, "a/s.zarr")
    assert sorted(here.iterdir()) == before
    assert not list(temporary.iterdir())


def test_a_plan_and_a_source_in_a_notebook_leave_nothing(here, temporary, monkeypatch):
    monkeypatch.setenv("PIXSIM_DATA", "data")
    before = sorted(here.iterdir())
    pipeline.forecast(here_job())
    assert sorted(here.iterdir()) == before
    code = "import pipeline; source = pipeline.open_source('set'); print(source.listing)"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=True,
                          capture_output=True, text=True)  # fmt: skip
    assert str(here / "data/.work") in done.stdout
    assert sorted(here.iterdir()) == before


def test_a_finished_store_that_cannot_be_written_to_is_recognised(here):
    store = pipeline.ingest("set", "s.zarr")
    before = sorted(store.rglob("*"))
    assert pipeline.ingest("set", "s.zarr") == store
    assert sorted(store.rglob("*")) == before


def test_scratch_of_the_living_stays_and_that_of_the_dead_goes(tmp_path):
    with scratch_folder(tmp_path / "a" / "b") as folder:
        dead = folder.with_name(folder.name.replace(f"-{os.getpid()}-", "-4000000-"))
        dead.mkdir()
        (dead / "0.parquet").write_bytes(b"x")
        atomic._swept.clear()
        other = make_scratch(tmp_path / "a" / "b")
        assert folder.exists()
        assert not dead.exists()
        remove_scratch(other)
    assert not (tmp_path / "a").exists()
