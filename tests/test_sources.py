"""The readers: what they accept, in which order they read, and how they refuse the rest."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import socket
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import ChecksumError, InputError, LabelError, ShapeError, SourceError
from pipeline.ingestion import ingest
from pipeline.sources.arrays import from_arrays, read_npz
from pipeline.sources.folder import FolderSource, read_image
from pipeline.sources.idx import IdxSource, check_file, read_header

NAMES = ("cat", "dog", "emu")
COUNT = 50


def make_arrays(count=COUNT, shape=(6, 4), dtype=np.uint8, seed=0, labels="uint8"):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, np.iinfo(dtype).max, (count, *shape), dtype, endpoint=True)
    return images, rng.integers(0, 3, count).astype(labels)


# IDX -------------------------------------------------------------------------------------------


def idx_bytes(array, kind=0x08):
    """Write the format as its authors describe it: magic, big-endian sizes, bytes."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, kind, array.ndim]) + sizes + array.tobytes()


@pytest.fixture(params=["plain", "gzip"])
def idx(request, tmp_path):
    """An IDX source of one split, its arrays, and a function that packs bytes as it is packed."""
    images, labels = make_arrays()
    pack = gzip.compress if request.param == "gzip" else bytes
    (tmp_path / "images").write_bytes(pack(idx_bytes(images)))
    (tmp_path / "labels").write_bytes(pack(idx_bytes(labels)))
    source = IdxSource({"train": (tmp_path / "images", tmp_path / "labels")}, NAMES)
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
    source = IdxSource({"train": (tmp_path / "images", tmp_path / "labels")}, NAMES)
    assert source.splits()["train"].shape == (4, 5, 3)
    same_block(source.read("train", 7, 9), images, labels, 7, 9)
    source.close()


@pytest.mark.parametrize("name", ["images", "labels"])
def test_a_truncated_idx_file_is_named_and_gives_no_image(idx, tmp_path, name):
    source, *_ = idx
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
    with pytest.raises(SourceError, match=rf"{name}: .*truncated"):
        source.read("train", 0, COUNT)


def test_a_truncated_file_that_was_fetched_again_is_read_anew(idx, tmp_path):
    source, images, labels, _ = idx
    path = tmp_path / "images"
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])
    for start in range(0, COUNT, 10):
        try:
            source.read("train", start, start + 10)
        except SourceError:
            break
    (tmp_path / "fetched").write_bytes(good)
    (tmp_path / "fetched").replace(path)
    same_block(source.read("train", start, start + 10), images, labels, start, start + 10)


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
        read_header(tmp_path / "images")


def test_a_header_that_ends_too_soon_is_refused(idx, tmp_path):
    *_, pack = idx
    (tmp_path / "images").write_bytes(pack(b"\x00\x00\x08\x03" + bytes(7)))
    with pytest.raises(SourceError, match="header"):
        read_header(tmp_path / "images")


def test_a_missing_idx_file_is_named(idx, tmp_path):
    source, *_ = idx
    (tmp_path / "images").unlink()
    with pytest.raises(SourceError, match="images: cannot be opened"):
        source.splits()


@pytest.mark.parametrize("labels", [make_arrays(49)[1], make_arrays(51)[1], make_arrays(50)[0]])
def test_another_number_of_labels_than_of_images_is_refused_with_both(tmp_path, labels):
    images, _ = make_arrays()
    (tmp_path / "images").write_bytes(idx_bytes(images))
    (tmp_path / "labels").write_bytes(idx_bytes(labels))
    source = IdxSource({"train": (tmp_path / "images", tmp_path / "labels")}, NAMES)
    with pytest.raises(ShapeError) as caught:
        source.splits()
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


# arrays ----------------------------------------------------------------------------------------


def test_arrays_are_read_in_ranges_with_their_place(tmp_path):
    images, labels = make_arrays(dtype=np.uint16)
    source = from_arrays({"train": (images, labels), "test": (images[:5], labels[:5])}, NAMES)
    info = source.splits()
    assert list(info) == ["train", "test"]
    assert (info["test"].count, info["test"].shape, info["test"].dtype) == (5, (6, 4), "uint16")
    block = source.read("train", 10, 13)
    np.testing.assert_array_equal(block.images, images[10:13])
    np.testing.assert_array_equal(block.labels, labels[10:13])
    assert block.labels.dtype == np.int32
    assert list(block.origins) == ["train[10]", "train[11]", "train[12]"]


