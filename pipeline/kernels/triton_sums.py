"""Sums and histograms by class in Triton: every pixel is read from the device's memory once.

**Sums.** The images of a window are put in the order of their classes, by their numbers alone, so
that a program has the images of one class: it adds a tile of pixels and of their squares in
registers, in 32 bits, three operations a pixel, and at its end to sums of 64 bits. A product with a
one-hot matrix on the tensor cores needs no order, but the squares as two planes of bytes, which
take more operations to make than the sums themselves. Windows keep the images that are read at
one time beside each other in memory. Of 16-bit pixels squares are added in 64 bits.

**Histograms.** One addition to a counter in the second-level cache for each pixel, and none for
pixels that are 0, which follow from the others: slower than sums, and not bound by memory.

The block sizes are chosen for Hopper from the machine code and from counting operations, and
have not been measured on a GPU; `tests/benchmarks/gpu.py` tries others.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import triton
import triton.language as tl

from pipeline.core.accumulators import SEGMENT
from pipeline.core.exact import Int64Array
from pipeline.kernels.transfers import Sums, add_up, as_tensor, for_each_batch

# Images of a class that a window has on average, where classes are equally large.
_OF_CLASS = 512
_LEAST_WINDOW = 4096
SUMS = {"ROWS": 16, "COLUMNS": 256, "STAGES": 3, "num_warps": 4}
"""Images and pixels of a tile, tiles that are read ahead, and warps of a program."""
_COUNTS = {"ROWS": 4, "COLUMNS": 256, "num_warps": 4}


@triton.jit
def _add_classes(
    images, order, edges, classes, pixels, sums, squares,
    WIDE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(pixels, COLUMNS)
    segment = tl.program_id(0) // blocks
    columns = (tl.program_id(0) % blocks) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < pixels
    begin = tl.load(edges + segment)
    end = tl.load(edges + segment + 1)
    kind: tl.constexpr = tl.int64 if WIDE else tl.int32
    total = tl.zeros([ROWS, COLUMNS], tl.int32)
    squared = tl.zeros([ROWS, COLUMNS], kind)
    for first in tl.range(begin, end, ROWS, num_stages=STAGES):
        rows = first + tl.arange(0, ROWS)
        there = rows < end
        samples = tl.load(order + rows, mask=there, other=0).to(tl.int64)
        at = images + samples[:, None] * pixels + columns[None, :]
        x = tl.load(at, mask=there[:, None] & inside[None, :], other=0)
        total += x.to(tl.int32)
        squared += x.to(kind) * x.to(kind)
    if begin < end:
        target = (segment % (classes + 1)).to(tl.int64) * pixels + columns
        tl.atomic_add(sums + target, tl.sum(total, 0).to(tl.int64), mask=inside, sem="relaxed")
        tl.atomic_add(squares + target, tl.sum(squared, 0).to(tl.int64), mask=inside, sem="relaxed")


def window_of(classes: int) -> int:
    """Return how many images are ordered by class at a time; sums of them fit 32 bits."""
    return min(max(classes * _OF_CLASS, _LEAST_WINDOW), SEGMENT)


def order_by_class(
    positions: torch.Tensor, classes: int, window: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Put images in the order of their windows, and of their classes in a window.

    `positions` is [sample] int64, the position of each image's class, negative to leave it out.

    Returns
    -------
    [sample] int64, the images; and [window * (class + 1) + 1] int64, where those of each class of
    each window begin, those that are left out last.
    """
    windows = -(-len(positions) // window)
    numbers = torch.arange(len(positions), device=positions.device) // window
    mine = torch.where(positions < 0, classes, positions)
    keys, order = torch.sort((numbers * (classes + 1) + mine).to(torch.int32))
    starts = torch.arange(windows * (classes + 1) + 1, device=keys.device, dtype=torch.int32)
    return order, torch.searchsorted(keys, starts)


def add_classes(
    batch: torch.Tensor,
    ordered: tuple[torch.Tensor, torch.Tensor],
    sums: torch.Tensor,
    **settings: int,
) -> None:
    """Add images that lie on the device to sums that do.

    Parameters
    ----------
    batch
        [sample, pixel] uint8 or uint16.
    ordered
        As `order_by_class` returns.
    sums
        [2, class + 1, pixel] int64; sums and sums of squares, the last class for what is left out.
    settings
        Instead of `SUMS`.
    """
    order, edges = ordered
    chosen = SUMS | settings
    blocks = triton.cdiv(batch.shape[1], chosen["COLUMNS"])
    _add_classes[((len(edges) - 1) * blocks,)](
        batch, order, edges, sums.shape[1] - 1, batch.shape[1], sums[0], sums[1],
        WIDE=batch.dtype == torch.uint16, **chosen,
    )  # fmt: skip


@triton.jit
def _count_values(
    images, positions, high, samples, pixels, counts,
    LOW: tl.constexpr, SHIFT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(pixels, COLUMNS)
    rows = (tl.program_id(0) // blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = (tl.program_id(0) % blocks) * COLUMNS + tl.arange(0, COLUMNS)
    there = rows < samples
    position = tl.load(positions + rows, mask=there, other=-1)
    counted = (position >= 0)[:, None] & (columns < pixels)[None, :]
    x = tl.load(images + rows[:, None] * pixels + columns[None, :], mask=counted, other=0)
    value = x.to(tl.int32)
    target = position[:, None] * pixels + columns[None, :]
    if LOW:
        wanted = tl.load(high + target, mask=counted, other=0).to(tl.int32)
        counted = counted & ((value >> 8) == wanted)
        value = value & 255
    else:
        value = value >> SHIFT
        counted = counted & (value > 0)
    one = tl.full([ROWS, COLUMNS], 1, tl.int32)
    tl.atomic_add(counts + target * 256 + value, one, mask=counted, sem="relaxed")


def count_values(
    batch: torch.Tensor, positions: torch.Tensor, high: torch.Tensor | None, counts: torch.Tensor
) -> None:
    """Add the values of images on the device, but for zeros where `high` is None, to counts there.

    `counts` is [class, pixel, 256] int32, whose bits are those of uint32.
    """
    samples, pixels = batch.shape
    blocks = triton.cdiv(pixels, _COUNTS["COLUMNS"])
    _count_values[(triton.cdiv(samples, _COUNTS["ROWS"]) * blocks,)](
        batch, positions, counts if high is None else high, samples, pixels, counts,
        LOW=high is not None, SHIFT=8 * (batch.element_size() - 1), **_COUNTS,
    )  # fmt: skip


def _on(array: npt.NDArray[Any], device: str) -> torch.Tensor:
    return as_tensor(array).to(device)


def _add_up(
    images: npt.NDArray[Any],
    positions: Int64Array,
    classes: int,
    counts: torch.Tensor | None,
    device: str,
) -> torch.Tensor:
    """Return [2, class, pixel]: sums and squares; add to `counts` what `count_values` counts."""
    pixels, window = images.shape[1], window_of(classes)
    sums = torch.zeros((2, classes + 1, pixels), dtype=torch.int64, device=device)
    index = _on(np.asarray(positions, np.int64), device)

    def add(part: slice, batch: torch.Tensor) -> None:
        ordered = order_by_class(index[part], classes, window)
        add_classes(batch, ordered, sums)
        if counts is not None:
            count_values(batch, index[part], None, counts)

    for_each_batch(images, device, images.itemsize * pixels + 64, add)
    return sums[:, :classes]


def _with_zeros(counts: torch.Tensor, positions: Int64Array) -> npt.NDArray[np.uint32]:
    """Return counts with those of zeros, which were left out."""
    table: npt.NDArray[np.uint32] = counts.cpu().numpy().view(np.uint32)
    images = np.bincount(positions[positions >= 0], minlength=len(table))
    # [class, pixel, 256]; what is there is below 2**32 in each sum
    table[:, :, 0] = images[:, None] - table.sum(axis=2, dtype=np.int64)
    return table


def class_sums(
    images: npt.NDArray[Any],
    positions: Int64Array,
    classes: int,
    into: Sums | None = None,
    counts: npt.NDArray[np.uint32] | None = None,
    *,
    device: str,
) -> Sums:
    """Sum the images of each class and their squares; see `protocols.ClassSums`."""
    table = None
    if counts is not None:
        table = torch.zeros(counts.shape, dtype=torch.int32, device=device)
    sums = _add_up(images, positions, classes, table, device).cpu().numpy()
    if counts is not None and table is not None:
        counts += _with_zeros(table, positions)
    number = np.bincount(positions[positions >= 0], minlength=classes).astype(np.int64)
    return add_up((sums[0], sums[1], number), into)


def histograms(
    images: npt.NDArray[Any],
    positions: Int64Array,
    classes: int,
    high: npt.NDArray[np.uint8] | None = None,
    into: npt.NDArray[np.uint32] | None = None,
    *,
    device: str,
) -> npt.NDArray[np.uint32]:
    """Count the values of each pixel in each class; see `protocols.Histograms`."""
    pixels = images.shape[1]
    counts = torch.zeros((classes, pixels, 256), dtype=torch.int32, device=device)
    index = _on(np.asarray(positions, np.int64), device)
    wanted = None if high is None else _on(high, device)

    def count(part: slice, batch: torch.Tensor) -> None:
        count_values(batch, index[part], wanted, counts)

    for_each_batch(images, device, images.itemsize * pixels + 64, count)
    if high is None:
        table = _with_zeros(counts, positions)
    else:
        table = counts.cpu().numpy().view(np.uint32)
    if into is None:
        return table
    into += table
    return into
