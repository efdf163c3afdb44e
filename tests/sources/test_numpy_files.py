"""NumPy's files: layouts, partial reads, values, provenance, what memory they take."""

from __future__ import annotations

import io
import json
import pickle
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from arrays_for_tests import COUNT, NAMES, SAVES, as_npy, holds, make_arrays, read_npz

from pipeline.core.errors import LabelError, ShapeError, SourceError
from pipeline.core.paths import locate
from pipeline.sources import array_files
from pipeline.sources.numpy_files import open_numpy

# layouts ---------------------------------------------------------------------------------------


@SAVES
@pytest.mark.parametrize("layout", ["named", "keras", "keras column"])
def test_both_layouts_of_npz_give_the_same_splits(tmp_path, save, layout):
    train, test = make_arrays(), make_arrays(9, seed=1)
    names = {
        "named": ["train_images", "train_labels", "test_images", "test_labels"],
        "keras": ["x_train", "y_train", "x_test", "y_test"],
    }[layout.split()[0]]
    content = dict(zip(names, (*train, *test), strict=True))
    if layout == "keras column":  # as CIFAR-10 comes
        content = {k: v[:, None] if k.startswith("y_") else v for k, v in content.items()}
    save(tmp_path / "a.npz", **content)
    source = read_npz(tmp_path / "a.npz")
    assert {k: (i.count, i.shape, i.dtype) for k, i in source.splits().items()} == {
        "train": (50, (6, 4), "uint8"),
        "test": (9, (6, 4), "uint8"),
    }
    assert holds(source, "train", *train)
    assert holds(source, "test", *test)
    assert source.class_names == ("0", "1", "2")
    assert (source.full_scale, source.provenance["kind"]) == (255, "npz")
    assert source.read("test", 3, 4).origins == [f"a.npz/{names[2]}[3]"]
    source.close()


@pytest.mark.parametrize("dtype", ["U20", "S20"])
def test_an_npz_may_name_its_classes_and_hold_other_splits_and_arrays(tmp_path, dtype):
    images, labels = make_arrays()
    names = ["cat", "dog", "é 字", "none of them"]
    encoded = [n.encode() for n in names] if dtype == "S20" else names
    np.savez(
        tmp_path / "a.npz",
        valid_images=images,
        valid_labels=labels,
        class_names=np.array(encoded, dtype),
        weights=np.zeros(3),
        x_mean=np.zeros((1, 6, 4)),
    )
    source = read_npz(tmp_path / "a.npz")
    assert list(source.splits()) == ["valid"]
    assert source.class_names == tuple(names)
    assert open_numpy({None: [tmp_path / "a.npz"]}, NAMES).class_names == NAMES


def test_one_split_of_an_npz_is_chosen_by_name_or_is_the_only_one(tmp_path):
    train, test = make_arrays(), make_arrays(9, seed=1)
    np.savez(tmp_path / "two.npz", train_images=train[0], train_labels=train[1],
             test_images=test[0], test_labels=test[1])  # fmt: skip
    np.savez(tmp_path / "one.npz", images=test[0], labels=test[1])
    source = open_numpy({"test": [tmp_path / "two.npz"], "valid": [tmp_path / "one.npz"]})
    assert list(source.splits()) == ["test", "valid"]
    assert holds(source, "test", *test)
    assert holds(source, "valid", *test)
    assert list(open_numpy({None: [tmp_path / "one.npz"]}, split="all").splits()) == ["all"]
    with pytest.raises(SourceError, match="holds the splits train, test, expected 'valid'"):
        open_numpy({"valid": [tmp_path / "two.npz"]})


def test_images_without_labels_are_unlabelled_where_nothing_else_may_be_their_labels(tmp_path):
    images, labels = make_arrays()
    np.savez(tmp_path / "a.npz", train_images=images, train_labels=labels, test_images=images)
    assert holds(read_npz(tmp_path / "a.npz"), "test", images, np.full(COUNT, -1))
    np.savez(tmp_path / "a.npz", train_images=images, truth=labels)
    message = "holds train_images without train_labels, and truth"
    with pytest.raises(SourceError, match=message):
        read_npz(tmp_path / "a.npz")


