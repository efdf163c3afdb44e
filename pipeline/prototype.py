"""Per-class sums, and the prototypes that follow from them.

A prototype is an exact fraction, an integer image over one positive integer: the mean of a
class is its pixel sums over its number of images. Sums of integers come out the same in any
order, so chunks are summed where they lie and added up in a tree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr

from pipeline import kernels
from pipeline.classes import ClassSelection, select_classes
from pipeline.errors import EmptyClassError, SchemaError
from pipeline.exact import Int64Array, check_sum_bound, largest_pixel
from pipeline.schema import (
    CLASS,
    CLASS_CODE,
    COUNT,
    DENOMINATOR,
    IMAGE,
    LABEL,
    NUMERATOR,
    PIXEL_SUM,
    PROTOTYPE,
    SAMPLE,
    check,
)

PrototypeKind = Literal["mean"]

# Partial sums that one addition of the tree holds at once.
SPLIT_EVERY = 8


def class_sums_block(
    images: npt.NDArray[Any],
    labels: npt.NDArray[Any],
    selection: ClassSelection,
    device: str,
    first: int = 0,
) -> Int64Array:
    """Sum one block of images by class.

    Parameters
    ----------
    images
        [sample, ...]; pixels.
    labels
        [sample]; codes.
    selection
        The classes to sum.
    device
        As for `kernels.load`.
    first
        The sample index of the first image, for messages.

    Returns
    -------
    [class, pixel + 1]; the pixel sums, and in the last column the number of images. In one
    array, so that one addition adds up both.
    """
    flat = np.ascontiguousarray(images).reshape(len(images), int(np.prod(images.shape[1:])))
    positions = selection.positions(labels, first)
    sums, counts = kernels.load(device).class_sums(flat, positions, len(selection.codes))
    return np.concatenate([sums, counts[:, None]], axis=1)


def lazy_images(images: xr.Dataset) -> xr.Dataset:
    """Check a data set of images and bring it into chunks along `sample` alone."""
    for variable in (IMAGE, LABEL):
        if variable.name not in images.variables:
            raise SchemaError(
                f"the data set has no '{variable.name}', expected {variable.name} "
                f"{variable.dims}; open_images() gives it, .rename() brings your own names to it"
            )
        check(images[variable.name], variable)
    pixels = {dim: -1 for dim in images[IMAGE.name].dims if dim != SAMPLE}
    return images[[IMAGE.name, LABEL.name]].set_coords(LABEL.name).chunk(pixels).unify_chunks()


def class_names_of(images: xr.Dataset) -> list[str]:
    """Return the attribute `class_names` of a data set of images."""
    try:
        return [str(name) for name in images.attrs["class_names"]]
    except KeyError:
        raise SchemaError(
            "the data set has no attribute 'class_names', expected a list of names by code; "
            "use .assign_attrs(class_names=[...])"
        ) from None


def full_scale_of(images: xr.Dataset) -> int:
    """Return the pixel value that counts as 1: an attribute, else the largest of the type."""
    return int(images.attrs.get("full_scale", largest_pixel(images[IMAGE.name].dtype)))


def class_sums(
    images: xr.Dataset, classes: Sequence[str] | None = None, device: str = "auto"
) -> xr.Dataset:
    """Sum the images of each class, lazily.

    Parameters
    ----------
    images
        `image` (sample, y, x[, channel]) uint8 or uint16, `label` (sample) int32, and the
        attribute `class_names`; as `open_images` returns.
    classes
        Names of the classes to sum; default: all.
    device
        `auto`, `cpu`, `cuda` or `torch:cpu`; the same bits on each.

    Returns
    -------
    `pixel_sum` (class_name, y, x[, channel]) int64 and `count` (class_name) int64, classes in
    the order of their codes. Nothing is read until it is computed.

    Raises
    ------
    SchemaError
        Where dimensions, dtypes or `class_names` are not as above.
    LabelError
        Where a class is not known; when computed, where a label is no code.
    """
    selection = select_classes(class_names_of(images), classes)
    lazy = lazy_images(images)
    image, label = lazy[IMAGE.name], lazy[LABEL.name]
    check_sum_bound(image.sizes[SAMPLE], image.dtype)
    shape = image.shape[1:]
    axes = "yxk"[: len(shape)]
    sizes = image.chunksizes[SAMPLE]
    starts = da.from_array(np.cumsum([0, *sizes[:-1]]), chunks=1)
    packed = da.blockwise(
        _stacked_sums_block, "scp", image.data, "s" + axes, label.data, "s", starts, "s",
        selection=selection, device=device, concatenate=True, align_arrays=False,
        new_axes={"c": len(selection.codes), "p": int(np.prod(shape)) + 1},
        adjust_chunks={"s": 1}, dtype=np.int64, meta=np.empty((0, 0, 0), np.int64),
    )  # fmt: skip
    total = packed.sum(axis=0, split_every=SPLIT_EVERY, dtype=np.int64)
    pixels = {str(dim): image.sizes[dim] for dim in image.dims[1:]}
    found = label_sums(total, selection, pixels, str(image.dtype), full_scale_of(images))
    return found.assign_coords({dim: image.coords[dim] for dim in pixels if dim in image.coords})


def label_sums(
    packed: Any, selection: ClassSelection, pixels: Mapping[str, int], dtype: str, full_scale: int
) -> xr.Dataset:
    """Label added-up results of `class_sums_block`, in memory or lazy, as `class_sums` returns.

    Parameters
    ----------
    packed
        [class, pixel + 1]; the pixel sums, and in the last column the number of images.
    selection
        The classes.
    pixels
        The size of one image along each of its dimensions, in order.
    dtype, full_scale
        The pixel type, and the pixel value that counts as 1.
    """
    sums = packed[:, :-1].reshape((len(selection.codes), *pixels.values()))
    codes = np.array(selection.codes, np.int32)
    return xr.Dataset(
        {
            PIXEL_SUM.name: ((CLASS, *pixels), sums, PIXEL_SUM.attributes),
            COUNT.name: (CLASS, packed[:, -1], COUNT.attributes),
        },
        {
            CLASS: list(selection.names),
            CLASS_CODE.name: (CLASS, codes, CLASS_CODE.attributes),
        },
        {
            "class_names": list(selection.all_names),
            "full_scale": full_scale,
            "pixel_dtype": dtype,
        },
    )


def _stacked_sums_block(images: Any, labels: Any, start: Any, **settings: Any) -> Int64Array:
    """One step along "s" for each block, so that a sum over "s" adds blocks up."""
    return class_sums_block(images, labels, first=int(start[0]), **settings)[None]


def prototypes(sums: xr.Dataset, kind: PrototypeKind = "mean") -> xr.Dataset:
    """Make the prototype of each class from its sums, lazily.

    Parameters
    ----------
    sums
        As `class_sums` returns.
    kind
        `mean`: the average image, as in the classifier of nearest class means.

    Returns
    -------
    `prototype` (class_name, y, x[, channel]) float64 in pixel values, and the exact fraction
    behind it: `numerator` of the same dimensions and `denominator` (class_name), both int64.
    A class without images has denominator 0 and a prototype of NaN.
    """
    if kind != "mean":
        raise SchemaError(f"prototypes of kind {kind!r}, expected 'mean'")
    check(sums[PIXEL_SUM.name], PIXEL_SUM)
    check(sums[COUNT.name], COUNT)
    numerator, denominator = sums[PIXEL_SUM.name], sums[COUNT.name]
    image = numerator / denominator.where(denominator > 0)
    return xr.Dataset(
        {
            NUMERATOR.name: numerator.assign_attrs(NUMERATOR.attributes),
            DENOMINATOR.name: denominator.assign_attrs(DENOMINATOR.attributes),
            PROTOTYPE.name: image.assign_attrs(PROTOTYPE.attributes),
        },
        attrs={**sums.attrs, "prototypes": kind},
    ).assign_coords({COUNT.name: sums[COUNT.name]})


def refuse_empty_classes(names: Sequence[str], counts: Sequence[int], split: str) -> None:
    """Raise `EmptyClassError` where a class has no image to make a prototype from."""
    empty = [name for name, count in zip(names, counts, strict=True) if not count]
    if empty:
        shown = ", ".join(f"'{name}'" for name in empty[:5]) + (", ..." if len(empty) > 5 else "")
        raise EmptyClassError(
            f"no image of class {shown} in split '{split}', expected one at least; leave "
            "them out with 'classes', or set allow_empty_classes: true"
        )