@pytest.mark.parametrize(("dtype", "scale"), [(np.uint8, 255), (np.uint16, 65535)])
def test_class_names_and_full_scale_follow_from_the_arrays_unless_given(dtype, scale):
    images, _ = make_arrays(dtype=dtype, count=4)
    arrays = {"train": (images, np.array([0, 2, -1, 1])), "test": (images, np.array([4, 0, 0, 0]))}
    source = from_arrays(arrays)
    assert (source.class_names, source.full_scale) == (("0", "1", "2", "3", "4"), scale)
    given = from_arrays(arrays, ["a", "b", "c", "d", "e"], full_scale=16)
    assert (given.class_names, given.full_scale) == (("a", "b", "c", "d", "e"), 16)


@pytest.mark.parametrize("dtype", ["int8", "int64", "uint8", "uint16", "uint64", ">i4"])
def test_labels_may_be_of_any_type_of_integer(dtype):
    images, labels = make_arrays(labels=dtype)
    source = from_arrays({"train": (images, labels)})
    assert source.class_names == ("0", "1", "2")
    block = source.read("train", 0, COUNT)
    np.testing.assert_array_equal(block.labels, labels)
    assert block.labels.dtype == np.int32


def test_the_provenance_of_arrays_tells_other_pixels_or_labels_apart():
    images, labels = make_arrays()
    other_pixels, other_labels = images.copy(), labels.copy()
    other_pixels[3, 1, 1] ^= 1
    other_labels[3] = (labels[3] + 1) % 3
    pairs = [(images, labels), (other_pixels, labels), (images, other_labels)]
    seen = [str(from_arrays({"train": pair}, NAMES).provenance) for pair in pairs]
    assert len(set(seen)) == 3
    same_values = images[:, :, ::-1].copy()[:, :, ::-1]  # other strides
    assert str(from_arrays({"train": (same_values, labels)}, NAMES).provenance) == seen[0]


@pytest.mark.parametrize("labels", [np.zeros(49, int), np.zeros((50, 1), int), np.array(3)])
def test_another_number_of_labels_than_images_is_refused(labels):
    images, _ = make_arrays()
    with pytest.raises(ShapeError, match="one label for each image"):
        from_arrays({"valid": (images, labels)})


@pytest.mark.parametrize("dtype", [np.float64, bool, object, "U1"])
def test_labels_that_are_no_integers_are_refused(dtype):
    images, labels = make_arrays()
    with pytest.raises(SourceError, match=r"split 'train': labels of .*expected integer"):
        from_arrays({"train": (images, labels.astype(dtype))})


@pytest.mark.parametrize("label", [2**32, 2**32 + 1, 2**31, -(2**32)])
def test_a_label_that_does_not_fit_is_refused_and_never_becomes_another(tmp_path, label):
    images, labels = make_arrays()
    wide = labels.astype(np.int64)
    wide[7] = label
    with pytest.raises(LabelError, match=str(label)):
        ingest(from_arrays({"train": (images, wide)}, NAMES), tmp_path / "s")


# npz -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("layout", ["named", "keras", "keras column"])
def test_both_layouts_of_npz_give_the_same_splits(tmp_path, save, layout):
    train, test = make_arrays(labels="int64"), make_arrays(9, seed=1, labels="int64")
    names = {
        "named": ["train_images", "train_labels", "test_images", "test_labels"],
        "keras": ["x_train", "y_train", "x_test", "y_test"],
    }[layout.split()[0]]
    content = dict(zip(names, (*train, *test), strict=True))
    if layout == "keras column":  # as CIFAR-10 comes
        content = {k: v[:, None] if k.startswith("y_") else v for k, v in content.items()}
    save(tmp_path / "a.npz", **content)
    source = read_npz(tmp_path / "a.npz")
    assert set(source.splits()) == {"train", "test"}
    for split, (images, labels) in {"train": train, "test": test}.items():
        block = source.read(split, 0, len(images))
        np.testing.assert_array_equal(block.images, images)
        np.testing.assert_array_equal(block.labels, labels)
    assert source.class_names == ("0", "1", "2")
    assert source.provenance["kind"] == "npz"


def test_an_npz_may_name_its_classes_and_hold_other_splits_and_arrays(tmp_path):
    images, labels = make_arrays()
    np.savez(
        tmp_path / "a.npz",
        valid_images=images,
        valid_labels=labels,
        class_names=np.array(["cat", "dog", "é 字", "none of them"]),
        weights=np.zeros(3),
    )
    source = read_npz(tmp_path / "a.npz")
    assert list(source.splits()) == ["valid"]
    assert source.class_names == ("cat", "dog", "é 字", "none of them")


