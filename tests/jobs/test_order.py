"""The order inside a command: what can be refused or is finished asks for no cluster, no source."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pipeline
from pipeline.cli import main
from pipeline.config.cluster_settings import ClusterSettings
from pipeline.core.errors import (
    ClusterError,
    ConfigError,
    ConflictError,
    IncompleteError,
    LabelError,
    MemoryLimitError,
    PixsimError,
    ShapeError,
    SourceError,
    StoreError,
)
from pipeline.execution import executor, workers
from pipeline.execution.progress import SilentReporter
from pipeline.sources.registry import open_source, release
from pipeline.storage import atomic, claims, manifest
from pipeline.storage.atomic import PARTIAL_SUFFIX, make_scratch, remove_scratch, scratch_folder

ROOT = Path(__file__).resolve().parents[2]
SPLITS = {"train": 6, "test": 4}


def make_folder(folder, size=(4, 4), seed=0, names=("cat", "dog"), splits=SPLITS):
    """Write a tiny image set of files."""
    rng = np.random.default_rng(seed)
    for split, count in splits.items():
        for number in range(count):
            place = folder / split / names[number % len(names)] / f"{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(place)
    return folder


def make_floats(path, low=0.0):
    """Write a tiny image set of floats."""
    rng = np.random.default_rng(3)
    arrays = {}
    for split, count in SPLITS.items():
        arrays[f"{split}_images"] = rng.uniform(low, 1, (count, 4, 4)).astype(np.float32)
        arrays[f"{split}_labels"] = np.arange(count) % 2
    np.savez(path, **arrays)
    return path


class Asked(Exception):
    """The cluster was asked for."""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Work in a folder where opening a cluster raises `Asked`."""

    @contextmanager
    def refused(settings, reporter=None):
        raise Asked
        yield

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(executor, "open_client", refused)
    make_folder(tmp_path / "set")
    return tmp_path


def job(**settings):
    """Return a job on the folder `set`, on worker processes."""
    content = {"name": "j", "images": "set", "output": "run", "report": False, "cluster": "local"}
    return pipeline.make_job(content | settings)


def here_job(**settings):
    return job(cluster="threads", **settings)


class Listener:
    """Keeps what is said."""

    def __init__(self):
        self.said, self.silent = [], SilentReporter()

    def say(self, message):
        self.said.append(message)

    def phase(self, *arguments, **keywords):
        return self.silent.phase(*arguments, **keywords)


# nothing asks for a cluster that is refused or finished -----------------------------------------


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
    (other_store_begun, ConflictError, "'source' there is"),
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
    (other_store_begun, ConflictError, "'source' there is"),
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


# clusters that are not to be had ----------------------------------------------------------------


@pytest.fixture
def programs(here, monkeypatch):
    """Return what makes a program; there are no others."""
    folder = here / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def program(name, code, said=""):
        (folder / name).write_text(f"#!/bin/sh\necho '{said}' >&2\nexit {code}\n")
        (folder / name).chmod(0o755)

    return program


SLURM = ClusterSettings(kind="slurm", workers=1, memory="1 GB")
KUBERNETES = ClusterSettings(kind="kubernetes", workers=1, memory="1 GB")
SCHEDULER = ClusterSettings(kind="scheduler")
TORN = ClusterSettings(kind="scheduler", scheduler_file="gone.json")


