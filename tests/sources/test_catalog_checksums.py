"""Checksums of the catalog's files: of their unpacked content, or of the archive as published."""

from __future__ import annotations

import gzip
import hashlib

import pytest
from test_catalog import FILES, downloads, holds, make_files, write_catalog

from pipeline.core.errors import ChecksumError
from pipeline.sources.catalog import open_dataset

__all__ = ["downloads"]


def unpacked_sha256(packed):
    return hashlib.sha256(gzip.decompress(packed)).hexdigest()


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("altered", FILES)
def test_an_altered_file_is_refused_with_both_checksums(tmp_path, monkeypatch, altered, pack):
    folder = tmp_path / "system" / "tiny"
    arrays, packed = make_files(folder, pack=pack)
    sums = {name: unpacked_sha256(data) for name, data in packed.items()}
    checksums = {name: f"sha256:{value}" for name, value in sums.items()}
    write_catalog(tmp_path, monkeypatch, checksums=checksums)
    assert holds(open_dataset("tiny"), arrays)
    content = bytearray(gzip.decompress(packed[altered]))
    content[-1] ^= 1
    (path,) = folder.glob(f"{altered}*")
    path.write_bytes(gzip.compress(content) if pack else content)
    with pytest.raises(ChecksumError) as caught:
        open_dataset("tiny")
    message = str(caught.value)
    assert str(path) in message
    assert sums[altered] in message
    assert hashlib.sha256(content).hexdigest() in message


def test_packing_again_changes_nothing_for_a_checksum_of_the_content(tmp_path, monkeypatch):
    folder = tmp_path / "system" / "tiny"
    arrays, packed = make_files(folder)
    checksums = {name: f"sha256:{unpacked_sha256(data)}" for name, data in packed.items()}
    write_catalog(tmp_path, monkeypatch, checksums=checksums)
    for path in folder.iterdir():
        path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), 1, mtime=99))
    assert holds(open_dataset("tiny"), arrays)


def test_a_set_like_kmnist_is_checked_as_it_is_packed(tmp_path, monkeypatch):
    folder = tmp_path / "system" / "tiny"
    arrays, packed = make_files(folder)
    sums = {name: hashlib.md5(data).hexdigest() for name, data in packed.items()}
    checksums = {name: f"packed-md5:{value}" for name, value in sums.items()}
    write_catalog(tmp_path, monkeypatch, checksums=checksums)
    assert holds(open_dataset("tiny"), arrays)
    path = folder / "test-labels.gz"
    again = gzip.compress(gzip.decompress(packed["test-labels"]), 1, mtime=99)
    path.write_bytes(again)
    with pytest.raises(ChecksumError) as caught:
        open_dataset("tiny")
    assert sums["test-labels"] in str(caught.value)
    assert hashlib.md5(again).hexdigest() in str(caught.value)


def test_a_set_like_kmnist_that_lies_unpacked_has_nothing_to_be_compared_with(
    tmp_path, monkeypatch
):
    arrays, packed = make_files(tmp_path / "system" / "tiny", pack=False)
    checksums = {name: f"packed-md5:{hashlib.md5(d).hexdigest()}" for name, d in packed.items()}
    write_catalog(tmp_path, monkeypatch, checksums=checksums)
    assert holds(open_dataset("tiny"), arrays)
