"""The door of the public functions: what is plainly meant is taken, all else refused in a line."""

from __future__ import annotations

import inspect
import io
import typing
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

import pipeline
from pipeline.config.cluster_settings import ClusterSettings
from pipeline.core.arguments import checked
from pipeline.core.errors import PixsimError, SchemaError
from pipeline.report import plots
from pipeline.sources.arrays import as_array, from_arrays

WRONG = [
    None, 3, 2.5, b"x", object(), [], ["a"], {}, (1, 2), "no/such", Path("no/such"), "",
    np.zeros((2, 2)), xr.Dataset(), xr.DataArray([1]), True, set(), len,
]  # fmt: skip
PLOTS = [name for name in plots.__all__ if callable(getattr(plots, name))]


def make_arrays(count, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 4, 3), np.uint8)
    return pixels, np.arange(count) % 2


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return right arguments for each public function, in a folder with a store and a run."""
    folder = tmp_path_factory.mktemp("doors")
    source = from_arrays({"train": make_arrays(6), "test": make_arrays(4, 1)}, ["a", "b"])
    store = str(pipeline.ingest(source, folder / "s.zarr"))
    content = {"name": "j", "images": store, "output": str(folder / "r"), "report": False}
    settings = pipeline.make_job(content)
    run = str(pipeline.run_job(settings).path)
    checks = {"name": "a", "images": store, "output": str(folder / "a"), "k": 2}
    audit = pipeline.run_audit(checks)
    images = pipeline.open_images(store)
    sums = pipeline.class_sums(images)
    means = pipeline.prototypes(sums)
    table = pipeline.distances(images, means)
    found, opened = pipeline.explain(run, "test", 0), pipeline.open_run(run)
    picture, counts = str(folder / "p.png"), {"train": {"a": 1, "b": 2}}
    bins = np.arange(8)
    return {
        "class_sums": [images, ["a"], "cpu"], "class_medians": [images], "prototypes": [sums],
        "distances": [images, means, ["l1"]], "predict": [table], "describe": [store],
        "digest": [store], "open_store": [store], "open_images": [store, "train"],
        "open_run": [run], "explain": [run, "test", 0], "draw_grid": [store, picture],
        "write_report": [run, str(folder / "p.html")], "verify": [store], "run_job": [settings],
        "find_job": ["digits"], "init_job": ["digits", "new.yml"],
        "save_job": [settings, "other.yml"],
        "forecast": [settings], "load_job": ["j.yml"], "load_images": ["j.yml"],
        "make_job": [content], "make_images": ["digits"], "make_cluster": ["local"],
        "open_source": ["digits"], "from_arrays": [{"train": make_arrays(3)}, ["a", "b"], 255, {}],
        "ingest": [source, str(folder / "i.zarr"), 4, "threads"],
        "plan_ingest": [source, str(folder / "i.zarr")],
        "ingest_partitions": [source, 0, 1, str(folder / "i.zarr")],
        "finish_ingest": [source, str(folder / "i.zarr")],
        "draw_explanation": [found, picture], "print_pixels": [found.image, 255, "0:2,0:2"],
        "Run": [run], "ImageSet": [store], "Audit": [str(audit.path)],
        "make_audit": [checks], "run_audit": [checks], "open_audit": [str(audit.path)],
        "knn_graph": [pipeline.neighbours(images, k=2), "l1"],
        "plots.image": [found.image, 255], "plots.gallery": [[found.image], ["a"], 255],
        "plots.samples": [images, 2], "plots.prototypes": [means],
        "plots.pixel_values": [found.image, 255],
        "plots.difference": [found.image, found.image / 2, 255],
        "plots.distances": [found, "l1"], "plots.accuracy": [opened.metrics],
        "plots.confusion": [opened.metrics, "l1"], "plots.confusion_order": [np.eye(2, dtype=int)],
        "plots.class_distances": [np.zeros((2, 2)), ["a", "b"]],
        "plots.margins": [np.linspace(0, 1, 9), bins, bins],
        "plots.agreement": [5, 1, 2, 3, ("l1", "l2")],
        "plots.class_counts": [counts],
    }  # fmt: skip


def function_of(name):
    module, _, last = name.rpartition(".")
    return getattr(plots if module else pipeline, last)


def refusal(function, arguments):
    """Return what an error of ours says; nothing where the arguments are taken."""
    try:
        function(*arguments)
    except PixsimError as error:
        return str(error)
    return ""


NAMES = [
    "Audit", "ImageSet", "Run", "class_medians", "class_sums", "describe", "digest", "distances",
    "draw_explanation", "draw_grid", "explain", "find_job", "finish_ingest", "forecast",
    "from_arrays", "ingest", "ingest_partitions", "init_job", "knn_graph", "load_images",
    "load_job", "make_audit", "make_cluster", "make_images", "make_job", "open_audit",
    "open_images", "open_run", "open_source", "open_store", "plan_ingest", "predict",
    "print_pixels", "prototypes", "run_audit", "run_job", "save_job", "verify", "write_report",
    *(f"plots.{name}" for name in PLOTS),
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore")
def test_a_wrong_argument_is_refused_in_one_line_of_ours(name, made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    function, right = function_of(name), made[name]
    for place in range(len(right)):
        for wrong in WRONG:
            arguments = [*right[:place], wrong, *right[place + 1 :]]
            said = refusal(function, arguments)
            assert "\n" not in said, said
    plt.close("all")


@pytest.mark.parametrize("name", [
    "class_sums", "prototypes", "distances", "predict", "open_run", "open_images",
    "plots.accuracy", "run_job", "ingest", "run_audit", "open_audit", "knn_graph",
])  # fmt: skip
def test_what_is_expected_is_said_with_what_was_given(name, made):
    with pytest.raises(PixsimError, match=r"list|\[\]") as caught:
        function_of(name)([], *made[name][1:])
    assert "expected" in str(caught.value)


KEYWORDS = {
    "run_job": ["reporter", "profile"], "run_audit": ["reporter", "resume"],
    "make_audit": ["overrides"], "open_audit": ["storage_options"],
    "load_job": ["overrides", "cluster"], "find_job": ["overrides", "changes", "say"],
    "load_images": ["overrides"], "make_images": ["overrides"], "make_job": ["where"],
    "make_cluster": ["beside"], "open_source": ["listing", "scratch"],
    "Run": ["storage_options"], "Audit": ["storage_options"], "ImageSet": ["storage_options"],
    "open_run": ["storage_options"],
}  # fmt: skip


@pytest.mark.parametrize("name", KEYWORDS)
def test_wrong_keywords_are_refused_too(name, made):
    for keyword in KEYWORDS[name]:
        for wrong in (3, 2.5, object(), np.zeros((2, 2)), [1, 2]):
            with pytest.raises(PixsimError, match="expected") as caught:
                function_of(name)(*made[name], **{keyword: wrong})
            assert "\n" not in str(caught.value)


def test_anything_that_can_be_written_to_is_a_stream():
    stream = io.StringIO()
    pipeline.print_table(["name"], [["a"]], stream)
    assert "a" in stream.getvalue()
    with pytest.raises(PixsimError, match="expected"):
        pipeline.print_table(["name"], [["a"]], 3)


def test_every_public_function_with_a_door_has_hints_that_can_be_read():
    for name in [*pipeline.__all__, *(f"plots.{name}" for name in PLOTS)]:
        function = function_of(name)
        if hasattr(function, "__wrapped__") and not inspect.isclass(function):
            assert typing.get_type_hints(function.__wrapped__), name


def test_one_text_a_path_and_a_list_stand_for_what_is_meant(made, tmp_path, monkeypatch):
    store, images = made["open_store"][0], made["class_sums"][0]
    assert pipeline.open_images(Path(store)).sizes == images.sizes
    assert pipeline.open_images(split="test", store=store).sizes["sample"] == 4
    assert pipeline.class_sums(images, "a").sizes["class_name"] == 1
    assert pipeline.class_sums(images, np.array(["a"])).sizes["class_name"] == 1
    assert pipeline.explain(made["open_run"][0], "test", np.int64(1)).sample == 1
    assert plots.confusion_order([[1, 0], [0, 1]]) == plots.confusion_order(np.eye(2, dtype=int))
    assert pipeline.Run(made["open_run"][0]).manifest["name"] == "j"
    monkeypatch.chdir(tmp_path)
    assert pipeline.run_job(dict(made["make_job"][0])).path == Path(made["open_run"][0])
    assert pipeline.ingest(Path("digits"), "d.zarr", cluster="threads").name == "d.zarr"


def test_a_door_leaves_defaults_and_keywords_alone():
    @checked
    def function(a: int, b: str | None = None, *rest: int, c: Path | None = None) -> object:
        """Say."""
        return a, b, rest, c

    assert function(1) == (1, None, (), None)
    assert function(1, "x", 2, c="a/b") == (1, "x", (2,), Path("a/b"))
    assert function.__name__ == "function"
    with pytest.raises(SchemaError, match=r"function\(\): 'c' is 3 \(int\), expected a path or No"):
        function(1, c=3)
    with pytest.raises(TypeError, match="missing"):
        function()
    with pytest.raises(TypeError, match=r"function\(\) got .*'resst'; did you mean 'rest'\?"):
        function(1, resst=3)


# arrays ----------------------------------------------------------------------------------------


class Tensor:
    """What a tensor on a device is to NumPy: nothing, before it is brought to the host."""

    def __init__(self, values):
        self.values = np.asarray(values)

    def detach(self):
        return self

    def cpu(self):
        return self

    def numpy(self):
        return self.values


def forms(images, labels):
    import dask.array as da
    import pandas as pd
    from PIL import Image

    moved = xr.DataArray(images, dims=("sample", "y", "x"))
    return {
        "arrays": (images, labels),
        "a list of both": [images, labels],
        "lists of arrays": (list(images), labels.tolist()),
        "pictures": ([Image.fromarray(image) for image in images], tuple(labels.tolist())),
        "tensors": (Tensor(images), Tensor(labels)),
        "labelled arrays": (moved, xr.DataArray(labels, dims="sample")),
        "labelled arrays in another order": (moved.transpose("y", "x", "sample"), labels),
        "lazy arrays": (da.from_array(images, 2), da.from_array(labels, 2)),
        "a series": (images, pd.Series(labels, index=range(100, 100 + len(labels)))),
        "a series of objects": (images, pd.Series(labels.tolist(), dtype=object)),
        "a column": (images, pd.DataFrame({"label": labels})),
        "a data set": xr.Dataset(
            {"image": moved}, {"label": ("sample", labels.astype(np.int32))}
        ),
        "a mapping": {"images": images, "labels": labels},
        "no mask": (np.ma.MaskedArray(images), labels),
    }  # fmt: skip


@pytest.mark.parametrize("form", forms(*make_arrays(1)))
def test_what_stands_for_arrays_is_taken_as_such(form):
    expected = from_arrays({"train": make_arrays(5)}, ["a", "b"])
    found = from_arrays({"train": forms(*make_arrays(5))[form]}, ["a", "b"])
    read, wanted = found.read("train", 0, 5), expected.read("train", 0, 5)
    np.testing.assert_array_equal(read.images, wanted.images)
    assert read.images.dtype == wanted.images.dtype
    np.testing.assert_array_equal(read.labels, wanted.labels)


def test_real_tensors_are_taken():
    torch = pytest.importorskip("torch")
    images, labels = make_arrays(4)
    found = from_arrays({"train": (torch.from_numpy(images), torch.from_numpy(labels))})
    np.testing.assert_array_equal(found.read("train", 0, 4).images, images)


@pytest.mark.parametrize("kind", [list, "category", object, "str", np.array])
def test_texts_in_any_wrapping_are_the_names_of_classes(kind):
    import pandas as pd

    texts = ["dog", "cat", "dog"]
    made = kind(texts) if kind in (list, np.array) else pd.Series(texts, dtype=kind)
    found = from_arrays({"train": (make_arrays(3)[0], made)})
    assert found.class_names == ("cat", "dog")
    assert found.read("train", 0, 3).labels.tolist() == [1, 0, 1]


def test_images_without_labels_are_unlabelled():
    found = from_arrays({"train": make_arrays(3), "test": (make_arrays(2)[0], None)}, ["a", "b"])
    assert found.read("test", 0, 2).labels.tolist() == [-1, -1]


@pytest.mark.parametrize("labels", [
    np.ma.array([0, 1, 9], mask=[0, 0, 1]), np.ma.array([0.0, 1, 0.5], mask=[0, 0, 1]),
    np.ma.array(["a", "b", "c"], mask=[0, 0, 1]),
    np.ma.array([[0], [1], [9]], mask=[[0], [0], [1]]),
    np.ma.array([[1, 0], [0, 1], [1, 1]], mask=[[0, 0], [0, 0], [1, 1]]),
])  # fmt: skip
def test_masked_labels_are_none(labels):
    found = from_arrays({"train": (make_arrays(3)[0], labels)})
    assert found.read("train", 0, 3).labels.tolist() == [0, 1, -1]
    assert len(found.class_names) == 2
    part = np.ma.array([[1, 0]] * 3, mask=[[1, 0]] * 3)
    with pytest.raises(PixsimError, match=r"sample 0 is \[nan, 0.0\]"):
        from_arrays({"train": (make_arrays(3)[0], part)})


@pytest.mark.parametrize("labels", [None, np.ma.array([0, 1, 0], mask=True), [-1, -1, -1]])
def test_arrays_without_any_label_can_be_ingested(tmp_path, labels):
    source = from_arrays({"train": (make_arrays(3)[0], labels)})
    path = pipeline.ingest(source, tmp_path / "s.zarr")
    found = pipeline.open_images(path, "train")
    assert found.label.values.tolist() == [-1, -1, -1]
    assert (found.image.values == make_arrays(3)[0]).all()


@pytest.mark.parametrize(("arrays", "said"), [
    (make_arrays(3), "expected a mapping such as {'train': (images, labels)}"),
    ([make_arrays(3)], "expected a mapping such as"),
    (xr.Dataset({"image": ("x", [1])}), "expected a mapping such as"),
    ({3: make_arrays(3)}, "split 3 (int): expected a name as text"),
    ({"train": make_arrays(3)[0]}, "split 'train' is a ndarray of shape (3, 4, 3) and uint8"),
    ({"train": xr.Dataset()}, "expected (images, labels)"),
    ({"train": ("a", [0])}, "split 'train': images are 'a' (str), expected an array"),
    ({"train": (make_arrays(2)[0], 1)}, "split 'train': labels are 1 (int)"),
    ({"train": (make_arrays(2)[0], {0: 1})}, "split 'train': labels are a dict"),
    ({"train": ([np.zeros((2, 2)), np.zeros((3, 2))], [0, 0])}, "number 1 is (3, 2) float64"),
    ({"train": ([[[1], [1, 2]]], [0])}, "split 'train': images are a list, not an array"),
    ({"train": (make_arrays(2)[0].tolist(), [0, 1])}, "images of int64 with values"),
    ({"train": (np.ma.masked_equal(make_arrays(2)[0], 0 * 0 + make_arrays(2)[0][0, 0, 0]), [0, 1])},
     "have masked values"),
    ({"train": (object(), [0])}, "split 'train': images are a object, expected an array"),
])  # fmt: skip
def test_what_is_no_array_is_refused_with_what_it_is(arrays, said):
    with pytest.raises(PixsimError) as caught:
        from_arrays(arrays)
    assert said in str(caught.value)


@pytest.mark.parametrize(("names", "said"), [
    ("ab", "class_names: 'ab' (str), expected a list"), (3, "expected a list of names"),
    ([["a"], ["b"]], "expected a name as text"), ({"a": 0, "b": 1}, "expected a list"),
])  # fmt: skip
def test_names_of_classes_are_a_list_of_texts(names, said):
    with pytest.raises(PixsimError) as caught:
        from_arrays({"train": make_arrays(3)}, names)
    assert said in str(caught.value)


def test_names_may_be_an_array_or_whole_numbers():
    arrays = {"train": make_arrays(3)}
    assert from_arrays(arrays, np.array(["a", "b"])).class_names == ("a", "b")
    assert from_arrays(arrays, [3, 7]).class_names == ("3", "7")


@pytest.mark.parametrize("scale", [0, -1, 2.5, "255", True, [255]])
def test_a_full_scale_is_a_whole_number(scale):
    with pytest.raises(PixsimError, match="full_scale"):
        from_arrays({"train": make_arrays(3)}, full_scale=scale)


def test_an_array_is_not_copied():
    images = make_arrays(3)[0]
    assert as_array(images, "images") is images


def test_settings_of_a_cluster_may_be_a_text(tmp_path):
    with pipeline.open_executor("threads") as executor:
        assert executor.layout == pipeline.open_executor(ClusterSettings()).__enter__().layout
