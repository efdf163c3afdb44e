"""The README promises nothing that was not run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import pipeline
from pipeline.cli import app, main
from pipeline.config.cluster_settings import ClusterSettings

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def block(language: str, containing: str) -> str:
    found = re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)
    (text,) = [text for text in found if containing in text]
    return text


@pytest.mark.datasets
def test_the_python_of_the_readme_gives_the_articles_number(
    real_datasets, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIXSIM_DATASETS", str(real_datasets))
    exec(block("python", "class_sums"), {})
    assert capsys.readouterr().out.strip() == "0.9175"


@pytest.mark.datasets
def test_the_nearest_images_of_the_readme_are_as_many_and_as_good_as_it_says(
    real_datasets, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIXSIM_DATASETS", str(real_datasets))
    exec(block("python", "neighbours"), {})
    assert capsys.readouterr().out.split() == ["0.9631", "935"]


@pytest.mark.datasets
def test_the_demo_prints_what_the_readme_shows(real_datasets, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIXSIM_DATA", "data")
    monkeypatch.setenv("PIXSIM_DATASETS", str(real_datasets))
    assert main(["demo"]) == 0
    captured = capsys.readouterr()
    first, shown = block("text", "prototypes drawn in").split("...\n")
    assert first.strip() in captured.err
    assert captured.out.rstrip() == shown.rstrip()


def test_the_job_file_of_the_readme_is_the_workflow():
    shown = yaml.safe_load(block("yaml", "dress-vs-pullover"))
    path = ROOT / "workflows" / "fashion_mnist_dress_vs_pullover.yml"
    assert shown == yaml.safe_load(path.read_text())
    assert pipeline.make_job(shown).name == "dress-vs-pullover"


def test_every_job_key_is_explained():
    for key in pipeline.JobSettings.model_fields:
        assert f"{key}: " in README or f"| `{key}` |" in README, key


def test_every_command_is_listed_and_every_listed_one_exists():
    listed = set(re.findall(r"^pixsim (\w+)", block("text", "pixsim datasets"), re.MULTILINE))
    assert listed == {name for name in app if not name.startswith("-")}


def test_every_linked_file_exists():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_every_row_of_what_can_fail_is_pinned_by_a_test_that_exists():
    section = README.partition("## What can fail")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")][2:]
    assert len(rows) > 20
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for row in rows:
        (name,) = re.findall(r"`(test_\w+)` \|$", row)
        assert re.search(rf"^def {name}\(", tests, re.MULTILINE), name


def test_every_cluster_of_the_readme_is_a_file_and_has_a_row():
    section = README.partition("## On a cluster")[2].partition("\n## ")[0]
    named = set(re.findall(r"--cluster (\w+)`", section)) | {"scheduler"}
    assert named == {path.stem for path in (ROOT / "workflows" / "clusters").glob("*.yml")}
    for key in ClusterSettings.model_fields:
        assert f"`{key}`" in section, key
