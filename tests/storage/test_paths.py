"""Places of this machine and behind URLs: the same answers from both, and no secret in texts."""

from __future__ import annotations

import errno
import glob
import json
import os
import pickle
import re
import subprocess
import sys
import uuid
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractFileSystem
from upath import UPath

from pipeline.core import errors, paths
from pipeline.core.errors import ConfigError, RemoteError, StoreError
from pipeline.core.paths import locate
from pipeline.core.urls import shown
from pipeline.sources import xarray_files
from pipeline.sources.file_names import expand
from pipeline.sources.folder import FolderReader
from pipeline.sources.notes import Notes
from pipeline.storage import (
    atomic,
    blobs,
    folders,
    image_store,
    manifest,
    store_array,
)
from pipeline.storage.folders import matching

SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfi"


@pytest.fixture(autouse=True)
def _nothing_concealed(monkeypatch):
    monkeypatch.setattr(errors, "_secrets", frozenset())


@pytest.fixture
def pauses(monkeypatch):
    """The pauses between tries, which take no time."""
    found = []
    monkeypatch.setattr(blobs.time, "sleep", found.append)
    return found


def memory():
    return locate(f"memory://tests-{uuid.uuid4().hex}")


@pytest.fixture(params=["here", "there"])
def folder(request, tmp_path):
    """A folder with files in it and in folders below, on this machine or a remote one."""
    path = tmp_path / "folder" if request.param == "here" else memory()
    for name, data in {"a.bin": b"0123456789", "b/c.txt": b"ccc", "b/d/e": b"", "bb": b"x"}.items():
        with atomic.replaced(path / name) as aside:
            aside.write_bytes(data)
    yield path
    folders.remove_tree(path)


# the same here and there ---------------------------------------------------------------------


def test_what_is_there_is_there(folder):
    for name, is_file, is_folder in (
        ("a.bin", True, False), ("b", False, True), ("b/d", False, True), ("b/d/e", True, False),
        ("c", False, False), ("a", False, False), ("b/c", False, False),
    ):  # fmt: skip
        assert folders.exists(folder / name) is (is_file or is_folder), name
        assert folders.is_folder(folder / name) is is_folder, name
    assert folders.is_folder(folder)


def test_a_folder_is_listed(folder):
    assert folders.list_folder(folder) == ["a.bin", "b", "bb"]
    assert folders.list_folder(folder / "b") == ["c.txt", "d"]
    assert folders.list_folder(folder / "nowhere") == []
    sizes = {"a.bin": 10, "b/c.txt": 3, "b/d/e": 0, "bb": 1}
    assert folders.sizes_below(folder) == sizes
    assert sorted(folders.files_below(folder)) == sorted(sizes)
    assert folders.sizes_below(folder / "nowhere") == {}


@pytest.mark.parametrize(
    ("start", "stop"), [(None, None), (0, 4), (3, 7), (4, None), (8, 100), (5, 5), (-3, None)]
)
def test_a_range_of_a_file_is_what_python_slices(folder, start, stop):
    if start is not None and start < 0 and not paths.is_remote(folder):
        pytest.skip("ends of files are read remotely only")
    assert blobs.read_bytes(folder / "a.bin", start, stop) == b"0123456789"[start:stop]


def test_a_missing_file_is_missing(folder):
    for read in (blobs.read_bytes, blobs.file_size):
        with pytest.raises(FileNotFoundError):
            read(folder / "nothing")
    assert blobs.file_size(folder / "a.bin") == 10


def test_a_tree_is_removed_and_nothing_beside_it(folder):
    folders.remove_tree(folder / "b")
    assert sorted(folders.files_below(folder)) == ["a.bin", "bb"]
    folders.remove_tree(folder / "b")  # it is gone: nothing to do
    folders.remove_tree(folder / "bb")  # a file
    assert folders.files_below(folder) == ["a.bin"]


def test_a_tree_takes_the_place_of_another(folder):
    put(folder / "new" / "c.txt", b"old")
    put(folder / "new" / "old", b"old")
    folders.replace_tree(folder / "new", folder / "b", folder / "record")
    left = {name for name in folders.files_below(folder) if name != "record"}
    assert left == {"a.bin", "bb", "new/c.txt", "new/d/e"}
    assert blobs.read_bytes(folder / "new" / "c.txt") == b"ccc"
    folders.replace_tree(folder / "new", folder / "b", folder / "record")  # it is done already
    assert {name for name in folders.files_below(folder) if name != "record"} == left


