"""The image-set store: what lies on disk, and that no damage to it goes unnoticed."""

from __future__ import annotations

import math
import pickle
import shutil
from contextlib import suppress

import dask
import numpy as np
import pytest
import xarray as xr
from stores_for_tests import (
    COUNT,
    KINDS,
    NAMES,
    SHARD,
    chunk_files,
    make_arrays,
    make_store,
    metadata,
)

import pipeline
from pipeline.core.errors import DamagedError, IncompleteError, SchemaError, StoreError
from pipeline.core.partitions import Layout
from pipeline.storage import image_store, manifest, store_array
from pipeline.storage.image_content import digest_images


def no_reading(*_, **__):
    raise AssertionError("something was computed")


@pytest.mark.parametrize("kind", KINDS)
def test_xarray_alone_reads_a_store_with_its_names_types_and_values(tmp_path, kind):
    shape, dtype = KINDS[kind]
    arrays = {"train": make_arrays(shape, dtype), "test": make_arrays(shape, dtype, 3, seed=1)}
    path = make_store(tmp_path / "s.zarr", arrays)
    dims = ("sample", "y", "x", "channel")[: 1 + len(shape)]
    for split, (pixels, labels) in arrays.items():
        found = xr.open_zarr(path, group=split)
        assert list(found.data_vars) == ["image"]
        assert set(found.coords) == {"label", *dims[1:]}
        assert found["image"].dims == dims
        assert found["image"].dtype == dtype
        assert found["label"].dims == ("sample",)
        assert found["label"].dtype == np.int32
        np.testing.assert_array_equal(found["image"].values, pixels)
        np.testing.assert_array_equal(found["label"].values, labels)
        for dim, size in zip(dims[1:], shape, strict=True):
            assert found[dim].dtype == np.int32
            np.testing.assert_array_equal(found[dim].values, np.arange(size))
        assert found.attrs["class_names"] == NAMES
        assert found.attrs["full_scale"] == np.iinfo(dtype).max
        assert found.attrs["provenance"]["kind"] == "arrays"
        assert found["image"].attrs["long_name"] == "pixel value"


@pytest.mark.parametrize("kind", KINDS)
def test_open_images_gives_what_was_written(tmp_path, kind):
    shape, dtype = KINDS[kind]
    pixels, labels = make_arrays(shape, dtype)
    found = pipeline.open_images(make_store(tmp_path / "s.zarr", {"train": (pixels, labels)}))
    dims = ("sample", "y", "x", "channel")[: 1 + len(shape)]
    expected = xr.Dataset(
        {"image": (dims, pixels)},
        {"label": ("sample", labels), "sample": np.arange(COUNT)}
        | {dim: np.arange(size) for dim, size in zip(dims[1:], shape, strict=True)},
    )
    xr.testing.assert_equal(found.compute(), expected)
    assert found["image"].dtype == dtype
    assert found["label"].dtype == np.int32
    assert found.attrs["class_names"] == NAMES
    assert found.attrs["full_scale"] == np.iinfo(dtype).max


def test_every_chunk_of_images_and_labels_carries_a_checksum(shared):
    path, *_ = shared
    (sharding,) = metadata(path, "train/image")["codecs"]
    assert sharding["name"] == "sharding_indexed"
    for stage in ("codecs", "index_codecs"):
        assert sharding["configuration"][stage][-1]["name"] == "crc32c"
    assert metadata(path, "train/label")["codecs"][-1]["name"] == "crc32c"
    for dim in ("y", "x"):
        assert metadata(path, f"train/{dim}")["codecs"][-1]["name"] == "crc32c"


@pytest.mark.parametrize("shard", [1, 7, 8, 21, 100])
def test_a_shard_is_one_file_and_a_partition(tmp_path, shard):
    pixels, labels = make_arrays()
    path = make_store(tmp_path / "s.zarr", {"train": (pixels, abs(labels))}, shard)
    number = math.ceil(COUNT / shard)
    assert len(chunk_files(path, "train/image")) == number
    assert len(chunk_files(path, "train/label")) == number
    assert len(manifest.read_manifest(path, manifest.IMAGES)["partitions"]) == number


