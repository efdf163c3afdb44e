"""What a cluster's settings put into dask's configuration, and what that configuration then says.

Slurm's and Kubernetes' clusters are made from dask's configuration alone, so that what a user or a
site wrote there counts; the settings of a job are defaults in it. Dask reads files
(`~/.config/dask/*.yaml`, `/etc/dask`) and environment variables (`DASK_*`), and a program may set
values in Python. All of these win: what is asked here takes the place of dask's own defaults only,
and goes when the job ends.

The scheduler and the workers of a job on Kubernetes are a resource of dask's operator. It is put
together here, not by dask-kubernetes: what that starts as a scheduler is a command that dask no
longer has. Each run gets a resource of its own name, for two of one name would share their workers.
"""

from __future__ import annotations

import copy
import getpass
import importlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import dask.config
from dask.utils import parse_bytes

from pipeline.config.cluster_settings import ClusterSettings, TlsSettings, walltime_seconds
from pipeline.config.yaml_files import load_mapping
from pipeline.core.errors import ConfigError

LOOPBACK = "127.0.0.1"

# How long before the end of a job of Slurm its worker ends by itself: a share, and at most so much.
_MARGIN_SHARE, _MARGIN_SECONDS = 0.1, 300
# Nodes come and go; a task is not to blame for each one it was running on.
_FAILURES = 10


_USUAL_NAME = "dask-{user}-{uuid}"  # dask-kubernetes' own
_SCHEDULER = ["dask", "scheduler", "--host", "0.0.0.0"]  # noqa: S104 within a pod
_IDLE_SECONDS = 3600  # it goes by itself where its job was killed
_CLUSTER_LABEL = "dask.org/cluster-name"

ALWAYS: dict[str, Any] = {
    "distributed": {
        # a job without workers fails, instead of waiting for ever
        "scheduler": {"no-workers-timeout": "10 minutes"},
        # the plan keeps a worker below its limit; one that is paused while it holds would not go on
        "worker": {"memory": {"pause": False, "terminate": 1.0}},
    }
}
"""What pixsim asks of dask for every cluster."""


@contextmanager
def dask_defaults(*asked: Mapping[str, Any]) -> Iterator[None]:
    """Put values into dask's configuration where the user did not, for as long as this is open.

    The first mapping that says something counts.
    """
    config = copy.deepcopy(dask.config.config)
    # what the user gave is no default, also where it says the same
    defaults = [*dask.config.defaults, _marked(dask.config.collect())]
    for values in reversed([*asked, ALWAYS]):
        dask.config.update_defaults(copy.deepcopy(dict(values)), config, defaults)
    with dask.config.set(config):
        yield


def _marked(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with marks in place of its values."""
    return {
        key: _marked(value) if isinstance(value, Mapping) else object()
        for key, value in given.items()
    }


def load(package: str, extra: str) -> Any:
    """Import what a kind of cluster needs; `ConfigError` where it is not installed."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ConfigError(
            f"this cluster needs {package}, which cannot be imported ({error}); "
            f"pip install 'pixsim[{extra}]'"
        ) from None


