"""Fixtures that several test modules share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Make PIXSIM_DATASETS absolute, since tests change the working directory."""
    if folder := os.environ.get("PIXSIM_DATASETS"):
        os.environ["PIXSIM_DATASETS"] = str(Path(folder).resolve())


@pytest.fixture(autouse=True)
def _own_data_folder(tmp_path, monkeypatch):
    """Keep stores, downloads and runs of a test in its own folder."""
    monkeypatch.setenv("PIXSIM_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("PIXSIM_CATALOG", raising=False)


@pytest.fixture(scope="session")
def real_datasets() -> Path:
    """The folder with the real MNIST and Fashion-MNIST files."""
    folder = os.environ.get("PIXSIM_DATASETS")
    if not folder:
        pytest.skip("needs the real files in the folder PIXSIM_DATASETS, which is not set")
    return Path(folder)
