"""The distance of every image to every prototype: l1 and l2 in one read of each image.

For an image x of D pixels, a prototype P/n and full scale F:

- l1 is the mean absolute difference, `sum |x - P/n| / (D*F)`;
- l2 is the root of the mean squared difference, `sqrt(sum (x - P/n)**2 / (D*F**2))`.

Both lie between 0 and 1. They are the `F.l1_loss` and `F.mse_loss(...).sqrt()` of torch on
images scaled to 0..1. The kernels count integers, `exact` divides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr

from pipeline.core.arguments import checked
from pipeline.core.errors import SchemaError, ShapeError
from pipeline.core.exact import (
    Float64Array,
    Int64Array,
    choose_arithmetic,
    finish_l1,
    finish_l2,
    largest_pixel,
    prototype_norms,
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
from pipeline.ops.prototypes import full_scale_of, lazy_images

# Bytes of one [sample, class] array on the way; less costs more calls, more does not help.
_BLOCK_BYTES = 2**20
# Of many classes more is taken at once: prototypes are loaded again for every block.
_FEW_IMAGES = 512


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
    """

    prepared: Any
    denominators: Int64Array
    norms: list[int]
    pixels: int
    dtype: str
    full_scale: int
    device: str


def make_reference(
    numerators: Int64Array,
    denominators: Int64Array,
    dtype: str,
    full_scale: int,
    device: str = "auto",
) -> Reference:
    """Prepare prototypes, [class, ...] over [class], for images of `dtype`.

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
    )


def distances_block(
    images: npt.NDArray[Any], reference: Reference, metrics: Sequence[str], threads: int = 1
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

    Returns
    -------
    [metric, sample, class]; NaN for classes without images.
    """
    classes = len(reference.denominators)
    result = np.empty((len(metrics), len(images), classes), np.float64)
    flat = np.ascontiguousarray(images).reshape(len(images), reference.pixels)
    row = max(8 * classes, 1)
    step = max(_BLOCK_BYTES // row, min(_FEW_IMAGES, 4 * _BLOCK_BYTES // row), 4)

    def measure(first: int, last: int) -> None:
        for start in range(first, last, step):
            part = slice(start, min(start + step, last))
            for index, metric in enumerate(metrics):
                result[index, part] = _measure(flat[part], reference, metric)

    in_ranges(threads, len(images), measure)
    return result


def _measure(images: npt.NDArray[Any], reference: Reference, metric: str) -> Float64Array:
    use = backends.load(reference.device)
    denominators, pixels, scale = reference.denominators, reference.pixels, reference.full_scale
    if metric == "l1":
        sums = use.l1_numerators(images, reference.prepared)
        return finish_l1(sums, denominators, pixels, scale)
    products = use.dot_products(images, reference.prepared)
    return finish_l2(
        use.squared_norms(images), products, reference.norms, denominators,
        pixels, scale, largest_pixel(reference.dtype),
    )  # fmt: skip


def _distances_from_arrays(
    images: npt.NDArray[Any],
    numerators: Int64Array,
    denominators: Int64Array,
    metrics: Sequence[str],
    device: str,
    full_scale: int,
) -> Float64Array:
    reference = make_reference(numerators, denominators, str(images.dtype), full_scale, device)
    return distances_block(images, reference, metrics)


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
) -> xr.DataArray:
    """Measure every image against every prototype, lazily.

    Parameters
    ----------
    images
        `image` (sample, y, x[, channel]) and `label` (sample), as `open_images` returns.
    prototypes
        `numerator` and `denominator`, as `prototypes` returns.
    metrics
        `l1`, `l2` or both.
    device
        `auto`, `cpu`, `cuda` or `torch:cpu`; the same bits on each.

    Returns
    -------
    `distance` (metric, sample, class_name) float64 in units of full scale, 0 to 1, with the
    coordinates `label` and `sample` of the images. A class without images is at NaN.

    Raises
    ------
    ShapeError
        Where images and prototypes differ in shape, pixel type or full scale.
    SchemaError
        Where dimensions, dtypes or metrics are not as above.
    """
    names = check_metrics(metrics)
    lazy = lazy_images(images)
    pick(prototypes, NUMERATOR)
    pick(prototypes, DENOMINATOR)
    check_shapes(images, prototypes)
    image = lazy[IMAGE.name]
    one_chunk = dict.fromkeys(prototypes[NUMERATOR.name].dims, -1)
    fractions = prototypes[[NUMERATOR.name, DENOMINATOR.name]].chunk(one_chunk)
    axes = "yxk"[: image.ndim - 1]
    values = da.blockwise(
        _distances_from_arrays, "msc", image.data, "s" + axes,
        fractions[NUMERATOR.name].data, "c" + axes, fractions[DENOMINATOR.name].data, "c",
        metrics=names, device=device, full_scale=full_scale_of(images), concatenate=True,
        new_axes={"m": len(names)}, dtype=np.float64, meta=np.empty((0, 0, 0), np.float64),
    )  # fmt: skip
    coordinates: dict[str, Any] = {METRIC: list(names), CLASS: prototypes[CLASS]}
    coordinates |= {name: lazy[name] for name in (SAMPLE, LABEL.name) if name in lazy.coords}
    if CLASS_CODE.name in prototypes.variables:
        coordinates[CLASS_CODE.name] = prototypes[CLASS_CODE.name].variable
    if LABEL.name not in coordinates:
        coordinates[LABEL.name] = lazy[LABEL.name].variable
    attributes: dict[str, Any] = dict(DISTANCE.attributes)
    if "class_names" in prototypes.attrs:
        attributes["class_names"] = prototypes.attrs["class_names"]
    return xr.DataArray(values, coordinates, DISTANCE.dims, DISTANCE.name, attributes)
