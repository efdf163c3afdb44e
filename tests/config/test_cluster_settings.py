"""Where tasks run, as settings: names, files, addresses, and what does not go together."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from pipeline.config import cluster_settings
from pipeline.config.cluster_settings import ClusterSettings, make_cluster, walltime_seconds
from pipeline.config.job_settings import load_job, make_job
from pipeline.core.errors import ConfigError

CLUSTERS = sorted((Path(__file__).resolve().parents[2] / "workflows" / "clusters").glob("*.yml"))
TLS = {"ca_file": "ca.pem", "cert": "c.pem", "key": "k.pem"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def refused(**settings) -> str:
    with pytest.raises(ValidationError) as caught:
        ClusterSettings(**settings)
    (problem,) = caught.value.errors()
    return problem["msg"]


# files -----------------------------------------------------------------------------------------


def test_there_is_one_file_for_each_kind():
    kinds = ClusterSettings.model_fields["kind"].annotation.__args__
    assert [path.stem for path in CLUSTERS] == sorted(kinds)


@pytest.mark.parametrize("path", CLUSTERS, ids=lambda path: path.stem)
def test_every_file_of_the_project_is_found_by_its_name_and_by_its_path(folder, path):
    found = make_cluster(path.stem)
    assert found == make_cluster(str(path))
    assert found.kind == path.stem


@pytest.mark.parametrize("path", CLUSTERS, ids=lambda path: path.stem)
def test_what_a_file_leaves_commented_out_can_be_used(folder, path):
    """Every commented key is one that there is; it is taken on with the rest of its line."""
    keys = {
        line.removeprefix("# ").partition(":")[0]
        for line in path.read_text().splitlines()
        if line.startswith("# ") and line[2:].partition(":")[0].replace("_", "").isalpha()
    }
    assert keys <= set(ClusterSettings.model_fields), path


def test_the_working_directory_wins_over_the_job_file_which_wins_over_the_package(folder):
    beside = folder / "jobs"
    assert make_cluster("slurm", beside).workers == 2
    write(beside / "clusters" / "slurm.yml", {"kind": "slurm", "workers": 7})
    assert make_cluster("slurm", beside).workers == 7
    write(folder / "workflows" / "clusters" / "slurm.yml", {"kind": "slurm", "workers": 8})
    assert make_cluster("slurm", beside).workers == 8


def test_a_job_file_finds_clusters_beside_it_and_overrides_go_into_them(folder):
    write(folder / "jobs" / "clusters" / "big.yml", {"kind": "local", "workers": 7})
    job = write(folder / "jobs" / "job.yml", {"images": "digits", "cluster": "big"})
    assert load_job(job).cluster == ClusterSettings(kind="local", workers=7)
    found = load_job(job, ["cluster.memory=1GB"]).cluster
    assert found == ClusterSettings(kind="local", workers=7, memory=10**9)
    assert load_job(job, ["cluster=threads"]).cluster == ClusterSettings()


def test_the_cluster_of_the_command_line_replaces_that_of_the_job_file(folder):
    job = write(
        folder / "job.yml", {"images": "digits", "cluster": {"kind": "local", "memory": "2 GB"}}
    )
    assert load_job(job, cluster="threads").cluster == ClusterSettings()
    found = load_job(job, ["cluster.workers=5"], cluster="slurm").cluster
    assert (found.kind, found.workers, found.memory) == ("slurm", 5, 4 * 10**9)


def test_a_job_that_names_no_cluster_leaves_it_to_its_caller():
    content = {"name": "study", "images": "digits"}
    assert make_job(content).named_cluster is None
    assert make_job(content | {"cluster": "threads"}).named_cluster == ClusterSettings()


@pytest.mark.parametrize(("text", "meant"), [
    ("slrm", "did you mean 'slurm'?"), ("moon", "known are gpus, kubernetes, local"), ("", "known"),
])  # fmt: skip
def test_an_unknown_name_is_refused_with_what_there_is(folder, text, meant):
    with pytest.raises(ConfigError) as caught:
        make_cluster(text)
    assert f"there is no cluster '{text}'" in str(caught.value)
    assert meant in str(caught.value)


def test_threads_and_local_need_no_file(folder, monkeypatch):
    monkeypatch.setattr(cluster_settings, "_files", lambda beside: iter(()))
    assert make_cluster("threads") == ClusterSettings()
    assert make_cluster("local") == ClusterSettings(kind="local")
    with pytest.raises(ConfigError, match="there is no cluster 'slurm'"):
        make_cluster("slurm")


def test_a_wrong_file_is_refused_with_its_path(folder):
    path = write(folder / "c.yml", {"kind": "slurm", "walltme": "1:00:00"})
    with pytest.raises(
        ConfigError, match=r"c\.yml: unknown key 'walltme'; did you mean 'walltime'"
    ):
        make_cluster(str(path))
    with pytest.raises(ConfigError, match=r"no\.yml: no such file"):
        make_cluster("no.yml")
    write(path, {"kind": "slurm", "workers": 0})
    with pytest.raises(ConfigError, match=r"cluster '.*c\.yml': 'workers' is 0 \(int\)"):
        make_cluster(str(path))


# wall times ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "seconds"), [
    ("90", 5400), ("90:30", 5430), ("08:00:00", 28800), ("2-12", 216000), ("2-12:30", 217800),
    ("1-00:00:01", 86401),
])  # fmt: skip
def test_wall_times_are_read_as_slurm_reads_them(text, seconds):
    assert walltime_seconds(text) == seconds
    assert ClusterSettings(kind="slurm", walltime=text).walltime == text


@pytest.mark.parametrize("text", ["", "soon", "1:2:3:4", "-5", "1h", "00:00:00"])
def test_what_is_no_wall_time_is_refused(text):
    with pytest.raises(ValueError, match="expected"):
        walltime_seconds(text)


def test_a_wall_time_that_yaml_takes_for_a_number_is_refused():
    assert yaml.safe_load("12:00:00") == 43200
    assert "in quotes" in refused(kind="slurm", walltime=43200)


# what does not go together -----------------------------------------------------------------------


@pytest.mark.parametrize(("settings", "parts"), [
    ({"kind": "slurm", "address": "tcp://h:1"}, ["kind slurm takes no address", "scheduler does"]),
    ({"kind": "local", "scheduler_file": "f"}, ["takes no scheduler_file", "leave it out"]),
    ({"kind": "threads", "walltime": "1:00:00"}, ["takes no walltime", "only slurm does"]),
    ({"kind": "kubernetes", "tls": TLS}, ["takes no tls", "scheduler or slurm"]),
    ({"kind": "threads", "options": {"queue": "q"}}, ["takes no options"]),
    ({"kind": "threads", "dask": {"a": 1}}, ["takes no dask"]),
    ({"kind": "scheduler", "address": "head:8786"}, ["no protocol", "tls://head:8786"]),
    ({"kind": "scheduler", "address": "tcp://h:1", "scheduler_file": "f"}, ["one of them"]),
    ({"kind": "scheduler", "address": "tcp://h:1", "tls": TLS}, ["not encrypted", "tls://"]),
    ({"kind": "gpus", "threads_per_worker": 2}, ["one thread"]),
])  # fmt: skip
def test_what_makes_no_sense_together_is_refused_with_the_cure(settings, parts):
    message = refused(**settings)
    for part in parts:
        assert part in message


def test_files_of_tls_are_three():
    with pytest.raises(ValidationError, match=r"tls\.key"):
        ClusterSettings(
            kind="scheduler", address="tls://h:1", tls={"ca_file": "ca.pem", "cert": "c.pem"}
        )


def test_options_are_never_given_out():
    secret = {"env": {"AWS_SECRET_ACCESS_KEY": "xyzzy-plugh"}}
    found = ClusterSettings(kind="kubernetes", options=secret, dask={"a": "xyzzy-plugh"})
    assert "xyzzy" not in repr(found) + str(found.model_dump())
    content = {"name": "n", "images": "digits"}
    with pytest.raises(ConfigError) as caught:
        make_job(content | {"cluster": {"kind": "threads", "options": secret}})
    assert "xyzzy" not in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        make_job(content | {"cluster": {"kind": "slurm", "options": "xyzzy-plugh"}})
    assert "xyzzy" not in str(caught.value)