def test_a_link_to_a_folder_is_removed_and_not_what_it_leads_to(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").write_text("kept")
    (tmp_path / "link").symlink_to("real")
    folders.remove_tree(tmp_path / "link")
    assert not (tmp_path / "link").exists()
    assert (tmp_path / "real" / "file").read_text() == "kept"


def test_what_cannot_be_removed_is_an_error_once_all_else_is_gone(tmp_path, monkeypatch):
    for name in ("a/1", "b/2", "b/3", "c/4"):
        (tmp_path / "x" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "x" / name).write_bytes(b"")
    unlink = os.unlink

    def fail(path, **settings):
        if str(path).endswith("2"):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        unlink(path, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", fail)
        with pytest.raises(PermissionError):
            folders.remove_tree(tmp_path / "x")
    assert folders.files_below(tmp_path / "x") == ["b/2"]
    folders.remove_tree(tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.ENOSPC])
@pytest.mark.parametrize(
    ("ask", "fails"),
    [
        (folders.exists, "stat"),
        (folders.is_folder, "stat"),
        (folders.list_folder, "listdir"),
        (lambda path: list(folders.walk(path)), "scandir"),
        (atomic.sweep, "scandir"),
        (folders.remove_tree, "stat"),
        (manifest.kind_of, "open"),
        (image_store.is_own_store, "open"),
        (lambda path: store_array.StoreArray(path, "a")[:1], "open"),
    ],
)
def test_what_cannot_be_looked_at_is_an_error_and_not_taken_for_absent(
    tmp_path, monkeypatch, ask, fails, code
):
    def fail(path=".", *_, **__):
        raise OSError(code, os.strerror(code), str(path))

    with monkeypatch.context() as patch:
        if fails == "open":
            patch.setattr(Path, "open", fail)
        else:
            patch.setattr(os, fails, fail)
        with pytest.raises(OSError, match=re.escape(os.strerror(code))) as caught:
            ask(tmp_path)
    assert caught.value.errno == code


@pytest.mark.parametrize("below", ["nothing", "file/of"])
def test_what_is_absent_is_no_error(tmp_path, below):
    (tmp_path / "file").write_bytes(b"")
    path = tmp_path / below
    assert not folders.exists(path)
    assert not folders.is_folder(path)
    assert folders.list_folder(path) == []
    assert list(folders.walk(path)) == []
    assert manifest.kind_of(path) is None
    assert not image_store.is_own_store(path)
    atomic.sweep(path)
    folders.remove_tree(tmp_path / "nothing")


def test_json_goes_there_and_back(folder):
    content = {"name": "Größe 字", "n": [1, -2, 0.1, None, True]}
    atomic.write_json(folder / "x.json", content)
    assert atomic.read_json(folder / "x.json") == content


def test_a_failure_while_writing_leaves_what_was_there(folder):

    def write_half():
        with atomic.replaced(folder / "a.bin") as aside:
            assert not paths.is_remote(aside)
            aside.write_bytes(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_half()
    assert blobs.read_bytes(folder / "a.bin") == b"0123456789"
    assert len(folders.files_below(folder)) == 4


# which place a text names ----------------------------------------------------------------------


def test_texts_and_paths_name_places(tmp_path):
    assert locate("data/set") == Path("data/set")
    assert locate(str(tmp_path)) == locate(tmp_path) == locate(f"file://{tmp_path}") == tmp_path
    assert not paths.is_remote(locate("a:b/c"))
    remote = memory()
    assert paths.is_remote(remote)
    assert locate(remote) == remote
    assert remote.absolute() == remote


def test_a_place_travels_with_its_options():
    path = locate("memory://bucket/a", {"skip_instance_cache": True, "label": "x"})
    again = pickle.loads(pickle.dumps(path / "b"))
    assert str(again) == "memory://bucket/a/b"
    assert paths.options_of(again) == {"skip_instance_cache": True, "label": "x"}
    assert hash(again) == hash(path / "b")
    assert paths.options_of(Path("x")) == {}


@pytest.mark.parametrize(("protocol", "package"), [("gs", "gcsfs"), ("az", "adlfs")])
def test_a_missing_package_is_named_with_what_installs_it(protocol, package, monkeypatch):
    for name in ("gcsfs", "adlfs"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RemoteError, match=rf"{protocol}://.*pip install {package}"):
        locate(f"{protocol}://container/a")


def test_an_unknown_protocol_is_refused():
    with pytest.raises(RemoteError, match="nonsense://a/b"):
        locate("nonsense://a/b")


@pytest.mark.parametrize(("url", "text"), [
    ("s3://bucket/a/b", "s3://bucket/a/b"),
    ("s3://bucket/image?.png", "s3://bucket/image?.png"),
    ("https://user:pass@host:80/a?sig=x&y=z", "https://host:80/a"),
    ("https://host/a@b/c", "https://host/a@b/c"),
    ("sftp://user@host/a", "sftp://host/a"),
    ("abfs://container@account.dfs.core.windows.net/a", "abfs://container@account.dfs.core.windows.net/a"),
    ("zip://a/b.png::https://u:p@host/x.zip?token=1", "zip://a/b.png::https://host/x.zip"),
    ("data/what?/a@b", "data/what?/a@b"),
])  # fmt: skip
def test_a_place_is_shown_without_user_password_and_query(url, text):
    assert shown(url) == text


# secrets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [
    {"key": SECRET},
    {"secret": SECRET},
    {"client_kwargs": {"aws_secret_access_key": SECRET}},
    {"connection_string": f"AccountName=a;AccountKey={SECRET};EndpointSuffix=b"},
    {"headers": {"Authorization": f"Bearer {SECRET}"}},
    {"proxies": [f"http://user:{SECRET.replace('/', '%2F')}@proxy:80"]},
    {"something_new": SECRET},
])  # fmt: skip
def test_what_is_secret_of_options_is_hidden_everywhere(options, tmp_path):
    path = locate("memory://bucket/a", options)
    texts = [str(path), repr(path), repr(path / "b"), str(StoreError(f"{path}: {SECRET}"))]
    texts += [repr(ConfigError(SECRET)), errors.printable(f"a {SECRET} b"), errors.hide(SECRET)]
    atomic.write_json(tmp_path / "a.json", {"x": [SECRET, {"y": f"-{SECRET}-"}]})
    texts.append((tmp_path / "a.json").read_text())
    encoded = SECRET.replace("/", "%2F").replace("+", "%2B")
    texts.append(errors.hide(f"https://host/?q={encoded}&r={SECRET}"))
    for text in texts:
        assert SECRET not in text
        assert encoded not in text
    assert errors.hide("a b") == "a b"


