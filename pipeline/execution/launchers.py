"""How each kind of cluster is opened.

What stays on this machine talks on the loopback. Slurm's workers and their scheduler talk TLS, with
the certificates given or with one that is made for the run; the dashboard is on the loopback of
the machine that runs the job. Dask's operator for Kubernetes speaks plain TCP between pods. A
scheduler that runs already speaks as its address says.
"""

from __future__ import annotations

import gc
import importlib
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import dask.config

from pipeline.config.cluster_settings import ClusterSettings
from pipeline.core.errors import ClusterError, ConfigError
from pipeline.execution.dask_config import (
    LOOPBACK,
    cluster_spec,
    load,
    worker_arguments,
    worker_prologue,
)

CONNECT_SECONDS = 30
_KEEP_SECONDS = 30.0
_LONGEST = 300  # characters of what another program says
_SLURM_PROGRAMS = ("sbatch", "scancel")
_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")  # within a pod


def visible_gpus() -> list[str]:
    """Return what names the GPUs of this machine, without starting CUDA; there must be one."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        names = [name.strip() for name in chosen.split(",") if name.strip() not in ("", "-1")]
        where = f"CUDA_VISIBLE_DEVICES is {chosen!r}"
    else:
        names = [str(number) for number in range(_count_gpus())]
        where = "nvidia-smi lists none"
    if not names:
        raise ConfigError(
            f"a cluster of kind gpus needs a GPU of NVIDIA, and {where}; use --cluster local"
        )
    return names


def _count_gpus() -> int:
    listed = _run("nvidia-smi", "-L")
    lines = listed.stdout.splitlines() if listed and not listed.returncode else []
    return sum(line.startswith("GPU ") for line in lines)


def _run(*words: str) -> subprocess.CompletedProcess[str] | None:
    """Run a program that answers soon; None where it does not, or cannot be run."""
    try:
        return subprocess.run(  # noqa: S603
            words, capture_output=True, text=True, timeout=CONNECT_SECONDS
        )
    except (OSError, subprocess.SubprocessError):
        return None


def _refuse_unguarded() -> None:
    """Raise `ConfigError` where a new process would run the whole script that this one runs.

    Each begins with importing the script: where that starts processes itself, none ever starts.
    """
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    if file is None or Path(file).name == "__main__.py":  # which is not imported again
        return
    try:
        text = Path(file).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    if file.endswith(".py") and "__name__" not in text:
        raise ConfigError(
            f"{file}: worker processes import this script when they start, and would run it from "
            "the first line on; put what it does below 'if __name__ == \"__main__\":', or use "
            "cluster: threads"
        )


@contextmanager
def open_processes(
    settings: ClusterSettings, count: int, memory: int, pinned: Sequence[str] = ()
) -> Iterator[Any]:
    """Start worker processes on this machine; `pinned` holds the GPU of each."""
    _refuse_unguarded()
    distributed = importlib.import_module("distributed")
    # workers leave signals to this process
    preload = [*dask.config.get("distributed.worker.preload"), "pipeline.execution.signals"]
    options = {
        "nthreads": settings.threads_per_worker, "memory_limit": memory, "preload": preload,
        "host": LOOPBACK, "silence_logs": logging.ERROR, "dashboard": False,
    }  # fmt: skip
    workers: dict[int, Any] = {}
    for number in range(count):
        own = {"env": {"CUDA_VISIBLE_DEVICES": pinned[number]}} if pinned else {}
        workers[number] = {"cls": distributed.Nanny, "options": options | own}
    asked = settings.options.get("dashboard_address")
    address = asked or (f"{LOOPBACK}:0" if find_spec("bokeh") else None)
    scheduler = {
        "host": LOOPBACK, "port": 0, "dashboard": address is not None,
        "dashboard_address": address,
    }  # fmt: skip
    with (
        distributed.SpecCluster(
            workers=workers,
            scheduler={"cls": distributed.Scheduler, "options": scheduler},
            silence_logs=logging.ERROR,
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        yield client


@contextmanager
def open_scheduler(settings: ClusterSettings) -> Iterator[Any]:
    """Connect to a scheduler that runs already."""
    distributed = importlib.import_module("distributed")
    address, where = find_scheduler(settings)
    named = (
        {"address": address}
        if settings.scheduler_file is None
        else {"scheduler_file": str(settings.scheduler_file)}
    )
    try:
        client = distributed.Client(**named, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
    else:
        with client:
            yield client
        return
    # a client that did not connect closes itself when it is collected: here, and not at a moment
    # at which this thread holds a lock of dask's that closing needs
    gc.collect()
    encrypted = str(address).startswith("tls://") or settings.tls is not None
    hint = "; is it one with TLS, and are the certificates those that it trusts?"
    raise ConfigError(
        f"no dask scheduler answers at {where} ({reason}){hint if encrypted else ''}; start "
        "one with 'dask scheduler', or use --cluster threads"
    )


def find_scheduler(settings: ClusterSettings) -> tuple[str | None, str | Path]:
    """Return the address of a scheduler that runs already, and what names it: that, or a file."""
    address = settings.address or dask.config.get("scheduler-address", None)
    if settings.scheduler_file is None and not address:
        raise ConfigError(
            "a cluster of kind scheduler needs an address, a scheduler_file, or "
            "DASK_SCHEDULER_ADDRESS in the environment"
        )
    if settings.scheduler_file is None:
        return address, str(address)
    if not settings.scheduler_file.is_file():
        raise ConfigError(
            f"there is no file {settings.scheduler_file}; start a scheduler that writes it, with "
            f"'dask scheduler --scheduler-file {settings.scheduler_file}'"
        )
    return address, settings.scheduler_file


def require_slurm() -> None:
    """Raise `ConfigError` where Slurm cannot be asked for jobs from here."""
    load("dask_jobqueue", "slurm")
    elsewhere = "run this where Slurm's commands work, such as on a login node, or use another"
    for program in _SLURM_PROGRAMS:
        if shutil.which(program) is None:
            raise ConfigError(
                f"a cluster of kind slurm needs {program}, which is in no folder of PATH; "
                f"{elsewhere} --cluster"
            )
    done = _run("scontrol", "ping")
    if done and done.returncode:  # else it may answer later
        answer = " ".join((done.stderr or done.stdout).split())[-300:]
        raise ConfigError(
            f"Slurm does not answer ('scontrol ping': {answer}); {elsewhere} --cluster"
        )


def require_kubernetes() -> None:
    """Raise `ConfigError` where nothing says which Kubernetes is meant, and how to log in."""
    load("dask_kubernetes.operator", "kubernetes")
    named = os.environ.get("KUBECONFIG", "~/.kube/config")
    files = [Path(name).expanduser() for name in named.split(os.pathsep) if name]
    if not any(file.is_file() for file in files) and not _SERVICE_ACCOUNT.is_dir():
        raise ConfigError(
            f"a cluster of kind kubernetes needs a file of kubectl's, expected {named}; set "
            "KUBECONFIG to one with which 'kubectl get pods' works, or use another --cluster"
        )


@contextmanager
def open_slurm(settings: ClusterSettings) -> Iterator[Any]:
    """Ask Slurm for jobs, each with worker processes, and ask again where one has ended."""
    distributed = importlib.import_module("distributed")
    jobqueue = load("dask_jobqueue", "slurm")
    workers = {"worker-extra-args": worker_arguments(), "job-script-prologue": worker_prologue()}
    with dask.config.set({f"jobqueue.slurm.{key}": value for key, value in workers.items()}):
        refusals: list[str] = []
        jobs = _recording_jobs(jobqueue.SLURMCluster.job_cls, refusals)
        try:
            cluster = jobqueue.SLURMCluster(security=_security(settings, distributed), job_cls=jobs)
        except (OSError, RuntimeError, ValueError, TypeError) as error:
            raise ClusterError(
                f"the scheduler of Slurm's workers cannot be started ({_short(error)})"
            ) from None
        with cluster, distributed.Client(cluster, set_as_default=False) as client:
            _scale(cluster, settings.workers or 1)
            cluster.sync(_asked, cluster)
            if refusals and not any(job.job_id for job in cluster.workers.values()):
                raise ClusterError(
                    f"Slurm takes no job ({refusals[-1]}); correct the cluster's options, and try "
                    "them with sbatch"
                )
            yield client


def _recording_jobs(jobs: Any, refusals: list[str]) -> Any:
    """Return a class of jobs of which one that Slurm does not take is added to `refusals`.

    dask would log a traceback, wait for its worker to the end, and then fail to close.
    """

    class Job(jobs):  # type: ignore[misc]
        async def start(self) -> None:
            try:
                await super().start()
            except (OSError, RuntimeError, ValueError) as error:
                _, marked, answer = str(error).partition("stderr:")
                refusals.append(" ".join(answer.split())[:_LONGEST] if marked else _short(error))
                self.status = importlib.import_module("distributed").Status.running

    return Job


async def _asked(cluster: Any) -> None:
    """Wait until all jobs that are wanted have been asked for."""
    await cluster


def _security(settings: ClusterSettings, distributed: Any) -> Any:
    """Return the certificates: those of dask's configuration, else some made for this run."""
    if settings.tls is not None or dask.config.get("distributed.comm.tls.ca-file"):
        return distributed.Security(require_encryption=True)
    load("cryptography", "slurm")
    return distributed.Security.temporary()


