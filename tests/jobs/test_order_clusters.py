"""Clusters that are not to be had are refused before anything is listed, in one line."""

from __future__ import annotations

import os
from functools import partial

import pytest
from jobs_for_tests import Heard
from order_for_tests import Asked, here_job, job, make_floats, make_folder

import pipeline
from pipeline.cli import main
from pipeline.config.cluster_settings import ClusterSettings
from pipeline.core.errors import ClusterError, ConfigError, ShapeError, SourceError
from pipeline.execution import workers
from pipeline.storage import manifest


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
    listener = Heard()
    assert pipeline.plan_ingest("set", "p.zarr", cluster="local") == 2
    store = pipeline.ingest("set")
    assert pipeline.ingest("set", cluster="local") == store
    pipeline.run_job(here_job())
    run = pipeline.run_job(job(), listener)
    assert run.manifest["name"] == "j"
    assert listener.lines[-1] == "run is complete already"


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
