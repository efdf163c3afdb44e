"""Confusion counts, and what follows from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.core.exact import Int64Array


def confusion_counts(
    labels: npt.NDArray[Any], predicted: npt.NDArray[Any], classes: int
) -> Int64Array:
    """Count pairs of positions.

    Parameters
    ----------
    labels, predicted
        [sample]; positions among the classes; samples where either is negative do not count.
    classes
        The number of classes.

    Returns
    -------
    [label, predicted]; int64.
    """
    known = (labels >= 0) & (predicted >= 0)
    pairs = labels[known].astype(np.int64) * classes + predicted[known]
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def summarise(counts: Int64Array, class_names: Sequence[str]) -> dict[str, Any]:
    """Return accuracies from confusion counts.

    Parameters
    ----------
    counts
        [label, predicted].
    class_names
        The name of each class.

    Returns
    -------
    `count`, `accuracy` (right among all), `balanced_accuracy` (the mean of the accuracies of
    classes that have images), `per_class` and `confusion`. An accuracy of nothing is None.
    """
    per_label = counts.sum(axis=1)
    right = np.diagonal(counts)
    shares = [
        int(hits) / int(total) if total else None
        for hits, total in zip(right, per_label, strict=True)
    ]
    known = [share for share in shares if share is not None]
    total = int(per_label.sum())
    return {
        "count": total,
        "accuracy": int(right.sum()) / total if total else None,
        "balanced_accuracy": sum(known) / len(known) if known else None,
        "per_class": {
            name: {"accuracy": share, "count": int(number)}
            for name, share, number in zip(class_names, shares, per_label, strict=True)
        },
        "confusion": {"class_names": list(class_names), "counts": counts.tolist()},
    }
