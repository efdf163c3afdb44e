"""`.pixsim` of each data set of xarray: the operations and plots of pixsim as its methods.

Registered by importing this module, and by whatever of `pipeline` opens or returns a data set. Each
method calls the public function of its name with the data set as first argument, and returns what
that returns: see there for dimensions, units and errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import xarray as xr

import pipeline
from pipeline.core.errors import SchemaError
from pipeline.core.schema import METRICS

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@xr.register_dataset_accessor("pixsim")  # type: ignore[no-untyped-call, unused-ignore]
class PixsimAccessor:
    """Operations and plots of pixsim on a data set.

    `class_sums`, `prototypes`, `distances`, `predict`, `neighbours`, `pairs_within`, `plot_samples`
    and `plot_class_counts` are of images, as `pipeline.open_images` returns them, or any data set
    with `image` and `label` over `sample`, `y`, `x` and perhaps `channel`; `vote` and `knn_graph`
    of what `neighbours` returns; `plot_prototypes` of prototypes; `plot_confusion` and
    `plot_accuracy` of what `predict` returns.

    Examples
    --------
    >>> import numpy as np
    >>> pixels = np.array([[[0, 2]], [[4, 6]], [[9, 9]]], np.uint8)
    >>> variables = {"image": (("sample", "y", "x"), pixels), "label": ("sample", [0, 0, 1])}
    >>> ds = xr.Dataset(variables, attrs={"class_names": ["dark", "light"]})
    >>> ds.pixsim.predict(ds.pixsim.prototypes()).predicted_name.sel(metric="l1").values.tolist()
    ['dark', 'dark', 'light']
    """

    def __init__(self, dataset: xr.Dataset) -> None:
        self._dataset = dataset

    # of images ------------------------------------------------------------------------------------

    def class_sums(self, classes: Sequence[str] | None = None, device: str = "auto") -> xr.Dataset:
        """Sum the images of each class, lazily: `pipeline.class_sums`."""
        return pipeline.class_sums(self._dataset, classes, device)

    def prototypes(
        self,
        classes: Sequence[str] | None = None,
        kind: Literal["mean", "median"] = "mean",
        device: str = "auto",
        leave_one_out: bool = False,
    ) -> xr.Dataset:
        """Make the prototype of each class, lazily.

        Parameters
        ----------
        classes
            Names of classes; default: all.
        kind
            `mean`, as `pipeline.prototypes(pipeline.class_sums(...))`, or `median`, as
            `pipeline.class_medians`.
        device
            `auto`, `cpu`, `cuda` or `torch:cpu`.
        leave_one_out
            Whether `distances` will measure these images without themselves; of means nothing more
            is needed for it.

        Returns
        -------
        `prototype`, `numerator` and `std` (class_name, y, x[, channel]) and `denominator`
        (class_name), as `pipeline.prototypes` returns.

        Raises
        ------
        SchemaError
            Where `kind` is another one, or the data set is not as `pipeline.class_sums` takes it.
        """
        if kind == "median":
            return pipeline.class_medians(self._dataset, classes, device, leave_one_out)
        if kind != "mean":
            raise SchemaError(f"kind is {kind!r}, expected 'mean' or 'median'")
        return pipeline.prototypes(self.class_sums(classes, device))

    def distances(
        self,
        prototypes: xr.Dataset,
        metrics: Sequence[str] = METRICS,
        device: str = "auto",
        leave_one_out: bool = False,
    ) -> xr.DataArray:
        """Measure every image against every prototype, lazily: `pipeline.distances`."""
        return pipeline.distances(self._dataset, prototypes, metrics, device, leave_one_out)

    def predict(
        self,
        prototypes: xr.Dataset,
        metrics: Sequence[str] = METRICS,
        device: str = "auto",
        leave_one_out: bool = False,
    ) -> xr.Dataset:
        """Predict the class of every image: `pipeline.predict` of its distances, lazily."""
        return pipeline.predict(self.distances(prototypes, metrics, device, leave_one_out))

    def neighbours(
        self,
        among: xr.Dataset | None = None,
        k: int = 10,
        metrics: Sequence[str] = METRICS,
        device: str = "auto",
    ) -> xr.Dataset:
        """Find the k nearest images of each image, lazily: `pipeline.neighbours`."""
        return pipeline.neighbours(self._dataset, among, k, metrics, device)

    def pairs_within(
        self,
        among: xr.Dataset | None = None,
        *,
        radius: float,
        metric: str = "l1",
        device: str = "auto",
    ) -> xr.Dataset:
        """Find all pairs of images up to a distance: `pipeline.pairs_within`; it computes."""
        return pipeline.pairs_within(
            self._dataset, among, radius=radius, metric=metric, device=device
        )

    # of neighbours --------------------------------------------------------------------------------

    def vote(self, k: int) -> xr.DataArray:
        """Predict the class of each image by the votes of its k nearest: `pipeline.vote`."""
        return pipeline.vote(self._dataset, k)

    def knn_graph(self, metric: str = "l1") -> Any:
        """Make a sparse graph of the nearest images: `pipeline.knn_graph`; it computes."""
        return pipeline.knn_graph(self._dataset, metric)

    # plots ----------------------------------------------------------------------------------------

    def plot_samples(
        self, count: int = 20, *, columns: int | None = None, ax: Axes | None = None
    ) -> Axes:
        """Draw the first images with the names of their classes: `pipeline.plots.samples`."""
        return _draw("samples", self._dataset, count, columns=columns, ax=ax)

    def plot_class_counts(self, *, ax: Axes | None = None) -> Axes:
        """Draw how many images each class has: `pipeline.plots.class_counts`."""
        return _draw("class_counts", {"images": self._dataset}, ax=ax)

    def plot_prototypes(
        self, what: Literal["prototype", "std"] = "prototype", *, ax: Axes | None = None
    ) -> Axes:
        """Draw the prototype of each class, or its deviation: `pipeline.plots.prototypes`."""
        return _draw("prototypes", self._dataset, what, ax=ax)

    def plot_confusion(self, metric: str = "l1", *, ax: Axes | None = None) -> Axes:
        """Draw which classes are predicted for which: `pipeline.plots.confusion`."""
        return _draw("confusion", self._dataset, metric, ax=ax)

    def plot_accuracy(self, metric: str | None = None, *, ax: Axes | None = None) -> Axes:
        """Draw the accuracy of each class: `pipeline.plots.accuracy`."""
        return _draw("accuracy", self._dataset, metric=metric, ax=ax)


def _draw(name: str, *given: Any, **settings: Any) -> Axes:
    axes: Axes = getattr(pipeline.plots, name)(*given, **settings)
    return axes
