"""The manifests for Kubernetes: what the API and dask's operator accept, and what is run there."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import dask
import jsonschema
import kubernetes_validate
import pytest
import yaml
from distributed.cli import dask_scheduler, dask_worker
from kubernetes_for_tests import kubernetes

import pipeline
from pipeline import cli
from pipeline.config.cluster_settings import ClusterSettings, make_cluster
from pipeline.config.settings import as_bytes
from pipeline.core import errors
from pipeline.execution import dask_config, workers
from pipeline.execution.dask_config import cluster_spec, dask_defaults

ROOT = Path(__file__).resolve().parents[2]
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


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", PLAIN)
def test_manifests_are_valid(name, version):
    kubernetes_validate.validate(PLAIN[name], version, strict=True)


def test_the_cluster_is_valid_and_so_is_what_the_operator_makes_of_it():
    validate_cluster(CLUSTER)
    for made in made_by_operator(CLUSTER):
        for version in VERSIONS:
            kubernetes_validate.validate(made, version, strict=True)


def places(content, path=()):
    """Every mapping in a manifest, by its path."""
    if isinstance(content, dict):
        yield path
        for key, value in content.items():
            yield from places(value, (*path, key))
    elif isinstance(content, list):
        for index, value in enumerate(content):
            yield from places(value, (*path, index))


# mappings of any keys, of the user's choice
FREE = {"labels", "matchLabels", "annotations", "requests", "limits", "selector", "metadata"}


def with_a_misspelt_key(content: dict, path: tuple) -> dict:
    changed = copy.deepcopy(content)
    place = changed
    for key in path:
        place = place[key]
    place["retriez"] = 3
    return changed


@pytest.mark.parametrize("name", PLAIN)
def test_a_misspelt_key_is_found_wherever_it_is(name):
    for path in places(PLAIN[name]):
        if not FREE & set(path):
            with pytest.raises(kubernetes_validate.ValidationError):
                kubernetes_validate.validate(
                    with_a_misspelt_key(PLAIN[name], path), VERSIONS[-1], strict=True
                )


def test_a_misspelt_key_of_the_cluster_is_found_wherever_it_is():
    validator = jsonschema.Draft202012Validator(resource_definition())
    paths = [path for path in places(CLUSTER) if not FREE & set(path)]
    assert len(paths) > 40
    for path in paths:
        assert not validator.is_valid(with_a_misspelt_key(CLUSTER, path)), path


def test_what_the_job_may_do_is_about_resources_that_there_are():
    package = Path(find_spec("dask_kubernetes").origin).parent
    plurals = {
        yaml.safe_load(path.read_text())["spec"]["names"]["plural"]
        for path in package.glob("operator/customresources/dask*.yaml")
        if not path.name.endswith(".patch.yaml")
    }
    role = named("access.yml", "Role")
    for rule in role["rules"]:
        assert "*" not in [*rule["verbs"], *rule["resources"], *rule["apiGroups"]]
        resources = {name.partition("/")[0] for name in rule["resources"]}
        assert resources <= ({"pods", "services"} if rule["apiGroups"] == [""] else plurals)
    binding = named("access.yml", "RoleBinding")
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    [subject] = binding["subjects"]
    account = named("access.yml", "ServiceAccount")["metadata"]["name"]
    assert subject["name"] == account == JOB_POD["serviceAccountName"]
    assert JOB_POD["automountServiceAccountToken"]


@pytest.mark.parametrize("name", PODS)
def test_pods_run_without_rights(name):
    pod = PODS[name]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    container = only_container(pod)
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    resources = container["resources"]
    assert set(resources["requests"]) == set(resources["limits"]) >= {"cpu", "memory"}
    # home and the compiled kernels are where something can be written
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    environment = {item["name"]: item["value"] for item in container["env"]}
    assert environment["HOME"] == mounts["temporary"]
    assert environment["NUMBA_CACHE_DIR"].startswith(mounts["temporary"])
    assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
    user = re.search(r"^USER (\d+):(\d+)$", (FOLDER / "Dockerfile").read_text(), re.MULTILINE)
    context = pod["securityContext"]
    assert (str(context["runAsUser"]), str(context["runAsGroup"])) == user.groups()


def test_only_pods_of_pixsim_and_the_operator_reach_its_pods():
    policy = named("access.yml", "NetworkPolicy")["spec"]
    labels = policy["podSelector"]["matchLabels"]
    templates = [JOB["spec"]["template"], CLUSTER["spec"]["worker"], CLUSTER["spec"]["scheduler"]]
    for template in templates:
        assert labels.items() <= template["metadata"]["labels"].items()
    [rule] = policy["ingress"]
    assert rule["from"][0] == {"podSelector": {"matchLabels": labels}}


def test_the_job_ends_or_goes_on_by_the_exit_codes_of_pixsim():
    rules = JOB["spec"]["podFailurePolicy"]["rules"]
    codes = {
        rule["action"]: rule["onExitCodes"]["values"] for rule in rules if "onExitCodes" in rule
    }
    assert codes == {
        "FailJob": [errors.InputError.exit_code],
        "Ignore": [errors.JobInterruptedError.exit_code],
    }
    assert all(
        rule["onExitCodes"]["containerName"] == only_container(JOB_POD)["name"]
        for rule in rules
        if "onExitCodes" in rule
    )
    assert JOB_POD["restartPolicy"] == "Never"  # else there is no such policy


@pytest.mark.parametrize("name", ["job", "worker"])
def test_there_is_time_to_finish_what_is_in_hand(name):
    grace = make_cluster("kubernetes").grace
    assert grace == ClusterSettings().grace
    assert PODS[name]["terminationGracePeriodSeconds"] >= grace + 30


def test_the_job_runs_pixsim_on_files_of_its_config_map():
    container = only_container(JOB_POD)
    [executable] = container["command"]
    assert executable == "pixsim"
    command, bound, _ = cli.app.parse_args(
        container["args"], exit_on_error=False, print_error=False
    )
    assert command is cli.run
    [files] = [volume for volume in JOB_POD["volumes"] if "configMap" in volume]
    [folder] = [m["mountPath"] for m in container["volumeMounts"] if m["name"] == files["name"]]
    environment = {item["name"]: item["value"] for item in container["env"]}
    asked = {
        str(bound.arguments["job"]),
        bound.arguments["cluster"],
        environment["DASK_KUBERNETES__CUSTOM_CLUSTER_SPEC"],
    }
    # the command that makes the config map, in the comment
    text = (FOLDER / "job.yml").read_text()
    assert f"kubectl create configmap {files['configMap']['name']} " in text
    made = dict(re.findall(r"--from-file=([\w.]+)=(\S+)", text))
    assert asked == {f"{folder}/{name}" for name in made}
    for path in made.values():
        assert (ROOT / path).is_file()


def test_workers_and_scheduler_are_started_with_options_that_dask_knows():
    worker, scheduler = only_container(WORKER_POD), only_container(SCHEDULER_POD)
    assert (worker["command"], scheduler["command"]) == (["dask", "worker"], ["dask", "scheduler"])
    found = dask_worker.main.make_context("worker", list(worker["args"])).params
    ports = {port["name"]: port["containerPort"] for port in worker["ports"]}
    assert found["dashboard_address"] == f":{ports['http-dashboard']}"
    settings = make_cluster("kubernetes")
    assert found["nthreads"] == settings.threads_per_worker
    assert as_bytes(found["memory_limit"]) == settings.memory
    assert quantity(worker["resources"]["limits"]["memory"]) > settings.memory
    assert CLUSTER["spec"]["worker"]["replicas"] == settings.workers
    found = dask_scheduler.main.make_context("scheduler", list(scheduler["args"])).params
    ports = {port["name"]: port["containerPort"] for port in scheduler["ports"]}
    assert found["port"] == str(ports["tcp-comm"])
    assert found["dashboard_address"] == f":{ports['http-dashboard']}"
    service = CLUSTER["spec"]["scheduler"]["service"]
    assert {port["targetPort"] for port in service["ports"]} == set(ports)
    assert service["selector"]["dask.org/cluster-name"] == CLUSTER["metadata"]["name"]


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


def test_the_job_and_the_workers_see_one_volume_at_one_path():
    claim = named("access.yml", "PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    found = []
    for pod in (JOB_POD, WORKER_POD):
        [volume] = [item for item in pod["volumes"] if "persistentVolumeClaim" in item]
        assert volume["persistentVolumeClaim"] == {"claimName": claim["metadata"]["name"]}
        container = only_container(pod)
        [path] = [m["mountPath"] for m in container["volumeMounts"] if m["name"] == volume["name"]]
        found.append((path, container["workingDir"]))
    text = (FOLDER / "Dockerfile").read_text()
    assert re.findall(r"^WORKDIR (\S+)$", text, re.MULTILINE)[-1] == found[0][1]
    # what a job file calls data/..., which is where stores and runs go by default
    assert found == [("/pixsim/data", "/pixsim")] * 2


def test_the_image_is_built_from_files_that_there_are_with_the_pinned_tools():
    text = (FOLDER / "Dockerfile").read_text()
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE)
    names = [name for line in copied for name in line.split()]
    assert {"pipeline", "workflows", "data/catalog.yml", "requirements.lock"} <= set(names)
    sent = (FOLDER / "Dockerfile.dockerignore").read_text().split()
    for name in names:
        assert (ROOT / name).exists(), name
        assert f"!{name}" in sent
    pinned = re.search(r"^UV := (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert f" {pinned[1]}" in text
    images = {only_container(pod)["image"] for pod in PODS.values()}
    images.add(make_cluster("kubernetes").options["image"])
    built = re.search(r"-t (\S+) ", text)
    assert images == {f"{built[1]}:latest"}
