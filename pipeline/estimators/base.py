"""What scikit-learn's estimators have in common: the door for images, labels and weights.

What `fit` keeps are integers, in attributes of plain NumPy arrays. What the kernels read is made of
them when it is first needed; it belongs to an estimator without being one of its attributes, so it
is neither pickled nor copied.
"""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import dask
import dask.array as da
import joblib
import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import accuracy_score
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d

from pipeline.core.errors import LabelError, SchemaError, ShapeError, describe
from pipeline.core.exact import Int64Array, choose_arithmetic
from pipeline.core.threads import OwnLock
from pipeline.estimators.arithmetic import Batch
from pipeline.estimators.pixels import (
    Encoding,
    as_labels,
    as_rows,
    check_image_shape,
    choose_encoding,
    whole_weights,
)
from pipeline.kernels import backends
from pipeline.ops.distances import check_metrics

try:
    from sklearn.utils.validation import validate_data
except ImportError:  # before scikit-learn 1.6 it was a method

    def validate_data(estimator: Any, X: Any, y: Any = "no_validation", **more: Any) -> Any:
        """Check arrays and names of features."""
        return estimator._validate_data(X, y, **more)


_made: weakref.WeakKeyDictionary[Any, dict[Any, Any]] = weakref.WeakKeyDictionary()
_lock = OwnLock()


class PixelClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier of images: a subclass says what it counts, and how that decides."""

    metric: str
    device: str
    n_jobs: int | None
    value_range: tuple[float, float] | None
    classes_: Any
    class_count_: Int64Array
    image_shape_: tuple[int, ...]
    _fit_dims: tuple[str, ...] | None
    _fit_encoding: tuple[Any, ...]
    _fit_batches: list[Any]

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Fit to labelled images; what was fitted before is forgotten.

        Parameters
        ----------
        X
            [sample, ...]; images of any shape, or rows of values: an array of NumPy or dask, a
            tensor of torch, a `DataArray` with the dimension `sample`, a table.
        y
            [sample]; labels.
        sample_weight
            [sample]; whole numbers, 0 or more. A sample of weight 3 counts exactly as three.

        Returns
        -------
        self

        Raises
        ------
        SchemaError, ShapeError
            Where images, weights or parameters are not as above; both are `ValueError`.
        """
        self._begin(None)
        with self._all_or_nothing():
            self._take(X, y, sample_weight, first=True, last=True)
            self._make_ready()
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Any:
        """Fit to one batch more: the result is that of `fit` with all batches, in any order.

        Parameters
        ----------
        X, y, sample_weight
            As for `fit`.
        classes
            All labels there will be; needed in the first call.

        Returns
        -------
        self

        Raises
        ------
        LabelError
            Where a label is none of the classes; a `ValueError`.
        SchemaError
            Where a value is outside the range that the first batch fixed, see `value_range`.
        """
        first = not hasattr(self, "classes_")
        if first and classes is None:
            raise LabelError(
                "classes is None, expected all labels there will be, in the first call of "
                "partial_fit"
            )
        if classes is not None:
            classes = np.unique(as_labels(classes))
            if not first and not np.array_equal(classes, self.classes_):
                raise LabelError(
                    f"classes {describe(classes.tolist())}, expected those of the first call, "
                    f"{describe(self.classes_.tolist())}"
                )
        if not first:
            self._take(X, y, sample_weight, first=False, last=False)
            return self
        self._begin(classes)
        with self._all_or_nothing():
            self._take(X, y, sample_weight, first=True, last=False)
        return self

    def predict(self, X: Any) -> Any:
        """Predict the class of each image.

        Parameters
        ----------
        X
            [sample, ...]; as for `fit`. Values outside the range fitted are measured exactly too.

        Returns
        -------
        [sample]; of `classes_`. Of a dask array, or a `DataArray` of one, a dask array: nothing is
        read before it is computed. So do all methods that take images alone.
        """
        return self._apply("_predict", X, self._dtype_of_classes)

    def predict_proba(self, X: Any) -> Any:
        """Return a share for each class, [sample, class]: they add up to 1; see the class."""
        return self._apply("_shares", X, np.float64, (self._count_of_classes,))

    def decision_function(self, X: Any) -> Any:
        """Return a score for each class, [sample, class]; of two classes [sample]; see the class.

        The highest is the class predicted; of two, the second where the score is positive.
        """
        count = self._count_of_classes
        return self._apply("_decide", X, np.float64, () if count == 2 else (count,))

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the accuracy of `predict(X)` for labels `y`."""
        predicted = np.asarray(self.predict(X))
        weights = None if sample_weight is None else as_labels(sample_weight)
        return float(accuracy_score(as_labels(y), predicted, sample_weight=weights))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags

    # fitting -------------------------------------------------------------------------------------

    def _begin(self, classes: Any) -> None:
        """Check parameters and forget what was fitted."""
        check_metrics([self.metric])
        backends.load(self.device)
        self._check_more()
        self._forget()
        self._fit_classes = classes

    def _forget(self) -> None:
        for name in [name for name in vars(self) if name.endswith("_") or name.startswith("_fit_")]:
            delattr(self, name)
        _made.pop(self, None)

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Leave nothing fitted where that fails."""
        try:
            yield
        except BaseException:
            self._forget()
            raise

    def _check_more(self) -> None:
        raise NotImplementedError

    def _take(self, X: Any, y: Any, sample_weight: Any, first: bool, last: bool) -> None:
        values, labels = self._read(X, y, first)
        count = len(labels)
        weights = whole_weights(sample_weight, count)
        kept = np.arange(count)
        if weights is not None and not weights.all():  # as if they were not there
            kept = np.flatnonzero(weights)
            values, labels, weights = values[kept], labels[kept], weights[kept]
        if first:
            encoding = choose_encoding(values, self.value_range)
            classes = np.unique(labels) if self._fit_classes is None else self._fit_classes
            choose_arithmetic(1, values.shape[1], encoding.dtype)
        else:
            encoding, classes = self._encoding, self.classes_
        positions = np.searchsorted(classes, labels).clip(max=len(classes) - 1)
        wrong = classes[positions] != labels
        if wrong.any():
            raise LabelError(
                f"label {describe(labels[wrong][0])}, expected one of the classes "
                f"{describe(classes.tolist())}"
            )
        if isinstance(values, da.Array):
            images = values.map_blocks(encoding.encode, dtype=encoding.dtype)
        else:
            images = encoding.encode(values)
        counts = np.zeros(len(classes), np.int64)
        np.add.at(counts, positions, 1 if weights is None else weights)
        if first:
            self.classes_, self.class_count_ = classes, np.zeros_like(counts)
            self._set_encoding(encoding)
        self._add((images, positions, weights), counts, (kept, count), last)
        self.class_count_ = self.class_count_ + counts
        _made.pop(self, None)

    def _add(
        self, batch: Batch, counts: Int64Array, numbers: tuple[Int64Array, int], last: bool
    ) -> None:
        """Add a batch; `numbers` are those of its samples, and how many there were."""
        raise NotImplementedError

    def _make_ready(self) -> Any:
        """Make what the kernels read, so that what cannot be is refused when fitting."""
        raise NotImplementedError

    def _snapshot(self) -> Any:
        """Return an estimator that predicts the same whatever is fitted later."""
        other = copy.copy(self)
        _made[other] = dict(_made.get(self, {}))
        return other

    def _keep(self, images: Any, *more: Any) -> None:
        """Keep a batch, whatever is written over its images later."""
        own = images.compute() if isinstance(images, da.Array) else images.copy()
        self._fit_batches = [*getattr(self, "_fit_batches", []), (own, *more)]

    def _read(self, X: Any, y: Any, first: bool) -> tuple[Any, Any]:
        """Return rows of values, NumPy or dask, and labels."""
        rows = as_rows(X, None if first else self._fit_dims)
        if y is None:
            raise SchemaError(
                f"{type(self).__name__} requires y to be passed, but the target y is None"
            )
        labels = as_labels(y)
        if isinstance(rows.values, da.Array):
            values = rows.values
            if math.isnan(values.shape[0]):
                values.compute_chunk_sizes()
            labels = column_or_1d(labels, warn=True)
            if len(labels) != values.shape[0]:
                raise ShapeError(
                    f"{len(labels)} labels, expected {values.shape[0]}, as many as images"
                )
            self._check_width(values.shape[1], first)
        else:
            values, labels = validate_data(self, rows.values, labels, reset=first)
        check_classification_targets(labels)
        shape = values.shape[1:] if rows.shape is None else rows.shape
        if first:
            self.image_shape_, self._fit_dims = tuple(shape), rows.dims
        else:
            check_image_shape(shape, self.image_shape_)
        return values, labels

    def _check_width(self, width: int, first: bool) -> None:
        if first:
            self.n_features_in_ = width
        elif width != self.n_features_in_:
            raise ShapeError(
                f"X has {width} features, but {type(self).__name__} is expecting "
                f"{self.n_features_in_} features as input"
            )

    def _set_encoding(self, encoding: Encoding) -> None:
        self._fit_encoding = tuple(encoding)
        self.pixel_dtype_ = encoding.dtype
        self.value_range_ = encoding.lowest, encoding.highest
        self.offset_, self.scale_ = encoding.lowest, encoding.scale
        self.full_scale_ = encoding.scale * encoding.full_scale
        self.rounding_error_ = encoding.packing.rounding_error if encoding.packed else 0.0

    @property
    def _encoding(self) -> Encoding:
        return Encoding(*self._fit_encoding)

    @property
    def _threads(self) -> int:
        return int(joblib.effective_n_jobs(self.n_jobs))

    # predicting ----------------------------------------------------------------------------------

    @property
    def _dtype_of_classes(self) -> Any:
        check_is_fitted(self)
        return self.classes_.dtype

    @property
    def _count_of_classes(self) -> int:
        check_is_fitted(self)
        return len(self.classes_)

    def _apply(
        self, name: str, X: Any, dtype: Any, columns: tuple[int, ...] = (), **more: Any
    ) -> Any:
        """Call a method with `Queries`, now or, of a dask array, for each of its chunks later."""
        check_is_fitted(self)
        rows = as_rows(X, self._fit_dims)
        if rows.shape is not None:
            check_image_shape(rows.shape, self.image_shape_)
        if not isinstance(rows.values, da.Array):
            values = validate_data(self, rows.values, reset=False)
            return getattr(self, name)(self._encoding.encode_queries(values), **more)
        self._check_width(rows.values.shape[1], first=False)
        now = dask.delayed(self._snapshot(), pure=False)  # a later fit changes nothing
        shapes: dict[str, Any] = {"chunks": (rows.values.chunks[0], *((n,) for n in columns))}
        if not columns:
            shapes["drop_axis"] = 1
        elif len(columns) > 1:
            shapes["new_axis"] = list(range(2, 1 + len(columns)))
        meta = np.empty((0,) * (1 + len(columns)), dtype)
        shapes |= {"dtype": dtype, "meta": meta, "token": name.strip("_")}
        return rows.values.map_blocks(_call, now, name, more, **shapes)

    def _make_once(self, key: Any, make: Callable[[], Any]) -> Any:
        """Return what follows from what was fitted, made once; it is in no pickle."""
        with _lock.held():
            mine = _made.setdefault(self, {})
            if key not in mine:
                mine[key] = make()
            return mine[key]


def _call(values: Any, estimator: PixelClassifier, name: str, more: dict[str, Any]) -> Any:
    return getattr(estimator, name)(estimator._encoding.encode_queries(values), **more)