def test_what_is_secret_of_a_url_is_hidden_and_its_path_is_bare():
    password = SECRET.replace("/", "%2F")
    url = f"https://somebody:{password}@host.example/a/b.zip?X-Amz-Signature=0f1e2d3c"
    path = locate(url)
    assert str(path) == "https://host.example/a/b.zip"
    text = errors.hide(f"{url} {SECRET} 0f1e2d3c somebody")
    assert not [word for word in (SECRET, "0f1e2d3c", "somebody") if word in text]
    assert "host.example/a/b.zip" in text


def test_harmless_options_and_words_stay_readable(tmp_path):
    options = {
        "endpoint_url": "http://127.0.0.1:9000", "anon": False, "token": "anon", "key": "abc",
        "client_kwargs": {"region_name": "us-east-1", "verify": True}, "secret": "test",
        "config_kwargs": {"signature_version": "s3v4", "s3": {"addressing_style": "virtual"}},
    }  # fmt: skip
    locate("memory://bucket/a?version=1234", options)
    text = "us-east-1 http://127.0.0.1:9000 anon true abc virtual s3v4 latest tests 1234"
    assert errors.hide(text) == text
    assert errors.hide("key test.") == "key ***."  # a short secret, as a whole word
    # but what is stored must stay what it is: splits are named like that
    record = {"splits": ["test", "train"], "digest": "0a" * 32}
    atomic.write_json(tmp_path / "a.json", record)
    assert atomic.read_json(tmp_path / "a.json") == record


