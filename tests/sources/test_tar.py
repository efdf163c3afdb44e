"""Tar archives with folders inside: plain, compressed, remote; damaged and hostile."""

from __future__ import annotations

import bz2
import contextlib
import functools
import gzip
import http.server
import io
import lzma
import os
import tarfile
import threading
import zlib

import numpy as np
import pytest
from image_files_for_tests import (
    assert_holds,
    everything,
    make_files,
    members,
    png,
    remote,
    write_tar,
    write_zip,
)

from pipeline.core.blocks import TOO_LARGE, TRUNCATED, UNREADABLE
from pipeline.core.errors import PixsimError, SourceError
from pipeline.core.paths import locate
from pipeline.sources.archives import ArchiveReader
from pipeline.sources.encoded import open_encoded

__all__ = ["remote"]
GOOD = png(np.zeros((6, 4), np.uint8))


def opened(tmp_path, *paths, places=None, **options):
    reader = ArchiveReader(places or {None: list(paths)})
    return open_encoded(reader, tmp_path / "listing", **options)


def origins(source, split="train"):
    block = source.read(split, 0, source.splits()[split].count)
    return [origin.partition(":")[2] for origin in block.origins]


# folders inside ----------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "./", "set/", "a/b/set/"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_leading_folders_and_compression_change_nothing(tmp_path, prefix, pack):
    files = make_files()
    path = write_tar(tmp_path / "set.tar", members(files, prefix))
    path.write_bytes(pack(path.read_bytes()))
    assert_holds(opened(tmp_path, path), files)


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_every_tar_format_and_long_names(tmp_path, format):
    name = "train/" + "c" * 90 + "/" + "\u00e9" * 40 + ".png"
    with tarfile.open(tmp_path / "a.tar", "w", format=format) as archive:
        info = tarfile.TarInfo(name)
        info.size = len(GOOD)
        archive.addfile(info, io.BytesIO(GOOD))
    source = opened(tmp_path, tmp_path / "a.tar")
    assert (origins(source), source.class_names) == ([name], ("c" * 90,))


def test_a_plain_archive_is_sorted_like_a_folder(tmp_path):
    files = make_files()
    shuffled = np.random.default_rng(0).permutation(len(files))
    mixed = [members(files)[place] for place in shuffled]
    assert_holds(opened(tmp_path, write_tar(tmp_path / "a.tar", mixed)), files)
    halves = [write_tar(tmp_path / f"{n}.tar", mixed[n::2]) for n in range(2)]
    assert_holds(opened(tmp_path, *halves), files)


def test_a_compressed_archive_out_of_order_keeps_its_order(tmp_path):
    files = make_files(("train",))
    mixed = members(files)[::-1]
    source = opened(tmp_path, write_tar(tmp_path / "a.tgz", mixed, "w:gz"))
    assert origins(source) == [name for name, _ in mixed]
    images, _, block = everything(source)["train"]
    assert block.problems == {}
    expected = np.stack([pixels for pixels, _ in files.values()])[::-1]
    np.testing.assert_array_equal(images, expected)


def test_the_split_of_an_archive_is_in_its_name_or_given(tmp_path):
    files = make_files(("s",))
    plain = [(name.removeprefix("s/"), data) for name, data in members(files)]
    train = write_tar(tmp_path / "x_train-0.tar", plain)
    test = write_tar(tmp_path / "x.test.tar", [(f"x.test/{name}", data) for name, data in plain])
    assert list(opened(tmp_path, train, test).splits()) == ["test", "train"]
    source = opened(tmp_path, places={"fit": [train], "check": [test]})
    assert {s: i.count for s, i in source.splits().items()} == {"fit": 10, "check": 10}
    whole = write_tar(tmp_path / "whole.tar", members(make_files(("train",))))
    assert opened(tmp_path, places={"fit": [whole]}).class_names == ("3", "7")


def test_a_compressed_archive_is_unpacked_once_when_read_in_order(tmp_path, monkeypatch):
    files = make_files(("train",), count=50)
    path = write_tar(tmp_path / "a.tgz", members(files), "w:gz")
    source = opened(tmp_path, path)
    source.close()
    started = []
    real = gzip.GzipFile

    def counted(*args, **kwargs):
        started.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr("pipeline.sources.archive_streams.gzip.GzipFile", counted)
    for start in range(0, 100, 10):
        source.read("train", start, start + 10)
    assert len(started) == 1
    source.close()


