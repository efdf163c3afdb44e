"""Labels of labelled arrays: flags, texts, names and fill values."""

from __future__ import annotations

import numpy as np
import pytest
from arrays_for_tests import COUNT, NAMES, from_datasets, holds, make_arrays, make_dataset, store

from pipeline.core.errors import LabelError
from pipeline.sources.xarray_source import open_labelled

pytestmark = [
    pytest.mark.filterwarnings("ignore:Consolidated metadata"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:The data type"),
]


def test_flags_name_the_classes_and_say_their_values():
    images, _ = make_arrays(5)
    dataset = make_dataset(images, np.array([5, 1, 9, -7, 1], np.int16))
    dataset.label.attrs = {"flag_values": np.array([1, 5, 9]), "flag_meanings": "cat dog emu",
                           "_FillValue": np.int16(-7)}  # fmt: skip
    source = from_datasets({"train": dataset})
    assert source.class_names == NAMES
    assert source.read("train", 0, 5).labels.tolist() == [1, 0, 2, -1, 0]
    assert from_datasets({"train": dataset}, class_names="abc").class_names == ("a", "b", "c")
    dataset.label.attrs["flag_values"] = np.array([1, 5, 8])
    with pytest.raises(LabelError, match="label '9' is none of the classes"):
        from_datasets({"train": dataset})
    dataset.label.attrs["flag_values"] = np.array([1, 5])
    with pytest.raises(LabelError, match="3 flag_meanings and 2 flag_values"):
        from_datasets({"train": dataset})


@pytest.mark.parametrize("dtype", ["U3", object, "S3"])
def test_texts_become_sorted_classes(dtype):
    images, _ = make_arrays(4)
    texts = ["emu", "cat", "emu", "dog"]
    values = np.array([t.encode() for t in texts] if dtype == "S3" else texts, dtype)
    source = from_datasets({"train": make_dataset(images, values)})
    assert source.class_names == NAMES
    assert source.read("train", 1, 4).labels.tolist() == [0, 2, 1]


def test_texts_of_a_store_become_classes(tmp_path):
    images, _ = make_arrays(4)
    path = store(make_dataset(images, np.array(["emu", "cat", "emu", "dog"])), tmp_path / "a.zarr")
    assert open_labelled({None: [path]}).read("train", 0, 4).labels.tolist() == [2, 0, 2, 1]


def test_given_names_go_before_those_of_the_data_set():
    pair = make_arrays()
    dataset = make_dataset(*pair, class_names=["x", "y", "z"])
    assert from_datasets({"train": dataset}).class_names == ("x", "y", "z")
    assert from_datasets({"train": dataset}, class_names=NAMES).class_names == NAMES


@pytest.mark.parametrize(
    ("fill", "labels", "names", "expected"),
    [
        (-9, [0, -9, 1], None, [0, -1, 1]),
        (255, [0, 255, 1], None, [0, -1, 1]),
        (9, [0, 9, 1], None, [0, -1, 1]),
        (3, [0, 3, 2], NAMES, [0, -1, 2]),
        (0, [0, 1, 2], NAMES, [0, 1, 2]),  # what Zarr fills with by itself
        (0, [0, 1, 2], None, [0, 1, 2]),
    ],
)
def test_a_fill_value_outside_the_classes_is_no_label(fill, labels, names, expected):
    images, _ = make_arrays(3)
    dtype = np.int16 if fill < 0 else np.uint8
    dataset = make_dataset(images, np.array(labels, dtype))
    dataset.label.attrs["_FillValue"] = dtype(fill)
    source = from_datasets({"train": dataset}, class_names=names)
    assert source.read("train", 0, 3).labels.tolist() == expected


def test_images_without_any_label_are_unlabelled():
    images, _ = make_arrays()
    source = from_datasets({"train": make_dataset(images, None)}, class_names=NAMES)
    assert holds(source, "train", images, np.full(COUNT, -1))


def test_a_split_without_labels_stands_beside_one_with_texts():
    images, _ = make_arrays(4)
    texts = make_dataset(images, np.array(["emu", "cat", "emu", "dog"]))
    source = from_datasets({"train": texts, "test": make_dataset(images, None)})
    assert source.class_names == NAMES
    assert source.read("train", 0, 4).labels.tolist() == [2, 0, 2, 1]
    assert source.read("test", 0, 4).labels.tolist() == [-1] * 4


def test_a_label_outside_the_classes_is_refused_by_its_place_in_the_split(tmp_path):
    images, labels = make_arrays()
    labels[17] = 3
    paths = [store(make_dataset(images[p], labels[p]), tmp_path / f"{p.start}.zarr")
             for p in (slice(0, 10), slice(10, COUNT))]  # fmt: skip
    with pytest.raises(LabelError, match=r"sample 17\b"):
        open_labelled({"train": paths}, class_names=NAMES)
