"""What a cluster's settings put into dask's configuration, and what that configuration then says.

Slurm's and Kubernetes' clusters are made from dask's configuration alone, so that what a user or a
site wrote there counts; the settings of a job are defaults in it.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dask.config
from dask.utils import parse_bytes

from pipeline.config.cluster_settings import ClusterSettings, TlsSettings, walltime_seconds
from pipeline.core.errors import ConfigError
from pipeline.execution.dask_defaults import ALWAYS

LOOPBACK = "127.0.0.1"

# How long before the end of a job of Slurm its worker ends by itself: a share, and at most so much.
_MARGIN_SHARE, _MARGIN_SECONDS = 0.1, 300
# Nodes come and go; a task is not to blame for each one it was running on.
_FAILURES = 10


def load(package: str, extra: str) -> Any:
    """Import what a kind of cluster needs.

    Raises
    ------
    ConfigError
        Where it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ConfigError(
            f"this cluster needs {package}, which cannot be imported ({error}); "
            f"pip install 'pixsim[{extra}]'"
        ) from None


def configuration(settings: ClusterSettings) -> list[Mapping[str, Any]]:
    """Return defaults for dask's configuration: those that count first come first.

    Raises
    ------
    ConfigError
        Where a package or a file is missing.
    """
    asked: list[Mapping[str, Any]] = [settings.dask]
    if settings.tls is not None:
        asked.append(_tls(settings.tls))
    if settings.kind == "slurm":
        load("dask_jobqueue", "slurm")  # brings dask's own defaults
        asked += [{"jobqueue": {"slurm": settings.options}}, _slurm(settings), _REMOTE]
    if settings.kind == "kubernetes":
        load("dask_kubernetes.operator", "kubernetes")
        asked += [{"kubernetes": settings.options}, _kubernetes(settings), _REMOTE]
    return asked


_REMOTE: Mapping[str, Any] = {"distributed": {"scheduler": {"allowed-failures": _FAILURES}}}


def _tls(files: TlsSettings) -> Mapping[str, Any]:
    for path in (files.ca_file, files.cert, files.key):
        if not path.is_file():
            raise ConfigError(f"there is no file {path}, which the cluster's tls names")
    pair = {"cert": str(files.cert), "key": str(files.key)}
    roles = dict.fromkeys(("scheduler", "worker", "client"), pair)
    tls = {"ca-file": str(files.ca_file), **roles}
    return {"distributed": {"comm": {"require-encryption": True, "tls": tls}}}


def _slurm(settings: ClusterSettings) -> Mapping[str, Any]:
    asked: dict[str, Any] = {
        "cores": settings.threads_per_worker,
        "processes": 1,
        "memory": None if settings.memory is None else f"{settings.memory} B",
        "shared-temp-directory": str(Path.cwd()),
        "scheduler-options": {"dashboard_address": f"{LOOPBACK}:0"},
    }
    if settings.walltime is not None:
        asked["walltime"] = settings.walltime
    return {"jobqueue": {"slurm": asked}}


def _kubernetes(settings: ClusterSettings) -> Mapping[str, Any]:
    command = ["dask", "worker", "--nthreads", str(settings.threads_per_worker)]
    asked: dict[str, Any] = {
        "count": {"start": settings.workers or 0},
        # the scheduler is a pod: it reads its configuration from there
        "env": {
            "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": str(_FAILURES),
            "DASK_DISTRIBUTED__SCHEDULER__NO_WORKERS_TIMEOUT": ALWAYS["distributed"]["scheduler"][
                "no-workers-timeout"
            ],
            **worker_environment(ALWAYS),
        },
    }
    if settings.memory is not None:
        command += ["--memory-limit", str(settings.memory)]
        amount = {"memory": str(settings.memory), "cpu": str(settings.threads_per_worker)}
        asked["resources"] = {"limits": amount, "requests": amount}
    return {"kubernetes": asked | {"worker-command": command}}


def slurm_offer() -> tuple[int, int]:
    """Return the threads and the bytes of a worker process, from dask's configuration.

    Raises
    ------
    ConfigError
        Where nobody says how much memory a worker has.
    """
    asked = dask.config.get("jobqueue.slurm")
    cores, memory, processes = (asked.get(key) for key in ("cores", "memory", "processes"))
    if not memory:
        raise ConfigError(
            "a cluster of kind slurm needs the memory of its workers; give memory: 4 GB, or "
            "jobqueue.slurm.memory in dask's configuration"
        )
    return max(1, int(cores) // int(processes or 1)), parse_bytes(memory) // int(processes or 1)


def kubernetes_offer(settings: ClusterSettings) -> tuple[int, int, int]:
    """Return the pods, the threads of each and its bytes, from dask's configuration.

    Raises
    ------
    ConfigError
        Where nobody says how many there are, or how much memory a pod has.
    """
    limits = (dask.config.get("kubernetes.resources") or {}).get("limits", {})
    memory = settings.memory or parse_bytes(limits.get("memory", 0))
    pods = settings.workers or dask.config.get("kubernetes.count.start")
    if not pods or not memory:
        missing = "memory: 4 GB" if pods else "workers: 2"
        raise ConfigError(
            f"a cluster of kind kubernetes needs its pods and the memory of each; give {missing}"
        )
    return int(pods), settings.threads_per_worker, memory


_WORKER_KEYS = ("distributed.worker.memory.pause", "distributed.worker.memory.terminate")


def worker_environment(config: Mapping[str, Any]) -> dict[str, str]:
    """Return what a worker elsewhere takes over from a configuration, as environment variables."""
    return {
        f"DASK_{key.upper().replace('.', '__')}": str(dask.config.get(key, config=dict(config)))
        for key in _WORKER_KEYS
    }


def worker_prologue() -> list[str]:
    """Return the lines of a job of Slurm before its worker; what is set there already stays."""
    lines = list(dask.config.get("jobqueue.slurm.job-script-prologue") or [])
    for name, value in worker_environment(dask.config.config).items():
        lines.append(f"export {name}=${{{name}:-{value}}}")
    return lines


def worker_arguments() -> list[str]:
    """Return what a worker of Slurm is started with: it ends before its job does."""
    arguments = [str(word) for word in dask.config.get("jobqueue.slurm.worker-extra-args") or []]
    if any(word.startswith("--lifetime") for word in arguments):
        return arguments
    lifetime = dask.config.get("distributed.worker.lifetime.duration")
    stagger = dask.config.get("distributed.worker.lifetime.stagger")
    if not lifetime:
        walltime = dask.config.get("jobqueue.slurm.walltime")
        if not walltime:
            return arguments
        seconds = _as_seconds(walltime)
        margin = min(_MARGIN_SECONDS, _MARGIN_SHARE * seconds)
        # from one margin before the end to three, not all at once
        lifetime, stagger = f"{seconds - 2 * margin:.0f}s", f"{margin:.0f}s"
    return [*arguments, "--lifetime", f"'{lifetime}'", "--lifetime-stagger", f"'{stagger}'"]


def _as_seconds(walltime: object) -> int:
    try:
        return walltime_seconds(str(walltime))
    except ValueError as error:
        raise ConfigError(
            f"jobqueue.slurm.walltime is {walltime!r} in dask's configuration: {error}"
        ) from None
