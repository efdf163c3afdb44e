"""One writer a folder: who wins, who is told what, and what becomes of a dead holder's lock."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
from locks_for_tests import ended, leave_lock, names, steal

from pipeline.core.errors import InUseError
from pipeline.execution import signals
from pipeline.storage import locks, manifest
from pipeline.storage.lock_files import LOCK, Holder
from pipeline.storage.locks import held
from pipeline.storage.processes import Process, this_process


def test_a_folder_is_held_by_one_and_free_again_at_the_end(tmp_path):
    folder = tmp_path / "new" / "run"
    with held(folder, "run"):
        assert names(folder) == [LOCK]
        with pytest.raises(InUseError), held(folder, "run"):
            pass
        with held(tmp_path / "new" / "other", "run"):
            pass
        assert names(folder) == [LOCK]
    assert names(folder) == []
    with held(folder, "run"):
        pass


@pytest.mark.parametrize("failure", [ValueError("x"), OSError(errno.EIO, "x"), KeyboardInterrupt()])
def test_a_failure_gives_the_lock_back_and_passes_unchanged(tmp_path, failure):
    with pytest.raises(type(failure)) as caught, held(tmp_path, "run"):
        raise failure
    assert caught.value is failure
    assert names(tmp_path) == []


def test_the_other_is_told_who_holds_it_where_and_for_how_long_and_what_to_do(tmp_path, child):
    one = child()
    assert one.ask("take", tmp_path) == "done"
    with pytest.raises(InUseError) as caught, held(tmp_path, "run"):
        pass
    message, record = str(caught.value), json.loads((tmp_path / LOCK).read_text().split("\n")[0])
    assert str(tmp_path) in message
    assert f"process {one.process.pid} of {record['user']} on {record['host']}" in message
    assert re.search(rf"\(run, since {re.escape(record['since'])}, for \d+ s\)", message)
    assert "wait until it has ended" in message
    assert caught.value.exit_code == 4
    assert isinstance(caught.value, BlockingIOError)


@pytest.mark.parametrize(
    ("seconds", "value", "unit"),
    [(0, 0, "s"), (99, 99, "s"), (150, 2, "min"), (7200, 2, "h"), (200_000, 2, "d")],
)
def test_the_age_of_a_lock_is_short_to_read(seconds, value, unit):
    since = time.gmtime(time.time() - seconds)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", since)
    age = Holder("t", "run", "h", "u", Process("", 1, 1), stamp, 1.0).age
    assert age in {f"{value + late} {unit}" for late in range(10)}
    assert Holder("t", "run", "h", "u", Process("", 1, 1), "?", 1.0).age == "an unknown time"


def test_of_two_processes_at_once_exactly_one_wins_twenty_times(tmp_path, child):
    pair = [child(), child()]
    for number in range(20):
        folder = tmp_path / str(number)
        for one in pair:
            one.begin("take", folder)
        answers = [one.answer() for one in pair]
        assert sorted(answer.split()[0] for answer in answers) == ["done", "refused"]
        winner = pair[answers.index("done")]
        assert f"process {winner.process.pid} " in max(answers)
        for one in pair:
            assert one.ask("leave") == "done"
        assert names(folder) == []


def test_of_many_processes_exactly_one_takes_over_a_dead_holders_lock(tmp_path, child):
    group, gone = [child() for _ in range(4)], ended()
    for number in range(12):
        folder = tmp_path / str(number)
        leave_lock(folder, gone)
        for one in group:
            one.begin("take", folder)
        answers = [one.answer() for one in group]
        assert sum(answer.startswith("done") for answer in answers) == 1
        assert sum("took over the lock of process" in answer for answer in answers) == 1
        for one in group:
            one.ask("leave")
        assert names(folder) == []


def test_the_lock_of_a_killed_process_is_taken_over_and_that_is_said(tmp_path, child):
    one, said = child(), []
    assert one.ask("take", tmp_path) == "done"
    one.kill()
    with held(tmp_path, "run", said.append):
        assert names(tmp_path) == [LOCK]
    (line,) = said
    assert line.startswith(f"took over the lock of process {one.process.pid} of ")
    assert line.endswith(", which is gone")
    assert names(tmp_path) == []


def test_a_killed_process_that_nobody_waited_for_is_gone(tmp_path, child):
    one = child()
    one.ask("take", tmp_path)
    one.process.kill()
    deadline = time.monotonic() + 30
    while "State:\tZ" not in Path(f"/proc/{one.process.pid}/status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with held(tmp_path, "run"):
        pass


def test_a_process_with_the_number_of_the_holder_is_not_the_holder(tmp_path):
    me = this_process()
    assert me.lives
    leave_lock(tmp_path, Process(me.machine, me.number, me.started - 1))
    with held(tmp_path, "run"):
        pass
    leave_lock(tmp_path, me)
    with pytest.raises(InUseError), held(tmp_path, "run"):
        pass


def test_a_suspended_process_of_this_machine_keeps_its_lock(tmp_path, child, quick):
    one = child()
    one.ask("take", tmp_path)
    one.process.send_signal(signal.SIGSTOP)
    with pytest.raises(InUseError), held(tmp_path, "run"):
        pass


def test_a_holder_on_another_machine_lives_while_its_beat_goes_on(tmp_path, child):
    one, said = child("another machine"), []
    assert one.ask("take", tmp_path) == "done"
    with pytest.raises(InUseError, match="is in use by process"), held(tmp_path, "r", said.append):
        pass
    assert "watching" in said[0]
    one.kill()
    said.clear()
    with held(tmp_path, "run", said.append):
        pass
    assert ["took over" in line for line in said] == [False, True]
    assert names(tmp_path) == []


def test_a_holder_on_another_machine_is_not_watched_where_there_is_no_time(tmp_path):
    leave_lock(tmp_path, Process("another machine", 1, 1), beat=600)
    with (
        pytest.raises(InUseError, match="process 1 of ada on node7"),
        held(tmp_path, "", wait=False),
    ):
        pass
    assert names(tmp_path) == [LOCK]


def test_a_holder_that_was_suspended_for_too_long_finds_its_lock_taken(tmp_path, child, quick):
    one = child("another machine")
    one.ask("take", tmp_path)
    assert one.ask("check", tmp_path) == "done"
    one.process.send_signal(signal.SIGSTOP)
    with held(tmp_path, "run"):
        one.process.send_signal(signal.SIGCONT)
        answer = one.ask("check", tmp_path)
        assert answer.startswith("refused")
        assert f"was taken over by process {os.getpid()} of" in answer
        assert one.ask("leave") == "done"
        locks.check(tmp_path)  # the other gave nothing back that it had not
        assert names(tmp_path) == [LOCK]
    assert names(tmp_path) == []


def test_a_folder_that_another_took_over_is_not_finished(tmp_path):
    def work():
        with held(tmp_path, "run"):
            steal(tmp_path)
            manifest.write_manifest(tmp_path, manifest.RUN, {"files": {}, "arrays": {}})

    with pytest.raises(InUseError, match="process 77 of ada on node7"):
        work()
    assert names(tmp_path) == [LOCK]


def test_a_job_whose_lock_was_taken_stops_at_the_next_beat(tmp_path, quick):
    def work():
        with held(tmp_path, "run") as lock:
            assert not signals.is_requested()
            steal(tmp_path)
            deadline = time.monotonic() + 30
            while not lock.lost:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            signals.stop_if_requested()

    with pytest.raises(InUseError, match="process 77"):
        work()
    assert not signals.is_requested()
    assert names(tmp_path) == [LOCK]


def test_what_fails_after_a_lock_was_taken_is_put_down_to_that(tmp_path):
    def work():
        with held(tmp_path, "run"):
            steal(tmp_path)
            with suppress(InUseError):
                locks.check(tmp_path)
            raise FileNotFoundError("what the other has tidied up")

    with pytest.raises(InUseError, match="process 77"):
        work()


def test_a_lock_put_aside_that_a_holder_swept_away_is_made_again(tmp_path, monkeypatch):
    link, swept = os.link, []

    def sweep_before(aside, target):
        if not swept:
            swept.append(Path(aside).unlink())
        link(aside, target)

    monkeypatch.setattr(os, "link", sweep_before)
    with held(tmp_path, "run"):
        assert names(tmp_path) == [LOCK]
    assert swept
    assert names(tmp_path) == []


@pytest.mark.parametrize("follows", [False, True])
@pytest.mark.parametrize("fails", ["unlink", "read_bytes", "replace"])
def test_a_failure_over_taking_a_lock_leaves_none_in_the_way_of_this_process(
    tmp_path, monkeypatch, fails, follows
):
    if follows:
        leave_lock(tmp_path, ended())
    original, failed = getattr(Path, fails), []

    def fail_once(path, *arguments, **keywords):
        if not failed and (fails == "unlink" or (tmp_path / LOCK).exists()):
            failed.append(path)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return original(path, *arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(Path, fails, fail_once)
        with suppress(OSError), held(tmp_path, "run"):
            pass
    with held(tmp_path, "run"):
        assert LOCK in names(tmp_path)
    assert [name for name in names(tmp_path) if not name.endswith(".partial")] == []
