"""The kernels in torch, for any torch device; NumPy in and out, since CUDA tensors do not
travel between dask workers.

They need nothing but torch, and are what a CUDA device falls back to where Triton cannot be used:
each passes over widened copies of the pixels, some of them once for every class. Images go to the
device as `transfers` says, prototypes once, when they are prepared.

Sums are exact for the reasons given in `exact`: differences in int32 where they fit and in the type
of the sums elsewhere, sums in int64, products in float64 only where no sum exceeds 2**53.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from pipeline.core.exact import FLOAT64_LIMIT, Arithmetic, Int64Array, split_prototypes
from pipeline.kernels.transfers import (
    Sums,
    add_up,
    as_tensor,
    for_each_batch,
    free_bytes,
    memory_of,
)

T = TypeVar("T")

VERSION: str = torch.__version__

# Bytes a pixel that one batch takes at most on the device: the pixel, widened, and two results.
_WIDENED = 8 * 3 + 1


def is_available(device: str) -> bool:
    """Tell whether torch can use the device here."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        return False
    return True


def use_threads(threads: int) -> None:
    """Let one call of torch use so many cores; for the whole process, as torch has it."""
    torch.set_num_threads(threads)


def device_name(device: str) -> str:
    """Return what the maker calls a CUDA device, else the device as torch names it."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def device_memory(device: str) -> int | None:
    """Return the bytes that are free on a CUDA device for this process; None of others."""
    if not device.startswith("cuda"):
        return None
    return free_bytes(torch.device(device))


def _in_batches(
    images: npt.NDArray[Any], device: str, work: Callable[[slice, torch.Tensor], None]
) -> None:
    for_each_batch(images, device, _WIDENED * images.shape[1], work)


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
    if counts is not None:
        histograms(images, positions, classes, into=counts, device=device)
    # one row more takes the images that are left out
    sums = torch.zeros((2, classes + 1, images.shape[1]), dtype=torch.int64, device=device)
    rows = np.where(positions < 0, classes, positions).astype(np.int64)
    index = torch.from_numpy(rows).to(device)

    def add(part: slice, batch: torch.Tensor) -> None:
        pixels = batch.to(torch.int64)
        squares = pixels * pixels  # made before anything is added, see `transfers.Work`
        sums[0].index_add_(0, index[part], pixels)
        sums[1].index_add_(0, index[part], squares)

    _in_batches(images, device, add)
    number = np.bincount(rows, minlength=classes + 1).astype(np.int64)
    totals, squares = sums[:, :classes].cpu().numpy()
    return add_up((totals, squares, number[:classes]), into)


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
    # one count more takes the values that are left out
    counts = torch.zeros(classes * pixels * 256 + 1, dtype=torch.int64, device=device)
    index = as_tensor(np.asarray(positions, np.int64)).to(device)
    column = torch.arange(pixels, device=device)
    wanted = None if high is None else as_tensor(high).to(device).to(torch.int64)

    def count(part: slice, batch: torch.Tensor) -> None:
        rows, values = index[part, None], batch.to(torch.int64)
        counted = (rows >= 0).expand_as(values)
        if wanted is not None:
            counted = counted & ((values >> 8) == wanted[rows[:, 0].clamp(min=0)])
            values = values & 255
        elif images.itemsize == 2:
            values = values >> 8
        where = torch.where(counted, (rows * pixels + column) * 256 + values, len(counts) - 1)
        counts.add_(torch.bincount(where.reshape(-1), minlength=len(counts)))

    _in_batches(images, device, count)
    added: npt.NDArray[Any] = counts[:-1].reshape(classes, pixels, 256).cpu().numpy()
    if into is None:
        return added.astype(np.uint32)
    into += added.astype(np.uint32)
    return into


@dataclass(frozen=True)
class _OnDevice:
    """Prototypes on a device.

    Attributes
    ----------
    numerators
        [class, pixel] P, in int32 where every difference fits it.
    limbs
        [2 * class, pixel]; m of each class, then r of each, in the type of the sums.
    denominators
        n of each class.
    """

    numerators: torch.Tensor
    limbs: torch.Tensor
    denominators: list[int]

    @property
    def device(self) -> str:
        return str(self.numerators.device)


def prepare(
    numerators: Int64Array, denominators: Int64Array, arithmetic: Arithmetic, *, device: str
) -> _OnDevice:
    """Bring prototypes to the device; see `protocols.Prepare`."""
    total = torch.float64 if arithmetic.total_dtype == np.float64 else torch.int64
    if device.startswith("mps"):
        total = torch.int64  # Apple's devices have no float64; int64 holds whatever it would
    counts = np.maximum(denominators, 1).tolist()
    largest = max(int(numerators.max(initial=0)), max(counts, default=1) * 2**16)
    difference = torch.int32 if largest < 2**31 else total
    classes, pixels = numerators.shape
    with memory_of(f"{classes:,} prototypes of {pixels:,} pixels", 24 * numerators.size, device):
        limbs = np.concatenate(split_prototypes(numerators, denominators))
        return _OnDevice(
            as_tensor(numerators).to(device).to(difference),
            as_tensor(limbs).to(device).to(total),
            counts,
        )


def _l1(batch: torch.Tensor, prototypes: _OnDevice, out: torch.Tensor) -> None:
    kind = prototypes.numerators.dtype
    total, pixels = torch.int64 if kind is torch.int32 else kind, batch.to(kind)
    for position, n in enumerate(prototypes.denominators):
        differences = (pixels * n).sub_(prototypes.numerators[position]).abs_()
        out[:, position] = differences.sum(dim=1, dtype=total).to(torch.int64)


def _products(batch: torch.Tensor, prototypes: _OnDevice, out: torch.Tensor) -> None:
    limbs = prototypes.limbs
    pixels = batch.to(limbs.dtype)
    if limbs.dtype is torch.float64:
        out[:] = (pixels @ limbs.T).to(torch.int64)
    else:  # CUDA has no integer matrix product
        for row, limb in enumerate(limbs):
            out[:, row] = (pixels * limb).sum(dim=1)


def measure(
    images: npt.NDArray[Any], prototypes: _OnDevice, *, l1: bool = True, l2: bool = True
) -> tuple[Int64Array, Int64Array, Int64Array, Int64Array]:
    """Count all that distances need; see `protocols.Measure`."""
    count, classes = len(images), len(prototypes.denominators)
    device = prototypes.device
    differences = torch.empty((count, classes), dtype=torch.int64, device=device)
    products = torch.empty((count, 2 * classes), dtype=torch.int64, device=device)
    squares = torch.empty(count, dtype=torch.int64, device=device)

    def work(part: slice, batch: torch.Tensor) -> None:
        if l1:
            _l1(batch, prototypes, differences[part])
        if l2:
            _products(batch, prototypes, products[part])
            squares[part] = batch.to(torch.int64).square_().sum(dim=1)

    _in_batches(images, device, work)
    wholes, rests = (np.ascontiguousarray(part) for part in np.hsplit(products.cpu().numpy(), 2))
    return np.asarray(differences.cpu().numpy()), wholes, rests, np.asarray(squares.cpu().numpy())


def l1_numerators(images: npt.NDArray[Any], prototypes: _OnDevice) -> Int64Array:
    """Sum absolute differences to each prototype; see `protocols.L1Numerators`."""
    return measure(images, prototypes, l2=False)[0]


def dot_products(images: npt.NDArray[Any], prototypes: _OnDevice) -> tuple[Int64Array, Int64Array]:
    """Multiply with each prototype's two limbs; see `protocols.DotProducts`."""
    _, wholes, rests, _ = measure(images, prototypes, l1=False)
    return wholes, rests


