"""Labels say the names of their codes as CF has it, in stores of any age, and change no digest."""

from __future__ import annotations

import json

import cf_xarray  # noqa: F401
import numpy as np
import pytest
import xarray as xr
from stores_for_tests import COUNT, NAMES, SHARD, make_arrays, make_store, metadata

import pipeline
from pipeline.core.partitions import Layout
from pipeline.storage import image_store, manifest
from pipeline.storage.image_content import digest_images

WORDS = ["cat", "large_dog", "é_字", "unlabelled"]
FLAGS = ("flag_values", "flag_meanings")


def as_it_was(path):
    """Make of a store what earlier versions wrote: no flags anywhere."""

    def without(node):
        if isinstance(node, dict):
            return {key: without(value) for key, value in node.items() if key not in FLAGS}
        return node

    content = manifest.read_manifest(path, manifest.IMAGES)
    documents = [file for file in content["files"] if file.endswith("zarr.json")]
    for file in documents:
        (path / file).write_text(json.dumps(without(json.loads((path / file).read_text()))))
    files = content["files"] | manifest.file_hashes(path, documents)
    manifest.put_manifest(path, content | {"files": files})
    assert not {*FLAGS} & {*metadata(path, "train/label")["attributes"]}
    return path


@pytest.fixture
def store(tmp_path):
    return make_store(tmp_path / "s.zarr", {"train": make_arrays()})


@pytest.mark.parametrize("opened", ["pipeline", "xarray", "old"])
def test_cf_xarray_compares_labels_with_names(store, opened):
    if opened == "old":
        as_it_was(store)
    found = (
        xr.open_zarr(store, group="train") if opened == "xarray" else pipeline.open_images(store)
    )
    labels = make_arrays()[1]
    assert found.label.cf.is_flag_variable
    for word, code in zip(WORDS, [0, 1, 2, -1], strict=True):
        assert np.array_equal(found.label.cf == word, labels == code)
        assert np.array_equal(found.label.cf.flags[word], labels == code)
    assert found.label.dtype == np.int32
    assert found.attrs["class_names"] == NAMES


def test_flags_have_the_type_of_labels_where_they_are_written_again(store, tmp_path):
    found = pipeline.open_images(store)
    assert found.label.attrs["flag_values"].dtype == np.int32
    found.drop_attrs(deep=False).to_netcdf(tmp_path / "a.nc")
    with xr.open_dataset(tmp_path / "a.nc") as read:
        assert read.label.attrs["flag_values"].dtype == np.int32
        assert read.label.attrs["flag_meanings"].split() == WORDS


def test_a_store_without_flags_has_the_same_digest_and_is_whole(store, tmp_path):
    new = manifest.read_manifest(store, manifest.IMAGES)["digest"]
    old = as_it_was(store)
    assert digest_images(old) == new == pipeline.digest(old)["images"]
    assert not pipeline.verify(old)
    assert pipeline.open_images(old).equals(pipeline.open_images(
        make_store(tmp_path / "new.zarr", {"train": make_arrays()})))  # fmt: skip


def test_an_append_brings_flags_up_to_date(store):
    path = as_it_was(store)
    more = pipeline.from_arrays(
        {"train": (make_arrays(count=3, seed=2)[0], [0, 1, 1])}, ["cat", "a b"]
    )
    pipeline.ingest(more, path, SHARD, append=True)
    attributes = metadata(path, "train/label")["attributes"]
    assert attributes["flag_meanings"].split() == [*WORDS[:3], "a_b", "unlabelled"]
    assert attributes["flag_values"] == [0, 1, 2, 3, -1]
    found = pipeline.open_images(path)
    assert int((found.label.cf == "a_b").sum()) == 2
    gathered = xr.open_zarr(path, group="train", consolidated=True)
    assert gathered.label.attrs["flag_meanings"] == attributes["flag_meanings"]
    assert gathered.sizes["sample"] == COUNT + 3
    assert not pipeline.verify(path)


def test_arrays_that_were_begun_without_flags_keep_their_shards(tmp_path):
    attributes = {"class_names": NAMES, "full_scale": 255, "provenance": {}}
    template = image_store.SplitTemplate(8, (5, 4), "uint8", Layout(4, 4))
    images, labels = make_arrays(count=8)
    for given in ({}, attributes, attributes):
        image_store.create_images(tmp_path / "s", given, {"train": template})
        if not given:  # as an earlier version had it
            file = tmp_path / "s" / "train" / "label" / "zarr.json"
            content = json.loads(file.read_text())
            for name in FLAGS:
                content["attributes"].pop(name)
            file.write_text(json.dumps(content))
            image_store.write_images(tmp_path / "s", "train", 0, images[:4], labels[:4])
    assert metadata(tmp_path / "s", "train/label")["attributes"]["flag_meanings"].split() == WORDS
    image_store.write_images(tmp_path / "s", "train", 4, images[4:], labels[4:])
    read = image_store.read_images(tmp_path / "s", "train", 0, 8)
    assert np.array_equal(read[0], images)
    assert np.array_equal(read[1], labels)


@pytest.mark.parametrize("kind", ["netcdf", "zarr"])
def test_what_is_written_by_xarray_is_ingested_with_its_names_again(store, tmp_path, kind):
    images = pipeline.open_images(store).drop_attrs(deep=False)
    images = images.assign_attrs(class_names=NAMES, full_scale=255)
    place = tmp_path / ("a.nc" if kind == "netcdf" else "other.zarr")
    images.to_netcdf(place) if kind == "netcdf" else images.to_zarr(place)
    again = pipeline.open_images(pipeline.ingest(str(place), tmp_path / "again.zarr"))
    assert again.attrs["class_names"] == NAMES
    assert np.array_equal(again.label, images.label)
    assert np.array_equal(again.image, images.image)


def test_distances_of_a_run_name_the_codes_of_their_labels(tmp_path):
    arrays = {"train": make_arrays(), "test": make_arrays(count=9, seed=1)}
    store = make_store(tmp_path / "s.zarr", arrays)
    job = {"name": "j", "images": str(store), "output": str(tmp_path / "r"), "fit": "train",
           "evaluate": "test", "distances": "write", "classes": NAMES[1:]}  # fmt: skip
    found = pipeline.run_job(job).distances
    for word, code in zip(WORDS, [0, 1, 2, -1], strict=True):
        assert np.array_equal(found.label.cf == word, found.label.values == code)
    predicted = pipeline.predict(found)
    assert predicted.attrs["class_names"] == NAMES
    assert set(np.unique(predicted.predicted)) == {1, 2}
    assert np.array_equal(predicted.predicted.cf == "é_字", predicted.predicted == 2)
