"""Folders that tables describe: a table beside images, repositories of Parquet, files of IDX."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_files_for_tests import grey, put

import pipeline
from pipeline.config.job_settings import make_images
from pipeline.core.errors import ConfigError, LabelError, SourceError
from pipeline.sources.registry import find_kind, open_source, release
from pipeline.storage.manifest import IMAGES, read_manifest


def pictures(folder, count=3, start=0):
    for number in range(count):
        put(folder / f"{number}.png", grey(start + number))


def read(source, **settings):
    """Return for each split the values of its images and their labels; classes, and remarks."""
    opened = open_source({"source": str(source), **settings})
    try:
        found = {}
        for split, info in opened.splits().items():
            block = opened.read(split, 0, info.count)
            assert block.problems == {}
            images = block.images.reshape(info.count, -1)
            found[split] = images[:, 0].tolist(), block.labels.tolist()
        return found, opened.class_names, opened.remarks
    finally:
        release(opened)


# a table beside images ---------------------------------------------------------------------------


def csv_of(names, labels):
    rows = zip(names, labels, strict=True)
    return "file_name,label\n" + "".join(f"{name},{label}\n" for name, label in rows)


def json_of(names, labels):
    pairs = zip(names, labels, strict=True)
    return "".join(json.dumps({"file_name": n, "label": label}) + "\n" for n, label in pairs)


def parquet_of(names, labels):
    stream = pa.BufferOutputStream()
    pq.write_table(pa.table({"file_name": names, "label": labels}), stream)
    return stream.getvalue().to_pybytes()


def roboflow(names, labels):
    rows = [f"{name}, {int(x == 'cat')}, {int(x == 'dog')}\n" for name, x in zip(names, labels)]  # noqa: B905
    return "filename, cat, dog\n" + "".join(rows)


FORMS = pytest.mark.parametrize(
    ("name", "make"),
    [("metadata.csv", csv_of), ("metadata.jsonl", json_of), ("metadata.parquet", parquet_of),
     ("_classes.csv", roboflow)],
)  # fmt: skip
NAMES, LABELS = ["2.png", "0.png", "1.png"], ["cat", "dog", "cat"]


@FORMS
def test_a_table_beside_the_images_of_each_split_says_their_labels(tmp_path, name, make):
    for split, start in (("train", 0), ("valid", 10)):
        pictures(tmp_path / split, start=start)
        put(tmp_path / split / name, make(NAMES, LABELS))
    assert find_kind(make_images(str(tmp_path))) == "list"
    found, names, remarks = read(tmp_path)
    assert names == ("cat", "dog")
    assert found == {"train": ([2, 0, 1], [0, 1, 0]), "valid": ([12, 10, 11], [0, 1, 0])}
    assert not any("left out" in remark for remark in remarks)
    found, _, _ = read(tmp_path / "valid", split="valid")
    assert found == {"valid": ([12, 10, 11], [0, 1, 0])}
    given = {"train": str(tmp_path / "valid"), "test": str(tmp_path / "train")}
    opened = open_source({"splits": given})
    assert {s: i.count for s, i in opened.splits().items()} == {"train": 3, "test": 3}
    release(opened)


@FORMS
def test_a_table_above_the_images_says_their_splits_by_their_folders(tmp_path, name, make):
    for split, start in (("train", 0), ("test", 10)):
        pictures(tmp_path / split, start=start)
    names = [f"{split}/{name}" for split in ("train", "test") for name in NAMES]
    put(tmp_path / name, make(names, LABELS * 2))
    assert read(tmp_path)[0] == {
        "train": ([2, 0, 1], [0, 1, 0]), "test": ([12, 10, 11], [0, 1, 0]),
    }  # fmt: skip
    pictures(tmp_path / "other" / "images")
    put(tmp_path / "other" / name, make([f"images/{n}" for n in NAMES], LABELS))
    assert read(tmp_path / "other")[0] == {"train": ([2, 0, 1], [0, 1, 0])}


def test_images_that_no_table_names_are_counted(tmp_path):
    pictures(tmp_path / "train", 5)
    put(tmp_path / "train" / "metadata.csv", csv_of([*NAMES, "2.png"], [*LABELS, "cat"]))
    _, _, remarks = read(tmp_path)
    assert remarks[-1] == "left out: 2 images that no table names"


def test_folders_of_classes_are_classes_also_beside_such_a_table(tmp_path):
    tmp_path = tmp_path / "set"
    for name in ("cat", "dog"):
        pictures(tmp_path / "train" / name)
    names = [f"train/cat/{n}.png" for n in range(3)]
    put(tmp_path / "metadata.csv", csv_of(names, "xyz"))
    assert find_kind(make_images(str(tmp_path))) == "folder"
    found, names, remarks = read(tmp_path)
    assert (names, found["train"][1]) == (("cat", "dog"), [0, 0, 0, 1, 1, 1])
    assert remarks[-1] == "left out: metadata.csv"


def test_what_a_table_beside_images_does_not_say_is_refused(tmp_path):
    pictures(tmp_path / "captions")
    put(tmp_path / "captions" / "metadata.csv", csv_of(NAMES, LABELS).replace("label", "text"))
    with pytest.raises(ConfigError, match=r"but text; .*columns: {label: null}"):
        read(tmp_path / "captions")
    assert read(tmp_path / "captions", columns={"label": None})[0]["train"][1] == [-1] * 3
    pictures(tmp_path / "multi")
    put(tmp_path / "multi" / "_classes.csv", "filename, a, b\n0.png, 1, 1\n1.png, 0, 1\n")
    with pytest.raises(LabelError, match=r"row 1 is of 2 of the classes a, b: .*multi-label"):
        read(tmp_path / "multi")
    for split in ("train", "test"):
        pictures(tmp_path / "half" / split)
    put(tmp_path / "half" / "train" / "metadata.csv", csv_of(NAMES, LABELS))
    with pytest.raises(SourceError, match=r"lie in no folders of classes, and train/metadata\.csv"):
        read(tmp_path / "half")
    put(tmp_path / "multi" / "metadata.csv", csv_of(NAMES, LABELS))
    with pytest.raises(SourceError, match=r"described by metadata\.csv, _classes\.csv; give one"):
        read(tmp_path / "multi")


def test_a_store_of_a_table_beside_images_is_resumed_and_has_the_digest_of_its_files(tmp_path):
    pictures(tmp_path / "set" / "train", 9)
    names, labels = [f"{n}.png" for n in range(9)], ["cat", "dog", "emu"] * 3
    put(tmp_path / "set" / "train" / "metadata.csv", csv_of(names, labels))
    images = np.stack([np.full((6, 4), n, np.uint8) for n in range(9)])
    arrays = pipeline.from_arrays({"train": (images, np.array(labels))})
    expected = pipeline.digest(pipeline.ingest(arrays, tmp_path / "e.zarr"))
    source, store = str(tmp_path / "set"), tmp_path / "s.zarr"
    assert pipeline.plan_ingest(source, store, 2) == 5
    pipeline.ingest_partitions(source, 3, 5, store, 2)
    assert pipeline.digest(pipeline.ingest(source, store, 2)) == expected
    again = read_manifest(store, IMAGES)["finished"]
    assert pipeline.digest(pipeline.ingest(source, store, 2)) == expected
    assert read_manifest(store, IMAGES)["finished"] == again


# repositories of Parquet -------------------------------------------------------------------------


def parquet(path, values=(0, 1, 2, 3), names=("cat", "dog")):
    table = pa.table({
        "image": [{"bytes": grey(value), "path": None} for value in values],
        "label": [value % 2 for value in values],
    })  # fmt: skip
    if names:
        features = {"label": {"_type": "ClassLabel", "names": list(names)}}
        notes = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": notes})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


TRAIN, TEST = ([0, 1, 2, 3], [0, 1, 0, 1]), ([7], [1])


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"),
        ("plain_text/train-00000-of-00001.parquet", "plain_text/test-00000-of-00001.parquet"),
        ("default/train/0000.parquet", "default/test/0000.parquet"),
        ("train/0000.parquet", "test/0000.parquet"),
        ("train-0.parquet", "test-0.parquet"),
    ],
)
def test_a_repository_is_read_whatever_its_folders_are(tmp_path, train, test):
    tmp_path = tmp_path / "set"
    parquet(tmp_path / train)
    parquet(tmp_path / test, [7])
    put(tmp_path / ".gitattributes", "")
    assert find_kind(make_images(str(tmp_path))) == "parquet"
    found, names, remarks = read(tmp_path)
    assert (found, names) == ({"train": TRAIN, "test": TEST}, ("cat", "dog"))
    assert not any("left out" in remark for remark in remarks)


def test_one_of_several_configurations_is_to_be_named(tmp_path):
    for name in ("large", "small"):
        parquet(tmp_path / name / "train-00000-of-00001.parquet")
    with pytest.raises(SourceError, match=r"holds 2 configurations, large, small; .*such as") as no:
        read(tmp_path)
    assert read(str(no.value).rpartition("such as ")[2])[0] == {"train": TRAIN}


CARD = """\
---
license: mit
dataset_info:
{}features:
{}- name: image
{}  dtype: image
{}- name: label
{}  dtype:
{}    class_label:
{}      names:
{}        '1': zebra
{}        '0': horse
---
# A card
"""


@pytest.mark.parametrize(
    ("card", "names"),
    [
        (CARD.format(*["  "] * 9), ("horse", "zebra")),
        (CARD.format("- config_name: data\n  ", *["  "] * 8), ("horse", "zebra")),
        ("no head", ("0", "1")),
        ("---\n{ not: [yaml\n---\n", ("0", "1")),
        ("---\ndataset_info: []\n---\n", ("0", "1")),
    ],
)
def test_the_card_of_a_repository_names_the_classes_where_the_files_do_not(tmp_path, card, names):
    parquet(tmp_path / "data" / "train-00000-of-00001.parquet", names=None)
    put(tmp_path / "README.md", card)
    assert read(tmp_path)[:2] == ({"train": TRAIN}, names)
    parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    assert read(tmp_path)[1] == ("cat", "dog")


# IDX ---------------------------------------------------------------------------------------------


def idx(path, array, packed=False):
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    content = bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()
    put(path, gzip.compress(content) if packed else content)


A = np.arange(96, dtype=np.uint8).reshape(4, 6, 4)
Y = np.array([0, 2, 1, 0], np.uint8)
EXPECTED = {split: ([0, 24, 48, 72], [0, 2, 1, 0]) for split in ("test", "train")}


@pytest.mark.parametrize("first", ["train-images-idx3-ubyte", "train-images.idx3-ubyte"])
@pytest.mark.parametrize("packed", ["", ".gz", "both"])
def test_the_files_of_mnist_are_known_by_their_names(tmp_path, first, packed):
    for split in ("train", "t10k"):
        for what, array in (("images", A), ("labels", Y)):
            name = first.replace("train", split).replace("images", what)
            name = name.replace("3", str(array.ndim))
            for suffix in {"both": ("", ".gz")}.get(packed, (packed,)):
                idx(tmp_path / f"{name}{suffix}", array, bool(suffix))
    assert read(tmp_path)[0] == EXPECTED
    path = tmp_path / f"{first}{packed.replace('both', '')}"
    assert find_kind(make_images(str(path))) == "numpy"
    found, names, remarks = read(path)
    assert (found, names) == ({"train": EXPECTED["train"]}, ("0", "1", "2"))
    assert "train-labels" in remarks[-1]


def test_files_of_several_sets_are_told_apart(tmp_path):
    for name in ("letters", "digits"):
        for split in ("train", "test"):
            idx(tmp_path / f"emnist-{name}-{split}-images-idx3-ubyte.gz", A, True)
            idx(tmp_path / f"emnist-{name}-{split}-labels-idx1-ubyte.gz", Y, True)
    with pytest.raises(SourceError, match="IDX files of 2 sets, emnist digits, emnist") as no:
        read(tmp_path)
    assert read(str(no.value).rpartition("such as ")[2].strip("'"))[0] == EXPECTED


@pytest.mark.datasets
def test_a_folder_of_idx_files_has_the_digest_of_the_catalog(real_datasets, tmp_path, monkeypatch):
    for path in (real_datasets / "mnist").glob("t10k-*"):
        put(tmp_path / "my digits" / path.name, path.read_bytes())
    store = pipeline.ingest(str(tmp_path / "my digits"), tmp_path / "s.zarr", 3000)
    opened = open_source("mnist")
    block = opened.read("test", 0, 10_000)
    arrays = pipeline.from_arrays({"test": (block.images, block.labels)}, opened.class_names)
    expected = pipeline.ingest(arrays, tmp_path / "e.zarr")
    assert pipeline.digest(store) == pipeline.digest(expected)
