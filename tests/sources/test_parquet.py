"""Parquet files that hold images: layouts of the columns, row groups, damage."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_files_for_tests import make_files, png, remote, write_files

from pipeline.core.blocks import TOO_LARGE, UNREADABLE
from pipeline.core.errors import ConfigError, LabelError, SourceError
from pipeline.sources import parquet
from pipeline.sources.encoded import open_encoded
from pipeline.sources.parquet import ParquetReader, holds_images

__all__ = ["remote"]
COUNT = 40
FILES = make_files(("train",), count=COUNT // 2)
PIXELS = np.stack([pixels for pixels, _ in FILES.values()])
DATA = [data for _, data in FILES.values()]
KIND = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write(path, columns, names=None, label="label", **options):
    table = pa.table(columns)
    if names:
        features = {label: {"_type": "ClassLabel", "names": names}}
        notes = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": notes})
    with path.open("wb") as file:
        pq.write_table(table, file, **({"row_group_size": 7} | options))
    return path


def opened(tmp_path, *paths, columns=None, places=None, **options):
    reader = ParquetReader(places or {None: list(paths)}, columns or {})
    return open_encoded(reader, tmp_path / "listing", **options)


def structs(rows):
    return pa.array(rows, KIND)


@pytest.mark.parametrize(
    "images",
    [
        structs([{"bytes": data, "path": None} for data in DATA]),
        pa.array(DATA, pa.binary()),
        pa.array(DATA, pa.large_binary()),
        pa.array([{"bytes": data, "width": 4} for data in DATA]),
    ],
    ids=["struct", "binary", "large", "other fields"],
)
def test_images_are_structs_or_bytes(tmp_path, images):
    path = write(tmp_path / "a.parquet", {"image": images, "label": list(range(COUNT))})
    assert holds_images(path)
    source = opened(tmp_path, path)
    block = source.read("train", 0, COUNT)
    np.testing.assert_array_equal(block.images, PIXELS)
    assert block.labels.tolist() == list(range(COUNT))
    assert source.class_names == tuple(str(n) for n in range(COUNT))
    assert block.origins == [f"a.parquet[{n}]" for n in range(COUNT)]
    assert source.provenance["kind"] == "parquet"


def test_class_names_stand_in_the_metadata(tmp_path):
    labels = [n % 3 - 1 for n in range(COUNT)]
    columns = {"img": DATA, "fine": labels}
    path = write(tmp_path / "a.parquet", columns, ["7", "0", "cat"], label="fine")
    wanted = {"image": "img", "label": "fine"}
    source = opened(tmp_path, path, columns=wanted)
    assert source.class_names == ("7", "0", "cat")
    assert source.read("train", 0, COUNT).labels.tolist() == labels
    assert opened(tmp_path, path, columns=wanted, class_names=["a", "b"]).class_names == ("a", "b")


def test_files_with_other_class_names_are_refused(tmp_path):
    columns = {"image": DATA, "label": [0] * COUNT}
    paths = [write(tmp_path / f"{n}.parquet", columns, [n, "x"]) for n in "ab"]
    with pytest.raises(LabelError, match=r"b\.parquet: has other class names"):
        opened(tmp_path, *paths)


@pytest.mark.parametrize("notes", [b"{", b"[]", b'{"info": {"features": {"label": 3}}}'])
def test_metadata_that_means_nothing_is_passed_over(tmp_path, notes):
    table = pa.table({"image": DATA, "label": ["x"] * COUNT})
    pq.write_table(table.replace_schema_metadata({"huggingface": notes}), tmp_path / "a.parquet")
    assert opened(tmp_path, tmp_path / "a.parquet").class_names == ("x",)


def test_the_split_is_in_the_name_or_a_column_or_given(tmp_path):
    plain = {"image": DATA[:10], "label": [0] * 10}
    paths = [
        write(tmp_path / "test-00000-of-00001.parquet", plain),
        write(tmp_path / "x.parquet", {**plain, "split": ["b", "a", None, ""] * 2 + ["b"] * 2}),
    ]
    source = opened(tmp_path, *paths)
    assert {s: i.count for s, i in source.splits().items()} == {
        "test": 10,
        "b": 4,
        "a": 2,
        "train": 4,
    }
    block = source.read("b", 0, 4)
    assert block.origins == [f"x.parquet[{n}]" for n in (0, 4, 8, 9)]
    np.testing.assert_array_equal(block.images, PIXELS[[0, 4, 8, 9]])
    assert list(opened(tmp_path, places={"fit": paths}).splits()) == ["fit"]


def test_a_folder_of_files_is_its_files(tmp_path):
    (tmp_path / "data").mkdir()
    for number in (10, 9):
        columns = {"image": DATA[:number], "label": [0] * number}
        write(tmp_path / "data" / f"train-{number:05}-of-00011.parquet", columns)
    source = opened(tmp_path, tmp_path / "data")
    assert source.splits()["train"].count == 19
    assert source.read("train", 0, 1).origins == ["train-00009-of-00011.parquet[0]"]
    assert source.provenance["place"] == "data"


def test_without_a_label_column_all_is_unlabelled(tmp_path):
    source = opened(tmp_path, write(tmp_path / "a.parquet", {"image": DATA}))
    assert source.class_names == ()
    assert set(source.read("train", 0, COUNT).labels.tolist()) == {-1}


def test_a_file_without_the_column_of_labels_of_the_others_is_unlabelled(tmp_path):
    train = write(tmp_path / "train.parquet", {"image": DATA[:2], "breed": ["pug", "boxer"]})
    test = write(tmp_path / "test.parquet", {"image": DATA[:2]})
    source = opened(tmp_path, train, test, columns={"label": "breed"})
    assert [source.read(split, 0, 2).labels.tolist() for split in ("train", "test")] == [
        [1, 0], [-1, -1],
    ]  # fmt: skip
    assert "test.parquet: has no column of labels as others have" in str(source.remarks)
    with pytest.raises(ConfigError, match=r"test\.parquet: has no column 'breed' for the label"):
        opened(tmp_path, test, columns={"label": "breed"})


def test_columns_of_labels_that_agree_are_reported(tmp_path):
    columns = {"image": DATA[:2], "label": [0, 1], "class_name": ["pug", "boxer"]}
    source = opened(tmp_path, write(tmp_path / "a.parquet", columns))
    assert "labels are taken from column 'label', with which class_name must agree" in str(
        source.remarks
    )


def test_a_row_group_is_decoded_once_when_read_in_order(tmp_path, monkeypatch):
    path = write(
        tmp_path / "a.parquet", {"image": DATA, "label": [0] * COUNT}, row_group_size=COUNT
    )
    source = opened(tmp_path, path)
    source.close()
    started = []
    real = parquet._Images

    def counted(*args):
        started.append(args[1])
        return real(*args)

    monkeypatch.setattr(parquet, "_Images", counted)
    for start in range(0, COUNT, 5):
        block = source.read("train", start, start + 5)
        np.testing.assert_array_equal(block.images, PIXELS[start : start + 5])
    assert started == [0]
    source.read("train", 0, 5)
    assert started == [0, 0]
    source.close()


def test_null_images_and_files_beside_the_table(tmp_path, remote):
    for root in (tmp_path, remote):
        write_files(root, {"below/1.png": (None, DATA[1]), "big.png": (None, bytes(5000))})
        (tmp_path.parent / "secret.png").write_bytes(DATA[2])
        names = ["below/1.png", "../secret.png", "/etc/passwd", "file:///etc/passwd", "gone.png"]
        rows = [{"bytes": DATA[0], "path": "x"}, None, {"bytes": None, "path": None}]
        rows += [{"bytes": None, "path": name} for name in [*names, "big.png"]]
        path = write(root / "a.parquet", {"image": structs(rows), "label": [0] * len(rows)})
        block = opened(tmp_path, path, max_bytes=4000).read("train", 0, len(rows))
        np.testing.assert_array_equal(block.images[[0, 3]], PIXELS[:2])
        found = {n: (p.status, p.detail) for n, p in block.problems.items()}
        assert found.keys() == {1, 2, 4, 5, 6, 7, 8}
        assert all("is null" in found[n][1] for n in (1, 2))
        assert all("beside the Parquet file" in found[n][1] for n in (4, 5, 6))
        assert found[7] == (UNREADABLE, "no such file")
        assert found[8][0] == TOO_LARGE


def test_what_is_no_table_of_images_is_refused(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"hello")
    with pytest.raises(SourceError, match=r"a\.parquet: cannot be read as Parquet"):
        opened(tmp_path, tmp_path / "a.parquet")
    with pytest.raises(SourceError, match=r"b\.parquet: is not there"):
        opened(tmp_path, tmp_path / "b.parquet")
    path = write(tmp_path / "c.parquet", {"pixels": DATA, "image": ["a"] * COUNT})
    assert not holds_images(path)
    with pytest.raises(
        SourceError, match=r"column 'image' holds string, expected bytes.*: pixels}"
    ):
        opened(tmp_path, path)
    with pytest.raises(ConfigError, match="no column 'pixel' for the image; did you mean 'pixels'"):
        opened(tmp_path, path, columns={"image": "pixel"})
    path = write(tmp_path / "d.parquet", {"pixels": DATA})
    with pytest.raises(
        ConfigError, match=r"no column image, img, .*, but pixels; .* columns: {image: pixels}"
    ):
        opened(tmp_path, path)


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_a_flipped_bit_in_a_page_with_checksum_is_always_found(tmp_path, codec):
    rng = np.random.default_rng(1)
    big = [png(rng.integers(0, 256, (16, 16), np.uint8)) for _ in range(24)]
    columns = {"image": big, "label": [0] * 24}
    options = {"row_group_size": 18, "write_page_checksum": True, "compression": codec}
    # statistics would fill the page's header, which has no checksum
    options |= {"use_dictionary": False, "write_statistics": False}
    path = write(tmp_path / "a.parquet", columns, **options)
    good = path.read_bytes()
    chunk = pq.ParquetFile(path).metadata.row_group(1).column(0)
    start, size = chunk.data_page_offset, chunk.total_compressed_size
    for at in np.linspace(start + 60, start + size - 1, 8).astype(int):
        data = bytearray(good)
        data[at] ^= 2
        path.write_bytes(data)
        source = opened(tmp_path, path)
        assert source.read("train", 0, 18).problems == {}
        with pytest.raises(SourceError, match=r"a\.parquet: row group 1 cannot be read"):
            source.read("train", 17, 24)
        source.close()


def test_a_file_that_is_gone_stops_the_reading(tmp_path):
    path = write(tmp_path / "a.parquet", {"image": DATA})
    source = opened(tmp_path, path)
    source.close()
    path.unlink()
    with pytest.raises(SourceError, match=r"a\.parquet: cannot be read: no such file.*put it back"):
        source.read("train", 0, 1)
