"""Arrays in HDF5 files: usual names and given ones, ranges, and what a file must not point at."""

from __future__ import annotations

import importlib
import pickle
import sys

import numpy as np
import pytest
import xarray as xr
from arrays_for_tests import holds, make_arrays

import pipeline
from pipeline.config.job_settings import make_images
from pipeline.core.errors import ConfigError, ShapeError, SourceError
from pipeline.core.paths import locate
from pipeline.sources.numpy_files import open_numpy
from pipeline.sources.registry import find_kind, open_source

h5py = pytest.importorskip("h5py")
A, Y = make_arrays()
B, Z = make_arrays(9, seed=1)


def write(path, **arrays):
    """Write arrays; two underscores stand for a group."""
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            packed = {"compression": "gzip", "chunks": True} if array.ndim > 2 else {}
            file.create_dataset(name.replace("__", "/"), data=array, **packed)
    return path


@pytest.mark.parametrize("suffix", ["h5", "hdf5", "hdf"])
@pytest.mark.parametrize(
    "names",
    [
        ("x_train", "y_train", "x_test", "y_test"),
        ("train_images", "train_labels", "test_images", "test_labels"),
        ("train__images", "train__labels", "test__images", "test__labels"),
        ("train__data", "train__target", "test__data", "test__target"),
        ("train_set_x", "train_set_y", "test_set_x", "test_set_y"),
    ],
)
def test_arrays_of_usual_names_are_read_in_ranges(tmp_path, suffix, names):
    path = write(tmp_path / f"a.{suffix}", **dict(zip(names, (A, Y, B, Z), strict=True)))
    assert find_kind(make_images(str(path))) == "numpy"
    source = open_source(str(path))
    assert set(source.splits()) == {"train", "test"}
    assert holds(source, "train", A, Y)
    assert holds(pickle.loads(pickle.dumps(source)), "test", B, Z)
    assert source.provenance["kind"] == "hdf5"
    assert source.read("test", 3, 4).origins == [f"a.{suffix}/{names[2].replace('__', '/')}[3]"]
    source.close()


def test_a_file_for_each_array_is_paired_by_its_split(tmp_path):
    for split, (images, labels) in {"train": (A, Y), "valid": (B, Z)}.items():
        write(tmp_path / f"level_2_split_{split}_x.h5", x=images)
        write(tmp_path / f"level_2_split_{split}_y.h5", y=labels.reshape(-1, 1, 1, 1))
    source = open_source(str(tmp_path))
    assert list(source.splits()) == ["train", "valid"]
    assert holds(source, "train", A, Y)
    assert holds(source, "valid", B, Z)


def test_texts_are_classes_and_names_of_classes_are_known(tmp_path):
    texts = np.array(["cat", "dog", "emu"], h5py.string_dtype())[Y]
    source = open_source(str(write(tmp_path / "a.h5", images=A, labels=texts)))
    assert source.class_names == ("cat", "dog", "emu")
    assert holds(source, "train", A, Y)
    names = np.array([b"ape", b"bee", b"cow"])
    path = write(tmp_path / "train_all.h5", train_set_x=A, train_set_y=Y, list_classes=names)
    assert open_source(str(path)).class_names == ("ape", "bee", "cow")


def test_other_names_are_given_and_flat_images_have_a_shape(tmp_path):
    path = write(tmp_path / "a.h5", images=A, ans=Y)
    with pytest.raises(SourceError, match=r"images without labels, and ans; name them: variables"):
        open_source(str(path))
    assert holds(open_source({"source": str(path), "variables": {"label": "ans"}}), "train", A, Y)
    flat = write(tmp_path / "f.h5", images=A.reshape(len(A), -1), labels=Y)
    with pytest.raises(ShapeError, match="which are flat: 24 values each"):
        open_source(str(flat))
    source = open_source({"source": str(flat), "shape": list(A.shape[1:])})
    assert holds(source, "train", A, Y)
    assert source.provenance["shape"] == [6, 4]
    with pytest.raises(ShapeError, match="24 pixels in a row, expected 25 in C order"):
        open_source({"source": str(flat), "shape": "5x5"})


