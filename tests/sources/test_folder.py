"""Folders of image files: the order, the two layouts, and what does not fit into them."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import numpy as np
import pytest
from image_files_for_tests import assert_holds, make_files, png, remote, write_files

from pipeline.core.blocks import LABEL_UNKNOWN, UNREADABLE
from pipeline.core.errors import RemoteError, SourceError
from pipeline.sources.encoded import open_encoded
from pipeline.sources.folder import FolderReader
from pipeline.storage import blobs

__all__ = ["remote"]
PIXELS = np.zeros((6, 4), np.uint8)


def touch(root, *paths):
    return write_files(root, {path: (PIXELS, png(PIXELS)) for path in paths})


def opened(tmp_path, places, **options):
    reader = FolderReader(places if isinstance(places, dict) else {None: [places]}, **options)
    return open_encoded(reader, tmp_path / "listing")


def origins(source):
    return {s: list(source.read(s, 0, i.count).origins) for s, i in source.splits().items()}


@pytest.mark.parametrize("place", ["local", "remote"])
def test_splits_classes_and_files_come_sorted_as_text(tmp_path, place, remote):
    files = {}
    rng = np.random.default_rng(0)
    names = ["2.png", "10.png", "b.PNG", "a.png", "Z.png"]
    for split, name in [("test", "b"), ("train", "B"), ("train", "a"), ("test", "10")]:
        for file in names:
            pixels = rng.integers(0, 256, (3, 4, 3), np.uint8)
            files[f"{split}/{name}/{file}"] = (pixels, png(pixels))
    root = write_files(remote if place == "remote" else tmp_path / "set", files)
    source = opened(tmp_path, root, doubts=False)  # no class is in both splits
    assert source.class_names == ("10", "B", "a", "b")
    assert_holds(source, {path: files[path] for path in sorted(files)})


@pytest.mark.parametrize("place", ["local", "remote"])
def test_classes_alone_are_one_split(tmp_path, place, remote):
    files = make_files(("only",))
    root = remote if place == "remote" else tmp_path / "set"
    for path, (_, data) in files.items():
        write_files(root, {path.removeprefix("only/"): (None, data)})
    assert_holds(opened(tmp_path, root, split="only"), files)
    assert list(opened(tmp_path, root).splits()) == ["train"]


def test_one_folder_for_each_split(tmp_path):
    files = make_files(("test", "train"))
    root = write_files(tmp_path / "set", files)
    places = {"train": [root / "train"], "test": [root / "test"]}
    source = opened(tmp_path, places)
    assert list(source.splits()) == ["train", "test"]
    assert source.read("train", 0, 1).origins == ["train/3/0.png"]
    order = sorted(files, key=lambda path: (path.startswith("test"), path))
    assert_holds(source, {path: files[path] for path in order})


def test_several_folders_are_one_split(tmp_path):
    touch(tmp_path / "a", "cat/1.png", "dog/1.png")
    touch(tmp_path / "b", "cat/0.png")
    found = origins(opened(tmp_path, {"train": [tmp_path / "a", tmp_path / "b"]}))
    assert sorted(found["train"]) == ["a/cat/1.png", "a/dog/1.png", "b/cat/0.png"]


def test_images_at_another_depth_are_listed_as_problems_and_not_dropped(tmp_path):
    paths = ["0.png", "train/c/1.png", "train/c/2.png", "train/3.png", "train/c/x/4.png"]
    root = touch(tmp_path / "set", *paths, "odd/5.png", "val/c/6.png", "test/7.png")
    source = opened(tmp_path, root)
    block = source.read("train", 0, 6)
    wrong = {block.origins[place]: p for place, p in block.problems.items()}
    assert set(wrong) == {"0.png", "train/3.png", "odd/5.png"}
    assert source.read("test", 0, 1).problems == {}  # all of a split: without labels
    assert {p.status for p in wrong.values()} == {LABEL_UNKNOWN}
    assert all("SPLIT/CLASS/FILE" in p.detail for p in wrong.values())
    assert {split: info.count for split, info in source.splits().items()} == {
        "test": 1,
        "train": 6,
        "val": 1,
    }
    assert source.class_names == ("c",)


def test_the_layout_of_most_images_counts(tmp_path):
    root = touch(tmp_path / "set", "cat/1.png", "cat/2.png", "dog/1.png", "a/b/1.png", "0.png")
    source = opened(tmp_path, root)
    block = source.read("train", 0, 5)
    assert [block.origins[place] for place in block.problems] == ["0.png"]
    assert source.class_names == ("a", "cat", "dog")  # a class reaches down to any depth


def test_a_folder_without_images_is_refused_with_what_was_expected(tmp_path):
    (tmp_path / "set" / "train" / "cat").mkdir(parents=True)
    with pytest.raises(SourceError, match="no image found; expected SPLIT/CLASS/FILE"):
        opened(tmp_path, tmp_path / "set")


def test_a_remote_folder_that_is_not_there_is_refused_by_its_url(tmp_path, remote):
    with pytest.raises(SourceError, match=r"memory://.*gone: is no folder"):
        opened(tmp_path, remote / "gone")


@pytest.mark.parametrize("name", ["gone", "file"])
def test_what_is_no_folder_is_refused_by_name(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(SourceError, match=f"{name}: is no folder"):
        opened(tmp_path, tmp_path / name)


@pytest.mark.parametrize("place", ["local", "remote"])
def test_hidden_files_are_left_out_and_others_counted(tmp_path, place, remote):
    root = remote if place == "remote" else tmp_path / "set"
    paths = [
        "train/c/1.png",
        "train/c/._1.png",
        ".git/c/1.png",
        "__MACOSX/c/1.png",
        "train/.c/1.png",
    ]
    touch(root, *paths, "train/c/.2.png")
    for name in ("labels.csv", "train/c/a.txt", "train/c/b.TXT", "train/c/README"):
        (root / name).write_bytes(b"x")
    source = opened(tmp_path, root)
    assert origins(source) == {"train": ["train/c/1.png"]}
    assert source.provenance["ignored"] == {"": 1, ".csv": 1, ".txt": 2}


def test_what_is_no_regular_file_is_never_opened(tmp_path):
    root = touch(tmp_path / "set", "c/5.png")
    os.mkfifo(root / "c" / "1.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(root / "c" / "2.png"))
    (root / "c" / "3.png").symlink_to("nowhere")
    (root / "c" / "4.png").symlink_to("5.png")
    (root / "c" / "6.png").symlink_to("/dev/zero")
    block = opened(tmp_path, root).read("train", 0, 6)
    details = {block.origins[place]: p.detail for place, p in block.problems.items()}
    assert details == {
        "c/1.png": "is a pipe, expected a file",
        "c/2.png": "is a socket, expected a file",
        "c/3.png": "is a broken link",
        "c/6.png": "is a device, expected a file",
    }
    assert {p.status for p in block.problems.values()} == {UNREADABLE}


def test_a_file_that_became_a_pipe_after_the_listing_does_not_block(tmp_path):
    root = touch(tmp_path / "set", "c/1.png", "c/2.png")
    source = opened(tmp_path, root)
    (root / "c" / "1.png").unlink()
    os.mkfifo(root / "c" / "1.png")
    (root / "c" / "2.png").unlink()
    block = source.read("train", 0, 2)
    assert [p.detail for p in block.problems.values()] == [
        "is a pipe, expected a file",
        "no such file",
    ]


def test_a_link_to_a_folder_above_does_not_go_round(tmp_path):
    root = touch(tmp_path / "set", "train/c/1.png")
    (root / "train" / "loop").symlink_to(root)
    (root / "train" / "d").symlink_to(root / "train" / "c")
    assert origins(opened(tmp_path, root)) == {"train": ["train/c/1.png", "train/d/1.png"]}


def test_a_place_that_is_gone_stops_the_reading(tmp_path):
    root = touch(tmp_path / "set", "c/1.png")
    source = opened(tmp_path, root)
    root.rename(tmp_path / "moved")
    with pytest.raises(SourceError, match="is gone; put it back"):
        source.read("train", 0, 1)


def test_too_many_open_files_is_no_problem_of_an_image(tmp_path, monkeypatch):
    source = opened(tmp_path, touch(tmp_path / "set", "c/1.png"))

    def full(*_, **__):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("pipeline.sources.fetch.os.open", full)
    with pytest.raises(SourceError, match="Too many open files"):
        source.read("train", 0, 1)


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_listed_is_named(tmp_path):
    root = touch(tmp_path / "set", "c/1.png", "d/1.png")
    (root / "d").chmod(0)
    with pytest.raises(SourceError, match=r"set/d: cannot be listed: Permission denied"):
        opened(tmp_path, root)
    (root / "d").chmod(0o700)


def test_names_may_hold_anything(tmp_path):
    names = [
        b"a\nb.png",
        b'"<b>.png',
        b"\xff\xfe.png",
        "\u00e9 \u4e2d.png".encode(),
        b"x{1..2}*.png",
    ]
    folder = os.fsencode(tmp_path / "set" / "c\u00e9")
    Path(os.fsdecode(folder)).mkdir(parents=True)
    for number, name in enumerate(sorted(names)):
        image = np.full((6, 4), number, np.uint8)
        Path(os.fsdecode(folder + b"/" + name)).write_bytes(png(image))
    source = opened(tmp_path, tmp_path / "set")
    block = source.read("train", 0, 5)
    assert block.problems == {}
    assert source.class_names == ("c\u00e9",)
    np.testing.assert_array_equal(block.images[:, 0, 0], np.arange(5))
    expected = [f"c\u00e9/{name.decode('utf-8', 'backslashreplace')}" for name in sorted(names)]
    assert block.origins == expected


def test_a_failing_network_is_an_error_and_a_missing_object_a_problem(
    tmp_path, remote, monkeypatch
):
    source = opened(tmp_path, write_files(remote, make_files(("train",))))
    (remote / "train" / "3" / "1.png").unlink()
    assert {p.detail for p in source.read("train", 0, 10).problems.values()} == {"no such file"}

    def fails(*_, **__):
        raise TimeoutError("no answer in 60 s")

    monkeypatch.setattr(blobs, "FIRST_PAUSE_SECONDS", 0)
    monkeypatch.setattr(type(remote.fs), "cat_file", fails)
    with pytest.raises(RemoteError, match="no answer in 60 s"):
        source.read("train", 0, 10)


def test_remote_files_are_requested_together(tmp_path, remote, monkeypatch):
    source = opened(tmp_path, write_files(remote, make_files(("train",), count=40)))
    requests = []
    real = type(remote.fs).cat_ranges

    def counted(self, paths, *args, **kwargs):
        requests.append(len(paths))
        return real(self, paths, *args, **kwargs)

    monkeypatch.setattr(type(remote.fs), "cat_ranges", counted)
    source.read("train", 0, 80)
    assert requests == [32, 32, 16]
