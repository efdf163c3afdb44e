"""What stands for a job, and the files that are written of jobs."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from settings_for_tests import EVERY_KEY, write

from pipeline.config.job_files import find_job, find_workflow, job_text, require_job
from pipeline.config.job_settings import load_job, make_job
from pipeline.config.yaml_files import parse_yaml, to_yaml
from pipeline.core.errors import ConfigError, SchemaError

TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.sampled_from(
        ["on", "No", "010", "1e3", "0x1f", "3", "-", "~", "a: b", "a #b", "[x]", "*", "&a", "null",
         "12:30", "1_000", " a", "a ", "c:", "!x", "%", "2001-01-01", "'", '"', "\\", "<<", "=", ""]
    ),
)  # fmt: skip
PLAIN = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), TEXTS,
        st.floats(allow_nan=False, allow_infinity=False, width=32),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)),
    max_leaves=8,
)  # fmt: skip


@given(PLAIN)
@example({"a\x85b": "\x85"})
@example(["\u2028", {"\u2029": "a\u2029b"}])
def test_what_is_written_as_yaml_is_read_as_the_same(value):
    assert parse_yaml(f"key: {to_yaml(value)}\n") == {"key": value}


@pytest.mark.parametrize(
    "text",
    [
        EVERY_KEY,
        "images: {source: s.tar, resize: 64, crop: [8, 9], max_bad: 1%, value_range: [0, 0.00001]}",
        "images: digits\nclasses: [3, '7', 'no', 'on']\nholdout: 20%\nneighbours: {}",
        "images: {splits: {train: [a.tar, b.tar], test: c.tar}}\nname: x\ncluster: threads",
        "images: digits\naudit: {near: 0.25, variants: mirror}\nfit: train",
    ],
)  # fmt: skip
def test_the_file_of_a_job_is_read_as_the_same_job(tmp_path, text):
    job = load_job(write(tmp_path, text))
    again = load_job(write(tmp_path, job_text(job), "again.yml"))
    assert again == job
    assert again.model_dump() == job.model_dump()
    assert again.named_cluster == job.named_cluster


def test_what_may_be_secret_is_not_in_the_file_which_says_so():
    job = make_job({"images": "s3://bucket/x", "storage_options": {"key": "xyzzy-plugh"}})
    assert "xyzzy" not in job_text(job)
    assert job_text(job).startswith("# storage_options, and options of a cluster, are never")


def test_the_file_holds_what_is_not_the_default_and_no_more():
    job = make_job({"images": "flowers", "metrics": "l1", "output": "runs/flowers"})
    expected = "name: flowers\nimages: flowers\nmetrics: [l1]\noutput: runs/flowers\n"
    assert job_text(job) == expected


def test_a_name_means_the_job_that_comes_with_the_project_unless_something_here_has_it(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    said = []
    job = find_job("digits", say=said.append)
    assert (job.name, job.images.source, job.fit) == ("digits", "digits", "train")
    assert job.output == tmp_path / "data" / "runs" / "digits"  # that of PIXSIM_DATA
    assert said == ["'digits' is the job digits.yml that comes with pixsim"]
    (tmp_path / "digits").mkdir()
    job = find_job("digits", say=said.append)
    assert job.fit is None
    assert said[1].startswith("'digits' is what has that name here, not the job")


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("fashion-mnist", "fashion_mnist"), ("fashion_mnist", "fashion_mnist"),
        ("mnist-3-vs-7", "mnist_3_vs_7"), ("dress-vs-pullover", "fashion_mnist_dress_vs_pullover"),
    ],
)  # fmt: skip
def test_jobs_of_the_project_are_known_by_file_and_by_name(name, file):
    assert find_workflow(name).stem == file


@pytest.mark.parametrize("name", ["sources/tar", "../digits", "digit", "", "dig*", "kmnist"])
def test_other_names_are_no_jobs_of_the_project(name):
    assert find_workflow(name) is None


def test_a_source_is_a_job_of_defaults_with_what_is_changed():
    job = find_job("s3://b/flowers.tar", ["images.resize=64", "metrics=l2"], {"classes": ["a"]})
    assert job.model_dump(exclude_defaults=True) | {"output": 0} == {
        "name": "flowers", "images": job.images.model_dump(exclude_defaults=True),
        "classes": ("a",), "metrics": ("l2",), "output": 0,
    }  # fmt: skip
    assert (job.images.source, job.images.resize) == ("s3://b/flowers.tar", 64)


def test_python_takes_what_the_command_line_takes(tmp_path):
    path = write(tmp_path, "images: digits\n")
    assert require_job(path) == load_job(path)
    assert require_job("some/flowers").images.source == "some/flowers"
    assert require_job({"images": "some/flowers"}).name == "flowers"
    with pytest.raises(SchemaError, match="expected a mapping"):
        require_job(3)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["images.path=x"], "did you mean 'source'?"),
        (["images.size=64"], "did you mean 'resize'?"),
        (["test=val"], "did you mean 'evaluate'?"),
        (["neighbours.n_neighbors=5"], "did you mean 'k'?"),
        (["neighbours.k=none"], "'none' (str): expected a whole number, such as 10"),
    ],
)
def test_a_key_is_known_by_what_it_is_often_called_and_a_value_by_an_example(changes, said):
    with pytest.raises(ConfigError) as caught:
        find_job("digits", changes)
    assert said in str(caught.value)
