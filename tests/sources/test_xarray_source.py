"""Labelled arrays as sources: names, order of dimensions, laziness, classes, what is refused."""

from __future__ import annotations

import importlib.util
import json
import pickle
import shutil

import dask
import dask.array
import numpy as np
import pytest
import xarray as xr
from arrays_for_tests import COUNT, NAMES, from_datasets, holds, make_arrays, make_dataset, store

from pipeline.core.errors import InputError, ShapeError, SourceError
from pipeline.core.paths import locate
from pipeline.sources.quantize import pack_floats
from pipeline.sources.xarray_source import open_labelled

pytestmark = [
    pytest.mark.filterwarnings("ignore:Consolidated metadata"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:The data type"),
]
needs_h5py = pytest.mark.skipif(not importlib.util.find_spec("h5py"), reason="needs h5py")


# stores and files ------------------------------------------------------------------------------


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_the_groups_of_a_store_are_its_splits(tmp_path, zarr_format):
    train, test = make_arrays(), make_arrays(9, seed=1)
    path = tmp_path / "a.zarr"
    for name, pair in {"train": train, "test": test}.items():
        dataset = make_dataset(*pair, class_names=list(NAMES)).chunk(sample=5)
        store(dataset, path, group=name, mode="a", zarr_format=zarr_format)
    source = open_labelled({None: [path]})
    assert {k: (i.count, i.shape, i.dtype) for k, i in source.splits().items()} == {
        "train": (COUNT, (6, 4), "uint8"),
        "test": (9, (6, 4), "uint8"),
    }
    assert holds(source, "train", *train)
    assert holds(source, "test", *test)
    assert (source.class_names, source.full_scale, source.encoding) == (NAMES, 255, {})
    assert source.read("test", 3, 5).origins == ["a.zarr/test[3]", "a.zarr/test[4]"]
    again = pickle.loads(pickle.dumps(source))
    source.close()
    assert holds(again, "train", *train)
    assert list(open_labelled({"test": [path]}).splits()) == ["test"]
    with pytest.raises(SourceError, match=r"has the groups .*expected 'valid' or one only"):
        open_labelled({"valid": [path]})


def test_a_store_without_groups_is_one_split(tmp_path):
    pair = make_arrays()
    path = store(make_dataset(*pair), tmp_path / "a.zarr")
    assert list(open_labelled({None: [path]}).splits()) == ["train"]
    assert list(open_labelled({None: [path]}, split="all").splits()) == ["all"]
    source = open_labelled({"valid": [path]})
    assert holds(source, "valid", *pair)
    assert source.class_names == ("0", "1", "2")


def test_names_and_the_order_of_dimensions_are_mapped(tmp_path):
    images, labels = make_arrays(shape=(6, 4, 3))
    turned = np.ascontiguousarray(images.transpose(3, 1, 0, 2))
    dataset = make_dataset(turned, None, "pixels", dims=("band", "lat", "time", "lon"))
    dataset["digit"] = ("time", labels)
    dataset = dataset.assign_coords(time=np.arange(COUNT) * 10, lat=np.linspace(0, 1, 6))
    path = store(dataset, tmp_path / "a.zarr")
    variables = {"image": "pixels", "label": "digit"}
    dims = {"sample": "time", "y": "lat", "x": "lon", "channel": "band"}
    source = open_labelled({None: [path]}, variables, dims)
    assert source.splits()["train"].shape == (6, 4, 3)
    assert holds(source, "train", images, labels)
    # one dimension that is left over needs no name, nor does the only variable of 4 dimensions
    part = {"sample": "time", "y": "lat", "x": "lon"}
    assert holds(open_labelled({None: [path]}, {"label": "digit"}, part), "train", images, labels)


def test_a_split_may_lie_in_several_stores(tmp_path):
    images, labels = make_arrays()
    paths = [store(make_dataset(images[p], labels[p]), tmp_path / f"{p.start}.zarr")
             for p in (slice(0, 10), slice(10, COUNT))]  # fmt: skip
    source = open_labelled({"train": paths})
    assert holds(source, "train", images, labels, 6)
    assert source.read("train", 9, 11).origins == ["0.zarr[9]", "10.zarr[0]"]


def test_netcdf_3_is_read_and_its_signed_bytes_are_what_they_stand_for(tmp_path):
    images, labels = make_arrays()
    assert images.max() > 200
    dataset = make_dataset(images.view(np.int8), labels)
    dataset.image.attrs["_Unsigned"] = "true"
    dataset.to_netcdf(tmp_path / "a.nc", engine="scipy")
    source = open_labelled({None: [tmp_path / "a.nc"]})
    assert source.splits()["train"].dtype == "uint8"
    assert holds(source, "train", images, labels)


@needs_h5py
def test_the_groups_of_netcdf_4_are_splits(tmp_path):
    train, test = make_arrays(dtype="uint16"), make_arrays(5, dtype="uint16")
    for name, pair in {"train": train, "test": test}.items():
        dataset = make_dataset(*pair, class_names=list(NAMES))
        dataset.to_netcdf(tmp_path / "a.nc", group=name, mode="a", engine="h5netcdf")
    source = open_labelled({None: [tmp_path / "a.nc"]})
    assert holds(source, "train", *train)
    assert holds(source, "test", *test)
    assert source.class_names == NAMES


def test_a_remote_store_is_read(tmp_path):
    images, labels = make_arrays()
    make_dataset(images, labels).to_zarr("memory://labelled/a.zarr", group="train")
    source = open_labelled({None: [locate("memory://labelled/a.zarr")]})
    assert holds(source, "train", images, labels)
    json.dumps(source.provenance, allow_nan=False)


# in memory -------------------------------------------------------------------------------------


@pytest.mark.parametrize("lazy", [False, True])
def test_data_sets_are_read_as_they_are(lazy):
    train, test = make_arrays(), make_arrays(9, seed=1)
    datasets = {"train": make_dataset(*train), "test": make_dataset(*test)}
    if lazy:
        datasets = {name: dataset.chunk(sample=4) for name, dataset in datasets.items()}
    source = from_datasets(datasets, class_names=NAMES)
    assert holds(source, "train", *train)
    assert holds(pickle.loads(pickle.dumps(source)), "test", *test)
    assert source.class_names == NAMES
    source.close()


def test_only_the_chunks_of_a_range_are_computed_and_no_thread_is_started():
    images, labels = make_arrays()
    seen = []

    def chunk(values, block_info=None):
        import threading

        seen.append((block_info[0]["array-location"][0][0], threading.current_thread()))
        return values

    lazy = dask.array.from_array(images, chunks=(5, 6, 4)).map_blocks(chunk, dtype="uint8")
    seen.clear()
    source = from_datasets({"train": make_dataset(lazy, labels)})
    source.splits()
    assert seen == []
    with dask.config.set(scheduler="threads"):
        block = source.read("train", 6, 9)
    np.testing.assert_array_equal(block.images, images[6:9])
    import threading

    assert seen == [(5, threading.current_thread())]


# values ----------------------------------------------------------------------------------------


def test_packed_integers_stay_as_stored_and_their_meaning_is_carried_on(tmp_path):
    images, labels = make_arrays(dtype="uint16")
    images[images == 7] = 8
    dataset = make_dataset(images, labels)
    dataset.image.attrs = {"scale_factor": 0.5, "add_offset": -3.0, "_FillValue": np.uint16(7)}
    path = store(dataset, tmp_path / "a.zarr")
    for source in (open_labelled({None: [path]}), from_datasets({"train": dataset})):
        assert source.splits()["train"].dtype == "uint16"
        assert source.encoding == {"scale_factor": 0.5, "add_offset": -3.0}
        assert holds(source, "train", images, labels)


def test_splits_that_are_packed_differently_are_refused():
    one, two = make_dataset(*make_arrays()), make_dataset(*make_arrays())
    two.image.attrs = {"scale_factor": 0.5}
    with pytest.raises(SourceError, match="pack all splits alike"):
        from_datasets({"train": one, "test": two})


def test_floats_go_through_packing_and_missing_values_are_found():
    images, labels = make_arrays(dtype="float32")
    dataset = make_dataset(images, labels)
    dataset.image.attrs["_FillValue"] = np.float32(-999)
    source = from_datasets({"train": dataset})
    assert (source.splits()["train"].dtype, source.full_scale) == ("float32", 1)
    packed = pack_floats(source, (0, 65535))
    np.testing.assert_array_equal(packed.read("train", 0, COUNT).images, images)
    dataset.image[4, 3, 2] = -999
    packed = pack_floats(from_datasets({"train": dataset}), (0, 65535))
    block = packed.read("train", 3, 6)
    assert list(block.problems) == [1]
    assert "1 of 24 pixels missing: pixel (3, 2) is nan" in block.problems[1].detail
    assert block.labels.tolist() == [labels[3], -1, labels[5]]


def test_floats_with_a_scale_factor_are_refused():
    dataset = make_dataset(*make_arrays(dtype="float32"))
    dataset.image.attrs["scale_factor"] = 2.0
    with pytest.raises(SourceError, match="floats with a scale_factor"):
        from_datasets({"train": dataset})


def test_the_full_scale_of_a_store_is_kept():
    images, labels = make_arrays()
    source = from_datasets({"train": make_dataset(images // 16, labels, full_scale=16)})
    assert source.full_scale == 16


# provenance ------------------------------------------------------------------------------------


def test_the_provenance_of_a_store_changes_with_any_of_its_files(tmp_path):
    images, labels = make_arrays()
    path = store(make_dataset(images, labels).chunk(sample=5), tmp_path / "a.zarr")
    seen = [str(open_labelled({None: [path]}).provenance) for _ in range(2)]
    moved = tmp_path / "elsewhere" / "a.zarr"
    shutil.copytree(path, moved)
    seen.append(str(open_labelled({None: [moved]}).provenance))
    chunk = next(p for p in sorted(path.glob("image/c/**/*")) if p.is_file())
    chunk.write_bytes(chunk.read_bytes() + b"\0")
    seen.append(str(open_labelled({None: [path]}).provenance))
    assert seen[0] == seen[1] == seen[2] != seen[3]
    assert str(tmp_path) not in seen[0]


# what is refused -------------------------------------------------------------------------------


def test_an_image_that_cannot_be_told_is_refused_with_what_there_is():
    images, labels = make_arrays()
    dataset = make_dataset(images, labels, "a")
    dataset["b"] = dataset["a"]
    with pytest.raises(SourceError, match=r"no variable 'image'.*a \(sample, y, x\) uint8.*b \("):
        from_datasets({"train": dataset})
    assert holds(from_datasets({"train": dataset}, {"image": "b"}), "train", images, labels)
    with pytest.raises(SourceError, match="no variable 'c'"):
        from_datasets({"train": dataset[["a", "label"]]}, {"image": "c"})


@pytest.mark.parametrize(
    ("dims", "mapped"),
    [(("time", "a", "b"), {}), (("sample", "a", "b"), {}),
     (("sample", "y", "x"), {"sample": "time"})],
)  # fmt: skip
def test_dimensions_that_cannot_be_told_are_refused_with_what_there_is(dims, mapped):
    images, _ = make_arrays()
    with pytest.raises(SourceError, match=rf"dimensions \({', '.join(dims)}\), expected"):
        from_datasets({"train": make_dataset(images, None, dims=dims)}, None, mapped)


def test_labels_under_another_name_are_not_passed_over():
    images, labels = make_arrays()
    with pytest.raises(SourceError, match=r"no variable 'label' for labels.*'?digit"):
        from_datasets({"train": make_dataset(images, labels, label="digit")})
    with pytest.raises(SourceError, match="no variable 'nothing'"):
        from_datasets({"train": make_dataset(images, labels)}, {"label": "nothing"})


@pytest.mark.parametrize("labels", [np.zeros(COUNT, "m8[s]"), np.zeros(COUNT, complex)])
def test_labels_of_another_type_are_refused(labels):
    images, _ = make_arrays()
    with pytest.raises(SourceError, match="expected whole numbers or text"):
        from_datasets({"train": make_dataset(images, labels)})


def test_labels_along_another_dimension_are_refused():
    images, _ = make_arrays()
    dataset = xr.Dataset(
        {"image": (("sample", "y", "x"), images), "label": ("y", np.zeros(6, int))}
    )
    with pytest.raises(ShapeError, match="expected one label for each image"):
        from_datasets({"train": dataset})


def test_other_integers_are_refused_with_their_range():
    images, labels = make_arrays(dtype="int16")
    images[5, 1, 1] = 300
    with pytest.raises(SourceError, match=r"int16 with values \d+ to 300.*uint16"):
        from_datasets({"train": make_dataset(images, labels)})


@pytest.mark.parametrize("name", ["a.zarr", "a.nc"])
def test_what_is_missing_or_no_such_file_is_refused(tmp_path, name):
    with pytest.raises(SourceError, match=name):
        open_labelled({None: [tmp_path / name]})
    (tmp_path / name).write_bytes(b"something else")
    with pytest.raises(SourceError, match=name):
        open_labelled({None: [tmp_path / name]})


def test_a_damaged_chunk_is_an_error(tmp_path):
    images, labels = make_arrays()
    path = store(make_dataset(images, labels), tmp_path / "a.zarr")
    chunk = next(p for p in sorted(path.glob("image/c/**/*")) if p.is_file())
    source = open_labelled({None: [path]})
    chunk.write_bytes(b"\xff" * 10)
    with pytest.raises(InputError, match=r"a\.zarr"):
        source.read("train", 0, 5)
