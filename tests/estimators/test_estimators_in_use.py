"""Estimators in pipelines, searches, files and other libraries, as the documentation shows."""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import pickle
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import skops.io
from dask.distributed import Client
from dask_ml.wrappers import ParallelPostFit
from estimators_for_tests import KINDS, answers, assert_same, make_estimator, make_images
from sklearn import config_context
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.utils import estimator_html_repr

import pipeline.estimators.classifiers
from pipeline import NearestImagesClassifier, NearestPrototypeClassifier

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "scikit-learn.md"


# of what the digits are: some pixels are 0 in all of them
pytestmark = pytest.mark.filterwarnings("ignore:self.within_class_std_dev_")


@pytest.fixture(scope="module")
def digits():
    images, labels = load_digits(return_X_y=True)
    return images[:600], labels[:600]


def test_every_block_of_the_page_prints_what_it_shows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", PAGE.read_text(), re.S)
    assert len(blocks) > 8
    names = {}
    for code, shown in blocks:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, names)
        assert printed.getvalue() == shown


def test_the_examples_of_the_docstrings():
    done = doctest.testmod(pipeline.estimators.classifiers)
    assert done.attempted > 6
    assert not done.failed


def test_scores_of_cross_validation_are_those_of_the_peers(digits):
    """The digits are whole numbers as floats, so both measure the same distances."""
    peers = [
        (NearestPrototypeClassifier(metric="l2"), NearestCentroid()),
        (NearestPrototypeClassifier("median"), NearestCentroid(metric="manhattan")),
        (NearestImagesClassifier(1), KNeighborsClassifier(1, metric="manhattan")),
        (NearestImagesClassifier(1, "l2"), KNeighborsClassifier(1)),
    ]
    for ours, theirs in peers:
        mine = cross_val_score(ours, *digits, cv=3, error_score="raise")
        np.testing.assert_allclose(mine, cross_val_score(theirs, *digits, cv=3), atol=0.002)


def test_a_search_finds_the_best_parameters_in_a_pipeline(digits):
    images, labels = digits
    steps = make_pipeline(StandardScaler(), NearestImagesClassifier())
    grid = {"nearestimagesclassifier__k": [1, 25], "nearestimagesclassifier__metric": ["l1", "l2"]}
    search = GridSearchCV(steps, grid, cv=3, error_score="raise").fit(images, labels)
    peer = make_pipeline(StandardScaler(), KNeighborsClassifier())
    grid = {"kneighborsclassifier__n_neighbors": [1, 25], "kneighborsclassifier__p": [1, 2]}
    theirs = GridSearchCV(peer, grid, cv=3).fit(images, labels)
    assert search.best_params_["nearestimagesclassifier__k"] == 1
    scores = [found.cv_results_["mean_test_score"] for found in (search, theirs)]
    np.testing.assert_allclose(*scores, atol=0.005)


def test_images_go_through_a_pipeline_in_their_shape():
    images, labels = make_images(30)
    for kind in KINDS:
        steps = make_pipeline(FunctionTransformer(np.fliplr), make_estimator(kind))
        steps.fit(images, labels)
        assert steps[-1].image_shape_ == (5, 4)
        assert steps.score(images, labels) == make_estimator(kind).fit(images, labels).score(
            images, labels
        )


def test_names_of_features_are_kept_and_checked():
    images, labels = make_images(30, shape=(3,))
    table = pd.DataFrame(images, columns=["a", "b", "c"])
    model = NearestPrototypeClassifier().fit(table, pd.Series(labels))
    assert model.feature_names_in_.tolist() == ["a", "b", "c"]
    assert (model.predict(table) == model.predict(table.astype(float))).all()
    with pytest.raises(ValueError, match="feature names should match"):
        model.predict(table.rename(columns={"a": "d"}))