class Exploit:
    """What a hostile file would run when unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("the file was unpickled",))


def test_objects_in_an_npz_are_never_unpickled(tmp_path):
    images, labels = make_arrays(3)
    names = np.array([Exploit(), "b"], object)
    np.savez(tmp_path / "a.npz", train_images=images, train_labels=labels, class_names=names)
    with pytest.raises(SourceError, match="without pickle"):
        read_npz(tmp_path / "a.npz")


def as_npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"", b"no zip at all", b"PK\x03\x04" + bytes(40), pickle.dumps({"a": 1}), as_npy(np.eye(3))],
    ids=["empty", "text", "broken zip", "pickle", "npy"],
)
def test_what_is_no_npz_is_refused(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(SourceError, match=r"a\.npz"):
        read_npz(tmp_path / "a.npz")


def test_a_missing_npz_is_refused(tmp_path):
    with pytest.raises(SourceError, match=r"a\.npz"):
        read_npz(tmp_path / "a.npz")


def test_a_zip_of_something_else_is_refused_with_what_it_holds(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("holiday.npy", as_npy(np.eye(3)))
    with pytest.raises(SourceError, match="holds holiday; expected arrays such as train_images"):
        read_npz(tmp_path / "a.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_npz_is_refused_or_read_right_and_never_read_wrong(tmp_path, save):
    images, labels = make_arrays(20, labels="int64")
    save(tmp_path / "a.npz", train_images=images, train_labels=labels)
    good = (tmp_path / "a.npz").read_bytes()
    refused = 0
    for position in range(0, len(good), 5):
        bad = bytearray(good)
        bad[position] ^= 0xFF
        (tmp_path / "a.npz").write_bytes(bad)
        try:
            block = read_npz(tmp_path / "a.npz").read("train", 0, 20)
        except InputError:
            refused += 1
            continue
        np.testing.assert_array_equal(block.images, images)
        np.testing.assert_array_equal(block.labels, labels)
    assert refused > len(good) / 5 / 2


@pytest.mark.parametrize("images", [np.array(3, np.uint8), np.zeros(3, np.uint8)])
def test_images_in_an_npz_that_are_no_images_are_refused(tmp_path, images):
    np.savez(tmp_path / "a.npz", train_images=images, train_labels=np.zeros(3, int))
    with pytest.raises(InputError):
        ingest(read_npz(tmp_path / "a.npz"), tmp_path / "s")


# folders ---------------------------------------------------------------------------------------


def save_image(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def folder(tmp_path):
    """Two splits; the classes and names are made in an order that sorting must undo."""
    images, _ = make_arrays(6)
    places = ["test/dog/1.png", "train/emu/b.png", "train/cat/10.PNG", "train/cat/2.png",
              "train/cat/1.png", "train/emu/a.png"]  # fmt: skip
    for place, image in zip(places, images, strict=True):
        save_image(tmp_path / "set" / place, image)
    (tmp_path / "set" / "train" / "cat" / "README.txt").write_text("not an image")
    (tmp_path / "set" / "labels.csv").write_text("not a split")
    (tmp_path / "set" / "empty" / "cat").mkdir(parents=True)
    return FolderSource(tmp_path / "set"), dict(zip(places, images, strict=True))


def test_files_are_numbered_by_their_names_sorted_as_text(folder):
    source, images = folder
    order = ["train/cat/1.png", "train/cat/10.PNG", "train/cat/2.png", "train/emu/a.png",
             "train/emu/b.png"]  # fmt: skip
    block = source.read("train", 0, 5)
    assert list(block.origins) == order
    np.testing.assert_array_equal(block.images, [images[name] for name in order])
    part = source.read("train", 2, 4)
    assert list(part.origins) == order[2:4]
    np.testing.assert_array_equal(part.images, block.images[2:4])


def test_classes_are_those_of_all_splits_also_where_one_lacks_some(folder):
    source, _ = folder
    assert source.class_names == ("cat", "dog", "emu")
    assert source.read("train", 0, 5).labels.tolist() == [0, 0, 0, 2, 2]
    assert source.read("test", 0, 1).labels.tolist() == [1]
    assert {name: info.count for name, info in source.splits().items()} == {"test": 1, "train": 5}


@pytest.mark.parametrize(
    ("shape", "dtype", "scale"),
    [((5, 7), np.uint8, 255), ((5, 7, 3), np.uint8, 255), ((5, 7), np.uint16, 65535)],
    ids=["grey", "RGB", "16 bit"],
)
def test_grey_rgb_and_16_bit_images_keep_every_value(tmp_path, shape, dtype, scale):
    images, _ = make_arrays(3, shape, dtype)
    for number, image in enumerate(images):
        save_image(tmp_path / "set" / "train" / "cat" / f"{number}.png", image)
    source = FolderSource(tmp_path / "set")
    info = source.splits()["train"]
    assert (info.shape, info.dtype, source.full_scale) == (shape, np.dtype(dtype).name, scale)
    np.testing.assert_array_equal(source.read("train", 0, 3).images, images)


def test_a_black_and_white_image_is_read_as_grey(tmp_path):
    Image.fromarray(np.eye(4, dtype=bool)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.eye(4) * 255)


@pytest.mark.parametrize("shape", [(7, 5), (5, 7, 3), (1, 1)])
def test_an_image_of_another_size_or_mode_is_refused_with_both(tmp_path, shape):
    save_image(tmp_path / "set" / "train" / "cat" / "1.png", np.zeros((5, 7), np.uint8))
    save_image(tmp_path / "set" / "train" / "cat" / "2.png", np.zeros(shape, np.uint8))
    with pytest.raises(ShapeError) as caught:
        FolderSource(tmp_path / "set").read("train", 0, 2)
    assert all(text in str(caught.value) for text in ("2.png", str(shape), "(5, 7)"))


def test_an_image_of_another_depth_is_refused_with_both(tmp_path):
    save_image(tmp_path / "set" / "train" / "cat" / "1.png", np.zeros((5, 7), np.uint8))
    save_image(tmp_path / "set" / "train" / "cat" / "2.png", np.zeros((5, 7), np.uint16))
    with pytest.raises(ShapeError, match=r"2\.png.*uint16.*uint8"):
        FolderSource(tmp_path / "set").read("train", 0, 2)


@pytest.mark.parametrize("mode", ["RGBA", "P", "LA", "CMYK", "F"])
def test_an_image_of_an_unsupported_mode_is_refused_by_name(tmp_path, mode):
    suffix = "tif" if mode in ("CMYK", "F") else "png"
    Image.new(mode, (4, 4)).save(tmp_path / f"a.{suffix}")
    with pytest.raises(SourceError, match=f"has mode {mode}, expected"):
        read_image(tmp_path / f"a.{suffix}")


@pytest.mark.parametrize("damage", ["empty", "text", "half", "flipped", "missing"])
def test_a_broken_image_is_an_error_and_names_the_file(folder, tmp_path, damage):
    source, _ = folder
    path = tmp_path / "set" / "train" / "cat" / "2.png"
    _ = source.splits()
    good = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        flipped = bytearray(good)
        flipped[len(good) // 2] ^= 0xFF
        path.write_bytes(
            {"empty": b"", "text": b"hello", "half": good[: len(good) // 2], "flipped": flipped}[
                damage
            ]
        )
    with pytest.raises(SourceError, match=r"2\.png: cannot be read as an image"):
        source.read("train", 0, 5)


def test_an_image_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    Image.new("L", (10, 10)).save(tmp_path / "bomb.png")
    with pytest.raises(SourceError, match=r"bomb\.png"):
        read_image(tmp_path / "bomb.png")


def test_a_folder_without_images_is_refused_with_what_was_expected(tmp_path):
    (tmp_path / "set" / "train" / "cat").mkdir(parents=True)
    with pytest.raises(SourceError, match="no image found; expected SPLIT/CLASS/FILE"):
        FolderSource(tmp_path / "set").splits()


def test_the_provenance_of_a_folder_changes_with_a_file_and_stays_otherwise(folder, tmp_path):
    before = FolderSource(tmp_path / "set").provenance
    assert FolderSource(tmp_path / "set").provenance == before
    save_image(tmp_path / "set" / "train" / "cat" / "3.png", np.zeros((6, 4), np.uint8))
    assert FolderSource(tmp_path / "set").provenance != before


def test_a_folder_source_travels_to_another_process(folder):
    source, _ = folder
    block = source.read("train", 0, 5)
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again.read("train", 0, 5).images, block.images)


# torchvision -----------------------------------------------------------------------------------


@pytest.fixture
def reader(monkeypatch):
    """The module around torchvision, in which a data set that needs the network fails."""
    from pipeline.sources import torchvision

    def no_network(*_, **__):
        raise OSError("the network is not for tests")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    return torchvision


@pytest.mark.parametrize("before", [None, 12.5])
@pytest.mark.parametrize(
    "failure",
    [RuntimeError("File not found\nor corrupted."), OSError("mirror answers 503"), ValueError()],
)
def test_a_failed_download_says_why_in_one_line_and_restores_the_timeout(
    reader, tmp_path, monkeypatch, failure, before
):
    during = []

    def fails(root, download):
        during.append((root, download, socket.getdefaulttimeout()))
        raise failure

    monkeypatch.setattr(reader.datasets, "MNIST", fails)
    old = socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(before)
        with pytest.raises(SourceError) as caught:
            reader.download("MNIST", tmp_path)
        assert socket.getdefaulttimeout() == before
    finally:
        socket.setdefaulttimeout(old)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in (str(failure) or "ValueError").split())
    ((root, download, timeout),) = during
    assert (root, download) == (str(tmp_path), True)
    assert timeout is not None  # a silent network must not hang the job


def test_a_download_returns_the_folder_of_the_files_and_restores_the_timeout(
    reader, tmp_path, monkeypatch
):
    class Mnist:
        def __init__(self, root, download):
            self.raw_folder = f"{root}/MNIST/raw"

    monkeypatch.setattr(reader.datasets, "MNIST", Mnist)
    before = socket.getdefaulttimeout()
    assert reader.download("MNIST", tmp_path) == tmp_path / "MNIST" / "raw"
    assert socket.getdefaulttimeout() == before


def test_no_network_at_all_is_a_failed_download(reader, tmp_path):
    with pytest.raises(SourceError):
        reader.download("KMNIST", tmp_path)


def make_cifar10(root, reader, monkeypatch, count=4):
    """Write small files in the layout of CIFAR-10, and make their checksums the right ones."""
    rng = np.random.default_rng(0)
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    pixels, labels, sums = {}, {}, {}
    for name in [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch", "batches.meta"]:
        content = {"label_names": [str(n) for n in range(10)]}
        if name != "batches.meta":
            # three planes one after the other, as the format's description says
            pixels[name] = rng.integers(0, 256, (count, 3, 32, 32), np.uint8)
            labels[name] = rng.integers(0, 10, count).tolist()
            content = {"data": pixels[name].reshape(count, -1), "labels": labels[name]}
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        sums[name] = hashlib.md5(data).hexdigest()
    cifar = reader.datasets.CIFAR10
    monkeypatch.setattr(cifar, "train_list", [[n, sums[n]] for n in sums if n[0] == "d"])
    monkeypatch.setattr(cifar, "test_list", [["test_batch", sums["test_batch"]]])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": sums["batches.meta"]}
    monkeypatch.setattr(cifar, "meta", meta)
    planes = {
        "train": np.concatenate([pixels[f"data_batch_{n}"] for n in range(1, 6)]),
        "test": pixels["test_batch"],
    }
    codes = {
        "train": [code for n in range(1, 6) for code in labels[f"data_batch_{n}"]],
        "test": labels["test_batch"],
    }
    return {name: np.moveaxis(planes[name], 1, 3) for name in planes}, codes


def test_cifar10_is_read_as_rgb_images(reader, tmp_path, monkeypatch):
    images, labels = make_cifar10(tmp_path, reader, monkeypatch)
    names = tuple("abcdefghij")
    source = reader.read_cifar10(tmp_path, names, {"name": "cifar10"})
    assert {k: (i.count, i.shape, i.dtype) for k, i in source.splits().items()} == {
        "train": (20, (32, 32, 3), "uint8"),
        "test": (4, (32, 32, 3), "uint8"),
    }
    for split in images:
        block = source.read(split, 0, len(images[split]))
        np.testing.assert_array_equal(block.images, images[split])
        assert block.labels.tolist() == labels[split]
    assert (source.class_names, source.provenance) == (names, {"name": "cifar10"})


@pytest.mark.parametrize("damage", ["altered", "missing"])
def test_damaged_cifar10_files_are_refused(reader, tmp_path, monkeypatch, damage):
    make_cifar10(tmp_path, reader, monkeypatch)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(SourceError, match="CIFAR-10 cannot be read"):
        reader.read_cifar10(tmp_path, tuple("abcdefghij"), {})
