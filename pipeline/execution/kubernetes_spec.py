"""The scheduler and the workers of a job, as a resource of dask's operator for Kubernetes.

The resource is put together here, not by dask-kubernetes: what that starts as a scheduler is a
command that dask no longer has. Each run gets a resource of its own name, for two of one name
would share their workers.
"""

from __future__ import annotations

import copy
import getpass
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import dask.config
from dask.utils import parse_bytes

from pipeline.config.cluster_settings import ClusterSettings
from pipeline.config.yaml_files import load_mapping
from pipeline.core.errors import ConfigError
from pipeline.execution.dask_config import load

_USUAL_NAME = "dask-{user}-{uuid}"  # dask-kubernetes' own
_SCHEDULER = ["dask", "scheduler", "--host", "0.0.0.0"]  # noqa: S104 within a pod
_IDLE_SECONDS = 3600  # it goes by itself where its job was killed
_CLUSTER_LABEL = "dask.org/cluster-name"


def cluster_spec(settings: ClusterSettings) -> dict[str, Any]:
    """Return the `DaskCluster` that dask's configuration describes, ready to be made.

    `kubernetes.custom-cluster-spec` is a whole one, or the path of its file; else it is made of
    `image`, `resources`, `env` and the others under `kubernetes`. It has as many workers as
    `kubernetes.count.start` says, where that is any.

    Parameters
    ----------
    settings
        The cluster; it says what the plan expects of a worker.

    Raises
    ------
    ConfigError
        Where the resource given is none, or its workers have less than the settings say.
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
