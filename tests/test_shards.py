"""Rows read and written without Zarr: what Zarr reads and writes, and every damage found."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ZstdCodec

from pipeline import files, shards
from pipeline.errors import DamagedError

DTYPES = ["uint8", "uint16", "int32", "int64", "float64"]


def make(path, shape=(23, 3, 2), chunk=4, shard=8, dtype="uint8", codec=None, **settings):
    """Write an array with Zarr; return its values and how it is read."""
    array = zarr.create_array(
        path, shape=shape, dtype=dtype, chunks=(chunk, *shape[1:]),
        shards=None if shard is None else (shard, *shape[1:]),
        compressors=(codec or BloscCodec(cname="lz4", shuffle="shuffle"), Crc32cCodec()),
        **settings,
    )  # fmt: skip
    values = np.random.default_rng(1).integers(0, 200, shape).astype(dtype)
    array.with_config({"write_empty_chunks": True})[:] = values
    return values, shards.find_rows(path, files.read_json(path / "zarr.json"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shard", [None, 4, 8, 40])
@pytest.mark.parametrize("shape", [(23, 3, 2), (23,), (8, 1), (1, 5, 4, 3)])
def test_every_range_is_what_was_written(tmp_path, dtype, shard, shape):
    values, rows = make(tmp_path / "a", shape, shard=shard, dtype=dtype)
    assert (rows.shape, rows.dtype) == (shape, np.dtype(dtype))
    for start, stop in itertools.combinations_with_replacement(range(len(values) + 1), 2):
        found = rows.read(start, stop)
        assert found.dtype == values.dtype
        assert np.array_equal(found, values[start:stop])


@given(data=st.data())
def test_any_chunks_and_shards(tmp_path_factory, data):
    chunk, parts = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 4))
    samples = data.draw(st.integers(1, 40))
    path = tmp_path_factory.mktemp("rows") / "a"
    values, rows = make(path, (samples, 2), chunk, chunk * parts)
    start = data.draw(st.integers(0, samples))
    stop = data.draw(st.integers(start, samples))
    assert np.array_equal(rows.read(start, stop), values[start:stop])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(23,), (23, 3)])
def test_zarr_reads_what_is_written_here(tmp_path, dtype, shape):
    values, rows = make(tmp_path / "a", shape, shard=None, dtype=dtype)
    changed = values[::-1].copy()
    for number in range(6):
        rows.write_chunk(number, changed[4 * number : 4 * number + 4])
    assert np.array_equal(zarr.open_array(tmp_path / "a", mode="r")[:], changed)
    assert np.array_equal(rows.read(0, 23), changed)
    assert not list((tmp_path / "a").rglob(f"*{files.PARTIAL_SUFFIX}"))


@pytest.mark.parametrize("other", [
    {"codec": ZstdCodec()},
    {"chunk_key_encoding": {"name": "default", "separator": "."}},
    {"chunk_key_encoding": {"name": "v2", "separator": "/"}},
    {"dtype": "uint16", "serializer": BytesCodec(endian="big")},
    {"dtype": "int8"},
    {"shape": (23, 6), "chunk": 4, "shard": None, "columns": 3},
])  # fmt: skip
def test_what_looks_otherwise_is_left_to_zarr(tmp_path, other):
    if "columns" in other:
        zarr.create_array(
            tmp_path / "a", shape=(23, 6), chunks=(4, 3), dtype="uint8",
            compressors=(BloscCodec(), Crc32cCodec()),
        )  # fmt: skip
        assert shards.find_rows(tmp_path / "a", files.read_json(tmp_path / "a/zarr.json")) is None
        return
    _, rows = make(tmp_path / "a", **other)
    assert rows is None


@pytest.mark.parametrize("shard", [None, 8])
def test_no_flipped_bit_goes_unnoticed(tmp_path, shard):
    values, rows = make(tmp_path / "a", (8, 30), 4, shard)
    for file in (tmp_path / "a" / "c").rglob("*"):
        if not file.is_file():
            continue
        good = file.read_bytes()
        for place in range(len(good)):
            bad = bytearray(good)
            bad[place] ^= 1 << (place % 8)
            file.write_bytes(bad)
            with pytest.raises(DamagedError, match="a chunk cannot be read"):
                rows.read(0, 8)
        file.write_bytes(good)
    assert np.array_equal(rows.read(0, 8), values)


@pytest.mark.parametrize("shard", [None, 8])
def test_no_file_cut_short_goes_unnoticed(tmp_path, shard):
    _, rows = make(tmp_path / "a", (8, 30), 8, shard)
    (file,) = (file for file in (tmp_path / "a" / "c").rglob("*") if file.is_file())
    good = file.read_bytes()
    for size in range(len(good)):
        file.write_bytes(good[:size])
        with pytest.raises(DamagedError, match=r"cannot be read|its file is empty"):
            rows.read(0, 8)
    file.unlink()
    with pytest.raises(DamagedError, match="this shard is missing"):
        rows.read(0, 8)


def test_a_chunk_that_was_never_written_is_not_read_as_zeros(tmp_path):
    array = zarr.create_array(
        tmp_path / "a", shape=(8, 3), dtype="uint8", chunks=(2, 3), shards=(8, 3),
        compressors=(BloscCodec(), Crc32cCodec()),
    )  # fmt: skip
    array[0:2] = 1
    rows = shards.find_rows(tmp_path / "a", files.read_json(tmp_path / "a" / "zarr.json"))
    assert rows.read(0, 2).tolist() == [[1] * 3] * 2
    with pytest.raises(DamagedError, match="leads to nothing"):
        rows.read(0, 3)