def test_secrets_are_hidden_with_quotes_and_letters_that_json_spells_otherwise(tmp_path):
    secret = 'pass"word\\ü-long'
    locate("memory://bucket/a", {"password": secret})
    atomic.write_json(tmp_path / "a.json", {"x": f"a {secret} b"})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": "a *** b"}
    assert errors.hide(json.dumps({"x": secret})) == '{"x": "***"}'


def test_a_process_that_is_sent_a_place_hides_its_secrets_too(tmp_path):
    packed = tmp_path / "place"
    packed.write_bytes(pickle.dumps(locate("memory://bucket/a", {"secret": SECRET})))
    script = (
        "import pickle, pathlib, sys; from pipeline.core.errors import StoreError;"
        f"path = pickle.loads(pathlib.Path({str(packed)!r}).read_bytes());"
        "print(path, repr(path), StoreError(path.storage_options['secret']))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(paths.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment
    )
    assert "memory://bucket/a" in done.stdout, done.stderr
    assert SECRET not in done.stdout + done.stderr
    assert "***" in done.stdout


# failures --------------------------------------------------------------------------------------


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


def test_an_error_of_a_remote_place_shows_no_cause():
    with pytest.raises(RemoteError) as caught, paths.remote_errors("s3://bucket/a"):
        raise OSError(errno.EIO, SECRET)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


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


# what only remote places have ------------------------------------------------------------------


def put(path, data=b"data"):
    with atomic.replaced(path) as aside:
        aside.write_bytes(data)


@pytest.mark.parametrize("name", ["b", "b*", "[b]", "b?"])
def test_a_folder_that_looks_like_a_pattern_is_a_folder(folder, name):
    names = ("b", "b*", "[b]", "b?")
    for other in names:
        put(folder / other / "c" / "x")
    folders.remove_tree(folder / name)
    left = {path.partition("/")[0] for path in folders.files_below(folder)}
    assert left == {*names, "a.bin", "bb"} - {name}
    put(folder / "B" / "x", b"x")
    folders.replace_tree(folder / f"{name} moved", folder / "B", folder / "record")
    assert blobs.read_bytes(folder / f"{name} moved" / "x") == b"x"


@pytest.mark.parametrize("name", ["a", "[a]"])
@pytest.mark.parametrize("moment", ["copied in part", "removed in part"])
def test_a_replacement_that_was_cut_short_is_completed(name, moment):
    root = memory()
    put(root / name / "c" / "y", b"c/y")
    put(root / "new" / "x", b"x")
    if moment == "copied in part":
        put(root / name / "x", b"x")
    else:
        put(root / "new" / "c" / "y", b"c/y")
        put(root / "record", b"copied")
    folders.replace_tree(root / "new", root / name, root / "record")
    assert sorted(folders.files_below(root)) == ["new/c/y", "new/x", "record"]
    assert blobs.read_bytes(root / "new" / "c" / "y") == b"c/y"


def test_files_are_copied_from_anywhere_to_anywhere(folder, tmp_path):
    data = bytes(range(256))
    put(tmp_path / "x", data)
    atomic.copy_file(tmp_path / "x", folder / "new" / "y")
    atomic.copy_file(folder / "new" / "y", folder / "z")
    atomic.copy_file(folder / "z", tmp_path / "z")
    assert blobs.read_bytes(folder / "z") == (tmp_path / "z").read_bytes() == data


def test_a_path_that_the_user_made_is_taken_with_its_options():
    path = locate(UPath("memory://bucket/a", secret=SECRET, label="x"), {"label": "y"})
    assert str(path) == "memory://bucket/a"
    assert paths.options_of(path) == {"secret": SECRET, "label": "y"}
    assert errors.hide(SECRET) == "***"


def test_query_and_password_of_a_web_address_open_it_as_options():
    path = locate("https://me:p%40ss@host:81/x.tar.gz?sig=a%2Fb&n=1", {"headers": {"A": "b"}})
    assert (str(path), path.name, path.suffix) == ("https://host:81/x.tar.gz", "x.tar.gz", ".gz")
    assert paths.options_of(path) == {
        "params": "sig=a%2Fb&n=1", "headers": {"Authorization": "Basic bWU6cEBzcw==", "A": "b"},
    }  # fmt: skip
    again = pickle.loads(pickle.dumps(path.parent / "y"))
    assert str(again) == "https://host:81/y"
    assert paths.options_of(again) == paths.options_of(path)
    assert "bWU6cEBzcw==" not in errors.hide("Basic bWU6cEBzcw==")


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


