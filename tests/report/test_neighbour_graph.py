"""The graph of the nearest images: of a search, of an audit, and as cleanlab takes it."""

from __future__ import annotations

import dask
import numpy as np
import pytest
import xarray as xr
from jobs_for_tests import make_arrays, make_images
from scipy.sparse import csr_matrix
from strategies import as_dataset, oracle_numerators, raise_if_computed

import pipeline
from pipeline.core.errors import DamagedError, SchemaError

K = 6
ARRAYS = make_arrays(train=60, test=25)
ARRAYS["test"][0][:3] = ARRAYS["train"][0][:3]  # copies across splits
ARRAYS["train"][0][10] = ARRAYS["train"][0][11]


def dense(images, metric):
    """Distances of images among themselves, [image, image]; that to itself is missing."""
    numerators = oracle_numerators(images, images, metric).astype(float)
    pixels = images[0].size
    distance = numerators / (pixels * 255)
    if metric == "l2":
        distance = np.sqrt(numerators / (pixels * 255**2))
    np.fill_diagonal(distance, np.nan)
    return distance


def check(graph, images, metric, k):
    expected = dense(images, metric)
    count = len(images)
    assert isinstance(graph, csr_matrix)
    assert graph.shape == (count, count)
    assert graph.dtype == np.float64
    assert np.diff(graph.indptr).tolist() == [min(k, count - 1)] * count
    for row, distances in enumerate(expected):
        at = slice(*graph.indptr[row : row + 2])
        nearest = np.argsort(distances, kind="stable")[: min(k, count - 1)]
        assert graph.indices[at].tolist() == nearest.tolist()
        assert np.allclose(graph.data[at], distances[nearest], rtol=1e-12)


def dataset(images, labels, chunk=20):
    return as_dataset(images, labels, list("abcd"), chunk, full_scale=255)


@pytest.fixture(scope="module", params=["l1", "l2"])
def audited(request, tmp_path_factory):
    """An audit, its images and its metric."""
    folder = tmp_path_factory.mktemp("audited")
    store = make_images(folder / "images.zarr", ARRAYS, 16)
    audit = pipeline.run_audit(
        {"name": "trees", "images": str(store), "output": str(folder / "audit"),
         "k": K, "metric": request.param, "variants": ["mirror"]}
    )  # fmt: skip
    return pipeline.open_audit(audit.path), request.param


@pytest.mark.parametrize("metric", ["l1", "l2"])
@pytest.mark.parametrize("k", [1, K, 200])
def test_a_graph_of_neighbours_has_the_nearest_of_each_row(metric, k):
    images = dataset(*ARRAYS["train"])
    check(
        pipeline.knn_graph(pipeline.neighbours(images, k=k), metric), ARRAYS["train"][0], metric, k
    )


def test_neighbours_may_be_in_memory_or_saved(tmp_path):
    found = pipeline.neighbours(dataset(*ARRAYS["train"]), k=K).compute()
    check(pipeline.knn_graph(found), ARRAYS["train"][0], "l1", K)
    found.drop_vars("label").to_netcdf(tmp_path / "n.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "n.nc", engine="h5netcdf") as opened:
        check(pipeline.knn_graph(opened), ARRAYS["train"][0], "l1", K)


def test_a_graph_of_an_audit_is_that_of_all_its_splits(audited):
    audit, metric = audited
    images = np.concatenate([ARRAYS[split][0] for split in audit.summary["splits"]])
    check(pipeline.knn_graph(audit, metric), images, metric, K)
    labels = np.zeros(len(images), np.int32)
    graph = pipeline.knn_graph(pipeline.neighbours(dataset(images, labels), k=K), metric)
    mine = pipeline.knn_graph(audit, metric)
    for name in ("data", "indices", "indptr"):
        assert np.array_equal(getattr(graph, name), getattr(mine, name))


def test_where_an_audit_has_fewer_images_than_neighbours_the_rest_is_left_out(tmp_path):
    arrays = {
        "train": (ARRAYS["train"][0][:5], np.zeros(5, int)),
        "test": (ARRAYS["test"][0][:1], [0]),
    }
    store = make_images(tmp_path / "images.zarr", arrays, 16)
    audit = pipeline.run_audit({"name": "few", "images": str(store), "output": str(tmp_path / "a")})
    images = np.concatenate([arrays[split][0] for split in audit.summary["splits"]])
    check(pipeline.knn_graph(audit), images, "l1", 10)


def test_what_is_no_graph_is_refused_in_a_line(audited):
    audit, metric = audited
    train, test = (dataset(*ARRAYS[split]) for split in ("train", "test"))
    other = {"l1": "l2", "l2": "l1"}[metric]
    for given, asked, said in [
        (pipeline.neighbours(train, k=2, metrics="l1"), "l2", r"metric is 'l2', expected .*'l1'"),
        (audit, other, f"metric is '{other}', expected '{metric}'"),
        (pipeline.neighbours(train, test, k=2), "l1", "among other images"),
        (pipeline.neighbours(test, train, k=2), "l1", "among other images"),
        (pipeline.neighbours(train, train, k=2), "l1", "among other images"),
        (pipeline.neighbours(train, k=2).isel(sample=slice(9)), "l1", "expected one of the 9"),
        (train, "l1", "no variable 'neighbour'"), ("audit", "l1", "expected Dataset or Audit"),
    ]:  # fmt: skip
        with pytest.raises(SchemaError, match=said) as caught, dask.config.set(scheduler="sync"):
            pipeline.knn_graph(given, asked)
        assert "\n" not in str(caught.value)
    with dask.config.set(scheduler=raise_if_computed), pytest.raises(SchemaError):
        pipeline.knn_graph(pipeline.neighbours(train, test, k=2))


def test_a_changed_table_is_noticed(tmp_path):
    store = make_images(tmp_path / "images.zarr", ARRAYS, 64)
    audit = pipeline.run_audit({"name": "a", "images": str(store), "output": str(tmp_path / "a")})
    part = next((audit.path / "neighbours").iterdir())
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    with pytest.raises(DamagedError, match="was changed"):
        pipeline.knn_graph(audit)


def test_cleanlab_takes_the_graph_as_it_is(audited):
    cleanlab = pytest.importorskip("cleanlab")
    pytest.importorskip("datasets")  # of cleanlab[datalab]
    audit, metric = audited
    images, labels = (
        np.concatenate([ARRAYS[split][part] for split in audit.summary["splits"]])
        for part in (0, 1)
    )
    graph = pipeline.knn_graph(audit, metric)
    before = graph.copy()
    lab = cleanlab.Datalab({"label": labels}, label_name="label", verbosity=0)
    lab.find_issues(knn_graph=graph)
    issues = lab.get_issues()
    assert {"is_near_duplicate_issue", "is_outlier_issue", "is_non_iid_issue"} <= set(issues)
    copies = np.flatnonzero(np.nanmin(dense(images, metric), axis=1) == 0)
    assert len(copies) == 8
    assert issues["is_near_duplicate_issue"].to_numpy()[copies].all()
    sets = lab.get_issues("near_duplicate")["near_duplicate_sets"]
    for image in copies:
        assert np.flatnonzero(dense(images, metric)[image] == 0)[0] in sets[image]
    for name in ("data", "indices", "indptr"):
        assert np.array_equal(getattr(graph, name), getattr(before, name))
