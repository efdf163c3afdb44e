"""Stored values of labelled arrays are what their attributes say: packed, missing, unsigned."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import xarray as xr
from arrays_for_tests import from_datasets

import pipeline
from pipeline.core.errors import BadSamplesError, LabelError, ShapeError, SourceError
from pipeline.sources.quantize import pack_floats
from pipeline.sources.registry import open_source

pytestmark = pytest.mark.filterwarnings("ignore:Consolidated metadata")
U8 = np.random.default_rng(0).integers(1, 200, (6, 4, 3), np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])
needs_h5 = pytest.mark.skipif(not importlib.util.find_spec("h5netcdf"), reason="needs h5netcdf")


def data_set(images=U8, labels=LABELS, dims=("sample", "y", "x"), attrs=None, encoding=None):
    variables = {"image": (dims, images)}
    if labels is not None:
        variables["label"] = ((dims[0],), labels)
    found = xr.Dataset(variables)
    found.image.attrs.update(attrs or {})
    found.image.encoding.update(encoding or {})
    return found


def in_memory(folder, dataset):
    return from_datasets({"train": dataset})


def as_zarr(folder, dataset, zarr_format=3):
    dataset.to_zarr(folder / "a.zarr", mode="w", zarr_format=zarr_format)
    return open_source(str(folder / "a.zarr"))


def as_zarr_2(folder, dataset):
    return as_zarr(folder, dataset, 2)


def as_netcdf(folder, dataset):
    dataset.to_netcdf(folder / "a.nc", engine="h5netcdf")
    return open_source(str(folder / "a.nc"))


STORED = pytest.mark.parametrize(
    "reader", [as_zarr, as_zarr_2, pytest.param(as_netcdf, marks=needs_h5)]
)
READERS = pytest.mark.parametrize(
    "reader", [in_memory, as_zarr, as_zarr_2, pytest.param(as_netcdf, marks=needs_h5)]
)


def bad(source):
    block = source.read("train", 0, 6)
    assert [block.labels[place] for place in block.problems] == [-1] * len(block.problems)
    assert not block.images[list(block.problems)].any()
    return {place: problem.detail for place, problem in block.problems.items()}


def with_gap(value, dtype=np.uint8):
    images = U8.astype(dtype)
    images[1, 2, 1] = images[4, 0, 0] = images[4, 3, 2] = value
    return images


# missing pixels ----------------------------------------------------------------------------------


@READERS
@pytest.mark.parametrize("key", ["_FillValue", "missing_value"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_missing_pixel_makes_a_sample_bad_and_is_never_a_value(tmp_path, reader, key, dtype):
    fill = np.iinfo(dtype).max
    images = with_gap(fill, dtype)
    source = reader(tmp_path, data_set(images, attrs={key: dtype(fill)}))
    found = bad(source)
    assert list(found) == [1, 4]
    assert f"1 of 12 pixels missing: pixel (2, 1) is {fill}; " in found[1]
    assert "2 of 12 pixels missing: pixel (0, 0)" in found[4]
    assert f"{key} [{fill}]" in found[1]
    block = source.read("train", 2, 4)  # ranges without a gap are as they are stored
    assert (block.images.dtype, block.problems) == (dtype, {})
    np.testing.assert_array_equal(block.images, images[2:4])
    assert list(source.read("train", 3, 6).problems) == [1]


@READERS
@pytest.mark.parametrize(
    "attrs",
    [{"valid_range": np.array([1, 199], np.uint8)}, {"valid_max": np.uint8(199)},
     {"valid_min": np.uint8(1), "valid_max": np.uint8(199), "missing_value": np.uint8(250)}],
)  # fmt: skip
def test_values_outside_the_valid_range_are_missing(tmp_path, reader, attrs):
    assert list(bad(reader(tmp_path, data_set(with_gap(230), attrs=attrs)))) == [1, 4]
    (tmp_path / "good").mkdir()
    assert bad(reader(tmp_path / "good", data_set(attrs=attrs))) == {}


@READERS
def test_values_below_the_valid_range_are_missing(tmp_path, reader):
    dataset = data_set(with_gap(0), attrs={"valid_min": np.uint8(1)})
    assert list(bad(reader(tmp_path, dataset))) == [1, 4]


@STORED
def test_packed_integers_with_gaps_keep_their_values_and_lose_the_samples(tmp_path, reader):
    values = U8 / 50
    gaps = values.copy()
    gaps[1, 2, 1] = np.nan
    how = {"dtype": "uint16", "scale_factor": 1 / 1000, "_FillValue": 65535}
    source = reader(tmp_path, data_set(gaps, encoding=how))
    assert source.encoding == {"scale_factor": 1 / 1000, "add_offset": 0.0}
    assert list(bad(source)) == [1]
    block = source.read("train", 2, 6)
    assert block.images.dtype == np.uint16
    np.testing.assert_allclose(block.images * 1e-3, values[2:6], atol=6e-4)


@STORED
@pytest.mark.parametrize("offset", [0.0, -2.5])
@pytest.mark.parametrize("dtype", ["int16", "int32", "int8"])
def test_packed_signed_integers_are_what_xarray_decodes(tmp_path, reader, dtype, offset):
    scale = 0.05 if dtype == "int8" else 0.001
    gaps = U8 / 50 + offset
    gaps[1, 2, 1] = np.nan
    how = {"dtype": dtype, "scale_factor": scale, "add_offset": offset, "_FillValue": -99}
    source = reader(tmp_path, data_set(gaps, encoding=how))
    opener = xr.open_dataset if (tmp_path / "a.nc").exists() else xr.open_zarr
    path = next(tmp_path.glob("a.*"))
    expected = opener(path).image.values
    block = source.read("train", 0, 6)
    assert list(block.problems) == [1]
    assert source.splits()["train"].dtype.startswith("float")
    keep = [0, 2, 3, 4, 5]
    np.testing.assert_array_equal(block.images[keep], expected[keep])
    assert source.encoding == {}
    packed = pack_floats(source)
    assert packed.packing.lowest >= offset


@STORED
def test_signed_integers_with_a_fill_value_are_floats_as_xarray_has_them(tmp_path, reader):
    images = with_gap(-9999, np.int16)
    source = reader(tmp_path, data_set(images, attrs={"_FillValue": np.int16(-9999)}))
    block = source.read("train", 0, 6)
    assert (list(block.problems), block.images.dtype) == ([1, 4], np.float32)
    np.testing.assert_array_equal(block.images[[0, 2, 3]], images[[0, 2, 3]])


def test_signed_integers_without_meaning_are_refused_with_a_cure_that_works():
    images = U8.astype(np.int16)
    with pytest.raises(SourceError, match=r'the values fit \.astype\("uint8"\)'):
        from_datasets({"train": data_set(images)})
    assert bad(from_datasets({"train": data_set(images.astype("uint8"))})) == {}


@STORED
def test_floats_of_the_fill_value_are_missing(tmp_path, reader):
    images = (U8 / 256).astype(np.float32)
    images[1, 0, :2] = np.nan
    source = reader(tmp_path, data_set(images, encoding={"_FillValue": np.float32(-9999)}))
    assert list(bad(source)) == [1]
    packed = pack_floats(source)
    assert packed.packing.lowest >= 0  # -9999 is no value


def test_an_opened_data_set_that_xarray_decoded_is_not_decoded_again(tmp_path):
    images = U8.astype(np.float32)
    images[2, 0, 0] = 255.0  # a value of its own: the fill value is that of the file
    dataset = data_set(images)
    dataset.image.encoding = {"_FillValue": 255, "dtype": "uint8", "_Unsigned": "true",
                              "scale_factor": 2.0}  # fmt: skip
    source = from_datasets({"train": dataset})
    assert bad(source) == {}
    np.testing.assert_array_equal(source.read("train", 0, 6).images, images)


def test_unsigned_bytes_of_netcdf_3_have_unsigned_fill_values(tmp_path):
    images = with_gap(255)
    dataset = data_set(images.view(np.int8))
    dataset.image.attrs = {"_Unsigned": "true", "_FillValue": np.int8(-1)}
    dataset.to_netcdf(tmp_path / "a.nc", engine="scipy")
    source = open_source(str(tmp_path / "a.nc"))
    assert list(bad(source)) == [1, 4]
    np.testing.assert_array_equal(source.read("train", 2, 4).images, images[2:4])


def test_zero_is_missing_only_where_an_attribute_says_so(tmp_path):
    images = with_gap(0)
    assert bad(as_zarr(tmp_path, data_set(images))) == {}
    # Zarr's second format gives all arrays a fill value, of which 0 says nothing
    assert bad(as_zarr_2(tmp_path, data_set(images, encoding={"_FillValue": 0}))) == {}
    found = bad(as_zarr(tmp_path, data_set(images, attrs={"_FillValue": np.uint8(0)})))
    assert list(found) == [1, 4]
    assert "del ds['image'].attrs['_FillValue']" in found[1]


def test_what_to_do_about_missing_pixels_works(tmp_path):
    images = with_gap(0)
    data_set(images, attrs={"_FillValue": np.uint8(0)}).to_zarr(tmp_path / "a.zarr")
    with pytest.raises(BadSamplesError, match="pixels missing"):
        pipeline.ingest(str(tmp_path / "a.zarr"), tmp_path / "one.zarr")
    left = pipeline.ingest(
        {"source": str(tmp_path / "a.zarr"), "max_bad": 2}, tmp_path / "two.zarr"
    )
    assert xr.open_zarr(left, group="train", consolidated=False).sizes["sample"] == 4
    ds = xr.open_dataset(tmp_path / "a.zarr", engine="zarr", mask_and_scale=False).load()
    del ds["image"].attrs["_FillValue"]
    ds.to_zarr(tmp_path / "b.zarr")
    made = pipeline.ingest(str(tmp_path / "b.zarr"), tmp_path / "three.zarr")
    stored = xr.open_zarr(made, group="train", consolidated=False)
    np.testing.assert_array_equal(stored.image, images)


# labels ------------------------------------------------------------------------------------------


@STORED
@pytest.mark.parametrize(("dtype", "fill"), [("int16", -1), ("uint8", 255), ("int32", 99)])
def test_labels_with_a_fill_value_are_none(tmp_path, reader, dtype, fill):
    dataset = data_set(labels=np.array([0, 1, np.nan, 1, 0, 1]))
    dataset.label.encoding = {"dtype": dtype, "_FillValue": fill}
    source = reader(tmp_path, dataset)
    assert source.class_names == ("0", "1")
    assert source.read("train", 0, 6).labels.tolist() == [0, 1, -1, 1, 0, 1]


@READERS
def test_labels_may_be_a_coordinate_texts_or_called_otherwise(tmp_path, reader):
    dataset = data_set(labels=None).assign_coords(
        y=np.arange(4), x=np.arange(3), Labels=("sample", LABELS)
    )
    source = reader(tmp_path, dataset)
    assert source.read("train", 0, 6).labels.tolist() == LABELS.tolist()


def test_labels_in_columns_are_read_along_the_samples():
    dataset = data_set(labels=None)
    dataset["label"] = (("kind", "sample"), np.eye(3)[LABELS].T)
    with pytest.raises(ShapeError, match="one label for each image"):
        from_datasets({"train": dataset})
    dataset["label"] = (("sample", "kind"), np.eye(3)[LABELS])
    source = from_datasets({"train": dataset})
    assert source.read("train", 2, 5).labels.tolist() == LABELS[2:5].tolist()


def test_flags_of_labels_with_gaps_and_none():
    dataset = data_set(labels=np.array([7, 3, np.nan, 3, 7, 7]))
    dataset.label.attrs = {"flag_values": [3, 7], "flag_meanings": "forest river"}
    source = from_datasets({"train": dataset})
    assert source.class_names == ("forest", "river")
    assert source.read("train", 0, 6).labels.tolist() == [1, 0, -1, 0, 1, 1]


def test_flags_that_are_bits_are_refused():
    dataset = data_set()
    dataset.label.attrs = {"flag_masks": [1, 2, 4], "flag_meanings": "cloud snow water"}
    with pytest.raises(LabelError, match="flag_masks, bits that several of may be set"):
        from_datasets({"train": dataset})


# names -------------------------------------------------------------------------------------------


@READERS
@pytest.mark.parametrize(
    ("dims", "shape"),
    [(("time", "lat", "lon"), (4, 3)), (("Time", "Latitude", "Longitude"), (4, 3)),
     (("n", "height", "width"), (4, 3)), (("time", "band", "y", "x"), (4, 3, 2)),
     (("batch", "channel", "h", "w"), (4, 3, 2)), (("lat", "lon", "time"), (4, 3)),
     (("y", "x", "samples"), (4, 3)), (("y", "x", "band", "any"), (4, 3, 2))],
)  # fmt: skip
def test_dimensions_of_usual_names_are_found_in_any_order(tmp_path, reader, dims, shape):
    known = {"time": 0, "batch": 0, "n": 0, "samples": 0, "any": 0, "band": 3, "channel": 3}
    place = {name: known.get(name.lower()) for name in dims}
    sides = iter((1, 2))
    order = [next(sides) if place[name] is None else place[name] for name in dims]
    images = U8 if len(shape) == 2 else np.stack([U8, U8[::-1]], -1)
    dataset = data_set(np.ascontiguousarray(images.transpose(order)), None, dims)
    dataset["label"] = (dims[order.index(0)], LABELS)
    source = reader(tmp_path, dataset)
    assert source.splits()["train"].shape == shape
    np.testing.assert_array_equal(source.read("train", 1, 4).images, images[1:4])


def test_variables_of_usual_names_are_found_and_others_are_said():
    dataset = data_set().rename(image="Images", label="Target").rename_dims({"sample": "time"})
    dataset["mask"] = dataset["Images"]
    source = from_datasets({"train": dataset})
    assert source.read("train", 0, 6).labels.tolist() == LABELS.tolist()
    assert source.remarks == (
        "train: left out mask (time, y, x) uint8", "1 split, 3 classes from variable 'Target'",
    )  # fmt: skip


def test_images_without_labels_are_said():
    source = from_datasets({"train": data_set(labels=None)})
    assert (source.class_names, source.unlabelled) == ((), True)
    assert source.remarks == ("no labels for train: kept as unlabelled images",)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_stores_without_names_of_dimensions_are_refused_with_a_cure_that_works(
    tmp_path, zarr_format
):
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(tmp_path / "raw.zarr", mode="w", zarr_format=zarr_format)
    group.create_array("images", data=U8)
    group.create_array("labels", data=LABELS)
    with pytest.raises(SourceError, match=r"raw\.zarr: its arrays have no names of dimensions"):
        open_source(str(tmp_path / "raw.zarr"))
    found = zarr.open_group(tmp_path / "raw.zarr", mode="r")
    images, labels = found["images"][:], found["labels"][:]
    xr.Dataset({"image": (("sample", "y", "x"), images), "label": ("sample", labels)}).to_zarr(
        tmp_path / "good.zarr"
    )
    assert open_source(str(tmp_path / "good.zarr")).splits()["train"].count == 6
    zarr.save_array(tmp_path / "single.zarr", U8)
    with pytest.raises(SourceError, match=r"single\.zarr: is a single array without labels"):
        open_source(str(tmp_path / "single.zarr"))


def test_groups_packed_differently_are_named():
    sets = {n: data_set(attrs={"scale_factor": f}) for n, f in (("train", 0.5), ("test", 0.25))}
    with pytest.raises(SourceError, match=r"train: is packed with .*test with .*pack all splits"):
        from_datasets(sets)
