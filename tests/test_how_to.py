"""The how-to pages of the docs that show Python are followed, block after block."""

from __future__ import annotations

import re
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pytest
import tensorstore
import xarray as xr
import zarr
from stores_for_tests import KINDS, NAMES, make_arrays, make_store

import pipeline

PAGES = Path(__file__).resolve().parent.parent / "docs" / "how-to"


def follow(page):
    """Run the Python blocks of a page one after the other; return what they define."""
    blocks = re.findall(r"^```python\n(.*?)^```", (PAGES / page).read_text(), re.S | re.M)
    assert len(blocks) > 5
    names = {}
    for block in blocks:
        exec(compile(block, page, "exec"), names)
    return names


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_stores_and_runs_are_read_as_the_page_shows(here):
    found = follow("read-from-elsewhere.md")
    images = pipeline.open_images("digits.zarr", "train")
    assert np.array_equal(found["first"], images.image[:100])
    assert np.array_equal(found["pixels"], images.image)
    assert found["train"].image.equals(images.image.drop_vars("sample"))
    assert set(found["tree"].children) == {"train", "test"}
    summed = found["tree"]["train"].dataset.pixsim.class_sums()
    assert summed.equals(pipeline.class_sums(images))
    assert (found["threes"].label == 3).all()
    assert found["threes"].sizes["sample"] == int((images.label == 3).sum())
    run = pipeline.open_run("digits-run")
    accuracies = [run.metrics[metric]["accuracy"] for metric in ("l1", "l2")]
    assert found["accuracy"]["accuracy"].to_list() == accuracies
    total = sum(row[2] for row in found["wrong"].fetchall())
    assert total == round((1 - accuracies[0]) * 899)
    assert len(found["predictions"]) == 2 * 899
    assert len(found["surest"]) == 10
    assert set(found["samples"]["status"]) == {"ok"}
    tables = duckdb.sql("SELECT count(*) FROM 'digits-run/neighbours/*.parquet'").fetchall()
    assert tables == [(2 * 899 * 3,)]


def test_labelled_arrays_are_used_as_the_page_shows(here):
    found = follow("xarray.md")
    test, shown = pipeline.open_images("digits.zarr", "test"), found["shown"]
    right = (shown.predicted == shown.label).mean("sample")
    assert found["accuracy"].equals(right.drop_vars("fold", errors="ignore"))
    assert (found["sevens"].label == 7).all()
    assert found["black_and_white"].pixsim.class_sums().pixel_sum.max() <= 898
    for changed in (found["dimmed"], found["smaller"], found["few"], found["rows"]):
        assert changed.pixsim.prototypes().prototype.notnull().all()
    assert by_hand(found["first"], found["without_first"], test)
    masked = test.where((test.label == 3).compute(), drop=True)
    assert masked.image.dtype.kind == "f"
    threes = test.isel(sample=(test.label == 3).compute())
    assert masked.pixsim.class_sums().equals(threes.pixsim.class_sums())


def by_hand(first, means, test):
    """Tell whether prototypes are the means of all images but those of the first fold."""
    images, labels = test.image.values.astype(int), test.label.values
    others = ~np.isin(test.sample, first.sample)
    ours = means.prototype.values
    return all(
        np.array_equal(ours[code], images[others & (labels == code)].sum(0) / count)
        for code, count in enumerate(np.bincount(labels[others]))
    )


@pytest.mark.parametrize("kind", KINDS)
def test_tensorstore_and_zarrs_read_every_kind_of_image_bit_for_bit(kind, tmp_path):
    shape, dtype = KINDS[kind]
    images, labels = make_arrays(shape, dtype)
    path = make_store(tmp_path / "s.zarr", {"train": (images, labels)})
    for name, expected in (("image", images), ("label", labels)):
        place = {"driver": "file", "path": str(path / "train" / name)}
        opened = tensorstore.open({"driver": "zarr3", "kvstore": place}, read=True).result()
        read = opened.read().result()
        assert read.dtype == expected.dtype
        assert read.tobytes() == expected.tobytes()
        strict = {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline", "codec_pipeline.strict": True}
        with zarr.config.set(strict):
            array = zarr.open_array(path, path=f"train/{name}", mode="r")
            assert array[:].tobytes() == expected.tobytes()
            assert array[5:17].tobytes() == expected[5:17].tobytes()


def test_a_damaged_chunk_is_noticed_by_other_readers_too(tmp_path):
    images, labels = make_arrays()
    path = make_store(tmp_path / "s.zarr", {"train": (images, labels)})
    (shard, *_) = sorted(item for item in (path / "train/image/c").rglob("*") if item.is_file())
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 1
    shard.write_bytes(content)
    place = {"driver": "file", "path": str(path / "train/image")}
    opened = tensorstore.open({"driver": "zarr3", "kvstore": place}, read=True).result()
    with pytest.raises(ValueError, match=r"(?i)crc|checksum|digest"):
        opened.read().result()


def test_names_of_classes_are_read_by_others_as_they_are(tmp_path):
    path = make_store(tmp_path / "s.zarr", {"train": make_arrays()})
    frame = pl.read_parquet(path / "samples.parquet")
    assert set(frame["label_name"].drop_nulls().cast(str)) == set(NAMES)
    opened = xr.open_zarr(path, group="train")
    assert opened.attrs["class_names"] == NAMES
    assert opened.label.attrs["flag_meanings"] == "cat large_dog é_字 unlabelled"
