"""Zip archives, and archives in archives: read where their members lie, and never further."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import tarfile
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from image_files_for_tests import (
    assert_holds,
    everything,
    held,
    image,
    make,
    make_files,
    members,
    png,
    refusal,
    remote,
    write_tar,
    write_zip,
)

from pipeline.core.blocks import TOO_LARGE, TRUNCATED, UNREADABLE
from pipeline.core.errors import SourceError
from pipeline.sources.archives import ArchiveReader
from pipeline.sources.encoded import open_encoded

__all__ = ["remote"]
GOOD = png(np.zeros((6, 4), np.uint8))
METHODS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2]


def opened(tmp_path, *paths, **options):
    reader = ArchiveReader({None: list(paths)}, kind="zip")
    return open_encoded(reader, tmp_path / "listing", **options)


def problems(tmp_path, path, **options):
    """Return what is wrong with the members of an archive, by name."""
    source = opened(tmp_path, path, **options)
    block = source.read("train", 0, source.splits()["train"].count)
    names = [origin.rpartition("/")[2] for origin in block.origins]
    return {name: block.problems.get(number) for number, name in enumerate(names)}


# what is read ------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "./", "a/b/set/"])
@pytest.mark.parametrize("method", METHODS)
def test_a_zip_archive_holds_what_was_packed(tmp_path, remote, prefix, method):
    files = make_files()
    mixed = [members(files, prefix)[n] for n in np.random.default_rng(0).permutation(len(files))]
    for folder in (tmp_path, remote):
        assert_holds(opened(tmp_path, write_zip(folder / "set.zip", mixed, method)), files)


class Forward(io.RawIOBase):
    """A file that can only be written on: sizes come after the content."""

    def __init__(self):
        self.data = b""

    def writable(self):
        return True

    def write(self, data):
        self.data += bytes(data)
        return len(data)


def test_sizes_after_the_content_long_fields_and_what_stands_before(tmp_path):
    files, stream = make_files(), Forward()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members(files):
            with archive.open(zipfile.ZipInfo(name), "w", force_zip64=True) as member:
                member.write(data)
        archive.comment = b"by hand" * 100
    (tmp_path / "a.zip").write_bytes(b"#!/bin/sh\n" * 50 + stream.data)
    assert_holds(opened(tmp_path, tmp_path / "a.zip"), files)


def test_names_as_windows_has_them(tmp_path):
    files = make_files()
    path = write_zip(tmp_path / "a.zip", [(n.replace("/", "\\"), d) for n, d in members(files)])
    assert_holds(opened(tmp_path, path), files)


def test_of_a_repeated_member_the_last_counts(tmp_path):
    last = image()
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = write_zip(
            tmp_path / "a.zip",
            [("cat/0.png", image()), ("dog/0.png", image()), ("cat/0.png", last)],
        )
    source = opened(tmp_path, path)
    assert png(source.read("train", 0, 2).images[0]) == last
    assert "left out: 1 member whose name comes again later in the archive" in source.remarks


def test_samples_of_webdataset_in_a_zip_archive(tmp_path):
    shard = [(f"{n}.{s}", d) for n in "zya" for s, d in (("png", GOOD), ("cls", n.encode()))]
    source = opened(tmp_path, write_zip(tmp_path / "val-0.zip", shard))
    _, names, block = everything(source)["val"]
    assert (names, block.origins) == (["z", "y", "a"], [f"val-0.zip:{n}.png" for n in "zya"])


# archives in archives ----------------------------------------------------------------------------


def packed(kind, pairs):
    """Return an archive of a kind as bytes."""
    if kind.startswith("zip"):
        method = zipfile.ZIP_STORED if kind == "zip-stored" else zipfile.ZIP_DEFLATED
        return write_zip(io.BytesIO(), pairs, method).getvalue()
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, data in pairs:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    pack = {"tar": bytes, "tgz": gzip.compress, "tbz2": bz2.compress, "txz": lzma.compress}
    return pack[kind](stream.getvalue())


KINDS = ("tar", "tgz", "txz", "zip-stored", "zip")


@pytest.mark.parametrize("outer", KINDS)
@pytest.mark.parametrize("inner", [*KINDS, "tbz2"])
def test_archives_in_archives_hold_what_was_packed(tmp_path, remote, outer, inner):
    files = make_files()
    split = {s: [p for p in members(files) if p[0].startswith(s)] for s in ("train", "valid")}
    within = [
        (f"set/{s}.{inner.partition('-')[0]}", packed(inner, pairs)) for s, pairs in split.items()
    ]
    path = (remote if inner == "zip" else tmp_path) / f"outer.{outer.partition('-')[0]}"
    path.write_bytes(packed(outer, [*within, ("set/readme.md", b"x" * 5000)]))
    source = opened(tmp_path, path)
    assert_holds(source, files)
    # any range, in any order, gives the same
    whole = source.read("train", 0, 10)
    for start, stop in ((7, 10), (0, 3), (3, 7)):
        part = source.read("train", start, stop)
        np.testing.assert_array_equal(part.images, whole.images[start:stop])
    suffix = inner.partition("-")[0]
    assert whole.origins[0] == f"{path.name}:set/train.{suffix}:train/3/0.png"
    source.close()


def test_a_large_directory_in_a_packed_archive(tmp_path):
    files = make_files(("train",))
    others = [(f"train/{'long' * 25}{n:06}.txt", b"") for n in range(12_000)]
    inner = packed("zip-stored", [*members(files), *others])
    assert len(inner) > 2 * 2**20
    source = opened(tmp_path, write_zip(tmp_path / "a.zip", [("train.zip", inner)]))
    assert_holds(source, files)
    assert source.provenance["ignored"] == {".txt": 12_000}


def test_archives_of_a_split_are_one_and_those_named_for_classes_are_classes(tmp_path):
    shards = {f"train-{n}.tar": packed("tar", [(f"cat/{n}.png", image())]) for n in (0, 1)}
    shards["test.tar"] = packed("tar", [("cat/0.png", image())])
    path = write_zip(tmp_path / "a.zip", shards.items())
    assert held(path)[0] == {"test": {"cat": 1}, "train": {"cat": 2}}
    synsets = [(f"n0144000{n}.tar", packed("tar", [("x.png", image())])) for n in (1, 2)]
    found, remarks = held(write_tar(tmp_path / "imagenet.tar", synsets))
    assert found == {"train": {"n01440001": 1, "n01440002": 1}}
    assert "each of 2 archives is a class, by its name" in remarks[0]


def test_a_class_an_archive_in_folders_of_splits(tmp_path):
    within = [
        (f"{split}/{name}.zip", packed("zip", [(f"{n}.png", image()) for n in range(2)]))
        for split in ("train", "test")
        for name in ("cat", "dog")
    ]
    two = {"cat": 2, "dog": 2}
    assert held(write_zip(tmp_path / "a.zip", within))[0] == {"test": two, "train": two}


@pytest.mark.parametrize("names", ["shard-0 shard-1", "imagesA imagesB", "part_a part_b", "7 8"])
def test_shards_without_labels_are_no_classes(tmp_path, names):
    for name in names.split():
        write_zip(make(tmp_path / "set", "a.md=") / f"{name}.zip", [("1.png", image())])
    assert "2 archives hold images in no folders and without labels" in refusal(tmp_path / "set")


def test_archives_beside_images_are_left_out_and_so_are_those_deeper(tmp_path):
    inner = packed("zip", [("dog/0.png", image())])
    path = write_zip(tmp_path / "a.zip", [("cat/0.png", image()), ("backup.zip", inner)])
    found, remarks = held(path)
    assert found == {"train": {"cat": 1}}
    assert "left out: backup.zip" in remarks
    deep = write_zip(tmp_path / "b.zip", [("a.zip", packed("zip", [("b.zip", inner)]))])
    assert "no image found" in refusal(deep)


def test_very_many_archives_in_a_compressed_one_are_refused(tmp_path):
    inner = packed("tar", [("cat/0.png", GOOD)])
    path = write_tar(tmp_path / "a.tgz", [(f"{n}.tar", inner) for n in range(65)], "w:gz")
    assert "65 archives, expected at most 64" in refusal(path)


# hostile and damaged -----------------------------------------------------------------------------


def record(data, name, *, local):
    """Return where the record of a member begins, in the directory or before its content."""
    mark, skipped = (b"PK\3\4", 30) if local else (b"PK\1\2", 46)
    at = data.index(mark)
    while data[at + skipped : at + skipped + len(name)] != name:
        at = data.index(mark, at + 1)
    return at


def forged(path, name, fields):
    """Change fields in the directory's record of a member: by offset, a format and a value."""
    data = bytearray(path.read_bytes())
    at = record(bytes(data), name.encode(), local=False)
    for offset, (form, value) in fields.items():
        struct.pack_into(form, data, at + offset, value)
    path.write_bytes(data)