def test_a_black_image_is_written_and_differs_from_a_missing_one(tmp_path):
    layout = Layout(chunk=2, shard=6)
    template = image_store.SplitTemplate(12, (3, 3), "uint8", layout)
    path = tmp_path / "s.zarr"
    image_store.create_images(path, {}, {"train": template})
    unlabelled = np.full(6, -1, np.int32)  # the fill value of labels, as 0 is that of pixels
    image_store.write_images(path, "train", 0, np.zeros((6, 3, 3), np.uint8), unlabelled)
    assert len(chunk_files(path, "train/image")) == 1
    assert len(chunk_files(path, "train/label")) == 1
    (shard,) = chunk_files(path, "train/image")
    index = np.frombuffer(shard.read_bytes()[-(3 * 16 + 4) : -4], "<u8")
    assert (index != 2**64 - 1).all()  # that would mark an inner chunk as left out
    pixels, labels = image_store.read_images(path, "train", 0, 6)
    assert not pixels.any()
    assert (labels == -1).all()
    with pytest.raises(DamagedError, match="missing"):
        image_store.read_images(path, "train", 6, 12)


@pytest.mark.parametrize("unlabelled", [False, True])
def test_a_shard_of_black_or_of_unlabelled_images_only_is_read_back(tmp_path, unlabelled):
    pixels, labels = make_arrays()
    if unlabelled:
        labels[8:16] = -1
    else:
        pixels[8:16] = 0
    path = make_store(tmp_path / "s.zarr", {"train": (pixels, labels)})
    found = pipeline.open_images(path).compute()
    np.testing.assert_array_equal(found["image"].values, pixels)
    np.testing.assert_array_equal(found["label"].values, labels)


def test_an_empty_split_beside_another_is_kept(tmp_path):
    pixels, labels = make_arrays()
    path = make_store(tmp_path / "s", {"train": (pixels, labels), "test": (pixels[:0], labels[:0])})
    found = pipeline.open_images(path, "test").compute()
    assert found["image"].shape == (0, 5, 4)
    assert found["image"].dtype == np.uint8
    assert found["label"].shape == (0,)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((5,), "uint8"), ((2, 3, 4, 5), "uint8"), ((0, 4), "uint8"), ((4, 4), "float32"),
     ((4, 4), "int16"), ((4, 4), "bool")],
)  # fmt: skip
def test_images_of_another_kind_are_refused_before_anything_is_written(tmp_path, shape, dtype):
    template = image_store.SplitTemplate(4, shape, dtype, Layout(4, 4))
    with pytest.raises(SchemaError, match=rf"train: images of shape .* and dtype {dtype}"):
        image_store.create_images(tmp_path / "s.zarr", {}, {"train": template})
    assert not (tmp_path / "s.zarr").exists()


def test_creating_again_keeps_what_is_written(tmp_path):
    pixels, labels = make_arrays(count=8)
    template = image_store.SplitTemplate(16, (5, 4), "uint8", Layout(8, 8))
    for _ in range(2):
        image_store.create_images(tmp_path / "s.zarr", {"full_scale": 255}, {"train": template})
        if not chunk_files(tmp_path / "s.zarr", "train/image"):
            image_store.write_images(tmp_path / "s.zarr", "train", 0, pixels, labels)
    found = image_store.read_images(tmp_path / "s.zarr", "train", 0, 8)
    np.testing.assert_array_equal(found[0], pixels)
    np.testing.assert_array_equal(found[1], labels)


@pytest.mark.parametrize(
    ("start", "count"),
    [(0, 7), (0, 9), (0, 16), (1, 8), (4, 8), (8, 4), (16, 4), (20, 1), (17, 4), (8, 13), (0, 21)],
)
def test_a_write_that_is_not_one_whole_shard_is_refused_and_changes_nothing(images, start, count):
    path, *_ = images
    before = {item: item.read_bytes() for item in path.rglob("*") if item.is_file()}
    black = np.zeros((count, 5, 4), np.uint8)
    with pytest.raises(StoreError, match=f"samples {start} to {start + count} are not one whole"):
        image_store.write_images(path, "train", start, black, np.zeros(count, np.int32))
    assert {item: item.read_bytes() for item in path.rglob("*") if item.is_file()} == before


