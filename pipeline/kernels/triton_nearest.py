"""The nearest references of each query, on a GPU: tiles, then the few groups that may hold them.

References stay on the device in the form that tiles read. Of a batch of queries, tiles leave the
least distance to each group of references (`triton_tiles`); the k groups with the smallest are
compared again, reference by reference, and of these and of the lists so far the k nearest are kept.
What is selected by is one integer, the distance before the position, so that equal distances go to
the lowest index, whatever the order in which the device does its work.

Where such an integer would not fit 64 bits, see `accumulators.key_bits`, plain torch searches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.core.accumulators import fits_int32, key_bits, largest_distance
from pipeline.core.exact import NOWHERE, Int64Array
from pipeline.kernels import torch as plain
from pipeline.kernels import triton_tiles as tiles
from pipeline.kernels.transfers import as_tensor, for_each_batch, memory_of, results
from pipeline.kernels.triton import padded_words

# Bytes of pixels of a step on the tensor cores, to which rows are padded.
_STEP = 128
# Pairs of a query and a group that are compared at once.
_PAIRS = 2**17


@dataclass(frozen=True)
class Searched:
    """References on a device.

    Attributes
    ----------
    images
        [word, reference] int64, transposed; or [reference, pixel] int8, less 128. Padded.
    index
        [reference] int64, ascending; the index of each.
    norms
        [reference] int64, padded; `sum (y - 128)**2`. None where images are transposed.
    squared, halves
        Whether by l2; whether pixels have 16 bits.
    largest, bits
        The largest distance, and the bits of a position, see `key_bits`.
    """

    images: torch.Tensor
    index: torch.Tensor
    norms: torch.Tensor | None
    squared: bool
    halves: bool
    largest: int
    bits: int

    @property
    def device(self) -> torch.device:
        return self.index.device

    @property
    def groups(self) -> int:
        return -(-len(self.index) // tiles.GROUP)

    @property
    def far(self) -> int:
        """What stands for no distance: one more than the largest."""
        return self.largest + 1

    @property
    def least(self) -> torch.dtype:
        """The type that holds every distance of a tile."""
        return torch.int32 if fits_int32(self.far) else torch.int64

    def lay_out(self, batch: torch.Tensor) -> torch.Tensor:
        """Bring images on the device into the form of `images`."""
        return _signed(batch) if self.norms is not None else _transposed(batch)

    def words(self, images: torch.Tensor) -> torch.Tensor:
        """Return images in that form as [image, word] int64, whatever the strides."""
        return images.T if self.norms is None else images.view(torch.int64)


def _transposed(images: torch.Tensor) -> torch.Tensor:
    words = padded_words(images, tiles.WORD * tiles.UNROLLED).view(torch.int64)
    rows = -(-len(words) // tiles.LARGEST_TILE) * tiles.LARGEST_TILE
    made = torch.zeros((words.shape[1], rows), dtype=torch.int64, device=words.device)
    made[:, : len(words)] = words.T
    return made


def _signed(images: torch.Tensor) -> torch.Tensor:
    rows = -(-len(images) // tiles.LARGEST_TILE) * tiles.LARGEST_TILE
    width = -(-images.shape[1] // _STEP) * _STEP
    made = torch.zeros((rows, width), dtype=torch.int8, device=images.device)
    made[: len(images), : images.shape[1]] = (images ^ 128).view(torch.int8)
    return made


def _norms(signed: torch.Tensor) -> torch.Tensor:
    """Return `sum x*x` of rows of int8, a few at a time: they are widened."""
    step = max(1, 2**26 // signed.shape[1])
    starts = range(0, len(signed), step)
    return torch.cat([signed[a : a + step].to(torch.int32).square_().sum(1) for a in starts])


def prepare_search(
    images: npt.NDArray[Any],
    shape: tuple[int, ...],
    metric: str,
    indices: Int64Array | None = None,
    *,
    device: str,
    pairs: bool = False,
    threads: int = 1,
) -> Searched | plain.Searched:
    """Bring references to the device; see `protocols.PrepareSearch`."""
    count, pixels = images.shape
    largest = largest_distance(metric, pixels, str(images.dtype))
    bits = key_bits(largest, count + tiles.LARGEST_TILE)
    if bits is None:
        return plain.prepare_search(
            images, shape, metric, indices, device=device, pairs=pairs, threads=threads
        )
    known = np.arange(count) if indices is None else indices
    products = metric == "l2" and images.dtype == np.uint8
    with memory_of(f"{count:,} references of {pixels:,} pixels", 3 * images.nbytes, device):
        empty = torch.empty(0, device=device)
        made = Searched(
            empty, as_tensor(known).to(device), empty if products else None,
            metric == "l2", images.dtype == np.uint16, largest, bits,
        )  # fmt: skip
        laid_out = made.lay_out(as_tensor(images).to(device))
        norms = _norms(laid_out) if products else None
    return Searched(laid_out, made.index, norms, made.squared, made.halves, made.largest, made.bits)


def _least(queries: torch.Tensor, references: Searched, skip: torch.Tensor) -> torch.Tensor:
    """Return the least distance of each query, laid out, and group: [query, group]."""
    shape = len(skip), references.groups
    minima = torch.empty(shape, dtype=references.least, device=references.device)
    count = len(references.index)
    if references.norms is None:
        tiles.least_differences(
            queries, references.images, skip, minima, references.far,
            references=count, squared=references.squared, halves=references.halves,
        )  # fmt: skip
    else:
        norms = _norms(queries), references.norms
        tiles.least_products(
            queries, references.images, norms, skip, minima, references.far, references=count
        )
    return minima


def _compare(
    queries: torch.Tensor, references: Searched, skip: torch.Tensor,
    pairs: tuple[torch.Tensor, torch.Tensor],
) -> torch.Tensor:  # fmt: skip
    """Return the distances of pairs of a query and a group, [pair, GROUP] int64."""
    return tiles.compare_pairs(
        references.words(queries), references.words(references.images), pairs, skip,
        references.far, references=len(references.index), squared=references.squared,
        halves=references.halves, flipped=references.norms is not None,
    )  # fmt: skip


def select(
    queries: torch.Tensor, references: Searched, skip: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the nearest references of queries that are laid out on the device.

    `skip` is [query] int64, the position of a reference that is left out, or -1.

    Returns
    -------
    [query, k or fewer] int64 each; distances and positions among the references, the distance `far`
    where there are no more.
    """
    bits, count = references.bits, len(skip)
    least = _least(queries, references, skip).to(torch.int64)
    places = torch.arange(references.groups, device=least.device)
    slots = min(k, references.groups)
    keys = torch.topk((least << bits) | places, slots, largest=False).values
    groups = keys & ((1 << bits) - 1)
    first = torch.arange(count, device=least.device).repeat_interleave(slots)
    found = _compare(queries, references, skip, (first, groups.reshape(-1)))
    inside = torch.arange(tiles.GROUP, device=least.device)
    position = (groups * tiles.GROUP)[:, :, None] + inside
    keys = ((found.view(count, slots, -1) << bits) | position).view(count, -1)
    best = torch.topk(keys, min(k, keys.shape[1]), largest=False).values
    return best >> bits, best & ((1 << bits) - 1)


