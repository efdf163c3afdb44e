"""The cluster that a job asks dask's operator for, made of dask's configuration."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
from pathlib import Path

import dask
import kubernetes_validate
import pytest
from distributed.cli import dask_scheduler, dask_worker
from kubernetes_for_tests import (
    CLUSTER,
    FOLDER,
    JOB,
    ROOT,
    SCHEDULER_POD,
    VERSIONS,
    WORKER_POD,
    kubernetes,
    made_by_operator,
    only_container,
    validate_cluster,
)

import pipeline
from pipeline.config.cluster_settings import make_cluster
from pipeline.core import errors
from pipeline.execution import dask_config, workers
from pipeline.execution.dask_config import cluster_spec, dask_defaults


def described(**changes) -> dict:
    """The resource that `--cluster kubernetes` makes, where dask's configuration has `changes`."""
    settings = make_cluster("kubernetes")
    with (
        dask_defaults(*dask_config.configuration(settings)),
        dask.config.set({f"kubernetes.{key}": value for key, value in changes.items()}),
    ):
        return cluster_spec(settings)


def test_a_cluster_without_a_file_of_its_own_is_valid_too():
    found = described(image="registry/pixsim:2", env={"A": "b"})
    validate_cluster(found)
    for made in made_by_operator(found):
        kubernetes_validate.validate(made, VERSIONS[-1], strict=True)
    scheduler, worker = (
        only_container(found["spec"][part]["spec"]) for part in ("scheduler", "worker")
    )
    assert found["spec"]["worker"]["replicas"] == make_cluster("kubernetes").workers
    for container in (scheduler, worker):
        assert container["image"] == "registry/pixsim:2"
        assert container["env"] == [{"name": "A", "value": "b"}]
    assert scheduler["args"][:2] == ["dask", "scheduler"]
    dask_scheduler.main.make_context("scheduler", scheduler["args"][2:])
    assert worker["args"][:2] == ["dask", "worker"]
    dask_worker.main.make_context("worker", worker["args"][2:])


@pytest.mark.parametrize("given", [str(FOLDER / "cluster.yml"), CLUSTER], ids=["file", "mapping"])
def test_a_cluster_of_a_file_is_made_as_it_stands_but_for_its_name_and_size(given):
    found = described(**{"custom-cluster-spec": given, "count.start": 7})
    validate_cluster(found)
    name = found["metadata"]["name"]
    assert re.fullmatch(r"pixsim-\w{10}", name)
    assert found["spec"]["scheduler"]["service"]["selector"]["dask.org/cluster-name"] == name
    assert found["spec"]["worker"]["replicas"] == 7
    found["metadata"]["name"] = CLUSTER["metadata"]["name"]
    found["spec"]["scheduler"]["service"]["selector"]["dask.org/cluster-name"] = "pixsim"
    found["spec"]["worker"]["replicas"] = CLUSTER["spec"]["worker"]["replicas"]
    assert found == CLUSTER


def test_two_runs_have_a_cluster_each():
    for changes in ({}, {"custom-cluster-spec": CLUSTER}, {"name": "dask-{user}-{uuid}"}):
        assert described(**changes)["metadata"]["name"] != described(**changes)["metadata"]["name"]
    assert described(name="mine")["metadata"]["name"] == "mine"


def test_pods_of_a_file_are_configured_as_those_without_one():
    with dask_defaults(*dask_config.configuration(make_cluster("kubernetes"))):
        expected = dask.config.get("kubernetes.env")
    assert expected
    for pod in (WORKER_POD, SCHEDULER_POD):
        found = {item["name"]: item["value"] for item in only_container(pod)["env"]}
        assert expected.items() <= found.items()


def worker_with(option: str, value: str) -> dict:
    changed = copy.deepcopy(CLUSTER)
    words = only_container(changed["spec"]["worker"]["spec"])["args"]
    words[words.index(option) + 1] = value
    return changed


@pytest.mark.parametrize(("changes", "words"), [
    ({"custom-cluster-spec": worker_with("--memory-limit", "3GB")}, ["3GB", "4,000,000,000"]),
    ({"custom-cluster-spec": worker_with("--nthreads", "2")}, ["--nthreads 2", "settings 1"]),
    ({"custom-cluster-spec": JOB}, ["no whole DaskCluster", "workflows/kubernetes/cluster.yml"]),
    ({"custom-cluster-spec": "missing.yml"}, ["missing.yml", "no such file"]),
    ({"name": "pixsim-{who}"}, ["kubernetes.name", "{who}"]),
])  # fmt: skip
def test_a_cluster_that_is_not_what_the_plan_counts_on_is_refused(changes, words):
    with pytest.raises(errors.ConfigError) as refused:
        described(**changes)
    for word in words:
        assert word in str(refused.value)


def test_the_cluster_is_what_the_operator_is_asked_for(monkeypatch):
    operator = pytest.importorskip("dask_kubernetes.operator")
    asked = []

    def fails(**keywords):
        asked.append(keywords)
        raise ConnectionRefusedError("no API server")

    monkeypatch.setattr(operator, "KubeCluster", fails)
    with (
        pytest.raises(errors.ClusterError, match="no API server"),
        workers.open_client(make_cluster("kubernetes")),
    ):
        pass
    [keywords] = asked
    validate_cluster(keywords["custom_cluster_spec"])


def digest_of(run: Path) -> str:
    return pipeline.describe(run)["digests"]["run"]


@pytest.mark.slow
def test_a_job_on_pods_ends_with_the_digest_that_it_has_on_threads(tmp_path):
    job = ROOT / "workflows" / "digits.yml"
    words = [job, "--cluster", "kubernetes", "--output", tmp_path / "run"]
    changes = ["cluster.workers=1", f"images.store={tmp_path / 'digits.zarr'}", "images.shard=500"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # as in the image
    variables = {"DASK_KUBERNETES__CUSTOM_CLUSTER_SPEC": str(FOLDER / "cluster.yml")}
    with pytest.MonkeyPatch.context() as patch, kubernetes(tmp_path, validate_cluster) as stand_in:
        patch.setenv("PATH", path)
        done = subprocess.run(
            ["pixsim", "run", *map(str, words), "--set", *changes],
            cwd=ROOT,
            env=os.environ | variables | {"KUBECONFIG": str(stand_in.config)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        logs = "".join(path.read_text() for path in tmp_path.glob("*.log"))
        assert done.returncode == 0, done.stderr + logs
        [asked] = stand_in.asked
        assert stand_in.deleted == [asked["metadata"]["name"]]
        assert stand_in.running() == 0
    assert "Registered to: " in logs
    own = pipeline.run_job(pipeline.load_job(job, changes[1:2], tmp_path / "own"))
    assert digest_of(tmp_path / "run") == digest_of(own.path)
