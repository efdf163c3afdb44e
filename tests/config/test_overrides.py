"""`--set KEY=VALUE`: what it replaces in a job file, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from settings_for_tests import EVERY_KEY, refused, write

from pipeline.config.cluster_settings import ClusterSettings
from pipeline.config.job_settings import load_job, make_images


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("device=cpu", "device", "cpu"),
        ("metrics=[l1]", "metrics", ("l1",)),
        ("metrics=l2", "metrics", ("l2",)),
        ("classes=[3, 7]", "classes", ("3", "7")),
        ("classes=null", "classes", None),
        ("classes=", "classes", None),
        ("allow_empty_classes=false", "allow_empty_classes", False),
        ("images=a=b.zarr", "images", make_images("a=b.zarr")),
        ("images.mode=L", "images", make_images({"source": "some/store.zarr", "mode": "L"})),
        ("output=/x/y", "output", Path("/x/y")),
        ("name=other", "name", "other"),
    ],
)
def test_an_override_replaces_a_key_by_a_yaml_value(tmp_path, override, key, value):
    assert getattr(load_job(write(tmp_path, EVERY_KEY), [override]), key) == value


def test_a_dotted_override_reaches_into_the_cluster(tmp_path):
    found = load_job(write(tmp_path, EVERY_KEY), ["cluster.workers=9"]).cluster
    assert found == ClusterSettings(kind="local", workers=9, threads_per_worker=2, memory=2 * 10**9)


def test_a_dotted_override_makes_the_mapping_where_the_file_has_none(tmp_path):
    path = write(tmp_path, "images: digits\n")
    assert load_job(path, ["cluster.workers=2"]).cluster == ClusterSettings(workers=2)


def test_a_dotted_override_keeps_the_kind_that_the_file_gives_as_a_word(tmp_path):
    path = write(tmp_path, "images: digits\ncluster: local\n")
    assert load_job(path, ["cluster.workers=2"]).cluster == ClusterSettings(kind="local", workers=2)


def test_a_dotted_override_keeps_the_address_that_the_file_gives_as_a_word(tmp_path):
    path = write(tmp_path, "images: digits\ncluster: tcp://head:8786\n")
    found = load_job(path, ["cluster.threads_per_worker=2"]).cluster
    assert (found.kind, found.address) == ("scheduler", "tcp://head:8786")


def test_overrides_apply_in_order_and_the_last_wins(tmp_path):
    path = write(tmp_path, EVERY_KEY)
    found = load_job(path, ["device=cpu", "cluster=threads", "device=cuda:1"])
    assert (found.device, found.cluster) == ("cuda:1", ClusterSettings())


@pytest.mark.parametrize("override", ["device", "", "=cpu", "my key=1", "a-b=1", "a/b=1"])
def test_an_override_that_is_no_assignment_is_refused(tmp_path, override):
    message = refused(write(tmp_path, EVERY_KEY), [override])
    assert message.startswith(f"--set {override}")
    assert "KEY=VALUE" in message


def test_an_override_whose_value_is_no_yaml_is_refused(tmp_path):
    message = refused(write(tmp_path, EVERY_KEY), ["classes=[1"])
    assert message == "--set classes=[1: '[1' is not a YAML value"


def test_an_override_into_a_list_is_refused(tmp_path):
    message = refused(write(tmp_path, EVERY_KEY), ["evaluate.x=3"])
    assert message.startswith("--set evaluate.x=3: 'evaluate' is ['validation', 'test'] (list)")


@pytest.mark.parametrize(
    ("override", "named"),
    [("metric=l1", "'metrics'"), ("cluster.worker=2", "'workers'"), ("cluster.=2", "'cluster.'")],
)
def test_an_override_of_an_unknown_key_is_refused_like_one_in_the_file(tmp_path, override, named):
    message = refused(write(tmp_path, EVERY_KEY), [override])
    assert "unknown key" in message
    assert named in message


def test_a_letter_for_an_axis_stays_a_letter(tmp_path):
    path = write(tmp_path, "images: {source: a.nc, kind: xarray}\n")
    images = load_job(path, ["images.dims={y: n, x: y}"]).images
    assert images.dims == {"y": "n", "x": "y"}
