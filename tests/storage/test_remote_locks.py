"""Locks of folders behind URLs, in stores with and without conditional writes."""

from __future__ import annotations

import os
import threading
import time
import warnings

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from locks_for_tests import ended
from object_store import BUCKET, object_store

from pipeline.core import paths
from pipeline.core.errors import InUseError
from pipeline.storage import blobs, folders, lock_files, locks
from pipeline.storage.lock_files import LOCK, Holder
from pipeline.storage.locks import held
from pipeline.storage.processes import Process


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
