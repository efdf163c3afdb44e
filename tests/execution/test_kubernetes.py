"""The manifests for Kubernetes: what the API and dask's operator accept, and what is run there."""

from __future__ import annotations

import copy
import re
from importlib.util import find_spec
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml
from distributed.cli import dask_scheduler, dask_worker
from kubernetes_for_tests import (
    CLUSTER,
    FOLDER,
    JOB,
    JOB_POD,
    PLAIN,
    PODS,
    ROOT,
    SCHEDULER_POD,
    VERSIONS,
    WORKER_POD,
    made_by_operator,
    named,
    only_container,
    quantity,
    resource_definition,
    validate_cluster,
)

from pipeline import commands
from pipeline.config.cluster_settings import ClusterSettings, make_cluster
from pipeline.config.settings import as_bytes
from pipeline.core import errors


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
    command, bound, _ = commands.app.parse_args(
        container["args"], exit_on_error=False, print_error=False
    )
    assert command is commands.run
    [files] = [volume for volume in JOB_POD["volumes"] if "configMap" in volume]
    [folder] = [m["mountPath"] for m in container["volumeMounts"] if m["name"] == files["name"]]
    environment = {item["name"]: item["value"] for item in container["env"]}
    asked = {
        str(bound.arguments["source"]),
        bound.arguments["options"].cluster,
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