def _scale(cluster: Any, workers: int) -> None:
    """Keep as many workers as wanted: scaling again replaces those whose jobs ended."""

    def again() -> None:
        if cluster.status.name == "running":
            for name in [name for name, job in cluster.workers.items() if not job.job_id]:
                del cluster.workers[name]  # was not taken: it is asked for again
            cluster.scale(n=workers)
            cluster.loop.call_later(_KEEP_SECONDS, again)

    cluster.loop.add_callback(again)


@contextmanager
def open_kubernetes(settings: ClusterSettings) -> Iterator[Any]:
    """Have dask's operator make a scheduler and workers, as dask's configuration describes."""
    distributed = importlib.import_module("distributed")
    operator = load("dask_kubernetes.operator", "kubernetes")
    spec = cluster_spec(settings)
    try:
        cluster = operator.KubeCluster(custom_cluster_spec=spec, quiet=True)
    except Exception as error:
        # of httpx, kr8s, asyncio or Python, as the step was: none of them is a fault of the job
        raise ClusterError(
            f"Kubernetes made no dask cluster ({_short(error)}); is there a cluster that "
            "'kubectl get pods' reaches, with dask's operator in it?"
        ) from None
    with cluster, distributed.Client(cluster, set_as_default=False) as client:
        yield client


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:_LONGEST]}" if text else type(error).__name__


def dashboard_link(client: Any, settings: ClusterSettings) -> str | None:
    """Return the address of the dashboard where there is one, as this machine reaches it."""
    services = client.scheduler_info(n_workers=0).get("services", {})
    if "dashboard" not in services:
        return None
    if settings.kind not in ("local", "gpus", "slurm"):
        return str(client.dashboard_link)
    if find_spec("bokeh") is None:
        return None  # the pages would be empty
    options = dask.config.get("jobqueue.slurm.scheduler-options", {})
    asked = (options if settings.kind == "slurm" else settings.options).get("dashboard_address")
    if asked is None or str(asked).startswith(LOOPBACK):
        utils = importlib.import_module("distributed.utils")
        return str(utils.format_dashboard_link(LOOPBACK, services["dashboard"]))
    return str(client.dashboard_link)
