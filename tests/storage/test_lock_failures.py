"""Locks that no holder wrote, file systems without links, and what is held up or dies."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from locks_for_tests import ended, leave_lock, names
from sources_for_tests import NAMES, make_arrays

from pipeline.core.errors import InUseError
from pipeline.ingestion.ingest import ingest
from pipeline.sources.arrays import from_arrays
from pipeline.storage import claims, lock_files, locks, manifest
from pipeline.storage.lock_files import LOCK, Holder
from pipeline.storage.locks import held
from pipeline.storage.processes import Process, machine, this_process


def forged(**changes):
    """Return a lock that no holder wrote."""
    process = {"machine": machine(), "number": 1, "started": 1} | changes.pop("process", {})
    content = {"token": "a" * 16, "what": "run", "host": "h", "user": "u", "process": process}
    return json.dumps(content | {"since": "", "beat": 1.0} | changes).encode() + b"\n"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]\n",
        b'{"token": 3}\n',
        b"\xff\n",
        forged(token="../../../elsewhere"),
        forged(process={"number": "../self"}),
        forged(process={"number": -1}),
        forged(beat=1e9),
        forged(beat=float("nan")),
        forged(host=["h"]),
        forged(more=1),
    ],
)
def test_a_lock_that_no_holder_wrote_is_watched_before_it_is_taken(tmp_path, content, quick):
    (tmp_path / LOCK).write_bytes(content)
    said = []
    with held(tmp_path, "run", said.append):
        pass
    assert "an unknown host" in said[0]
    assert names(tmp_path) == []


def test_a_lock_cannot_steer_the_terminal(tmp_path):
    (tmp_path / LOCK).write_bytes(
        forged(host="\x1b[2J", process={"number": os.getpid(), "started": this_process().started})
    )
    with pytest.raises(InUseError, match=r"on \\x1b\[2J"), held(tmp_path, "run"):
        pass


def test_a_fork_does_not_give_back_what_its_parent_holds(tmp_path):
    script = f"""
import os
from pathlib import Path
from pipeline.storage import locks
folder = Path({str(tmp_path)!r})
with locks.held(folder, "run"):
    child = os.fork()
    if child:
        assert os.waitpid(child, 0)[1] == 0
        locks.check(folder)