def three(tmp_path):
    return write_zip(
        tmp_path / "a.zip", [(f"cat/{n}.png", png(np.full((6, 4), n, np.uint8))) for n in range(3)]
    )


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({8: ("<H", 1)}, "is encrypted"),
        ({10: ("<H", 9)}, "method 9"),
        ({10: ("<H", 14)}, "method 14"),
        ({38: ("<I", 0o120777 << 16)}, "is a link or a device"),
        ({38: ("<I", 0o010644 << 16)}, "is a link or a device"),
        ({16: ("<I", 1)}, "its checksum is another"),
        ({24: ("<I", 5)}, "other than the 5 bytes"),
        ({24: ("<I", 5000)}, "other than the 5,000 bytes"),
        ({20: ("<I", 10**6)}, "overlaps another"),
        ({42: ("<I", 2**31)}, "overlaps another"),
        ({42: ("<I", 7)}, "no member begins"),
        ({10: ("<H", 0)}, "unpacked"),
    ],
)
def test_a_member_that_cannot_be_is_listed_and_the_others_are_read(tmp_path, fields, words):
    path = three(tmp_path)
    forged(path, "cat/1.png", fields)
    found = problems(tmp_path, path)
    bad = {name: problem for name, problem in found.items() if problem}
    assert "1.png" in bad
    assert bad["1.png"].status == UNREADABLE
    assert words in bad["1.png"].detail
    assert set(bad) <= {"0.png", "1.png"}  # the one before may be cut short by it


