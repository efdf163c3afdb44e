"""The kernels in torch, for any torch device; NumPy in and out, since CUDA tensors do not
travel between dask workers.

Images go to the device as they are, 8 or 16 bits a pixel, in batches that keep the widened
copies small; they are widened there. On CUDA a batch is copied into pinned memory and from there
on a stream of its own, while the batch before it is worked on; two pinned buffers take turns.
Prototypes go to the device once, when they are prepared. Results come back once, at the end.

Sums are exact for the reasons given in `exact`: differences in int32 where they fit and in the type
of the sums elsewhere, sums in int64, products in float64 only where no sum exceeds 2**53.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.core.exact import FLOAT64_LIMIT, Arithmetic, Int64Array, split_prototypes

# The share of a CUDA device's free memory that the copies of one batch may take.
_SHARE = 8
_MOST_BYTES = 2**30
# Bytes of widened pixels that a batch may take elsewhere.
_BATCH_BYTES = {"cpu": 8 * 2**20}
_BATCH_BYTES_ELSEWHERE = 64 * 2**20
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


def _batch_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return _BATCH_BYTES.get(device.type, _BATCH_BYTES_ELSEWHERE)
    free, _ = torch.cuda.mem_get_info(device)
    return min(free // _SHARE, _MOST_BYTES)


def _batches(images: npt.NDArray[Any], device: str) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield the images in batches on the device, each with its slice."""
    target = torch.device(device)
    step = max(1, _batch_bytes(target) // max(_WIDENED * images.shape[1], 1))
    slices = [slice(a, min(a + step, len(images))) for a in range(0, len(images), step)]
    if target.type == "cuda":
        yield from _copied_ahead(images, slices, target)
        return
    for part in slices:
        yield part, _as_tensor(images[part]).to(target)


def _as_tensor(array: npt.NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(np.require(array, None, ["C", "W"]))


def _copied_ahead(
    images: npt.NDArray[Any], slices: list[slice], device: torch.device
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Copy the next batch to a CUDA device while the one before it is worked on."""
    if not slices:
        return
    copies: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    shape = (slices[0].stop, images.shape[1])
    kind = torch.from_numpy(np.empty(0, images.dtype)).dtype
    pinned = [torch.empty(shape, dtype=kind, pin_memory=True) for _ in slices[:2]]
    copied: Any = [torch.cuda.Event() for _ in slices[:2]]  # type: ignore[no-untyped-call]

    def send(number: int) -> torch.Tensor:
        part, turn = slices[number], number % 2
        copied[turn].synchronize()  # the buffer's last copy has left it
        buffer = pinned[turn][: part.stop - part.start]
        np.copyto(buffer.numpy(), images[part])
        with torch.cuda.stream(copies):
            batch = buffer.to(device, non_blocking=True)
            copied[turn].record(copies)
        return batch

    following = send(0)
    for number, part in enumerate(slices):
        batch, turn = following, number % 2
        current = torch.cuda.current_stream(device)
        current.wait_event(copied[turn])
        batch.record_stream(current)  # its memory is not used again before the work is done
        if number + 1 < len(slices):
            following = send(number + 1)
        yield part, batch


def class_sums(
    images: npt.NDArray[Any],
    positions: Int64Array,
    classes: int,
    into: tuple[Int64Array, Int64Array, Int64Array] | None = None,
    *,
    device: str,
) -> tuple[Int64Array, Int64Array, Int64Array]:
    """Sum the images of each class and their squares; see `backends.ClassSums`."""
    # one row more takes the images that are left out
    sums = torch.zeros((2, classes + 1, images.shape[1]), dtype=torch.int64, device=device)
    rows = np.where(positions < 0, classes, positions).astype(np.int64)
    index = torch.from_numpy(rows).to(device)
    for where, batch in _batches(images, device):
        pixels = batch.to(torch.int64)
        sums[0].index_add_(0, index[where], pixels)
        sums[1].index_add_(0, index[where], pixels.square_())
    counts = np.bincount(rows, minlength=classes + 1).astype(np.int64)
    added = (*sums[:, :classes].cpu().numpy(), counts[:classes])
    if into is None:
        return added
    for target, part in zip(into, added, strict=True):
        target += part
    return into


def histograms(
    images: npt.NDArray[Any],
    positions: Int64Array,
    classes: int,
    high: npt.NDArray[np.uint8] | None = None,
    into: npt.NDArray[np.uint32] | None = None,
    *,
    device: str,
) -> npt.NDArray[np.uint32]:
    """Count the values of each pixel in each class; see `backends.Histograms`."""
    pixels = images.shape[1]
    # one count more takes the values that are left out
    counts = torch.zeros(classes * pixels * 256 + 1, dtype=torch.int64, device=device)
    index = _as_tensor(np.asarray(positions, np.int64)).to(device)
    column = torch.arange(pixels, device=device)
    wanted = None if high is None else _as_tensor(high).to(device).to(torch.int64)
    for part, batch in _batches(images, device):
        rows, values = index[part, None], batch.to(torch.int64)
        counted = (rows >= 0).expand_as(values)
        if wanted is not None:
            counted = counted & ((values >> 8) == wanted[rows[:, 0].clamp(min=0)])
            values = values & 255
        elif images.itemsize == 2:
            values = values >> 8
        where = torch.where(counted, (rows * pixels + column) * 256 + values, len(counts) - 1)
        counts += torch.bincount(where.reshape(-1), minlength=len(counts))
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
    """Bring prototypes to the device; see `backends.Prepare`."""
    total = torch.float64 if arithmetic.total_dtype == np.float64 else torch.int64
    if device.startswith("mps"):
        total = torch.int64  # Apple's devices have no float64; int64 holds whatever it would
    counts = np.maximum(denominators, 1).tolist()
    largest = max(int(numerators.max(initial=0)), max(counts, default=1) * 2**16)
    difference = torch.int32 if largest < 2**31 else total
    limbs = np.concatenate(split_prototypes(numerators, denominators))
    return _OnDevice(
        _as_tensor(numerators).to(device).to(difference), _as_tensor(limbs).to(device).to(total),
        counts,
    )  # fmt: skip


def l1_numerators(images: npt.NDArray[Any], prototypes: _OnDevice) -> Int64Array:
    """Sum absolute differences to each prototype; see `backends.L1Numerators`."""
    shape = len(images), len(prototypes.denominators)
    result = torch.empty(shape, dtype=torch.int64, device=prototypes.device)
    kind = prototypes.numerators.dtype
    total = torch.int64 if kind is torch.int32 else kind
    for part, batch in _batches(images, prototypes.device):
        pixels = batch.to(kind)
        for position, n in enumerate(prototypes.denominators):
            differences = (pixels * n).sub_(prototypes.numerators[position]).abs_()
            result[part, position] = differences.sum(dim=1, dtype=total).to(torch.int64)
    return np.asarray(result.cpu().numpy())


def dot_products(images: npt.NDArray[Any], prototypes: _OnDevice) -> tuple[Int64Array, Int64Array]:
    """Multiply with each prototype's two limbs; see `backends.DotProducts`."""
    limbs = prototypes.limbs
    result = torch.empty((len(images), len(limbs)), dtype=torch.int64, device=limbs.device)
    for part, batch in _batches(images, prototypes.device):
        pixels = batch.to(limbs.dtype)
        if limbs.dtype is torch.float64:
            result[part] = (pixels @ limbs.T).to(torch.int64)
        else:  # CUDA has no integer matrix product
            for row, limb in enumerate(limbs):
                result[part, row] = (pixels * limb).sum(dim=1)
    products: Int64Array = result.cpu().numpy()
    classes = len(limbs) // 2
    return np.ascontiguousarray(products[:, :classes]), np.ascontiguousarray(products[:, classes:])


def squared_norms(images: npt.NDArray[Any], *, device: str) -> Int64Array:
    """Sum the squares of each image's pixels; see `backends.SquaredNorms`."""
    result = torch.empty(len(images), dtype=torch.int64, device=device)
    for part, batch in _batches(images, device):
        result[part] = batch.to(torch.int64).square_().sum(dim=1)
    return np.asarray(result.cpu().numpy())


@dataclass(frozen=True)
class _Searched:
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


# Distances of a batch of queries that are on the device at once, at most.
_AT_ONCE = 2**24


def prepare_search(
    images: npt.NDArray[Any],
    shape: tuple[int, ...],
    metric: str,
    indices: Int64Array | None = None,
    *,
    device: str,
    pairs: bool = False,
    threads: int = 1,
) -> _Searched:
    """Bring references to the device; see `backends.PrepareSearch`."""
    del shape, pairs, threads  # here every pair is measured
    largest = int(np.iinfo(images.dtype).max)
    exact = 4 * largest**2 * images.shape[1] < FLOAT64_LIMIT and not device.startswith("mps")
    by_products = metric == "l2" and exact
    kind = torch.float64 if by_products else torch.int32
    pixels = _as_tensor(images).to(device).to(kind)
    known = np.arange(len(images)) if indices is None else indices
    index = torch.from_numpy(known).to(device)
    norms = pixels.square().sum(1) if by_products else None
    return _Searched(pixels, index, metric == "l2", norms)


def _measured(
    queries: npt.NDArray[Any], references: _Searched
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield the distances of a few queries at a time, with their slice."""
    step = max(1, _AT_ONCE // max(len(references.index), 1))
    for start in range(0, len(queries), step):
        part = slice(start, min(start + step, len(queries)))
        yield part, references.distances(_as_tensor(queries[part]).to(references.index.device))


def nearest(
    queries: npt.NDArray[Any],
    references: _Searched,
    skip: Int64Array,
    distances: Int64Array,
    neighbours: Int64Array,
    threads: int = 1,
) -> None:
    """Find the nearest references of each query; see `backends.Nearest`."""
    del threads  # see `use_threads`
    device, k = references.index.device, distances.shape[1]
    for part, measured in _measured(queries, references):
        own = torch.from_numpy(skip[part]).to(device)[:, None]
        best = torch.from_numpy(distances[part]).to(device)
        where = torch.from_numpy(neighbours[part]).to(device)
        index = references.index.expand_as(measured)
        # what is left out stands behind all that is in the lists
        left_out = torch.iinfo(torch.int64).max
        values = torch.cat([best, measured.masked_fill(index == own, left_out)], 1)
        indices = torch.cat([where, index], 1)
        by_index = indices.argsort(dim=1)
        values, indices = values.gather(1, by_index), indices.gather(1, by_index)
        by_distance = values.argsort(dim=1, stable=True)[:, :k]
        distances[part] = values.gather(1, by_distance).cpu().numpy()
        neighbours[part] = indices.gather(1, by_distance).cpu().numpy()


def within(
    queries: npt.NDArray[Any], references: _Searched, most: int, threads: int = 1
) -> Int64Array:
    """Find all pairs up to a distance; see `backends.Within`."""
    del threads
    parts = [np.zeros((0, 3), np.int64)]
    for part, measured in _measured(queries, references):
        rows, columns = torch.nonzero(measured <= most, as_tuple=True)
        found = rows + part.start, references.index[columns], measured[rows, columns]
        parts.append(torch.stack(found, 1).cpu().numpy())
    return np.concatenate(parts)
