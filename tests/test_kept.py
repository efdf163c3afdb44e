"""What a process keeps open: opened once, by any number of threads, and closed when told."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.sources.kept import Kept


def test_a_key_is_opened_once_until_it_is_closed():
    opened, closed = [], []
    kept = Kept(closed.append)

    def open_it():
        opened.append(len(opened))
        return opened[-1]

    assert [kept.get("a", open_it), kept.get("a", open_it), kept.get("b", open_it)] == [0, 0, 1]
    kept.close(lambda key: key == "a")
    assert closed == [0]
    assert [kept.get("b", open_it), kept.get("a", open_it)] == [1, 2]
    kept.close(lambda key: True)
    assert sorted(closed) == [0, 1, 2]


def test_what_is_put_there_needs_no_opening():
    kept = Kept()
    kept.put("a", 5)
    assert kept.get("a", pytest.fail) == 5
    kept.close(lambda key: True)  # what has no way to be closed is let go
    assert kept.get("a", lambda: 6) == 6


def test_what_fails_to_open_is_tried_again():
    kept = Kept()
    with pytest.raises(OSError, match="gone"):
        kept.get("a", lambda: (_ for _ in ()).throw(OSError("gone")))
    assert kept.get("a", lambda: 1) == 1


def test_threads_share_one():
    kept, opened, together = Kept(), [], threading.Barrier(4)

    def read(_):
        together.wait()
        return kept.get("a", lambda: opened.append(1) or object())

    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(read, range(4)))
    assert len(found) == len(opened) == 1


def test_another_process_opens_its_own_and_leaves_the_parents_open(monkeypatch):
    closed = []
    kept = Kept(closed.append)
    kept.put("a", "parent's")
    mine = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: mine + 1)  # as after a fork
    assert kept.get("a", lambda: "child's") == "child's"
    kept.close(lambda key: True)
    assert closed == ["child's"]
