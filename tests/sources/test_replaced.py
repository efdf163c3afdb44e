"""A file that takes the place of another: it is read, and never what was kept of the one before.

The test process is the worker that lives long: what is new is opened in a fork of it, and sent.
"""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import tarfile

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xarray as xr
from forks_for_tests import in_fork
from PIL import Image

from pipeline.core import paths
from pipeline.core.errors import SourceError
from pipeline.core.paths import locate
from pipeline.sources import sample_index
from pipeline.sources.catalog import idx_source
from pipeline.sources.notes import Notes
from pipeline.sources.registry import open_source, release
from pipeline.sources.sample_index import make_rows, writing
from pipeline.storage import atomic, folders

COUNT = 12


def images(value):
    return np.full((COUNT, 4, 3), value, np.uint8)


def labels():
    return np.arange(COUNT) % 3


def png(value):
    buffer = io.BytesIO()
    Image.fromarray(images(value)[0]).save(buffer, "PNG")
    return buffer.getvalue()


def put(path, data):
    """Write a file; put aside and renamed, so that a local one is another file."""
    with atomic.replaced(path) as aside:
        aside.write_bytes(data)


def buffered(write):
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def npy(root, value):
    put(root / "train_images.npy", buffered(lambda file: np.save(file, images(value))))
    put(root / "train_labels.npy", buffered(lambda file: np.save(file, labels())))
    return root


def npz(root, value, save=np.savez):
    arrays = {"train_images": images(value), "train_labels": labels()}
    put(root / "x.npz", buffered(lambda file: save(file, **arrays)))
    return root / "x.npz"


def npz_packed(root, value):
    return npz(root, value, np.savez_compressed)


def tar(root, value, name="x.tar", mode="w"):
    def write(file):
        with tarfile.open(fileobj=file, mode=mode) as archive:
            for number in range(COUNT):
                info = tarfile.TarInfo(f"train/{'abc'[number % 3]}/{number:02}.png")
                info.size = len(png(value))
                archive.addfile(info, io.BytesIO(png(value)))

    put(root / name, buffered(write))
    return root / name


def tar_packed(root, value):
    return tar(root, value, "x.tar.gz", "w:gz")


def parquet(root, value):
    table = pa.table({"image": [{"bytes": png(value)}] * COUNT, "label": labels()})
    put(root / "train.parquet", buffered(lambda file: pq.write_table(table, file)))
    return root / "train.parquet"


def labelled(value):
    return xr.Dataset(
        {"image": (("sample", "y", "x"), images(value)), "label": ("sample", labels())}
    )


def netcdf(root, value):
    put(root / "x.nc", bytes(labelled(value).to_netcdf(engine="h5netcdf")))
    return root / "x.nc"


def zarr(root, value):
    here = not paths.is_remote(root)
    store = str(root / "x.zarr") if here else fsspec.get_mapper(str(root / "x.zarr"))
    labelled(value).to_zarr(store, mode="w", zarr_format=2, consolidated=True)
    return root / "x.zarr"


FORMATS = [npy, npz, npz_packed, tar, tar_packed, parquet, netcdf, zarr]


@pytest.fixture(params=["here", "there"])
def root(request, tmp_path):
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]
    yield tmp_path / "set" if request.param == "here" else locate("memory://bucket/set")
    memory.store.clear()


def pixels(source):
    return set(np.unique(source.read("train", 0, COUNT).images).tolist())


def sent(path, tmp_path):
    """Open a source elsewhere, as a plan does, and send it here, as to a worker."""
    packed = tmp_path / "source"
    in_fork(lambda: packed.write_bytes(pickle.dumps(open_source(str(path)))))
    return pickle.loads(packed.read_bytes())


@pytest.mark.parametrize("make", FORMATS, ids=lambda make: make.__name__)
def test_what_took_the_place_of_a_source_is_read_and_the_old_is_refused(make, root, tmp_path):
    path = make(root, 3)
    old = open_source(str(path))
    assert pixels(old) == {3}
    make(root, 7)
    new = sent(path, tmp_path)
    assert pixels(new) == {7}
    with pytest.raises(SourceError, match=r"another .*run the command again"):
        pixels(old)
    assert pixels(new) == {7}
    make(root, 9)  # the cure
    again = open_source(str(path))
    assert pixels(again) == {9}
    for source in (old, new, again):
        release(source)


@pytest.mark.parametrize("make", [npy, npz, npz_packed, tar, tar_packed, parquet, netcdf])
def test_a_file_of_the_same_size_and_time_is_another_all_the_same(make, tmp_path):
    def at_noon(value):
        path = make(tmp_path / "set", value)
        for file in (tmp_path / "set").iterdir():
            os.utime(file, (0, 0))
        return path

    path = at_noon(3)
    assert pixels(open_source(str(path))) == {3}
    at_noon(7)
    new = sent(path, tmp_path)
    assert pixels(new) == {7}
    release(new)


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_idx_files_that_were_replaced_are_read_anew(pack, tmp_path):
    def make(value):
        header = struct.pack(">4B3I", 0, 0, 8, 3, COUNT, 4, 3)
        put(tmp_path / "images", pack(header + images(value).tobytes()))
        codes = struct.pack(">4BI", 0, 0, 8, 1, COUNT) + labels().astype(np.uint8).tobytes()
        put(tmp_path / "labels", pack(codes))
        files = {"train": (tmp_path / "images", tmp_path / "labels")}
        return idx_source(files, ("a", "b", "c"), {})

    old = make(3)
    assert pixels(old) == {3}
    new = make(7)
    assert pixels(new) == {7}
    with pytest.raises(SourceError, match="labels: is another file"):
        pixels(old)


def test_a_listing_that_was_replaced_is_read_anew(root, tmp_path):
    def write(names):
        here = tmp_path / "listing"
        with writing(here) as writer:
            writer.add("train", make_rows(len(names), origin=names, key=b"k", label="a"))
            writer.finish("list", Notes())
        for name in folders.list_folder(here):
            atomic.copy_file(here / name, root / name)

    write(["old"])
    assert sample_index.read_rows(root, "train", 0, 1)[0].origin == "old"
    write(["new"])
    assert sample_index.read_rows(root, "train", 0, 1)[0].origin == "new"
    sample_index.close(root)
