"""Per-class sums, and the means that follow from them.

A prototype is an exact fraction, an integer image over one positive integer: the mean of a
class is its pixel sums over its number of images. Sums of integers come out the same in any
order, so chunks are summed where they lie and added up in a tree. The sums of squares that are
taken in the same pass give the standard deviation of every pixel. See `medians` for medians.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from pipeline.core.arguments import checked
from pipeline.core.arrays import Arrays
from pipeline.core.classes import ClassSelection
from pipeline.core.deferred import deferred
from pipeline.core.errors import EmptyClassError
from pipeline.core.exact import (
    Float64Array,
    Int64Array,
    check_sum_bound,
    finish_spread,
    largest_pixel,
)
from pipeline.core.schema import (
    CLASS,
    CLASS_CODE,
    COUNT,
    DENOMINATOR,
    IMAGE,
    LABEL,
    NUMERATOR,
    PIXEL_SQUARE_SUM,
    PIXEL_SUM,
    PIXEL_TYPES,
    PROTOTYPE,
    SAMPLE,
    SPREAD,
    pick,
)
from pipeline.kernels import backends
from pipeline.kernels.protocols import Kernels, Pixels
from pipeline.ops.labelled import classes_of, full_scale_of, lazy_images
from pipeline.ops.reduction import Kind, add_results, result_of, results_of

if TYPE_CHECKING:
    import dask.array as da
    import xarray as xr
else:
    da = deferred("dask.array")
    xr = deferred("xarray")

PrototypeKind = Literal["mean", "median"]
BlockFunction = Callable[..., npt.NDArray[Any]]
"""Called with kernels, images [sample, pixel], positions [sample] and the number of classes."""


def class_sums_block(
    use: Kernels, images: Pixels, positions: Int64Array, classes: int
) -> Int64Array:
    """Sum one block of images by class.

    Parameters
    ----------
    use
        The kernels of a device.
    images
        [sample, pixel].
    positions
        [sample]; the position of each label among the classes, -1 to leave the image out.
    classes
        How many there are.

    Returns
    -------
    [class, 2 * pixel + 1]; the sums of pixels, those of squares, and in the last column the
    number of images. In one array, so that one addition adds up all.
    """
    sums, squares, counts = use.class_sums(images, positions, classes)
    return np.concatenate([sums, squares, counts[:, None]], axis=1)


def flat_images(images: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return images, [sample, ...], as the kernels take them, [sample, pixel]."""
    return np.ascontiguousarray(images).reshape(len(images), int(np.prod(images.shape[1:])))


D = TypeVar("D", "xr.Dataset", Arrays)
"""What labels are put on: lazy arrays for a notebook, or those that a job has in memory."""


@checked
def class_sums(
    images: xr.Dataset, classes: Sequence[str] | None = None, device: str = "auto"
) -> xr.Dataset:
    """Sum the images of each class, lazily.

    Parameters
    ----------
    images
        `image` (sample, y, x[, channel]) uint8 or uint16 and `label` (sample), integers, as
        `open_images` returns: dimensions in any order, in chunks or in memory. Without the
        attribute `class_names` the flags of `label` name the classes, or its codes, which are read
        for it. Numbers of other types are taken where the attribute `full_scale` is there and all
        are whole, as `.where()` leaves pixels.
    classes
        Names of the classes to sum; default: all.
    device
        `auto`, `cpu`, `cuda` or `torch:cpu`; the same bits on each.

    Returns
    -------
    `pixel_sum` and `pixel_square_sum` (class_name, y, x[, channel]) int64 and `count` (class_name)
    int64, classes in the order of their codes. Nothing is read until it is computed.

    Raises
    ------
    SchemaError
        Where dimensions, dtypes or attributes are not as above.
    LabelError
        Where a class is not known; when computed, where a label is no code.

    Examples
    --------
    >>> import numpy as np
    >>> import xarray as xr
    >>> pixels = np.array([[[0, 2]], [[4, 6]], [[9, 9]]], np.uint8)
    >>> variables = {"image": (("sample", "y", "x"), pixels), "label": ("sample", [0, 0, 1])}
    >>> class_sums(xr.Dataset(variables)).compute().pixel_sum.values.tolist()
    [[[4, 8]], [[9, 9]]]
    """
    lazy = lazy_images(images)
    selection, image = classes_of(lazy, classes), lazy[IMAGE.name]
    check_sum_bound(image.sizes[SAMPLE], image.dtype)
    shape = len(selection.codes), 2 * int(np.prod(image.shape[1:])) + 1
    packed = add_blocks(class_sums_block, (shape, np.int64), lazy, selection, device)
    return label_sums(packed, selection, lazy)