# what cannot be listed -------------------------------------------------------------------------


BROKEN: set[str] = set()


@pytest.fixture
def failing(pauses, monkeypatch):
    """A place with fsspec's own searches; what `BROKEN` names cannot be listed."""

    def but_broken(function):
        def call(self, path, *arguments, **keywords):
            if self._strip_protocol(path).strip("/") in BROKEN:
                raise OSError(errno.EIO, "the network is down")
            return function(self, path, *arguments, **keywords)

        return call

    for name in ("find", "isdir", "exists"):
        monkeypatch.setattr(MemoryFileSystem, name, getattr(AbstractFileSystem, name))
    for name in ("ls", "info"):
        monkeypatch.setattr(MemoryFileSystem, name, but_broken(getattr(MemoryFileSystem, name)))
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]
    for name in ("set/a/x.png", "set/a/c/x.png", "set/b/x.png", "set/b/y.png", "set/z.tar"):
        memory.pipe_file(f"/{name}", b"1234")
    yield locate("memory://set")
    BROKEN.clear()
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]


def _listed(path):
    reader = FolderReader({None: [path]})
    return sorted(
        origin for _, rows in reader.batches(Notes()) for origin in rows["origin"].to_pylist()
    )


SEARCHES = {
    "sizes": lambda path: folders.sizes_below(path),
    "names": lambda path: sorted(folders.files_below(path)),
    "folder": lambda path: folders.is_folder(path / "b"),
    "there": lambda path: folders.exists(path / "b"),
    "list": lambda path: folders.list_folder(path / "b"),
    "glob": lambda path: expand(f"{path}/*/?.png"),
    "deep glob": lambda path: expand(f"{path}/**/x.png"),
    "all": lambda path: expand(f"{path}/b/**"),
    "zarr": lambda path: list(xarray_files._files_below(path)),
    "images": _listed,
}


@pytest.mark.parametrize("search", SEARCHES)
def test_what_cannot_be_listed_is_an_error_and_never_left_out(search, failing, monkeypatch):
    whole = SEARCHES[search](failing)
    assert whole
    BROKEN.add("set/b")
    with pytest.raises(RemoteError, match="the network is down"):
        SEARCHES[search](failing)
    monkeypatch.setattr(blobs.time, "sleep", lambda _: BROKEN.clear())  # it passes
    assert SEARCHES[search](failing) == whole


def test_patterns_of_urls_match_as_those_of_paths(failing, tmp_path):
    for file in fsspec.filesystem("memory").store:
        put(tmp_path / file.lstrip("/"), b"1234")
    for pattern in (
        "*", "*/*", "*/?.png", "a/**/x.png", "**/x.png", "[ab]/[!x].png", "*.tar", "?/c/*", "n/*",
    ):  # fmt: skip
        found = [name.removeprefix("memory://set/") for name in matching(f"{failing}/{pattern}")]
        expected = glob.glob(pattern, root_dir=tmp_path / "set", recursive=True)  # noqa: PTH207
        assert found == sorted(expected), pattern


def test_a_local_folder_that_cannot_be_listed_is_an_error_too(tmp_path, monkeypatch):
    put(tmp_path / "a" / "x", b"1")
    put(tmp_path / "b" / "x", b"1")
    scan = os.scandir

    def fail(path):
        if str(path).endswith("b"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return scan(path)

    assert folders.sizes_below(tmp_path) == {"a/x": 1, "b/x": 1}
    monkeypatch.setattr(os, "scandir", fail)
    with pytest.raises(PermissionError):
        folders.sizes_below(tmp_path)


def test_file_systems_with_searches_of_their_own_are_known(monkeypatch):
    assert folders._leaves_out(fsspec.filesystem("http"))
    assert not folders._leaves_out(fsspec.filesystem("memory"))
    assert not folders._leaves_out(fsspec.filesystem("s3", anon=True))
    monkeypatch.setattr(MemoryFileSystem, "find", AbstractFileSystem.find)
    assert folders._leaves_out(fsspec.filesystem("memory"))
