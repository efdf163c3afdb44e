"""One task in several threads: everything once, and no error lost."""

from __future__ import annotations

import itertools
import threading

import pytest
from forks_for_tests import in_fork
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.threads import OwnLock, in_ranges, meanwhile, read_ahead


@given(threads=st.integers(1, 9), count=st.integers(0, 60))
def test_ranges_make_up_the_whole_and_are_equal(threads, count):
    found = []
    in_ranges(threads, count, lambda start, stop: found.append((start, stop)))
    assert [place for start, stop in sorted(found) for place in range(start, stop)] == list(
        range(count)
    )
    assert len(found) == max(1, min(threads, count))
    sizes = [stop - start for start, stop in found]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(("threads", "count", "parts"), [(1, 9, 1), (3, 9, 3), (4, 2, 2)])
def test_every_range_has_a_thread_of_its_own(threads, count, parts):
    together, idents = threading.Barrier(parts), set()

    def work(_start, _stop):
        together.wait(20)  # raises where the ranges come one after the other
        idents.add(threading.get_ident())

    in_ranges(threads, count, work)
    assert len(idents) == parts
    assert threading.get_ident() in idents


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("wrong", [0, 4, 7])
def test_an_error_in_any_range_is_raised(threads, wrong):
    def work(start, stop):
        if start <= wrong < stop:
            raise ValueError(f"range of {wrong}")

    with pytest.raises(ValueError, match=f"range of {wrong}"):
        in_ranges(threads, 8, work)
    in_ranges(threads, 8, lambda start, stop: None)  # and the threads go on


def test_several_tasks_may_use_the_same_threads_at_once():
    found, tasks = [], []
    for task in range(6):

        def run(task=task):
            in_ranges(3, 10, lambda start, stop: found.extend(
                (task, place) for place in range(start, stop)))  # fmt: skip

        tasks.append(threading.Thread(target=run))
        tasks[-1].start()
    for task in tasks:
        task.join()
    assert sorted(found) == [(task, place) for task in range(6) for place in range(10)]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 20])
@pytest.mark.parametrize("ahead", [1, 2, 5])
def test_reading_ahead_yields_all_in_order_and_never_too_far(count, ahead):
    made, taken = [], []

    def make(number):
        made.append(number)
        return number * number

    for found in read_ahead(make, count, ahead):
        taken.append(found)
        assert len(made) <= len(taken) + ahead
    assert taken == [number * number for number in range(count)]


def test_a_forked_process_has_threads_of_its_own():
    in_ranges(3, 9, lambda start, stop: None)  # now they are there
    found = []

    def child():
        in_ranges(3, 9, lambda start, stop: found.extend(range(start, stop)))
        assert sorted(found) == list(range(9))
        assert list(read_ahead(lambda number: number, 9)) == list(range(9))

    in_fork(child)
    in_ranges(3, 9, lambda start, stop: found.extend(range(start, stop)))
    assert sorted(found) == list(range(9))


def test_reading_ahead_goes_on_in_a_forked_process():
    ahead = read_ahead(lambda number: number * number, 9, 3)
    assert next(ahead) == 0

    def child():
        assert list(ahead) == [number * number for number in range(1, 9)]

    in_fork(child)
    assert next(ahead) == 1


def test_a_lock_that_was_held_at_a_fork_is_free_there():
    lock, ready, leave = OwnLock(), threading.Event(), threading.Event()

    def hold():
        with lock.held():
            ready.set()
            leave.wait(20)

    holder = threading.Thread(target=hold)
    holder.start()
    ready.wait(20)

    def child():
        with lock.held():
            pass

    try:
        in_fork(child)
    finally:
        leave.set()
        holder.join()


def test_what_fails_ahead_is_raised_in_its_place():
    found = []
    with pytest.raises(ZeroDivisionError):
        found.extend(read_ahead(lambda number: 1 / (number - 3), 9, 2))
    found = []
    for value in itertools.islice(read_ahead(lambda number: 1 / (number - 3), 9, 2), 3):
        found.append(value)
    assert found == [-1 / 3, -1 / 2, -1.0]


def test_what_is_done_meanwhile_is_done_in_order_in_another_thread():
    found, idents = [], set()

    def work(number):
        found.append(number)
        idents.add(threading.get_ident())

    with meanwhile(work, 20) as wait:
        wait()
        assert found == [*range(20)]
    assert len(idents - {threading.get_ident()}) == len(idents) == 1
    with meanwhile(work, 0) as wait:
        wait()
    assert found == [*range(20)]


def test_an_error_of_what_is_done_meanwhile_is_raised_and_nothing_more_is_begun():
    found, go_on = [], threading.Event()

    def work(number):
        found.append(number)
        go_on.wait(20)
        raise ValueError(f"number {number}")

    with meanwhile(work, 5) as wait:
        go_on.set()
        with pytest.raises(ValueError, match="number 0"):
            wait()
    assert found == [0]
    found, begun, go_on = [], threading.Event(), threading.Event()

    def long(number):
        found.append(number)
        begun.set()
        go_on.wait(0.2)

    def leave_early():
        with meanwhile(long, 5):
            begun.wait(20)
            raise KeyError("left early")

    with pytest.raises(KeyError):
        leave_early()
    assert found == [0]