def add_blocks(
    function: BlockFunction,
    kind: Kind,
    lazy: xr.Dataset,
    selection: ClassSelection,
    device: str,
    extra: da.Array | None = None,
) -> da.Array:
    """Call a function for each block of images, and add up what it returns, lazily.

    Parameters
    ----------
    function
        Called as `class_sums_block` is; with `extra` too where that is given.
    kind
        Shape and dtype of what it returns.
    lazy
        As `lazy_images` returns.
    selection
        The classes.
    device
        As for `backends.load`.
    extra
        An array of one chunk.
    """
    image, label = (lazy.variables[variable.name].data for variable in (IMAGE, LABEL))
    call = partial(_call_block, function=function, selection=selection, device=device)
    more = [] if extra is None else [(extra.name,) + (0,) * extra.ndim]
    starts = np.cumsum([0, *image.chunks[0][:-1]]).tolist()
    calls = [
        ((image.name, number) + (0,) * (image.ndim - 1), (label.name, number), start, *more)
        for number, start in enumerate(starts)
    ]
    return add_results(call, calls, kind, [image, label] + [extra] * len(more))


def _call_block(
    images: npt.NDArray[Any],
    labels: npt.NDArray[Any],
    start: int,
    *extra: Any,
    function: BlockFunction,
    selection: ClassSelection,
    device: str,
) -> npt.NDArray[Any]:
    positions = selection.positions(labels, first=start)
    use = backends.load(device)
    return function(use, flat_images(images), positions, len(selection.codes), *extra)


def label_sums(packed: Any, selection: ClassSelection, images: D, count: Any = None) -> D:
    """Label added-up results of `class_sums_block`, in memory or lazy, as `class_sums` returns.

    Parameters
    ----------
    packed
        [class, 2 * pixel + 1]; as `class_sums_block` returns.
    selection
        The classes.
    images
        The images that were summed; only their shape and attributes are looked at.
    count
        [class]; the numbers of images, where they are known without the sums.
    """
    image: Any = images[IMAGE.name]
    dims: tuple[str, ...] = image.dims[1:]
    shape: tuple[int, ...] = image.shape[1:]
    sizes = (len(selection.codes), *shape)
    kinds = [(sizes, np.int64), (sizes, np.int64), (sizes[:1], np.int64)]
    sums, squares, counted = results_of(_unpack, [packed], kinds, shape=shape)
    return type(images)(
        {
            PIXEL_SUM.name: ((CLASS, *dims), sums, PIXEL_SUM.attributes),
            PIXEL_SQUARE_SUM.name: ((CLASS, *dims), squares, PIXEL_SQUARE_SUM.attributes),
            COUNT.name: (CLASS, counted if count is None else count, COUNT.attributes),
        },
        class_coordinates(selection, images),
        class_attributes(selection, images),
    )


def _unpack(packed: Int64Array, shape: tuple[int, ...]) -> tuple[Int64Array, ...]:
    pixels, sizes = int(np.prod(shape)), (len(packed), *shape)
    sums, squares = packed[:, :pixels].reshape(sizes), packed[:, pixels:-1].reshape(sizes)
    return sums, squares, packed[:, -1]


def class_coordinates(selection: ClassSelection, images: Any) -> dict[str, Any]:
    """Return the coordinates of what is known of each class: names, codes, pixel positions."""
    image = images[IMAGE.name]
    codes = np.array(selection.codes, np.int32)
    coordinates: dict[str, Any] = {
        CLASS: list(selection.names),
        CLASS_CODE.name: (CLASS, codes, CLASS_CODE.attributes),
    }
    return coordinates | {
        str(dim): images.coords[dim] for dim in image.dims[1:] if dim in images.coords
    }


def class_attributes(selection: ClassSelection, images: Any) -> dict[str, Any]:
    """Return the attributes that tell what prototypes were made from."""
    return {
        "class_names": list(selection.all_names),
        "full_scale": full_scale_of(images),
        "pixel_dtype": str(images[IMAGE.name].dtype),
    }


