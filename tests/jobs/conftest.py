"""Fixtures of the jobs' tests: an image set, a run on it, and a folder without a cluster."""

from __future__ import annotations

import shutil
from contextlib import contextmanager

import pytest
from jobs_for_tests import make_images, run
from order_for_tests import Asked, make_folder

from pipeline.execution import executor


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("made") / "images.zarr")


@pytest.fixture
def images(made, tmp_path):
    """The image set in a folder of the test's own, which may damage it."""
    return shutil.copytree(made, tmp_path / "images.zarr")


@pytest.fixture(scope="module")
def undisturbed(made, tmp_path_factory):
    """A run on it to which nothing happens, to be read only."""
    return run(made, tmp_path_factory.mktemp("undisturbed") / "run")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Work in a folder where opening a cluster raises `Asked`."""

    @contextmanager
    def refused(settings, reporter=None):
        raise Asked
        yield

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(executor, "open_client", refused)
    make_folder(tmp_path / "set")
    return tmp_path
