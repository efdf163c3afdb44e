"""Layouts of files, as people have them: what is decided, that it is said, and what is refused."""

from __future__ import annotations

import csv
import gzip
import json
import shlex

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_files_for_tests import LABELLED, TWO, classes, held, image, make, refusal, write_tar

import pipeline
from pipeline.cli import main
from pipeline.sources.file_names import (
    NO_SPLITS,
    SPLITS,
    UNCLEAR,
    is_container,
    judge,
    may_be_labels,
    split_word,
)
from pipeline.sources.registry import open_source, release


@pytest.mark.parametrize(
    ("paths", "expected", "said"),
    [
        (classes("cat", "dog"), {"train": TWO}, "1 split, 2 classes from folder names"),
        (
            [f"{split}/{path}" for split in ("train", "test") for path in classes("cat", "dog")],
            {"test": TWO, "train": TWO},
            "2 splits, 2 classes from folder names",
        ),
        *(
            (
                [f"{split}/{path}" for split in splits for path in classes("cat", "dog")],
                dict.fromkeys(sorted(splits), TWO),
                f"{len(splits)} splits, 2 classes",
            )
            for splits in (
                ("Training_set", "test1"), ("seg_train", "seg_test"), ("x-train", "x-val"),
                ("train2017", "val2017"), ("TRAIN", "Dev"), ("TrainImages", "TestImages"),
                ("trn", "eval"), ("amazon", "webcam"), ("fold1", "fold2", "fold3"),
            )
        ),
        (  # the breeds below a species
            classes("cat/siamese", "cat/persian", "dog/pug", "dog/beagle", count=1),
            {"train": TWO},
            "1 split, 2 classes from folder names; 4 images lie in folders below",
        ),
        (
            [f"train/{path}" for path in classes("cat/a", "cat/b", "dog/c", "dog/d", count=1)],
            {"train": TWO},
            "1 split, 2 classes",
        ),
        (classes("cat/images", "dog/images"), {"train": TWO}, "1 split, 2 classes"),
        (  # a folder of its own in that of each split
            [f"seg_{s}/seg_{s}/{path}" for s in ("train", "test") for path in classes("cat", "dog")]
            + ["seg_pred/seg_pred/1.png"],
            {"seg_pred": {None: 1}, "seg_test": TWO, "seg_train": TWO},
            "3 splits, 2 classes from folder names; 'seg_pred' without labels",
        ),
        (
            ["test/test/1.png", *(f"train/{path}" for path in classes("cat", "dog"))],
            {"test": {None: 1}, "train": TWO},
            "2 splits, 2 classes",
        ),
        (
            [f"images/train/{path}" for path in classes("cat", "dog")] + ["images/test/1.png"],
            {"test": {None: 1}, "train": TWO},
            "2 splits, 2 classes",
        ),
        (
            ["test/1.png", "test/2.png", *(f"train/{path}" for path in classes("cat", "dog"))],
            {"test": {None: 2}, "train": TWO},
            "'test' without labels",
        ),
        (classes("train", "test"), {"test": {None: 2}, "train": {None: 2}}, "2 splits, no labels"),
        (
            ["train/cat.0.png", "train/dog.0.png", "test1/1.png"],
            {"test1": {None: 1}, "train": {None: 2}},
            "2 splits, no labels: the images lie in no folders of classes",
        ),
        (["1.png", "2.png"], {"train": {None: 2}}, "1 split, no labels"),
        (  # as CUB
            [*classes("images/001.A", "images/002.B"), "images.txt=1", "train_test_split.txt=1"],
            {"images": {"001.A": 2, "002.B": 2}},
            "1 split, 2 classes from folder names",
        ),
        (classes("cat"), {"train": {"cat": 2}}, "1 split, 1 class from folder names"),
        (classes("steam train", "bullet train"), None, "1 split, 2 classes"),
        (classes("airplane", "train", "bus"), None, "1 split, 3 classes"),
        (classes("valid", "invalid"), None, "1 split, 2 classes"),
    ],
)  # fmt: skip
def test_the_layout_is_decided_by_evidence_and_said(tmp_path, paths, expected, said):
    found, remarks = held(make(tmp_path / "set", *paths))
    if expected is not None:
        assert found == expected
    assert list(found) == sorted(found)
    assert said in remarks[0]


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        # tables of labels beside images in no folders of classes
        (["1.png", "labels.csv=path,label"], ["labels.csv", "pixsim ingest", "kind=folder"]),
        (["1.png", "anything.tsv="], ["anything.tsv"]),
        (["train/1.png", "train/labels.jsonl={}"], ["train/labels.jsonl", "CSV table"]),
        (
            [f"{s}/{name}" for s in ("train", "valid") for name in ("1.png", "labels.csv=")],
            ["train/labels.csv, valid/labels.csv", "images: {splits: {train: "],
        ),
        (["train_images/1.png", "test_images/1.png", "train.csv="], ["train.csv", "root=FOLDER"]),
        ([*LABELLED, "val/1.png", "ILSVRC_validation_ground_truth.txt=1"], ["ground_truth.txt"]),
        (
            [*LABELLED, "val/images/1.png", "val/val_annotations.txt=1"],
            ["'val'", "val/val_annotations.txt", "kind=folder"],
        ),
        (["train2017/1.png", "annotations/instances_train2017.json={}"], ["instances_train2017"]),
        (["1.png", "1.txt=cat", "2.png", "2.txt=dog"], ["2 .txt files beside"]),
        # names that are none of classes
        (classes("images"), ["the only class would be 'images'", "give the folder 'images'"]),
        (["images/1.png", "labels.csv="], ["the only class would be 'images'", "labels.csv"]),
        (classes("cat_train", "dog_train", "cat_test", "dog_test"), ["words for splits"]),
        (classes("cat/train", "cat/test", "dog/train", "dog/test"), ["would be test, train"]),
        (classes("images", "masks"), ["would be images, masks"]),
        (  # as Pascal VOC
            ["VOC/JPEGImages/1.png", "VOC/Annotations/1.xml=<a/>"],
            ["the only class would be 'VOC', all of whose images lie in 'VOC/JPEGImages'",
             "give the folder 'VOC/JPEGImages' itself"],
        ),
        (classes("cat/images"), ["would be 'cat', all of whose images lie in 'cat/images'"]),
        (["train/images/1.png", "test/images/1.png"], ["'test/images', which is no class"]),
        # splits without a common class
        (classes("train/cat", "test/dog"), ["split 'test' has no class in common", "'dog'"]),
        (classes("train/cat", "val/cat", "test/Cat"), ["split 'test'", "its only class is 'Cat'"]),
        # what loses everything
        ([*classes("cat", "dog"), "emu/1.heic=", "emu/2.heic="], ["'emu'", "2 .heic", "convert"]),
        ([*classes("cat", "dog"), "emu/1=", "emu/2=", "emu/3="], ["'emu'", "3 without suffix"]),
        ([*LABELLED, *(f"test/{p}" for p in classes("cat")), "test/dog/1.heic="], ["'test/dog'"]),
        ([*LABELLED, "test/dog/1.heic="], ["'test/dog'"]),
        ([*LABELLED, "test/test.zip="], ["none of the files of 'test'", "1 .zip"]),
        ([*LABELLED, "test/1.heic="], ["none of the files of 'test'", "1 .heic"]),
        (["a.heic=", "b.heic="], ["no image found", "left out: 2 .heic"]),
        (["a.heic=", "b.heic="], [".png, .jpg, .tif, .webp or another of "]),
        (["train.zip=", "test.zip="], ["test.zip: is no zip archive"]),
    ],
)  # fmt: skip
def test_the_implausible_is_refused_and_what_settles_it_named(tmp_path, paths, words):
    root = make(tmp_path / "set", *paths)
    message = refusal(root)
    assert all(word in message for word in words), message
    if "kind=folder" in message:  # which is a cure
        held({"source": str(root), "kind": "folder"})


