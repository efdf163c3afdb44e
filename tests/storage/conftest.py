"""Fixtures that tests of storage share."""

from __future__ import annotations

import shutil
import signal

import pytest
from locks_for_tests import Child
from stores_for_tests import make_arrays, make_store, memory

from pipeline.storage import atomic, blobs, folders, locks


@pytest.fixture
def child():
    """Make processes, which end with the test."""
    made = []

    def make(elsewhere=""):
        made.append(Child(elsewhere))
        return made[-1]

    yield make
    for one in made:
        one.process.send_signal(signal.SIGCONT)
        one.kill()
        one.process.stdin.close()
        one.process.stdout.close()


@pytest.fixture
def quick(monkeypatch):
    """Hearts that beat fast, so that watching one takes no time."""
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.03)
    monkeypatch.setattr(locks, "REMOTE_BEAT_SECONDS", 0.03)


@pytest.fixture
def pauses(monkeypatch):
    """The pauses between tries, which take no time."""
    found = []
    monkeypatch.setattr(blobs.time, "sleep", found.append)
    return found


@pytest.fixture(params=["here", "there"])
def folder(request, tmp_path):
    """A folder with files in it and in folders below, on this machine or a remote one."""
    path = tmp_path / "folder" if request.param == "here" else memory()
    for name, data in {"a.bin": b"0123456789", "b/c.txt": b"ccc", "b/d/e": b"", "bb": b"x"}.items():
        with atomic.replaced(path / name) as aside:
            aside.write_bytes(data)
    yield path
    folders.remove_tree(path)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A store of one split, and the arrays in it; to be read only."""
    arrays = make_arrays()
    return make_store(tmp_path_factory.mktemp("shared") / "s.zarr", {"train": arrays}), *arrays


@pytest.fixture
def images(shared, tmp_path):
    """A copy of `shared` to be damaged."""
    path, *arrays = shared
    return shutil.copytree(path, tmp_path / "s.zarr"), *arrays
