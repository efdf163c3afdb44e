"""The arrays of a run come back as they were; damage to them is an error."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import xarray as xr
from stores_for_tests import NAMES, chunk_files, make_arrays, make_store, metadata

import pipeline
from pipeline.core.errors import DamagedError, StoreError
from pipeline.ops.prototypes import class_sums, prototypes
from pipeline.storage import run_files, zarr_arrays


@pytest.fixture(scope="module")
def found_prototypes(shared):
    return prototypes(class_sums(pipeline.open_images(shared[0]), device="cpu")).load()


def make_distances(path, total=20, step=8):
    """Write `distances.zarr` shard by shard and return the values in it."""
    rng = np.random.default_rng(0)
    codes = np.array([0, 2, 5], np.int32)
    splits = ["train", "test"]
    run_files.create_distances(path, ["l1", "l2"], NAMES, codes, total, step, splits)
    values = {
        "distance": rng.random((2, total, len(NAMES))),
        "sample": rng.permutation(total),
        "label": rng.integers(-1, 3, total).astype(np.int32),
        "split": rng.integers(0, 2, total).astype(np.int32),
    }
    for start in range(0, total, step):
        part = slice(start, min(start + step, total))
        columns = {name: array[..., part] for name, array in values.items() if name != "distance"}
        run_files.write_distances(path, start, columns | {"distance": values["distance"][:, part]})
    zarr_arrays.consolidate(path)
    return values


def test_prototypes_come_back_as_they_were_with_names_as_text(found_prototypes, tmp_path):
    run_files.write_prototypes(tmp_path / "p.zarr", found_prototypes)
    again = run_files.open_prototypes(tmp_path / "p.zarr", "digest").load()
    xr.testing.assert_identical(again, found_prototypes)
    assert again["class_name"].values.tolist() == NAMES
    assert again["class_name"].dtype.kind == "U"
    assert metadata(tmp_path / "p.zarr", "class_name")["data_type"] == "string"
    assert again["numerator"].dtype == np.int64


def test_prototypes_are_written_anew_over_others(found_prototypes, tmp_path):
    other = found_prototypes.isel(class_name=[0, 2])
    run_files.write_prototypes(tmp_path / "p.zarr", found_prototypes)
    run_files.write_prototypes(tmp_path / "p.zarr", other)
    xr.testing.assert_identical(
        run_files.open_prototypes(tmp_path / "p.zarr", "digest").load(), other
    )


def test_distances_come_back_with_names_as_text_and_a_dask_chunk_for_each_shard(tmp_path):
    values = make_distances(tmp_path / "d.zarr")
    found = run_files.open_distances(tmp_path / "d.zarr", "digest")
    assert found.dims == ("metric", "sample", "class_name")
    assert found.chunks == ((2,), (8, 8, 4), (3,))
    assert found["class_name"].values.tolist() == NAMES
    assert found["metric"].values.tolist() == ["l1", "l2"]
    assert found["class_code"].values.tolist() == [0, 2, 5]
    assert {found[name].dtype.kind for name in ("class_name", "metric")} == {"U"}
    assert metadata(tmp_path / "d.zarr", "metric")["data_type"] == "string"
    np.testing.assert_array_equal(found.values, values.pop("distance"))
    for name, array in values.items():
        np.testing.assert_array_equal(found[name].values, array)
    meanings = found["split"].attrs
    assert (meanings["flag_values"], meanings["flag_meanings"]) == ([0, 1], "train test")


def test_xarray_alone_reads_the_results_with_their_names(found_prototypes, tmp_path):
    run_files.write_prototypes(tmp_path / "p.zarr", found_prototypes)
    values = make_distances(tmp_path / "d.zarr")
    plain = xr.open_zarr(tmp_path / "p.zarr")
    np.testing.assert_array_equal(plain["prototype"], found_prototypes["prototype"])
    assert [str(name) for name in plain["class_name"].values] == NAMES
    one = xr.open_zarr(tmp_path / "d.zarr")["distance"].sel(metric="l2", class_name="large dog")
    np.testing.assert_array_equal(one, values["distance"][1, :, 1])
    assert {"label", "split", "class_code"} <= set(one.coords)


def test_every_chunk_of_results_carries_a_checksum(found_prototypes, tmp_path):
    run_files.write_prototypes(tmp_path / "p.zarr", found_prototypes)
    make_distances(tmp_path / "d.zarr")
    for record in tmp_path.glob("[pd].zarr/*/zarr.json"):
        codecs = json.loads(record.read_text())["codecs"]
        if codecs[0]["name"] == "sharding_indexed":
            assert codecs[0]["configuration"]["index_codecs"][-1]["name"] == "crc32c"
            codecs = codecs[0]["configuration"]["codecs"]
        assert codecs[-1]["name"] == "crc32c", record.parent.name


@pytest.mark.parametrize("start", [0, 8, 16])
def test_a_shard_of_distances_is_read_back(tmp_path, start):
    values = make_distances(tmp_path / "d.zarr")
    stop = min(start + 8, 20)
    found = run_files.read_distances(tmp_path / "d.zarr", start, stop)
    assert set(found) == set(values)
    np.testing.assert_array_equal(found["distance"], values["distance"][:, start:stop])
    for name in ("sample", "label", "split"):
        np.testing.assert_array_equal(found[name], values[name][start:stop])


@pytest.mark.parametrize("name", ["distance", "sample", "label", "split"])
def test_a_flipped_bit_in_the_distances_is_an_error_and_never_another_value(tmp_path, name):
    make_distances(tmp_path / "d.zarr")
    file = chunk_files(tmp_path / "d.zarr", name)[1]
    good = file.read_bytes()
    for position in np.random.default_rng(0).choice(len(good), min(20, len(good)), replace=False):
        bad = bytearray(good)
        bad[position] ^= 0x20
        file.write_bytes(bad)
        with pytest.raises(DamagedError, match="samples 8 to 16 cannot be read"):
            run_files.read_distances(tmp_path / "d.zarr", 8, 16)


@pytest.mark.parametrize("name", ["distance", "sample", "label", "split"])
@pytest.mark.parametrize("empty", [False, True])
def test_a_missing_or_empty_shard_of_distances_is_an_error(tmp_path, name, empty):
    make_distances(tmp_path / "d.zarr")
    file = chunk_files(tmp_path / "d.zarr", name)[1]
    if empty:
        file.write_bytes(b"")
    else:
        file.unlink()
    with pytest.raises(DamagedError):
        run_files.read_distances(tmp_path / "d.zarr", 8, 16)


@pytest.mark.parametrize("name", ["distance", "label"])
def test_a_missing_shard_of_opened_distances_is_an_error_when_it_is_read(tmp_path, name):
    make_distances(tmp_path / "d.zarr")
    chunk_files(tmp_path / "d.zarr", name)[1].unlink()
    found = run_files.open_distances(tmp_path / "d.zarr", "digest")
    found.isel(sample=slice(0, 8)).compute()
    with pytest.raises(DamagedError, match="this shard is missing"):
        found.compute()


@pytest.mark.parametrize(("start", "count"), [(0, 4), (4, 8), (8, 12)])
def test_distances_are_written_by_whole_shards_only(tmp_path, start, count):
    make_distances(tmp_path / "d.zarr")
    with pytest.raises(StoreError, match="not one whole shard"):
        run_files.write_distances(tmp_path / "d.zarr", start, {"distance": np.zeros((2, count, 3))})


def test_no_step_from_creating_to_reading_warns(tmp_path):
    pixels, labels = make_arrays()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        arrays = {"train": (pixels, labels), "test": (pixels[:2], labels[:2])}
        path = make_store(tmp_path / "s.zarr", arrays)
        opened = pipeline.open_images(path)
        opened.compute()
        for split in arrays:
            xr.open_zarr(path, group=split).compute()
        made = prototypes(class_sums(opened, device="cpu")).load()
        run_files.write_prototypes(tmp_path / "p.zarr", made)
        run_files.open_prototypes(tmp_path / "p.zarr", "digest").compute()
        xr.open_zarr(tmp_path / "p.zarr").compute()
        make_distances(tmp_path / "d.zarr")
        run_files.open_distances(tmp_path / "d.zarr", "digest").compute()
        xr.open_zarr(tmp_path / "d.zarr").compute()
