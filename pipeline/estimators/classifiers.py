"""scikit-learn's interface: the nearest class prototype, and the nearest images, as classifiers.

Both count in integers by the same kernels as `pipeline.distances` and `pipeline.neighbours`, so
they give the same bits for any order of batches, chunks and devices.
"""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
from sklearn.utils.validation import check_is_fitted

from pipeline.core.errors import ConfigError, SchemaError, describe
from pipeline.core.exact import (
    Float64Array,
    Int64Array,
    check_count_bound,
    check_sum_bound,
    finish_neighbours,
)
from pipeline.estimators.arithmetic import (
    Batch,
    class_sums_of,
    correct_lists,
    distance_scores,
    distance_shares,
    histograms_of,
    joined,
    measure,
    medians_of,
    nearest_classes,
    prepare_groups,
    repeat_neighbours,
    vote_shares,
    votes_of,
)
from pipeline.estimators.base import PixelClassifier
from pipeline.estimators.pixels import Queries
from pipeline.ops.distance_blocks import Reference, make_reference
from pipeline.ops.distances import check_metrics
from pipeline.ops.medians import first_bytes, median_numerators
from pipeline.ops.neighbours import empty_lists, search_block


class NearestPrototypeClassifier(PixelClassifier):
    """Classify images by the nearest class prototype: the mean or the median image of a class.

    Parameters
    ----------
    prototypes
        `mean` or `median`.
    metric
        `l1` or `l2`: the mean absolute difference, or the root of the mean squared difference.
    device
        `auto`, `cpu`, `cuda` or `torch:cpu`; the same bits on each.
    value_range
        The lowest and the highest pixel value there will be. Default: of uint8 and uint16 those of
        the type, of other images those of the first that are fitted.
    n_jobs
        Threads; as in scikit-learn.

    Attributes
    ----------
    classes_ : [class]
        The labels, sorted. Ties go to the first.
    class_count_ : [class] int64
        How many images, or weights, of each class were fitted.
    prototypes_ : [class, ...] float64
        The prototypes, in the values of `X`; NaN for a class without images.
    pixel_sum_ : [class, value] int64
        For means; what the images add up to, as integers.
    pixel_histogram_ : [class, value, 256] uint32
        For medians of 8-bit images; how often each value occurs.
    image_shape_, n_features_in_, feature_names_in_
        The shape of an image, the number of its values, and, of a table, their names.
    pixel_dtype_, offset_, scale_
        `uint8` or `uint16`, as images are kept: a value is `offset_ + scale_ * kept`.
    value_range_, full_scale_
        What can be kept, and the difference of values that counts as a distance of 1.
    rounding_error_
        The most that a value within the range is changed; 0.0 for integers.

    Notes
    -----
    Images of integers are exact. Floats are rounded once, to steps of `scale_` over the range of
    the images fitted, whole numbers to themselves; all that follows is exact for the rounded
    images. Images to predict may lie outside, and are rounded to the same steps.

    With distances d of an image to each class, `predict_proba` is `(1 / d**2) / sum(1 / d**2)`;
    where one is 0 those that are 0 share 1. `decision_function` is `-d`, and of two classes
    `(d[0] - d[1]) / (d[0] + d[1])`. Shares are no calibrated probabilities.

    Of a dask array, sums and histograms are added up in a tree. For medians of 16-bit images, and
    so of floats, the images are kept for `partial_fit`, since no smaller counts give the median;
    but `fit` with a dask array keeps medians only, and `partial_fit` is refused after it.

    Examples
    --------
    >>> import numpy as np
    >>> images = np.array([[[0, 10]], [[0, 30]], [[200, 200]]], np.uint8)
    >>> model = NearestPrototypeClassifier().fit(images, ["dark", "dark", "light"])
    >>> model.prototypes_[0]
    array([[ 0., 20.]])
    >>> model.predict(np.array([[[90, 100]], [[110, 120]]]))
    array(['dark', 'light'], dtype='<U5')
    """

    pixel_sum_: Int64Array
    pixel_histogram_: npt.NDArray[np.uint32]

    def __init__(
        self,
        prototypes: str = "mean",
        metric: str = "l1",
        device: str = "auto",
        *,
        value_range: tuple[float, float] | None = None,
        n_jobs: int | None = None,
    ) -> None:
        self.prototypes = prototypes
        self.metric = metric
        self.device = device
        self.value_range = value_range
        self.n_jobs = n_jobs

    @property
    def prototypes_(self) -> Float64Array:
        """The prototype of each class, [class, ...], in the values fitted."""
        numerators, denominators, _ = self._prepared()
        over = np.where(denominators > 0, denominators, np.nan)[:, None]
        values = self.offset_ + self.scale_ * (numerators / over)
        return np.asarray(values.reshape(-1, *self.image_shape_))

    def distances(self, X: Any) -> Any:
        """Return the distance of each image to each prototype, [sample, class] float64.

        As `pipeline.distances` gives it, in units of full scale: times `full_scale_` it is in the
        values of `X`. NaN for a class without images.
        """
        return self._apply("_measure", X, np.float64, (self._count_of_classes,))

    def _check_more(self) -> None:
        if self.prototypes not in ("mean", "median"):
            raise ConfigError(
                f"prototypes {describe(self.prototypes)}, expected 'mean' or 'median'"
            )

    def _add(
        self, batch: Batch, counts: Int64Array, numbers: tuple[Int64Array, int], last: bool
    ) -> None:
        del numbers
        on = len(counts), self.device, self._threads
        most = int((self.class_count_ + counts).max())
        first = not self.class_count_.any()
        if self.prototypes == "mean" if first else hasattr(self, "pixel_sum_"):
            check_sum_bound(most, self.pixel_dtype_)
            self.pixel_sum_ = class_sums_of(batch, *on) + (0 if first else self.pixel_sum_)
            return
        check_count_bound(most)
        if self.pixel_dtype_ == "uint8":
            table = histograms_of(batch, *on)
            self.pixel_histogram_ = table if first else table + self.pixel_histogram_
        elif last and isinstance(batch[0], da.Array):
            self._fit_medians = medians_of([batch], *on)
        elif hasattr(self, "_fit_medians"):
            raise SchemaError(
                "partial_fit after fit with a dask array of 16-bit images, whose medians alone "
                "were kept; begin with partial_fit, or use prototypes='mean'"
            )
        else:
            self._keep(*batch)

    def _snapshot(self) -> Any:
        numerators, *_ = self._prepared()
        other = super()._snapshot()
        if not hasattr(self, "pixel_sum_"):
            other._fit_medians = numerators
            for name in {"pixel_histogram_", "_fit_batches"} & {*vars(other)}:
                delattr(other, name)
        return other

    def _prepared(self) -> tuple[Int64Array, Int64Array, Reference]:
        """Return numerators [class, value], denominators [class], and both for the kernels."""
        check_is_fitted(self)
        return self._make_once(("prototypes", self.device), self._prepare)  # type: ignore[no-any-return]

    def _prepare(self) -> tuple[Int64Array, Int64Array, Reference]:
        denominators = 2 * (self.class_count_ > 0).astype(np.int64)
        if hasattr(self, "pixel_sum_"):
            numerators, denominators = self.pixel_sum_, self.class_count_
        elif hasattr(self, "_fit_medians"):
            numerators = self._fit_medians
        elif hasattr(self, "pixel_histogram_"):
            numerators = median_numerators(first_bytes(self.pixel_histogram_)[0])
        else:
            on = len(self.classes_), self.device, self._threads
            numerators = medians_of(self._fit_batches, *on)
        dtype, full_scale = self.pixel_dtype_, self._encoding.full_scale
        reference = make_reference(numerators, denominators, dtype, full_scale, self.device)
        return numerators, denominators, reference

    def _make_ready(self) -> None:
        self._prepared()

    def _measure(self, queries: Queries) -> Float64Array:
        check_metrics([self.metric])
        numerators, _, reference = self._prepared()
        return measure(queries, reference, numerators, self.metric, self._threads)

    def _predict(self, queries: Queries) -> npt.NDArray[Any]:
        check_metrics([self.metric])
        numerators, _, reference = self._prepared()
        found = nearest_classes(queries, reference, numerators, self.metric, self._threads)
        return np.asarray(self.classes_[found])

    def _shares(self, queries: Queries) -> Float64Array:
        return distance_shares(self._measure(queries))

    def _decide(self, queries: Queries) -> Float64Array:
        return distance_scores(self._measure(queries))