def test_members_at_one_place_are_a_bomb(tmp_path):
    path = three(tmp_path)
    at = record(path.read_bytes(), b"cat/0.png", local=True)
    forged(path, "cat/1.png", {42: ("<I", at)})
    found = problems(tmp_path, path)
    assert ["overlaps" in str(found[f"{n}.png"]) for n in range(3)] == [True, True, False]


def test_names_that_lead_out_are_listed_and_not_read(tmp_path):
    names = ["train/c/5.png", "/train/c/6.png", "train/../train/c/7.png", "..\\train\\c\\8.png"]
    found = problems(tmp_path, write_zip(tmp_path / "a.zip", [(n, GOOD) for n in names]))
    assert found.pop("5.png") is None
    assert len(found) == 3
    assert all("leads out" in problem.detail for problem in found.values())


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: data[:10],
        lambda data: b"",
        lambda data: b"PK\3\4" + bytes(500),
        lambda data: data[:-12] + b"\5\0" + data[-10:],  # it lists 5, of 3
        lambda data: data[:-10] + struct.pack("<I", 2**31) + data[-6:],
        lambda data: data[:-6] + struct.pack("<I", 2**31) + data[-2:],
    ],
)
def test_what_is_no_zip_archive_or_only_a_part_is_refused(tmp_path, change):
    path = three(tmp_path)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(SourceError, match=r"a\.zip: (is no zip archive|cannot be read|none of)"):
        opened(tmp_path, path)


def test_a_bomb_fills_no_memory(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in ("lies", "honest"):
            with archive.open(f"train/c/{name}.png", "w") as member:
                for _ in range(2**8):
                    member.write(bytes(2**20))
        archive.writestr("train/c/2.png", GOOD)
    forged(tmp_path / "a.zip", "train/c/lies.png", {24: ("<I", 2**20)})
    tracemalloc.start()
    found = problems(tmp_path, tmp_path / "a.zip", max_bytes=2**20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found["honest.png"].status == TOO_LARGE
    assert "other than the 1,048,576 bytes" in found["lies.png"].detail
    assert found["2.png"] is None
    assert peak < 2**24


@given(at=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), deep=st.booleans())
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_flipped_bit_is_noticed_or_changes_no_image(tmp_path, at, bit, deep):
    files = make_files(("train",), count=2)
    content = packed("zip", members(files))
    content = packed("zip", [("train.tar", packed("tar", members(files)))]) if deep else content
    data = bytearray(content)
    data[int(at * len(data))] ^= 1 << bit
    path = tmp_path / "a.zip"
    path.write_bytes(data)
    known = {pixels.tobytes() for pixels, _ in files.values()}
    try:
        source = opened(tmp_path, path)
        found = [source.read(s, 0, info.count) for s, info in source.splits().items()]
    except SourceError:
        return
    for block in found:
        kept = [n for n in range(len(block.images)) if n not in block.problems]
        assert {block.images[n].tobytes() for n in kept} <= known


def test_a_truncated_archive_in_an_archive_says_what_is_cut(tmp_path):
    inner = packed("tar", members(make_files(("train",), shape=(40, 40))))
    path = write_zip(tmp_path / "a.zip", [("train.tar", inner[: len(inner) // 2])])
    found = problems(tmp_path, path)
    assert [p.status for p in found.values() if p] == [TRUNCATED]
