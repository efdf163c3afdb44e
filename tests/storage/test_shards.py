"""Rows read and written without Zarr: what Zarr reads and writes, and every damage found."""

from __future__ import annotations

import itertools
import struct
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import google_crc32c
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from numcodecs import Blosc
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ZstdCodec

from pipeline.core import paths
from pipeline.core.errors import DamagedError, RemoteError
from pipeline.storage import atomic, blobs, folders, shards

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
    return values, shards.find_rows(path, atomic.read_json(path / "zarr.json"))


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
        rows.write(number, changed[4 * number : 4 * number + 4])
    assert np.array_equal(zarr.open_array(tmp_path / "a", mode="r")[:], changed)
    assert np.array_equal(rows.read(0, 23), changed)
    assert not list((tmp_path / "a").rglob(f"*{atomic.PARTIAL_SUFFIX}"))


def entries(data, count):
    """Return offset and length of each chunk as the index of a shard says, its checksum checked."""
    index, checksum = data[-16 * count - 4 : -4], data[-4:]
    assert struct.unpack("<I", checksum)[0] == google_crc32c.value(index)
    return list(struct.iter_unpack("<QQ", index))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("samples", [1, 4, 8, 9, 15, 16, 23])
def test_zarr_reads_the_shards_that_are_written_here(tmp_path, dtype, samples):
    values, rows = make(tmp_path / "a", (samples, 3, 2), shard=8, dtype=dtype)
    changed = values[::-1].copy() + np.ones(1, dtype)
    for number, start in enumerate(range(0, samples, 8)):
        rows.write(number, changed[start : start + 8])
    assert np.array_equal(zarr.open_array(tmp_path / "a", mode="r")[:], changed)
    assert np.array_equal(rows.read(0, samples), changed)
    assert not list((tmp_path / "a").rglob(f"*{atomic.PARTIAL_SUFFIX}"))


@given(data=st.data())
def test_any_shards_are_written_as_zarr_reads_them(tmp_path_factory, data):
    chunk, parts = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 4))
    samples = data.draw(st.integers(1, 30))
    path = tmp_path_factory.mktemp("rows") / "a"
    values, rows = make(path, (samples, 2), chunk, chunk * parts, "uint16")
    changed = values * 7 + 1
    for number, start in enumerate(range(0, samples, chunk * parts)):
        rows.write(number, changed[start : start + chunk * parts])
    assert np.array_equal(zarr.open_array(path, mode="r")[:], changed)


def test_a_last_shard_is_as_zarr_writes_it_whole_chunks_and_none_beyond_the_end(tmp_path):
    values, rows = make(tmp_path / "a", (13, 3, 2), chunk=2, shard=8)
    file = tmp_path / "a" / "c" / "1" / "0" / "0"
    of_zarr = file.read_bytes()
    rows.write(1, values[8:])
    ours = file.read_bytes()
    missing = (2**64 - 1, 2**64 - 1)
    for data in (of_zarr, ours):
        places_ = entries(data, 4)
        assert [place == missing for place in places_] == [False, False, False, True]
        # blosc says how much a chunk holds: whole chunks, also where the array ends within
        held = [struct.unpack_from("<I", data, start + 4)[0] for start, _ in places_[:3]]
        assert held == [2 * 3 * 2] * 3
    assert entries(ours, 4)[0][0] == 0
    assert sum(length for _, length in entries(ours, 4)[:3]) == len(ours) - 4 * 16 - 4


