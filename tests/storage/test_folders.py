"""Files and folders, here and there: listed, removed, replaced; failures are errors."""

from __future__ import annotations

import errno
import glob
import os
import re
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractFileSystem
from stores_for_tests import memory, put

from pipeline.core import paths
from pipeline.core.errors import RemoteError
from pipeline.core.paths import locate
from pipeline.sources import xarray_files
from pipeline.sources.file_names import expand
from pipeline.sources.folder import FolderReader
from pipeline.sources.notes import Notes
from pipeline.storage import atomic, blobs, folders, image_store, manifest, store_array
from pipeline.storage.folders import matching


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
        (folders.list_folder, "listdir scandir"),
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
        for name in () if fails == "open" else fails.split():
            patch.setattr(os, name, fail)
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
