"""Per-class medians, exact, out of core: from counts that add up.

How often each pixel of each class has each of 256 values is a table of integers, and the tables
of the parts of an image set add up to that of the whole, in any order. The median follows from
it. 16-bit pixels take two passes: the first counts high bytes, which gives the high byte of the
median; the second counts the low bytes of the values that have it.

For an even number of images the median is halfway between the two in the middle, as NumPy's is:
always the sum of the lower and the upper one over 2, an exact fraction. The median of all images
but one follows from four values around the middle, see `median_shifts`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.core.arguments import checked
from pipeline.core.deferred import deferred
from pipeline.core.exact import Int64Array, check_count_bound
from pipeline.core.schema import COUNT, FALL, IMAGE, PIXEL_SUM, RISE, SAMPLE
from pipeline.kernels import backends
from pipeline.kernels.protocols import Kernels, Pixels
from pipeline.ops.labelled import NAMES, classes_of, lazy_images
from pipeline.ops.prototypes import (
    D,
    add_blocks,
    class_sums,
    divide,
    label_prototypes,
    label_sums,
)
from pipeline.ops.reduction import Kind, result_of, results_of

if TYPE_CHECKING:
    import xarray as xr
else:
    xr = deferred("xarray")

BINS = 256
MIDDLE, AROUND = 2, 4
"""Values that make a median, and values that make that of all images but one."""

Counts = npt.NDArray[np.uint32]


def histograms_block(use: Kernels, images: Pixels, positions: Int64Array, classes: int) -> Counts:
    """Count the values of each pixel in one block of images, class by class.

    Parameters as for `class_sums_block`.

    Returns
    -------
    [class, pixel, 256]; of 16-bit pixels the counts of high bytes.
    """
    return use.histograms(images, positions, classes)


def low_histograms_block(
    use: Kernels, images: Pixels, positions: Int64Array, classes: int, high: npt.NDArray[np.uint8]
) -> Counts:
    """Count the low bytes of 16-bit values that have the high byte of a middle value.

    Parameters as for `class_sums_block`, and

    high
        [rank, class, pixel]; the high bytes of the middle values.

    Returns
    -------
    [rank, class, pixel, 256]; for each of them.
    """
    return np.stack([use.histograms(images, positions, classes, part) for part in high])


def images_counted(counts: Counts) -> Int64Array:
    """Return the number of images of each class, [class], from [class, pixel, 256] counts."""
    # each pixel has a value in every image
    return np.asarray(counts[:, 0].sum(axis=1, dtype=np.int64))


def middle_ranks(counts: Counts, values: int = MIDDLE) -> Int64Array:
    """Return the ranks of the middle values, [rank, class, pixel].

    Parameters
    ----------
    counts
        [class, pixel, 256].
    values
        `MIDDLE`: of n images ranks (n - 1) // 2 and n // 2, equal for odd numbers; `AROUND`: those
        between (n - 2) // 2 and (n + 1) // 2. The nearest rank there is, where there is no such.
    """
    images = images_counted(counts)
    first = 1 - values // 2
    ranks = np.stack([(images + shift - 1) // 2 for shift in range(first, first + values)])
    ranks = np.clip(ranks, 0, np.maximum(images - 1, 0))
    return np.broadcast_to(ranks[:, :, None], (values, *counts.shape[:2])).copy()


def first_bytes(
    counts: Counts, values: int = MIDDLE, device: str = "cpu"
) -> tuple[npt.NDArray[np.uint8], Int64Array]:
    """Find the (high) bytes of the middle values; see `middle_ranks` and `select_bytes`."""
    return select_bytes(counts, middle_ranks(counts, values), device)


def select_bytes(
    counts: Counts | Sequence[Counts], ranks: Int64Array, device: str = "cpu"
) -> tuple[npt.NDArray[np.uint8], Int64Array]:
    """Find the values of some ranks, and the ranks that are left among equal values.

    Parameters
    ----------
    counts
        One of [class, pixel, 256] for each rank, or one for all.
    ranks
        [rank, class, pixel]; from 0.
    device
        `cpu` or `numpy`; see `backends.for_work`.

    Returns
    -------
    [rank, class, pixel] each; 0 for a class without images.
    """
    one = isinstance(counts, np.ndarray) and counts.ndim == 3
    tables = [counts] * len(ranks) if one else counts
    select = backends.load(device).select_ranks
    selected = [select(table, rank) for table, rank in zip(tables, ranks, strict=True)]
    return np.stack([value for value, _ in selected]), np.stack([rest for _, rest in selected])


def _values(high: Any, low: Any) -> Int64Array:
    values = high.astype(np.int64)
    return np.asarray(values if low is None else 256 * values + low)


def median_numerators(high: Any, low: Any = None) -> Int64Array:
    """Return twice the median, [class, pixel], from the bytes of the middle values."""
    values = _values(high, low)
    middle = len(values) // 2
    return np.asarray(values[middle - 1] + values[middle])


def median_shifts(high: Any, low: Any = None) -> Int64Array:
    """Return how far twice the median moves without one image, from the bytes around the middle.

    Let v be the values of a pixel in order. Twice their median is v[(n-1)//2] + v[n//2]. Without
    one of the lower values it is v[n//2] + v[(n+1)//2], without one of the higher ones
    v[(n-2)//2] + v[(n-1)//2], and of odd numbers without that in the middle the sum of the first
    and the last of these four. So the difference to that of all is a rise without a value that
    is not above the median, and a fall without one that is not below it; both, where it is equal.

    Returns
    -------
    [2, class, pixel]; the rise and the fall, neither of them negative.
    """
    values = _values(high, low)
    return np.stack([values[3] - values[1], values[2] - values[0]])


def median_images(high: Any, low: Any = None) -> Int64Array:
    """Return twice the median, and of four values the shifts too: [1 or 3, class, pixel]."""
    numerators = median_numerators(high, low)[None]
    if len(high) < AROUND:
        return numerators
    return np.concatenate([numerators, median_shifts(high, low)])


@checked
def class_medians(
    images: xr.Dataset,
    classes: Sequence[str] | None = None,
    device: str = "auto",
    leave_one_out: bool = False,
) -> xr.Dataset:
    """Make the median image of each class, lazily.

    A table of 256 counts for each pixel of each class must fit into memory a few times; a job
    with `prototypes: median` takes the pixels in parts where it does not.

    Parameters
    ----------
    images, classes, device
        As for `class_sums`.
    leave_one_out
        Whether `distances` will measure these images without themselves.

    Returns
    -------
    As `prototypes` returns, with the median as `prototype`: `numerator` is twice the median,
    `denominator` is 2. With `leave_one_out` also `rise` and `fall`, int64 of the dimensions of
    `numerator`: how far that moves without one of the lower, or higher, images.

    Raises
    ------
    SchemaError, LabelError
        As for `class_sums`.

    Examples
    --------
    >>> import pipeline
    >>> train = pipeline.open_images(pipeline.ingest("digits"))
    >>> medians = pipeline.class_medians(train, ["7"])
    >>> medians["prototype"].values[0, 0].tolist()
    [0.0, 0.0, 4.0, 13.0, 15.0, 13.0, 2.5, 0.0]
    """
    lazy = lazy_images(images)
    selection, image = classes_of(lazy, classes), lazy[IMAGE.name]
    check_count_bound(image.sizes[SAMPLE])
    sizes = len(selection.codes), int(np.prod(image.shape[1:]))
    middle = AROUND if leave_one_out else MIDDLE
    of_ranks = (middle, *sizes)
    made = (3 if leave_one_out else 1, *sizes), np.int64
    table = (*sizes, BINS), np.uint32
    counts = add_blocks(histograms_block, table, lazy, selection, device)
    # counted here too, so that the medians alone need no sums
    number = result_of(images_counted, [counts], (sizes[:1], np.int64))
    if image.dtype == np.uint8:
        numerators = result_of(_of_bytes, [counts], made, values=middle)
        kind = (sizes[0], 2 * sizes[1] + 1), np.int64
        packed = result_of(sums_of_counts, [counts], kind)
        return label_medians(label_sums(packed, selection, lazy, number), numerators)
    kinds = [(of_ranks, np.uint8), (of_ranks, np.int64)]
    high, rest = results_of(first_bytes, [counts], kinds, values=middle)
    tables = (*of_ranks, BINS), np.uint32
    low = add_blocks(low_histograms_block, tables, lazy, selection, device, high)
    numerators = result_of(_of_words, [high, low, rest], made)
    named = lazy.assign_attrs({NAMES: list(selection.all_names)})
    sums = class_sums(named, selection.names, device)
    sums[COUNT.name] = sums[COUNT.name].copy(data=number)
    return label_medians(sums, numerators)


def _of_bytes(counts: Counts, values: int) -> Int64Array:
    return median_images(first_bytes(counts, values)[0])


def _of_words(high: npt.NDArray[np.uint8], low: Counts, rest: Int64Array) -> Int64Array:
    return median_images(high, select_bytes(low, rest)[0])


def sums_of_counts(counts: Counts) -> Int64Array:
    """Return what `class_sums_block` returns, from [class, pixel, 256] counts of 8-bit values."""
    values = np.arange(BINS, dtype=np.int64)
    wide = [table.astype(np.int64) for table in counts]
    sums, squares = ([table @ weights for table in wide] for weights in (values, values**2))
    return np.column_stack([sums, squares, images_counted(counts)])


def label_medians(sums: D, numerators: Any) -> D:
    """Label medians as `prototypes` returns them.

    Parameters
    ----------
    sums
        As `class_sums` returns.
    numerators
        [1 or 3, class, pixel]; as `median_images` returns.
    """
    like = sums[PIXEL_SUM.name]
    kinds: list[Kind] = [(like.shape, np.float64), (like.shape[:1], np.int64)]
    kinds += [(like.shape, np.int64)] * len(numerators)
    fraction = [numerators, sums[COUNT.name].data]
    quotient, denominator, numerator, *shifts = results_of(
        _fraction, fraction, kinds, shape=like.shape
    )
    labelled = label_prototypes(sums, numerator, denominator, "median", quotient)
    if shifts:
        for variable, values in zip((RISE, FALL), shifts, strict=True):
            labelled[variable.name] = like.dims, values, variable.attributes
        labelled.attrs["shifts"] = [RISE.name, FALL.name]  # for readers of a store
    return labelled


def _fraction(
    images: Int64Array, count: Int64Array, shape: tuple[int, ...]
) -> list[npt.NDArray[Any]]:
    """Return medians, their denominators and numerators, and how far these move."""
    denominators = 2 * (count > 0).astype(np.int64)
    numerators, *shifts = (image.reshape(shape) for image in images)
    return [divide(numerators, denominators), denominators, numerators, *shifts]
