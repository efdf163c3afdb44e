"""Files that are whole or absent, and what a full disk looks like."""

from __future__ import annotations

import errno
import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.core.errors import InputError, PixsimError, StorageFullError
from pipeline.storage import atomic, passing_files
from pipeline.storage.atomic import read_json, replaced, storage_errors, write_json

OLD = "what was there before"


@pytest.fixture
def target(tmp_path):
    path = tmp_path / "result.txt"
    path.write_text(OLD)
    return path


def fail_half_way(path, failure):
    with replaced(path) as aside:
        aside.write_text("half")
        raise failure


def names(folder):
    return sorted(item.name for item in folder.iterdir())


def test_a_file_appears_whole_under_its_name_and_nothing_beside_it(tmp_path):
    path = tmp_path / "new" / "folders" / "result.bin"
    with replaced(path) as aside:
        aside.write_bytes(b"\x00\xff" * 1000)
    assert path.read_bytes() == b"\x00\xff" * 1000
    assert names(path.parent) == ["result.bin"]


def test_large_files_that_are_flushed_later_are_on_their_way_at_once(tmp_path, monkeypatch):
    begun = []
    real = atomic.begin_flush

    def begin(number):
        begun.append(os.fstat(number).st_size)
        real(number)

    monkeypatch.setattr(atomic, "begin_flush", begin)
    sizes = (10, atomic._LARGE - 1, atomic._LARGE, 3 * atomic._LARGE)
    for lasting, size in itertools.product((True, False), sizes):
        path = tmp_path / f"{lasting}-{size}"
        atomic.write_pieces(path, [bytes(size - 3), b"end"], lasting=lasting)
        assert path.read_bytes() == bytes(size - 3) + b"end"
    assert begun == [atomic._LARGE, 3 * atomic._LARGE]


def test_a_system_that_cannot_begin_to_flush_writes_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(passing_files, "_system_library", object)
    atomic.write_pieces(tmp_path / "a", [bytes(2 * atomic._LARGE)], lasting=False)
    assert (tmp_path / "a").read_bytes() == bytes(2 * atomic._LARGE)


def test_a_reader_sees_the_old_content_until_the_new_one_is_whole(target):
    with replaced(target) as aside:
        assert aside != target
        assert aside.parent == target.parent  # else the rename would be a copy
        aside.write_text("half")
        assert target.read_text() == OLD
        aside.write_text("whole")
        assert target.read_text() == OLD
    assert target.read_text() == "whole"


@pytest.mark.parametrize(
    "failure", [ValueError("wrong"), KeyboardInterrupt(), OSError(errno.EIO, "bad sector")]
)
def test_a_failure_inside_leaves_the_old_file_and_nothing_half_written(target, failure):
    with pytest.raises(type(failure)) as caught:
        fail_half_way(target, failure)
    assert caught.value is failure
    assert target.read_text() == OLD
    assert names(target.parent) == ["result.txt"]


def test_a_failure_inside_leaves_no_file_where_there_was_none(tmp_path):
    with pytest.raises(ZeroDivisionError):
        fail_half_way(tmp_path / "new.txt", ZeroDivisionError())
    assert names(tmp_path) == []


def test_two_writers_of_one_file_do_not_disturb_each_other(target):
    with replaced(target) as first:
        first.write_text("first")
        with replaced(target) as second:
            assert second != first
            second.write_text("second")
        assert target.read_text() == "second"
    assert target.read_text() == "first"
    assert names(target.parent) == ["result.txt"]


