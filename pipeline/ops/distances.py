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
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.core.arguments import checked
from pipeline.core.deferred import deferred
from pipeline.core.errors import SchemaError, ShapeError
from pipeline.core.exact import (
    Float64Array,
    Int64Array,
    check_square_bound,
    choose_arithmetic,
    finish_l1,
    finish_l2,
    largest_pixel,
    prototype_norms,
    scale_of,
    squares_fit,
    sum_squares,
)
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
from pipeline.core.threads import in_ranges
from pipeline.kernels import backends
from pipeline.ops.labelled import full_scale_of, lazy_images, sample_coordinates
from pipeline.ops.leave_one_out import (
    Others,
    denominators_without_one,
    make_others,
    median_arrays,
)

if TYPE_CHECKING:
    import dask.array as da
    import xarray as xr
else:
    da = deferred("dask.array")
    xr = deferred("xarray")

# Bytes of one [sample, class] array on the way; less costs more calls, more does not help.
_BLOCK_BYTES = 2**20
# Of many classes more is taken at once: prototypes are loaded again for every block.
_FEW_IMAGES = 512

Counts = tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any], Int64Array]
"""What `backends.Measure` returns."""


@dataclass(frozen=True)
class Reference:
    """Prototypes made ready for the kernels of a device, once for many blocks of images.

    Attributes
    ----------
    prepared
        What the kernels read.
    denominators
        [class]; n.
    norms
        `sum P*P` of each class.
    pixels
        D, the values of one image.
    dtype
        The pixel type that the images must have.
    full_scale
        The pixel value that counts as 1.
    device
        As for `backends.load`.
    others
        How they are without one of their images, where that is asked for.
    """

    prepared: Any
    denominators: Int64Array
    norms: list[int]
    pixels: int
    dtype: str
    full_scale: int
    device: str
    others: Others | None = None


def make_reference(
    numerators: Int64Array,
    denominators: Int64Array,
    dtype: str,
    full_scale: int,
    device: str = "auto",
    others: Others | None = None,
) -> Reference:
    """Prepare prototypes, [class, ...] over [class], for images of `dtype`.

    `others` are needed to measure images without themselves.

    Raises
    ------
    ExactnessError
        Where no arithmetic is exact for them.
    """
    flat = np.ascontiguousarray(numerators).reshape(len(numerators), -1)
    arithmetic = choose_arithmetic(int(denominators.max(initial=0)), flat.shape[1], dtype)
    return Reference(
        backends.load(device).prepare(flat, denominators, arithmetic),
        denominators,
        prototype_norms(flat, denominators),
        flat.shape[1],
        dtype,
        full_scale,
        device,
        others,
    )