if child:
    assert os.listdir(folder) == []
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_file_system_without_links_will_do(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with held(tmp_path, "run"):
        assert names(tmp_path) == [LOCK]
        with pytest.raises(InUseError), held(tmp_path, "run"):
            pass
    leave_lock(tmp_path, ended())
    with held(tmp_path, "run"):
        pass
    assert names(tmp_path) == []


def test_a_link_whose_answer_was_lost_is_known_by_itself(tmp_path, monkeypatch):
    link = os.link

    def lose(source, target):
        link(source, target)
        raise FileExistsError(errno.EEXIST, "a network file system asked twice")

    monkeypatch.setattr(os, "link", lose)
    with held(tmp_path, "run"):
        assert names(tmp_path) == [LOCK]
    assert names(tmp_path) == []


def test_a_full_disk_does_not_keep_a_lock(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with held(tmp_path, "run"):
        monkeypatch.setattr(Path, "write_bytes", full)
    assert names(tmp_path) == []


def test_nobody_takes_over_what_is_just_given_back(tmp_path, monkeypatch):
    remove, tried = lock_files._LocalSlots.remove, []

    def slow(slots, name):
        if name == LOCK:
            other = Holder("e" * 16, "run", "h", "u", Process("m", 1, 1), "", 1.0)
            tried.append(locks._follow(slots, [lock.holder], other))
        remove(slots, name)

    monkeypatch.setattr(lock_files._LocalSlots, "remove", slow)
    with held(tmp_path, "run") as lock:
        pass
    assert tried == [False]
    assert names(tmp_path) == []


class Killed(BaseException):
    """Stands for the end of a process."""


class Unlucky:
    """The files of a lock, seen by a process that is held up, and may die, before each step."""

    def __init__(self, slots, chance, dies):
        self._slots, self._chance, self._dies = slots, chance, dies
        self.remote = False

    def __getattr__(self, name):
        step = getattr(self._slots, name)

        def held_up(*arguments):
            time.sleep(self._chance.random() * 0.002)
            if self._chance.random() < self._dies:
                raise Killed
            return step(*arguments)

        return held_up


@pytest.mark.parametrize("seed", range(6))
def test_there_is_never_more_than_one_holder_whatever_is_held_up_or_dies(
    tmp_path, monkeypatch, seed
):
    alive, mine, inside, worst, ends = {}, threading.local(), [], [], []
    monkeypatch.setattr(lock_files, "this_process", lambda: Process("m", mine.number, 1))
    monkeypatch.setattr(Process, "lives", property(lambda self: alive[self.number]))
    monkeypatch.setattr(
        locks,
        "slots_of",
        lambda path: Unlucky(lock_files.slots_of(path), mine.chance, mine.dies),
    )

    def work(number):
        mine.number, mine.chance = number, random.Random(100 * seed + number)
        mine.dies = 0.04 if number else 0  # one lives on
        alive[number], done = True, 0
        try:
            while done < 4:
                with suppress(InUseError), held(tmp_path, "run"):
                    inside.append(number)
                    living = [other for other in inside if alive[other]]
                    worst.append(len(living))
                    time.sleep(mine.chance.random() * 0.002)
                    if mine.chance.random() < 2 * mine.dies:
                        alive[number] = False
                        raise Killed
                    inside.remove(number)
                    done += 1
        except Killed:
            alive[number] = False
        ends.append(number)

    def release(self, give_back=locks.Lock.release):
        if alive[mine.number]:
            give_back(self)
        else:
            self._done.set()
            if locks._held.get(locks._key(tmp_path)) is self:  # a process that is gone holds none
                del locks._held[locks._key(tmp_path)]

    monkeypatch.setattr(locks.Lock, "release", release)
    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(ends) == [0, 1, 2, 3]
    assert set(worst) == {1}


def test_what_a_lock_is_made_of_is_known(tmp_path):
    assert locks.is_lock(LOCK)
    assert locks.is_lock(f"{LOCK}.0123456789abcdef")
    assert not locks.is_lock("deep/.lock")
    assert not locks.is_lock(".lockers")
    assert not any(locks.is_lock(name) for name in (manifest.MANIFEST, manifest.WORK))
    with held(tmp_path, "run"):
        assert claims.start(tmp_path, manifest.RUN, {"a": 1}) is None


def test_what_a_holder_could_not_remove_is_put_away_when_the_folder_is_finished(
    tmp_path, monkeypatch
):
    remove, failing = lock_files._LocalSlots.remove, [1, 1]

    def fail_twice(slots, name):
        if name != LOCK and failing:
            failing.pop()
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        remove(slots, name)

    monkeypatch.setattr(lock_files._LocalSlots, "remove", fail_twice)
    with held(tmp_path, "run"):
        pass
    (note,) = names(tmp_path)  # nobody follows the lock that it belongs to
    assert note.startswith(f"{LOCK}.")
    kept = [f"{LOCK}.txt", f"{LOCK}.0123456789ABCDEF", f"{note}.partial"]
    for name in (*kept, f"{LOCK}.{'b' * 16}.beat"):
        (tmp_path / name).write_bytes(b"")
    with held(tmp_path, "run") as lock:
        mine = f"{LOCK}.{lock.holder.token}.beat"
        (tmp_path / mine).write_bytes(b"")
        locks.put_away(tmp_path)
        assert names(tmp_path) == sorted([LOCK, mine, *kept])
    locks.put_away(tmp_path)  # held by nobody: nothing is touched
    assert names(tmp_path) == sorted([mine, *kept])


def test_a_finished_store_is_rid_of_them_by_the_same_command(tmp_path):
    path = tmp_path / "s"
    for left in (None, ".lock.0123456789abcdef", ".lock.0123456789abcdef.beat"):
        if left:
            (path / left).write_bytes(b"{}")
        ingest(from_arrays(make_arrays({"train": 3}), NAMES), path)
        assert not [name for name in names(path) if locks.is_lock(name)]
