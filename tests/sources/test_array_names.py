"""What arrays are called: which are images, which labels, of which split; and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.core.errors import ShapeError, SourceError
from pipeline.sources.array_names import label_spellings, role_of
from pipeline.sources.arrays import from_arrays
from pipeline.sources.registry import open_source

A, B = np.zeros((6, 8, 7), np.uint8), np.ones((4, 8, 7), np.uint8)
Y, Z = np.array([0, 1, 2, 0, 1, 2]), np.array([2, 1, 0, 2])
NONE = [-1] * 6


def opened(path, **settings):
    return open_source({"source": str(path), **settings})


def labels_of(source):
    return {
        name: source.read(name, 0, info.count).labels.tolist()
        for name, info in source.splits().items()
    }


PAIRS = {
    "Keras": ({"x_train": A, "y_train": Y, "x_test": B, "y_test": Z}, "train test"),
    "scikit-learn": ({"X_train": A, "Y_train": Y, "X_test": B, "y_test": Z}, "train test"),
    "named": ({"train_images": A, "train_labels": Y, "val_images": B, "val_labels": Z},
              "train val"),
    "turned": ({"images_train": A, "labels_train": Y, "images_dev": B, "labels_dev": Z},
               "train dev"),
    "split first": ({"train_x": A, "train_y": Y, "VALID_X": B, "VALID_Y": Z}, "train valid"),
    "run together": ({"xtrain": A, "ytrain": Y, "Xtest": B, "Ytest": Z}, "train test"),
    "camel": ({"trainImages": A, "trainLabels": Y, "testImages": B, "testLabels": Z},
              "train test"),
    "data": ({"train_data": A, "train_target": Y, "test_data": B, "test_targets": Z},
             "train test"),
    "one word": ({"image_train": A, "label_train": Y, "image_test": B, "label_test": Z},
                 "train test"),
    "bare": ({"train": A, "train_labels": Y, "test": B, "test_labels": Z}, "train test"),
    "other split": ({"x_train": A, "y_train": Y, "x_extra": B, "y_extra": Z}, "train extra"),
    "dashes": ({"train-images": A, "train-labels": Y, "eval-images": B, "eval-labels": Z},
               "train eval"),
}  # fmt: skip
SINGLE = [("X", "y"), ("x", "Y"), ("images", "labels"), ("Images", "Labels"), ("image", "label"),
          ("imgs", "labels"), ("data", "target"), ("data", "labels"), ("DATA", "targets"),
          ("pixels", "label"), ("inputs", "targets"), ("images", "targets"), ("arr_0", "arr_1"),
          ("arr_1", "arr_0")]  # fmt: skip


@pytest.mark.parametrize(("content", "splits"), PAIRS.values(), ids=PAIRS)
def test_arrays_of_usual_names_are_found_in_archives_and_files(tmp_path, content, splits):
    np.savez(tmp_path / "a.npz", **content)
    (tmp_path / "files").mkdir()
    for name, array in content.items():
        np.save(tmp_path / "files" / f"{name}.npy", array)
    expected = dict(zip(splits.split(), (Y.tolist(), Z.tolist()), strict=True))
    assert labels_of(opened(tmp_path / "a.npz")) == expected
    assert labels_of(opened(tmp_path / "files")) == expected


@pytest.mark.parametrize(("images", "labels"), SINGLE)
def test_arrays_of_one_split_are_found_by_their_usual_names(tmp_path, images, labels):
    np.savez(tmp_path / "a.npz", **{labels: Y, images: A})
    assert labels_of(opened(tmp_path / "a.npz", split="test")) == {"test": Y.tolist()}


@pytest.mark.parametrize(
    ("images", "labels"),
    [("X", "y"), ("X_train", "y_train"), ("train_images", "train_labels"), ("X", "Y"),
     ("data", "target"), ("Image", "Label")],
)  # fmt: skip
def test_the_labels_of_one_file_lie_beside_it(tmp_path, images, labels):
    np.save(tmp_path / f"{images}.npy", A)
    np.save(tmp_path / f"{labels}.npy", Y)
    assert labels_of(opened(tmp_path / f"{images}.npy")) == {"train": Y.tolist()}


@pytest.mark.parametrize("name", ["classes", "class_names", "label_names", "Target_Names"])
def test_class_names_lie_beside_the_images(tmp_path, name):
    np.savez(tmp_path / "a.npz", x_train=A, y_train=Y, **{name: np.array(["cat", "dog", "emu"])})
    source = opened(tmp_path / "a.npz")
    assert source.class_names == ("cat", "dog", "emu")
    assert source.remarks == ("1 split, 3 classes from array 'y_train'",)


def test_an_array_called_classes_that_holds_numbers_names_no_class(tmp_path):
    np.savez(tmp_path / "a.npz", x_train=A, y_train=Y, classes=np.arange(3))
    source = opened(tmp_path / "a.npz")
    assert source.class_names == ("0", "1", "2")
    assert [remark.rpartition(": ")[2] for remark in source.remarks] == [
        "left out classes", "1 split, 3 classes from array 'y_train'",
    ]  # fmt: skip


def test_images_without_labels_are_kept_and_said(tmp_path):
    np.savez(tmp_path / "a.npz", x_train=A, y_train=Y, x_test=A, weights=np.zeros(3))
    source = opened(tmp_path / "a.npz")
    assert labels_of(source) == {"train": Y.tolist(), "test": NONE}
    assert "left out weights" in source.remarks[0]
    assert source.remarks[1:] == (
        "no labels for a.npz/x_test: kept as unlabelled images",
        "2 splits, 3 classes from array 'y_train'",
    )


@pytest.mark.parametrize("names", [("train", "test", "valid"), ("train_images", "x_test", "dev")])
def test_archives_of_images_alone_are_unlabelled(tmp_path, names):
    np.savez(tmp_path / "a.npz", **dict.fromkeys(names, A))
    source = opened(tmp_path / "a.npz")
    assert (list(labels_of(source).values()), source.class_names) == ([NONE] * 3, ())
    assert source.unlabelled


AMBIGUOUS = {
    "two labels": ({"train_images": A, "train_labels": Y, "labels": Y[::-1]},
                   "train_labels or labels may be the labels of train_images"),
    "two images": ({"images": A, "data": A, "truth": Y}, "images or data may be the images"),
    "two pairs": ({"x_train": A, "y_train": Y, "train_images": A, "train_labels": Y},
                  "x_train or train_images may be the images"),
    "case": ({"x_train": A, "y_train": Y, "X_train": A}, "x_train or X_train may be the images"),
    "unknown labels": ({"train_images": A, "truth": Y},
                       "holds train_images without train_labels, and truth"),
    "unknown columns": ({"x_test": A, "truth": np.eye(6)}, "x_test without y_test, and truth"),
    "labels alone": ({"x_train": A, "y_train": Y, "y_test": Z}, "y_test belongs to no images"),
    "unknown images": ({"pictures": A, "kinds": Y}, "none of them has a usual name of images"),
    "unnamed": ({"arr_0": A, "arr_1": Y, "arr_2": A, "arr_3": Y}, "none of them has a usual"),
    "unnamed numbers": ({"arr_0": A, "arr_1": Z}, "none of them has a usual"),
    "nothing": ({}, "holds nothing"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "message"), AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_names_that_may_mean_two_things_are_refused_with_what_there_is(tmp_path, content, message):
    np.savez(tmp_path / "a.npz", **content)
    with pytest.raises(SourceError, match=message) as caught:
        opened(tmp_path / "a.npz")
    for name, array in content.items():
        assert f"{name} {array.shape} {array.dtype}" in str(caught.value)
    assert "name them: variables: {image: NAME, label: NAME}" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "variables", "expected"),
    [
        ({"pictures": A, "kinds": Y, "more": Y}, {"image": "pictures", "label": "kinds"},
         {"train": Y.tolist()}),
        ({"train_images": A, "train_labels": Y, "labels": Z},
         {"image": "train_images", "label": "train_labels"}, {"train": Y.tolist()}),
        ({"p_train": A, "k_train": Y, "p_test": B, "k_test": Z},
         {"image": "p_{split}", "label": "k_{split}"},
         {"train": Y.tolist(), "test": Z.tolist()}),
        ({"arr_0": A, "arr_1": Y, "arr_2": B, "arr_3": Z}, {"image": "arr_2", "label": "arr_3"},
         {"train": Z.tolist()}),
    ],
)  # fmt: skip
def test_variables_name_the_arrays_of_an_archive(tmp_path, content, variables, expected):
    np.savez(tmp_path / "a.npz", **content)
    assert labels_of(opened(tmp_path / "a.npz", variables=variables)) == expected


def test_a_variable_that_is_not_there_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", pictures=A)
    with pytest.raises(SourceError, match="none is called 'pictures2', did you mean 'pictures'"):
        opened(tmp_path / "a.npz", variables={"image": "pictures2"})


def test_files_of_labels_that_belong_to_none_and_files_that_are_classes_are_refused(tmp_path):
    np.save(tmp_path / "x_train.npy", A)
    np.save(tmp_path / "y_train.npy", Y)
    np.save(tmp_path / "y_test.npy", Z)
    with pytest.raises(SourceError, match=r"y_test\.npy: holds labels of none of the images x_tr"):
        opened(tmp_path)
    (tmp_path / "quickdraw").mkdir()
    for name in ("airplane", "banana", "cat"):
        np.save(tmp_path / "quickdraw" / f"{name}.npy", A)
    with pytest.raises(SourceError, match=r"one of 3 files without labels.*airplane\.npy.*savez"):
        opened(tmp_path / "quickdraw")
    (tmp_path / "parts").mkdir()
    for number in range(3):
        np.save(tmp_path / "parts" / f"part-{number}.npy", A)
    assert labels_of(opened(tmp_path / "parts")) == {"train": NONE * 3}


def test_archives_side_by_side_are_splits_where_their_names_say_so(tmp_path):
    np.savez(tmp_path / "train.npz", images=A, labels=Y)
    assert list(labels_of(opened(tmp_path / "train.npz", split="all"))) == ["all"]
    np.savez(tmp_path / "test.npz", images=B, labels=Z)
    assert labels_of(opened(tmp_path)) == {"test": Z.tolist(), "train": Y.tolist()}


def test_what_a_file_for_each_class_is_to_become_works(tmp_path):
    arrays, names = [A, B], ["airplane", "banana"]
    labels = np.repeat(names, [len(a) for a in arrays])
    np.savez(tmp_path / "all.npz", images=np.concatenate(arrays), labels=labels)
    source = opened(tmp_path / "all.npz")
    assert source.class_names == ("airplane", "banana")
    assert labels_of(source) == {"train": [0] * 6 + [1] * 4}


@pytest.mark.parametrize(
    ("name", "kind", "split"),
    [("x_mean", "image", "mean"), ("X", "image", ""), ("y_train", "label", "train"),
     ("Train_Labels", "label", "train"), ("class_names", "names", ""), ("test", "image", "test"),
     ("images_part_2", "image", "part_2")],
)  # fmt: skip
def test_a_name_says_what_an_array_is(name, kind, split):
    assert role_of(name)[:2] == (kind, split)


def test_other_names_say_nothing():
    for name in ("weights", "example", "yield", "xyz", "maximages", "trainer", "dataset"):
        assert role_of(name) is None, name
    assert label_spellings("weights") == []


# shapes ----------------------------------------------------------------------------------------


def pictures(*shape):
    return np.arange(np.prod(shape), dtype=np.uint64).reshape(shape).astype(np.uint8)


def as_npz(folder, images):
    np.savez(folder / "a.npz", images=images, labels=np.arange(len(images)))
    return opened(folder / "a.npz")


def as_arrays(folder, images):
    return from_arrays({"train": (images, np.arange(len(images)))})


READERS = pytest.mark.parametrize("reader", [as_npz, as_arrays])


@READERS
@pytest.mark.parametrize("shape", [(5, 3, 8, 8), (5, 1, 9, 8), (5, 4, 30, 20), (5, 3, 9, 5)])
def test_channels_that_plainly_come_first_are_moved_to_the_end(tmp_path, reader, shape):
    images = pictures(*shape)
    source = reader(tmp_path, images)
    assert source.splits()["train"].shape == (*shape[2:], shape[1])
    for start, stop in ((0, 5), (2, 4), (3, 3)):
        found = source.read("train", start, stop).images
        np.testing.assert_array_equal(found, np.moveaxis(images[start:stop], 1, -1))


@READERS
@pytest.mark.parametrize(
    "shape",
    [(5, 8, 8, 3), (5, 8, 8, 1), (5, 3, 8, 3), (5, 64, 60, 13), (5, 8, 8, 2)],
)
def test_channels_that_come_last_stay_there(tmp_path, reader, shape):
    images = pictures(*shape)
    source = reader(tmp_path, images)
    assert source.splits()["train"].shape == shape[1:]
    np.testing.assert_array_equal(source.read("train", 1, 4).images, images[1:4])


@READERS
@pytest.mark.parametrize(
    ("shape", "message"),
    [((5, 8, 8, 8), r"3-D: as many layers.*images\[:, 4\]"),
     ((5, 13, 64, 64), r"np\.moveaxis\(images, 1, -1\)"),
     ((5, 784), r"flat: 784 values each.*images\.reshape\(-1, 28, 28\)"),
     ((5, 3072), r"images\.reshape\(-1, 3, 32, 32\)"),
     ((5, 50), "HEIGHT, WIDTH"),
     ((5, 2, 3, 4, 5), r"expected \(sample, y, x\)"),
     ((5,), r"expected \(sample, y, x\)")],
)  # fmt: skip
def test_images_of_other_shapes_are_refused_with_what_they_are(tmp_path, reader, shape, message):
    with pytest.raises(ShapeError, match=message):
        reader(tmp_path, pictures(*shape))


def test_where_channels_may_be_first_or_last_a_file_is_refused_and_arrays_have_them_last(tmp_path):
    images = pictures(5, 3, 4, 4)
    with pytest.raises(ShapeError, match="may have their channels first or last"):
        as_npz(tmp_path, images)
    assert from_arrays({"train": (images, Y[:5])}).splits()["train"].shape == (3, 4, 4)


@READERS
@pytest.mark.parametrize(
    ("shape", "cure"),
    [((5, 784), lambda a: a.reshape(-1, 28, 28)), ((5, 3072), lambda a: a.reshape(-1, 3, 32, 32)),
     ((5, 13, 64, 64), lambda a: np.moveaxis(a, 1, -1)), ((5, 8, 8, 8), lambda a: a[:, 4])],
)  # fmt: skip
def test_the_cures_of_shapes_work(tmp_path, reader, shape, cure):
    assert reader(tmp_path, cure(pictures(*shape))).splits()["train"].count == 5


def test_a_lone_channel_is_dropped_where_other_splits_have_none(tmp_path):
    np.savez(tmp_path / "a.npz", x_train=A[..., None], y_train=Y, x_test=B, y_test=Z)
    arrays = {"train": (A[..., None], Y), "test": (B, Z)}
    for source in (opened(tmp_path / "a.npz"), from_arrays(arrays)):
        assert [info.shape for info in source.splits().values()] == [(8, 7), (8, 7)]
        np.testing.assert_array_equal(source.read("train", 2, 4).images, A[2:4])


@pytest.mark.parametrize("other", [np.float32, bool])
def test_splits_whose_pixels_mean_other_things_are_refused(tmp_path, other):
    images = B.astype(other)
    np.savez(tmp_path / "a.npz", x_train=A, y_train=Y, x_test=images, y_test=Z)
    with pytest.raises(SourceError, match=r"x_train has images of uint8 and .*x_test of "):
        opened(tmp_path / "a.npz")
    with pytest.raises(SourceError, match="split 'train' has images of uint8 and split 'test'"):
        from_arrays({"train": (A, Y), "test": (images, Z)})


@READERS
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_images_with_values_that_are_no_numbers_are_bad_samples(tmp_path, reader, value):
    images = np.ones((5, 4, 3), np.float32)
    images[3, 1, 2] = images[3, 2, 2] = value
    source = reader(tmp_path, images)
    block = source.read("train", 2, 5)
    assert list(block.problems) == [1]
    assert f"2 of 12 pixels missing: pixel (1, 2) is {value}" in block.problems[1].detail
    assert (block.labels.tolist(), block.images[1].max()) == ([2, -1, 4], 0)
    assert images[3, 1, 2] != 0  # what was given stays as it is
