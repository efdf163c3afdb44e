"""Any labelled data set of images, brought into the one form that operations take.

Users come with what xarray makes of a data set: dimensions in any order, in chunks or in memory,
selections, integers that became floats or wider, attributes that were dropped. Whatever plainly
stands for images and labels is taken, lazily and without changing a value; all else is refused with
the dimension or value and the cure. Operations call `lazy_images` at the door, and `classes_of`
where they need names, and look at nothing else.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

from pipeline.core.classes import ClassSelection, class_flags, flagged_names, select_classes
from pipeline.core.deferred import da, xr
from pipeline.core.errors import LabelError, SchemaError, ShapeError
from pipeline.core.exact import largest_pixel
from pipeline.core.schema import IMAGE, LABEL, PIXEL_TYPES, SAMPLE, UNLABELLED, conform, in_order

NAMES, SCALE = "class_names", "full_scale"
_MOST_CODES = 2**20  # more than any label that counts classes
_CODES = np.iinfo(np.int32)


def lazy_images(images: xr.Dataset, labels: bool = True) -> xr.Dataset:
    """Bring a data set of images into the form that operations take, lazily.

    Parameters
    ----------
    images
        `image` over `sample`, `y`, `x` and perhaps `channel`, in any order: uint8 or uint16; bool,
        taken as 0 and 1; other numbers where the attribute `full_scale` is there and all are whole,
        as `.where()` leaves them. `label` (sample): integers, bool, or floats that are whole or NaN
        for none.
    labels
        Whether there must be labels.

    Returns
    -------
    `image` (sample, y, x[, channel]), in chunks along `sample` alone; the coordinates `label`
    (sample) int32 in the same chunks, where there are labels, and all others along dimensions of
    the images; the attributes `full_scale` and, where it was there, `class_names`.

    Raises
    ------
    SchemaError
        Where variables, dimensions, dtypes or attributes are not as above.
    LabelError
        When computed, where a label is no code.
    """
    if getattr(images.indexes.get(SAMPLE), "nlevels", 1) > 1:
        images = images.reset_index(SAMPLE)  # its levels, one of which may be the label
    for variable in (IMAGE, LABEL) if labels else (IMAGE,):
        if variable.name not in images.variables:
            raise SchemaError(
                f"the data set has no '{variable.name}', expected {variable.name} "
                f"{variable.dims}; open_images() gives it, .rename() brings your own names to it"
            )
    image, scale = _pixels(images)
    coordinates = {}
    if LABEL.name in images.variables:
        codes = codes_of(images[LABEL.name]).variable.to_base_variable()
        coordinates[LABEL.name] = codes.chunk({SAMPLE: image.chunksizes[SAMPLE]})
    lazy = xr.Dataset({IMAGE.name: image}, coordinates, {SCALE: scale})
    names = images.attrs.get(NAMES)
    if names is not None:  # that of one class is a single text in NetCDF
        lazy.attrs[NAMES] = [str(name) for name in np.ravel(names).tolist()]
    return lazy


def is_data_set(given: object) -> TypeGuard[xr.Dataset]:
    """Tell a data set from other mappings, without importing xarray where nobody else has."""
    return "xarray" in sys.modules and isinstance(given, xr.Dataset)


def full_scale_of(images: xr.Dataset) -> int:
    """Return the pixel value that counts as 1: an attribute, else the largest of the type."""
    dtype = images[IMAGE.name].dtype
    given = images.attrs.get(SCALE)
    if dtype.kind == "b":  # the attribute is of the pixels that were compared
        return 1
    if given is None:
        return largest_pixel(dtype)
    try:
        (number,) = np.ravel(given).tolist()
        scale = int(number)
        whole = scale == float(number) and scale > 0
    except (ValueError, TypeError, OverflowError):
        whole = False
    if not whole:
        raise SchemaError(
            f"the attribute '{SCALE}' is {given!r}, expected a whole number above 0; use "
            f".assign_attrs({SCALE}=255)"
        )
    return scale


def check_alike(
    images: xr.Dataset, shape: tuple[int, ...], dtype: object, full_scale: int, others: str
) -> None:
    """Raise `ShapeError` unless images are of the shape, pixel type and full scale of others."""
    image, scale = images[IMAGE.name], full_scale_of(images)
    if image.shape[1:] != shape or str(image.dtype) != str(dtype):
        raise ShapeError(
            f"images of shape {image.shape[1:]} and dtype {image.dtype}, expected those of the "
            f"{others}, {shape} and {dtype}; bring both to one shape"
        )
    if scale != full_scale:
        raise ShapeError(
            f"images with full scale {scale}, expected that of the {others}, {full_scale}; bring "
            "both to one scale"
        )


def sample_coordinates(lazy: xr.Dataset) -> dict[str, xr.DataArray]:
    """Return the coordinates along `sample` alone, which results keep; no index by another name."""
    return {str(name): c for name, c in lazy.coords.items() if c.dims == (SAMPLE,)}


def code_flags(names: Sequence[str] | None) -> dict[str, Any]:
    """Return the flags of a variable of codes, as attributes; none where classes have no names."""
    return {} if names is None else class_flags(dict(enumerate(names)))


def classes_of(lazy: xr.Dataset, wanted: Sequence[str] | None = None) -> ClassSelection:
    """Select classes by name; all of them by default.

    They are named by the attribute `class_names`, else by the flags of `label`, as CF has them,
    else by the codes that occur: for these the labels are read.

    Parameters
    ----------
    lazy
        As `lazy_images` returns.
    wanted
        Names of classes.

    Raises
    ------
    LabelError
        Where a name is not a class.
    SchemaError
        Where there are no names, and codes are too large to be names.
    """
    known = names_of(lazy)
    everything = [known.get(code, str(code)) for code in range(max(known, default=-1) + 1)]
    if wanted is None and len(known) < len(everything):  # classes that do not occur
        wanted = [known[code] for code in sorted(known)]
    return select_classes(everything, wanted)


def names_of(lazy: xr.Dataset) -> dict[int, str]:
    """Return the name of the class of each code, as `classes_of` finds them."""
    names = lazy.attrs.get(NAMES)
    if names is not None:
        return dict(enumerate(names))
    label = lazy[LABEL.name]
    known = flagged_names(label.attrs)
    if not known or min(known) < 0:
        codes = np.unique(label.values)
        known = {code: str(code) for code in codes[codes != UNLABELLED].tolist()}
    largest, least = max(known, default=-1), min(known, default=0)
    if least < 0 or largest >= _MOST_CODES:
        raise SchemaError(
            f"the data set has no attribute '{NAMES}', and labels from {least} to {largest}, "
            f"expected codes from 0 on; number them, names, codes = np.unique(ds.label, "
            f"return_inverse=True), and use .assign_attrs({NAMES}=[...])"
        )
    return known


def label_counts(images: xr.Dataset) -> dict[str, int]:
    """Count the images of each class by name; images without a label are left out."""
    lazy = lazy_images(images)
    selection = classes_of(lazy)
    positions = selection.positions(lazy[LABEL.name].values)
    counts = np.bincount(positions[positions >= 0], minlength=len(selection.codes))
    return dict(zip(selection.names, counts.tolist(), strict=True))


# pixels ------------------------------------------------------------------------------------------


def _pixels(images: xr.Dataset) -> tuple[xr.DataArray, int]:
    """Return the images in chunks along `sample` alone, and their full scale."""
    image = in_order(images[IMAGE.name], IMAGE)
    if 0 in image.shape[1:]:
        raise SchemaError(
            f"'{IMAGE.name}' has shape {image.shape}, expected images of one pixel at least"
        )
    image = image.drop_vars([n for n, c in image.coords.items() if not c.dims or n == LABEL.name])
    if image.dtype.kind == "b":
        return _in_chunks(image.astype(np.uint8)), full_scale_of(images)
    if image.dtype.name not in PIXEL_TYPES and image.dtype.kind in "iuf":
        if SCALE not in images.attrs:
            raise SchemaError(
                f"'{IMAGE.name}' has dtype {image.dtype}, expected {' or '.join(PIXEL_TYPES)}; use "
                f".astype('uint8') where no value is lost by it, or .assign_attrs({SCALE}=255) "
                "where all are whole numbers up to that"
            )
        scale = full_scale_of(images)
        dtype = next((kind for kind in PIXEL_TYPES if scale <= largest_pixel(kind)), "uint16")
        values = _checked(_in_chunks(image).data, _as_pixels, dtype, scale)
        return image.copy(data=values), scale
    return _in_chunks(conform(image, IMAGE)), full_scale_of(images)


def _in_chunks(image: xr.DataArray) -> xr.DataArray:
    """Return images in chunks along `sample` alone; coordinates stay as they are."""
    if image.chunks is not None and all(len(sizes) == 1 for sizes in image.chunks[1:]):
        return image  # as stores are opened
    alone = image.reset_coords(drop=True).chunk({dim: -1 for dim in image.dims if dim != SAMPLE})
    return image.copy(data=alone.data)


def _as_pixels(values: npt.NDArray[Any], first: int, dtype: str, scale: int) -> npt.NDArray[Any]:
    """Return numbers that are pixel values as such; see `lazy_images`."""
    flat, largest = values.reshape(len(values), math.prod(values.shape[1:])), largest_pixel(dtype)
    with np.errstate(invalid="ignore"):
        wrong = ~((flat >= 0) & (flat <= largest) & (flat == np.floor(flat)))
    if wrong.any():
        sample, at = np.argwhere(wrong)[0].tolist()
        value = flat[sample, at]
        missing = value != value
        raise SchemaError(
            f"sample {first + sample} has {'a missing pixel' if missing else 'the pixel value'} "
            f"{value}, expected whole numbers, 0 to {largest}; "
            + (
                "select samples with .isel(sample=...), or use .fillna(0)"
                if missing
                else f"use .round().clip(0, {largest}).astype('{dtype}') where it may be changed"
            )
        )
    dark = flat.max(axis=1, initial=0) == 1
    if scale > 1 and dark.any():
        raise SchemaError(
            f"sample {first + int(dark.argmax())} has no pixel value above 1 at a {SCALE} of "
            f"{scale}, expected pixel values, not shares of them; use .assign_attrs({SCALE}=1) "
            f"where 1 is white, .astype('{dtype}') where it is nearly black"
        )
    return values.astype(dtype)


# labels ------------------------------------------------------------------------------------------


def codes_of(label: xr.DataArray) -> xr.DataArray:
    """Return labels (sample) as int32 codes; see `lazy_images`."""
    if label.dtype.kind not in "biuf":
        raise SchemaError(
            f"'{LABEL.name}' has dtype {label.dtype}, expected codes into {NAMES}; number them: "
            "names, codes = np.unique(ds.label, return_inverse=True), then ds.assign_coords("
            f"label=('{SAMPLE}', codes)).assign_attrs({NAMES}=names.tolist())"
        )
    label = in_order(label, LABEL)
    if np.can_cast(label.dtype, np.int32):
        return label.astype(np.int32)
    lazy = label.variable.to_base_variable().chunk()
    return xr.DataArray(lazy.copy(data=_checked(lazy.data, _as_codes, "int32")))


def _as_codes(values: npt.NDArray[Any], first: int, dtype: str) -> npt.NDArray[np.int32]:
    """Return numbers that are codes as such, NaN as -1."""
    codes = np.where(np.isnan(values), UNLABELLED, values) if values.dtype.kind == "f" else values
    wrong = (codes < _CODES.min) | (codes > _CODES.max) | (codes != np.floor(codes))
    if wrong.any():
        at = int(wrong.argmax())
        raise LabelError(
            f"sample {first + at} has label {values[at]}, expected a code, a whole number from 0 "
            "on, or -1 for none; correct the labels"
        )
    return np.asarray(codes.astype(dtype))


def _checked(array: da.Array, function: Callable[..., Any], dtype: str, *more: Any) -> da.Array:
    """Call a function on each chunk of samples, and on the position of its first, when computed."""
    firsts = np.cumsum([0, *array.chunks[0][:-1]])
    starts = da.from_array(firsts, chunks=1)
    axes = tuple(range(array.ndim))
    return da.blockwise(
        _call, axes, array, axes, starts, (0,), align_arrays=False, function=function,
        settings=(dtype, *more), dtype=dtype, meta=np.empty((0,) * array.ndim, dtype),
    )  # fmt: skip


def _call(
    values: npt.NDArray[Any],
    start: npt.NDArray[np.int64],
    function: Callable[..., Any],
    settings: tuple[Any, ...],
) -> Any:
    return function(values, int(start[0]), *settings)