def test_npy_files_find_their_labels_and_splits_by_name(tmp_path):
    train, test, more = make_arrays(), make_arrays(9, seed=1), make_arrays(5, seed=2)
    for name, array in {
        "train_images": train[0], "train_labels": train[1], "x_test": test[0], "y_test": test[1],
        "images_valid": more[0],
    }.items():  # fmt: skip
        np.save(tmp_path / f"{name}.npy", array)
    source = open_numpy({None: [tmp_path / f"{n}.npy" for n in ("train_images", "x_test")]})
    assert holds(source, "train", *train)
    assert holds(source, "test", *test)
    assert (list(source.splits()), source.provenance["kind"]) == (["train", "test"], "npy")
    folder = open_numpy({None: [tmp_path]})
    assert set(folder.splits()) == {"train", "test", "valid"}
    assert holds(folder, "valid", more[0], np.full(5, -1))
    assert folder.read("valid", 2, 3).origins == ["images_valid.npy[2]"]


def test_labels_may_be_given_and_other_names_are_of_the_default_split(tmp_path):
    images, labels = make_arrays()
    np.save(tmp_path / "pictures.npy", images)
    np.save(tmp_path / "my_labels.npy", labels)
    np.save(tmp_path / "class_names.npy", np.array(NAMES))
    alone = open_numpy({None: [tmp_path / "pictures.npy"]}, NAMES, "test")
    assert holds(alone, "test", images, np.full(COUNT, -1))
    given = open_numpy({"valid": [tmp_path / "pictures.npy", tmp_path / "my_labels.npy"]})
    assert holds(given, "valid", images, labels)
    assert open_numpy({None: [tmp_path]}).class_names == NAMES


def test_a_split_may_lie_in_several_files(tmp_path):
    images, labels = make_arrays()
    for number, part in enumerate([slice(0, 20), slice(20, 20), slice(20, 50)]):
        np.savez_compressed(tmp_path / f"{number}.npz", images=images[part], labels=labels[part])
    source = open_numpy({"train": [tmp_path / f"{number}.npz" for number in range(3)]})
    assert source.splits()["train"].count == 50
    for step in (1, 7, 20, 50):
        assert holds(source, "train", images, labels, step)
    assert source.read("train", 19, 21).origins == ["0.npz/images[19]", "2.npz/images[0]"]
    assert source.read("train", 30, 30).images.shape == (0, 6, 4)


def test_parts_of_two_shapes_or_types_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((3, 6, 4), np.uint8))
    np.savez(tmp_path / "b.npz", images=np.zeros((3, 6, 5), np.uint8))
    np.savez(tmp_path / "c.npz", images=np.zeros((3, 6, 4), np.uint16))
    for other in ("b.npz", "c.npz"):
        with pytest.raises(ShapeError, match=rf"{other}.*expected \(6, 4\) and uint8.*a\.npz"):
            open_numpy({"train": [tmp_path / "a.npz", tmp_path / other]})


# values ----------------------------------------------------------------------------------------


@SAVES
@pytest.mark.parametrize(
    ("dtype", "announced", "scale"),
    [("?", "uint8", 1), ("u1", "uint8", 255), (">u2", "uint16", 65535), ("f2", "float32", 1),
     (">f4", "float32", 1), ("f8", "float64", 1)],
)  # fmt: skip
def test_every_type_of_pixel_is_given_as_announced(tmp_path, save, dtype, announced, scale):
    images, labels = make_arrays()
    images = (images > 99) if dtype == "?" else images.astype(dtype)
    save(tmp_path / "a.npz", train_images=images, train_labels=labels)
    source = read_npz(tmp_path / "a.npz")
    assert (source.splits()["train"].dtype, source.full_scale) == (announced, scale)
    assert source.read("train", 3, 9).images.dtype == announced
    assert holds(source, "train", images, labels)


