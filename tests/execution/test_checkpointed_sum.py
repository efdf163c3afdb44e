"""Adding up partitions: each is counted once, whatever earlier tries left behind."""

from __future__ import annotations

import dataclasses
import itertools
from contextlib import nullcontext

import dask
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.cluster_settings import ClusterSettings
from pipeline.core.ranges import each, size_of
from pipeline.execution import checkpointed_sum, checkpoints
from pipeline.execution import executor as executor_module
from pipeline.execution.checkpointed_sum import Batch, Lane, batch_blocks, lane_blocks, share_out
from pipeline.execution.checkpoints import SUFFIX, Checkpoints, Piece
from pipeline.execution.executor import open_executor
from pipeline.execution.progress import SilentReporter

SILENT = SilentReporter()


class Powers:
    """Adds 2**index to every element; counts how often it is called, and fails when told to."""

    def __init__(self, fails_at=None):
        self.calls = []
        self.fails_at = fails_at

    def __call__(self, index, total):
        if len(self.calls) == self.fails_at:
            raise InterruptedError("cut short")
        self.calls.append(index)
        total += 2**index


class Watch:
    """Watches over nothing; remembers what it is told."""

    def __init__(self):
        self.told, self.stop = [], False

    def task(self):
        return nullcontext()

    def tell(self, partitions):
        self.told.append(partitions)

    def ends(self):
        return self.stop


class Counter:
    """A phase that remembers how far it is."""

    def __init__(self):
        self.done = 0

    def advance(self, partitions=1):
        self.done += partitions


@pytest.fixture(params=[False, True], ids=["in a tree", "in lanes"])
def large(request, monkeypatch):
    """Whether accumulators pass for large ones."""
    if request.param:
        monkeypatch.setattr(executor_module, "LARGE_BYTES", 0)
    return request.param


def make_kept(folder, every=1, shape=(2, 3)):
    kept = Checkpoints(folder / "sums", "this pass", shape, every)
    kept.begin()
    return kept


def add(function, count, kept=None, workers=1, shape=(2, 3)):
    """Add in threads; return the sum and how far the phase got."""
    phase = Counter()
    with open_executor(ClusterSettings(kind="threads", workers=workers)) as executor:
        total = executor.add(function, count, shape, phase, kept)
    return total, phase.done


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 19])
def test_every_partition_is_added_once(tmp_path, large, workers, count):
    for kept in (None, make_kept(tmp_path), make_kept(tmp_path / "3", every=3)):
        powers = Powers()
        total, told = add(powers, count, kept, workers)
        assert total.tolist() == [[2**count - 1] * 3] * 2
        assert sorted(powers.calls) == list(range(count))
        assert told == count


def test_large_accumulators_are_as_many_as_tasks_at_once(monkeypatch):
    monkeypatch.setattr(executor_module, "LARGE_BYTES", 0)
    made = []
    original = np.zeros
    monkeypatch.setattr(
        checkpointed_sum.np, "zeros", lambda *a, **k: made.append(a) or original(*a, **k)
    )
    add(Powers(), 50, workers=3, shape=(4,))
    assert made.count(((4,), np.int64)) == 3


@pytest.mark.parametrize("every", [1, 2, 5])
@pytest.mark.parametrize("workers", [(1, 1), (3, 1), (1, 4)], ids=str)
@pytest.mark.parametrize("after", [0, 1, 7, 12])
def test_what_is_cut_short_goes_on(tmp_path, large, every, workers, after):
    count, kept = 13, make_kept(tmp_path, every)
    first = Powers(fails_at=after)
    with pytest.raises(InterruptedError):
        add(first, count, kept, workers[0])
    again = Powers()
    total, told = add(again, count, kept, workers[1])
    assert total.tolist() == [[2**count - 1] * 3] * 2
    assert len(set(again.calls)) == len(again.calls)
    # what was in flight, and what no piece was made of yet
    assert len(again.calls) <= count - after + workers[0] * (every - 1)
    assert told == count
    third = Powers()
    assert add(third, count, kept)[0].tolist() == total.tolist()
    assert len(third.calls) <= (count % every if not large else (every - 1) * workers[1])