def test_neighbours_of_a_remote_archive_come_in_one_request(tmp_path, remote, monkeypatch):
    files = make_files(("train",), count=20)
    source = opened(tmp_path, write_tar(remote / "a.tar", members(files)))
    requests = []
    real = type(remote.fs).cat_ranges

    def counted(self, paths, *args, **kwargs):
        requests.append(len(paths))
        return real(self, paths, *args, **kwargs)

    monkeypatch.setattr(type(remote.fs), "cat_ranges", counted)
    assert_holds(source, files)
    assert requests == [1]


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_remote_archive_that_is_gone_stops_the_reading(tmp_path, remote, mode):
    path = write_tar(remote / "a.tar", members(make_files(("train",))), mode)
    source = opened(tmp_path, path)
    source.close()
    path.unlink()
    with pytest.raises(SourceError, match=r"a\.tar"):
        source.read("train", 0, 5)


class WholeFiles(http.server.SimpleHTTPRequestHandler):
    """A server without ranges."""

    def log_message(self, *_):
        pass


def test_a_server_that_knows_no_parts_is_refused(tmp_path):
    write_tar(tmp_path / "a.tar", members(make_files(("train",))))
    write_tar(tmp_path / "a.tgz", members(make_files(("train",))), "w:gz")
    write_zip(tmp_path / "a.zip", members(make_files(("train",))))
    handler = functools.partial(WholeFiles, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        with pytest.raises(SourceError, match=r"a\.tar: this server sends whole files"):
            opened(tmp_path, locate(f"{url}/a.tar"))
        with pytest.raises(PixsimError, match=r"a\.zip: .*range requests"):
            opened(tmp_path, locate(f"{url}/a.zip"))
        source = opened(tmp_path, locate(f"{url}/a.tgz"))
        assert_holds(source, make_files(("train",)))
        source.close()
        server.shutdown()


def test_a_folder_of_archives_is_its_archives(tmp_path, remote):
    files = make_files()
    for root in (tmp_path / "set", remote):
        root.mkdir(parents=True, exist_ok=True)
        for split in ("train", "valid"):
            some = [pair for pair in members(files) if pair[0].startswith(split)]
            write_tar(root / f"{split}.tar", some)
        (root / "readme.txt").write_bytes(b"x")
        source = opened(tmp_path, root)
        assert source.provenance["place"].endswith("set")
        assert_holds(source, files)
        (root / "train.tar").unlink()
        (root / "valid.tar").unlink()
        with pytest.raises(SourceError, match=r"has no file ending in \.tar"):
            opened(tmp_path, root)


# hostile and damaged -----------------------------------------------------------------------------


def special(name, kind, **values):
    info = tarfile.TarInfo(name)
    info.type = kind
    for key, value in values.items():
        setattr(info, key, value)
    return info


def test_links_devices_and_names_that_lead_out_are_listed_and_not_read(tmp_path):
    (tmp_path / "secret.png").write_bytes(GOOD)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for info in [
            special("train/c/1.png", tarfile.SYMTYPE, linkname="../../secret.png"),
            special("train/c/2.png", tarfile.LNKTYPE, linkname="train/c/5.png"),
            special("train/c/3.png", tarfile.FIFOTYPE),
            special("train/c/4.png", tarfile.CHRTYPE, devmajor=1, devminor=5),
        ]:
            archive.addfile(info)
        for name in ("train/c/5.png", "/train/c/6.png", "train/../train/c/7.png"):
            archive.addfile(special(name, tarfile.REGTYPE, size=len(GOOD)), io.BytesIO(GOOD))
    block = opened(tmp_path, tmp_path / "a.tar").read("train", 0, 7)
    found = {block.origins[n].rpartition("/")[2]: p.detail for n, p in block.problems.items()}
    assert {p.status for p in block.problems.values()} == {UNREADABLE}
    assert ["5.png" in found, len(found)] == [False, 6]
    assert all("is a link" in found[name] for name in ("1.png", "2.png"))
    assert all("is a device" in found[name] for name in ("3.png", "4.png"))
    assert all("leads out" in found[name] for name in ("6.png", "7.png"))


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("place", ["local", "remote"])
def test_a_truncated_archive_keeps_what_is_whole_and_says_what_is_cut(
    tmp_path, pack, place, remote
):
    files = make_files(("train",), shape=(40, 40))
    path = write_tar((remote if place == "remote" else tmp_path) / "a.tar", members(files))
    content = path.read_bytes()
    data = pack(content)
    path.write_bytes(data[: len(data) // 2])
    source = opened(tmp_path, path)
    count = source.splits()["train"].count
    block = source.read("train", 0, count)
    assert list(block.problems) == [count - 1]
    assert block.problems[count - 1].status == TRUNCATED
    assert "fetch it again" in block.problems[count - 1].detail
    assert 3 <= count <= 8
    expected = np.stack([pixels for pixels, _ in files.values()])[: count - 1]
    np.testing.assert_array_equal(block.images[:-1], expected)


def test_an_archive_that_ends_between_members_is_no_whole_archive(tmp_path):
    files = make_files(("train",))
    path = write_tar(tmp_path / "a.tar", members(files))
    with tarfile.open(path) as archive:
        at = archive.getmembers()[6].offset
    path.write_bytes(path.read_bytes()[:at])
    block = opened(tmp_path, path).read("train", 0, 7)
    lost = block.origins.index("a.tar:")
    assert {place: p.status for place, p in block.problems.items()} == {lost: TRUNCATED}
    assert f"{at:,}" in block.problems[lost].detail


def test_a_damaged_header_is_told_and_what_is_before_it_kept(tmp_path):
    path = write_tar(tmp_path / "a.tar", members(make_files(("train",))))
    with tarfile.open(path) as archive:
        at = archive.getmembers()[4].offset
    data = bytearray(path.read_bytes())
    data[at + 3] ^= 1
    path.write_bytes(data)
    block = opened(tmp_path, path).read("train", 0, 5)
    assert [p.status for p in block.problems.values()] == [UNREADABLE]
    assert f"damaged at byte {at:,}" in next(iter(block.problems.values())).detail


def test_a_flipped_bit_anywhere_in_a_gzipped_archive_is_noticed(tmp_path):
    files = make_files(("train",))
    path = write_tar(tmp_path / "a.tgz", members(files), "w:gz")
    good = path.read_bytes()
    expected = np.stack([pixels for pixels, _ in files.values()])
    noticed = 0
    for at in np.linspace(20, len(good) - 9, 15).astype(int):
        data = bytearray(good)
        data[at] ^= 4
        path.write_bytes(data)
        with contextlib.suppress(OSError, EOFError, zlib.error):
            if gzip.decompress(data) == gzip.decompress(good):
                continue  # a bit that means nothing
        noticed += 1
        try:
            source = opened(tmp_path, path)
            block = source.read("train", 0, source.splits()["train"].count)
        except SourceError:
            continue
        assert block.problems, at
        kept = [n for n in range(len(block.images)) if n not in block.problems]
        assert all(any((block.images[n] == image).all() for image in expected) for n in kept)
    assert noticed > 10


@pytest.mark.parametrize(
    "data", [b"", b"hello", os.urandom(2000), gzip.compress(b"hello", mtime=0)]
)
def test_what_is_no_archive_is_refused_by_name(tmp_path, data):
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(SourceError, match=r"a\.tar: is no tar archive"):
        opened(tmp_path, tmp_path / "a.tar")


def test_an_archive_that_is_not_there_or_empty_is_refused(tmp_path):
    with pytest.raises(SourceError, match=r"a\.tar: is not there"):
        opened(tmp_path, tmp_path / "a.tar")
    with pytest.raises(SourceError, match="no image found"):
        opened(tmp_path, write_tar(tmp_path / "a.tar", []))


class Zeros(io.RawIOBase):
    def readable(self):
        return True

    def readinto(self, buffer):
        buffer[:] = bytes(len(buffer))
        return len(buffer)


def test_a_bomb_fills_no_memory(tmp_path):
    import tracemalloc

    size = 2**28
    with tarfile.open(tmp_path / "a.tgz", "w:gz", compresslevel=1) as archive:
        archive.addfile(special("train/c/1.png", tarfile.REGTYPE, size=size), Zeros())
        archive.addfile(special("train/c/2.png", tarfile.REGTYPE, size=len(GOOD)), io.BytesIO(GOOD))
    tracemalloc.start()
    block = opened(tmp_path, tmp_path / "a.tgz", max_bytes=2**20).read("train", 0, 2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert {place: p.status for place, p in block.problems.items()} == {0: TOO_LARGE}
    assert peak < 2**25


def test_a_header_that_claims_gigabytes_is_damage_and_fills_no_memory(tmp_path):
    path = write_tar(tmp_path / "a.tar", members(make_files(("train",))))
    info = special("././@LongLink", tarfile.GNUTYPE_LONGNAME, size=2**33)
    header = info.tobuf(tarfile.GNU_FORMAT)
    with tarfile.open(path) as archive:
        at = archive.getmembers()[4].offset
    path.write_bytes(path.read_bytes()[:at] + header + bytes(2**21))
    block = opened(tmp_path, path).read("train", 0, 5)
    (problem,) = block.problems.values()
    assert "a header of" in problem.detail


def test_an_archive_that_shrank_after_the_listing_stops_the_reading(tmp_path):
    path = write_tar(tmp_path / "a.tar", members(make_files(("train",))))
    source = opened(tmp_path, path)
    os.truncate(path, 1024 * 3)
    with pytest.raises(SourceError, match=r"a\.tar: is another file \(3,072 bytes\)"):
        source.read("train", 0, 10)
