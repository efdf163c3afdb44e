"""What tasks run on: schedulers with and without TLS, clients that are there, limits of memory."""

from __future__ import annotations

from types import SimpleNamespace

import dask
import distributed
import numpy as np
import pytest
from clusters_for_tests import (
    dask_worker,
    make_certificates,
    run_digest,
    scheduler,
    security,
    small_job,
    small_store,
)
from jobs_for_tests import Heard

import pipeline
from pipeline.config.cluster_settings import ClusterSettings
from pipeline.core.errors import ClusterError, ConfigError, MemoryLimitError
from pipeline.execution import workers
from pipeline.execution.executor import open_executor
from pipeline.execution.memory import machine_memory
from pipeline.execution.workers import Workers, find_workers, local_workers


@pytest.fixture
def job(tmp_path, monkeypatch):
    """The folder of a small image set, and the digest of its job on threads."""
    monkeypatch.chdir(tmp_path)
    small_store(tmp_path)
    return run_digest(small_job(tmp_path, "threads", {"kind": "threads", "workers": 1}))


# what a cluster offers -------------------------------------------------------------------------


def test_this_machine_is_shared_among_worker_processes(monkeypatch):
    monkeypatch.setattr(workers, "CPU_COUNT", 8)
    monkeypatch.setattr(workers, "machine_memory", lambda: 64 * 10**9)
    assert local_workers(ClusterSettings(kind="local", threads_per_worker=2)) == Workers(
        processes=4, tasks=2, cores=8, memory=16 * 10**9
    )
    assert find_workers() == Workers(processes=0, tasks=8, cores=8, memory=64 * 10**9)
    assert find_workers(ClusterSettings(memory="3 GB")).memory == 3 * 10**9


@pytest.mark.parametrize("kind", ["slurm", "kubernetes"])
def test_a_cluster_that_is_not_there_yet_is_planned_from_its_settings(kind):
    settings = ClusterSettings(kind=kind, workers=16, threads_per_worker=4, memory="8 GB")
    assert find_workers(settings) == Workers(16, 4, 64, 8 * 10**9, apart=True)
    with pytest.raises(ConfigError, match="memory: 4 GB"):
        find_workers(ClusterSettings(kind=kind, workers=16))


def test_several_worker_processes_of_one_slurm_job_share_it():
    settings = ClusterSettings(
        kind="slurm", workers=8, options={"cores": 16, "processes": 4, "memory": "64 GB"}
    )
    assert find_workers(settings) == Workers(8, 4, 32, 16 * 10**9, apart=True)


def test_a_scheduler_is_asked_for_its_workers():
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=3, processes=False, dashboard_address=None,
        memory_limit="2 GB",
    ) as made:  # fmt: skip
        found = find_workers(ClusterSettings(kind="scheduler", address=made.scheduler_address))
        asked = ClusterSettings(kind="scheduler", address=made.scheduler_address, memory="1 GB")
        assert find_workers(asked).memory == 10**9
        with open_executor(asked) as executor:
            # a task has the cores of its own machine, whatever others do
            assert executor.threads_for(1) == 3
            assert executor.threads_for(2) == 3
            assert executor.threads_for(100) == 1
    assert found == Workers(processes=2, tasks=3, cores=6, memory=2 * 10**9, apart=True)


@pytest.mark.parametrize(("pause", "terminate", "limit", "expected"), [
    (0.8, 0.95, 10**9, 8 * 10**8), (False, 0.5, 10**9, 5 * 10**8), (False, False, 10**9, 10**9),
    (0.8, 0.95, None, 0),
])  # fmt: skip
def test_of_its_limit_a_worker_may_use_what_dask_lets_it(pause, terminate, limit, expected):
    worker = SimpleNamespace(memory_manager=SimpleNamespace(memory_limit=limit))
    shares = {"pause": pause, "terminate": terminate}
    with dask.config.set({"distributed.worker.memory": shares}):
        assert workers.usable_memory(worker) == (expected, machine_memory())


def test_workers_without_a_limit_share_their_machine(monkeypatch):
    monkeypatch.setattr(workers, "machine_memory", lambda: 64 * 10**9)
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None, memory_limit=0
    ) as made:
        found = find_workers(ClusterSettings(kind="scheduler", address=made.scheduler_address))
    assert found.memory == 32 * 10**9


def test_workers_that_cannot_run_pixsim_are_named(monkeypatch):
    def broken(dask_worker):
        raise ModuleNotFoundError("No module named 'pipeline'")

    monkeypatch.setattr(workers, "usable_memory", broken)
    with (
        distributed.LocalCluster(n_workers=1, processes=False, dashboard_address=None) as made,
        pytest.raises(ClusterError, match=r"cannot run pixsim \(ModuleNotFoundError: .*install"),
    ):
        find_workers(ClusterSettings(kind="scheduler", address=made.scheduler_address))


# schedulers that cannot be had -------------------------------------------------------------------