@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 3)])
@pytest.mark.parametrize("name", ["a.npz", "train_images.npy"])
def test_fortran_order_is_read_right_from_plain_files(tmp_path, shape, name):
    images, labels = make_arrays(shape=shape)
    turned = np.asfortranarray(images)
    if name == "a.npz":
        np.savez(tmp_path / name, train_images=turned, train_labels=labels)
    else:
        np.save(tmp_path / name, turned)
        np.save(tmp_path / "train_labels.npy", labels)
    assert holds(open_numpy({None: [tmp_path / name]}), "train", images, labels)


def test_fortran_order_in_a_compressed_file_is_refused_with_the_cure(tmp_path):
    images, labels = make_arrays()
    np.savez_compressed(
        tmp_path / "a.npz", train_images=np.asfortranarray(images), train_labels=labels
    )
    with pytest.raises(SourceError, match=r"a\.npz/train_images: is in Fortran order.*contiguous"):
        read_npz(tmp_path / "a.npz")


@SAVES
@pytest.mark.parametrize("dtype", ["int32", "int64", "uint32", "int8"])
def test_other_integers_are_refused_with_their_range(tmp_path, save, dtype, monkeypatch):
    monkeypatch.setattr("pipeline.sources.array_source._BLOCK_BYTES", 100)
    images = np.full((9, 6, 4), 5, dtype)
    images[7, 3, 2] = 99
    save(tmp_path / "a.npz", train_images=images, train_labels=np.zeros(9, int))
    message = rf'{dtype} with values 5 to 99.*fit \.astype\("uint8"\)'
    with pytest.raises(SourceError, match=message):
        read_npz(tmp_path / "a.npz")


@SAVES
def test_texts_are_classes(tmp_path, save):
    images, _ = make_arrays(4)
    labels = np.array(["emu", "cat", "emu", "dog"])
    save(tmp_path / "a.npz", x_train=images, y_train=labels[:, None])
    source = read_npz(tmp_path / "a.npz")
    assert source.class_names == NAMES
    assert source.read("train", 1, 4).labels.tolist() == [0, 2, 1]


@pytest.mark.parametrize(
    "labels", [np.zeros(49, int), np.zeros((50, 2), "U3"), np.zeros(50, "m8[s]")]
)
def test_labels_that_do_not_fit_are_refused(tmp_path, labels):
    np.savez(tmp_path / "a.npz", train_images=make_arrays()[0], train_labels=labels)
    with pytest.raises((ShapeError, SourceError), match=r"train_images: .*labels of"):
        read_npz(tmp_path / "a.npz")


def test_a_label_outside_the_classes_is_refused_by_its_place_in_the_split(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.sources.array_source._BLOCK_BYTES", 64)
    images, labels = make_arrays()
    labels[37] = 2**32
    np.savez(tmp_path / "a.npz", train_images=images, train_labels=labels)
    with pytest.raises(LabelError, match="sample 37 has label 4294967296"):
        open_numpy({None: [tmp_path / "a.npz"]}, NAMES)


# how it is read --------------------------------------------------------------------------------


@SAVES
def test_any_order_and_several_threads_give_the_same_images(tmp_path, save):
    images, labels = make_arrays()
    save(tmp_path / "a.npz", train_images=images, train_labels=labels)
    source = read_npz(tmp_path / "a.npz")
    starts = np.random.default_rng(0).permutation(np.tile(np.arange(0, COUNT, 5), 8)).tolist()

    def read(start):
        block = source.read("train", start, start + 5)
        np.testing.assert_array_equal(block.images, images[start : start + 5])
        np.testing.assert_array_equal(block.labels, labels[start : start + 5])
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, starts))
    again = pickle.loads(pickle.dumps(source))
    assert holds(again, "train", images, labels)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs the list of open files")
@SAVES
def test_a_closed_source_holds_no_file_open_and_can_be_read_again(tmp_path, save):
    images, labels = make_arrays()
    save(tmp_path / "a.npz", train_images=images, train_labels=labels)

    def opened():
        links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
        return [link for link in links if str(link.readlink()).startswith(str(tmp_path))]

    source = read_npz(tmp_path / "a.npz")
    source.read("train", 0, 5)
    assert opened()
    source.close()
    assert opened() == []
    assert holds(source, "train", images, labels)
    source.close()


