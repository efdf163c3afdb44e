"""Any labelled data set is taken: the same bits whatever xarray made of it, else a cure."""

from __future__ import annotations

import dask
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import as_dataset, chunkings, image_pairs, labelled_blocks, raise_if_computed

import pipeline
from pipeline.core.errors import LabelError, SchemaError
from pipeline.ops.labelled import label_counts, lazy_images
from pipeline.ops.predictions import metrics_of

NAMES = ["cat", "large dog", "emu"]


def small(count=12, seed=0, **attributes):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 3, 4), np.uint8)
    labels = (np.arange(count) % 3).astype(np.int32)
    return as_dataset(images, labels, NAMES, full_scale=255, **attributes)


def outcomes(images, among):
    """Return what every operation makes of a data set, in memory."""
    sums = pipeline.class_sums(images)
    means, medians = pipeline.prototypes(sums), pipeline.class_medians(images)
    measured = pipeline.distances(images, means)
    near = pipeline.neighbours(images, among, k=3)
    pairs = pipeline.pairs_within(images, among, radius=0.3)
    others = pipeline.neighbours(among, images, k=2)
    lazy = [sums, means, medians, measured, pipeline.predict(measured), near, others,
            pipeline.vote(near, 3)]  # fmt: skip
    return [*(one.compute() for one in lazy), pairs]


def same_bits(found, expected):
    for one, other in zip(found, expected, strict=True):
        xr.testing.assert_equal(one, other)
        for name in {*getattr(one, "data_vars", ())}:
            assert one[name].dtype == other[name].dtype, name
            assert one[name].values.tobytes() == other[name].values.tobytes(), name


@settings(max_examples=25)
@given(data=st.data(), block=labelled_blocks())
def test_order_of_dimensions_chunks_and_types_change_no_bit(data, block):
    images, labels, names = block
    plain = as_dataset(images, labels, names, full_scale=int(np.iinfo(images.dtype).max))
    changed = plain.transpose(*data.draw(st.permutations(plain.image.dims)))
    kind = data.draw(st.sampled_from(["same", "wide", "float", "swapped"]))
    if kind == "swapped":
        changed["image"] = changed.image.astype(images.dtype.newbyteorder())
    elif kind != "same" and (images.max(tuple(range(1, images.ndim)), initial=0) != 1).all():
        changed["image"] = changed.image.astype("int64" if kind == "wide" else "float64")
    labels_as = data.draw(st.sampled_from(["int8", "int64", "uint64", "float32", ">i4"]))
    if labels_as == "uint64":  # has no -1
        changed = changed.isel(sample=(changed.label >= 0).values)
        plain = plain.isel(sample=(plain.label >= 0).values)
    changed["label"] = changed.label.astype(labels_as)
    if data.draw(st.booleans()):
        changed["label"] = changed.label.where(changed.label >= 0)
    if data.draw(st.booleans()):
        changed = changed.chunk(sample=data.draw(chunkings(changed.sizes["sample"])), y=1)
    found = pipeline.class_sums(changed)
    means = pipeline.prototypes(found)
    same = pipeline.class_sums(plain)
    ideals = pipeline.prototypes(same)
    turned = means.transpose(..., "class_name")
    measured = pipeline.distances(changed, turned)
    expected = pipeline.distances(plain, ideals)
    order = data.draw(st.permutations(measured.dims))
    same_bits(
        dask.compute(found, means, measured, pipeline.predict(measured.transpose(*order))),
        dask.compute(same, ideals, expected, pipeline.predict(expected)),
    )


@settings(max_examples=15)
@given(data=st.data(), pair=image_pairs())
def test_neighbours_and_pairs_are_the_same_for_any_order_of_dimensions(data, pair):
    plain = [as_dataset(part, np.zeros(len(part), np.int32), ["a"]) for part in pair]
    changed = [part.transpose(*data.draw(st.permutations(part.image.dims))) for part in plain]
    expected = pipeline.neighbours(*plain, k=2).compute()
    found = pipeline.neighbours(*changed, k=2).compute()
    same_bits([found], [expected])
    turned = found.transpose(*data.draw(st.permutations(found.neighbour.dims)))
    same_bits([pipeline.vote(turned, 2).compute()], [pipeline.vote(expected, 2).compute()])
    pairs = [pipeline.pairs_within(*sets, radius=0.1) for sets in (changed, plain)]
    same_bits(*[[part] for part in pairs])


