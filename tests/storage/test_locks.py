"""One writer a folder: who wins, who is told what, and what becomes of a dead holder's lock."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from contextlib import suppress
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from object_store import BUCKET, object_store
from sources_for_tests import NAMES, make_arrays

from pipeline.core import paths
from pipeline.core.errors import InUseError
from pipeline.execution import signals
from pipeline.ingestion.ingest import ingest
from pipeline.sources.arrays import from_arrays
from pipeline.storage import blobs, claims, folders, lock_files, locks, manifest
from pipeline.storage.lock_files import LOCK, Holder
from pipeline.storage.locks import held
from pipeline.storage.processes import Process, machine, this_process

CHILD = """
import sys
from contextlib import ExitStack
from pipeline.core import paths
from pipeline.storage import locks, processes
from pipeline.core.errors import InUseError
if len(sys.argv) > 1:
    processes.machine = lambda: sys.argv[1]
    locks.BEAT_SECONDS = locks.REMOTE_BEAT_SECONDS = 0.05
stack = ExitStack()
for line in sys.stdin:
    verb, _, place = line.strip().partition(" ")
    said = []
    try:
        if verb == "take":
            stack.enter_context(locks.held(paths.locate(place), "run", said.append))
        elif verb == "check":
            locks.check(paths.locate(place))
        else:
            stack.close()
        print("done", *said, flush=True)
    except InUseError as error:
        print("refused", error, flush=True)
"""


class Child:
    """A process that takes locks and gives them back, as it is told."""

    def __init__(self, elsewhere=""):
        arguments = [elsewhere] if elsewhere else []
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def begin(self, verb, place=""):
        self.process.stdin.write(f"{verb} {place}\n")
        self.process.stdin.flush()

    def answer(self):
        return self.process.stdout.readline().strip()

    def ask(self, verb, place=""):
        self.begin(verb, place)
        return self.answer()

    def kill(self):
        self.process.kill()
        self.process.wait()


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


def names(folder):
    return sorted(item.name for item in folder.iterdir())


def ended():
    """Return a process of this machine that has ended."""
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return Process(machine(), done.pid, 1)


def leave_lock(folder, process, beat=0.03, token="0123456789abcdef"):
    """Leave the lock of a process in a folder."""
    folder.mkdir(exist_ok=True)
    holder = Holder(token, "run", "node7", "ada", process, "2026-01-02T03:04:05+00:00", beat)
    (folder / LOCK).write_bytes(holder.to_bytes() + b"000000000000\n")
    return holder


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


def steal(folder):
    """Take a lock over as a process does that took this one for dead."""
    return leave_lock(folder, Process("another machine", 77, 1), token="f" * 16)


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


@pytest.fixture(scope="module")
def s3():
    """A bucket on a server in this process: its weather, and a folder to make folders in."""
    with object_store() as (weather, options):
        files = fsspec.filesystem("s3", **options, skip_instance_cache=True)
        files.mkdir(BUCKET)
        yield weather, lambda name: paths.locate(f"s3://{BUCKET}/{name}", options)


class Forgetful(MemoryFileSystem):
    """A store that does not look at the conditions of a write."""

    protocol = "forgetful"
    store, pseudo_dirs = {}, [""]

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(str(path).replace("forgetful://", "memory://"))

    async def _pipe_file(self, *_, **__):
        raise AssertionError

    def pipe_file(self, path, value, mode="overwrite", **keywords):
        super().pipe_file(path, value, **keywords)


@pytest.fixture
def remote(request, s3, monkeypatch, tmp_path):
    """A folder behind a URL, of each kind of store."""
    kind, name = request.param, tmp_path.name
    if kind == "s3":
        return s3[1](name)
    if kind == "memory":
        return paths.locate(f"memory://{name}")
    fsspec.register_implementation("forgetful", Forgetful, clobber=True)
    monkeypatch.setattr(lock_files, "SETTLE_SECONDS", 0.3)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*not explicitly implemented", UserWarning)
        return paths.locate(f"forgetful://{name}")


every_kind = pytest.mark.parametrize("remote", ["s3", "memory", "forgetful"], indirect=True)


@every_kind
def test_behind_a_url_one_holds_a_folder_too(remote):
    with held(remote, "run"):
        assert folders.list_folder(remote) == [LOCK]
        with pytest.raises(InUseError, match=f"process {os.getpid()} of"), held(remote, "run"):
            pass
        locks.check(remote)
    assert folders.files_below(remote) == []


@every_kind
def test_behind_a_url_of_several_at_once_one_wins_and_takes_over(remote):
    gone, wins, refused = ended(), [], []
    for left in (False, True):
        if left:
            holder = Holder("a" * 16, "run", "h", "u", gone, "", 0.03)
            blobs.put_bytes(remote / LOCK, holder.to_bytes())
            blobs.put_bytes(remote / f"{LOCK}.{holder.token}.beat", b"000000000007")
        together, over = threading.Barrier(3), threading.Barrier(3)

        def work(together=together, over=over):
            together.wait()
            try:
                with held(remote, "run"):
                    wins.append(1)
                    over.wait(120)
            except InUseError:
                refused.append(1)
                over.wait(120)

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(240)
    assert (len(wins), len(refused)) == (2, 4)
    assert folders.files_below(remote) == []


@every_kind
def test_behind_a_url_the_beat_of_another_machine_is_watched(remote, quick):
    process = Process("another machine", 7, 1)
    holder = Holder("a" * 16, "run", "node7", "ada", process, "", 0.03)
    slots = lock_files.slots_of(remote)
    assert slots.create(LOCK, holder.to_bytes())
    done = threading.Event()

    def beat():
        for count in range(10**6):
            if done.wait(0.02):
                return
            assert slots.beat(holder.token, count)

    heart = threading.Thread(target=beat)
    heart.start()
    with pytest.raises(InUseError, match="process 7 of ada on node7"), held(remote, "run"):
        pass
    done.set()
    heart.join()
    with held(remote, "run") as lock:
        locks.check(remote)
        assert not slots.beat(holder.token, 99)
        deadline = time.monotonic() + 30
        while len(folders.list_folder(remote)) < 2:  # its own beat
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert not lock.lost
    assert folders.files_below(remote) == []


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


@every_kind
def test_behind_a_url_a_note_that_is_gone_takes_no_locks_place(remote):
    with held(remote, "run"):
        before = blobs.read_bytes(remote / LOCK)
        with pytest.raises(FileNotFoundError):
            lock_files.slots_of(remote).move(f"{LOCK}.{'a' * 16}", LOCK)
        assert blobs.read_bytes(remote / LOCK) == before


def test_a_lock_takes_few_requests(s3):
    weather, folder = s3
    place = folder("few")
    weather.change("ok")
    with held(place, "run"):
        taken = len(weather.requests)
    assert taken <= 3
    assert len(weather.requests) - taken <= 4


def test_a_lock_whose_answer_was_lost_is_known_by_itself(s3):
    slots = lock_files.slots_of(s3[1]("lost"))
    assert slots.create("a", b"mine\n")
    assert slots.create("a", b"mine\n")
    assert not slots.create("a", b"of another\n")