@pytest.mark.parametrize("do", ["ingest", "run", "verify"])
@pytest.mark.parametrize(("settings", "there", "said"), [
    (SLURM, [], "needs sbatch"), (SLURM, ["sbatch"], "needs scancel"),
    (SLURM, ["sbatch", "scancel", "scontrol"], "no controller"),
    (KUBERNETES, [], "KUBECONFIG"), (SCHEDULER, [], "needs an address"),
    (TORN, [], "there is no file gone.json"),
], ids=str)  # fmt: skip
def test_a_cluster_that_is_not_to_be_had_is_refused_before_anything_is_listed(
    here, programs, monkeypatch, do, settings, there, said
):
    store = pipeline.ingest("set", "s.zarr")
    for name in there:
        programs(name, 1, "no controller")
    monkeypatch.setenv("KUBECONFIG", str(here / "nothing"))
    monkeypatch.delenv("DASK_SCHEDULER_ADDRESS", raising=False)
    monkeypatch.setattr("pipeline.ingestion.request.open_source", pytest.fail)
    call = {
        "verify": partial(pipeline.verify, store, repair=True, cluster=settings),
        "run": partial(pipeline.run_job, job(images="s.zarr", cluster=settings)),
        "ingest": partial(pipeline.ingest, "set", "other.zarr", cluster=settings),
    }[do]
    with pytest.raises(ConfigError, match=said):
        call()
    assert not (here / "run").exists()
    assert not (here / "other.zarr").exists()


def test_what_slurm_says_of_a_job_that_it_does_not_take_is_told_at_once(tmp_path, programs):
    programs("scontrol", 0)
    programs("scancel", 0)
    programs("sbatch", 1, "sbatch: error: Invalid account")
    with (
        pytest.raises(ClusterError, match=r"Slurm takes no job .*Invalid account"),
        workers.open_client(SLURM),
    ):
        pass


def test_what_is_to_be_done_asks_for_the_cluster(here):
    for do in (lambda: pipeline.ingest("set", cluster="local"), lambda: pipeline.run_job(job())):
        with pytest.raises(Asked):
            do()


def test_planning_and_what_is_finished_ask_for_none(here):
    listener = Listener()
    assert pipeline.plan_ingest("set", "p.zarr", cluster="local") == 2
    store = pipeline.ingest("set")
    assert pipeline.ingest("set", cluster="local") == store
    pipeline.run_job(here_job())
    run = pipeline.run_job(job(), listener)
    assert run.manifest["name"] == "j"
    assert listener.said[-1] == "run is complete already"


@pytest.mark.parametrize("change", ["resize", "emu", "Train"])
def test_samples_that_do_not_fit_a_store_ask_for_no_worker_and_block_nothing(here, change):
    store = pipeline.ingest("set", "s.zarr")
    split, side = "Train" if change == "Train" else "train", 6 if change == "resize" else 4
    make_folder(here / "more", (side, side), 1, splits={split: 2})
    error = {"resize": ShapeError, "emu": Asked, "Train": SourceError}[change]
    source = {"splits": {"Train": "more/Train"}} if change == "Train" else {"source": "more"}
    with pytest.raises(error):
        pipeline.ingest(source, store, append=True, cluster="local")
    if change != "emu":
        assert not (store / manifest.APPEND / "store" / manifest.WORK / "plan.json").exists()
        make_folder(here / "good", seed=5, splits={"train": 2})
        pipeline.ingest("good", store, append=True)
        assert pipeline.open_store(store).splits["train"] == 8


def test_floats_that_are_measured_already_are_not_measured_to_be_compared(here):
    make_floats(here / "f.npz")
    store = pipeline.ingest("f.npz", "f.zarr")
    assert pipeline.ingest("f.npz", "f.zarr", cluster="local") == store
    make_floats(here / "f.npz", low=-1.0)
    os.utime(here / "f.npz", (1, 1))
    with pytest.raises(Asked):  # other files need another look
        pipeline.ingest("f.npz", "f.zarr", cluster="local")


def test_settings_of_a_cluster_are_looked_at_before_anything_is_listed(here, monkeypatch):
    monkeypatch.setattr("pipeline.ingestion.request.open_source", pytest.fail)
    with pytest.raises(ConfigError, match="moon"):
        pipeline.ingest("set", cluster="moon")
    with pytest.raises(ConfigError, match="--profile"):
        pipeline.ingest("set", profile="p.html")


