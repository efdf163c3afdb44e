"""Signals: what runs may end, nothing new is begun, the run goes on later; or all stops at once."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
from clusters_for_tests import run_digest, small_job, small_store
from forks_for_tests import in_fork

import pipeline
from pipeline.config.cluster_settings import ClusterSettings
from pipeline.core.errors import JobInterruptedError
from pipeline.execution import signals
from pipeline.execution.executor import open_executor
from pipeline.execution.progress import SilentReporter

PARTITIONS = 60

# a job of whose second pass each task takes a while; it says which began and which ended
SLOW = """
import sys, time
from pathlib import Path
from pipeline.jobs import evaluate_pass as steps
from pipeline.cli import main
original = steps.EvaluatePartition.__call__
def slow(self, index):
    Path("begun", str(index)).touch()
    time.sleep(float(sys.argv[1]))
    found = original(self, index)
    Path("ended", str(index)).touch()
    return found
steps.EvaluatePartition.__call__ = slow
if __name__ == "__main__":
    sys.exit(main(["run", "job.yml", *sys.argv[2:]]))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a job that has many partitions, and room for notes of its tasks."""
    monkeypatch.chdir(tmp_path)
    small_store(tmp_path, samples=PARTITIONS * 2, shard=2)
    (tmp_path / "job.yml").write_text("images: images.zarr\noutput: run\n")
    (tmp_path / "slow.py").write_text(SLOW)
    for name in ("begun", "ended"):
        (tmp_path / name).mkdir()
    return tmp_path


def begin(folder, seconds, *words):
    """Start the slow job in a session of its own, and wait until two of its tasks have begun."""
    process = subprocess.Popen(
        [sys.executable, "slow.py", str(seconds), *words],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while len(names(folder / "begun")) < 2 and process.poll() is None:
        assert time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)
    return process


def names(folder):
    return {path.name for path in folder.iterdir()}


def ended_well(folder):
    """Finish the job, and compare it with one that was never stopped."""
    expected = run_digest(small_job(folder, "undisturbed"))
    assert run_digest(small_job(folder, "run")) == expected


CLUSTER = ["--cluster", "cluster.yml"]


@pytest.mark.parametrize(("cluster", "to_all"), [
    pytest.param("kind: threads\nworkers: 2", False, id="threads"),
    pytest.param("kind: local\nworkers: 2", True, marks=pytest.mark.slow, id="processes"),
])  # fmt: skip
def test_sigterm_drains_and_the_same_command_goes_on(folder, cluster, to_all):
    """Batch systems send it to every process; what runs ends, nothing else begins."""
    (folder / "cluster.yml").write_text(cluster)
    partitions = PARTITIONS
    if to_all:  # these are fast
        partitions *= 10
        shutil.rmtree(folder / "images.zarr")
        small_store(folder, samples=partitions * 2, shard=2)
    # worker processes load what the script changed with the function that they are sent
    process = begin(folder, 0.3, *CLUSTER) if not to_all else begin_local(folder)
    if to_all:
        os.killpg(process.pid, signal.SIGTERM)
    else:
        process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 3, said
    lines = said.strip().splitlines()
    assert any(line.startswith("SIGTERM: no new tasks; those that run may end") for line in lines)
    written = len(list((folder / "run" / "predictions").glob("*.parquet")))
    assert re.fullmatch(
        rf"pixsim: interrupted: run is incomplete, {written} of its .* run the same command.*",
        lines[-1],
    )
    assert "Traceback" not in said
    assert 1 <= written < partitions
    if not to_all:
        assert names(folder / "begun") == names(folder / "ended")
        assert written == len(names(folder / "ended"))
    ended_well(folder)


def begin_local(folder):
    """Start the job on worker processes, and wait until it has written something."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", "run", "job.yml", *CLUSTER],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not list((folder / "run").glob("predictions/*.parquet")):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    return process


@pytest.mark.parametrize(
    "second", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_second_signal_stops_at_once(folder, second):
    (folder / "cluster.yml").write_text("kind: threads\nworkers: 2\ngrace: 600")
    process = begin(folder, 600, *CLUSTER)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(second)
    _, said = process.communicate(timeout=60)  # far less than a task takes
    assert process.returncode == 3, said
    assert said.strip().splitlines()[-1].startswith("pixsim: interrupted")
    assert names(folder / "ended") == set()


def test_tasks_have_so_long_and_no_longer(folder):
    (folder / "cluster.yml").write_text("kind: threads\nworkers: 2\ngrace: 0.5")
    process = begin(folder, 600, *CLUSTER)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 3, said
    assert names(folder / "ended") == set()


# in this process ---------------------------------------------------------------------------------


def drained(count, function, settings):
    """Map under signals as the command line does."""
    with (
        signals.stop_on_signals(),
        open_executor(settings) as executor,
        SilentReporter().phase("mapping", count) as phase,
    ):
        executor.map(function, count, phase)


BEGUN, ENDED = [], []


def told_to_stop(index):
    """Be a task that workers in this process find by its name, so that its notes are here."""
    BEGUN.append(index)
    if len(BEGUN) == 3:
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.2)
    ENDED.append(index)


def test_workers_of_a_scheduler_get_nothing_new_and_end_what_they_run(capfd):
    distributed = pytest.importorskip("distributed")
    BEGUN.clear()
    ENDED.clear()
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None
    ) as made:
        settings = ClusterSettings(kind="scheduler", address=made.scheduler_address)
        with pytest.raises(KeyboardInterrupt):
            drained(200, told_to_stop, settings)
        assert sorted(BEGUN) == sorted(ENDED)
    assert 3 <= len(ENDED) < 20
    assert "SIGTERM: no new tasks" in capfd.readouterr().err


def test_a_signal_while_no_tasks_run_stops_at_once():
    def told():
        with signals.stop_on_signals():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
            pytest.fail("it went on")

    with pytest.raises(KeyboardInterrupt):
        told()


def test_nothing_begins_after_a_stop_and_everything_is_as_it_was_later():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)

    def stopping(index):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)

    def both():
        with pytest.raises(KeyboardInterrupt):
            drained(1, stopping, ClusterSettings(workers=1))

    both()
    with signals.stop_on_signals():
        assert not signals.is_requested()
        # a stop in the last task counts as well
        with pytest.raises(signals.Stopped), signals.computing():
            os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(signals.Stopped), signals.computing():
            pytest.fail("it began")
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert not signals.is_requested()
    assert signals.running_here() == 0
    both()


def test_other_threads_leave_signals_be():
    def other():
        with signals.stop_on_signals():
            seen.append(signal.getsignal(signal.SIGTERM))

    seen = []
    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]


def test_in_python_an_interrupt_is_an_error_that_says_what_is_kept(folder, monkeypatch):
    from pipeline.jobs import job

    original = job.EvaluatePartition.__call__

    def interrupted(self, index):
        if index == 3:
            raise KeyboardInterrupt
        return original(self, index)

    monkeypatch.setattr(job.EvaluatePartition, "__call__", interrupted)
    with pytest.raises(JobInterruptedError) as caught:
        pipeline.run_job(small_job(folder, "mine", {"kind": "threads", "workers": 1}))
    written = len(list((folder / "mine" / "predictions").glob("*.parquet")))
    assert f"{written} of its prediction tables are written" in str(caught.value)


def test_a_forked_process_runs_none_of_its_parents_tasks_and_is_not_told_to_stop():
    def child():
        assert signals.running_here() == 0
        with signals.task():
            assert signals.running_here() == 1

    with signals.task():
        with signals._lock:  # by another thread, as it may be
            in_fork(child)
        assert signals.running_here() == 1
