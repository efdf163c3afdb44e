"""YAML files: what their scalars mean, merges, and how what is no such file is refused."""

from __future__ import annotations

import datetime
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from settings_for_tests import refused, write

from pipeline.config import yaml_files
from pipeline.config.yaml_files import load_mapping, load_yaml, parse_yaml
from pipeline.core.errors import ConfigError

# what values mean ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("yes", True), ("Off", False), ("y", "y"), ("N", "N"), ("~", None), ("", None),
        ("010", 8), ("0x1F", 31), ("0b11", 3), ("1_000", 1000), ("08", "08"), ("0o10", "0o10"),
        ("12:00:00", 43200), ("1:30.5", 90.5), ("1.5e+3", 1500.0), ("1e3", "1e3"),
        ("1.5e3", "1.5e3"), ("12e5", "12e5"), ("-_1", "-_1"), ("._5", "._5"), ("=", "="),
        ("2020-01-02", datetime.date(2020, 1, 2)), (".inf", float("inf")), ("'yes'", "yes"),
        ("!!str 1", "1"), ("[1, a]", [1, "a"]), ("{y: 1}", {"y": 1}), ("1,000", "1,000"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("version", ["", "%YAML 1.2\n--- ", "%YAML 1.1\n--- "])
def test_scalars_mean_what_they_do_in_yaml_1_1(text, value, version):
    assert parse_yaml(version + text) == value
    if text != "=":  # which PyYAML takes as the key of a mapping only
        assert yaml.safe_load(version + text) == value


def test_a_mapping_merges_others_behind_its_own_keys(tmp_path):
    text = """\
x-base: &base {fit: one, device: cpu}
.other: &other {fit: two, report: false}
<<: [*base, *other]
device: cuda
images: {<<: {source: a}, mode: L}
"""
    content = load_mapping(write(tmp_path, text))
    assert content == {
        "fit": "one", "report": False, "device": "cuda", "images": {"source": "a", "mode": "L"},
    }  # fmt: skip


@pytest.mark.parametrize(
    "text", ["<<: 3", "<<: [3]", "<<: *nothing", "<<: {a: 1}\n<<: {b: 1}", "- <<: [[{a: 1}]]"]
)
def test_what_cannot_be_merged_is_refused(text):
    with pytest.raises(ValueError, match=r"in line \d+, column \d+$"):
        parse_yaml(text)


def test_merges_of_merges_end(monkeypatch):
    monkeypatch.setattr(yaml_files, "_MOST_KEYS", 100)
    lines = ["m0: &m0 {a: 1, b: 2}"]
    lines += [f"m{n}: &m{n} {{<<: [*m{n - 1}, *m{n - 1}]}}" for n in range(1, 40)]
    with pytest.raises(ValueError, match="merges more than 100 keys"):
        parse_yaml("\n".join(lines))
    assert parse_yaml("a: &a {b: 1, c: {<<: *a}}")["a"]["b"] == 1  # it ends where it merges itself


# what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("images: digits\ndevice: cpu\nimages: SECRET\n", 3),
        ("images:\n  source: x\n  source: SECRET", 3),
        ("images: {<<: {source: y}, source: x, source: SECRET}", 1),
        ("a: &a {<<: {b: 1}}\nimages: {<<: *a, source: x, source: SECRET}", 2),
        ("yes: 1\ntrue: SECRET", 2),
    ],
)
def test_a_key_given_twice_is_refused_with_its_line_and_without_its_value(tmp_path, text, line):
    message = refused(write(tmp_path, text))
    assert "is given twice" in message
    assert f"in line {line}, column" in message
    assert "SECRET" not in message