def test_a_stray_image_beside_classes_is_a_bad_sample_still(tmp_path):
    root = make(tmp_path / "set", *LABELLED, "train/stray.png")
    source = open_source(str(root))
    block = source.read("train", 0, 5)
    assert [(block.origins[place], p.detail) for place, p in block.problems.items()] == [
        ("train/stray.png", "is in no folder of a class, expected SPLIT/CLASS/FILE")
    ]
    release(source)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["train", "test"], SPLITS), (["Train", "cat"], NO_SPLITS),
        (["trainA", "trainB"], NO_SPLITS), (["trainA", "trainB", "testA", "testB"], UNCLEAR),
        (["train", "extra", "test"], SPLITS),
        (["train_1", "train_2", "val"], SPLITS), (["cat", "dog"], NO_SPLITS),
        (["train", "train_extra"], UNCLEAR), (["contest", "detest"], NO_SPLITS),
    ],
)  # fmt: skip
def test_words_for_splits(names, expected):
    assert judge([name.encode() for name in names]) == expected


def test_words_in_names():
    assert all(map(is_container, (b"train_images", b"Images", b"img_data", b"testA")))
    assert not any(map(is_container, (b"cat", b"A", b"steam-train", b"n01443537", b"7")))
    assert all(map(may_be_labels, (b"a/labels.txt", b"_annotations.coco.json", b"x.csv")))
    assert not any(map(may_be_labels, (b"sample_submission.csv", b"README.txt", b"words.txt")))


