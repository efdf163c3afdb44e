"""The accessor is the public functions, and is there wherever a data set of pixsim is."""

from __future__ import annotations

import inspect
import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from strategies import as_dataset

import pipeline
from pipeline.accessor import PixsimAccessor
from pipeline.core.errors import SchemaError

NAMES = ["cat", "large dog", "emu"]


def small(count=12, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 3, 4), np.uint8)
    labels = (np.arange(count) % 3).astype(np.int32)
    return as_dataset(images, labels, NAMES, 5)


def test_each_method_gives_what_the_function_gives():
    train, test = small(), small(9, 1)
    sums = pipeline.class_sums(train, ["cat", "emu"])
    means, medians = pipeline.prototypes(sums), pipeline.class_medians(train, None, "cpu", True)
    assert train.pixsim.class_sums(["cat", "emu"]).identical(sums)
    assert train.pixsim.prototypes(["cat", "emu"]).compute().identical(means.compute())
    found = train.pixsim.prototypes(kind="median", leave_one_out=True).compute()
    assert found.identical(medians.compute())
    measured = pipeline.distances(test, means, ["l2"])
    assert test.pixsim.distances(means, ["l2"]).compute().identical(measured.compute())
    left_out = pipeline.distances(train, medians, leave_one_out=True)
    assert train.pixsim.distances(medians, leave_one_out=True).equals(left_out)
    predicted = pipeline.predict(measured).compute()
    assert test.pixsim.predict(means, ["l2"]).compute().identical(predicted)
    near = pipeline.neighbours(test, train, k=3, metrics=["l1"]).compute()
    assert test.pixsim.neighbours(train, 3, ["l1"]).compute().identical(near)
    assert near.pixsim.vote(2).compute().identical(pipeline.vote(near, 2).compute())
    alone = train.pixsim.neighbours(k=2)
    assert (alone.pixsim.knn_graph("l2") != pipeline.knn_graph(alone, "l2")).nnz == 0
    pairs = pipeline.pairs_within(test, train, radius=0.3, metric="l2")
    assert test.pixsim.pairs_within(train, radius=0.3, metric="l2").identical(pairs)
    with pytest.raises(SchemaError, match="kind is 'mode', expected 'mean' or 'median'"):
        train.pixsim.prototypes(kind="mode")


@pytest.mark.parametrize(
    ("method", "function"),
    [("class_sums", "class_sums"), ("distances", "distances"), ("neighbours", "neighbours"),
     ("pairs_within", "pairs_within"), ("vote", "vote"), ("knn_graph", "knn_graph")],
)  # fmt: skip
def test_methods_take_the_arguments_of_their_functions(method, function):
    mine = [*inspect.signature(getattr(PixsimAccessor, method)).parameters.values()][1:]
    theirs = [*inspect.signature(getattr(pipeline, function)).parameters.values()][1:]
    assert [(p.name, p.default, p.kind) for p in mine] == [
        (p.name, p.default, p.kind) for p in theirs
    ]


def test_plots_draw_into_axes_that_are_given_and_say_what_they_show():
    images = small()
    means = images.pixsim.prototypes()
    predicted = images.pixsim.predict(means)
    draw = {
        "plot_samples": images, "plot_class_counts": images, "plot_prototypes": means,
        "plot_confusion": predicted, "plot_accuracy": predicted,
    }  # fmt: skip
    for name, dataset in draw.items():
        axes = plt.figure().add_subplot()
        assert getattr(dataset.pixsim, name)(ax=axes) is axes
        shown = {text.get_text() for text in axes.texts}
        shown |= {
            text.get_text() for axis in (axes.xaxis, axes.yaxis) for text in axis.get_ticklabels()
        }
        assert {"cat", "emu"} <= shown, name
    axes = images.drop_vars("label").pixsim.plot_samples(3)
    assert len([text for text in axes.texts if not text.get_text()]) == 3
    counted = images.isel(sample=[0, 1, 1, 4]).pixsim.plot_class_counts()
    assert {" 1", " 3", " 0"} == {text.get_text() for text in counted.texts}
    plt.close("all")


@pytest.mark.parametrize("first", [
    "images = pipeline.open_images(sys.argv[1])",
    "import pipeline.accessor, xarray; images = xarray.Dataset()",
])  # fmt: skip
def test_whatever_gives_data_sets_registers_the_accessor_and_nothing_else_does(first, tmp_path):
    images = np.zeros((2, 3, 4), np.uint8)
    store = pipeline.ingest(pipeline.from_arrays({"train": (images, [0, 1])}), tmp_path / "a.zarr")
    check = f"import sys, pipeline; assert 'xarray' not in sys.modules; {first}"
    check += "; print(images.pixsim.__class__.__name__)"
    done = subprocess.run([sys.executable, "-c", check, store], capture_output=True, text=True)
    assert done.stdout.strip() == "PixsimAccessor", done.stderr


def test_a_set_that_xarray_opened_has_it_too(tmp_path):
    images = small()
    images.to_netcdf(tmp_path / "a.nc")
    with xr.open_dataset(tmp_path / "a.nc") as opened:
        assert opened.pixsim.prototypes().equals(images.pixsim.prototypes())