def test_a_batch_is_one_piece(tmp_path):
    kept = make_kept(tmp_path, every=4)
    add(Powers(), 10, kept)
    assert sorted(path.name for path in kept.folder.iterdir()) == [
        "000000-000004.sums", "000004-000008.sums", "000008-000010.sums",
    ]  # fmt: skip


def test_a_lane_keeps_one_piece(tmp_path, monkeypatch):
    monkeypatch.setattr(executor_module, "LARGE_BYTES", 0)
    kept = make_kept(tmp_path)
    for _ in range(3):
        add(Powers(), 11, kept, workers=2)
        assert len(list(kept.folder.iterdir())) == 2


@pytest.mark.parametrize("damage", ["delete", "truncate", "flip", "swap", "foreign"])
def test_partitions_of_damaged_pieces_are_counted_again(tmp_path, large, damage):
    kept, other = make_kept(tmp_path), make_kept(tmp_path / "other")
    add(Powers(), 8, kept, workers=2)
    add(lambda index, total: np.add(total, 5, out=total), 8, dataclasses.replace(
        other, identity="another"), workers=2)  # fmt: skip
    victim, neighbour, *_ = sorted(kept.folder.iterdir())
    content = bytearray(victim.read_bytes())
    held = kept.covered(victim.name.removesuffix(SUFFIX))
    if damage == "delete":
        victim.unlink()
    elif damage == "truncate":
        victim.write_bytes(content[:-1])
    elif damage == "flip":
        content[-1] ^= 128
        victim.write_bytes(content)
    elif damage == "swap":
        held = (*held, *kept.covered(neighbour.name.removesuffix(SUFFIX)))
        victim.write_bytes(neighbour.read_bytes())
        neighbour.write_bytes(content)
    else:
        victim.write_bytes(sorted(other.folder.iterdir())[0].read_bytes())
    again = Powers()
    assert (add(again, 8, kept, workers=2)[0] == 2**8 - 1).all()
    assert sorted(again.calls) == list(each(held))


def test_a_job_that_is_told_to_stop_keeps_the_total_of_each_lane(tmp_path):
    watch, powers = Watch(), Powers()
    kept = make_kept(tmp_path, every=100)
    lane = Lane(powers, watch, (2, 3), kept, "lane", (), ((0, 50),), copies=False)
    first = lane(1)
    assert kept.covered("lane") is None
    watch.stop = True
    lane(2, first)
    assert kept.covered("lane") == ((0, 2),)


def test_a_task_on_a_worker_does_not_touch_the_accumulator_that_it_is_given():
    function = lambda index, total: np.add(total, index, out=total)  # noqa: E731
    lane = Lane(function, Watch(), (3,), None, "lane", (), ((0, 20),), copies=True)
    before = np.arange(3)
    assert lane(8, before).tolist() == [7, 8, 9]
    assert before.tolist() == [0, 1, 2]


def test_a_lane_that_is_run_again_goes_on_from_its_piece(tmp_path):
    """As dask does where the worker died that held the total."""
    powers, kept = Powers(), make_kept(tmp_path)
    kept.save("given", ((20, 22),), np.full((2, 3), 3 * 2**20))
    given = (Piece("given", ((20, 22),)),)
    lane = Lane(powers, Watch(), (2, 3), kept, "lane", given, ((0, 9),), copies=True)
    total = None
    for stop in range(1, 6):
        total = lane(stop, total)
    assert powers.calls == [0, 1, 2, 3, 4]
    assert [lane(stop) for stop in range(1, 6)] == [None] * 5
    total = lane(6)
    for stop in range(7, 9):
        total = lane(stop, total)
    assert (lane.last(9, total) == 3 * 2**20 + 2**9 - 1).all()
    assert powers.calls == list(range(9))
    assert (lane.last(9) == 3 * 2**20 + 2**9 - 1).all()
    assert powers.calls == list(range(9))