WAYS = {
    "a lazily changed one": lambda d: d.assign(image=(d.image // 2).astype("uint8")),
    "a slice": lambda d: d.isel(sample=slice(1, None, 2)),
    "repeated and shuffled": lambda d: d.isel(sample=[5, 0, 5, 7, 1, 2, 8]),
    "a mask": lambda d: d.isel(sample=(d.label != 1).values),
    "labels of an index": lambda d: d.sel(sample=[3, 4, 9, 5]),
    "where, dropped": lambda d: d.where((d.label != 1).compute(), drop=True),
    "where, filled": lambda d: d.where(d.label != 1, 0),
    "part of the pixels": lambda d: d.isel(y=slice(1, 3), x=[2, 0]),
    "joined": lambda d: xr.concat([d, d.isel(sample=[0, 1, 2])], "sample"),
    "with channels": lambda d: d.expand_dims(channel=2, axis=1),
    "several levels": lambda d: d.assign_coords(
        fold=("sample", np.arange(d.sizes["sample"]) % 2)
    ).set_index(sample=["fold", "label"]),
    "without an index": lambda d: d.drop_vars("sample"),
    "label as a variable": lambda d: d.reset_coords("label"),
    "with more variables": lambda d: d.assign(weight=("sample", np.ones(d.sizes["sample"]))),
    "of text names in an array": lambda d: d.assign_attrs(class_names=np.array(NAMES)),
    "truth values": lambda d: d.assign(image=d.image > 99).assign_attrs(full_scale=1),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_selections_and_changed_sets_give_what_plain_arrays_give(way):
    images = WAYS[way](small())
    pixels = images.image.transpose("sample", "y", "x", ...).values
    labels = images.label.values.astype(np.int32)
    expected = as_dataset(pixels.astype("uint8"), labels, NAMES,
                          full_scale=images.attrs["full_scale"])  # fmt: skip
    for given_ in (images, WAYS[way](small().chunk(sample=5))):
        found = outcomes(given_, images)
        for one, other in zip(found, outcomes(expected, expected), strict=True):
            variables = one.data_vars if isinstance(one, xr.Dataset) else [one.name]
            for name in variables:
                values, wanted = ((part if isinstance(part, xr.DataArray) else part[name]).values
                                  for part in (one, other))  # fmt: skip
                assert values.tobytes() == wanted.tobytes(), name


def test_results_can_be_computed_together():
    images = small().chunk(sample=5)
    means = pipeline.prototypes(pipeline.class_sums(images))
    measured, near = pipeline.distances(images, means), pipeline.neighbours(images, k=2)
    lazy = [means, pipeline.class_medians(images, leave_one_out=True), measured,
            pipeline.predict(measured), near, pipeline.vote(near, 2)]  # fmt: skip
    same_bits(dask.compute(*lazy), [one.compute() for one in lazy])


def test_nothing_is_computed_of_what_is_converted():
    wide = small().chunk(sample=5).astype("float64")
    wide["label"] = wide.label.astype("float32")
    with dask.config.set(scheduler=raise_if_computed):
        means = pipeline.prototypes(pipeline.class_sums(wide))
        lazy = [means, pipeline.distances(wide, means), pipeline.neighbours(wide, k=2)]
        for one in lazy:
            with pytest.raises(AssertionError, match="computed"):
                one.compute()


def test_coordinates_along_samples_stay_with_results():
    images = small().assign_coords(writer=("sample", list("abababababab")), place="here")
    measured = pipeline.distances(images, pipeline.prototypes(pipeline.class_sums(images)))
    near = pipeline.neighbours(images, k=1)
    for found in (measured, pipeline.predict(measured), near, pipeline.vote(near, 1)):
        assert {"sample", "label", "writer"} <= {*found.coords}
        assert found.groupby("writer").count().sizes["writer"] == 2
    by_writer = images.groupby("writer").map(pipeline.class_sums)
    assert by_writer.sizes["writer"] == 2
    assert by_writer.sum("writer").compute().equals(pipeline.class_sums(images).compute())
    assert pipeline.prototypes(by_writer.sum("writer")).compute().equals(
        pipeline.prototypes(pipeline.class_sums(images)).compute())  # fmt: skip


# names -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", [{}, {"sample": 5}])
def test_classes_are_named_by_attribute_flags_or_codes(chunks):
    labels = {"flag_values": [0, 1, 2, -1], "flag_meanings": "cat large_dog emu unlabelled"}
    bare = small().drop_attrs().chunk(chunks)
    flagged = bare.assign_coords(label=bare.label.assign_attrs(labels))
    sparse = bare.assign_coords(label=bare.label * 40)
    for images, names, codes in (
        (small(), NAMES, [0, 1, 2]), (flagged, ["cat", "large_dog", "emu"], [0, 1, 2]),
        (bare, ["0", "1", "2"], [0, 1, 2]), (sparse, ["0", "40", "80"], [0, 40, 80]),
    ):  # fmt: skip
        for found in (pipeline.class_sums(images), pipeline.class_medians(images)):
            assert found.class_name.values.tolist() == names
            assert found.class_code.values.tolist() == codes
        assert label_counts(images) == dict.fromkeys(names, 4)
    assert pipeline.class_sums(sparse, ["80"]).sizes["class_name"] == 1
    plain = pipeline.class_sums(small()).compute()
    assert np.array_equal(pipeline.class_sums(sparse).pixel_sum, plain.pixel_sum)


def test_what_netcdf_makes_of_a_set_is_taken(tmp_path):
    one = small().isel(sample=[0, 3]).assign_attrs(class_names=["cat"])  # a text there, no list
    one.to_netcdf(tmp_path / "one.nc")
    with xr.open_dataset(tmp_path / "one.nc") as opened:
        assert opened.attrs["class_names"] == "cat"
        found = pipeline.class_sums(opened).compute()
    assert found.equals(pipeline.class_sums(one).compute())
    assert isinstance(found.attrs["full_scale"], int)


def test_images_without_labels_are_measured_and_searched():
    images, bare = small(), small().drop_vars("label")
    means = pipeline.prototypes(pipeline.class_sums(images))
    assert np.array_equal(pipeline.distances(bare, means), pipeline.distances(images, means))
    assert "label_rank" not in pipeline.predict(pipeline.distances(bare, means))
    assert (pipeline.neighbours(bare, k=2).neighbour_label == -1).all()
    assert "label" not in pipeline.neighbours(bare, images, k=2).coords
    assert pipeline.pairs_within(bare, radius=0.4).equals(pipeline.pairs_within(images, radius=0.4))
    with pytest.raises(SchemaError, match="no 'label'"):
        pipeline.distances(bare, means, leave_one_out=True)


@pytest.mark.parametrize("make", [
    lambda d: pipeline.predict(
        pipeline.distances(d, pipeline.prototypes(pipeline.class_sums(d))).sel(metric="l2")),
    lambda d: pipeline.vote(pipeline.neighbours(d, k=3).sel(metric="l2"), 2),
])  # fmt: skip
def test_one_metric_gives_predictions_of_that_one(make):
    images = small()
    found = make(images).compute()
    assert found.sizes == {"sample": 12}
    assert found.metric == "l2"
    near = pipeline.neighbours(images, k=3)
    graphs = [pipeline.knn_graph(d, "l2") for d in (near, near.sel(metric="l2"), near.transpose())]
    assert all((graph != graphs[0]).nnz == 0 for graph in graphs)


# what is refused ---------------------------------------------------------------------------------

PIXELS = ("sample", "y", "x")


def with_pixel(value, dtype="float64"):
    images = small().astype(dtype)
    images.image[7, 1, 2] = value
    return images


@pytest.mark.parametrize(("wrong", "message", "cure"), [
    (lambda d: d.assign(image=d.image / 255), r"sample 0 has the pixel value 0\.\d+, expected",
     lambda d: d.assign(image=d.image.round().clip(0, 255).astype("uint8"))),
    (lambda _: with_pixel(np.nan), "sample 7 has a missing pixel nan, .*fillna",
     lambda d: d.fillna(0)),
    (lambda _: with_pixel(256, "int16"), "sample 7 has the pixel value 256, expected .*0 to 255",
     lambda d: d.assign(image=d.image.round().clip(0, 255).astype("uint8"))),
    (lambda _: with_pixel(-1, "int16"), "sample 7 has the pixel value -1",
     lambda d: d.assign(image=d.image.clip(0, 255).astype("uint8"))),
    (lambda d: d.assign(image=(d.image > 99).astype(float)), r"sample 0 .*\.assign_attrs\(full_sc",
     lambda d: d.assign_attrs(full_scale=1)),
    (lambda d: d.astype("int64").drop_attrs(), r"dtype int64.*\.assign_attrs\(full_scale=255\)",
     lambda d: d.assign_attrs(full_scale=255)),
    (lambda d: d.assign_attrs(full_scale=254.5), "'full_scale' is 254.5, expected a whole number",
     lambda d: d.assign_attrs(full_scale=255)),
    (lambda d: d.assign_attrs(full_scale="white"), "'full_scale' is 'white', expected a whole",
     lambda d: d.assign_attrs(full_scale=255)),
    (lambda d: d.assign_coords(label=("sample", np.array(NAMES)[d.label])), "expected codes",
     lambda d: d.assign_coords(label=("sample", np.unique(d.label, return_inverse=True)[1]))),
    (lambda d: d.drop_attrs().assign_coords(label=d.label + 2**30), "labels from 1073741824 to",
     lambda d: d.assign_coords(label=("sample", np.unique(d.label, return_inverse=True)[1]))),
])  # fmt: skip
def test_the_cure_of_an_error_helps(wrong, message, cure):
    images = wrong(small())
    with pytest.raises(SchemaError, match=message) as caught:
        pipeline.class_sums(images).compute()
    assert "\n" not in str(caught.value)
    pipeline.class_sums(cure(images)).compute()


@pytest.mark.parametrize("chunks", [(12,), (1, 5, 6), (2,) * 6])
@pytest.mark.parametrize("label", [0.5, 2.0**31, -(2.0**40), np.inf])
def test_a_label_that_is_no_code_is_named_with_its_position(chunks, label):
    images = small()
    images["label"] = images.label.astype(float)
    images.label[8] = label
    lazy = pipeline.class_sums(images.chunk(sample=chunks))
    with pytest.raises(LabelError, match="sample 8 has label"):
        lazy.compute()


def test_large_integers_do_not_wrap_into_codes():
    images = small().assign_coords(label=("sample", np.arange(12) % 3 + 2**32))
    with pytest.raises(LabelError, match="sample 0 has label 4294967296"):
        pipeline.class_sums(images).compute()


def test_an_empty_selection_is_taken():
    lazy = lazy_images(small().isel(sample=slice(0)).astype("float32"))
    assert lazy.image.compute().shape == (0, 3, 4)


# predictions -------------------------------------------------------------------------------------


def test_metrics_of_predictions_are_those_of_scikit_learn():
    from sklearn.metrics import accuracy_score, confusion_matrix

    images = small(60)
    images.label[:4] = -1
    means = pipeline.prototypes(pipeline.class_sums(images, ["cat", "emu"]))
    predicted = pipeline.predict(pipeline.distances(images, means))
    counting = images.label.values != 1
    for metric, entry in metrics_of(predicted).items():
        mine = predicted.sel(metric=metric).predicted.values[counting & (images.label.values >= 0)]
        labels = images.label.values[counting & (images.label.values >= 0)]
        assert entry["accuracy"] == accuracy_score(labels, mine)
        assert np.array_equal(entry["confusion"]["counts"], confusion_matrix(labels, mine))
        assert entry["confusion"]["class_names"] == ["cat", "emu"]
    with pytest.raises(SchemaError, match=r"expected what predict\(distances\) returns"):
        metrics_of(images)
