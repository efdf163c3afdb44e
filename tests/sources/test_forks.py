"""A forked process reads on by itself: it waits for nobody, and moves no place of its parent's."""

from __future__ import annotations

import sys
import threading

import pytest
from forks_for_tests import in_fork
from test_replaced import COUNT, FORMATS, root  # noqa: F401 (a fixture)

import pipeline
from pipeline.sources import open_cache, sample_index, xarray_files
from pipeline.sources.registry import open_source, release


def read(source, start, stop):
    block = source.read("train", start, stop)
    return block.images.tolist(), block.labels.tolist()


@pytest.mark.parametrize("make", FORMATS, ids=lambda make: make.__name__)
def test_a_source_is_read_on_by_parent_and_child(make, root):  # noqa: F811
    source = open_source(str(make(root, 3)))
    expected = [read(source, start, start + 2) for start in range(0, COUNT, 2)]
    source.read("train", 0, 4)  # so that streams are open in the middle

    def child():
        assert [read(source, start, start + 2) for start in range(0, COUNT, 2)] == expected

    in_fork(child)
    assert [read(source, start, start + 2) for start in range(4, COUNT, 2)] == expected[2:]
    release(source)


@pytest.mark.parametrize(
    "lock",
    [
        lambda: open_cache._streams._lock,
        lambda: sample_index._opened._lock,
        lambda: xarray_files._opened._lock,
    ],
    ids=["streams", "listings", "groups"],
)
@pytest.mark.parametrize("make", FORMATS, ids=lambda make: make.__name__)
def test_a_child_does_not_wait_for_what_a_thread_of_its_parent_held(make, lock, tmp_path):
    source = open_source(str(make(tmp_path / "set", 3)))
    ready, leave = threading.Event(), threading.Event()

    def hold():
        with lock(), sample_index._reading.held():
            ready.set()
            leave.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    ready.wait(60)
    try:
        in_fork(lambda: read(source, 0, COUNT))
    finally:
        leave.set()
        holder.join()
    release(source)


SLOW = "import sys, time\nsys.slow_begun.set()\ntime.sleep(0.3)\nslow = 7\n"


def test_a_child_does_not_wait_for_what_a_thread_of_its_parent_imports(monkeypatch, tmp_path):
    (tmp_path / "slow_module.py").write_text(SLOW)
    monkeypatch.setattr(pipeline, "__path__", [*pipeline.__path__, str(tmp_path)])
    monkeypatch.setitem(pipeline._HOMES, "slow", "slow_module")
    begun = threading.Event()
    monkeypatch.setattr(sys, "slow_begun", begun, raising=False)
    importer = threading.Thread(target=lambda: pipeline.slow)
    importer.start()
    assert begun.wait(60)

    def child():
        assert pipeline.slow == 7

    in_fork(child)
    importer.join()
    monkeypatch.delitem(sys.modules, "pipeline.slow_module")
    monkeypatch.delattr(pipeline, "slow_module")