@pytest.mark.parametrize(("start", "count"), [(0, 8), (8, 8), (16, 5)])
def test_a_whole_shard_is_written_and_its_neighbours_are_not_touched(images, start, count):
    path, pixels, labels = images
    expected_pixels, expected_labels = pixels.copy(), labels.copy()
    part = slice(start, start + count)
    expected_pixels[part], expected_labels[part] = 255 - pixels[part], 2
    image_store.write_images(path, "train", start, expected_pixels[part], expected_labels[part])
    found = image_store.read_images(path, "train", 0, COUNT)
    np.testing.assert_array_equal(found[0], expected_pixels)
    np.testing.assert_array_equal(found[1], expected_labels)


def read_both_ways(path):
    """Read a split block by block and through dask, and return both or the error of both."""
    found = []
    for read in (
        lambda: image_store.read_images(path, "train", 0, COUNT),
        lambda: dask.compute(*(pipeline.open_images(path)[n].data for n in ("image", "label"))),
    ):
        try:
            found.append(read())
        except DamagedError as error:
            found.append(error)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_is_an_error_and_never_another_value(tmp_path, kind):
    shape, dtype = KINDS[kind]
    pixels, labels = make_arrays(shape, dtype)
    path = make_store(tmp_path / "s.zarr", {"train": (pixels, labels)})
    rng = np.random.default_rng(7)
    errors = 0
    for name, tries in (("image", 15), ("label", 5)):
        for file in rng.choice(chunk_files(path, f"train/{name}"), tries):
            good = file.read_bytes()
            position, bit = divmod(int(rng.integers(8 * len(good))), 8)
            bad = bytearray(good)
            bad[position] ^= 1 << bit
            file.write_bytes(bad)
            for found in read_both_ways(path):
                if isinstance(found, DamagedError):
                    errors += 1
                    continue
                np.testing.assert_array_equal(found[0], pixels)
                np.testing.assert_array_equal(found[1], labels)
            file.write_bytes(good)
    assert errors > 30  # of 40; a bit that nothing depends on may pass


