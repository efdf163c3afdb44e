"""What is written and read without Zarr: the bytes that Zarr writes, and every damage found."""

from __future__ import annotations

import json

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import DamagedError, StoreError
from pipeline.storage import shards, store_array, zarr_arrays, zarr_names
from pipeline.storage.zarr_arrays import ArrayTemplate


def template(planes, samples, classes, chunk, parts, dtype="float64", compressed=False):
    return ArrayTemplate(
        ("metric", "sample", "class_name"), (planes, samples, classes), dtype,
        chunks=(1, chunk, classes), shards=(planes, chunk * parts, classes),
        fill_value=np.nan if dtype == "float64" else 0, compressed=compressed,
    )  # fmt: skip


def make(path, *sizes, **settings):
    """Create an array in a store; return it, and how it is read and written without Zarr."""
    zarr_arrays.create_group(path, {})
    zarr_arrays.create_array(path, "a", template(*sizes, **settings))
    return store_array.open_array(path, "a", "r+"), store_array.find_rows(path, "a", 1)


def random(planes, samples, classes):
    return np.random.default_rng(samples).random((planes, samples, classes))


def files_of(path):
    return {
        file.relative_to(path).as_posix(): file.read_bytes()
        for file in sorted((path / "a" / "c").rglob("*"))
        if file.is_file()
    }


@given(data=st.data())
def test_the_bytes_of_a_shard_are_those_that_zarr_writes(tmp_path_factory, data):
    chunk, parts = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))
    planes, samples = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 40))
    sizes = planes, samples, data.draw(st.integers(1, 3)), chunk, parts
    values, paths = random(*sizes[:3]), [tmp_path_factory.mktemp("planes") for _ in range(2)]
    array, _ = make(paths[0], *sizes)
    _, rows = make(paths[1], *sizes)
    marks = []
    for number, start in enumerate(range(0, samples, chunk * parts)):
        part = slice(start, start + chunk * parts)
        array.with_config({"write_empty_chunks": True})[:, part] = values[:, part]
        marks.append(rows.write(number, values[:, part]))
    assert files_of(paths[0]) == files_of(paths[1])
    start = data.draw(st.integers(0, samples))
    stop = data.draw(st.integers(start, samples))
    for path in paths:
        stored = store_array.StoreArray(path, "a", 1)
        assert np.array_equal(stored.samples(start, stop), values[:, start:stop])
        assert [stored.fingerprint(number) for number in range(stored.files)] == marks
        found = {}
        assert np.array_equal(stored._rows.read(0, samples, found), values)
        assert [found[number] for number in range(stored.files)] == marks


@pytest.mark.parametrize("compressed", [False, True])
def test_zarr_reads_what_is_written_here(tmp_path, compressed):
    values = random(2, 23, 3).astype("float64")
    array, rows = make(tmp_path, 2, 23, 3, 4, 2, compressed=compressed)
    assert (rows.codec is not None) == compressed
    for number, start in enumerate(range(0, 23, 8)):
        rows.write(number, values[:, start : start + 8])
    assert np.array_equal(array[:], values)


def test_no_flipped_bit_and_no_cut_goes_unnoticed(tmp_path):
    values = random(2, 7, 2)
    _, rows = make(tmp_path, 2, 7, 2, 4, 2)
    rows.write(0, values)
    ((name, good),) = files_of(tmp_path).items()
    file = tmp_path / name
    for place in range(len(good)):
        bad = bytearray(good)
        bad[place] ^= 1 << (place % 8)
        for data in (bytes(bad), good[:place]):
            file.write_bytes(data)
            with pytest.raises(DamagedError, match=r"cannot be read|its file is empty"):
                rows.read(0, 7)
    file.unlink()
    with pytest.raises(DamagedError, match="this shard is missing"):
        rows.read(0, 7)


def test_nothing_is_cast_or_stretched(tmp_path):
    make(tmp_path, 2, 23, 3, 4, 2)
    values = random(2, 23, 3)
    for wrong in (values[:, :8].astype("float32"), values[:1, :8], values[:, :8, :2]):
        with pytest.raises(StoreError, match="nothing is cast"):
            zarr_arrays.write_shard(tmp_path, "a", 1, 0, wrong)
    for start, count in ((0, 7), (0, 9), (4, 8), (16, 8)):
        with pytest.raises(StoreError, match="not one whole shard"):
            zarr_arrays.write_shard(tmp_path, "a", 1, start, np.zeros((2, count, 3)))