def test_a_scheduler_that_is_not_there_is_one_line(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(workers.kinds, "CONNECT_SECONDS", 0.5)
    with pytest.raises(
        ConfigError, match=r"no dask scheduler answers at tcp://127.0.0.1:1 .*start"
    ):
        find_workers(ClusterSettings(kind="scheduler", address="tcp://127.0.0.1:1"))
    with pytest.raises(ConfigError, match=r"there is no file gone\.json; start a scheduler"):
        find_workers(ClusterSettings(kind="scheduler", scheduler_file="gone.json"))
    with pytest.raises(ConfigError, match="DASK_SCHEDULER_ADDRESS"):
        find_workers(ClusterSettings(kind="scheduler"))


def test_a_scheduler_without_workers_is_refused_or_waited_for():
    with scheduler() as address:
        with pytest.raises(ConfigError, match=r"has no workers; start some with 'dask worker tcp"):
            find_workers(ClusterSettings(kind="scheduler", address=address))
        heard = Heard()
        settings = ClusterSettings(
            kind="scheduler", address=address, workers=2,
            dask={"distributed": {"scheduler": {"no-workers-timeout": "300ms"}}},
        )  # fmt: skip
        with (
            pytest.raises(ClusterError, match=r"2 workers did not come within .*waits? longer|let"),
            open_executor(settings, heard),
        ):
            pass
    assert heard.lines[0].startswith("waiting for 2 workers, at most 0.005 minutes")


def test_the_address_of_a_scheduler_may_come_from_dask(job, tmp_path):
    with (
        distributed.LocalCluster(n_workers=1, processes=False, dashboard_address=None) as made,
        dask.config.set({"scheduler-address": made.scheduler_address}),
    ):
        assert run_digest(small_job(tmp_path, "there", {"kind": "scheduler"})) == job


# a client that is there --------------------------------------------------------------------------


def test_a_client_that_is_open_is_used_and_left_open(job, tmp_path):
    heard = Heard()
    with (
        distributed.LocalCluster(n_workers=2, processes=False, dashboard_address=None) as made,
        distributed.Client(made) as client,
    ):
        assert run_digest(small_job(tmp_path, "mine"), heard) == job
        manifest = pipeline.open_run(tmp_path / "mine").manifest
        assert manifest["executor"] == f"2 dask workers on {made.scheduler_address}"
        # what the job says wins
        run_digest(small_job(tmp_path, "own", {"kind": "threads", "workers": 1}))
        assert pipeline.open_run(tmp_path / "own").manifest["executor"] == "1 thread"
        assert client.submit(sum, [1, 2]).result() == 3
    with open_executor() as executor:  # it is closed now
        assert "thread" in executor.description


# TLS ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_over_tls_the_job_has_the_same_digest_and_strangers_are_turned_away(
    job, tmp_path, monkeypatch
):
    make_certificates(tmp_path)
    files = {"ca_file": "ca.pem", "cert": "dask.pem", "key": "dask-key.pem"}
    with scheduler(security(tmp_path), n_workers=2, threads_per_worker=1) as address:
        assert address.startswith("tls://")
        cluster = {"kind": "scheduler", "address": address, "tls": files}
        assert run_digest(small_job(tmp_path, "encrypted", cluster)) == job

        monkeypatch.setattr(workers.kinds, "CONNECT_SECONDS", 2)
        strange = {"ca_file": "ca.pem", "cert": "stranger.pem", "key": "stranger-key.pem"}
        plain = address.replace("tls://", "tcp://")
        for refused in (
            {"kind": "scheduler", "address": address, "tls": strange},
            {"kind": "scheduler", "address": address},
            {"kind": "scheduler", "address": plain},
        ):
            with pytest.raises(ConfigError, match="no dask scheduler answers at") as caught:
                run_digest(small_job(tmp_path, "strange", refused))
            assert "\n" not in str(caught.value)
            assert ("certificates" in str(caught.value)) == (refused["address"] == address)
        assert not (tmp_path / "strange").exists()
    # what was put into dask's configuration is gone
    assert dask.config.get("distributed.comm.tls.ca-file") is None


def test_a_certificate_that_is_not_there_is_said(tmp_path):
    files = {"ca_file": tmp_path / "no.pem", "cert": tmp_path / "c.pem", "key": tmp_path / "k.pem"}
    with pytest.raises(ConfigError, match=r"there is no file .*no\.pem, which the cluster's tls"):
        find_workers(ClusterSettings(kind="scheduler", address="tls://127.0.0.1:1", tls=files))


# limits of memory --------------------------------------------------------------------------------


@pytest.mark.slow
def test_under_half_the_memory_it_planned_a_job_adapts_or_is_refused(tmp_path, monkeypatch):
    """The limit is a real one, of a real worker process; nothing is killed."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    classes, side = 300, 32
    labels = rng.permutation(classes * 2) % classes
    arrays = {"train": (rng.integers(0, 255, (2 * classes, side, side), "u1"), labels.astype("i4"))}
    pipeline.ingest(
        pipeline.from_arrays(arrays, [str(number) for number in range(classes)]),
        tmp_path / "images.zarr",
        shard_samples=150,
    )

    def settings(name, cluster):
        more = {"prototypes": "median", "evaluate": "train", "distances": "skip"}
        return small_job(tmp_path, name, cluster, **more)

    free = settings("free", {"kind": "local", "workers": 1, "memory": "64 GB"})
    planned = pipeline.forecast(free)["memory"]["worker"]
    expected = run_digest(settings("threads", {"kind": "threads", "workers": 1}))
    beside = 2_500_000_000  # address space that nothing is ever kept in, see `memory`
    with scheduler() as address:
        cluster = {"kind": "scheduler", "address": address, "workers": 1}
        with dask_worker(address, "--nthreads", "1", address_space=beside + planned // 2):
            heard = Heard()
            assert run_digest(settings("half", cluster), heard) == expected
            assert any("tiles of pixels" in line for line in heard.lines)
    with scheduler() as address:
        cluster = {"kind": "scheduler", "address": address, "workers": 1}
        with (
            dask_worker(address, "--nthreads", "1", address_space=beside + planned // 8),
            pytest.raises(MemoryLimitError, match="the job needs"),
        ):
            run_digest(settings("eighth", cluster))