@pytest.mark.parametrize(
    ("text", "word"),
    [("seg_train", "train"), ("PublicTest", "test"), ("Validation", "val"), ("x", None)],
)
def test_the_word_for_a_split_in_a_name(text, word):
    assert split_word(text) == word


# what is left out ---------------------------------------------------------------------------------


def test_what_is_left_out_is_counted_by_suffix_and_one_file_named(tmp_path, capsys):
    root = make(
        tmp_path / "set", *classes("cat", "dog"), "cat/a.heic=", "cat/b.heic=", "words.txt="
    )
    assert main(["ingest", str(root), "-o", str(tmp_path / "s.zarr")]) == 0
    lines = capsys.readouterr().err
    assert "left out: 2 .heic, words.txt\n" in lines
    assert "1 split, 2 classes from folder names\n" in lines
    main(["ingest", str(root), "-o", str(tmp_path / "t.zarr"), "--only", "plan"])
    assert "left out: 2 .heic, words.txt\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        (["fish"], "1 empty folder (fish)"),
        (["test/cat", "test/dog/.hidden"], "2 empty folders (test/cat, test/dog)"),
        ([f"{n}/x" for n in "abcd"], "4 empty folders ("),
    ],
)
def test_folders_that_hold_nothing_are_said(tmp_path, folders, said):
    root = make(tmp_path / "set", *classes("cat", "dog"))
    for folder in folders:
        (root / folder).mkdir(parents=True)
    found, remarks = held(root)
    assert found == {"train": TWO}
    assert remarks[1].startswith(f"left out: {said}")
    for path in root.rglob("*.png"):
        path.unlink()
    assert "left out: " in refusal(root)


@pytest.mark.parametrize(
    "name", ["e.npy", "labels.csv", "meta.parquet", "b.tar", "f.npz", "x.zarr/zarr.json", "x.nc"]
)
def test_a_stray_file_does_not_hide_folders_of_classes(tmp_path, name):
    root = make(tmp_path / "set", *classes("cat", "dog"), f"{name}=")
    found, remarks = held(root)
    assert found == {"train": TWO}
    assert remarks[1:] == [f"left out: {name}"]


def test_tables_beside_archives_are_stray_ones(tmp_path):
    shard = [("0.png", image()), ("0.json", b'{"label": 1}')]
    write_tar(make(tmp_path / "set", "0_stats.json={}") / "0.tar", shard)
    pq.write_table(pa.table({"key": ["0"], "label": [1]}), tmp_path / "set" / "0.parquet")
    found, remarks = held(tmp_path / "set")
    assert found == {"train": {"1": 1}}
    assert remarks[1] in ("left out: 0.parquet, 0_stats.json", "left out: 0_stats.json, 0.parquet")