def _merge(
    lists: tuple[torch.Tensor, torch.Tensor], found: tuple[torch.Tensor, torch.Tensor], k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Merge lists of distances and indices, [query, n] each."""
    values, indices = (torch.cat(pair, 1) for pair in zip(lists, found, strict=True))
    by_index = indices.argsort(dim=1)
    values, indices = values.gather(1, by_index), indices.gather(1, by_index)
    by_distance = values.argsort(dim=1, stable=True)[:, :k]
    return values.gather(1, by_distance), indices.gather(1, by_distance)


def _position_of(skip: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Return the positions of indices among those of the references, -1 where they are none."""
    at = torch.searchsorted(index, skip).clamp(max=len(index) - 1)
    return torch.where(index[at] == skip, at, -1)


def nearest(
    queries: npt.NDArray[Any],
    references: Searched | plain.Searched,
    skip: Int64Array,
    distances: Int64Array,
    neighbours: Int64Array,
    threads: int = 1,
) -> None:
    """Find the nearest references of each query; see `protocols.Nearest`."""
    if isinstance(references, plain.Searched):
        plain.nearest(queries, references, skip, distances, neighbours, threads)
        return
    k, device = distances.shape[1], str(references.device)
    found = results((2, *distances.shape), torch.int64, device)
    slots = min(k, references.groups)
    row_bytes = 4 * queries.shape[1] * queries.itemsize
    row_bytes += 24 * references.groups + 40 * slots * tiles.GROUP + 96 * k

    def work(part: slice, batch: torch.Tensor) -> None:
        own = _position_of(as_tensor(skip[part]).to(device), references.index)
        lists = [as_tensor(each[part]).to(device) for each in (distances, neighbours)]
        values, positions = select(references.lay_out(batch), references, own, k)
        missing = values >= references.far
        indices = references.index[positions.clamp(max=len(references.index) - 1)]
        new = values.masked_fill(missing, NOWHERE), indices.masked_fill(missing, NOWHERE)
        for target, merged in zip(found, _merge((lists[0], lists[1]), new, k), strict=True):
            target[part].copy_(merged, non_blocking=True)

    for_each_batch(queries, device, row_bytes, work)
    distances[:], neighbours[:] = found.numpy()


def within(
    queries: npt.NDArray[Any],
    references: Searched | plain.Searched,
    most: int,
    threads: int = 1,
) -> Int64Array:
    """Find all pairs up to a distance; see `protocols.Within`."""
    if isinstance(references, plain.Searched):
        return plain.within(queries, references, most, threads)
    device, near = str(references.device), min(most, references.largest)
    parts: dict[int, Int64Array] = {}
    row_bytes = 4 * queries.shape[1] * queries.itemsize + 24 * references.groups

    def work(part: slice, batch: torch.Tensor) -> None:
        laid_out = references.lay_out(batch)
        none = torch.full((len(batch),), -1, device=references.device)
        least = _least(laid_out, references, none)
        rows, groups = torch.nonzero(least <= near, as_tuple=True)
        made = []
        for start in range(0, len(rows), _PAIRS):
            some = slice(start, start + _PAIRS)
            pairs = rows[some].contiguous(), groups[some].contiguous()
            between = _compare(laid_out, references, none, pairs)
            at, inside = torch.nonzero(between <= near, as_tuple=True)
            position = pairs[1][at] * tiles.GROUP + inside
            columns = pairs[0][at] + part.start, references.index[position], between[at, inside]
            made.append(torch.stack(columns, 1).cpu().numpy())
        parts[part.start] = np.concatenate([np.zeros((0, 3), np.int64), *made])

    for_each_batch(queries, device, row_bytes, work)
    found = [parts[start] for start in sorted(parts)]
    return np.concatenate([np.zeros((0, 3), np.int64), *found])
