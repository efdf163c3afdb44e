"""Per-class medians, exact, out of core: from counts that add up.

How often each pixel of each class has each of 256 values is a table of integers, and the tables
of the parts of an image set add up to that of the whole, in any order. The median follows from
it. 16-bit pixels take two passes: the first counts high bytes, which gives the high byte of the
median; the second counts the low bytes of the values that have it.

For an even number of images the median is halfway between the two in the middle, as NumPy's is:
always the sum of the lower and the upper one over 2, an exact fraction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dask
import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr

from pipeline.core.arguments import checked
from pipeline.core.classes import select_classes
from pipeline.core.exact import Int64Array, check_count_bound
from pipeline.core.schema import COUNT, IMAGE, PIXEL_SUM, SAMPLE
from pipeline.kernels import backends
from pipeline.kernels.backends import Kernels, Pixels
from pipeline.ops.prototypes import (
    class_names_of,
    class_sums,
    each_block,
    label_prototypes,
    label_sums,
    lazy_images,
)
from pipeline.ops.reduction import add_up

BINS = 256

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
        [2, class, pixel]; the high bytes of the lower and of the upper middle value.

    Returns
    -------
    [2, class, pixel, 256]; for the lower and for the upper middle value.
    """
    return np.stack([use.histograms(images, positions, classes, part) for part in high])


def images_counted(counts: Counts) -> Int64Array:
    """Return the number of images of each class, [class], from [class, pixel, 256] counts."""
    # each pixel has a value in every image
    return np.asarray(counts[:, 0].sum(axis=1, dtype=np.int64))


def middle_ranks(counts: Counts) -> Int64Array:
    """Return the ranks of the two middle values, [2, class, pixel]; equal for odd numbers.

    Parameters
    ----------
    counts
        [class, pixel, 256].
    """
    images = images_counted(counts)
    ranks = np.stack([np.maximum(images - 1, 0) // 2, images // 2])
    return np.broadcast_to(ranks[:, :, None], (2, *counts.shape[:2])).copy()


def first_bytes(counts: Counts) -> tuple[npt.NDArray[np.uint8], Int64Array]:
    """Find the (high) bytes of the two middle values; see `select_bytes`."""
    return select_bytes(counts, middle_ranks(counts))


def select_bytes(
    counts: Counts | Sequence[Counts], ranks: Int64Array
) -> tuple[npt.NDArray[np.uint8], Int64Array]:
    """Find the values of some ranks, and the ranks that are left among equal values.

    Parameters
    ----------
    counts
        Two of [class, pixel, 256], or one for both.
    ranks
        [2, class, pixel]; from 0.

    Returns
    -------
    [2, class, pixel] each; 0 for a class without images.
    """
    one = isinstance(counts, np.ndarray) and counts.ndim == 3
    tables = (counts, counts) if one else counts
    select = backends.load("cpu").select_ranks
    selected = [select(table, rank) for table, rank in zip(tables, ranks, strict=True)]
    return np.stack([value for value, _ in selected]), np.stack([rest for _, rest in selected])


def median_numerators(high: Any, low: Any = None) -> Int64Array:
    """Return twice the median, [class, pixel], from the bytes of the two middle values."""
    values = high.astype(np.int64)
    if low is not None:
        values = 256 * values + low
    return np.asarray(values.sum(axis=0))


@checked
def class_medians(
    images: xr.Dataset, classes: Sequence[str] | None = None, device: str = "auto"
) -> xr.Dataset:
    """Make the median image of each class, lazily.

    A table of 256 counts for each pixel of each class must fit into memory a few times; a job
    with `prototypes: median` takes the pixels in parts where it does not.

    Parameters
    ----------
    images, classes, device
        As for `class_sums`.

    Returns
    -------
    As `prototypes` returns, with the median as `prototype`: `numerator` is twice the median,
    `denominator` is 2.

    Raises
    ------
    SchemaError, LabelError
        As for `class_sums`.
    """
    selection = select_classes(class_names_of(images), classes)
    lazy = lazy_images(images)
    image = lazy[IMAGE.name]
    check_count_bound(image.sizes[SAMPLE])
    classes_pixels = len(selection.codes), int(np.prod(image.shape[1:]))
    sizes = dict(zip("cpv", (*classes_pixels, BINS), strict=True))
    blocks = each_block(histograms_block, sizes, lazy, selection, np.uint32, device)
    counts = add_up(blocks).to_delayed().item()  # made once for all that follows
    high, rest = dask.delayed(first_bytes, nout=2)(counts)
    if image.dtype == np.uint8:
        numerator = dask.delayed(median_numerators)(high)
        packed = da.from_delayed(
            dask.delayed(sums_of_counts)(counts),
            (classes_pixels[0], 2 * classes_pixels[1] + 1),
            np.int64,
        )
        sums = label_sums(packed, selection, lazy)
    else:
        wanted = da.from_delayed(high, (2, *classes_pixels), np.uint8)
        both = {"h": 2, **sizes}
        more = each_block(low_histograms_block, both, lazy, selection, np.uint32, device, wanted)
        low, _ = dask.delayed(select_bytes, nout=2)(add_up(more), rest)
        numerator = dask.delayed(median_numerators)(high, low)
        sums = class_sums(images, classes, device)
    # counted here too, so that the medians alone need no sums
    number = da.from_delayed(dask.delayed(images_counted)(counts), classes_pixels[:1], np.int64)
    sums[COUNT.name] = sums[COUNT.name].copy(data=number)
    return label_medians(sums, da.from_delayed(numerator, classes_pixels, np.int64))


def sums_of_counts(counts: Counts) -> Int64Array:
    """Return what `class_sums_block` returns, from [class, pixel, 256] counts of 8-bit values."""
    values = np.arange(BINS, dtype=np.int64)
    wide = [table.astype(np.int64) for table in counts]
    sums, squares = ([table @ weights for table in wide] for weights in (values, values**2))
    return np.column_stack([sums, squares, images_counted(counts)])


def label_medians(sums: xr.Dataset, numerators: Any) -> xr.Dataset:
    """Label medians as `prototypes` returns them.

    Parameters
    ----------
    sums
        As `class_sums` returns.
    numerators
        [class, pixel]; twice the median.
    """
    like = sums[PIXEL_SUM.name]
    numerator = like.copy(data=numerators.reshape(like.shape))
    denominator = (2 * (sums[COUNT.name] > 0)).astype(np.int64)
    return label_prototypes(sums, numerator, denominator, "median")