def write_and_die(*paths):
    """Begin to write files in a process that is killed meanwhile."""
    script = """
import os, signal, sys
from contextlib import ExitStack
from pathlib import Path
from pipeline.storage.atomic import replaced
with ExitStack() as stack:
    for path in sys.argv[1:]:
        stack.enter_context(replaced(Path(path))).write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script, *map(str, paths)])
    assert done.returncode == -signal.SIGKILL


def partials(folder):
    return [item for item in folder.rglob("*") if item.name.endswith(atomic.PARTIAL_SUFFIX)]


@pytest.fixture
def store(tmp_path):
    """A store with arrays whose chunks lie in folders of their own, and tables in one."""
    folder = tmp_path / "store"
    for name in ("a", "group/b"):
        (folder / name / "c" / "0" / "7").mkdir(parents=True)
        (folder / name / "zarr.json").write_text("{}")
    (folder / "tables").mkdir()
    return folder


CHUNKS = ("a/c/0/7/0", "group/b/c/3")


def test_what_a_killed_writer_left_is_swept_wherever_it_wrote(store):
    targets = [store / name for name in (*CHUNKS, "tables/part-3.parquet", "zarr.json")]
    write_and_die(*targets)
    assert len(partials(store)) == len(targets)
    assert not any(target.exists() for target in targets)
    with replaced(targets[0]) as aside:
        aside.write_text("whole")
        atomic.sweep(store, only_dead=True)
        assert [*partials(store)] == [aside]  # of a process that lives
    assert targets[0].read_text() == "whole"
    assert not partials(store)


def test_a_sweep_looks_into_no_folder_of_chunks(store, monkeypatch):
    seen, walk = [], os.walk

    def spy(path, **settings):
        for found in walk(path, **settings):
            seen.append(Path(found[0]).relative_to(store).as_posix())
            yield found

    monkeypatch.setattr(os, "walk", spy)
    atomic.sweep(store)
    assert sorted(seen) == [".", "a", "group", "group/b", "tables"]


def test_chunks_are_put_aside_in_the_folder_of_their_array_and_other_files_beside_themselves():
    def folder(name):
        return atomic.aside_of(Path(name)).parent.as_posix()

    assert folder("s/a/c/0/7/0") == "s/a"
    assert folder("s/a/c/0") == "s/a"
    assert folder("s/c/c/0/7") == "s/c"
    assert folder("s/a/zarr.json") == "s/a"
    assert folder("s/12/7") == "s/12"
    assert folder("c/part-000012.parquet") == "c"


@pytest.mark.parametrize(
    "name",
    [
        "x.partial",
        "zarr.0123456789abcdef0123456789abcdef.partial",
        "x.somewhere-7-8-00ff.partial",
        "x.a-b-c-d.partial",
        "x.unknown-7-0-00ff.partial",
    ],
)
def test_what_cannot_be_told_to_be_of_a_dead_process_stays_until_the_folder_is_finished(
    tmp_path, name
):
    (tmp_path / name).write_text("half")
    atomic.sweep(tmp_path, only_dead=True)
    assert names(tmp_path) == [name]
    atomic.sweep(tmp_path)
    assert names(tmp_path) == []


def test_content_is_flushed_to_the_disk_before_it_gets_its_name(target, monkeypatch):
    seen = []
    fsync = os.fsync

    def spy(descriptor):
        seen.append(target.read_text())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", spy)
    with replaced(target) as aside:
        aside.write_text("whole")
    assert seen == [OLD]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_named_with_the_path_the_reason_and_the_cure(target, code):
    with pytest.raises(StorageFullError) as caught:
        fail_half_way(target, OSError(code, os.strerror(code)))
    message = str(caught.value)
    assert str(target) in message
    assert os.strerror(code) in message
    assert "free some space" in message
    assert isinstance(caught.value.__cause__, OSError)
    assert target.read_text() == OLD
    assert names(target.parent) == ["result.txt"]


def test_a_disk_that_is_full_only_when_flushed_is_noticed(target, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageFullError), replaced(target) as aside:
        aside.write_text("whole, but only in memory")
    assert target.read_text() == OLD
    assert names(target.parent) == ["result.txt"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
def test_what_the_kernel_says_of_a_full_device_is_understood():
    with (
        pytest.raises(StorageFullError, match="/dev/full"),
        storage_errors("/dev/full"),
        Path("/dev/full").open("wb", buffering=0) as file,
    ):
        file.write(b"x")


def test_a_full_disk_is_a_failed_job_and_an_os_error_not_a_wrong_input():
    assert issubclass(StorageFullError, PixsimError)
    assert issubclass(StorageFullError, OSError)
    assert not issubclass(StorageFullError, InputError)
    assert StorageFullError.exit_code == 1


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.ENOENT, errno.EROFS])
def test_other_errors_of_the_system_pass_unchanged(code):
    failure = OSError(code, os.strerror(code))
    with pytest.raises(OSError, match=r".") as caught, storage_errors("somewhere"):
        raise failure
    assert caught.value is failure


def test_json_comes_back_as_it_was_written(tmp_path):
    content = {"name": "Größe 字", "n": [1, -2, 0.1, None, True], "deep": {"a": {"b": []}}}
    write_json(tmp_path / "a.json", content)
    assert read_json(tmp_path / "a.json") == content
    assert json.loads((tmp_path / "a.json").read_bytes()) == content


@pytest.mark.parametrize("content", [{"x": float("nan")}, {"x": float("inf")}, {"x": object()}])
def test_what_is_not_json_is_refused_and_the_old_file_stays(tmp_path, content):
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})
    with pytest.raises((ValueError, TypeError)):
        write_json(path, content)
    assert read_json(path) == {"x": 1}
    assert names(tmp_path) == ["a.json"]