def test_images_without_labels_are_ingested_and_a_job_says_what_is_missing(tmp_path, capsys):
    root = make(tmp_path / "set", "train/1.png", "test/1.png")
    store = tmp_path / "s.zarr"
    assert main(["ingest", str(root), "-o", str(store)]) == 0
    assert "(no label)" in capsys.readouterr().out
    job = tmp_path / "job.yml"
    job.write_text(f"images: {store}\noutput: {tmp_path / 'run'}\n")
    assert main(["run", str(job)]) == 2
    assert "none of the images has a label" in capsys.readouterr().err


# cures are followed -------------------------------------------------------------------------------


def test_a_table_beside_images_is_read_as_the_refusal_says(tmp_path):
    root = make(tmp_path / "set", "train_images/1.png", "train_images/2.png", "test_images/3.png")
    with (root / "train.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image_id", "label"), ("1.png", "cat"), ("2.png", "dog")])
    assert f"pixsim ingest {root}/train.csv" in refusal(root)
    found, _ = held({
        "source": str(root / "train.csv"), "root": str(root / "train_images"),
        "columns": {"path": "image_id", "label": "label"},
    })  # fmt: skip
    assert found == {"train": {"cat": 1, "dog": 1}}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["labels.jsonl", "labels.ndjson", "labels.csv", "x.tab"])
def test_the_cure_of_a_table_beside_images_is_a_command_that_works(tmp_path, name, packed):
    root = make(tmp_path / "set", "1.png", "2.png")
    content = '{"file_name": "1.png", "label": "cat"}\n{"file_name": "2.png", "label": "dog"}\n'
    if "json" not in name:
        content = "file_name,label\n1.png,cat\n2.png,dog\n".replace(",", ",\t"["tab" in name])
    name += ".gz" * packed
    (root / name).write_bytes(gzip.compress(content.encode()) if packed else content.encode())
    command = refusal(root).partition("read the table, 'pixsim ")[2].partition("'")[0]
    assert command.endswith(name)
    assert main([*shlex.split(command), "-o", str(tmp_path / "s.zarr")]) == 0
    found = pipeline.open_images(tmp_path / "s.zarr", "train")
    assert found.attrs["class_names"] == ["cat", "dog"]
    assert found.label.values.tolist() == [0, 1]


def test_tables_in_splits_are_read_as_the_refusal_says(tmp_path):
    root = tmp_path / "set"
    for split in ("train", "test"):
        table = "file_name,label\n1.png,cat\n2.png,dog"
        make(root, f"{split}/1.png", f"{split}/2.png", f"{split}/labels.csv={table}")
    message = refusal(root)
    job = tmp_path / "job.yml"
    job.write_text(message.partition("in a job with '")[2].partition("'")[0] + "\n")
    assert main(["ingest", str(job), "-o", str(tmp_path / "s.zarr")]) == 0
    store = tmp_path / "s.zarr"
    for split in ("train", "test"):
        assert pipeline.open_images(store, split).label.values.tolist() == [0, 1]


def test_unlabelled_images_can_be_added_to_labelled_ones(tmp_path):
    store = pipeline.ingest(str(make(tmp_path / "a", *LABELLED)), tmp_path / "s.zarr")
    more = str(make(tmp_path / "b", "test/1.png", "test/2.png"))
    pipeline.ingest(more, store, append=True)
    assert pipeline.open_images(store, "test").label.values.tolist() == [-1, -1]
    assert pipeline.verify(store) == []


def test_the_listing_of_an_earlier_version_has_no_remarks(tmp_path):
    root = make(tmp_path / "set", *classes("cat", "dog"))
    store = tmp_path / "s.zarr"
    assert pipeline.plan_ingest(str(root), store) == 1
    listing = store / ".work" / "listing" / "listing.json"
    content = json.loads(listing.read_text())
    for key in ("labels_from", "remarks", "left_out", "unlabelled"):
        del content[key]
    listing.write_text(json.dumps(content))
    pipeline.ingest_partitions(str(root), 0, 1, store)
    pipeline.finish_ingest(str(root), store)