def configuration(settings: ClusterSettings) -> list[Mapping[str, Any]]:
    """Return defaults for dask's configuration: those that count first come first."""
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
    """Return the threads and the bytes of a worker process, from dask's configuration."""
    asked = dask.config.get("jobqueue.slurm")
    cores, memory, processes = (asked.get(key) for key in ("cores", "memory", "processes"))
    if not memory:
        raise ConfigError(
            "a cluster of kind slurm needs the memory of its workers; give memory: 4 GB, or "
            "jobqueue.slurm.memory in dask's configuration"
        )
    return max(1, int(cores) // int(processes or 1)), parse_bytes(memory) // int(processes or 1)


def kubernetes_offer(settings: ClusterSettings) -> tuple[int, int, int]:
    """Return the pods, the threads of each and its bytes, from dask's configuration."""
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


def cluster_spec(settings: ClusterSettings) -> dict[str, Any]:
    """Return the `DaskCluster` that dask's configuration describes, ready to be made.

    `kubernetes.custom-cluster-spec` is a whole one, or the path of its file; else it is made of
    `image`, `resources`, `env` and the others under `kubernetes`. It has as many workers as
    `kubernetes.count.start` says, where that is any. `ConfigError` where the resource given is
    none, or its workers have less than the settings say.
    """
    given = dask.config.get("kubernetes.custom-cluster-spec", None)
    if not given:
        return _made(_own_name(dask.config.get("kubernetes.name", _USUAL_NAME)))
    where = "kubernetes.custom-cluster-spec" if isinstance(given, Mapping) else str(given)
    content = given if isinstance(given, Mapping) else load_mapping(Path(where).expanduser())
    spec: dict[str, Any] = copy.deepcopy(dict(content))
    worker = _worker_container(spec, where)
    _refuse_less(worker.get("command", []) + worker.get("args", []), settings, where)
    if pods := dask.config.get("kubernetes.count.start", 0):
        spec["spec"]["worker"]["replicas"] = pods
    return _renamed(spec, _own_name(spec["metadata"]["name"] + "-{uuid}"))


def _own_name(pattern: str) -> str:
    """Fill in a name as dask-kubernetes does: the user, some letters, environment variables."""
    name = "pixsim-{uuid}" if pattern == _USUAL_NAME else pattern
    user = getpass.getuser() if "{user}" in name else ""  # a container may have none
    try:
        return name.format(**{**os.environ, "user": user, "uuid": uuid4().hex[:10]})
    except (KeyError, IndexError, ValueError):
        raise ConfigError(
            f"kubernetes.name is {pattern!r} in dask's configuration: expected a text with "
            "{user}, {uuid} and environment variables in braces"
        ) from None


def _made(name: str) -> dict[str, Any]:
    """Make the resource of what dask's configuration says."""
    asked: dict[str, Any] = dask.config.get("kubernetes")
    command = asked["worker-command"]
    operator = load("dask_kubernetes.operator.kubecluster.kubecluster", "kubernetes")
    spec: dict[str, Any] = operator.make_cluster_spec(
        name=name,
        image=asked["image"],
        n_workers=asked["count"]["start"],
        resources=copy.deepcopy(asked["resources"]),
        env=copy.deepcopy(asked["env"]),
        worker_command=command.split() if isinstance(command, str) else list(command),
        scheduler_service_type=asked["scheduler-service-type"],
        idle_timeout=asked["idle-timeout"] or _IDLE_SECONDS,
    )
    [container] = spec["spec"]["scheduler"]["spec"]["containers"]
    container["args"] = _SCHEDULER
    return spec


def _worker_container(spec: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """Return the container of a worker, whose resource has a name and a service as well."""
    try:
        if spec["kind"] == "DaskCluster" and spec["metadata"]["name"]:
            spec["spec"]["scheduler"]["service"]["selector"][_CLUSTER_LABEL]
            container: Mapping[str, Any] = spec["spec"]["worker"]["spec"]["containers"][0]
            return container
    except (KeyError, TypeError, IndexError):
        pass
    raise ConfigError(
        f"{where} is no whole DaskCluster with scheduler, service and worker; expected one such "
        "as workflows/kubernetes/cluster.yml"
    )


def _refuse_less(words: Sequence[object], settings: ClusterSettings, where: str) -> None:
    """Refuse workers with less memory, or other threads, than the plan takes them to have."""
    options = dict(zip(map(str, words), map(str, [*words[1:], ""]), strict=True))
    limit, threads = options.get("--memory-limit"), options.get("--nthreads")
    try:
        less = settings.memory and limit and parse_bytes(limit) < settings.memory
    except ValueError:
        less = False  # a share of what the pod has, or `auto`
    if less:
        raise ConfigError(
            f"{where} gives workers --memory-limit {limit}, the cluster's settings "
            f"{settings.memory:,} bytes of memory; give the same in both"
        )
    if threads and threads != str(settings.threads_per_worker):
        raise ConfigError(
            f"{where} gives workers --nthreads {threads}, the cluster's settings "
            f"{settings.threads_per_worker} threads_per_worker; give the same in both"
        )


def _renamed(spec: dict[str, Any], name: str) -> dict[str, Any]:
    spec["metadata"]["name"] = name
    spec["spec"]["scheduler"]["service"]["selector"][_CLUSTER_LABEL] = name
    return spec
