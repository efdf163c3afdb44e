"""The pool of forward-only streams: who gets which, and when they are closed."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pipeline.sources import open_cache
from pipeline.sources.open_cache import borrowed, close_streams


class Stream:
    """Counts upwards; remembers whether it was closed."""

    opened: list[Stream]

    def __init__(self):
        self.closed = False
        self.at = 0
        Stream.opened.append(self)

    def read(self, count):
        assert not self.closed
        found = list(range(self.at, self.at + count))
        self.at += count
        return found

    def close(self):
        self.closed = True


@pytest.fixture(autouse=True)
def streams():
    close_streams()
    Stream.opened = []
    yield Stream.opened
    close_streams()


def read(key, start, count):
    with borrowed(key, start, Stream) as cursor:
        cursor.stream.read(start - cursor.position)
        found = cursor.stream.read(count)
        cursor.position = start + count
    return found


def test_ranges_in_order_are_read_from_one_stream(streams):
    assert [read("a", start, 10) for start in (0, 10, 30)] == [
        list(range(start, start + 10)) for start in (0, 10, 30)
    ]
    assert len(streams) == 1


def test_going_back_takes_a_fresh_stream_and_keeps_the_other(streams):
    read("a", 50, 10)
    assert read("a", 20, 5) == [20, 21, 22, 23, 24]
    assert len(streams) == 2
    read("a", 60, 1)
    read("a", 25, 1)
    assert [stream.at for stream in streams] == [61, 26]


def test_the_nearest_stream_before_the_place_is_taken(streams):
    for start in (90, 50, 10):
        read("a", start, 1)
    assert len(streams) == 3
    read("a", 60, 1)
    assert [stream.at for stream in streams] == [91, 61, 11]


def test_a_stream_at_just_that_place_is_taken(streams):
    read("a", 0, 7)
    read("a", 7, 0)
    assert len(streams) == 1


def test_a_stream_is_of_one_key_only(streams):
    read("a", 0, 5)
    read("b", 5, 5)
    read(("a", "b"), 5, 5)
    assert len(streams) == 3


def test_a_stream_that_is_borrowed_is_nobody_elses(streams):
    with borrowed("a", 0, Stream) as first, borrowed("a", 0, Stream) as second:
        assert first.stream is not second.stream
    with borrowed("a", 0, Stream) as third:
        assert third.stream in (first.stream, second.stream)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_after_an_exception_the_stream_is_closed_and_not_used_again(streams, error):
    with pytest.raises(error), borrowed("a", 0, Stream):
        raise error
    assert streams[0].closed
    read("a", 0, 1)
    assert len(streams) == 2


def test_a_stream_that_fails_to_close_does_not_hide_the_error(streams):
    class Broken(Stream):
        def close(self):
            raise OSError("broken")

    with pytest.raises(KeyError), borrowed("a", 0, Broken):
        raise KeyError


def test_at_most_four_of_a_key_stay_open_the_oldest_is_closed(streams):
    for start in (60, 50, 40, 30, 20, 10):
        read("a", start, 1)
    assert [stream.closed for stream in streams] == [True, True, False, False, False, False]


def test_at_most_32_stay_open_in_all(streams):
    for key in range(40):
        read(key, 0, 1)
    assert [stream.closed for stream in streams] == [True] * 8 + [False] * 32


def test_close_closes_those_of_a_key_and_of_tuples_that_begin_with_it(streams):
    for key in (Path("a"), (Path("a"), "member"), Path("b"), ("other", Path("a"))):
        read(key, 0, 1)
    close_streams({Path("a")})
    assert [stream.closed for stream in streams] == [True, True, False, False]
    close_streams({("other", Path("a"))})
    assert [stream.closed for stream in streams] == [True, True, False, True]
    close_streams()
    assert all(stream.closed for stream in streams)


def test_a_stream_of_another_version_is_closed_and_not_read(streams):
    def of(version, start):
        with borrowed(Path("a"), start, Stream, version) as cursor:
            return cursor.stream

    first = of(1, 0)
    assert of(1, 0) is first
    assert of(2, 0) is not first
    assert [stream.closed for stream in streams] == [True, False]


def test_threads_read_right_and_never_share_a_stream(streams):
    order = np.random.default_rng(0).permutation(400).tolist()
    busy: set[int] = set()
    lock = threading.Lock()

    def one(number):
        with borrowed("a", number * 3, Stream) as cursor:
            with lock:
                assert id(cursor.stream) not in busy
                busy.add(id(cursor.stream))
            cursor.stream.read(number * 3 - cursor.position)
            found = cursor.stream.read(3)
            cursor.position = number * 3 + 3
            with lock:
                busy.remove(id(cursor.stream))
        return found == [number * 3, number * 3 + 1, number * 3 + 2]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(one, order))
    assert sum(not stream.closed for stream in streams) <= open_cache.STREAMS_OF_A_KEY


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_forked_process_shares_neither_the_streams_nor_the_lock(streams):
    read("a", 0, 5)
    with borrowed("b", 0, Stream), open_cache._streams._lock:  # held at the fork
        child = os.fork()
        if child == 0:
            try:
                read("a", 5, 5)
                fresh = streams[-1].at == 10 and len(streams) == 3
            finally:
                os._exit(0 if fresh else 1)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert read("a", 5, 1) == [5]
    assert len(streams) == 2