@pytest.mark.parametrize(
    "text",
    ["a: [1", "a: b: c", "\tx: 1", "images: digits\n  bad: 1\n", "a: !!python/name:os.system"],
)
def test_what_is_no_yaml_is_refused_in_one_line(tmp_path, text):
    path = write(tmp_path, text)
    message = refused(path)
    assert message.startswith(f"{path}: cannot be read as YAML")
    assert "\n" not in message


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [*a]", "&a [*a]", "&a {b: *a}", "[" * 5_000, "{" * 5_000, "- " * 5_000, "? {a: 1}",
        "!!int x", "!!float x", "0x_", "2020-13-45", "9" * 9_000, "!!omap 3", "!!set [a]",
        "!!binary é", "!<tag:yaml.org,2002:python/name:os.system> x", "a: \x00", "--- 1\n--- 2",
        "%YAML 3.0\n--- 1", "&a" * 9, "*", "!!null x",
    ],
)  # fmt: skip
def test_whatever_is_read_no_other_error_comes_of_it(tmp_path, text):
    try:
        load_yaml(write(tmp_path, text))
    except ConfigError as error:
        assert "\n" not in str(error)  # noqa: PT017


def test_a_tree_of_aliases_is_refused_in_few_words(tmp_path):
    levels = "abcdefghij"
    lines = ["a: &a [x, x]"]
    lines += [f"{b}: &{b} [{', '.join(['*' + a] * 9)}]" for a, b in pairwise(levels)]
    message = refused(write(tmp_path, "\n".join([*lines, "images: *j"])))
    assert len(message) < 400


def test_a_huge_file_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(yaml_files, "_MOST_BYTES", 1000)
    message = refused(write(tmp_path, "images: digits\n" + "#" * 1000))
    assert message.endswith("holds 1,015 bytes, expected 1,000 at most")


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "job.yml").write_bytes(b"\x89PNG\r\n\xff\xfe")
    assert "cannot be read as YAML" in refused(tmp_path / "job.yml")


def test_a_folder_is_no_job_file(tmp_path):
    assert f"{tmp_path}: cannot be read" in refused(tmp_path)


def test_yaml_tags_build_no_objects(tmp_path):
    marker = tmp_path / "marker"
    text = f"images: !!python/object/apply:pathlib.Path.touch [!!python/object:x {marker}]\n"
    assert "cannot be read as YAML" in refused(write(tmp_path, text))
    assert not marker.exists()


@pytest.mark.parametrize(
    ("text", "shown"), [("", "nothing"), ("- images", "['images'] (list)"), ("3", "3 (int)")]
)
def test_what_is_no_mapping_is_refused(tmp_path, text, shown):
    assert f"holds {shown}, expected a mapping" in refused(write(tmp_path, text))


def test_a_missing_file_names_the_nearest_that_exists(tmp_path):
    write(tmp_path, "images: digits", "mnist_3_vs_7.yml")
    write(tmp_path, "images: digits", "fashion.yml")
    message = refused(tmp_path / "mnist_3vs7.yml")
    assert f"{tmp_path / 'mnist_3vs7.yml'}: no such file" in message
    assert message.endswith(str(tmp_path / "mnist_3_vs_7.yml"))


def test_a_missing_file_where_there_is_none_names_what_writes_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refused(Path("nowhere/x.yml")).endswith(
        "no such file; 'pixsim init SOURCE' writes a job file"
    )


def test_of_a_missing_job_file_only_job_files_are_suggested(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "name: pixsim\ndependencies: []\n", "nowhere_env.yml")
    assert refused(Path("nowhere.yml")).endswith("'pixsim init SOURCE' writes a job file")
    (tmp_path / "workflows").mkdir()
    write(tmp_path / "workflows", "name: a\nimages: digits\n", "study.yml")
    assert refused(Path("nowhere.yml")).endswith("expected a file such as workflows/study.yml")
    write(tmp_path, "images:\n  source: digits\n", "other.yml")
    assert refused(Path("nowhere.yml")).endswith("expected a file such as other.yml")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("classes: 3", "'classes' is 3 (int): expected a list, such as [a, b]"),
        ("metrics: l1, l2", "is 'l1, l2' (str): expected 'l1' or 'l2'"),
        ("holdout: 20", "expected less than 1"),
        ("x-note:\n\ta: 1", "indent with blanks, not with tabs"),
    ],
)
def test_a_value_of_another_form_is_refused_with_the_form_that_is_meant(tmp_path, line, said):
    assert said in refused(write(tmp_path, f"images: digits\n{line}\n"))
