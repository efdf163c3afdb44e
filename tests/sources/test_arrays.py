"""Sources of arrays in memory: what is accepted, and how the rest is refused."""

from __future__ import annotations

import numpy as np
import pytest
from arrays_for_tests import COUNT, NAMES, make_arrays

from pipeline.core.errors import LabelError, ShapeError, SourceError
from pipeline.sources.arrays import from_arrays


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
    arrays = {"train": (images, np.array([0, 2, -1, 1])), "test": (images, np.array([4, 3, 0, 0]))}
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


@pytest.mark.parametrize(
    "labels", [np.zeros(49, int), np.zeros((49, 1), int), np.zeros((50, 2, 2), int), np.array(3)]
)
def test_another_number_of_labels_than_images_is_refused(labels):
    images, _ = make_arrays()
    with pytest.raises(ShapeError, match="one label for each image"):
        from_arrays({"valid": (images, labels)})


def test_a_column_of_labels_is_taken_as_labels():
    images, labels = make_arrays()
    block = from_arrays({"train": (images, labels[:, None])}, NAMES).read("train", 0, COUNT)
    np.testing.assert_array_equal(block.labels, labels)


@pytest.mark.parametrize("dtype", [np.complex64, "M8[s]", "m8[s]", "V4"])
def test_labels_that_are_neither_codes_nor_text_are_refused(dtype):
    images, labels = make_arrays()
    with pytest.raises(SourceError, match=r"split 'train': labels of .*expected whole numbers"):
        from_arrays({"train": (images, labels.astype(np.int64).astype(dtype))})


@pytest.mark.parametrize("encode", [str, str.encode])
def test_texts_become_sorted_classes_of_all_splits(encode):
    images, _ = make_arrays(3)
    arrays = {
        "train": (images, np.array([encode(t) for t in ("emu", "cat", "emu")])),
        "test": (images[:2], np.array([encode(t) for t in ("dog", "cat")])),
    }
    source = from_arrays(arrays)
    assert source.class_names == ("cat", "dog", "emu")
    assert source.read("train", 0, 3).labels.tolist() == [2, 0, 2]
    assert source.read("test", 0, 2).labels.tolist() == [1, 0]
    assert from_arrays(arrays, ["emu", "dog", "cat"]).read("train", 0, 3).labels.tolist() == [
        0,
        2,
        0,
    ]
    with pytest.raises(LabelError, match="label 'dog' is none of the classes"):
        from_arrays(arrays, ["emu", "cat"])


def test_codes_in_one_split_and_texts_in_another_are_refused():
    images, labels = make_arrays(3)
    with pytest.raises(LabelError, match="some texts"):
        from_arrays({"train": (images, labels), "test": (images, np.array(["a", "b", "a"]))})


@pytest.mark.parametrize("label", [2**32, 2**32 + 1, 2**31, -(2**32)])
def test_a_label_that_does_not_fit_is_refused_and_never_becomes_another(label):
    images, labels = make_arrays()
    wide = labels.astype(np.int64)
    wide[7] = label
    with pytest.raises(LabelError, match=f"sample 7 has label {label}"):
        from_arrays({"train": (images, wide)}, NAMES)


def test_a_large_label_without_names_does_not_make_as_many_classes(monkeypatch):
    images, _ = make_arrays(2)
    source = from_arrays({"train": (images, np.array([10**6, 7]))})
    assert source.class_names == ("7", "1000000")
    assert source.read("train", 0, 2).labels.tolist() == [1, 0]
    monkeypatch.setattr("pipeline.sources.labels.MOST_CLASSES", 1)
    with pytest.raises(LabelError, match="more than 1 different labels"):
        from_arrays({"train": (images, np.array([0, 99]))})


def test_truth_values_are_given_as_0_and_1_of_full_scale_1():
    images = np.random.default_rng(0).random((4, 2, 3)) < 0.5
    source = from_arrays({"train": (images, np.zeros(4, int))})
    assert (source.full_scale, source.splits()["train"].dtype) == (1, "uint8")
    block = source.read("train", 1, 4)
    assert block.images.dtype == np.uint8
    assert block.images.tolist() == [
        [[int(v) for v in row] for row in i] for i in images[1:].tolist()
    ]


@pytest.mark.parametrize(
    ("dtype", "announced"),
    [("f2", "float32"), ("f4", "float32"), (">f4", "float32"), ("f8", "float64"),
     (">f8", "float64"), (">u2", "uint16")],
)  # fmt: skip
def test_floats_and_other_byte_orders_are_announced_as_they_are_given(dtype, announced):
    images = np.arange(24).reshape(2, 3, 4).astype(dtype)
    source = from_arrays({"train": (images, np.zeros(2, int))})
    found = source.read("train", 0, 2).images
    assert source.splits()["train"].dtype == announced
    assert found.dtype == np.dtype(announced)
    assert found.dtype.isnative
    assert found.tolist() == np.arange(24).reshape(2, 3, 4).tolist()


@pytest.mark.parametrize(
    ("dtype", "values", "message"),
    [
        ("int32", (0, 255), r"int32 with values 0 to 255.*fit \.astype\(\"uint8\"\)"),
        ("int64", (3, 256), r"values 3 to 256.*fit \.astype\(\"uint16\"\)"),
        ("uint32", (0, 65536), r"values 0 to 65536.*scale the values"),
        ("int8", (-1, 7), r"values -1 to 7.*scale the values"),
        ("complex64", (0, 1), r"complex64, expected uint8"),
        ("longdouble", (0, 1), r"expected uint8"),
    ],
)
def test_images_of_other_types_are_refused_with_their_range_and_the_cure(dtype, values, message):
    images = np.zeros((2, 3, 4), dtype)
    images[0, 0, 0], images[1], images[1, 2, 3] = values[0], values[0], values[1]
    images[0] = values[0]
    with pytest.raises(SourceError, match=message):
        from_arrays({"train": (images, np.zeros(2, int))})