def test_a_late_worker_may_write_an_older_total_over_a_lanes_piece(tmp_path):
    powers, kept = Powers(), make_kept(tmp_path)
    lane = Lane(powers, Watch(), (2, 3), kept, "lane", (), ((0, 9),), copies=True)
    older = lane(2, lane(1))
    lane(4, lane(3, older))
    assert [lane(stop) for stop in (1, 2, 3, 4)] == [None] * 4
    kept.save("lane", ((0, 2),), older)
    assert (lane(5) == 2**5 - 1).all()  # it was handed nothing, and counts 2 and 3 itself
    assert powers.calls == [0, 1, 2, 3, 2, 3, 4]


class Overtaken(Checkpoints):
    """Another worker runs the same lane, and writes its piece before and after this one reads."""

    def load(self, name):
        self.save(name, ((0, 5),), np.full(self.shape, 2**5 - 1))
        found = super().load(name)
        self.save(name, ((0, 6),), np.full(self.shape, 2**6 - 1))
        return found


def test_a_lane_that_another_worker_runs_as_well_counts_each_partition_once(tmp_path):
    powers, kept = Powers(), Overtaken(tmp_path, "this pass", (2, 3), 1)
    kept.save("lane", ((0, 1),), np.full((2, 3), 1))
    lane = Lane(powers, Watch(), (2, 3), kept, "lane", (), ((0, 9),), copies=True)
    assert lane(3) is None  # the piece had one partition, then five
    assert (lane(7) == 2**7 - 1).all()
    assert powers.calls == [5, 6]


@pytest.mark.parametrize("numbers", [((0, 3), (4, 5)), ((1, 4),), ((0, 12),), ((0, 4), (30, 31))])
def test_a_piece_that_is_not_the_lanes_is_not_gone_on_from(tmp_path, numbers):
    powers, kept = Powers(), make_kept(tmp_path)
    lane = Lane(powers, Watch(), (2, 3), kept, "lane", (), ((0, 9),), copies=False)
    kept.save("lane", numbers, np.full((2, 3), 1000))
    assert (lane(6) == 2**6 - 1).all()


@given(st.integers(0, 40), st.integers(1, 9), st.data())
def test_what_is_left_is_shared_out_evenly(count, lanes, data):
    edges = sorted(data.draw(st.sets(st.integers(0, count), max_size=6)))
    pieces = [Piece(str(a), ((a, b),)) for a, b in list(itertools.pairwise(edges))[::2]]
    shares = share_out(count, lanes, pieces)
    numbers = [number for _, mine in shares for number in each(mine)]
    held = [number for given, _ in shares for piece in given for number in each(piece.numbers)]
    assert sorted(numbers + held) == list(range(count))
    sizes = [size_of(mine) for _, mine in shares]
    assert 1 <= len(shares) <= lanes
    assert max(sizes) - min(sizes) <= 1


def test_graphs_have_a_task_a_partition_and_hold_no_data(tmp_path):
    kept = make_kept(tmp_path)
    lanes = [
        Lane(Powers(), Watch(), (5,), kept, f"lane{n}", given, numbers, copies=True)
        for n, (given, numbers) in enumerate(share_out(1000, 7, []))
    ]
    graph = lane_blocks(lanes, "name").__dask_graph__()
    assert len(graph) == 1000
    batches = Batch(Powers(), Watch(), (5,), 1000, 3, kept)
    assert len(batch_blocks(batches, "name").__dask_graph__()) == 334
    for task in dict(graph).values():
        assert not any(isinstance(part, np.ndarray) for part in task)


# any course of events ------------------------------------------------------------------------


