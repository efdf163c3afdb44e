"""What is given to others: the wheel and the sdist, installed where nothing of the checkout is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

import pipeline

ROOT = Path(__file__).resolve().parent.parent
UV = Path(sys.executable).with_name("uv")
FIVE_LINES = """\
import pipeline

store = pipeline.ingest("digits")
sums = pipeline.class_sums(pipeline.open_images(store, "train"))
table = pipeline.distances(pipeline.open_images(store, "test"), pipeline.prototypes(sums))
print(float(pipeline.predict(table).sel(metric="l1")["predicted"][0]))
"""
WRONG_LINE = "pipeline.ingest(3)\n"
IMPORT_ALL = """\
import importlib.metadata, pipeline
for name in [*pipeline.__all__, "plots"]:
    getattr(pipeline, name)
print(pipeline.__file__, importlib.metadata.version("pixsim"))
"""


def done(*words: object, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [*map(str, words)], cwd=cwd, env=environment | variables, capture_output=True, text=True
    )


def succeeded(*words: object, cwd: Path, **variables: str) -> str:
    result = done(*words, cwd=cwd, **variables)
    assert result.returncode == 0, f"{words}\n{result.stdout}{result.stderr}"
    return result.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Build both from the checkout, and a wheel from the sdist alone."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "--directory"]
    succeeded(*build, folder, cwd=ROOT)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    succeeded(*build, folder / "again", "--target", "wheel", cwd=unpacked)
    (wheel,) = folder.glob("*.whl")
    (again,) = (folder / "again").glob("*.whl")
    return sdist, wheel, again


def members(wheel: Path) -> dict[str, int]:
    with zipfile.ZipFile(wheel) as archive:
        return {item.filename: item.CRC for item in archive.infolist()}


@pytest.mark.slow
def test_a_wheel_made_of_the_sdist_is_that_of_the_checkout(built):
    sdist, wheel, again = built
    assert members(wheel) == members(again)
    assert sdist.name == f"pixsim-{pipeline.__version__}.tar.gz"
    assert {"pipeline/py.typed", "pipeline/catalog.yml", "pipeline/workflows/digits.yml"} <= {
        *members(wheel)
    }
    assert not [name for name in members(wheel) if "__pycache__" in name or "tests" in name]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_wheel_works_in_a_clean_environment_outside_the_checkout(built, tmp_path):
    if not UV.exists():
        pytest.skip("needs uv beside this Python, as `make` installs it")
    place, away = tmp_path / "env", tmp_path / "away"
    away.mkdir()
    succeeded(UV, "venv", "--quiet", "--python", sys.executable, place, cwd=away)
    python = place / "bin" / "python"
    succeeded(UV, "pip", "install", "--quiet", "--python", python, "--constraint",
              ROOT / "requirements.lock", built[1], cwd=away)  # fmt: skip
    where, version = succeeded(python, "-c", IMPORT_ALL, cwd=away).split()
    assert Path(where).is_relative_to(place)
    assert version == pipeline.__version__

    demo = succeeded(place / "bin" / "pixsim", "demo", cwd=away, PIXSIM_DATA="data")
    assert len(re.findall(r"^digest sha256:[0-9a-f]{64}$", demo, re.MULTILINE)) >= 1

    (away / "user.py").write_text(FIVE_LINES)
    (away / "wrong.py").write_text(FIVE_LINES + WRONG_LINE)
    check = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir",
             tmp_path / "cache", "--python-executable", python]  # fmt: skip
    succeeded(*check, "user.py", cwd=away)
    refused = done(*check, "wrong.py", cwd=away)
    assert 'wrong.py:7: error: Argument 1 to "ingest" has incompatible type "int"' in refused.stdout
    assert float(succeeded(python, "user.py", cwd=away, PIXSIM_DATA="data")) in range(10)


def test_the_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    (newest, date) = re.search(
        r"^## ([\d.]+) \((\d{4}-\d\d-\d\d)\)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    ).groups()
    assert citation["version"] == newest == pipeline.__version__
    assert citation["date-released"] == date


def test_the_citation_has_what_its_format_asks_for():
    """Those of the keys of Citation File Format 1.2.0 that are required, and no unknown one."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"authors", "cff-version", "message", "title"} <= citation.keys()
    assert citation.keys() <= {
        "abstract", "authors", "cff-version", "date-released", "doi", "identifiers", "keywords",
        "license", "message", "repository-code", "title", "type", "url", "version",
    }  # fmt: skip
    assert citation["cff-version"] == "1.2.0"
    assert all("name" in author or "family-names" in author for author in citation["authors"])


@pytest.mark.parametrize("name", ["bug", "feature"])
def test_an_issue_template_is_a_form_that_github_takes(name):
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / f"{name}.yml").read_text())
    assert {"name", "description", "body"} <= form.keys()
    ids = [item["id"] for item in form["body"]]
    assert len(set(ids)) == len(ids)
    for item in form["body"]:
        assert item["type"] in {"textarea", "input", "dropdown", "checkboxes", "markdown"}
        assert item["attributes"]["label"]
