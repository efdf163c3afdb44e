"""Jobs that are cut short anywhere are resumed, and nothing is lost."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass

import pytest
from jobs_for_tests import Heard, make_arrays, make_images, make_settings, run

import pipeline
from pipeline.cli import main
from pipeline.core.errors import (
    ConflictError,
    IncompleteError,
    InUseError,
    JobInterruptedError,
    StorageFullError,
)
from pipeline.jobs import job
from pipeline.storage import atomic, locks, manifest
from pipeline.storage.lock_files import Holder
from pipeline.storage.locks import held
from pipeline.storage.processes import Process, this_process


def test_the_same_job_again_does_nothing(images, tmp_path):
    done = run(images, tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in done.path.rglob("*")}
    again = run(images, tmp_path / "run")
    assert again.manifest == done.manifest
    assert before == {path: path.stat().st_mtime_ns for path in done.path.rglob("*")}


@dataclass(frozen=True)
class Failing(job.EvaluatePartition):
    """Raises in place of one step."""

    def __call__(self, index):
        if index == 1:
            raise self.failure  # type: ignore[attr-defined]
        return super().__call__(index)


@pytest.mark.parametrize(
    ("failure", "expected", "message"),
    [
        (KeyboardInterrupt(), JobInterruptedError, "incomplete.*same command again"),
        (MemoryError("no memory"), MemoryError, "no memory"),
        (StorageFullError("no space left"), StorageFullError, "no space"),
    ],
)
def test_a_job_cut_short_keeps_what_is_written_and_resumes_to_the_same_digest(
    images, undisturbed, tmp_path, monkeypatch, failure, expected, message
):
    one_worker = {"cluster": {"kind": "threads", "workers": 1}}
    with monkeypatch.context() as patch:
        patch.setattr(Failing, "failure", failure, raising=False)
        patch.setattr(job, "EvaluatePartition", Failing)
        with pytest.raises(expected, match=message):
            run(images, tmp_path / "run", **one_worker)
    with pytest.raises(IncompleteError, match=r"incomplete.*same command"):
        pipeline.open_run(tmp_path / "run")
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("part-*")}
    assert kept
    done = run(images, tmp_path / "run", **one_worker)
    assert done.manifest["digests"] == undisturbed.manifest["digests"]
    assert kept.items() <= {p: p.stat().st_mtime_ns for p in done.path.rglob("part-*")}.items()
    assert not (done.path / ".work").exists()


def cut_short(images, output):
    """Leave a run without manifest, with everything else written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest, "write_manifest", lambda *_: (_ for _ in ()).throw(OSError("cut")))
        with pytest.raises(OSError, match="cut"):
            run(images, output)


@pytest.fixture(scope="module")
def cut(made, tmp_path_factory):
    """A run that was cut short, to be copied."""
    cut_short(made, output := tmp_path_factory.mktemp("cut") / "run")
    return output


@pytest.mark.parametrize(
    "victim",
    [
        "predictions/part-000000.parquet",
        "predictions/part-000001.parquet",
        "distances.zarr/distance/c/0/0/0",
        "distances.zarr/label/c/1",
        "prototypes.zarr/numerator/c/0/0/0",
        "prototypes.zarr/denominator/zarr.json",
    ],
)
@pytest.mark.parametrize("damage", ["delete", "truncate", "flip"])
def test_what_was_damaged_before_a_resume_is_made_again(
    made, cut, undisturbed, tmp_path, victim, damage
):
    path = shutil.copytree(cut, tmp_path / "run") / victim
    content = bytearray(path.read_bytes())
    if damage == "delete":
        path.unlink()
    elif damage == "truncate":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 4
        path.write_bytes(content)
    assert run(made, tmp_path / "run").manifest["digests"] == undisturbed.manifest["digests"]


def kill_at(name, settings):
    """Run a job in a process that is killed before a file of this name appears."""
    script = f"""
import os, signal
from pathlib import Path
import pipeline

def replace(self, target, replace=Path.replace):
    if {name!r} in str(target):
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(self, target)

Path.replace = replace
pipeline.run_job(pipeline.make_job({settings!r}))
"""
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr


@pytest.mark.slow
def test_of_a_killed_run_nothing_is_left_beside_what_is_documented(images, undisturbed, tmp_path):
    done = tmp_path / "run"
    job_file = {"name": "trees", "images": str(images), "output": str(done)}
    for name in ("distance/c/0/1/0", ".manifest.json"):
        kill_at(name, job_file)
        left = [path.name for path in done.rglob("*") if path.name.endswith(atomic.PARTIAL_SUFFIX)]
        assert len(left) in (1, 2)  # of two threads; that of the one before was swept
        assert (done / ".lock").exists()
    said = Heard()
    again = pipeline.run_job(make_settings(images, done), said)
    assert [line for line in said.lines if line.startswith("took over the lock of process ")]
    assert again.manifest["digests"] == undisturbed.manifest["digests"]
    assert relative_files(done) == relative_files(undisturbed.path)