class Try:
    """One try in lanes, worked off task by task in an order that a test chooses.

    It is dask in small: tasks run once what they are handed is there, anywhere, more than once;
    what a worker holds is lost with it and made again.
    """

    def __init__(self, kept, count, number, lanes):
        self.powers = Powers()
        shares = share_out(count, lanes, kept.find(count))
        self.lanes = [
            Lane(self.powers, Watch(), kept.shape, kept, f"{number}-{lane}", *share, copies=True)
            for lane, share in enumerate(shares)
        ]
        self.left = [number for lane in self.lanes for number in each(lane.numbers)]
        self.held = [(0, None) for _ in self.lanes]  # how far each is, and what was handed on

    def step(self, number):
        """Run the next task of a lane, if there is one."""
        lane, (done, total) = self.lanes[number], self.held[number]
        size = size_of(lane.numbers)
        if done + 1 < size:
            self.held[number] = done + 1, lane(done + 1, total)
        elif not self.is_done(number):
            self.held[number] = max(size, 1), lane.last(size, total)[0]

    def is_done(self, number):
        return self.held[number][0] >= max(size_of(self.lanes[number].numbers), 1)

    def lose(self, number):
        """End the worker that holds what a lane has."""
        self.held[number] = 0, None

    def finish(self):
        """Run all that is left, and add up."""
        for number in range(len(self.lanes)):
            while not self.is_done(number):
                self.step(number)
        return sum(total for _, total in self.held)


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("step"), st.integers(0, 9), st.integers(0, 9)),
        st.tuples(st.just("step"), st.just(-1), st.integers(0, 9)),
        st.tuples(st.just("step"), st.just(-1), st.integers(0, 9)),
        st.tuples(st.just("lose"), st.just(-1), st.integers(0, 9)),
        st.tuples(st.just("kill"), st.integers(1, 5), st.just(0)),
        st.tuples(st.sampled_from(["delete", "truncate", "flip"]), st.integers(0, 9), st.just(0)),
        st.tuples(st.just("swap"), st.integers(0, 9), st.integers(0, 9)),
    ),
    max_size=60,
)


def damage(kept, kind, one, other):
    """Damage a file of the folder, or swap two."""
    found = sorted(kept.folder.iterdir())
    if not found:
        return
    victim, second = found[one % len(found)], found[other % len(found)]
    content = bytearray(victim.read_bytes())
    if kind == "delete":
        victim.unlink()
    elif kind == "truncate":
        victim.write_bytes(content[: len(content) // 2])
    elif kind == "flip":
        content[len(content) * one // 10] ^= 4
        victim.write_bytes(content)
    else:
        victim.write_bytes(second.read_bytes())
        second.write_bytes(content)


@settings(max_examples=150)
@given(
    count=st.integers(1, 24), every=st.integers(1, 4), first=st.integers(1, 5), events=EVENTS,
    last=st.integers(1, 6),
)  # fmt: skip
def test_any_course_of_tries_counts_each_partition_once(
    tmp_path_factory, count, every, first, events, last
):
    """Tries are killed; their workers write on; workers die; pieces are damaged; lanes change."""
    kept = make_kept(tmp_path_factory.mktemp("tries"), every, shape=(2,))
    tries = [Try(kept, count, 0, first)]
    for kind, one, other in events:
        if kind == "kill":
            tries.append(Try(kept, count, len(tries), one))
        elif kind in ("step", "lose"):
            # a step of an earlier try is that of a worker nobody waits for any more
            late = tries[one % len(tries)] if one >= 0 else tries[-1]
            getattr(late, kind)(other % len(late.lanes))
        else:
            damage(kept, kind, one, other)
    end = Try(kept, count, len(tries), last)
    assert end.finish().tolist() == [2**count - 1] * 2
    quiet = all(kind in ("step", "kill") for kind, *_ in events)
    if quiet:  # nothing that a piece held was counted again
        assert sorted(end.powers.calls) == sorted(end.left)


def test_the_model_of_dask_agrees_with_dask(tmp_path):
    kept = make_kept(tmp_path, 2, shape=(2,))
    model = Try(kept, 9, 0, 2)
    for lane in (0, 0, 0, 1):
        model.step(lane)
    again = Try(kept, 9, 1, 3)
    blocks = lane_blocks(again.lanes, "name").to_delayed().ravel()
    found = sum(np.asarray(block)[0] for block in dask.compute(*blocks, scheduler="sync"))
    assert found.tolist() == [2**9 - 1] * 2
    assert sorted(again.powers.calls) == sorted(again.left) == [2, 3, 4, 5, 6, 7, 8]
    assert again.finish().tolist() == [2**9 - 1] * 2
    assert checkpoints.joined(*(piece.numbers for piece in kept.find(9)))
