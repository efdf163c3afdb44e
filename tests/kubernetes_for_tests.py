"""The manifests for Kubernetes, and a stand-in for it with the operator of dask.

Its pods are processes. It answers the requests of dask-kubernetes that make a cluster, wait for it
and delete it; it knows nothing of images, volumes or rights. Containers are run by their own
commands and environments, with addresses of the loopback in place of those of a pod.
"""

from __future__ import annotations

import copy
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import parse_qs, urlparse

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


HOST = "127.0.0.1"
GRACE_SECONDS = 2
GROUP = "kubernetes.dask.org/v1"
KINDS = {
    "daskclusters": ("DaskCluster", GROUP),
    "daskworkergroups": ("DaskWorkerGroup", GROUP),
    "pods": ("Pod", "v1"),
    "services": ("Service", "v1"),
}


class Kubernetes:
    """The resources of one namespace, and the processes behind them.

    Attributes
    ----------
    asked
        The clusters that were asked for.
    deleted
        The names of those that were deleted.
    config
        The path of a file for KUBECONFIG.
    """

    def __init__(self, folder: Path, validate) -> None:
        self.asked: list[dict] = []
        self.deleted: list[str] = []
        self.config = folder / "kubeconfig"
        self._folder, self._validate = folder, validate
        self._resources: dict[str, dict[str, dict]] = {plural: {} for plural in KINDS}
        self._processes: list[subprocess.Popen] = []
        self._lock = threading.Lock()

    def create(self, cluster: dict) -> dict:
        self._validate(cluster)
        self.asked.append(copy.deepcopy(cluster))
        name, spec = cluster["metadata"]["name"], cluster["spec"]
        port, dashboard = free_ports(2)
        at = f"{HOST}:{dashboard}"
        own = ["--host", HOST, "--port", str(port), "--dashboard-address", at]
        self._run(f"{name}-scheduler", spec["scheduler"], {}, own)
        for number in range(spec["worker"]["replicas"]):
            worker = f"{name}-default-worker-{number}"
            variables = {
                "DASK_WORKER_NAME": worker, "DASK_SCHEDULER_ADDRESS": f"tcp://{HOST}:{port}",
            }  # fmt: skip
            own = ["--host", HOST, "--dashboard-address", f"{HOST}:0"]
            self._run(worker, spec["worker"], variables, own)
        service = copy.deepcopy(spec["scheduler"]["service"]) | {"type": "LoadBalancer"}
        for entry in service["ports"]:
            entry["port"] = {"tcp-comm": port, "http-dashboard": dashboard}[entry["name"]]
        self._put("services", f"{name}-scheduler", service, {
            "loadBalancer": {"ingress": [{"ip": HOST}]},
        })  # fmt: skip
        self._put("daskworkergroups", f"{name}-default", spec["worker"], {})
        path = spec["scheduler"]["spec"]["containers"][0]["readinessProbe"]["httpGet"]["path"]
        threading.Thread(target=self._wait_for, args=(name, f"http://{at}{path}")).start()
        self._put("daskclusters", name, spec, {"phase": "Running"})
        return self._resources["daskclusters"][name]

    def _put(self, plural: str, name: str, spec: dict, status: dict, labels=None) -> None:
        kind, version = KINDS[plural]
        metadata = {"name": name, "namespace": "default", "labels": labels or {}}
        self._resources[plural][name] = {
            "apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec,
            "status": status,
        }  # fmt: skip

    def _run(self, name: str, part: dict, variables: dict[str, str], own: list[str]) -> None:
        """Start the container of a pod as kubelet would: variables stand in its words."""
        [container] = part["spec"]["containers"]
        variables = variables | {item["name"]: item["value"] for item in container.get("env", [])}
        words = [*container.get("command", []), *container["args"], *own]
        words = [re.sub(r"\$\((\w+)\)", lambda found: variables[found[1]], word) for word in words]
        with (self._folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                words,
                env=os.environ | variables,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        with self._lock:
            self._processes.append(process)

    def _wait_for(self, name: str, probe: str) -> None:
        """Let the scheduler's pod be ready as soon as its probe says so."""
        until = time.monotonic() + 60
        while time.monotonic() < until:
            with suppress(OSError), urllib.request.urlopen(probe, timeout=5) as answer:
                if answer.status == 200:
                    break
            time.sleep(0.05)
        conditions = [{"type": kind, "status": "True"} for kind in ("Ready", "ContainersReady")]
        labels = {"dask.org/cluster-name": name, "dask.org/component": "scheduler"}
        status = {"phase": "Running", "conditions": conditions}
        self._put("pods", f"{name}-scheduler", {}, status, labels)

    def delete(self, name: str) -> dict:
        self.deleted.append(name)
        for resources in self._resources.values():
            for other in [other for other in resources if other.startswith(name)]:
                del resources[other]
        self.stop()
        return {"kind": "Status", "status": "Success"}

    def stop(self) -> None:
        """End every process: with patience first, as kubelet does, then with their children."""
        with self._lock:
            for process in self._processes:
                process.terminate()
            until = time.monotonic() + GRACE_SECONDS
            for process in self._processes:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(max(0, until - time.monotonic()))
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            self._processes.clear()

    def running(self) -> int:
        return sum(process.poll() is None for process in self._processes)

    def answer(self, method: str, path: str, query: dict[str, str], content: bytes):
        """Return what the API answers, and the status."""
        found = re.fullmatch(
            r"/(?:api/v1|apis/kubernetes\.dask\.org/v1)/namespaces/default/(\w+)(?:/([\w.-]+))?",
            path,
        )
        if found is None:
            return _discovery(path)
        plural, name = found.groups()
        if method == "POST":
            return self.create(json.loads(content)), 201
        resources = self._resources.get(plural, {})
        if name is None:
            items = [item for item in list(resources.values()) if _selected(item, query)]
            return {"kind": "List", "items": items}, 200
        if name not in resources:
            return {"kind": "Status", "message": f"{plural} '{name}' not found"}, 404
        return (self.delete(name) if method == "DELETE" else resources[name]), 200


def _discovery(path: str):
    """Tell which kinds there are."""

    def kinds(version: str) -> list[dict]:
        return [
            {"name": plural, "singularName": kind.lower(), "kind": kind, "namespaced": True,
             "verbs": ["get"]}
            for plural, (kind, place) in KINDS.items()
            if place == version
        ]  # fmt: skip

    version = {"groupVersion": GROUP, "version": "v1"}
    group = {"name": "kubernetes.dask.org", "versions": [version], "preferredVersion": version}
    known = {
        "/version": {"major": "1", "minor": "34", "gitVersion": "v1.34.0"},
        "/api": {"versions": ["v1"]},
        "/api/v1": {"groupVersion": "v1", "resources": kinds("v1")},
        "/apis": {"groups": [group]},
        f"/apis/{GROUP}": {"groupVersion": GROUP, "resources": kinds(GROUP)},
    }
    path = path.rstrip("/")
    return (known[path], 200) if path in known else ({"message": f"no {path}"}, 404)


def _selected(item: dict, query: dict[str, str]) -> bool:
    metadata = item["metadata"]
    fields = {"metadata.name": metadata["name"], "status.phase": item["status"].get("phase")}
    found = {"labelSelector": metadata["labels"], "fieldSelector": fields}
    return all(_pairs(query.get(key, "")).items() <= have.items() for key, have in found.items())


def _pairs(selector: str) -> dict[str, str]:
    return dict(part.split("=") for part in selector.split(",") if part)


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        listeners = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in listeners:
            listener.bind((HOST, 0))
        return [listener.getsockname()[1] for listener in listeners]


@contextmanager
def kubernetes(folder: Path, validate):
    """Serve the API on a free port; stop it, and every process behind it, at the end.

    Parameters
    ----------
    folder
        For the logs of the pods, and the file that KUBECONFIG names.
    validate
        Called with each cluster that is asked for.
    """
    cluster = Kubernetes(folder, validate)

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            place = urlparse(self.path)
            query = {key: values[0] for key, values in parse_qs(place.query).items()}
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            try:
                found, status = cluster.answer(self.command, place.path, query, content)
            except Exception as error:
                found, status = {"message": f"{type(error).__name__}: {error}"}, 422
            body = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_DELETE = do_PATCH = _answer

        def log_message(self, *_arguments) -> None:
            pass

    server = ThreadingHTTPServer((HOST, 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    at = f"http://{HOST}:{server.server_port}"
    named = {"name": "tests"}
    config = {
        "apiVersion": "v1", "kind": "Config", "current-context": "tests",
        "clusters": [named | {"cluster": {"server": at}}],
        "users": [named | {"user": {"token": "of-tests"}}],
        "contexts": [
            named | {"context": {"cluster": "tests", "user": "tests", "namespace": "default"}}
        ],
    }  # fmt: skip
    cluster.config.write_text(yaml.safe_dump(config))
    try:
        yield cluster
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        cluster.stop()