def relative_files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_what_a_process_killed_at_the_very_end_left_is_tidied_up(images, tmp_path):
    done = run(images, tmp_path / "run").path
    before = relative_files(done)
    (done / manifest.WORK).mkdir()
    (done / manifest.WORK / "plan.json").write_text("{}")
    me = this_process()
    gone = Process(me.machine, me.number, me.started - 1)
    (done / ".lock").write_bytes(Holder("f" * 16, "run", "h", "u", gone, "", 1.0).to_bytes())
    with held(done, "verify") as lock:
        run(images, done)  # complete already, whoever holds it
        lock.check()
        assert (done / manifest.WORK).exists()
    (done / ".lock").write_bytes(Holder("e" * 16, "run", "h", "u", gone, "", 1.0).to_bytes())
    run(images, done)
    assert relative_files(done) == before


def test_of_two_runs_in_one_folder_the_second_is_told_of_the_first(images, undisturbed, tmp_path):
    output = tmp_path / "run"
    one_worker = {"cluster": {"kind": "threads", "workers": 1}}
    said = []

    class Twice(job.EvaluatePartition):
        def __call__(self, index):
            with pytest.raises(InUseError, match=f"in use by process {os.getpid()} of") as caught:
                run(images, output, **one_worker)
            said.append(str(caught.value))
            return super().__call__(index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "EvaluatePartition", Twice)
        done = run(images, output, **one_worker)
    assert len(said) == 2
    assert done.manifest["digests"] == undisturbed.manifest["digests"]
    assert relative_files(done.path) == relative_files(undisturbed.path)


def test_a_run_whose_folder_was_taken_over_stops_and_finishes_nothing(images, tmp_path):
    output = tmp_path / "run"
    one_worker = {"cluster": {"kind": "threads", "workers": 1}}
    begun = []

    class Late(job.EvaluatePartition):
        def __call__(self, index):
            begun.append(index)
            holder = Holder("f" * 16, "run", "h", "u", Process("elsewhere", 7, 1), "", 1.0)
            (output / ".lock").write_bytes(holder.to_bytes())
            lock = locks._held[locks._key(output)]
            with pytest.raises(InUseError):
                lock.check()
            return super().__call__(index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "EvaluatePartition", Late)
        with pytest.raises(InUseError, match="was taken over by process 7 of u on h"):
            run(images, output, **one_worker)
    assert len(begun) == 1
    assert not (output / manifest.MANIFEST).exists()
    assert b'"elsewhere"' in (output / ".lock").read_bytes()


@pytest.mark.parametrize("holds", ["a finished run", "a begun run", "something else"])
def test_a_run_that_is_not_to_resume_wants_a_new_folder(images, tmp_path, holds):
    output = tmp_path / "run"
    if holds == "a finished run":
        run(images, output)
    elif holds == "a begun run":
        cut_short(images, output)
    else:
        output.mkdir()
        (output / "notes.txt").write_text("years of work")
    before = relative_files(output)
    settings = make_settings(images, output)
    with pytest.raises(ConflictError, match="was not to be resumed; nothing in it was touched"):
        pipeline.run_job(settings, resume=False)
    assert relative_files(output) == before


@pytest.mark.parametrize("empty", [False, True])
def test_a_run_that_is_not_to_resume_begins_in_a_new_or_an_empty_folder(images, tmp_path, empty):
    if empty:
        (tmp_path / "run").mkdir()
    done = pipeline.run_job(make_settings(images, tmp_path / "run"), resume=False)
    assert done.metrics["l1"]["count"] == 90


def test_a_full_disk_is_one_clear_error_and_the_run_resumes(
    images, undisturbed, tmp_path, monkeypatch
):
    write, written = atomic.Path.replace, []

    def replace(self, target):
        if "part-" in str(target):
            written.append(target)
            if len(written) == 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(atomic.Path, "replace", replace)
        with pytest.raises(StorageFullError, match=r"No space left on device.*free some space"):
            run(images, tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*.partial"))
    assert run(images, tmp_path / "run").manifest["digests"] == undisturbed.manifest["digests"]


LIMITED = """
import resource, sys
import pipeline
from pipeline.cli import main
images, output = sys.argv[1:]
def run(output):
    return main(["run", "job.yml", "--set", f"images={images}", f"output={output}"])
assert run(f"{output} before") == 0  # numba has compiled and cached all its loops
resource.setrlimit(resource.RLIMIT_FSIZE, (30000, 30000))
sys.exit(run(output))
"""


@pytest.mark.slow
def test_a_real_file_size_limit_fails_the_job_cleanly(tmp_path, monkeypatch):
    arrays = make_arrays(train=64, test=4000)
    images = make_images(tmp_path / "images.zarr", arrays, shard=4000)
    (tmp_path / "job.yml").write_text("images: to be set\n")
    arguments = [sys.executable, "-c", LIMITED, str(images), str(tmp_path / "run")]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "pixsim: no space left while writing" in done.stderr
    assert "Traceback" not in done.stderr
    monkeypatch.chdir(tmp_path)
    changes = [f"images={images}", f"output={tmp_path / 'run'}"]
    assert main(["run", "job.yml", "--set", *changes]) == 0
    assert pipeline.digest(tmp_path / "run")
