"""Archives as people have them: what is decided, that it is said, and what is refused."""

from __future__ import annotations

import pytest
from image_files_for_tests import held, image, make, png, refusal, write_tar

from pipeline.sources.registry import open_source, release


def webdataset(*members):
    """Return members of (name, content); None stands for an image."""
    return [(name, image() if data is None else data) for name, data in members]


PAIRS = [(f"{n}.{suffix}", data) for n in "01" for suffix, data in (("png", None), ("cls", b"1"))]


@pytest.mark.parametrize(
    ("members", "words"),
    [
        # members that are not next to each other, or come twice
        ([("0.png", None), ("1.png", None), ("0.cls", b"1"), ("1.cls", b"2")], ["sorted by name"]),
        ([*PAIRS, *PAIRS], ["key '0'", "come twice", "sorted by name"]),
        ([("0.png", None), ("0.png", None), ("0.cls", b"1")], ["two members '0.png'"]),
        # keys that collide
        (
            [(f"cam1.f{n}.{s}", d) for n in "012" for s, d in (("png", None), ("cls", n.encode()))],
            ["the key 'cam1' has 3 images (f0.png, f1.png, f2.png)", "; rename the members"],
        ),
        (
            [("0.input.png", None), ("0.target.png", None), ("0.cls", b"1")],
            ["2 images (input.png, target.png)", "columns.image=input.png"],
        ),
        ([("0.png", None), ("0.jpg", None), ("0.cls", b"1")], ["2 images (png, jpg)"]),
        # labels that contradict each other
        ([("0.png", None), ("0.cls", b"0"), ("0.json", b'{"label": 5}')], ["contradict", "'5'"]),
        ([("0.png", None), ("0.json", b'{"label": 1, "cls": 2}')], ["label=1 and cls=2"]),
        # what might be labels
        ([("0.png", None), ("0.txt", b"cat")], ["1 .txt files", "columns.label=txt"]),
        ([("0.png", None), ("0.json", b'{"caption": "x"}')], ["1 .json files", "json.KEY"]),
        # members that cannot be read
        ([("0.png.gz", b"x"), ("0.cls", b"1")], ["no image found", ".gz", "unpack it"]),
        ([("0.npy", b"x"), ("0.cls", b"1")], ["no image found", "0.npy", "PNG files"]),
        (
            [("both/train.tar", b"x"), ("both/test.tar", b"x")],
            ["both/train.tar: is no tar archive"],
        ),
        ([("images/0.png", None)], ["the only class would be 'images'", "kind=tar"]),
    ],
)
def test_archives_that_would_be_merged_or_misread_are_refused(tmp_path, members, words):
    message = refusal(write_tar(tmp_path / "a.tar", webdataset(*members)))
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("members", "columns", "expected"),
    [
        ([("0.in.png", None), ("0.mask.png", None), ("0.cls", b"a")], {"image": "in.png"}, "a"),
        ([("0.png", None), ("0.txt", b"cat\n")], {"label": "txt"}, "cat"),
        ([("0.png", None), ("0.json", b'{"species": "cat"}')], {"label": "json.species"}, "cat"),
        ([("0.png", None), ("0.cls", b"0"), ("0.json", b'{"label": 5}')], {"label": "cls"}, "0"),
        (
            [("0.png", None), ("0.cls", b"0"), ("0.json", b'{"label": 5}')],
            {"label": "json.label"},
            "5",
        ),
    ],
)  # fmt: skip
def test_the_job_says_which_members_of_a_sample_count(tmp_path, members, columns, expected):
    path = write_tar(tmp_path / "a.tar", webdataset(*members))
    found, _ = held({"source": str(path), "columns": columns})
    assert found == {"train": {expected: 1}}


def test_columns_that_archives_have_not_are_refused(tmp_path):
    path = write_tar(tmp_path / "a.tar", webdataset(*PAIRS))
    assert "expected image" in refusal({"source": str(path), "columns": {"split": "x"}})


@pytest.mark.parametrize(
    ("members", "expected", "said"),
    [
        (PAIRS, {"1": 2}, "1 split, 1 class from .cls or .json members"),
        ([*PAIRS, ("2.cls", b"1")], {"1": 2}, "1 sample without an image, first '2'"),
        ([("0.png", None), ("0.mask.png", None), ("0.cls", b"7")], {"7": 1}, "out: 1 mask.png"),
        ([("0.png", None), ("0.cls", b"3"), ("0.json", b'{"label": "cat"}')], {"3": 1}, ""),
        ([("0.png", None), ("0.json", b'{"label": 1, "class_name": "x"}')], {"1": 1}, ""),
        ([("0.v2.png", None), ("0.v2.cls", b"3")], {"3": 1}, ""),
        ([("cat/0.png", None), ("cat/0.json", b'{"width": 3}')], {"cat": 1}, "out: cat/0.json"),
        ([("cat/v1.0.png", None), ("cat/v1.1.png", None)], {"cat": 2}, ""),
        ([("pets/cat/0.png", None), ("pets/meta.json", b"{}")], {"cat": 1}, "pets/meta.json"),
        ([("0.png", None), ("1.png", None)], {None: 2}, "1 split, no labels"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("suffix", ["tar", "tar.xz", "tbz2"])
def test_archives_say_what_was_decided(tmp_path, members, expected, said, suffix):
    mode = {"tar": "w", "tar.xz": "w:xz", "tbz2": "w:bz2"}[suffix]
    found, remarks = held(write_tar(tmp_path / f"a.{suffix}", webdataset(*members), mode))
    assert found == {"train": expected}
    assert said in "\n".join(remarks)


def test_of_a_repeated_member_the_last_counts_as_tar_has_it(tmp_path):
    first, last = image(), image()
    members = [("cat/0.png", first), ("dog/0.png", image()), ("./cat/0.png", last)]
    source = open_source(str(write_tar(tmp_path / "a.tar", members)))
    block = source.read("train", 0, source.splits()["train"].count)
    assert block.origins == ["a.tar:cat/0.png", "a.tar:dog/0.png"]
    assert png(block.images[0]) == last
    assert "left out: 1 member whose name comes again later in the archive" in source.remarks
    release(source)


def test_an_archive_for_each_class_is_read_so_unless_the_job_names_the_kind(tmp_path):
    for name in ("n0cat", "n0dog"):
        write_tar(
            make(tmp_path / "set", "notes.txt=x") / f"{name}.tar", webdataset(("0.png", None))
        )
    found, remarks = held(tmp_path / "set")
    assert found == {"train": {"n0cat": 1, "n0dog": 1}}
    assert "each of 2 archives is a class, by its name" in remarks[0]
    assert held({"source": str(tmp_path / "set"), "kind": "tar"})[0] == {"train": {None: 2}}


def test_archives_whose_names_speak_of_splits_in_other_words_are_not_merged(tmp_path):
    for name in ("trn", "tst"):
        write_tar(make(tmp_path / "set", "a.md=") / f"{name}.tar", webdataset(*PAIRS))
    assert "splits: {train: FILES, test: FILES}" in refusal(tmp_path / "set")
    places = {"train": str(tmp_path / "set/trn.tar"), "test": str(tmp_path / "set/tst.tar")}
    assert held({"splits": places})[0] == {"train": {"1": 2}, "test": {"1": 2}}


@pytest.mark.parametrize("suffix", ["7z", "rar", "tar.zst"])
def test_archives_of_other_kinds_are_refused_with_a_cure(tmp_path, suffix):
    message = refusal(make(tmp_path, f"a.{suffix}=x") / f"a.{suffix}")
    assert "unpack it" in message
    assert f"a.{suffix}')" in message