def distances_block(
    images: npt.NDArray[Any],
    reference: Reference,
    metrics: Sequence[str],
    threads: int = 1,
    own: Int64Array | None = None,
) -> Float64Array:
    """Measure one block of images.

    Parameters
    ----------
    images
        [sample, ...]; pixels.
    reference
        The prototypes.
    metrics
        `l1`, `l2` or both.
    threads
        How many cores to use.
    own
        [sample]; the position of the class whose prototype each image is a part of, and which is
        measured without it; -1 for none. Default: none of them is. Needs the reference's `others`.

    Returns
    -------
    [metric, sample, class]; NaN for classes without images, other than this one where it is left
    out.
    """
    if own is not None and reference.others is None:
        raise ValueError("images to leave out, expected a reference that has 'others'")
    classes, use = len(reference.denominators), backends.load(reference.device)
    result = np.empty((len(metrics), len(images), classes), np.float64)
    flat = np.ascontiguousarray(images).reshape(len(images), reference.pixels)
    scales = _scales(reference, metrics) if own is None else {}
    row = max(8 * classes, 1)
    step = max(_BLOCK_BYTES // row, min(_FEW_IMAGES, 4 * _BLOCK_BYTES // row), 4)
    wanted = {"l1": "l1" in metrics, "l2": "l2" in metrics}
    # pixels go to a device once, for both metrics, and its counts come back
    counted = use.measure(flat, reference.prepared, **wanted) if use.whole_blocks else None

    def measure(first: int, last: int) -> None:
        into = {name: result[metrics.index(name), first:last] for name in scales}
        use = backends.load(reference.device)
        if into and use.distances(flat[first:last], reference.prepared, scales, into):
            return
        for start in range(first, last, step):
            part = slice(start, min(start + step, last))
            if counted is None:
                counts = use.measure(flat[part], reference.prepared, **wanted)
            else:
                counts = _part_of(counted, part)
            for index, metric in enumerate(metrics):
                mine = None if own is None else own[part]
                result[index, part] = _finish(flat[part], counts, reference, metric, mine)

    in_ranges(threads, len(images), measure)
    return result


def _part_of(counts: Counts, part: slice) -> Counts:
    l1, wholes, rests, squares = counts
    one, two, three = (np.ascontiguousarray(each[part], np.int64) for each in (l1, wholes, rests))
    return one, two, three, squares[part]


def nearest_block(
    images: npt.NDArray[Any], reference: Reference, metric: str, threads: int = 1
) -> tuple[Int64Array, Float64Array]:
    """Find the nearest prototype of each image of a block where nothing else is asked for.

    Several times as fast as measuring all, since a bound leaves out most prototypes.

    Parameters
    ----------
    images, reference, threads
        As for `distances_block`.
    metric
        `l1` or `l2`.

    Returns
    -------
    The position of the nearest class, of equally near ones the first, and its distance, [sample]
    each: the least of what `distances_block` returns. -1 and NaN where no class has images.
    """
    positions, nearest = np.full(len(images), -1), np.full(len(images), np.nan)
    flat = np.ascontiguousarray(images).reshape(len(images), reference.pixels)
    scales, use = _scales(reference, (metric,)), backends.load(reference.device)

    def find(first: int, last: int) -> None:
        part = slice(first, last)
        if scales and use.nearest_prototype(
            flat[part], reference.prepared, metric, scales[metric], positions[part], nearest[part]
        ):
            return
        step = max(1, _BLOCK_BYTES // max(8 * len(reference.denominators), 1))
        for start in range(first, last, step):
            some = slice(start, min(start + step, last))
            distance = np.nan_to_num(
                distances_block(flat[some], reference, (metric,))[0], nan=np.inf
            )
            at = distance.argmin(axis=1)
            least = distance[np.arange(len(at)), at]
            positions[some] = np.where(np.isfinite(least), at, -1)
            nearest[some] = np.where(np.isfinite(least), least, np.nan)

    if len(reference.denominators):
        in_ranges(threads, len(images), find)
    return positions, nearest


def _scales(reference: Reference, metrics: Sequence[str]) -> dict[str, Float64Array]:
    """Return what sums are divided by, where a kernel can do it: nothing is beyond 2**63."""
    n, pixels = reference.denominators, reference.pixels
    if "l2" in metrics and not squares_fit(n, pixels, largest_pixel(reference.dtype)):
        return {}
    return {metric: scale_of(metric, n, pixels, reference.full_scale) for metric in metrics}


def _finish(
    images: npt.NDArray[Any],
    counts: Counts,
    reference: Reference,
    metric: str,
    own: Int64Array | None,
) -> Float64Array:
    """Divide what was counted of images; see `backends.Measure`."""
    finish = finish_l1 if metric == "l1" else finish_l2
    denominators, pixels, scale = reference.denominators, reference.pixels, reference.full_scale
    numerators, wholes, rests, squares = counts
    totals: Any = numerators
    if metric != "l1":
        totals = sum_squares(
            squares, (wholes, rests), reference.norms, denominators,
            pixels, largest_pixel(reference.dtype),
        )  # fmt: skip
    result = finish(totals, denominators, pixels, scale)
    if own is not None and reference.others is not None:
        others, rows = reference.others, np.flatnonzero(own >= 0)
        mine = own[rows]
        if others.medians is None:
            totals = totals[rows, mine]
        else:
            totals = others.medians.numerators_of(images[rows], mine, metric)
        result[rows, mine] = finish(totals, others.denominators[mine], pixels, scale)
    return result


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


def check_shapes(images: xr.Dataset, prototypes: xr.Dataset) -> None:
    """Raise `ShapeError` unless images and prototypes have one shape and pixel type."""
    image, numerator = images[IMAGE.name], prototypes[NUMERATOR.name]
    made_of = str(prototypes.attrs.get("pixel_dtype", image.dtype))
    if image.shape[1:] != numerator.shape[1:] or str(image.dtype) != made_of:
        raise ShapeError(
            f"images of shape {image.shape[1:]} and dtype {image.dtype}, expected those of the "
            f"prototypes, {numerator.shape[1:]} and {made_of}; bring both splits to one shape"
        )
    scales = full_scale_of(images), prototypes.attrs.get("full_scale", full_scale_of(images))
    if scales[0] != scales[1]:
        raise ShapeError(
            f"images with full scale {scales[0]}, expected that of the prototypes, {scales[1]}; "
            "bring both splits to one scale"
        )


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
    check_shapes(lazy, ordered)
    image = lazy[IMAGE.name]
    one_chunk = dict.fromkeys(ordered[NUMERATOR.name].dims, -1)
    fractions = ordered[[NUMERATOR.name, DENOMINATOR.name]].chunk(one_chunk)
    axes = "yxk"[: image.ndim - 1]
    values = da.blockwise(
        _distances_from_arrays, "msc", image.data, "s" + axes,
        fractions[NUMERATOR.name].data, "c" + axes, fractions[DENOMINATOR.name].data, "c",
        *(_left_out(lazy, prototypes, axes) if leave_one_out else ()), metrics=names,
        device=device, full_scale=full_scale_of(lazy), concatenate=True,
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
