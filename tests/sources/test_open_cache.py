"""What a process keeps open: opened once, by any number of threads, and closed when told."""

from __future__ import annotations

import contextlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from forks_for_tests import in_fork

from pipeline.core.errors import SourceError
from pipeline.sources.open_cache import OpenCache, unchanged
from pipeline.storage.blobs import version_in, version_of


def test_a_key_is_opened_once_until_it_is_closed():
    opened, closed = [], []
    cache = OpenCache(closed.append)

    def open_it():
        opened.append(len(opened))
        return opened[-1]

    assert [cache.get("a", open_it), cache.get("a", open_it), cache.get("b", open_it)] == [0, 0, 1]
    cache.close(lambda key: key == "a")
    assert closed == [0]
    assert [cache.get("b", open_it), cache.get("a", open_it)] == [1, 2]
    cache.close(lambda key: True)
    assert sorted(closed) == [0, 1, 2]


def test_what_is_put_there_needs_no_opening():
    cache = OpenCache()
    cache.put("a", 5)
    assert cache.get("a", pytest.fail) == 5
    cache.close(lambda key: True)  # what has no way to be closed is let go
    assert cache.get("a", lambda: 6) == 6


def test_what_fails_to_open_is_tried_again():
    cache = OpenCache()
    with pytest.raises(OSError, match="gone"):
        cache.get("a", lambda: (_ for _ in ()).throw(OSError("gone")))
    assert cache.get("a", lambda: 1) == 1


def test_threads_share_one():
    cache, opened, together = OpenCache(), [], threading.Barrier(4)

    def read(_):
        together.wait()
        return cache.get("a", lambda: opened.append(1) or object())

    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(read, range(4)))
    assert len(found) == len(opened) == 1


def test_of_another_version_the_one_before_is_closed():
    closed = []
    cache = OpenCache(closed.append)
    assert [cache.get("a", lambda n=n: n, version) for n, version in enumerate("xxyx")] == [
        0,
        0,
        2,
        3,
    ]
    assert closed == [0, 2]


def test_what_was_used_longest_ago_is_closed():
    closed = []
    cache = OpenCache(closed.append, limit=2)
    for key in "abaca":
        cache.get(key, lambda key=key: key)
    assert closed == ["b"]


def test_a_forked_process_opens_its_own_and_leaves_the_parents_open():
    closed = []
    cache = OpenCache(closed.append)
    cache.put("a", "parent's")
    with cache._lock:  # by another thread of the parent, as it may be

        def child():
            assert cache.get("a", lambda: "child's") == "child's"
            cache.close(lambda key: True)
            assert closed == ["child's"]

        in_fork(child)
    assert cache.get("a", pytest.fail) == "parent's"


@pytest.mark.parametrize("stamp", ["", "recorded"])
@pytest.mark.parametrize("moment", ["before", "meanwhile", "meanwhile and it fails"])
def test_a_file_that_is_replaced_while_it_is_read_is_an_error(tmp_path, stamp, moment):
    path = tmp_path / "x"
    path.write_bytes(b"old")
    recorded = version_of(path).stamp if stamp else ""
    with unchanged(path, recorded) as version:
        pass
    if moment == "before":
        path.write_bytes(b"new one")
        with contextlib.nullcontext() if not stamp else refused(), unchanged(path, recorded) as now:
            assert now != version
        return
    with refused(), unchanged(path, recorded):
        path.write_bytes(b"new one")
        if moment.endswith("fails"):
            raise EOFError


def refused():
    return pytest.raises(
        SourceError, match=r"x: is another file \(7 bytes\).*run the command again"
    )


@pytest.mark.parametrize(
    ("info", "stamp"),
    [
        ({"size": 5, "ETag": '"a"', "LastModified": "today"}, '5 "a"'),
        ({"size": 5, "mtime": 1.5}, "5 1.5"),
        ({"size": None, "etag": "x"}, "None x"),
        ({}, "None "),
    ],
)
def test_a_remote_file_is_known_by_what_its_store_says_of_the_version(info, stamp):
    assert version_in(info).stamp == stamp


def test_one_function_gives_the_version_of_a_file_however_its_status_was_got(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"old")
    status = path.stat()
    assert version_of(path) == version_in(status)
    assert version_of(path).stamp == f"3 {status.st_mtime_ns}"
    path.rename(tmp_path / "y")
    path.write_bytes(b"new")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert version_of(path).stamp == version_in(status).stamp
    assert version_of(path) != version_in(status)