@pytest.mark.parametrize("order", ["C", "F"])
def test_flat_arrays_of_numpy_have_a_shape_too(tmp_path, order):
    flat = np.array(A.reshape(len(A), -1), order=order)
    np.savez(tmp_path / "a.npz", x_train=flat, y_train=Y)
    given = {"source": str(tmp_path / "a.npz"), "shape": "6x4"}
    if order == "F":
        with pytest.raises(ShapeError, match="in C order"):
            open_source(given)
    else:
        assert holds(open_source(given), "train", A, Y)


def test_a_file_whose_dimensions_have_names_is_read_by_xarray(tmp_path):
    data = {"image": (("sample", "y", "x"), A), "label": ("sample", Y)}
    xr.Dataset(data).to_netcdf(tmp_path / "a.h5", engine="h5netcdf")
    assert find_kind(make_images(str(tmp_path / "a.h5"))) == "xarray"
    assert holds(open_source(str(tmp_path / "a.h5")), "train", A, Y)


def test_a_file_behind_a_url_is_read(tmp_path):
    path = locate("memory://hdf5/a.h5")
    path.write_bytes(write(tmp_path / "a.h5", images=A, labels=Y).read_bytes())
    source = open_numpy({None: [path]})
    assert holds(source, "train", A, Y)
    source.close()


def test_what_lies_in_other_files_or_was_never_written_is_refused(tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(range(256)))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("images", (4, 8, 8), "u1", external=[(str(secret), 0, 256)])
        file["labels"] = np.arange(4)
    with pytest.raises(SourceError, match="lies in another file"):
        open_source(str(tmp_path / "a.h5"))
    write(tmp_path / "other.h5", images=A, labels=Y)
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["images"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "images")
        layout = h5py.VirtualLayout(A.shape, A.dtype)
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "images", A.shape)
        file.create_virtual_dataset("x_train", layout)
        file["y_train"] = Y
    with pytest.raises(SourceError, match="x_train: lies in another file"):
        open_source(str(tmp_path / "b.h5"))
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file.create_dataset("images", (10**9, 8, 8), "u1", chunks=(1, 8, 8))
        file["labels"] = Y
    with pytest.raises(SourceError, match="was never written, or is damaged"):
        open_source(str(tmp_path / "c.h5"))
    (tmp_path / "d.h5").write_bytes((tmp_path / "other.h5").read_bytes()[:-900])
    with pytest.raises(SourceError, match=r"d\.h5: cannot be read as HDF5"):
        open_source(str(tmp_path / "d.h5"))


def test_a_replaced_file_is_noticed(tmp_path):
    path = write(tmp_path / "a.h5", images=A, labels=Y)
    source = open_source(str(path))
    assert holds(source, "train", A, Y)
    write(tmp_path / "b.h5", images=A[::-1], labels=Y, more=Y).replace(path)
    with pytest.raises(SourceError, match=r"a\.h5: is another file"):
        source.read("train", 0, 3)


def test_without_h5py_the_error_names_the_extra(tmp_path, monkeypatch):
    path = write(tmp_path / "a.h5", images=A, labels=Y)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ConfigError, match=r"needs? the package h5py; .*pixsim\[hdf5\]"):
        open_source(str(path))
    monkeypatch.undo()
    assert importlib.import_module("h5py") is h5py


def test_the_digest_is_that_of_the_arrays_for_any_shards(tmp_path):
    path = write(tmp_path / "a.h5", train__images=A, train__labels=Y)
    expected = pipeline.digest(
        pipeline.ingest(pipeline.from_arrays({"train": (A, Y)}), tmp_path / "e.zarr")
    )
    for shard in (7, 50):
        store = pipeline.ingest(str(path), tmp_path / f"{shard}.zarr", shard)
        assert pipeline.digest(store) == expected