@checked
def prototypes(sums: xr.Dataset) -> xr.Dataset:
    """Make the mean image of each class from its sums, lazily.

    Parameters
    ----------
    sums
        As `class_sums` returns.

    Returns
    -------
    `prototype` (class_name, y, x[, channel]) float64 in pixel values, and the exact fraction
    behind it: `numerator` of the same dimensions and `denominator` (class_name), both int64;
    `std`, the standard deviation of each pixel over the class, as `prototype`. A class without
    images has denominator 0, and a prototype and deviation of NaN.

    Examples
    --------
    >>> import pipeline
    >>> train = pipeline.open_images(pipeline.ingest("digits"))
    >>> means = pipeline.prototypes(pipeline.class_sums(train))
    >>> means["prototype"].sel(class_name="7").values[0].round(1).tolist()
    [0.0, 0.0, 4.3, 12.2, 13.8, 10.9, 5.3, 1.5]
    """
    ordered = sums.assign({v.name: pick(sums, v) for v in (PIXEL_SUM, PIXEL_SQUARE_SUM, COUNT)})
    return label_prototypes(ordered, ordered[PIXEL_SUM.name].data, ordered[COUNT.name].data, "mean")


def label_prototypes(
    sums: D, numerator: Any, denominator: Any, kind: PrototypeKind, quotient: Any = None
) -> D:
    """Label the exact fractions behind prototypes as `prototypes` returns them.

    Parameters
    ----------
    sums
        As `class_sums` returns.
    numerator, denominator
        (class_name, y, x[, channel]) and (class_name); NumPy's arrays or dask's.
    kind
        What they are.
    quotient
        What `divide` makes of them, where that is known.
    """
    like: Any = sums[PIXEL_SUM.name]
    dims, count = like.dims, sums[COUNT.name]
    # deviations are the same bits whatever is allowed for
    largest = largest_pixel(sums.attrs.get("pixel_dtype", PIXEL_TYPES[-1]))
    fraction = numerator, denominator
    if quotient is None:
        quotient = _on_blocks(divide, *fraction)
    moments = sums[PIXEL_SUM.name].data, sums[PIXEL_SQUARE_SUM.name].data, count.data
    return type(sums)(
        {
            NUMERATOR.name: (dims, fraction[0], NUMERATOR.attributes),
            DENOMINATOR.name: (CLASS, fraction[1], DENOMINATOR.attributes),
            PROTOTYPE.name: (dims, quotient, PROTOTYPE.attributes),
            SPREAD.name: (
                dims, _on_blocks(finish_spread, *moments, largest=largest), SPREAD.attributes,
            ),
        },
        {**sums.coords, COUNT.name: count.variable},
        {**sums.attrs, "prototypes": kind},
    )  # fmt: skip


def divide(numerators: Int64Array, denominators: Int64Array) -> Float64Array:
    """Return prototypes from exact fractions, as float64; NaN where the denominator is 0."""
    over = np.where(denominators > 0, denominators, np.nan)
    return np.asarray(numerators / over.reshape(-1, *(1,) * (numerators.ndim - 1)))


def _on_blocks(function: Any, *arrays: Any, **settings: Any) -> Any:
    """Call a function on arrays, [class, ...] or [class], now or, of lazy arrays, later."""
    if all(isinstance(array, np.ndarray) or array.npartitions == 1 for array in arrays):
        kind = arrays[0].shape, np.float64
        return result_of(function, arrays, kind, **settings)
    letters = [item for array in arrays for item in (array, "cyxk"[: array.ndim])]
    axes = "cyxk"[: arrays[0].ndim]
    meta = np.empty((0,) * len(axes), np.float64)
    return da.blockwise(function, axes, *letters, dtype=np.float64, meta=meta, **settings)


def refuse_empty_classes(names: Sequence[str], counts: Sequence[int], split: str) -> None:
    """Raise `EmptyClassError` where a class has no image to make a prototype from."""
    empty = [name for name, count in zip(names, counts, strict=True) if not count]
    if empty:
        shown = ", ".join(f"'{name}'" for name in empty[:5]) + (", ..." if len(empty) > 5 else "")
        raise EmptyClassError(
            f"no image of class {shown} in split '{split}', expected one at least; leave "
            "them out with 'classes', or set allow_empty_classes: true"
        )
