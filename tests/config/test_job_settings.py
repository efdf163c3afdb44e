"""The job file and the environment: what is accepted, and how the rest is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError
from settings_for_tests import EVERY_KEY, refused, write

from pipeline.config.cluster_settings import ClusterSettings, make_cluster
from pipeline.config.job_settings import (
    JobSettings,
    load_environment,
    load_job,
    make_images,
    make_job,
)
from pipeline.core.errors import ConfigError, nearest

WORKFLOWS = sorted((Path(__file__).resolve().parents[2] / "workflows").glob("*.yml"))
MINIMAL = {"name": "study", "images": "digits"}


# what is accepted ------------------------------------------------------------------------------


def test_every_key_of_a_job_file_is_read(tmp_path):
    found = load_job(write(tmp_path, EVERY_KEY))
    assert found.model_dump() == {
        "name": "study",
        "images": make_images("some/store.zarr").model_dump(),
        "classes": ("cat", "dog"),
        "fit": "training",
        "evaluate": ("validation", "test"),
        "leave_one_out": False,
        "prototypes": "mean",
        "metrics": ("l2",),
        "neighbours": {"k": 5, "among": ("training",), "metrics": ("l1", "l2")},
        "audit": {
            "k": 7,
            "metric": "l2",
            "variants": ("mirror",),
            "near": 0.5,
            "labels": 0.8,
            "outliers": 0.9,
            "keep": ("test",),
        },
        "exclude": "some/out.csv",
        "holdout": None,
        "device": "torch:cpu",
        "distances": "skip",
        "report": False,
        "allow_empty_classes": True,
        "cluster": {
            "kind": "local",
            "workers": 3,
            "threads_per_worker": 2,
            "address": None,
            "scheduler_file": None,
            "memory": 2 * 10**9,
            "tls": None,
            "walltime": None,
            "grace": 20.0,
        },
        "output": "/results/study",
    }
    # so that a key added to the settings is added here as well
    # (options for URLs are taken, and never given out; images are held out of one split only)
    assert set(yaml.safe_load(EVERY_KEY)) | {"storage_options", "holdout"} == set(
        JobSettings.model_fields
    )


def test_a_job_file_needs_its_images_only(tmp_path):
    found = load_job(write(tmp_path, "images: digits\n", "my-study.yml"))
    assert found.model_dump() == {
        "name": "my-study",
        "images": make_images("digits").model_dump(),
        "classes": None,
        "fit": None,
        "evaluate": None,
        "leave_one_out": None,
        "prototypes": "mean",
        "metrics": ("l1", "l2"),
        "neighbours": None,
        "audit": None,
        "exclude": None,
        "holdout": None,
        "device": "auto",
        "distances": "auto",
        "report": True,
        "allow_empty_classes": False,
        "cluster": {
            "kind": "threads",
            "workers": None,
            "threads_per_worker": 1,
            "address": None,
            "scheduler_file": None,
            "memory": None,
            "tls": None,
            "walltime": None,
            "grace": 20.0,
        },
        "output": str(tmp_path / "data" / "runs" / "my-study"),
    }


def test_without_images_the_missing_key_is_named():
    with pytest.raises(ConfigError, match="'images' is missing"):
        make_job({"name": "study"})


def test_the_output_given_replaces_the_one_of_the_file(tmp_path):
    found = load_job(write(tmp_path, EVERY_KEY), output=tmp_path / "elsewhere")
    assert found.output == tmp_path / "elsewhere"


def test_class_names_may_be_numbers_in_the_file(tmp_path):
    found = load_job(write(tmp_path, "images: mnist\nclasses: [3, '7', seven]\n"))
    assert found.classes == ("3", "7", "seven")


@pytest.mark.parametrize(
    ("given", "expected"),
    [("validation", ("validation",)), (["a", "b"], ("a", "b")), (["a"], ("a",))],
)
def test_evaluate_is_one_split_or_a_list(given, expected):
    assert make_job(MINIMAL | {"evaluate": given}).evaluate == expected


@pytest.mark.parametrize(("evaluate", "asked", "found"), [
    ("test", None, False), ("test", False, False), ("train", None, True), ("train", True, True),
    ("train", False, False), (["test", "train"], None, True), (["test", "train"], False, False),
])  # fmt: skip
def test_one_is_left_out_where_the_fitted_split_is_measured(evaluate, asked, found):
    settings = make_job(MINIMAL | {"evaluate": evaluate, "leave_one_out": asked})
    assert settings.with_splits({"train": 1, "test": 1}).leaves_one_out == found


def test_leaving_one_out_of_a_split_that_is_not_fitted_is_refused():
    with pytest.raises(ConfigError, match="expected the split of 'fit' in 'evaluate'; name it"):
        make_job(MINIMAL | {"leave_one_out": True, "evaluate": "test"})
    chosen = make_job(MINIMAL | {"leave_one_out": True}).with_splits({"train": 1, "test": 1})
    assert (chosen.fit, chosen.evaluate, chosen.leaves_one_out) == ("train", ("train",), True)


@pytest.mark.parametrize("given", ["l1", ["l1"], ["l2", "l1"]])
def test_metrics_are_one_or_a_list_in_the_order_given(given):
    assert make_job(MINIMAL | {"metrics": given}).metrics == (
        (given,) if isinstance(given, str) else tuple(given)
    )


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:0", "cuda:13", "torch:cpu"])
def test_devices_that_there_are(device):
    assert make_job(MINIMAL | {"device": device}).device == device


@pytest.mark.parametrize(
    "device", ["", "gpu", "CPU", "cuda:", "cuda:x", "cuda0", "torch", "torch:", "cpu:0", " cpu"]
)
def test_devices_that_there_are_not(device):
    with pytest.raises(ConfigError, match=r"'device' is .*expected auto, cpu, cuda"):
        make_job(MINIMAL | {"device": device})


@pytest.mark.parametrize(
    ("given", "kind", "address"),
    [
        ("threads", "threads", None),
        ("local", "local", None),
        ("tcp://10.0.0.1:8786", "scheduler", "tcp://10.0.0.1:8786"),
        ("tls://head:8786", "scheduler", "tls://head:8786"),
    ],
)
def test_a_cluster_may_be_one_word_or_an_address(given, kind, address):
    for found in (make_job(MINIMAL | {"cluster": given}).cluster, make_cluster(given)):
        assert found == ClusterSettings(kind=kind, address=address)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_job_file_of_the_project_loads(path):
    found = load_job(path)
    assert found.output.parts[:2] == ("data", "runs")


def test_the_project_has_job_files():
    assert {path.stem for path in WORKFLOWS} >= {"digits", "mnist_3_vs_7", "fashion_mnist"}


def test_settings_are_frozen():
    found = make_job(MINIMAL)
    with pytest.raises(ValidationError, match="frozen"):
        found.device = "cpu"
    with pytest.raises(ValidationError, match="frozen"):
        found.cluster.workers = 4
    with pytest.raises(ValidationError, match="frozen"):
        load_environment().data = Path("elsewhere")


def test_making_a_job_leaves_the_mapping_as_it_was():
    content = MINIMAL | {"cluster": {"kind": "local"}}
    make_job(content)
    assert content == MINIMAL | {"cluster": {"kind": "local"}}


# what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("metric", "metrics"),
        ("Images", "images"),
        ("evalute", "evaluate"),
        ("prototype", "prototypes"),
        ("clases", "classes"),
        ("outputs", "output"),
        ("allow_empty_class", "allow_empty_classes"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(tmp_path, key, meant):
    path = write(tmp_path, f"images: digits\n{key}: x\n")
    message = refused(path)
    assert message == f"{path}: unknown key '{key}'; did you mean '{meant}'?"


@pytest.mark.parametrize(
    ("key", "meant"), [("worker", "workers"), ("adress", "address"), ("thread_per_worker", None)]
)
def test_an_unknown_key_of_the_cluster_is_refused_with_the_nearest_known_one(tmp_path, key, meant):
    message = refused(write(tmp_path, f"images: digits\ncluster: {{{key}: 2}}\n"))
    assert (
        f"unknown key 'cluster.{key}'; did you mean '{meant or 'threads_per_worker'}'?" in message
    )


def test_a_key_like_none_that_is_known_is_refused_with_all_of_them(tmp_path):
    message = refused(write(tmp_path, "images: digits\nqqq: 1\n"))
    assert all(key in message for key in ["'qqq'", *JobSettings.model_fields])


@pytest.mark.parametrize("key", [3, True, None])
def test_a_key_that_is_no_text_is_refused(tmp_path, key):
    message = refused(write(tmp_path, yaml.safe_dump({"images": "digits", key: 1})))
    assert f"unknown key '{key}'" in message


def test_a_key_given_twice_is_refused(tmp_path):
    message = refused(write(tmp_path, "images: digits\ndevice: cpu\nimages: mnist\n"))
    assert "images" in message


@pytest.mark.parametrize(
    ("key", "value", "place", "shown", "expected"),
    [
        ("name", 3, "name", "3 (int)", "string"),
        ("name", "a/b", "name", "'a/b' (str)", "pattern"),
        ("images", None, "images", "nothing", "dictionary"),
        ("images", "", "images.source", "'' (str)", "at least 1"),
        ("images", {"source": "x", "resize": 0}, "images.resize", "0 (int)", "shorter side"),
        ("images", {"source": "x", "crop": [1, 2, 3]}, "images.crop", "[1, 2, 3] (list)", "height"),
        ("images", {"source": "x", "max_bad": "-1"}, "images.max_bad", "'-1' (str)", "1%"),
        ("classes", "Dress", "classes", "'Dress' (str)", "expected a list"),
        ("classes", [True], "classes.0", "True (bool)", "string"),
        ("classes", ["a", 1.5], "classes.1", "1.5 (float)", "string"),
        ("fit", ["train"], "fit", "['train'] (list)", "string"),
        ("evaluate", {"a": 1}, "evaluate", "{'a': 1} (dict)", "expected a list"),
        ("prototypes", "average", "prototypes", "'average' (str)", "'mean'"),
        ("metrics", "l3", "metrics.0", "'l3' (str)", "'l1' or 'l2'"),
        ("metrics", ["l1", "cosine"], "metrics.1", "'cosine' (str)", "'l1' or 'l2'"),
        ("distances", True, "distances", "True (bool)", "'auto', 'write' or 'skip'"),
        ("allow_empty_classes", "maybe", "allow_empty_classes", "'maybe' (str)", "true or false"),
        ("output", 3, "output", "3 (int)", "path"),
        ("cluster", 3, "cluster", "3 (int)", "dictionary"),
        ("cluster", {"kind": "moon"}, "cluster.kind", "'moon' (str)", "'threads', 'local'"),
        ("cluster", {"workers": 0}, "cluster.workers", "0 (int)", "greater than 0"),
        (
            "cluster",
            {"workers": "two"},
            "cluster.workers",
            "'two' (str)",
            "whole number, such as 10",
        ),
        ("cluster", {"address": "tcp://h:1"}, "cluster", "{'address'", "only scheduler does"),
    ],
)
def test_a_wrong_value_is_refused_with_key_value_and_what_was_expected(
    tmp_path, key, value, place, shown, expected
):
    path = write(tmp_path, yaml.safe_dump({"images": "digits"} | {key: value}))
    message = refused(path)
    assert message.startswith(f"{path}: '{place}' is {shown}")
    assert expected in message
    assert "\n" not in message


@pytest.mark.parametrize("key", ["classes", "evaluate", "metrics"])
def test_an_empty_list_is_refused(key):
    with pytest.raises(ConfigError, match=rf"'{key}' is \[\] \(list\).*at least 1"):
        make_job(MINIMAL | {key: []})


@pytest.mark.parametrize(
    ("key", "values", "doubled"),
    [
        ("classes", ["cat", "dog", "cat"], "cat"),
        ("classes", [3, "3"], "3"),
        ("evaluate", ["test", "test"], "test"),
        ("metrics", ["l2", "l2"], "l2"),
    ],
)
def test_a_name_given_twice_is_refused(key, values, doubled):
    with pytest.raises(ConfigError, match=rf"'{key}' is .*names '{doubled}' twice"):
        make_job(MINIMAL | {key: values})


# names that are near, and the environment -----------------------------------------------------


def test_the_nearest_name_is_found_whatever_its_case():
    known = ["T-Shirt", "Trouser", "Ankle Boot"]
    assert nearest("ankle boots", known) == "did you mean 'Ankle Boot'?"
    assert nearest("t-shirt", known) == "did you mean 'T-Shirt'?"
    assert nearest("zebra", known) == "known are T-Shirt, Trouser, Ankle Boot"


def test_the_environment_has_defaults(monkeypatch):
    for name in ("DATASETS", "DATA", "CATALOG"):
        monkeypatch.delenv(f"PIXSIM_{name}", raising=False)
    found = load_environment()
    assert (found.datasets, found.data, found.catalog) == (None, Path("data"), None)


def test_the_environment_is_read_from_variables_each_time(monkeypatch):
    monkeypatch.setenv("PIXSIM_DATASETS", "/sets")
    monkeypatch.setenv("PIXSIM_DATA", "/scratch/me")
    monkeypatch.setenv("PIXSIM_CATALOG", "/my/catalog.yml")
    found = load_environment()
    assert found.datasets == Path("/sets")
    assert found.data == Path("/scratch/me")
    assert found.catalog == Path("/my/catalog.yml")
    monkeypatch.setenv("PIXSIM_DATA", "/other")
    assert load_environment().data == Path("/other")


def test_runs_go_below_the_data_folder_of_the_environment(monkeypatch):
    monkeypatch.setenv("PIXSIM_DATA", "/scratch/me")
    assert make_job(MINIMAL).output == Path("/scratch/me/runs/study")


def test_other_variables_of_the_environment_change_no_job(monkeypatch):
    before = make_job(MINIMAL)
    monkeypatch.setenv("PIXSIM_DEVICE", "cuda")
    monkeypatch.setenv("DEVICE", "cuda")
    monkeypatch.setenv("PIXSIM_UNKNOWN", "x")
    assert make_job(MINIMAL) == before