def write_large(path, method, count=400, side=128):
    """Write 25 MB of images of which only one is in memory at a time."""
    header = io.BytesIO()
    shape = (count, side, side)
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": shape}
    )
    with zipfile.ZipFile(path, "w", method) as archive:
        with archive.open("train_images.npy", "w") as member:
            member.write(header.getvalue())
            for number in range(count):
                member.write(np.full((side, side), number, "<f4").tobytes())
        archive.writestr("train_labels.npy", as_npy(np.zeros(count, int)))


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_memory_stays_that_of_one_partition(tmp_path, method):
    write_large(tmp_path / "a.npz", method)
    tracemalloc.start()
    try:
        source = read_npz(tmp_path / "a.npz")
        for start in range(0, 400, 10):
            images = source.read("train", start, start + 10).images
            assert images[:, 7, 9].tolist() == list(range(start, start + 10))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8e6  # of 26 MB


def test_partitions_in_order_inflate_a_member_once(tmp_path, monkeypatch):
    write_large(tmp_path / "a.npz", zipfile.ZIP_DEFLATED, 40, 8)
    source = read_npz(tmp_path / "a.npz")
    opened = []
    plain = array_files.StoredArray._open_packed

    def counted(*arguments):
        opened.append(arguments)
        return plain(*arguments)

    monkeypatch.setattr(array_files.StoredArray, "_open_packed", counted)
    for start in range(0, 40, 4):
        source.read("train", start, start + 4)
    assert len(opened) == 2  # images and labels


@pytest.mark.parametrize("kind", ["stored", "compressed", "npy"])
def test_remote_files_are_read_in_ranges(kind):
    images, labels = make_arrays()
    folder = locate(f"memory://numpy-{kind}")
    if kind == "npy":
        for name, array in {"train_images": images, "train_labels": labels}.items():
            (folder / f"{name}.npy").write_bytes(as_npy(array))
        place = folder
    else:
        buffer = io.BytesIO()
        save = np.savez if kind == "stored" else np.savez_compressed
        save(buffer, train_images=images, train_labels=labels)
        place = folder / "a.npz"
        place.write_bytes(buffer.getvalue())
    source = open_numpy({None: [place]})
    assert holds(source, "train", images, labels)
    assert holds(pickle.loads(pickle.dumps(source)), "train", images, labels)
    json.dumps(source.provenance, allow_nan=False)
    source.close()


def test_fortran_order_in_a_remote_file_is_refused():
    place = locate("memory://numpy-fortran/images.npy")
    place.write_bytes(as_npy(np.asfortranarray(make_arrays()[0])))
    with pytest.raises(SourceError, match="Fortran order"):
        open_numpy({None: [place]})


# provenance ------------------------------------------------------------------------------------


@SAVES
def test_the_provenance_is_that_of_the_content_and_not_of_the_place(tmp_path, save):
    images, labels = make_arrays()
    seen = []
    for number, (i, j) in enumerate([(0, 0), (0, 0), (1, 0), (0, 1)]):
        pixels, codes = images.copy(), labels.copy()
        pixels[3, 1, 1] ^= i
        codes[3] = (codes[3] + j) % 3
        (tmp_path / str(number)).mkdir()
        save(tmp_path / str(number) / "a.npz", train_images=pixels, train_labels=codes)
        provenance = read_npz(tmp_path / str(number) / "a.npz").provenance
        seen.append(json.dumps(provenance, allow_nan=False))
        assert str(tmp_path) not in seen[-1]
    assert (len(set(seen)), seen[0]) == (3, seen[1])


def test_the_provenance_of_npy_changes_with_the_file(tmp_path):
    images, labels = make_arrays()
    np.save(tmp_path / "images.npy", images)
    np.save(tmp_path / "labels.npy", labels)
    seen = [str(open_numpy({None: [tmp_path / "images.npy"]}).provenance) for _ in range(2)]
    np.save(tmp_path / "labels.npy", (labels + 1) % 3)
    later = str(open_numpy({None: [tmp_path / "images.npy"]}).provenance)
    assert seen[0] == seen[1] != later
    assert str(tmp_path) not in later
