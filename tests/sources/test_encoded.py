"""Sets of encoded image files: one answer wherever they lie, and nothing lost in silence."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_files_for_tests import assert_holds, make_files, png, remote, write_files, write_tar
from PIL import Image

from pipeline.core.blocks import LABEL_UNKNOWN, TOO_LARGE, UNREADABLE, WRONG_SIZE, Problem
from pipeline.core.errors import LabelError, SourceError
from pipeline.images.conversion import Conversion
from pipeline.sources.archives import ArchiveReader
from pipeline.sources.encoded import open_encoded
from pipeline.sources.folder import FolderReader
from pipeline.sources.lists import ListReader
from pipeline.sources.parquet import ParquetReader

__all__ = ["remote"]

# one answer wherever they lie --------------------------------------------------------------------


def as_folder(root, files):
    return FolderReader({None: [write_files(root / "set", files)]})


def as_tar(root, files):
    members = [(f"./set/{path}", data) for path, (_, data) in files.items()]
    return ArchiveReader({None: [write_tar(root / "set.tar", members)]})


def as_tgz(root, files):
    members = [(f"set/{path}", data) for path, (_, data) in files.items()]
    return ArchiveReader({None: [write_tar(root / "set.tgz", members, "w:gz")]})


def as_webdataset(root, files):
    shards = {}
    for number, (path, (_, data)) in enumerate(files.items()):
        split, name, _ = path.split("/")
        shard = shards.setdefault(f"{split}-{number // 50:04}.tar", [])
        shard += [(f"{number:06}.cls", name.encode()), (f"{number:06}.png", data)]
    return ArchiveReader({None: [write_tar(root / name, shards[name]) for name in shards]})


def as_parquet(root, files):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    features = {"label": {"_type": "ClassLabel", "names": ["3", "7"]}}
    notes = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    rows = {}
    for path, (_, data) in files.items():
        split, name, base = path.split("/")
        rows.setdefault(split, []).append(({"bytes": data, "path": base}, ["3", "7"].index(name)))
    places = []
    for split, pairs in rows.items():
        schema = pa.schema([("image", kind), ("label", pa.int64())], metadata=notes)
        table = pa.table([list(c) for c in zip(*pairs, strict=True)], schema=schema)
        places.append(root / f"{split}-00000-of-00001.parquet")
        stream = io.BytesIO()
        pq.write_table(table, stream, row_group_size=7, write_page_checksum=True)
        places[-1].write_bytes(stream.getvalue())
    return ParquetReader({None: places})


def as_csv(root, files):
    write_files(root / "set", files)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["name", "label", "split"])
    writer.writerows([path, path.split("/")[1], path.split("/")[0]] for path in files)
    (root / "set" / "labels.csv").write_bytes(text.getvalue().encode())
    return ListReader({None: [root / "set" / "labels.csv"]})


def as_parquet_list(root, files):
    write_files(root / "set", files)
    paths = list(files)
    columns = {
        "path": paths,
        "class": pa.array([path.split("/")[1] for path in paths]).dictionary_encode(),
        "split": [path.split("/")[0] for path in paths],
    }
    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream)
    (root / "set" / "list.parquet").write_bytes(stream.getvalue())
    return ListReader({None: [root / "set" / "list.parquet"]})


KINDS = [as_folder, as_tar, as_tgz, as_webdataset, as_parquet, as_csv, as_parquet_list]


@pytest.fixture(params=KINDS, ids=[kind.__name__ for kind in KINDS])
def kind(request):
    return request.param


def sample_of_mnist():
    folder = os.environ.get("PIXSIM_DATASETS")
    path = Path(folder or "") / "mnist_sample.tgz"
    if not folder or not path.is_file():
        pytest.skip("needs mnist_sample.tgz in PIXSIM_DATASETS")
    found = {}
    with tarfile.open(path) as archive:
        for number, member in enumerate(archive):
            if member.name.endswith(".png") and number % 48 == 0:
                data = archive.extractfile(member).read()
                pixels = np.asarray(Image.open(io.BytesIO(data)))
                found[member.name.removeprefix("mnist_sample/")] = (pixels, data)
    return {path: found[path] for path in sorted(found)}


@pytest.mark.datasets
def test_real_images_are_the_same_in_every_form(kind, tmp_path):
    files = sample_of_mnist()
    assert len(files) > 290
    with_labels = open_encoded(kind(tmp_path, files), tmp_path / "listing")
    assert with_labels.class_names == ("3", "7")
    assert with_labels.full_scale == 255
    assert_holds(with_labels, files)


def test_images_are_the_same_in_every_form(kind, tmp_path):
    files = make_files()
    assert_holds(open_encoded(kind(tmp_path, files), tmp_path / "listing"), files)


def test_images_are_the_same_behind_a_url(kind, tmp_path, remote):
    files = make_files()
    source = open_encoded(kind(remote, files), tmp_path / "listing")
    assert_holds(source, files)
    assert "://" in source.provenance["place"]
    source.close()


@pytest.mark.parametrize(
    "ranges",
    [
        [(0, 40)],
        [(0, 13), (13, 26), (26, 40)],
        [(30, 40), (7, 30), (0, 7)],
        [(5, 6), (5, 6), (0, 40), (39, 40), (0, 0)],
    ],
    ids=["at once", "in order", "backwards", "anyhow"],
)
def test_any_order_of_reading_gives_the_same_images(kind, tmp_path, ranges):
    files = make_files(("train",), count=20)
    expected = np.stack([pixels for pixels, _ in files.values()])
    source = open_encoded(kind(tmp_path, files), tmp_path / "listing")
    for start, stop in ranges:
        block = source.read("train", start, stop)
        np.testing.assert_array_equal(block.images, expected[start:stop])
        assert len(block.origins) == stop - start
    source.close()


def test_a_source_travels_small_and_its_listing_can_move(kind, tmp_path):
    files = make_files()
    source = open_encoded(kind(tmp_path, files), tmp_path / "listing")
    source.read("train", 0, 3)
    shutil.move(tmp_path / "listing", tmp_path / "moved")
    packed = pickle.dumps(source.moved(tmp_path / "moved"))
    assert len(packed) < 2000
    assert_holds(pickle.loads(packed), files)


def test_the_provenance_knows_a_changed_file_and_no_place_of_this_machine(kind, tmp_path):
    files = make_files()
    before = open_encoded(kind(tmp_path, files), tmp_path / "a").provenance
    assert str(tmp_path) not in json.dumps(before)
    again = open_encoded(kind(tmp_path, files), tmp_path / "b").provenance
    assert again.keys() == before.keys()
    path = next(iter(files))
    # another length, since some file systems count time in seconds
    files[path] = (files[path][0], files[path][1] + b"more")
    after = open_encoded(kind(tmp_path, files), tmp_path / "c").provenance
    assert after["listing"] != before["listing"]


def test_the_provenance_is_the_same_when_nothing_changed(tmp_path):
    reader = as_folder(tmp_path, make_files())
    found = [open_encoded(reader, tmp_path / name).provenance for name in "ab"]
    assert found[0] == found[1]


def test_the_conversion_is_part_of_the_provenance_and_of_the_shape(tmp_path):
    reader = as_folder(tmp_path, make_files(shape=(6, 4)))
    conversion = Conversion(pad=(8, 8))
    source = open_encoded(reader, tmp_path / "listing", conversion)
    assert source.provenance["conversion"] == conversion.describe()
    assert source.splits()["train"].shape == (8, 8)
    block = source.read("train", 0, 1)
    assert (block.images.shape, block.sizes.tolist()) == ((1, 8, 8), [[4, 6]])


# what is wrong with a sample ---------------------------------------------------------------------


def test_one_bad_image_of_any_form_is_a_problem_of_its_place_only(kind, tmp_path):
    files = make_files(("train",), count=20)
    names = list(files)
    for number, data in ((3, b""), (9, b"no image"), (20, files[names[20]][1][:50])):
        files[names[number]] = (np.zeros((6, 4), np.uint8), data)
    files[names[30]] = (np.zeros((6, 4), np.uint8), png(np.zeros((5, 4), np.uint8)))
    source = open_encoded(kind(tmp_path, files), tmp_path / "listing")
    block = source.read("train", 2, 40)
    assert list(block.problems) == [1, 7, 18, 28]
    assert block.problems[28].status == WRONG_SIZE
    assert block.sizes[28].tolist() == [4, 5]
    expected = np.stack([pixels for pixels, _ in files.values()])[2:]
    np.testing.assert_array_equal(block.images, expected)
    assert (block.labels[[1, 7, 18, 28]] == -1).all()
    assert (np.delete(block.labels, [1, 7, 18, 28]) >= 0).all()
    source.close()


def test_a_file_of_too_many_bytes_is_refused_with_both_numbers(kind, tmp_path):
    files = make_files(("train",), count=4)
    name = list(files)[2]
    files[name] = (np.zeros((6, 4), np.uint8), files[name][1] + bytes(2000))
    source = open_encoded(kind(tmp_path, files), tmp_path / "listing", max_bytes=1500)
    block = source.read("train", 0, 8)
    assert {place: p.status for place, p in block.problems.items()} == {2: TOO_LARGE}
    assert "1,500" in block.problems[2].detail
    assert not block.images[2].any()


def test_most_of_the_first_images_decide_the_shape(tmp_path):
    files = make_files(("train",), count=10)
    odd = next(iter(files))
    files[odd] = (np.zeros((6, 4), np.uint8), png(np.zeros((9, 9), np.uint8)))
    source = open_encoded(as_folder(tmp_path, files), tmp_path / "listing")
    assert source.shape == (6, 4)
    assert list(source.read("train", 0, 20).problems) == [0]


def test_16_bits_have_their_full_scale(tmp_path):
    image = np.arange(24, dtype=np.uint16).reshape(6, 4) * 2000
    files = {"train/a/1.png": (image, png(image))}
    source = open_encoded(as_folder(tmp_path, files), tmp_path / "listing")
    assert (source.full_scale, source.dtype) == (65535, "uint16")
    np.testing.assert_array_equal(source.read("train", 0, 1).images[0], image)


def test_where_no_image_can_be_read_the_reasons_are_said(tmp_path):
    files = {f"train/a/{n}.png": (None, b"hello") for n in range(5)}
    with pytest.raises(SourceError, match=r"none of the first 5 .*train/a/0\.png .*hello"):
        open_encoded(as_folder(tmp_path, files), tmp_path / "listing")


# labels ------------------------------------------------------------------------------------------


def list_of(tmp_path, labels, class_names=None):
    """Return a source of one image for each label, of a Parquet list."""
    write_files(tmp_path, {"a.png": (None, png(np.zeros((6, 4), np.uint8)))})
    table = pa.table({"path": ["a.png"] * len(labels), "label": labels})
    pq.write_table(table, tmp_path / "list.parquet")
    reader = ListReader({None: [tmp_path / "list.parquet"]})
    return open_encoded(reader, tmp_path / "listing", class_names=class_names)


@pytest.mark.parametrize(
    ("labels", "names", "codes"),
    [
        (pa.array([10, 9, None, -1, 9]), ("9", "10"), [1, 0, -1, -1, 0]),
        (pa.array(["10", "9", "", None]), ("9", "10"), [1, 0, -1, -1]),
        (pa.array(["b", "10", "a", "b"]), ("10", "a", "b"), [2, 0, 1, 2]),
        (pa.array(["01", "1", "2"]), ("01", "1", "2"), [0, 1, 2]),
        (pa.array([1.0, float("nan"), 0.0]), ("0", "1"), [1, -1, 0]),
        (pa.array([True, False]), ("false", "true"), [1, 0]),
        (pa.array(["z\xff".encode(), b"a"]), ("a", "z\xff"), [1, 0]),
    ],
)
def test_without_class_names_the_labels_name_the_classes(tmp_path, labels, names, codes):
    source = list_of(tmp_path, labels)
    assert source.class_names == names
    block = source.read("train", 0, len(labels))
    assert (block.labels.tolist(), block.problems) == (codes, {})


@pytest.mark.parametrize(
    ("labels", "codes"),
    [
        (pa.array(["cat", "dog", "1", "0", None, "-1"]), [0, 1, 1, 0, -1, -1]),
        (pa.array([0, 1, -1, None], pa.int8()), [0, 1, -1, -1]),
    ],
)
def test_class_names_of_the_job_are_names_or_codes(tmp_path, labels, codes):
    block = list_of(tmp_path, labels, ["cat", "dog"]).read("train", 0, len(labels))
    assert (block.labels.tolist(), block.problems) == (codes, {})


def test_integers_are_codes_and_texts_are_names_also_where_names_are_digits(tmp_path):
    names = ["1", "0"]
    integers = list_of(tmp_path, pa.array([0, 1]), names).read("train", 0, 2)
    texts = list_of(tmp_path, pa.array(["0", "1"]), names).read("train", 0, 2)
    assert (integers.labels.tolist(), texts.labels.tolist()) == ([0, 1], [1, 0])


@pytest.mark.parametrize("label", ["cow", "2", "-2", "cats"])
def test_an_unknown_label_is_a_problem_that_says_which(tmp_path, label):
    block = list_of(tmp_path, pa.array(["cat", label]), ["cat", "dog"]).read("train", 0, 2)
    assert list(block.problems) == [1]
    assert block.problems[1].status == LABEL_UNKNOWN
    assert f"'{label}'" in block.problems[1].detail
    assert "cat" in block.problems[1].detail


def test_labels_that_are_no_classes_are_refused(tmp_path):
    with pytest.raises(LabelError, match=r"sample 1 has the label 0\.5, expected a whole number"):
        list_of(tmp_path, pa.array([1.0, 0.5]))
    with pytest.raises(SourceError, match=r"z\\xff' is not UTF-8, in Latin-1 it reads 'z\xff'"):
        list_of(tmp_path, pa.array([b"z\xff", b"a"]))


def test_a_problem_of_the_listing_is_told_before_its_label(tmp_path):
    write_files(tmp_path, {"a.png": (None, png(np.zeros((6, 4), np.uint8)))})
    (tmp_path / "list.csv").write_text("path,label\na.png,cat\ngone.png,cow\n")
    reader = ListReader({None: [tmp_path / "list.csv"]})
    block = open_encoded(reader, tmp_path / "listing", class_names=["cat"]).read("train", 0, 2)
    assert block.problems == {1: Problem(UNREADABLE, "no such file")}
    assert block.origins == ["a.png", "gone.png"]
