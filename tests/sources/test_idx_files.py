"""IDX files: what is accepted, in which order it is read, and how the rest is refused."""

from __future__ import annotations

import gzip
import hashlib
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pipeline.core.errors import ChecksumError, ShapeError, SourceError
from pipeline.sources.array_files import check_file, open_idx
from pipeline.sources.catalog import idx_source

NAMES = ("cat", "dog", "emu")
COUNT = 50


def make_arrays(count=COUNT, shape=(6, 4), seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 255, (count, *shape), np.uint8, endpoint=True)
    return images, rng.integers(0, 3, count).astype(np.uint8)


def idx_bytes(array, kind=0x08):
    """Write the format as its authors describe it: magic, big-endian sizes, bytes."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, kind, array.ndim]) + sizes + array.tobytes()


def idx_files(folder):
    return {"train": (folder / "images", folder / "labels")}


@pytest.fixture(params=["plain", "gzip"])
def idx(request, tmp_path):
    """An IDX source of one split, its arrays, and a function that packs bytes as it is packed."""
    images, labels = make_arrays()
    pack = gzip.compress if request.param == "gzip" else bytes
    (tmp_path / "images").write_bytes(pack(idx_bytes(images)))
    (tmp_path / "labels").write_bytes(pack(idx_bytes(labels)))
    source = idx_source(idx_files(tmp_path), NAMES, {})
    yield source, images, labels, pack
    source.close()


def same_block(block, images, labels, start, stop):
    np.testing.assert_array_equal(block.images, images[start:stop])
    np.testing.assert_array_equal(block.labels, labels[start:stop])
    assert (block.images.dtype, block.labels.dtype) == (np.uint8, np.int32)
    assert list(block.origins) == [f"images[{index}]" for index in range(start, stop)]
    return True


def test_an_idx_source_says_what_it_has_without_reading_pixels(idx):
    source, images, *_ = idx
    info = source.splits()["train"]
    assert (info.count, info.shape, info.dtype) == (COUNT, images.shape[1:], "uint8")
    assert source.full_scale == 255
    assert source.class_names == NAMES


@pytest.mark.parametrize(
    "ranges",
    [
        [(0, 50)],
        [(0, 20), (20, 40), (40, 50)],
        [(40, 50), (20, 40), (0, 20)],
        [(10, 20), (10, 20), (5, 15), (0, 0), (49, 50), (0, 1)],
    ],
    ids=["at once", "in order", "backwards", "anyhow"],
)
def test_any_order_of_reading_gives_the_same_images(idx, ranges):
    source, images, labels, _ = idx
    for start, stop in ranges:
        same_block(source.read("train", start, stop), images, labels, start, stop)


def test_several_threads_read_one_file_without_mixing_it_up(idx):
    source, images, labels, _ = idx
    starts = np.random.default_rng(0).permutation(np.tile(np.arange(0, COUNT, 5), 20)).tolist()

    def read(start):
        return same_block(source.read("train", start, start + 5), images, labels, start, start + 5)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, starts))


def test_an_idx_source_travels_to_another_process(idx):
    source, images, labels, _ = idx
    source.read("train", 0, 10)  # a file is open now
    again = pickle.loads(pickle.dumps(source))
    same_block(again.read("train", 5, 15), images, labels, 5, 15)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs the list of open files")
def test_a_closed_source_holds_no_file_open_and_can_be_read_again(idx, tmp_path):
    source, images, labels, _ = idx

    def opened():
        links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
        return [link for link in links if str(link.readlink()).startswith(str(tmp_path))]

    source.read("train", 0, 5)
    assert len(opened()) == 2
    source.close()
    assert opened() == []
    same_block(source.read("train", 5, 10), images, labels, 5, 10)


def test_idx_images_with_channels_are_read(tmp_path):
    images, labels = make_arrays(shape=(4, 5, 3))
    (tmp_path / "images").write_bytes(idx_bytes(images))
    (tmp_path / "labels").write_bytes(idx_bytes(labels))
    source = idx_source(idx_files(tmp_path), NAMES, {})
    assert source.splits()["train"].shape == (4, 5, 3)
    same_block(source.read("train", 7, 9), images, labels, 7, 9)
    source.close()


@pytest.mark.parametrize("name", ["images", "labels"])
def test_a_truncated_idx_file_is_named_and_gives_no_image(idx, tmp_path, name):
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
    with pytest.raises(SourceError, match=rf"{name}: .*truncated"):
        idx_source(idx_files(tmp_path), NAMES, {}).read("train", 0, COUNT)


def test_a_flipped_bit_in_a_gzipped_file_without_checksum_is_found_at_its_end(tmp_path):
    for name, array in zip(("images", "labels"), make_arrays(), strict=True):
        (tmp_path / name).write_bytes(gzip.compress(idx_bytes(array.astype(np.uint8)), 0))
    packed = bytearray((tmp_path / "images").read_bytes())
    packed[-20] ^= 1
    (tmp_path / "images").write_bytes(packed)
    with pytest.raises(SourceError, match=r"images: is truncated or damaged \(CRC"):
        idx_source(idx_files(tmp_path), NAMES, {}).read("train", 0, COUNT)


def test_a_truncated_file_that_was_fetched_again_is_read_anew(idx, tmp_path):
    source, images, labels, _ = idx
    path = tmp_path / "images"
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(SourceError, match="images: "):
        idx_source(idx_files(tmp_path), NAMES, {}).read("train", 0, COUNT)
    (tmp_path / "fetched").write_bytes(good)
    (tmp_path / "fetched").replace(path)
    with pytest.raises(SourceError, match="images: is another file"):
        source.read("train", 10, 20)
    source = idx_source(idx_files(tmp_path), NAMES, {})
    same_block(source.read("train", 10, 20), images, labels, 10, 20)


def test_a_flipped_bit_in_the_middle_of_a_gzipped_file_is_an_error_before_its_end(tmp_path):
    images, _ = make_arrays()
    packed = bytearray(gzip.compress(idx_bytes(images)))
    packed[2 * len(packed) // 3] ^= 0x10
    (tmp_path / "images").write_bytes(packed)
    with pytest.raises(ChecksumError, match="images"):
        check_file(tmp_path / "images", "sha256:" + hashlib.sha256(idx_bytes(images)).hexdigest())


@pytest.mark.parametrize(
    ("start", "why"),
    [
        (b"", "nothing"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "89504e47"),
        (b"\x00\x00\x0d\x03" + bytes(50), "00000d03"),  # floats
        (b"\x01\x00\x08\x03" + bytes(50), "01000803"),
        (b"\x00\x00\x08", "000008"),
    ],
)
def test_what_does_not_begin_as_idx_is_refused_with_what_it_begins_with(idx, tmp_path, start, why):
    *_, pack = idx
    (tmp_path / "images").write_bytes(pack(start))
    with pytest.raises(SourceError, match=rf"images: begins with {why}"):
        open_idx(tmp_path / "images")


def test_a_header_that_ends_too_soon_is_refused(idx, tmp_path):
    *_, pack = idx
    (tmp_path / "images").write_bytes(pack(b"\x00\x00\x08\x03" + bytes(7)))
    with pytest.raises(SourceError, match="header"):
        open_idx(tmp_path / "images")


def test_a_missing_idx_file_is_named(idx, tmp_path):
    source, *_ = idx
    (tmp_path / "images").unlink()
    for read in (lambda: open_idx(tmp_path / "images"), lambda: source.read("train", 0, 1)):
        with pytest.raises(SourceError, match="images: cannot be read: no such file"):
            read()


@pytest.mark.parametrize("labels", [make_arrays(49)[1], make_arrays(51)[1], make_arrays(50)[0]])
def test_another_number_of_labels_than_of_images_is_refused_with_both(tmp_path, labels):
    images, _ = make_arrays()
    (tmp_path / "images").write_bytes(idx_bytes(images))
    (tmp_path / "labels").write_bytes(idx_bytes(labels))
    with pytest.raises(ShapeError) as caught:
        idx_source(idx_files(tmp_path), NAMES, {})
    assert str(images.shape) in str(caught.value)
    assert str(labels.shape) in str(caught.value)


# checksums -------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_a_checksum_is_that_of_the_unpacked_content_however_it_is_packed(tmp_path, algorithm):
    content = bytes(range(256)) * 50
    checksum = f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"
    for number, data in enumerate([content, gzip.compress(content, 1), gzip.compress(content, 9)]):
        path = tmp_path / f"{number}.gz"
        path.write_bytes(data)
        check_file(path, checksum)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_an_altered_file_is_refused_with_both_checksums(tmp_path, pack):
    good, bad = b"content", b"contend"
    expected, found = (hashlib.sha256(data).hexdigest() for data in (good, bad))
    (tmp_path / "a").write_bytes(pack(bad))
    with pytest.raises(ChecksumError) as caught:
        check_file(tmp_path / "a", f"sha256:{expected}")
    assert all(text in str(caught.value) for text in (str(tmp_path / "a"), expected, found))


def test_a_gzipped_file_that_ends_too_soon_is_refused_as_truncated(tmp_path):
    content = np.random.default_rng(0).bytes(5000)
    (tmp_path / "a.gz").write_bytes(gzip.compress(content)[:-100])
    with pytest.raises(ChecksumError, match="truncated"):
        check_file(tmp_path / "a.gz", "sha256:" + hashlib.sha256(content).hexdigest())


def test_a_packed_checksum_is_that_of_the_file_as_it_lies(tmp_path):
    packed = gzip.compress(b"content")
    (tmp_path / "a.gz").write_bytes(packed)
    check_file(tmp_path / "a.gz", "packed-md5:" + hashlib.md5(packed).hexdigest())
    with pytest.raises(ChecksumError):
        check_file(tmp_path / "a.gz", "packed-md5:" + hashlib.md5(b"content").hexdigest())
