"""What a search on a CPU reads: images in padded rows, sketches, some interleaved for sweeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.core.exact import Int64Array
from pipeline.kernels import search_vectors as simd
from pipeline.kernels.sketches import (
    COARSE,
    Bytes,
    Level,
    Sketcher,
    make_sketcher,
    order_tiles,
)

BOXED = 512
"""References of a tile, where whole tiles are left out."""


class Sketched(NamedTuple):
    """Images and their sketches; rows padded to whole vectors, at aligned addresses."""

    images: npt.NDArray[Any]
    coarse: Level
    fine: Level


class SearchPlan(NamedTuple):
    """What the loops need to know of sketches and images.

    Attributes
    ----------
    squared
        Whether the metric is l2.
    bounded
        Whether sketches are used at all; without, every image is compared.
    swept, compared, measured
        Steps of a sweep, of a fine sketch and of an image.
    coarse_unit, fine_unit
        The distance that one step of a byte means.
    """

    squared: bool
    bounded: bool
    swept: int
    compared: int
    measured: int
    coarse_unit: float
    fine_unit: float


class Searched(NamedTuple):
    """References as the loops read them.

    Attributes
    ----------
    images
        In the order in which they are searched; the norms of their coarse sketches are padded to
        whole groups.
    interleaved
        [group, bytes]; their coarse sketches as the sweeps read them.
    indices
        [reference]; the index of each.
    low, high
        [tile, COARSE]; the smallest and largest values of the sketches of a tile. No tiles: none
        is left out.
    """

    images: Sketched
    interleaved: Bytes
    indices: Int64Array
    low: Bytes
    high: Bytes


@dataclass(frozen=True)
class References:
    """Images that are searched, ready for many blocks of queries; see `protocols.PrepareSearch`."""

    sketcher: Sketcher
    prepared: Searched
    plan: SearchPlan


def _aligned(shape: tuple[int, ...], dtype: Any) -> npt.NDArray[Any]:
    """Make an array of zeros whose rows of whole vectors begin at multiples of 64 bytes."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    room = np.zeros(size + 64, np.uint8)
    start = -room.ctypes.data % 64
    return np.asarray(room[start : start + size].view(dtype).reshape(shape))


def _padded(images: npt.NDArray[Any], order: Int64Array) -> npt.NDArray[Any]:
    """Copy images into rows of whole vectors, in an order."""
    per_step = 64 // images.itemsize
    rows = _aligned((len(images), -(-images.shape[1] // per_step) * per_step), images.dtype)
    for start in range(0, len(images), BOXED):
        part = order[start : start + BOXED]
        rows[start : start + len(part), : images.shape[1]] = images[part]
    return rows


def _interleave(values: Bytes, cells: int, squared: bool) -> tuple[Bytes, int]:
    """Lay out coarse sketches as the sweeps read them; return that, and the steps of a sketch."""
    size = simd.L2_STEP if squared else simd.L1_STEP
    steps, lanes, groups = -(-cells // size), 64 // size, -(-len(values) // simd.GROUP)
    rows = np.zeros((groups * simd.GROUP, steps * size), np.uint8)
    rows[: len(values)] = values[:, : steps * size]
    if squared:
        rows ^= 0x80  # signed, less 128
    parts = rows.reshape(groups, simd.GROUP // lanes, lanes, steps, size).transpose(0, 3, 1, 2, 4)
    result = _aligned((groups, simd.GROUP * steps * size), np.uint8)
    result.reshape(parts.shape)[:] = parts
    return result, steps


def _boxes(values: Bytes) -> tuple[Bytes, Bytes]:
    """Return the smallest and largest values of each tile."""
    starts = np.arange(0, len(values), BOXED)
    return np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)


def prepare_search(
    images: npt.NDArray[Any],
    shape: tuple[int, ...],
    metric: str,
    indices: Int64Array | None = None,
    *,
    pairs: bool = False,
    bounded: bool = True,
    threads: int = 1,
) -> References:
    """Bring references into the form that the loops read; see `protocols.PrepareSearch`.

    `bounded` is as in `SearchPlan`.
    """
    sketcher = make_sketcher(images, shape, metric)
    levels = sketcher.sketch(images, threads)
    if pairs:
        order = order_tiles(levels[0].values, BOXED)
    else:
        order = np.random.default_rng(0).permutation(len(images))
    ordered = _lay_out(images, levels, order)
    coarse, rows = ordered.coarse, ordered.images
    interleaved, steps = _interleave(coarse.values, sketcher.cells, sketcher.squared)
    norms = np.zeros(len(interleaved) * simd.GROUP, np.int32)
    norms[: len(images)] = coarse.norms
    plan = SearchPlan(
        sketcher.squared, bounded, steps, -(-len(sketcher.blocks.sizes) // 64),
        rows.shape[1] * rows.itemsize // 64, sketcher.coarse.unit, sketcher.fine.unit,
    )  # fmt: skip
    nothing = np.zeros((0, COARSE), np.uint8)
    boxes = _boxes(coarse.values) if pairs else (nothing, nothing)
    ordered = ordered._replace(coarse=coarse._replace(norms=norms))
    known = order if indices is None else indices[order]
    return References(sketcher, Searched(ordered, interleaved, known, *boxes), plan)


def _lay_out(images: npt.NDArray[Any], levels: tuple[Level, Level], order: Int64Array) -> Sketched:
    coarse, fine = levels
    return Sketched(_padded(images, order), coarse.take(order), fine.take(order))


def sketch_queries(
    references: References, queries: npt.NDArray[Any], threads: int, *, alike: bool = False
) -> tuple[Sketched, Int64Array]:
    """Bring queries into the form that the loops read; return them, and their order.

    They are compared a few at once: `alike` puts those together whose sketches are, else the order
    is that given.
    """
    levels = references.sketcher.sketch(queries, threads)
    order = order_tiles(levels[0].values, BOXED) if alike else np.arange(len(queries))
    ordered = _lay_out(queries, levels, order)
    room = np.zeros((len(queries) + simd.QUERIES, COARSE), np.uint8)
    room[: len(queries)] = ordered.coarse.values
    return ordered._replace(coarse=ordered.coarse._replace(values=room)), order