class NearestImagesClassifier(PixelClassifier):
    """Classify images by the votes of the k nearest images fitted.

    Parameters
    ----------
    k
        How many vote.
    metric, device, value_range, n_jobs
        As for `NearestPrototypeClassifier`.

    Attributes
    ----------
    n_samples_fit_ : int
        How many samples were fitted; `kneighbors` numbers them in the order in which they were.
    classes_, class_count_, image_shape_, n_features_in_, feature_names_in_, pixel_dtype_, ...
        As for `NearestPrototypeClassifier`.

    Notes
    -----
    The search is exact and gives the same bits as `pipeline.neighbours`: of equal distances the
    sample fitted first comes first. Between equal votes that class is predicted whose image is the
    nearest. Floats are rounded as `NearestPrototypeClassifier` says.

    `predict_proba` is the share of the votes; where several classes have most, that predicted is
    given half a vote more. `decision_function` is the same, and of two classes the share of the
    second less that of the first. All images fitted are kept, in 8 or 16 bits a value.

    Examples
    --------
    >>> import numpy as np
    >>> images = np.array([[[0, 10]], [[0, 30]], [[200, 200]]], np.uint8)
    >>> model = NearestImagesClassifier(k=1).fit(images, ["dark", "dark", "light"])
    >>> model.predict(np.array([[[90, 100]], [[150, 160]]]))
    array(['dark', 'light'], dtype='<U5')
    >>> model.kneighbors(images[:1], 2, return_distance=False)
    array([[0, 1]])
    """

    def __init__(
        self,
        k: int = 5,
        metric: str = "l1",
        device: str = "auto",
        *,
        value_range: tuple[float, float] | None = None,
        n_jobs: int | None = None,
    ) -> None:
        self.k = k
        self.metric = metric
        self.device = device
        self.value_range = value_range
        self.n_jobs = n_jobs

    def kneighbors(
        self, X: Any = None, n_neighbors: int | None = None, return_distance: bool = True
    ) -> Any:
        """Find the nearest images fitted, as scikit-learn's `kneighbors` does.

        Parameters
        ----------
        X
            [sample, ...]; as for `predict`. Default: the images fitted, those of weight 0 left
            out, each among the others.
        n_neighbors
            How many; default: `k`.
        return_distance
            Whether distances are wanted.

        Returns
        -------
        Distances [sample, n_neighbors] float64, where wanted, and numbers of the samples fitted,
        [sample, n_neighbors] int64, nearest first. Distances are those of `pipeline.neighbours`,
        in units of full scale: `distance * full_scale_ * n_features_in_` is the Manhattan distance
        in the values of `X`, `distance * full_scale_ * n_features_in_**0.5` the Euclidean one. A
        sample of weight 3 is listed three times.

        Raises
        ------
        SchemaError
            Where there are not so many.
        """
        check_is_fitted(self)
        k = self._check_k(self.k if n_neighbors is None else n_neighbors)
        if X is None:
            images, numbers, *_ = self._fitted()
            nothing = np.zeros((0, images.shape[1]), np.int64)
            queries = Queries(images, np.zeros(0, np.int64), nothing)
            lists = self._lists(queries, k, numbers)
        else:
            lists = self._apply("_lists", X, np.int64, (2, k), k=k)
        numbers = lists[:, 1]
        if not return_distance:
            return numbers
        scale = self.metric, self.n_features_in_, self._encoding.full_scale
        if isinstance(lists, da.Array):
            return lists[:, 0].map_blocks(finish_neighbours, *scale, dtype=np.float64), numbers
        return finish_neighbours(lists[:, 0], *scale), numbers

    def _check_more(self) -> None:
        self._check_k(self.k)

    def _check_k(self, k: Any) -> int:
        if not isinstance(k, int | np.integer) or isinstance(k, bool) or k < 1:
            raise SchemaError(f"k is {describe(k)}, expected a number of neighbours, 1 or more")
        return int(k)

    def _add(
        self, batch: Batch, counts: Int64Array, numbers: tuple[Int64Array, int], last: bool
    ) -> None:
        del counts, last
        images, positions, weights = batch
        (kept, count), before = numbers, getattr(self, "n_samples_fit_", 0)
        each = np.ones(len(kept), np.int64) if weights is None else weights
        self._keep(images, before + kept, positions, each)
        self.n_samples_fit_ = before + count

    def _fitted(self) -> tuple[Any, Int64Array, Int64Array, Int64Array, int]:
        """Return the images fitted, their numbers; by number positions and weights; their sum."""
        return self._make_once("images", self._join)  # type: ignore[no-any-return]

    def _join(self) -> tuple[Any, Int64Array, Int64Array, Int64Array, int]:
        parts = zip(*self._fit_batches, strict=True)
        images, numbers, positions, weights = map(joined, parts)
        of_number = np.zeros((2, self.n_samples_fit_), np.int64)
        of_number[:, numbers] = positions, weights
        return images, numbers, *of_number, int(weights.sum())

    def _make_ready(self) -> Any:
        return self._make_once(("groups", self.metric, self.device), self._groups)

    def _groups(self) -> list[Any]:
        """Return the images fitted as the kernels search them."""
        images, numbers, *_ = self._fitted()
        shape = self.image_shape_ if len(self.image_shape_) in (2, 3) else (1, images.shape[1])
        return prepare_groups(images, numbers, shape, self.metric, self.device, self._threads)

    def _lists(self, queries: Queries, k: int, own: Int64Array | None = None) -> Int64Array:
        """Return the nearest, [query, 2, k]: integer distances and numbers.

        `own` is the sample that each query is, and which counts once less; default: none is.
        """
        check_metrics([self.metric])
        images, numbers, _, weights, total = self._fitted()
        skip = np.full(len(queries.images), -1) if own is None else own
        among = total - (own is not None)
        if k > among:
            raise SchemaError(
                f"k is {k}, expected at most the number of images to search, {among}; fit more"
            )
        groups = self._make_ready()
        repeated = total != len(numbers)
        left_out = np.full(len(skip), -1) if repeated else skip
        lists = empty_lists(len(skip), k + repeated)
        for group in groups:
            lists = search_block(queries.images, group, lists, left_out, self.device, self._threads)
        correct_lists(lists, queries, images, numbers, self.metric)
        if repeated:
            lists = repeat_neighbours(lists, weights, skip, k)
        return np.moveaxis(lists, 0, 1)

    def _votes(self, queries: Queries) -> tuple[Any, Any]:
        """Return the positions of the classes of neighbours, [query, k], and of those predicted."""
        numbers = self._lists(queries, self._check_k(self.k))[:, 1]
        positions = self._fitted()[2][numbers].astype(np.int32)
        return positions, votes_of(positions)

    def _predict(self, queries: Queries) -> npt.NDArray[Any]:
        return np.asarray(self.classes_[self._votes(queries)[1]])

    def _shares(self, queries: Queries) -> Float64Array:
        return vote_shares(*self._votes(queries), len(self.classes_))

    def _decide(self, queries: Queries) -> Float64Array:
        shares = self._shares(queries)
        return shares[:, 1] - shares[:, 0] if len(self.classes_) == 2 else shares