def squared_norms(images: npt.NDArray[Any], *, device: str) -> Int64Array:
    """Sum the squares of each image's pixels; see `protocols.SquaredNorms`."""
    result = torch.empty(len(images), dtype=torch.int64, device=device)

    def work(part: slice, batch: torch.Tensor) -> None:
        result[part] = batch.to(torch.int64).square_().sum(dim=1)

    _in_batches(images, device, work)
    return np.asarray(result.cpu().numpy())


@dataclass(frozen=True)
class Searched:
    """References that are searched, on a device.

    Attributes
    ----------
    images
        [reference, pixel], in a type that holds every difference of two pixels.
    index
        [reference]; the index of each.
    squared
        Whether by l2.
    norms
        [reference] float64; `sum y*y`, by l2 where products of images are exact in float64.
    """

    images: torch.Tensor
    index: torch.Tensor
    squared: bool
    norms: torch.Tensor | None

    def distances(self, queries: torch.Tensor) -> torch.Tensor:
        """Measure queries, [query, pixel], against all references: [query, reference] int64."""
        if self.norms is not None:
            pixels = queries.to(torch.float64)
            products = pixels @ self.images.T
            sums = pixels.square().sum(1)[:, None] + self.norms - 2 * products
            return sums.to(torch.int64)
        shape = len(queries), len(self.images)
        result = torch.empty(shape, dtype=torch.int64, device=self.images.device)
        for row, query in zip(result, queries.to(self.images.dtype), strict=True):
            between = (self.images - query).abs_()
            between = between.to(torch.int64).square_() if self.squared else between
            torch.sum(between, 1, dtype=torch.int64, out=row)
        return result


