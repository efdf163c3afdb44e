"""The set-up: one list of dependencies in three files, and a Makefile that a stranger can use."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import torchvision
import yaml

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# the same package under its conda-forge name
CONDA_NAMES = {"torch": "pytorch", "universal-pathlib": "universal_pathlib",
               "ruamel-yaml": "ruamel.yaml"}  # fmt: skip


def split_bound(requirement: str) -> tuple[str, str]:
    name, extras, bound = re.fullmatch(r"([\w.-]+)(\[[\w,]+\])?(.*)", requirement).groups()  # type: ignore[union-attr]
    # conda's dask has what the extras ask for; moto is for the tests
    assert extras is None or name in ("dask", "moto")
    return name, bound


def locked() -> dict[str, str]:
    text = (ROOT / "requirements.lock").read_text()
    return dict(re.findall(r"^([\w.-]+)==([^\s;\\]+)", text, flags=re.MULTILINE))


def test_environment_yml_names_the_dependencies_and_bounds_of_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    plain = [item for item in environment["dependencies"] if isinstance(item, str)]
    found = dict(split_bound(item) for item in plain)
    assert found.pop("pip") == ""
    assert found.pop("python") == PROJECT["requires-python"]
    expected = dict(split_bound(item) for item in PROJECT["dependencies"])
    assert found == {CONDA_NAMES.get(name, name): bound for name, bound in expected.items()}


def test_the_lock_pins_every_dependency_with_hashes_and_no_address():
    text = (ROOT / "requirements.lock").read_text()
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]
    assert {split_bound(item)[0].lower() for item in wanted} <= {name.lower() for name in locked()}
    assert "://" not in text
    assert "--index" not in text
    assert "--find-links" not in text
    pins = re.findall(r"^[\w.-]+==[^\n]*\n +--hash=sha256:", text, flags=re.MULTILINE)
    assert len(pins) == len(re.findall(r"^[\w.-]+==", text, flags=re.MULTILINE))


def test_torch_and_torchvision_are_a_pair_whose_operators_load():
    boxes = torch.tensor([[0.0, 0, 1, 1], [0, 0, 1, 1]])
    assert torchvision.ops.nms(boxes, torch.tensor([1.0, 0.5]), 0.5).tolist() == [0]


def make(*arguments: str, path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "--no-print-directory", "-f", str(ROOT / "Makefile"), *arguments],
        cwd=path,
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": f"{path}:/usr/bin:/bin"},
    )


def fake_python(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_make_takes_the_first_python_that_is_new_enough(tmp_path):
    fake_python(tmp_path, "tooold", "exit 1")
    fake_python(tmp_path, "broken", "exit 127")
    (tmp_path / "good").symlink_to(sys.executable)
    done = make("which-python", "PYTHONS=missing broken tooold good", path=tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, "good")


def test_make_says_in_one_line_what_to_install_where_no_python_fits(tmp_path):
    fake_python(tmp_path, "tooold", "exit 1")
    done = make("which-python", "PYTHONS=missing tooold", path=tmp_path)
    assert done.returncode != 0
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert "no Python 3.11 or newer found; install one" in line


def test_make_says_what_is_missing_where_python_has_no_venv(tmp_path):
    fake_python(tmp_path, "bare", 'case "$2" in *ensurepip*) exit 1;; esac')
    done = make("which-python", "PYTHONS=bare", path=tmp_path)
    assert done.returncode != 0
    assert "bare cannot make virtual environments; install its venv package" in done.stderr


def test_a_second_make_sets_nothing_up_again(tmp_path):
    (tmp_path / ".venv").mkdir()
    for name in ("requirements.lock", "pyproject.toml"):
        (tmp_path / name).touch()
    (tmp_path / ".venv" / ".ready").touch()
    done = make("setup", path=tmp_path)
    assert done.returncode == 0
    assert "setting up" not in done.stdout


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md", "LICENSE", ".ci/run", "Makefile"])
def test_the_usual_files_are_there(name):
    assert (ROOT / name).stat().st_size > 0
