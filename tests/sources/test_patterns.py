"""Patterns of names: braces, stars, and the split that a name speaks of."""

from __future__ import annotations

import pytest
from image_files_for_tests import TWO, classes, held, make, remote

from pipeline.core.errors import ConfigError, SourceError
from pipeline.sources.file_names import expand, split_of
from pipeline.sources.registry import open_source, release

__all__ = ["remote"]


def test_braces_name_places_in_order_whether_they_exist_or_not():
    assert expand("s3://b/{train,val}-{8..10}.tar") == [
        f"s3://b/{split}-{n}.tar" for split in ("train", "val") for n in (8, 9, 10)
    ]
    assert expand("a-{0098..0101}") == ["a-0098", "a-0099", "a-0100", "a-0101"]
    assert expand("{train-{0..1},test}.tar") == ["train-0.tar", "train-1.tar", "test.tar"]
    assert expand("a{b-{1..2}") == ["a{b-{1..2}"]


@pytest.mark.parametrize(
    "pattern",
    ["x{0..1000000}", "{x{0..9999}{0..9999},y}", "{0..999999999999\n}", "{a..z}" * 5,
     "{" + "9" * 5000 + "..1}", "\0000\0{0..1000000}"],
)  # fmt: skip
def test_braces_that_name_too_many_places_are_refused_before_any_is_made(pattern):
    with pytest.raises(ConfigError, match="names more than 1,000,000 paths; give a folder"):
        expand(pattern)


def test_as_many_names_as_are_allowed_are_made():
    assert len(expand("x{0..999999}")) == 1_000_000


def test_stars_match_what_is_there_sorted(tmp_path):
    for name in ("b-2.tar", "b-10.tar", "a.tar", "b-x.txt", "c[1].tar"):
        (tmp_path / name).touch()
    found = expand(str(tmp_path / "b-*.tar"))
    assert found == [str(tmp_path / "b-10.tar"), str(tmp_path / "b-2.tar")]
    assert expand(str(tmp_path / "c[1].tar")) == [str(tmp_path / "c[1].tar")]
    with pytest.raises(SourceError, match="nothing matches"):
        expand(str(tmp_path / "z*"))


def test_stars_match_behind_a_url(remote):
    for name in ("b-2.tar", "b-10.tar", "a.tar"):
        (remote / name).write_bytes(b"")
    found = expand("memory://bucket/set/b-{2,1?}.tar")
    assert found == ["memory://bucket/set/b-2.tar", "memory://bucket/set/b-10.tar"]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00001.parquet", "train"),
        ("imagenet_val-0001.tar", "val"),
        ("x.test.tar", "test"),
        ("Validation12.tar", "validation"),
        ("constraint.tar", None),
        ("trainer.tar", None),
        ("latest.tar", None),
        ("train/latest.tar", None),
    ],
)
def test_the_split_is_a_whole_word_of_the_name(name, split):
    assert split_of(name) == split


# patterns of image files and folders -------------------------------------------------------------


@pytest.mark.parametrize("form", ["{root}/*/*.png", "{root}/**/*.png", "{root}/*/[0-9].png",
                                  "{root}/{{cat,dog}}/*.png"])  # fmt: skip
@pytest.mark.parametrize("place", ["local", "remote"])
def test_a_pattern_of_image_files_has_the_classes_of_its_folder(tmp_path, remote, form, place):
    root = remote if place == "remote" else tmp_path / "set"
    make(root, *classes("cat", "dog"), "cat/a.md=x")
    found, remarks = held(form.format(root=root))
    assert found == {"train": TWO}
    assert "left out" not in "\n".join(remarks)
    assert open_digest(form.format(root=root)) == open_digest(str(root), ignored=False)


def open_digest(images, ignored=True):
    """Return what identifies the listing of a source."""
    source = open_source(images)
    listing = source.provenance["listing"]
    assert ignored or source.provenance["ignored"] == {".md": 1}
    release(source)
    return listing


def test_a_pattern_takes_some_files_and_says_what_it_leaves_out(tmp_path):
    root = make(tmp_path / "set", *classes("cat", "dog"), "cat/0.jpeg", "top.png", "x.md=x")
    assert held(f"{root}/*/*.jpeg")[0] == {"train": {"cat": 1}}
    found, remarks = held(f"{root}/*.png")
    assert found == {"train": {None: 1}}
    assert held(f"{root}/*/**")[0] == {"train": {"cat": 3, "dog": 2}}
    found, remarks = held(f"{root}/*")
    assert found == {"train": {None: 1}}
    assert "left out: x.md, 2 folders that the pattern matches (cat, dog)" in remarks
    splits = {"train": f"{root}/*/0.png", "test": [f"{root}/*/1.png", f"{root}/*/0.jpeg"]}
    assert held({"splits": splits})[0] == {
        "train": {"cat": 1, "dog": 1}, "test": {"cat": 2, "dog": 1},
    }  # fmt: skip


def test_folders_that_match_a_pattern_are_classes_where_they_may_be(tmp_path):
    root = make(tmp_path / "set", *classes("cat", "dog"), "notes/a.txt=x")
    assert held(f"{root}/[cd]*")[0] == {"train": TWO}
    assert held({"splits": {"fit": f"{root}/[cd]*"}})[0] == {"fit": TWO}
    parts = make(tmp_path / "parts", *classes("part-1", "part-2"))
    assert held(f"{parts}/*")[0] == {"train": {None: 4}}
    digits = make(tmp_path / "digits", *classes("0", "1"))
    assert held(f"{digits}/*")[0] == {"train": {"0": 2, "1": 2}}
    whole = make(tmp_path / "whole", *(f"part-{n}/{p}" for n in (1, 2) for p in classes("cat")))
    assert held(f"{whole}/*")[0] == {"train": {"cat": 4}}
