"""The distance of every image to every prototype: l1 and l2 in one read of each image.

For an image x of D pixels, a prototype P/n and full scale F:

- l1 is the mean absolute difference, `sum |x - P/n| / (D*F)`;
- l2 is the root of the mean squared difference, `sqrt(sum (x - P/n)**2 / (D*F**2))`.

Both lie between 0 and 1. They are the `F.l1_loss` and `F.mse_loss(...).sqrt()` of torch on
images scaled to 0..1. The kernels count integers, `exact` divides. Images that prototypes were made
of can be measured from their own class without them, see `leave_one_out`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.core.arguments import checked
from pipeline.core.deferred import da, xr
from pipeline.core.errors import SchemaError
from pipeline.core.exact import Float64Array, Int64Array, check_square_bound
from pipeline.core.schema import (
    CLASS,
    CLASS_CODE,
    DENOMINATOR,
    DISTANCE,
    IMAGE,
    LABEL,
    METRIC,
    METRICS,
    NUMERATOR,
    SAMPLE,
    pick,
)
from pipeline.ops.distance_blocks import distances_block, make_reference
from pipeline.ops.labelled import check_alike, full_scale_of, lazy_images, sample_coordinates
from pipeline.ops.leave_one_out import denominators_without_one, make_others, median_arrays


def _distances_from_arrays(
    images: npt.NDArray[Any],
    numerators: Int64Array,
    denominators: Int64Array,
    *left_out: npt.NDArray[Any],
    metrics: Sequence[str],
    device: str,
    full_scale: int,
) -> Float64Array:
    """Measure one chunk; `left_out` are own classes, and the arguments of `make_others`."""
    own, others = None, None
    if left_out:
        own, without, *medians = left_out
        if medians:
            check_square_bound(numerators[:1].size, images.dtype)
        others = make_others(without, medians)
    dtype = str(images.dtype)
    reference = make_reference(numerators, denominators, dtype, full_scale, device, others)
    return distances_block(images, reference, metrics, own=own)


def check_metrics(metrics: Sequence[str]) -> tuple[str, ...]:
    """Return the metrics as a tuple, or raise `SchemaError` for one that is not known."""
    for metric in metrics:
        if metric not in METRICS:
            raise SchemaError(f"metric {metric!r}, expected {' or '.join(METRICS)}")
    return tuple(metrics)


@checked
def distances(
    images: xr.Dataset,
    prototypes: xr.Dataset,
    metrics: Sequence[str] = METRICS,
    device: str = "auto",
    leave_one_out: bool = False,
) -> xr.DataArray:
    """Measure every image against every prototype, lazily.

    Parameters
    ----------
    images
        `image` (sample, y, x[, channel]) and, where there are labels, `label` (sample), as
        `class_sums` takes them.
    prototypes
        `numerator` and `denominator`, as `prototypes` returns, dimensions in any order.
    metrics, device
        `l1`, `l2` or both; `auto`, `cpu`, `cuda` or `torch:cpu`, the same bits on each.
    leave_one_out
        Whether each image is measured from its own class without it; `images` must be those that
        the prototypes were made of, and these means, or medians that `class_medians` made for it.

    Returns
    -------
    `distance` (metric, sample, class_name) float64 in units of full scale, 0 to 1, with the
    coordinates `label`, `sample` and whatever else the images have along `sample`. A class without
    images is at NaN.

    Raises
    ------
    ShapeError
        Where images and prototypes differ in shape, pixel type or full scale.
    SchemaError
        Where dimensions, dtypes or metrics are not as above.

    Examples
    --------
    >>> import pipeline
    >>> store = pipeline.ingest("digits")
    >>> means = pipeline.prototypes(pipeline.class_sums(pipeline.open_images(store)))
    >>> found = pipeline.distances(pipeline.open_images(store, "test"), means)
    >>> found.sel(metric="l1", class_name="8").values[:3].round(3).tolist()
    [0.172, 0.161, 0.238]
    """
    names = check_metrics(metrics)
    lazy = lazy_images(images, labels=leave_one_out)
    ordered = prototypes.assign({v.name: pick(prototypes, v) for v in (NUMERATOR, DENOMINATOR)})
    image, made, full_scale = lazy[IMAGE.name], prototypes.attrs, full_scale_of(lazy)
    made_of = ordered[NUMERATOR.name].shape[1:], made.get("pixel_dtype", image.dtype)
    check_alike(lazy, *made_of, made.get("full_scale", full_scale), "prototypes")
    one_chunk = dict.fromkeys(ordered[NUMERATOR.name].dims, -1)
    fractions = ordered[[NUMERATOR.name, DENOMINATOR.name]].chunk(one_chunk)
    axes = "yxk"[: image.ndim - 1]
    values = da.blockwise(
        _distances_from_arrays, "msc", image.data, "s" + axes,
        fractions[NUMERATOR.name].data, "c" + axes, fractions[DENOMINATOR.name].data, "c",
        *(_left_out(lazy, prototypes, axes) if leave_one_out else ()), metrics=names,
        device=device, full_scale=full_scale, concatenate=True,
        new_axes={"m": len(names)}, dtype=np.float64, meta=np.empty((0, 0, 0), np.float64),
    )  # fmt: skip
    coordinates: dict[str, Any] = {METRIC: list(names), CLASS: prototypes[CLASS]}
    coordinates |= sample_coordinates(lazy)
    if CLASS_CODE.name in prototypes.variables:
        coordinates[CLASS_CODE.name] = prototypes[CLASS_CODE.name].variable
    attributes: dict[str, Any] = dict(DISTANCE.attributes)
    if "class_names" in prototypes.attrs:
        attributes["class_names"] = prototypes.attrs["class_names"]
    return xr.DataArray(values, coordinates, DISTANCE.dims, DISTANCE.name, attributes)


def _left_out(lazy: xr.Dataset, prototypes: xr.Dataset, axes: str) -> list[Any]:
    """Return what `distances` needs to leave each image out of its class: arrays and their axes."""
    codes = np.arange(prototypes.sizes[CLASS])
    if CLASS_CODE.name in prototypes.variables:
        codes = prototypes[CLASS_CODE.name].values
    label = lazy[LABEL.name].chunk({SAMPLE: lazy.chunksizes[SAMPLE]}).data
    own = label.map_blocks(_positions, codes=codes, dtype=np.int64)
    needed: list[Any] = [own, "s", denominators_without_one(prototypes).chunk(-1).data, "c"]
    for array in median_arrays(prototypes):
        needed += [array.chunk(-1).data, "c" + axes]
    return needed


def _positions(labels: npt.NDArray[Any], codes: npt.NDArray[Any]) -> Int64Array:
    """Return the position of each label among codes, -1 where it is none of them."""
    order = np.argsort(codes)
    at = order[np.searchsorted(codes, labels, sorter=order).clip(max=len(codes) - 1)]
    return np.where(codes[at] == labels, at, -1)
