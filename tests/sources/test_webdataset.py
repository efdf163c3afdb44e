"""Tar archives of samples as webdataset packs them: which members are images, which labels."""

from __future__ import annotations

import json

import numpy as np
import pytest
from image_files_for_tests import everything, png, write_tar

from pipeline.core.blocks import LABEL_UNKNOWN
from pipeline.sources.archives import ArchiveReader
from pipeline.sources.encoded import open_encoded

GOOD = png(np.zeros((6, 4), np.uint8))


def opened(tmp_path, *paths, **options):
    return open_encoded(ArchiveReader({None: list(paths)}), tmp_path / "listing", **options)


def test_webdataset_labels_come_from_cls_or_json(tmp_path):
    shard = [
        ("./0.left.png", GOOD), ("./0.cls", b"5\n"),
        ("./a/0.json", b'{"label": "x", "caption": "a cat"}'), ("./a/0.png", GOOD),
        ("1.png", GOOD), ("1.json", b'{"class": 7}'),
        ("2.v2.png", GOOD), ("2.v2.cls", b"5"), ("2.txt", b"a dog"),
        ("3.cls", b"5"),
    ]  # fmt: skip
    source = opened(tmp_path, write_tar(tmp_path / "val-0.tar", shard))
    _, names, block = everything(source)["val"]
    assert names == ["5", "x", "7", "5"]
    assert [o.partition(":")[2] for o in block.origins] == [
        "0.left.png", "a/0.png", "1.png", "2.v2.png",
    ]  # fmt: skip
    assert source.provenance["ignored"] == {".cls": 1, ".txt": 1}


def test_webdataset_keeps_the_order_of_shards_and_samples(tmp_path):
    shards = [
        write_tar(
            tmp_path / f"train-{number}.tar",
            [pair for key in "zya" for pair in ((f"{key}.png", GOOD), (f"{key}.cls", b"1"))],
        )
        for number in (1, 0)
    ]
    block = opened(tmp_path, *shards).read("train", 0, 6)
    assert block.origins == [f"train-{n}.tar:{key}.png" for n in (1, 0) for key in "zya"]


@pytest.mark.parametrize(
    ("label", "detail"),
    [
        ((), "has no label"),
        (("1.cls", b""), "is empty"),
        (("1.cls", b"x" * 100_000), "far too large"),
        (("1.json", b"{"), "cannot be read"),
        (("1.json", b"[" * 50_000), "cannot be read"),
        (("1.json", b"[1]"), "no text or number under label"),
        (("1.json", b'{"label": 0.5}'), "has the label 0.5, expected a whole number or a text"),
        (("1.json", b'{"label": {"id": 1}}'), "has the label {'id': 1}, expected a whole number"),
        (("1.json", b'{"label": [[1, 0], [0, 1]]}'), "has the label [[1, 0], [0, 1]], expected"),
        (("1.json", b'{"label": [1, 1, 0]}'), "is multi-label: it has 2 of 3 columns set"),
    ],
)
def test_a_sample_without_a_label_is_a_problem(tmp_path, label, detail):
    shard = [("0.png", GOOD), ("0.cls", b"4"), ("1.png", GOOD), *([label] if label else [])]
    block = opened(tmp_path, write_tar(tmp_path / "a.tar", shard)).read("train", 0, 2)
    assert {place: p.status for place, p in block.problems.items()} == {1: LABEL_UNKNOWN}
    assert detail in block.problems[1].detail


@pytest.mark.parametrize("value", ["null", "NaN", '""', "[null]"])
def test_a_sample_whose_json_says_that_there_is_no_label_has_none(tmp_path, value):
    shard = [("0.png", GOOD), ("0.cls", b"4"), ("1.png", GOOD)]
    shard.append(("1.json", f'{{"label": {value}}}'.encode()))
    block = opened(tmp_path, write_tar(tmp_path / "a.tar", shard)).read("train", 0, 2)
    assert (block.labels.tolist(), block.problems) == ([0, -1], {})


def test_numbers_in_webdataset_are_codes_of_class_names(tmp_path):
    shard = [
        ("0.png", GOOD),
        ("0.cls", b"1"),
        ("1.png", GOOD),
        ("1.json", json.dumps({"cls": 0}).encode()),
    ]
    path = write_tar(tmp_path / "a.tar", shard)
    block = opened(tmp_path, path, class_names=["cat", "dog"]).read("train", 0, 2)
    assert block.labels.tolist() == [1, 0]


def test_what_an_archive_lost_is_listed_also_where_the_image_is_named(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("0.in.png", GOOD), ("0.cls", b"1"), ("1.in.png", GOOD)])
    path.write_bytes(path.read_bytes()[:2048])  # cut between members
    reader = ArchiveReader({None: [path]}, columns={"image": "in.png", "label": "cls"})
    block = open_encoded(reader, tmp_path / "listing").read("train", 0, 2)
    assert block.labels.tolist() == [0, -1]
    assert "images may be missing" in block.problems[1].detail
