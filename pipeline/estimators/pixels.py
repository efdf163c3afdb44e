"""What scikit-learn's estimators are given, as kernels take it: rows of unsigned integers.

Arrays of several libraries become rows, one for each image. Integers are kept, or shifted where
that brings them into 8 or 16 bits: that is exact. Floats are packed into 16 bits as at ingest
(`sources.quantize`), over the range that was found when fitting began, or over a given one. What
is predicted may lie outside that range, and is then measured all the same: see `Queries`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr

from pipeline.core.errors import SchemaError, ShapeError, describe
from pipeline.core.exact import Int64Array, largest_pixel
from pipeline.core.schema import CHANNEL, PIXEL_DIMS, PIXEL_TYPES, SAMPLE
from pipeline.ops.prototypes import flat_images
from pipeline.sources.quantize import STEPS, Packing

_BLOCK_VALUES = 2**20  # values that are converted at once
_FAR = 2**40  # steps; beyond, float64 could not count them all
Array = npt.NDArray[Any]


class Rows(NamedTuple):
    """Images as rows.

    Attributes
    ----------
    values
        [sample, value]; a NumPy or dask array, or what scikit-learn makes one of.
    shape
        Of an image; None where the rows are all that is known.
    dims
        The names of these dimensions, of a labelled array.
    """

    values: Any
    shape: tuple[int, ...] | None = None
    dims: tuple[str, ...] | None = None


def as_rows(images: Any, dims: tuple[str, ...] | None = None) -> Rows:
    """Return images of any library as rows.

    Parameters
    ----------
    images
        [sample, ...]; a NumPy or dask array, a torch tensor, a `DataArray` with the dimension
        `sample`, a table, or nested lists.
    dims
        The order of the other dimensions of a labelled array, where it is known.

    Raises
    ------
    SchemaError
        Where a labelled array lacks a dimension.
    """
    named: tuple[str, ...] | None = None
    if isinstance(images, xr.DataArray):
        named = _ordered_dims(images, dims)
        images = images.transpose(SAMPLE, *named).data
    elif hasattr(images, "detach") and hasattr(images, "cpu"):  # a tensor of torch
        images = _tensor_values(images)
    if isinstance(images, da.Array):
        if images.ndim < 2:
            raise ShapeError(
                f"images of shape {images.shape}, expected [sample, ...]. Reshape your data with "
                "images[:, None] or images[None]"
            )
        shape = None if images.ndim == 2 else images.shape[1:]
        return Rows(_lazy_rows(images), shape, named)
    if hasattr(images, "columns") or hasattr(images, "tocsr"):  # a table, or sparse: as it is
        return Rows(images)
    array = np.asarray(images)
    if array.ndim < 3:
        return Rows(array, None, named)
    flat = array.reshape(len(array), math.prod(array.shape[1:]))
    return Rows(flat, array.shape[1:], named)


def _ordered_dims(images: xr.DataArray, dims: tuple[str, ...] | None) -> tuple[str, ...]:
    """Return the dimensions of an image in order, those known first."""
    given = [str(dim) for dim in images.dims]
    if SAMPLE not in given:
        raise SchemaError(
            f"images with dimensions {tuple(given)}, expected one named '{SAMPLE}'; "
            f".rename({given[0] if given else 'dim'}='{SAMPLE}') names it"
        )
    given.remove(SAMPLE)
    if dims is not None:
        if {*given} != {*dims}:
            raise SchemaError(
                f"images with dimensions {(SAMPLE, *given)}, expected {(SAMPLE, *dims)} in any "
                "order, as when fitting; use .rename() to bring them there"
            )
        return dims
    known = [dim for dim in (*PIXEL_DIMS, CHANNEL) if dim in given]
    return (*known, *(dim for dim in given if dim not in known))


def _tensor_values(tensor: Any) -> Array:
    values = tensor.detach().cpu()
    try:
        return np.asarray(values.numpy())
    except TypeError:  # bfloat16, which NumPy does not know
        return np.asarray(values.float().numpy())


def _lazy_rows(images: da.Array) -> da.Array:
    images = images.rechunk(dict.fromkeys(range(1, images.ndim), -1))
    if images.ndim == 2:
        return images
    chunks = images.chunks[0], (math.prod(images.shape[1:]),)
    more = list(range(2, images.ndim))
    return images.map_blocks(flat_images, drop_axis=more, chunks=chunks, dtype=images.dtype)


def as_labels(labels: Any) -> Any:
    """Return labels of any library as scikit-learn takes them."""
    if isinstance(labels, xr.DataArray | da.Array):
        return np.asarray(labels)
    if hasattr(labels, "detach") and hasattr(labels, "cpu"):
        return _tensor_values(labels)
    return labels


def whole_weights(weights: Any, count: int) -> Int64Array | None:
    """Return weights of samples as integers, [sample]; None where each counts once.

    Raises
    ------
    SchemaError
        Where they are not whole, negative, all zero, or of another number of samples.
    """
    if weights is None:
        return None
    given = np.asarray(as_labels(weights))
    if given.ndim == 0:
        given = np.broadcast_to(given, count)
    if given.shape != (count,):
        raise SchemaError(
            f"sample_weight of shape {given.shape}, expected ({count},): one for each sample"
        )
    good = given.dtype.kind in "biuf" and (given >= 0) & (given < 2**53) & (given == np.rint(given))
    if not np.all(good):
        at = int(np.argmin(good)) if np.ndim(good) else 0
        raise SchemaError(
            f"sample_weight {describe(given[at].item())} of sample {at}, expected whole numbers, "
            "0 or more: a sample of weight 3 counts as three; multiply the weights and round them"
        )
    if not given.any():
        raise SchemaError(
            "sample_weight is zero for all samples, expected weights of which at least one is not "
            "zero"
        )
    whole: Int64Array = given.astype(np.int64)
    return None if (whole == 1).all() else whole


@dataclass(frozen=True)
class Queries:
    """Images to predict, as the kernels take them, and those that lie outside their range.

    Attributes
    ----------
    images
        [sample, value] uint8 or uint16; clipped to the range.
    beyond
        [row]; the samples that have values outside.
    steps
        [row, value] int64; these samples, not clipped.
    """

    images: Array
    beyond: Int64Array
    steps: Int64Array


class Encoding(NamedTuple):
    """How values become the integers that kernels take: exactly, or floats in equal steps.

    Attributes
    ----------
    dtype
        `uint8` or `uint16`.
    lowest, highest
        The values that become 0 and the largest integer.
    packed
        Whether they are floats, which are rounded to steps.
    full_scale
        The integer that counts as 1 in distances.
    """

    dtype: str
    lowest: float
    highest: float
    packed: bool
    full_scale: int

    @property
    def packing(self) -> Packing:
        return Packing(float(self.lowest), float(self.highest), True)

    @property
    def scale(self) -> float:
        """What one step is, in the values given."""
        return self.packing.scale_factor if self.packed else 1

    @property
    def _as_it_is(self) -> bool:
        return not self.packed and self.lowest == 0

    def encode(self, values: Array) -> Array:
        """Return values of the range as integers; `SchemaError` for one outside it."""
        if self._as_it_is and str(values.dtype) == self.dtype:
            return np.ascontiguousarray(values)
        result = np.empty(values.shape, self.dtype)
        for part in _parts(values):
            steps = self._steps(values[part])
            outside = (steps < 0) | (steps > largest_pixel(self.dtype))
            if outside.any():
                first = values[part].reshape(-1)[int(outside.argmax())]
                raise SchemaError(
                    f"pixel value {first}, expected {self.lowest} to {self.highest}, the range "
                    "that fitting began with; give value_range=(lowest, highest) of all values"
                )
            result[part] = steps
        return result

    def encode_queries(self, values: Array) -> Queries:
        """Return any values as `Queries`."""
        if self._as_it_is and str(values.dtype) == self.dtype:
            nothing = np.zeros((0, values.shape[1]), np.int64)
            return Queries(np.ascontiguousarray(values), np.zeros(0, np.int64), nothing)
        largest = largest_pixel(self.dtype)
        images, rows, beyond = np.empty(values.shape, self.dtype), [], []
        for part in _parts(values):
            steps = self._steps(values[part])
            outside = np.flatnonzero(((steps < 0) | (steps > largest)).any(1))
            rows.append(part.start + outside)
            beyond.append(steps[outside])
            images[part] = np.clip(steps, 0, largest)
        if not rows:
            return Queries(images, np.zeros(0, np.int64), np.zeros((0, values.shape[1]), np.int64))
        return Queries(images, np.concatenate(rows), np.concatenate(beyond))

    def _steps(self, values: Array) -> Int64Array:
        """Return the integers that values become, whatever they are."""
        if not values.size:
            return values.astype(np.int64)
        low, high = values.min(), values.max()
        if self.packed:
            steps = self.packing.steps(values)
            limits = float(steps.min()), float(steps.max())
        elif values.dtype.kind == "f" and (values != np.rint(values)).any():
            wrong = values[values != np.rint(values)][0]
            raise SchemaError(
                f"pixel value {wrong}, expected whole numbers, as in fit; fit it with floats where "
                "images have fractions"
            )
        else:
            steps, limits = values, (float(low) - self.lowest, float(high) - self.lowest)
        if not max(map(abs, limits)) <= _FAR:
            raise SchemaError(
                f"pixel values from {low} to {high}, expected values near those fitted, "
                f"{self.lowest} to {self.highest}; bring them to one scale"
            )
        whole: Int64Array = steps.astype(np.int64)
        return whole if self.packed else whole - int(self.lowest)


def _parts(values: Array) -> list[slice]:
    """Return ranges of rows that are converted at once."""
    step = max(1, _BLOCK_VALUES // max(1, values.shape[1]))
    return [slice(start, start + step) for start in range(0, len(values), step)]


def choose_encoding(values: Any, value_range: Any = None) -> Encoding:
    """Choose how values become integers.

    Parameters
    ----------
    values
        [sample, value]; a NumPy or dask array. It is read where its type does not tell the range.
    value_range
        The lowest and the highest value; default: those of the values, of uint8 and uint16 those
        of the type.

    Raises
    ------
    SchemaError
        Where they are no numbers, not finite, or integers of too wide a range.
    """
    dtype = np.dtype(values.dtype)
    if dtype.kind not in "buif":
        raise SchemaError(f"images of {dtype}, expected integers, floats or truth values")
    given = None if value_range is None else _given_range(value_range)
    if dtype.kind == "f":
        if given is not None:
            return _packed(*given)
        low, high, whole = _survey(values)
        return _packed(low, _widened(low, high) if whole else high)
    if dtype.kind == "b":
        return Encoding("uint8", 0, 255, False, 1)
    if given is None:
        if str(dtype) in PIXEL_TYPES:
            return _shifted(0, largest_pixel(dtype))
        given = _survey(values)[:2]
    if any(float(value) != math.floor(value) for value in given):
        raise SchemaError(f"value_range {given}, expected whole numbers for images of {dtype}")
    return _shifted(int(given[0]), int(given[1]))


def _given_range(value_range: Any) -> tuple[Any, Any]:
    try:
        low, high = value_range
        good = math.isfinite(low) and math.isfinite(high) and low < high
    except (TypeError, ValueError):
        good = False
    if not good:
        raise SchemaError(
            f"value_range {describe(value_range)}, expected the lowest and the highest pixel value"
        )
    return low, high


def _shifted(low: int, high: int) -> Encoding:
    offset = 0 if low >= 0 and high <= STEPS else low
    if high - offset > STEPS or max(abs(low), abs(high)) >= 2**62:
        raise SchemaError(
            f"integers from {low} to {high}, expected a range of at most {STEPS}, which fits 16 "
            "bits; make them floats to have them rounded to steps"
        )
    dtype = PIXEL_TYPES[high - offset > 255]
    largest = largest_pixel(dtype)
    return Encoding(dtype, offset, offset + largest, False, largest)


def _packed(low: float, high: float) -> Encoding:
    highest = high if high > low else low + max(1.0, abs(low))
    encoding = Encoding("uint16", float(low), float(highest), True, STEPS)
    _ = encoding.packing  # refuses what cannot be packed
    return encoding


def _widened(low: float, high: float) -> float:
    """Return the highest value of a range whose steps hit all whole numbers in it, if there is."""
    each = STEPS // (high - low) if high > low else 0
    return max(high, low + STEPS / each) if each else high


def _survey(values: Any) -> tuple[Any, Any, bool]:
    """Return the lowest and the highest value, and whether all are whole numbers."""
    lazy = isinstance(values, da.Array)
    make = values.map_blocks(_survey_block, chunks=(1, 3), dtype=object) if lazy else values
    blocks = make.compute() if lazy else _survey_block(values)
    kind = values.dtype.kind
    known = [row for row in blocks if row[0] is not None]
    if not known:
        raise SchemaError(f"images of shape {values.shape}, expected one sample at least")
    low, high = min(row[0] for row in known), max(row[1] for row in known)
    if kind == "f" and not all(math.isfinite(value) for row in known for value in row[:2]):
        raise SchemaError("pixel values contain NaN or inf, expected finite numbers")
    return low, high, all(row[2] for row in known)


def _survey_block(values: Array) -> Array:
    """[1, 3]; the lowest and highest value, and whether all are whole; None without values."""
    rows: list[tuple[Any, Any, bool]] = []
    for part in _parts(values):
        block = values[part]
        if not block.size:
            continue
        extremes = block.min().item(), block.max().item()
        finite = all(map(math.isfinite, extremes))
        whole = block.dtype.kind != "f" or (finite and bool((block == np.rint(block)).all()))
        rows.append((*extremes, whole))
    result = np.full((1, 3), None, object)
    if rows:
        lows, highs, wholes = zip(*rows, strict=True)
        odd = [value for value in (*lows, *highs) if value != value]  # NaN
        result[0] = min(odd or lows), max(odd or highs), all(wholes)
    return result


def check_image_shape(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Raise `ShapeError` for images of another shape; rows of as many values are taken."""
    rows = len(shape) == 1 or len(expected) == 1
    if shape != expected and not (rows and math.prod(shape) == math.prod(expected)):
        raise ShapeError(
            f"images of shape {shape}, expected {expected} as in fit, or rows of "
            f"{math.prod(expected)} values; bring them to one shape"
        )
