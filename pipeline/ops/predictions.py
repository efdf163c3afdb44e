"""From distances to predictions, the nearest prototypes, and from these to accuracies.

Ties go to the lowest class code, always. A class without images is never predicted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.core.arguments import checked
from pipeline.core.classes import ClassSelection
from pipeline.core.deferred import da, xr
from pipeline.core.errors import SchemaError
from pipeline.core.exact import Float64Array, Int64Array
from pipeline.core.schema import CLASS, CLASS_CODE, DISTANCE, LABEL, METRIC, SAMPLE, conform
from pipeline.ops.labelled import NAMES, code_flags, codes_of

ROW = np.dtype(
    [
        ("predicted", np.int32),
        ("distance", np.float64),
        ("margin", np.float64),
        ("label_distance", np.float64),
        ("label_rank", np.int32),
    ]
)

_CACHE_BYTES, _FEWEST = 2**18, 64

_MEANING = {
    "predicted": "code of the nearest class, -1 where no class has a prototype",
    "distance": "distance to the nearest prototype",
    "margin": "second smallest distance minus smallest",
    "label_distance": "distance to the prototype of the image's own label",
    "label_rank": "rank of the image's own label among the distances, 1 for the nearest",
}


def predict_block(
    distance: Float64Array, codes: npt.NDArray[Any], positions: npt.NDArray[np.int64]
) -> npt.NDArray[Any]:
    """Predict one block.

    Parameters
    ----------
    distance
        [metric, sample, class]; NaN where a class has no prototype.
    codes
        [class]; the code of each class, ascending.
    positions
        [sample]; the position of each label among the classes, -1 for none.

    Returns
    -------
    [metric, sample]; records of dtype `ROW`. `margin` is NaN where fewer than two classes have
    prototypes, `label_distance` is NaN and `label_rank` -1 where the label has none.
    """
    metrics, samples, classes = distance.shape
    rows = np.empty((metrics, samples), ROW)
    step = max(_FEWEST, _CACHE_BYTES // max(8 * metrics * classes, 1))
    for start in range(0, samples, step):
        part = slice(start, start + step)
        _predict(distance[:, part], codes, positions[part], rows[:, part])
    return rows


def _predict(
    distance: Float64Array,
    codes: npt.NDArray[Any],
    positions: npt.NDArray[np.int64],
    rows: npt.NDArray[Any],
) -> None:
    """Predict some samples, of which all that is worked out on the way stays in the cache.

    Where it can be with the samples side by side, class by class: along the few classes of one
    sample NumPy takes four times as long to compare and count, and to find the second by partition.
    """
    filled = np.where(np.isnan(distance), np.inf, distance)
    nearest = filled.argmin(axis=2)
    by_class = np.ascontiguousarray(filled.transpose(2, 0, 1))
    own = np.where(positions < 0, 0, positions)
    at = np.broadcast_to(own, nearest.shape)[..., None]
    label_distance = np.take_along_axis(distance, at, 2)[..., 0]
    ranked = (positions >= 0) & ~np.isnan(label_distance)
    ties = (by_class == label_distance) & (np.arange(len(by_class))[:, None, None] < own)
    rank = 1 + ((by_class < label_distance) | ties).sum(axis=0, dtype=np.int32)
    smallest = by_class.min(axis=0)
    np.put_along_axis(by_class, nearest[None], np.inf, 0)
    second = by_class.min(axis=0)
    possible, several = np.isfinite(smallest), np.isfinite(second)
    rows["predicted"] = np.where(possible, codes[nearest], -1)
    rows["distance"] = np.where(possible, smallest, np.nan)
    rows["margin"] = np.nan
    rows["margin"][several] = second[several] - smallest[several]
    rows["label_distance"] = np.where(ranked, label_distance, np.nan)
    rows["label_rank"] = np.where(ranked, rank, -1)


def _predict_from_arrays(
    distance: Float64Array, labels: npt.NDArray[Any], codes: npt.NDArray[Any]
) -> npt.NDArray[Any]:
    total = max(int(codes.max(initial=-1)), int(labels.max(initial=-1))) + 1
    selection = ClassSelection(tuple(map(str, range(total))), tuple(codes.tolist()))
    return predict_block(distance, codes, selection.positions(labels))


@checked
def predict(distances: xr.DataArray) -> xr.Dataset:
    """Predict the class of every image: that of the nearest prototype, lazily.

    Parameters
    ----------
    distances
        `distance` (metric, sample, class_name) with the coordinates `class_code`
        (class_name) and, where known, `label` (sample), as `distances` returns; dimensions in any
        order, and of one metric without that dimension.

    Returns
    -------
    Variables over (metric, sample), or (sample) of one metric: `predicted` (class code),
    `predicted_name`, `distance`, `margin`, and `label_distance` and `label_rank` where the images
    have labels. `margin` is the second smallest distance minus the smallest; a rank of 1 means
    nearest. Coordinates along `sample` stay.

    Raises
    ------
    SchemaError
        Where dimensions or dtype are not as above.

    Examples
    --------
    >>> import pipeline
    >>> store = pipeline.ingest("digits")
    >>> means = pipeline.prototypes(pipeline.class_sums(pipeline.open_images(store)))
    >>> found = pipeline.predict(pipeline.distances(pipeline.open_images(store, "test"), means))
    >>> (found["predicted"] == found["label"]).mean("sample").values.round(4).tolist()
    [0.8509, 0.8754]
    """
    if METRIC not in distances.dims and METRIC in distances.coords:
        return predict(distances.expand_dims(METRIC)).isel({METRIC: 0})
    distances = conform(distances, DISTANCE)
    if CLASS_CODE.name in distances.coords:
        distances = distances.sortby(CLASS_CODE.name)  # a tie goes to the first
    lazy = distances.reset_coords(drop=True).chunk({METRIC: -1, CLASS: -1})
    codes = np.arange(distances.sizes[CLASS], dtype=np.int32)
    if CLASS_CODE.name in distances.coords:
        codes = np.asarray(distances[CLASS_CODE.name].values, np.int32)
    kept = {name: c for name, c in distances.coords.items() if c.dims in ((SAMPLE,), (METRIC,))}
    if LABEL.name in kept:
        codes_in = codes_of(distances[LABEL.name]).variable.to_base_variable()
        kept[LABEL.name] = codes_in.chunk({SAMPLE: lazy.chunksizes[SAMPLE]})
        label = kept[LABEL.name].data
    else:
        chunks = (lazy.chunksizes[SAMPLE],)
        label = da.full(distances.sizes[SAMPLE], -1, chunks=chunks, dtype=np.int32)
    rows = da.blockwise(
        _predict_from_arrays, "ms", lazy.data, "msc", label, "s", codes=codes,
        concatenate=True, dtype=ROW, meta=np.empty((0, 0), ROW),
    )  # fmt: skip
    names = np.array([*(str(name) for name in distances[CLASS].values), ""])
    lookup = np.full(int(codes.max(initial=-1)) + 2, len(names) - 1)
    lookup[codes] = np.arange(len(codes))
    fields = [name for name in _MEANING if LABEL.name in kept or "label" not in name]
    variables: dict[str, Any] = {
        name: ((METRIC, SAMPLE), rows[name], {"long_name": _MEANING[name]}) for name in fields
    }
    # of the rows: dask loses what is both a variable and what another one is made of
    named = rows.map_blocks(lambda row: names[lookup[row["predicted"]]], dtype=names.dtype)
    variables["predicted_name"] = ((METRIC, SAMPLE), named, {"long_name": "name of predicted"})
    attributes = {k: v for k, v in distances.attrs.items() if k == NAMES}
    found = xr.Dataset(variables, kept, attributes)
    found["predicted"].attrs |= code_flags(attributes.get(NAMES))
    return found


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


def metrics_of(predictions: xr.Dataset) -> dict[str, Any]:
    """Return accuracies and confusion counts of what `predict` returns, by metric; it computes.

    Images do not count whose class has no prototype, or that have no label; classes that are
    neither labels nor predicted are left out.
    """
    needed = ("predicted", "label_rank")
    if not {*needed, LABEL.name} <= {*predictions.variables} or METRIC not in predictions.coords:
        known = ", ".join(f"'{name}'" for name in predictions.variables) or "none"
        raise SchemaError(
            f"the data set holds {known}, expected what predict(distances) returns for images with "
            "labels, 'predicted', 'label_rank', 'label' and 'metric' among it"
        )
    if METRIC not in predictions.dims:
        predictions = predictions.expand_dims(METRIC)
    found = predictions[[*needed]].transpose(METRIC, SAMPLE).compute()
    labels = np.asarray(found[LABEL.name].values)
    predicted, ranked = found["predicted"].values, found["label_rank"].values > 0
    codes = np.unique(np.concatenate([predicted.ravel(), labels[ranked.any(0)]]))
    codes = codes[codes >= 0]
    names = predictions.attrs.get(NAMES) or range(int(codes.max(initial=-1)) + 1)
    chosen = [str(names[code]) for code in codes.tolist()]
    result = {}
    for at, metric in enumerate(found[METRIC].values.tolist()):
        known_labels = np.where(ranked[at], np.searchsorted(codes, labels), -1)
        positions = np.where(predicted[at] >= 0, np.searchsorted(codes, predicted[at]), -1)
        counts = confusion_counts(known_labels, positions, len(codes))
        result[str(metric)] = summarise(counts, chosen)
    return result