# Distances of a batch of queries that are on the device at once, at most; and bytes that each
# takes, with its index, and both of them in order.
_AT_ONCE, _OF_DISTANCE = 2**24, 64


def prepare_search(
    images: npt.NDArray[Any],
    shape: tuple[int, ...],
    metric: str,
    indices: Int64Array | None = None,
    *,
    device: str,
    pairs: bool = False,
    threads: int = 1,
) -> Searched:
    """Bring references to the device; see `protocols.PrepareSearch`."""
    del shape, pairs, threads  # here every pair is measured
    largest = int(np.iinfo(images.dtype).max)
    exact = 4 * largest**2 * images.shape[1] < FLOAT64_LIMIT and not device.startswith("mps")
    by_products = metric == "l2" and exact
    kind = torch.float64 if by_products else torch.int32
    known = np.arange(len(images)) if indices is None else indices
    what = f"{len(images):,} references of {images.shape[1]:,} pixels"
    with memory_of(what, images.size * (16 if by_products else 4), device):
        pixels = as_tensor(images).to(device).to(kind)
        index = as_tensor(known).to(device)
        norms = pixels.square().sum(1) if by_products else None
        return Searched(pixels, index, metric == "l2", norms)


def _measured(
    queries: npt.NDArray[Any], references: Searched, use: Callable[[int, torch.Tensor], T]
) -> list[T]:
    """Return what a function makes of the distances of a few queries, and the number of the first.

    Nothing is kept of a batch that is cut short, since it is done again in parts.
    """
    count, kept = max(len(references.index), 1), list[T]()
    step = max(1, _AT_ONCE // count)

    def work(part: slice, batch: torch.Tensor) -> None:
        starts = range(0, len(batch), step)
        several = (references.distances(batch[start : start + step]) for start in starts)
        kept.extend([
            use(part.start + start, some) for start, some in zip(starts, several, strict=True)
        ])  # fmt: skip

    row_bytes = _OF_DISTANCE * count + 9 * queries.shape[1]
    for_each_batch(queries, str(references.index.device), row_bytes, work)
    return kept


def nearest(
    queries: npt.NDArray[Any],
    references: Searched,
    skip: Int64Array,
    distances: Int64Array,
    neighbours: Int64Array,
    threads: int = 1,
) -> None:
    """Find the nearest references of each query; see `protocols.Nearest`."""
    del threads  # see `use_threads`
    device, k = references.index.device, distances.shape[1]

    def use(start: int, measured: torch.Tensor) -> tuple[slice, list[Any]]:
        part = slice(start, start + len(measured))
        own = as_tensor(skip[part]).to(device)[:, None]
        best, where = (as_tensor(lists[part]).to(device) for lists in (distances, neighbours))
        index = references.index.expand_as(measured)
        # what is left out stands behind all that is in the lists
        left_out = torch.iinfo(torch.int64).max
        values = torch.cat([best, measured.masked_fill(index == own, left_out)], 1)
        indices = torch.cat([where, index], 1)
        by_index = indices.argsort(dim=1)
        values, indices = values.gather(1, by_index), indices.gather(1, by_index)
        by_distance = values.argsort(dim=1, stable=True)[:, :k]
        return part, [each.gather(1, by_distance).cpu().numpy() for each in (values, indices)]

    for part, found in _measured(queries, references, use):
        distances[part], neighbours[part] = found


def within(
    queries: npt.NDArray[Any], references: Searched, most: int, threads: int = 1
) -> Int64Array:
    """Find all pairs up to a distance; see `protocols.Within`."""
    del threads

    def use(start: int, measured: torch.Tensor) -> Int64Array:
        rows, columns = torch.nonzero(measured <= most, as_tuple=True)
        found = rows + start, references.index[columns], measured[rows, columns]
        return np.asarray(torch.stack(found, 1).cpu().numpy())

    return np.concatenate([np.zeros((0, 3), np.int64), *_measured(queries, references, use)])