def test_a_flipped_bit_in_any_byte_of_the_index_of_a_shard_is_an_error(images):
    path, *_ = images
    (file, *_) = chunk_files(path, "train/image")
    good = file.read_bytes()
    inner = metadata(path, "train/image")["codecs"][0]["configuration"]["chunk_shape"][0]
    for back in range(1, 16 * (SHARD // inner) + 4 + 1):
        bad = bytearray(good)
        bad[-back] ^= 0x10
        file.write_bytes(bad)
        with pytest.raises(DamagedError):
            image_store.read_images(path, "train", 0, SHARD)


@pytest.mark.parametrize("name", ["image", "label"])
def test_a_truncated_file_is_an_error_at_any_length(images, name):
    path, *_ = images
    file = chunk_files(path, f"train/{name}")[1]
    good = file.read_bytes()
    passed = []
    for length in {*range(0, len(good), 5), 1, len(good) - 1}:
        file.write_bytes(good[:length])
        with suppress(DamagedError):
            image_store.read_images(path, "train", 8, 9)
            passed.append(length)
    assert passed == []


@pytest.mark.parametrize("name", ["image", "label"])
def test_a_deleted_file_is_an_error_with_its_place_and_a_cure(images, name):
    path, *_ = images
    file = chunk_files(path, f"train/{name}")[1]
    file.unlink()
    for found in read_both_ways(path):
        assert isinstance(found, DamagedError)
        assert str(file) in str(found)
        assert "pixsim verify" in str(found)


def test_a_damaged_shard_does_not_hide_the_others(images):
    path, pixels, labels = images
    chunk_files(path, "train/image")[1].unlink()
    for start, stop in ((0, 8), (3, 5), (16, 21)):
        found = image_store.read_images(path, "train", start, stop)
        np.testing.assert_array_equal(found[0], pixels[start:stop])
        np.testing.assert_array_equal(found[1], labels[start:stop])
    lazy = pipeline.open_images(path)["image"].data
    for key in (slice(7, 9), slice(None), slice(15, 16), slice(0, 21, 10)):
        with pytest.raises(DamagedError):
            lazy[key].compute()


def test_swapped_shards_are_no_damage_to_a_file_but_to_the_digest(images):
    path, *_ = images
    first, second, _ = chunk_files(path, "train/image")
    a, b = first.read_bytes(), second.read_bytes()
    first.write_bytes(b)
    second.write_bytes(a)
    recorded = manifest.read_manifest(path, manifest.IMAGES)["digest"]
    assert digest_images(path) != recorded


def test_opening_reads_no_pixel_and_no_label(images):
    path, *_ = images
    for name in ("image", "label"):
        shutil.rmtree(path / "train" / name / "c")
    with dask.config.set(scheduler=no_reading):
        found = pipeline.open_images(path)
        part = found.isel(sample=slice(3, 12), y=0).rename(image="picture")
    assert part["picture"].shape == (9, 4)
    with pytest.raises(DamagedError):
        part.compute()


def test_there_is_a_dask_chunk_for_each_shard(shared):
    found = pipeline.open_images(shared[0])
    assert found["image"].chunks == ((8, 8, 5), (5,), (4,))
    assert found["label"].chunks == ((8, 8, 5),)


@pytest.mark.parametrize(
    "key",
    [0, -1, 20, slice(None), slice(5, 5), slice(7, 9), slice(0, 21, 4), slice(None, None, -3),
     [0, 20, 3], slice(-4, None), [], np.arange(COUNT) % 2 == 0, slice(30, 40)],
    ids=str,
)  # fmt: skip
def test_any_part_of_the_samples_is_what_numpy_gives(shared, key):
    path, pixels, labels = shared
    found = pipeline.open_images(path).isel(sample=key)
    np.testing.assert_array_equal(found["image"].values, pixels[key])
    np.testing.assert_array_equal(found["label"].values, labels[key])
    np.testing.assert_array_equal(found["sample"].values, np.arange(COUNT)[key])


def test_a_block_of_pixels_within_images_is_what_numpy_gives(shared):
    path, pixels, _ = shared
    found = pipeline.open_images(path)["image"].isel(sample=slice(6, 18), y=slice(1, 3), x=-1)
    np.testing.assert_array_equal(found.values, pixels[6:18, 1:3, -1])
    direct = store_array.StoreArray(path, "train/image")
    np.testing.assert_array_equal(direct[6:18, 1:3, -1], pixels[6:18, 1:3, -1])


def test_an_array_of_a_store_travels_as_its_place_only(shared):
    path, pixels, _ = shared
    array = store_array.StoreArray(path, "train/image")
    np.testing.assert_array_equal(array[:], pixels)
    packed = pickle.dumps(array)
    assert len(packed) < 500
    again = pickle.loads(packed)
    assert (again.shape, again.ndim, again.dtype) == (pixels.shape, 3, np.uint8)
    np.testing.assert_array_equal(again[5:9], pixels[5:9])


def test_an_unknown_split_is_refused_with_those_there_are(tmp_path):
    arrays = make_arrays()
    path = make_store(tmp_path / "s.zarr", {"train": arrays, "test": arrays})
    with pytest.raises(StoreError, match="no split 'valid', expected one of train, test"):
        pipeline.open_images(path, "valid")


def test_a_store_without_manifest_is_incomplete(images):
    path, *_ = images
    (path / manifest.MANIFEST).unlink()
    with pytest.raises(IncompleteError, match=r"its manifest\.json is missing"):
        pipeline.open_images(path)


@pytest.mark.parametrize("place", ["nowhere", "."])
def test_a_folder_that_is_no_store_is_refused(tmp_path, place):
    with pytest.raises(StoreError):
        pipeline.open_images(tmp_path / place)


def test_an_array_that_is_not_there_is_named(shared):
    with pytest.raises(StoreError, match="holds no array 'train/picture'"):
        _ = store_array.StoreArray(shared[0], "train/picture").shape
