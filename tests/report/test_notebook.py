"""The notebook runs from top to bottom, and shows what it says it shows."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "workflows" / "pixel_similarity.ipynb"
KERNEL = "pixsim-notebook"


def read() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def outputs(notebook) -> list[list[nbformat.NotebookNode]]:
    return [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]


def texts(notebook) -> list[list[str]]:
    """Return for each cell of code what its outputs say, and of pictures that they are there."""
    return [
        [
            output.text if output.output_type == "stream"
            else "a picture" if "image/png" in output.get("data", {})
            else output.get("data", {}).get("text/plain", output.output_type)
            for output in found
        ]
        for found in outputs(notebook)
    ]  # fmt: skip


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """Make this Python a kernel that only this test knows, with nobody's settings."""
    folder = tmp_path / "jupyter" / "kernels" / KERNEL
    folder.mkdir(parents=True)
    words = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (folder / "kernel.json").write_text(
        json.dumps({"argv": words, "display_name": "Python", "language": "python"})
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    monkeypatch.setenv("PYTHONPATH", path)
    return KERNEL


@pytest.mark.slow
@pytest.mark.datasets
def test_it_runs_from_top_to_bottom_and_gives_the_outputs_it_shows(
    real_datasets, tmp_path, monkeypatch, kernel
):
    monkeypatch.delenv("PIXSIM_DATA")  # it has its own, beside its folder
    folder = tmp_path / "workflows"
    folder.mkdir()
    fresh = read()
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(fresh, kernel_name=kernel, timeout=200, resources=resources).execute()
    assert texts(fresh) == texts(read())
    assert sorted(path.name for path in (tmp_path / "data" / "stores").iterdir()) == [
        "fashion-mnist.zarr", "mnist.zarr",
    ]  # fmt: skip


def test_it_shows_the_articles_numbers():
    said = "\n".join(text for found in texts(read()) for text in found)
    for name, share in (("3", "0.9168"), ("7", "0.9854"), ("accuracy", "0.9511")):
        assert f"\n{name}: {share}\n" in f"\n{said}\n"
    for name, share in (("Dress", "0.9730"), ("Pullover", "0.8620"), ("accuracy", "0.9175")):
        assert f"\n{name}: {share}\n" in f"\n{said}\n"
    assert re.search(r"l1 +0\.1401 +0\.1670\nl2 +0\.2545 +0\.3121", said)
    assert "3: l1 0.1401, l2 0.2545\n7: l1 0.1670, l2 0.3121" in said
    assert "6131 threes and 6265 sevens" in said


def test_every_output_is_there_and_none_is_an_error_or_names_a_machine():
    notebook = read()
    nbformat.validate(notebook)
    assert NOTEBOOK.stat().st_size < 1_000_000
    kinds = {output.output_type for found in outputs(notebook) for output in found}
    assert kinds <= {"stream", "display_data", "execute_result"}
    assert {output.get("name", "stdout") for o in outputs(notebook) for output in o} == {"stdout"}
    assert sum(text == "a picture" for found in texts(notebook) for text in found) == 9
    assert [bool(found) for found in outputs(notebook)].index(False) == 0  # the imports
    assert all(outputs(notebook)[1:])
    for found in outputs(notebook):
        for output in found:
            output.get("data", {}).pop("image/png", None)
    shown = json.dumps(outputs(notebook))
    assert not re.search(r"/(home|tmp|work|root|Users)/|\\\\Users", shown)


def test_nothing_in_the_file_changes_from_one_execution_to_the_next():
    notebook = read()
    for number, cell in enumerate(notebook.cells, 1):
        assert cell.id == f"cell-{number:02d}"
        assert not cell.metadata
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert notebook.metadata.kernelspec.name == "python3"
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
