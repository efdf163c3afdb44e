"""The manifests for Kubernetes, and what dask's operator makes of them."""

from __future__ import annotations

import copy
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "workflows" / "kubernetes"


# the first that knows all of it, and the newest whose schemas are at hand
VERSIONS = ("1.31", kubernetes_validate.latest_version())
UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def documents(name: str) -> list[dict]:
    return [item for item in yaml.safe_load_all((FOLDER / name).read_text()) if item]


def named(name: str, kind: str) -> dict:
    [found] = [item for item in documents(name) if item["kind"] == kind]
    return found


PLAIN = {
    f"{name} {item['kind']}": item for name in ("access.yml", "job.yml") for item in documents(name)
}


JOB = named("job.yml", "Job")
CLUSTER = named("cluster.yml", "DaskCluster")
JOB_POD = JOB["spec"]["template"]["spec"]
WORKER_POD, SCHEDULER_POD = (CLUSTER["spec"][part]["spec"] for part in ("worker", "scheduler"))
PODS = {"job": JOB_POD, "worker": WORKER_POD, "scheduler": SCHEDULER_POD}


def only_container(pod: dict) -> dict:
    [container] = pod["containers"]
    return container


def quantity(text: str) -> float:
    number, unit = re.fullmatch(r"(\d+)([KMG]i)?", text).groups()
    return int(number) * UNITS.get(unit, 1)


@cache
def resource_definition() -> dict:
    """The definition of a DaskCluster that dask-kubernetes carries, unknown keys refused."""
    package = Path(find_spec("dask_kubernetes").origin).parent
    [path] = package.glob("operator/deployment/helm/*/crds/daskcluster.yaml")
    definition = yaml.safe_load(path.read_text())["spec"]
    [version] = definition["versions"]
    schema = closed(version["schema"]["openAPIV3Schema"])
    # what every resource has, which definitions leave out
    known = {"apiVersion": {"const": f"{definition['group']}/{version['name']}"}}
    known |= {"kind": {"const": definition["names"]["kind"]}, "metadata": {"type": "object"}}
    return schema | {"properties": schema["properties"] | known}


def closed(schema):
    """Refuse, at every depth, keys that a schema does not name: the API server drops them."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(value) for key, value in schema.items()}
    is_object = isinstance(schema.get("properties"), dict) and "type" in schema
    if is_object and not schema.get("x-kubernetes-preserve-unknown-fields"):
        found.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        found.pop("pattern", None)
    return found


def validate_cluster(cluster: dict) -> None:
    jsonschema.validate(cluster, resource_definition(), jsonschema.Draft202012Validator)


def made_by_operator(cluster: dict) -> list[dict]:
    """The resources that dask's operator makes of a cluster."""
    controller = pytest.importorskip("dask_kubernetes.operator.controller.controller")
    name, spec = cluster["metadata"]["name"], copy.deepcopy(cluster["spec"])
    labels = {
        part: spec[part].get("metadata", {}).get("labels", {})
        for part in spec
        if part != "idleTimeout"
    }
    return [
        controller.build_scheduler_deployment_spec(
            name, spec["scheduler"]["spec"], {}, labels["scheduler"]
        ),
        controller.build_scheduler_service_spec(
            name, spec["scheduler"]["service"], {}, labels["scheduler"]
        ),
        controller.build_worker_deployment_spec(
            f"{name}-default", "default", name, "0123456789", spec["worker"]["spec"], {},
            labels["worker"],
        ),
    ]  # fmt: skip