def test_chunks_of_zeros_are_written(tmp_path):
    _, rows = make(tmp_path / "a", (16, 3), chunk=2, shard=8)
    rows.write(0, np.zeros((8, 3), np.uint8))
    data = (tmp_path / "a" / "c" / "0" / "0").read_bytes()
    assert all(length > 4 for _, length in entries(data, 4))
    assert not rows.read(0, 8).any()


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_noise_is_stored_as_it_is_and_what_shrinks_is_compressed(tmp_path, dtype):
    codec = BloscCodec(cname="lz4", clevel=5, shuffle="shuffle")
    _, rows = make(tmp_path / "a", (8, 300, 300), 4, 8, dtype, codec)
    rng = np.random.default_rng(2)
    noise = rng.integers(0, np.iinfo(dtype).max, (8, 300, 300), dtype)
    noise[..., :15] = 0  # a twentieth: not worth compressing
    flat = np.tile(np.arange(300, dtype=dtype), (8, 300, 1))
    mixed = np.concatenate([noise[:4], flat[4:]])
    sizes = []
    for values in (noise, flat, mixed):
        rows.write(0, values)
        file = tmp_path / "a" / "c" / "0" / "0" / "0"
        data = file.read_bytes()
        rows.write(0, values)
        assert file.read_bytes() == data
        sizes.append([length for _, length in entries(data, 2)])
        assert np.array_equal(zarr.open_array(tmp_path / "a", mode="r")[:], values)
        assert np.array_equal(rows.read(0, 8), values)
    chunk = noise[:4].nbytes
    header_and_checksum = 16 + 4
    assert sizes[0] == [chunk + header_and_checksum] * 2
    assert max(sizes[1]) < chunk / 4
    assert sizes[2] == [sizes[0][0], sizes[1][1]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shuffle", ["noshuffle", "shuffle", "bitshuffle"])
def test_what_is_stored_as_it_is_has_the_bytes_that_blosc_writes(tmp_path, dtype, shuffle):
    codec = BloscCodec(cname="lz4", clevel=5, shuffle=shuffle)
    _, rows = make(tmp_path / "a", (5, 90_000), 2, 4, dtype, codec)
    noise = np.frombuffer(np.random.default_rng(3).bytes(5 * 90_000 * 8), dtype)
    noise = noise[: 5 * 90_000].reshape(5, 90_000)
    for number, start in enumerate((0, 4)):
        rows.write(number, noise[start : start + 4])
        data = (tmp_path / "a" / "c" / str(number) / "0").read_bytes()
        for part, (offset, length) in enumerate(entries(data, 2)):
            if start + 2 * part >= 5:
                continue
            chunk = np.full((2, 90_000), np.nan if dtype == "float64" else 0, dtype)
            given = noise[start + 2 * part :][:2]
            chunk[: len(given)] = given
            copied = Blosc("lz4", 0, rows.codec.shuffle, rows.codec.blocksize).encode(chunk)
            found = data[offset : offset + length - 4]
            # the last chunk is half empty, and shrinks
            assert found == copied or (start == 4 and len(found) < len(copied))
    assert zarr.open_array(tmp_path / "a", mode="r")[:].tobytes() == noise.tobytes()


def test_a_view_that_is_not_contiguous_is_written_by_its_values(tmp_path):
    values, rows = make(tmp_path / "a", (8, 3, 2), 4, 8)
    rows.write(0, values[::-1])
    assert np.array_equal(zarr.open_array(tmp_path / "a", mode="r")[:], values[::-1])


def test_shards_are_written_by_several_threads_at_once(tmp_path):
    values, rows = make(tmp_path / "a", (64, 50, 50), 4, 8)
    start = threading.Barrier(4)

    def write(first):
        start.wait()
        for number in (first, first + 4):
            rows.write(number, values[8 * number : 8 * number + 8])

    for file in (tmp_path / "a" / "c").rglob("0"):
        if file.is_file():
            file.unlink()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert np.array_equal(zarr.open_array(tmp_path / "a", mode="r")[:], values)


# remote ----------------------------------------------------------------------------------------


@pytest.fixture
def remote(monkeypatch):
    """A folder of a remote file system, and the list of the byte ranges that are asked for."""
    path = paths.locate(f"memory://shards-{uuid.uuid4().hex}")
    asked = []

    read = blobs.read_bytes

    def read_bytes(place, start=None, stop=None):
        asked.append((start, stop))
        return read(place, start, stop)

    monkeypatch.setattr(blobs, "read_bytes", read_bytes)
    yield path, asked
    folders.remove_tree(path)


def upload(tmp_path, path, **settings):
    """Make an array here and put its files there; return its values and how it is read there."""
    values, rows = make(tmp_path / "a", **settings)
    for name in folders.files_below(tmp_path / "a"):
        blobs.put_file(tmp_path / "a" / name, path / name)
    return values, shards.find_rows(path, atomic.read_json(path / "zarr.json")), rows


@pytest.mark.parametrize("shard", [None, 4, 8, 40])
def test_every_range_of_a_remote_array_is_what_was_written(tmp_path, remote, shard):
    values, rows, _ = upload(tmp_path, remote[0], shard=shard)
    for start, stop in itertools.combinations_with_replacement(range(len(values) + 1), 2):
        assert np.array_equal(rows.read(start, stop), values[start:stop])


@pytest.mark.parametrize("shard", [None, 8])
def test_a_remote_shard_is_the_local_one(tmp_path, remote, shard):
    values, rows, local = upload(tmp_path, remote[0], shard=shard)
    for number, start in enumerate(range(0, len(values), local.shard)):
        for one in (rows, local):
            one.write(number, values[::-1][start : start + local.shard])
    for name in folders.files_below(tmp_path / "a"):
        assert blobs.read_bytes(remote[0] / name) == (tmp_path / "a" / name).read_bytes()
    assert np.array_equal(rows.read(0, 23), values[::-1])


def test_one_request_reads_most_of_a_shard_and_few_read_some_of_it(tmp_path, remote):
    path, asked = remote
    values, rows, _ = upload(tmp_path, path, shape=(64, 30), chunk=2, shard=64)
    requests = {}
    for start, stop in ((0, 64), (16, 48), (0, 1), (11, 15), (62, 64)):
        asked.clear()
        assert np.array_equal(rows.read(start, stop), values[start:stop])
        requests[start, stop] = list(asked)
    assert requests[0, 64] == requests[16, 48] == [(None, None)]
    index = 32 * 16 + 4
    size = blobs.file_size(path / "c" / "0" / "0")
    for key, chunks in {(0, 1): 1, (11, 15): 3, (62, 64): 1}.items():
        (first, second) = requests[key]
        assert first == (size - index, size)
        assert second[1] - second[0] < chunks * (2 * 30 + 30)


def test_chunks_far_from_each_other_in_a_shard_are_read_one_by_one(tmp_path, remote):
    path, asked = remote
    values, rows, _ = upload(tmp_path, path, shape=(64, 30), chunk=2, shard=64)
    file = path / "c" / "0" / "0"
    data = blobs.read_bytes(file)
    index = bytearray(data[-(32 * 16 + 4) : -4])
    first = struct.unpack_from("<QQ", index, 0)
    # the first chunk lies behind all others: a reader takes its place from the index
    moved = data[: -(32 * 16 + 4)] + data[first[0] : sum(first)]
    struct.pack_into("<QQ", index, 0, len(moved) - first[1], first[1])
    checksum = google_crc32c.value(bytes(index)).to_bytes(4, "little")
    blobs.put_bytes(file, moved + bytes(index) + checksum)
    asked.clear()
    assert np.array_equal(rows.read(0, 4), values[0:4])
    assert len(asked) == 3
    assert sum(stop - start for start, stop in asked[1:]) < 4 * (2 * 30 + 30)


@pytest.mark.parametrize("rows_read", [2, 8])
def test_no_flipped_bit_and_no_cut_goes_unnoticed_remotely(tmp_path, remote, rows_read):
    path, _ = remote
    _, rows, _ = upload(tmp_path, path, shape=(8, 30), chunk=8, shard=8)
    file = path / "c" / "0" / "0"
    read_bytes = blobs.read_bytes
    good = read_bytes(file)
    for place in range(len(good)):
        bad = bytearray(good)
        bad[place] ^= 1 << (place % 8)
        for data in (bytes(bad), good[:place]):
            blobs.put_bytes(file, data)
            with pytest.raises(DamagedError, match=r"cannot be read|its file is empty"):
                rows.read(0, rows_read)
    folders.remove_tree(file)
    with pytest.raises(DamagedError, match="this shard is missing"):
        rows.read(0, rows_read)


@pytest.mark.parametrize("rows_read", [1, 2, 8])
def test_an_answer_that_is_too_short_is_noticed(tmp_path, remote, rows_read, monkeypatch):
    _, rows, _ = upload(tmp_path, remote[0], shape=(8, 30), chunk=2, shard=8)
    read_bytes = blobs.read_bytes
    for kept in (0, 3, 30):
        monkeypatch.setattr(blobs, "read_bytes", lambda *at, n=kept: read_bytes(*at)[:n])
        with pytest.raises(DamagedError, match=r"cannot be read|its file is empty"):
            rows.read(0, rows_read)


def test_a_place_that_does_not_answer_is_no_damage(tmp_path, remote, monkeypatch):
    _, rows, _ = upload(tmp_path, remote[0])

    def fail(*_, **__):
        raise OSError(5, "the network is down")

    monkeypatch.setattr(blobs, "FIRST_PAUSE_SECONDS", 0)
    monkeypatch.setattr(type(remote[0].fs), "cat_file", fail)
    with pytest.raises(RemoteError, match="network is down"):
        rows.read(0, 8)


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
        assert shards.find_rows(tmp_path / "a", atomic.read_json(tmp_path / "a/zarr.json")) is None
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
    rows = shards.find_rows(tmp_path / "a", atomic.read_json(tmp_path / "a" / "zarr.json"))
    assert rows.read(0, 2).tolist() == [[1] * 3] * 2
    with pytest.raises(DamagedError, match="leads to nothing"):
        rows.read(0, 3)