def test_a_clone_has_the_parameters_and_nothing_else():
    images, labels = make_images(30)
    for kind in KINDS:
        model = make_estimator(kind, "l2", value_range=(0, 300), n_jobs=2).fit(images, labels)
        other = clone(model)
        assert other.get_params() == model.get_params()
        assert {*vars(other)} == {*model.get_params()}


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_was_pickled_or_dumped_predicts_and_is_fitted_on(kind, dtype):
    images, labels = make_images(40, dtype)
    model = make_estimator(kind).fit(images[:30], labels[:30])
    trusted = [f"pipeline.estimators.classifiers.{type(model).__name__}"]
    dumped = skops.io.dumps(model)
    assert skops.io.get_untrusted_types(data=dumped) == trusted
    for other in (pickle.loads(pickle.dumps(model)), skops.io.loads(dumped, trusted=trusted)):
        assert_same(answers(other, images), answers(model, images))
        other.partial_fit(images[30:], labels[30:])
        assert_same(
            answers(other, images), answers(make_estimator(kind).fit(images, labels), images)
        )


def test_a_pickled_model_is_no_larger_than_what_it_keeps():
    images, labels = make_images(600, shape=(20, 20))
    for kind, most in (
        ("mean", 3 * 400 * 8),
        ("median", 3 * 400 * 1024),
        ("images", 600 * (400 + 3 * 8)),
    ):
        model = make_estimator(kind).fit(images, labels)
        model.predict(images)
        assert len(pickle.dumps(model)) < most + 5_000


@pytest.mark.parametrize("kind", KINDS)
def test_parallel_post_fit_predicts_chunks(kind):
    images, labels = make_images(40)
    rows = images.reshape(40, -1)
    model = ParallelPostFit(make_estimator(kind)).fit(rows, labels)
    lazy = da.from_array(rows, chunks=(9, 20))
    predicted = model.predict(lazy)
    assert isinstance(predicted, da.Array)
    np.testing.assert_array_equal(predicted, model.estimator.predict(rows))
    np.testing.assert_array_equal(model.predict_proba(lazy), model.estimator.predict_proba(rows))


def test_processes_of_a_cluster_fit_and_predict_the_same():
    images, labels = make_images(60, "uint16")
    lazy = da.from_array(images, chunks=(11, 5, 4))
    expected = [answers(make_estimator(kind).fit(images, labels), images) for kind in KINDS]
    with Client(n_workers=2, threads_per_worker=2, processes=False, dashboard_address=None):
        for kind, right in zip(KINDS, expected, strict=True):
            assert_same(answers(make_estimator(kind).fit(lazy, labels), lazy), right)


def test_threads_that_share_a_model_predict_the_same():
    images, labels = make_images(300)
    for kind in KINDS:
        model = make_estimator(kind, n_jobs=2).fit(images, labels)
        expected = answers(model, images)
        model = pickle.loads(pickle.dumps(model))
        with ThreadPoolExecutor(4) as pool:
            for found in pool.map(answers, [model] * 8, [images] * 8):
                assert_same(found, expected)


def test_parameters_that_change_after_fit_count_in_predict():
    images, labels = make_images(40)
    for kind in KINDS:
        model = make_estimator(kind).fit(images, labels)
        model.predict(images)
        model.set_params(metric="l2", device="torch:cpu")
        expected = make_estimator(kind, "l2").fit(images, labels)
        assert_same(answers(model, images), answers(expected, images))


def test_a_notebook_shows_a_model_and_tags_say_what_it_takes():
    images, labels = make_images(30)
    for kind in KINDS:
        model = make_estimator(kind)
        assert type(model).__name__ in estimator_html_repr(model)
        assert type(model).__name__ in model.fit(images, labels)._repr_mimebundle_()["text/html"]
        tags = model.__sklearn_tags__()
        assert tags.input_tags.three_d_array
        assert tags.input_tags.two_d_array
        assert not tags.input_tags.sparse
        assert tags.classifier_tags.multi_class
        assert tags.target_tags.required


def test_weights_are_routed():
    images, labels = make_images(40)
    weights = np.arange(40) % 4
    with_weights = make_estimator("mean").fit(images, labels, sample_weight=weights)
    with config_context(enable_metadata_routing=True):
        steps = make_pipeline(make_estimator("mean").set_fit_request(sample_weight=True))
        steps.fit(images, labels, sample_weight=weights)
    np.testing.assert_array_equal(steps[-1].prototypes_, with_weights.prototypes_)


def test_the_package_is_imported_without_scikit_learn():
    check = "import pipeline, sys; pipeline.__dir__(); print('sklearn' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, env={**os.environ}
    )
    assert done.stdout.strip() == "False", done.stderr
