"""Images for the tests of estimators, and the same answers by other means."""

from __future__ import annotations

import numpy as np
import xarray as xr

from pipeline import NearestImagesClassifier, NearestPrototypeClassifier

KINDS = ["mean", "median", "images"]


def make_estimator(kind, metric="l1", **more):
    if kind == "images":
        return NearestImagesClassifier(3, metric, "cpu", **more)
    return NearestPrototypeClassifier(kind, metric, "cpu", **more)


def make_images(count, dtype="uint8", shape=(5, 4), seed=0, classes=3):
    """Return images that differ by class, of the whole range of an integer type, and labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    largest = np.iinfo(dtype).max
    centres = np.random.default_rng(99).integers(0, largest, (classes, *shape))
    noise = rng.integers(-largest // 3, largest // 3, (count, *shape))
    return np.clip(centres[labels] + noise, 0, largest).astype(dtype), labels


def as_dataset(images, labels, classes=3):
    """Return images of rows as the labelled data set that the functions of `pipeline` take."""
    return xr.Dataset(
        {
            "image": (("sample", "y", "x"), images.reshape(len(images), 1, -1)),
            "label": ("sample", labels.astype(np.int32)),
        },
        attrs={"class_names": [str(number) for number in range(classes)]},
    )


def answers(estimator, images):
    """Return all that an estimator says of images."""
    found = [estimator.predict(images), estimator.predict_proba(images)]
    found.append(estimator.decision_function(images))
    if isinstance(estimator, NearestImagesClassifier):
        return [*found, *estimator.kneighbors(images)]
    return [*found, estimator.distances(images), estimator.prototypes_]


def assert_same(left, right):
    for one, other in zip(left, right, strict=True):
        np.testing.assert_array_equal(one, other)
