"""Requests that fail for a while are tried again; what does not pass is one error."""

from __future__ import annotations

import errno

import pytest
from stores_for_tests import memory, put

from pipeline.core.errors import RemoteError, StoreError
from pipeline.storage import atomic, blobs


class Answer(Exception):
    """What libraries for URLs raise: an error with a status."""

    def __init__(self, status):
        super().__init__(f"status {status}")
        self.status = status


@pytest.mark.parametrize(
    "failure",
    [OSError(errno.EIO, "io"), ConnectionResetError("reset"), TimeoutError("late"),
     Answer(500), Answer(503), Answer(429), Answer(408), RuntimeError("?")],
    ids=repr,
)  # fmt: skip
@pytest.mark.parametrize("times", [1, blobs.TRIES - 1])
def test_what_may_pass_is_tried_again_with_growing_pauses(failure, times, pauses):
    left = [failure] * times

    def call(value):
        if left:
            raise left.pop()
        return value

    assert blobs.tried("s3://bucket/a", call, 7) == 7
    assert len(pauses) == times
    assert pauses == sorted(pauses)
    assert len(set(pauses)) == times


def test_what_does_not_pass_is_one_error_after_all_tries(pauses):
    calls = []

    def call():
        calls.append(1)
        raise OSError(errno.EIO, "the network is down")

    with pytest.raises(RemoteError, match=r"s3://bucket/a: .*network is down.*run the command"):
        blobs.tried("s3://bucket/a", call)
    assert len(calls) == blobs.TRIES
    assert len(pauses) == blobs.TRIES - 1


def test_pauses_differ_by_chance_and_others_retries_are_left_alone(pauses):
    def call():
        raise OSError(errno.EIO, "the network is down")

    for _ in range(2):
        with pytest.raises(RemoteError):
            blobs.tried("s3://bucket/a", call)
    assert len(set(pauses)) == 2 * (blobs.TRIES - 1)
    pauses.clear()
    with pytest.raises(RemoteError):
        blobs.tried("gs://bucket/a", call)
    assert not pauses


@pytest.mark.parametrize(("failure", "kind", "match"), [
    (FileNotFoundError("a"), FileNotFoundError, "a"),
    (PermissionError("Forbidden"), RemoteError, r"refused \(Forbidden\); give storage_options"),
    (Answer(403), RemoteError, "refused"),
    (Answer(401), RemoteError, "refused"),
    (Answer(400), RemoteError, "status 400"),
    (ValueError("bad"), RemoteError, "correct the URL or storage_options"),
    (ImportError("no s3fs"), RemoteError, "pip install s3fs"),
    (StoreError("ours"), StoreError, "ours"),
], ids=repr)  # fmt: skip
def test_what_will_not_pass_is_not_tried_again(failure, kind, match, pauses):
    calls = []

    def call():
        calls.append(1)
        raise failure

    with pytest.raises(kind, match=match):
        blobs.tried("s3://bucket/a", call)
    assert calls == [1]
    assert pauses == []


def test_a_place_that_cannot_be_written_to_is_named(monkeypatch):
    path = memory()

    def fail(*_, **__):
        raise FileNotFoundError("no such bucket")

    monkeypatch.setattr(type(path.fs), "pipe_file", fail)
    monkeypatch.setattr(type(path.fs), "put_file", fail)
    with pytest.raises(RemoteError, match="no such place to write to"):
        atomic.write_json(path / "a.json", {})
    with pytest.raises(RemoteError, match="no such place to write to"):
        blobs.put_bytes(path / "a", b"")


def test_an_open_file_is_read_at_any_place(folder):
    put(folder / "x", bytes(range(256)) * 1000)
    with blobs.open_binary(folder / "x") as file:
        assert file.read(3) == b"\x00\x01\x02"
        assert file.seek(-2, 2) == file.tell() == 255_998
        assert file.read() == b"\xfe\xff"
        assert file.seek(256) == 256
        assert file.read() == bytes(range(256)) * 999
        assert file.read() == b""
    assert file.closed
    with pytest.raises(FileNotFoundError):
        blobs.open_binary(folder / "nothing")


def test_an_open_file_is_tried_again_and_fails_as_one_error(pauses):
    path = memory() / "x"
    put(path, b"0123456789")
    failures = [Answer(503), OSError(errno.EIO, "io")]

    class Weather:
        """A file that fails now and then."""

        def __init__(self, file):
            self.file = file

        def read(self, size):
            if failures:
                raise failures.pop()
            return self.file.read(size)

        def __getattr__(self, name):
            return getattr(self.file, name)

    file = blobs._RemoteFile(path, Weather(path.fs.open(path.path, "rb")))
    assert file.read(4) == b"0123"
    assert len(pauses) == 2
    failures[:] = [Answer(403)]
    with pytest.raises(RemoteError, match=r"memory://.*access was refused"):
        file.read(4)
    assert file.read() == b"456789"
