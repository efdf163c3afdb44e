"""Files of NumPy that are damaged, hostile or something else are refused, or read right."""

from __future__ import annotations

import io
import pickle
import struct
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
from arrays_for_tests import COUNT, NAMES, SAVES, as_npy, holds, make_arrays, read_npz

from pipeline.core.errors import InputError, ShapeError, SourceError
from pipeline.sources.numpy_files import open_numpy


class Exploit:
    """What a hostile file would run when unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("the file was unpickled",))


@pytest.mark.parametrize("name", ["class_names", "train_labels", "train_images"])
def test_objects_are_never_unpickled(tmp_path, name):
    images, labels = make_arrays(3)
    content = {"train_images": images, "train_labels": labels, "class_names": np.array(NAMES)}
    content[name] = np.array([Exploit(), "b", "c"], object)
    np.savez(tmp_path / "a.npz", **content)
    with pytest.raises(SourceError, match="without pickle"):
        read_npz(tmp_path / "a.npz")
    np.save(tmp_path / "images.npy", content[name])
    if name == "train_images":
        with pytest.raises(SourceError, match="without pickle"):
            open_numpy({None: [tmp_path / "images.npy"]})


@pytest.mark.parametrize(
    "content",
    [b"", b"no zip at all", b"PK\x03\x04" + bytes(40), pickle.dumps({"a": 1}), as_npy(np.eye(3))],
    ids=["empty", "text", "broken zip", "pickle", "npy"],
)
def test_what_is_no_npz_is_refused(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(SourceError, match=r"a\.npz"):
        read_npz(tmp_path / "a.npz")


@pytest.mark.parametrize(
    "content",
    [b"", b"text", b"\x93NUMPY", b"\x93NUMPY\x01\x00\xff\xff{", b"\x93NUMPY\x09\x00" + bytes(200),
     b"\x93NUMPY\x02\x00\xff\xff\xff\x7f{" + b" " * 10**5],
)  # fmt: skip
def test_what_is_no_npy_is_refused(tmp_path, content):
    (tmp_path / "images.npy").write_bytes(content)
    with pytest.raises(SourceError, match=r"images\.npy"):
        open_numpy({None: [tmp_path / "images.npy"]})


@pytest.mark.parametrize("name", ["a.npz", "images.npy", "a.mat"])
def test_a_missing_or_unknown_file_is_refused(tmp_path, name):
    with pytest.raises(SourceError, match=name):
        open_numpy({None: [tmp_path / name]})


def test_an_empty_folder_and_no_file_at_all_are_refused(tmp_path):
    with pytest.raises(SourceError, match=r"has no file ending in \.npz, \.npy"):
        open_numpy({None: [tmp_path]})
    with pytest.raises(SourceError, match="expected one at least"):
        open_numpy({})


def test_a_zip_of_something_else_is_refused_with_what_it_holds(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("holiday.npy", as_npy(np.eye(3)))
    with pytest.raises(
        SourceError, match=r"holds holiday .*; expected arrays such as train_images"
    ):
        read_npz(tmp_path / "a.npz")


@SAVES
@pytest.mark.parametrize("step", [7, 20])
def test_a_damaged_npz_is_refused_or_read_right_and_never_read_wrong(tmp_path, save, step):
    images, labels = make_arrays(20)
    save(tmp_path / "a.npz", train_images=images, train_labels=labels)
    good = (tmp_path / "a.npz").read_bytes()
    refused = 0
    for position in range(0, len(good), 5):
        bad = bytearray(good)
        bad[position] ^= 0xFF
        (tmp_path / "a.npz").write_bytes(bad)
        try:
            source = read_npz(tmp_path / "a.npz")
            assert holds(source, "train", images, labels, step)
        except InputError:
            refused += 1
    assert refused > len(good) / 5 / 2


@SAVES
def test_a_flipped_bit_of_one_image_is_found_before_any_is_read(tmp_path, save):
    images, labels = make_arrays(400, (8, 8))
    save(tmp_path / "a.npz", train_images=images, train_labels=labels)
    bad = bytearray((tmp_path / "a.npz").read_bytes())
    bad[len(bad) // 2] ^= 1
    (tmp_path / "a.npz").write_bytes(bad)
    with pytest.raises(SourceError, match=r"a\.npz: cannot be read"):
        read_npz(tmp_path / "a.npz")


def header_of(shape, dtype="|u1"):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": dtype, "fortran_order": False, "shape": shape}
    )
    return header.getvalue()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize(
    ("shape", "size"),
    [((10**15, 6, 4), 24), ((2, 6, 4), 47), ((2, 6, 4), 49), ((2, -6, -4), 48), ((0, 6, 4), 5)],
)
def test_a_member_of_another_size_than_its_header_says_is_refused(tmp_path, method, shape, size):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", method) as archive:
        archive.writestr("train_images.npy", header_of(shape) + bytes(size))
        archive.writestr("train_labels.npy", as_npy(np.zeros(2, int)))
    with pytest.raises(SourceError, match="train_images"):
        read_npz(tmp_path / "a.npz")
    (tmp_path / "images.npy").write_bytes(header_of(shape) + bytes(size))
    with pytest.raises(SourceError, match=r"images\.npy"):
        open_numpy({None: [tmp_path / "images.npy"]})


def test_a_member_that_inflates_beyond_what_it_says_is_refused_in_little_memory(tmp_path):
    content = header_of((2, 6, 4)) + bytes(48)
    bomb = content + bytes(2**26)
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train_images.npy", bomb)
        archive.writestr("train_labels.npy", as_npy(np.zeros(2, int)))
    # both headers say the size and the checksum of the bytes that the array needs
    raw = path.read_bytes()
    size = struct.pack("<I", len(bomb)), struct.pack("<I", len(content))
    crc = struct.pack("<I", zlib.crc32(bomb)), struct.pack("<I", zlib.crc32(content))
    assert raw.count(size[0]) == raw.count(crc[0]) == 2
    path.write_bytes(raw.replace(*size).replace(*crc))
    tracemalloc.start()
    try:
        block = read_npz(path).read("train", 0, 2)  # what is beyond is never inflated
        assert not block.images.any()
        path.write_bytes(raw.replace(*size))
        with pytest.raises(SourceError, match="CRC"):
            read_npz(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**24


def test_an_encrypted_member_is_refused(tmp_path):
    images, labels = make_arrays(3)
    np.savez(tmp_path / "a.npz", train_images=images, train_labels=labels)
    raw = bytearray((tmp_path / "a.npz").read_bytes())
    for place in range(len(raw)):
        if raw[place : place + 4] == b"PK\x01\x02":
            raw[place + 8] |= 1
    (tmp_path / "a.npz").write_bytes(raw)
    with pytest.raises(SourceError, match="encrypted"):
        read_npz(tmp_path / "a.npz")


@pytest.mark.parametrize("cut", [1, 100, 1000])
def test_a_file_that_was_cut_after_it_was_opened_is_an_error(tmp_path, cut):
    np.save(tmp_path / "images.npy", make_arrays()[0])
    source = open_numpy({None: [tmp_path / "images.npy"]}, NAMES)
    data = (tmp_path / "images.npy").read_bytes()
    (tmp_path / "images.npy").write_bytes(data[:-cut])
    with pytest.raises(
        SourceError, match=r"images\.npy: is another file .*than when it was opened"
    ):
        source.read("train", 0, COUNT)


@pytest.mark.parametrize("images", [np.array(3, np.uint8), np.zeros(3, np.uint8)])
def test_images_in_an_npz_that_are_no_images_are_refused(tmp_path, images):
    np.savez(tmp_path / "a.npz", train_images=images, train_labels=np.zeros(3, int))
    with pytest.raises(ShapeError, match="expected"):
        read_npz(tmp_path / "a.npz")


def test_class_names_that_are_no_list_are_refused(tmp_path):
    images, labels = make_arrays(3)
    np.savez(
        tmp_path / "a.npz", train_images=images, train_labels=labels, class_names=np.array("cat")
    )
    with pytest.raises(SourceError, match=r"class_names.*expected one name a class"):
        read_npz(tmp_path / "a.npz")