# a finished store needs no source ---------------------------------------------------------------


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
    listener = Listener()
    assert pipeline.run_job(job(images=images), listener).manifest["digests"]["run"] == digest
    again = pipeline.run_job(here_job(images=images, output="other"), listener)
    assert again.manifest["digests"]["run"] == digest
    assert any("which is not read again" in line for line in listener.said)
    assert pipeline.forecast(job(images=images))["ingested"]
    listener = Listener()
    pipeline.ingest(here_job(images=images).images, cluster="local", reporter=listener)
    assert "is complete already; its source is not there any more" in listener.said[-1]


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
    listener = Listener()
    pipeline.ingest("more", store, append=True, reporter=listener)
    assert listener.said[-1].endswith("holds these samples already")
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


# a listing is left nowhere ----------------------------------------------------------------------


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


# the command line -------------------------------------------------------------------------------


def test_ingest_takes_the_cluster_of_a_job_file(here, monkeypatch):
    (here / "j.yml").write_text("images: set\ncluster: {kind: threads, workers: 3}\n")
    asked = []
    ingest = pipeline.ingest
    monkeypatch.setattr(pipeline, "ingest", lambda *a, **k: asked.append(a[3]) or ingest(*a, **k),
                        raising=False)  # fmt: skip
    assert main(["ingest", "j.yml", "-o", "a.zarr"]) == 0
    assert main(["ingest", "j.yml", "-o", "b.zarr", "--cluster", "threads"]) == 0
    assert main(["ingest", "set", "-o", "c.zarr"]) == 0
    assert [getattr(settings, "workers", settings) for settings in asked] == [3, None, None]


def test_steps_run_where_they_are_called(here):
    (here / "j.yml").write_text("images: set\ncluster: {kind: scheduler, address: tcp://h:1}\n")
    assert main(["ingest", "j.yml", "-o", "s.zarr", "--only", "plan"]) == 0
    assert main(["ingest", "j.yml", "-o", "s.zarr", "--only", "0:2"]) == 0
    assert main(["ingest", "j.yml", "-o", "s.zarr", "--only", "finish"]) == 0


class OutOfMemoryError(RuntimeError):
    """As torch has it."""


@pytest.mark.parametrize(("error", "said"), [
    (RuntimeError("the kernel\nfailed"), "RuntimeError: the kernel failed; pixsim --debug shows"),
    (OutOfMemoryError("CUDA out of memory. Tried"), "OutOfMemoryError: CUDA out of memory. Tried"),
    (MemoryError(), "MemoryError; run fewer tasks at once"), (OSError("no device"), "no device"),
    (OSError(), "OSError"), (KeyError("x"), "KeyError: 'x'"), (AssertionError(), "AssertionError"),
    (RecursionError("deep"), "RecursionError: deep"), (ValueError("x" * 9999), "xxx..."),
])  # fmt: skip
@pytest.mark.parametrize("debug", [False, True])
def test_any_error_is_one_line_and_exit_code_1(here, monkeypatch, capsys, error, said, debug):
    def fails(*arguments, **keywords):
        raise error

    monkeypatch.setattr("pipeline.jobs.job.deferred_executor", fails)
    (here / "j.yml").write_text("images: set\n")
    assert main([*(["--debug"] if debug else []), "run", "j.yml"]) == 1
    captured = capsys.readouterr().err
    assert ("Traceback" in captured) == debug
    line = captured.splitlines()[-1]
    assert line.startswith("pixsim: ")
    assert said in line
    assert len(line) < 700
    if "memory" in said.lower():
        assert "--set" in line


def test_an_error_of_a_task_is_one_line_too(here, monkeypatch, capsys):
    def fails(*arguments):
        raise RuntimeError("CUDA error: device-side assert")

    monkeypatch.setattr("pipeline.kernels.cpu_sums.class_sums", fails, raising=False)
    monkeypatch.setattr("pipeline.ops.prototypes.class_sums_block", fails)
    monkeypatch.setattr("pipeline.jobs.fit_pass.class_sums_block", fails, raising=False)
    monkeypatch.setattr("pipeline.kernels.backends.load", fails)
    (here / "j.yml").write_text("images: set\n")
    assert main(["run", "j.yml"]) == 1
    captured = capsys.readouterr().err
    assert "Traceback" not in captured
    assert captured.splitlines()[-1].startswith("pixsim: RuntimeError: CUDA error")
