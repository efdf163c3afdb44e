"""Distances read and written without Zarr: the bytes that Zarr writes, and every damage found."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import DamagedError, StoreError
from pipeline.storage import shards, store_array, zarr_arrays
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
    array = zarr_arrays.create_array(path, "a", template(*sizes, **settings))
    return array, store_array.find_rows(path, "a", 1)


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