def test_more_planes_and_chunks_of_several_are_left_to_zarr(tmp_path):
    _, rows = make(tmp_path / "three", 3, 23, 3, 4, 2)
    assert rows is None
    metadata = {
        "shape": [2, 23, 3],
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2, 8, 3]}},
        "chunk_key_encoding": {"name": "default"},
        "data_type": "float64",
        "codecs": [{"name": "bytes"}, {"name": "crc32c"}],
    }
    assert shards.find_rows(tmp_path, metadata, 1) is None


TEMPLATES = {
    "distances": template(2, 23, 3, 4, 2),
    "images": ArrayTemplate(
        ("sample", "y", "x"), (9, 2, 3), "uint8", (2, 2, 3), (4, 2, 3), 0,
        {"long_name": "pixels", "coordinates": "label"},
    ),
    "labels": ArrayTemplate(("sample",), (9,), "int32", (4,), None, -1, {}, True, {"a": [1, 2]}),
    "floats": ArrayTemplate(("y",), (9,), "float64", (9,)),
    "wide": ArrayTemplate(("y",), (9,), "uint16", (4,)),
    "names": ArrayTemplate(("class_name",), (9,), str, (9,), None, ""),
    "nothing": ArrayTemplate(("class_name",), (0,), "int64", (0,)),
}  # fmt: skip


@pytest.mark.parametrize("name", TEMPLATES)
def test_metadata_are_the_bytes_that_zarr_writes(tmp_path, name):
    zarr_arrays.create_group(tmp_path / "a", {"title": "\u00e9"})
    zarr_arrays.create_array(tmp_path / "a", name, TEMPLATES[name])
    zarr_arrays.consolidate(tmp_path / "a")
    group = zarr.open_group(tmp_path / "b", mode="w", zarr_format=3)
    group.attrs["title"] = "\u00e9"
    group.create_array(name, **TEMPLATES[name].as_zarr())
    with pytest.warns(UserWarning, match="Consolidated metadata"):
        zarr.consolidate_metadata(tmp_path / "b", zarr_format=3)
    for file in ("zarr.json", f"{name}/zarr.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


VALUES = {
    "names": ["cat", "large dog", "\u00e9t\u00e9", ""],
    "one": ["cat"],
    "codes": np.arange(12, dtype=np.int32).reshape(6, 2),
    "wide": np.arange(12, dtype=np.uint16),
    "floats": np.random.default_rng(0).random((5, 3)),
    "flags": np.array([True, False]),
}


@pytest.mark.parametrize("name", VALUES)
def test_zarr_reads_the_small_arrays_that_are_written(tmp_path, name):
    values = np.asarray(VALUES[name])
    dims = ("a", "b")[: values.ndim]
    zarr_arrays.create_group(tmp_path, {})
    zarr_arrays.write_array(tmp_path, name, dims, VALUES[name], {"units": "1"})
    read = zarr.open_array(tmp_path / name, mode="r")
    assert read[:].tolist() == values.tolist()
    stored = store_array.StoreArray(tmp_path, name)
    known_dims, known, attributes = stored.read()
    assert (known_dims, attributes) == (dims, {"units": "1"})
    assert known.tolist() == values.tolist()
    assert (stored.shape, stored.dims) == (values.shape, dims)
    marks = tuple(stored.fingerprint(number) for number in range(stored.files))
    _, again, _ = store_array.StoreArray(tmp_path, name, expected=marks).read()
    assert again.tolist() == known.tolist()


def test_damage_of_names_is_noticed(tmp_path):
    zarr_arrays.create_group(tmp_path, {})
    zarr_arrays.write_array(tmp_path, "a", ("b",), ["cat", "large dog"], {})
    file = tmp_path / "a" / "c" / "0"
    good = file.read_bytes()
    for place in range(len(good)):
        bad = bytearray(good)
        bad[place] ^= 1 << (place % 8)
        for data in (bytes(bad), good[:place]):
            file.write_bytes(data)
            with pytest.raises(DamagedError, match="cannot be read"):
                store_array.StoreArray(tmp_path, "a").read()
    file.unlink()
    with pytest.raises(DamagedError, match="is missing"):
        store_array.StoreArray(tmp_path, "a").read()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"node_type": "array"}'])
def test_metadata_that_say_nothing_are_for_zarr_to_refuse(tmp_path, text):
    zarr_arrays.create_group(tmp_path, {})
    zarr_arrays.write_array(tmp_path, "a", ("b",), np.arange(3), {})
    (tmp_path / "a" / "zarr.json").write_text(text)
    array = store_array.StoreArray(tmp_path, "a")
    for look in (lambda: array.shape, lambda: array.dims, array.read):
        with pytest.raises((DamagedError, StoreError)):
            look()
    assert not zarr_names.are_names(json.loads(json.dumps(TEMPLATES["labels"].document())))
