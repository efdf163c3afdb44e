"""Tiles of distances between images in Triton, of which the least of each group is kept.

A tile compares some queries with some references and leaves, for each query and each `GROUP` of
references, the least distance. The k nearest of a query lie in the k groups whose least distances
are smallest, of equal ones in the first; so what is written is a hundredth of the distances, and
`compare_pairs` measures a few groups again, one by one, exactly.

**l1**, 8 bits: one instruction for the differences of four pixels. Images are transposed, eight
pixels by eight, so that a tile reads eight of each of its images beside each other.

**l2**, 8 bits: on the tensor cores. With each pixel less 128, products of bytes with a sign are
added in 32 bits, and `sum (x - y)**2 = sum x*x + sum y*y - 2 * sum x*y`, where the 128 cancel.

Pixels of 16 bits are compared in plain arithmetic. Distances are kept in
32 bits where the largest fits, else in 64. Left out, as beyond the last reference or by `skip`, is
what has the distance `far`.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from pipeline.core.accumulators import CHUNK, DEPTH
from pipeline.kernels.triton import ASM

GROUP = 32
"""References whose least distance is kept; a warp of a GPU has as many threads."""

WORD = 8
"""Bytes of a word, the pixels that are loaded at once."""

UNROLLED = 2
"""Words that a tile takes at a time; transposed images are padded to a multiple."""

DIFFERENCES = {"QUERIES": 32, "REFERENCES": 256, "num_warps": 4}
"""Queries and references of a tile; with four warps a thread has 32 queries and two references."""
_WIDE_DIFFERENCES = {"QUERIES": 16, "REFERENCES": 256, "num_warps": 4}
PRODUCTS = {"QUERIES": 128, "REFERENCES": 256, "BLOCK": 128, "num_warps": 8, "num_stages": 3}
"""Likewise on the tensor cores, and pixels of a step."""
_WIDE_PRODUCTS = {"QUERIES": 64, "REFERENCES": 64, "BLOCK": 64, "num_warps": 4, "num_stages": 3}
_PAIRS = {"WORDS": 16, "num_warps": 4}
_SIGNS = int.from_bytes(8 * b"\x80", "little", signed=True)
# Tiles of so many queries are made side by side, to share what is in the cache.
_BAND = 8
LARGEST_TILE = 256
"""Queries and references of a tile at most; both are padded to a multiple."""


@triton.jit
def _place(queries, references, BAND: tl.constexpr):
    """Return which tile a program makes: bands of queries, and references one after the other."""
    program = tl.program_id(0)
    band = program // (BAND * references)
    size = tl.minimum(queries - band * BAND, BAND)
    inside = program % (BAND * references)
    return band * BAND + inside % size, inside // size


@triton.jit
def _keep_least(
    distance, query, reference, queries, references, skip, far, minima, groups,
    QUERIES: tl.constexpr, REFERENCES: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Store the least distance of each query and group of a tile."""
    rows = query * QUERIES + tl.arange(0, QUERIES)
    columns = reference * REFERENCES + tl.arange(0, REFERENCES)
    far = tl.full([1, 1], 0, distance.dtype) + far.to(distance.dtype)
    if (reference + 1) * REFERENCES > references:
        distance = tl.where((columns < references)[None, :], distance, far)
    own = tl.load(skip + rows, mask=rows < queries, other=-1)
    here = (own >= reference * REFERENCES) & (own < (reference + 1) * REFERENCES)
    if tl.max(here.to(tl.int32), 0) > 0:
        distance = tl.where(columns[None, :] == own[:, None], far, distance)
    count: tl.constexpr = REFERENCES // GROUP
    least = tl.min(tl.reshape(distance, [QUERIES, count, GROUP]), 2)
    places = reference * count + tl.arange(0, count)
    target = minima + rows.to(tl.int64)[:, None] * groups + places[None, :]
    tl.store(target, least, mask=(rows < queries)[:, None] & (places < groups)[None, :])


@triton.jit
def _halves(x, y, total, SQUARED: tl.constexpr):
    """Add the differences, or their squares, of the four 16-bit pixels of words."""
    for shift in tl.static_range(0, 64, 16):
        between = ((x >> shift) & 0xFFFF) - ((y >> shift) & 0xFFFF)
        if SQUARED:
            total += (between * between).to(total.dtype)
        else:
            total += tl.abs(between).to(total.dtype)
    return total


@triton.jit
def _differences8(x, y, total, ASM: tl.constexpr):
    """Add the absolute differences of the eight unsigned bytes of words."""
    if ASM:
        return tl.inline_asm_elementwise(
            """{
            .reg .b32 a, b, c, d;
            mov.b64 {a, b}, $1;
            mov.b64 {c, d}, $2;
            vabsdiff4.u32.u32.u32.add a, a, c, $3;
            vabsdiff4.u32.u32.u32.add $0, b, d, a;
            }""",
            "=r,l,l,r", [x, y, total], tl.int32, True, 1,
        )  # fmt: skip
    for byte in tl.static_range(0, 64, 8):
        total += tl.abs(((x >> byte) & 255) - ((y >> byte) & 255)).to(tl.int32)
    return total


@triton.jit
def _squares8(x, y, total, ASM: tl.constexpr):
    """Add the squares of the differences of the eight unsigned bytes of words."""
    if ASM:
        return tl.inline_asm_elementwise(
            """{
            .reg .b32 a, b, c, d, zero;
            mov.b64 {a, b}, $1;
            mov.b64 {c, d}, $2;
            mov.b32 zero, 0;
            vabsdiff4.u32.u32.u32 a, a, c, zero;
            vabsdiff4.u32.u32.u32 b, b, d, zero;
            dp4a.u32.u32 a, a, a, $3;
            dp4a.u32.u32 $0, b, b, a;
            }""",
            "=r,l,l,r", [x, y, total], tl.int32, True, 1,
        )  # fmt: skip
    for byte in tl.static_range(0, 64, 8):
        between = (((x >> byte) & 255) - ((y >> byte) & 255)).to(tl.int32)
        total += between * between
    return total


@triton.jit
def _tile_differences(
    x, y, words, x_step, y_step, queries, references, skip, far, minima, groups,
    SQUARED: tl.constexpr, HALVES: tl.constexpr, WIDE: tl.constexpr, UNROLLED: tl.constexpr,
    GROUP: tl.constexpr, BAND: tl.constexpr, ASM: tl.constexpr,
    QUERIES: tl.constexpr, REFERENCES: tl.constexpr,
):  # fmt: skip
    query, reference = _place(tl.cdiv(queries, QUERIES), tl.cdiv(references, REFERENCES), BAND)
    # pointers of the first of each, so that those of the others are constants beside it
    mine, theirs = x + query * QUERIES, y + reference * REFERENCES
    rows, columns = tl.arange(0, QUERIES), tl.arange(0, REFERENCES)
    total = tl.zeros([QUERIES, REFERENCES], tl.int64 if WIDE else tl.int32)
    for _ in range(0, words, UNROLLED):
        for _step in tl.static_range(UNROLLED):
            a, b = tl.load(mine + rows)[:, None], tl.load(theirs + columns)[None, :]
            if HALVES:
                total = _halves(a, b, total, SQUARED)
            elif WIDE:
                total += _differences8(a, b, tl.zeros([QUERIES, REFERENCES], tl.int32), ASM)
            else:
                total = _differences8(a, b, total, ASM)
            mine += x_step
            theirs += y_step
    _keep_least(
        total, query, reference, queries, references, skip, far, minima, groups,
        QUERIES, REFERENCES, GROUP,
    )  # fmt: skip


@triton.jit
def _tile_products(
    x, y, depth, x_norms, y_norms, queries, references, skip, far, minima, groups,
    WIDE: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr, BAND: tl.constexpr,
    QUERIES: tl.constexpr, REFERENCES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    query, reference = _place(tl.cdiv(queries, QUERIES), tl.cdiv(references, REFERENCES), BAND)
    rows = query * QUERIES + tl.arange(0, QUERIES)
    columns = reference * REFERENCES + tl.arange(0, REFERENCES)
    pixels = tl.arange(0, BLOCK)
    mine = x + rows.to(tl.int64)[:, None] * depth + pixels[None, :]
    theirs = y + columns.to(tl.int64)[None, :] * depth + pixels[:, None]
    one = tl.load(x_norms + rows)[:, None]
    two = tl.load(y_norms + columns)[None, :]
    if WIDE:
        distance = one + two
        for start in range(0, depth, DEPTH):
            products = tl.zeros([QUERIES, REFERENCES], tl.int32)
            for at in range(start, tl.minimum(start + DEPTH, depth), BLOCK):
                a, b = tl.load(mine + at), tl.load(theirs + at)
                products = tl.dot(a, b, products, out_dtype=tl.int32)
            distance -= 2 * products.to(tl.int64)
    else:
        products = tl.zeros([QUERIES, REFERENCES], tl.int32)
        for _ in range(0, depth, BLOCK):
            a, b = tl.load(mine), tl.load(theirs)
            products = tl.dot(a, b, products, out_dtype=tl.int32)
            mine += BLOCK
            theirs += BLOCK
        distance = (one + two).to(tl.int32) - 2 * products
    _keep_least(
        distance, query, reference, queries, references, skip, far, minima, groups,
        QUERIES, REFERENCES, GROUP,
    )  # fmt: skip


@triton.jit
def _compare_pairs(
    x, y, words, x_row, x_word, y_row, y_word, first, second, references, skip, far, out,
    SQUARED: tl.constexpr, HALVES: tl.constexpr, FLIPPED: tl.constexpr, CHUNK: tl.constexpr,
    SIGNS: tl.constexpr, GROUP: tl.constexpr, WORDS: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    pair = tl.program_id(0).to(tl.int64)
    query = tl.load(first + pair)
    group = tl.load(second + pair)
    rows = group * GROUP + tl.arange(0, GROUP)
    columns = tl.arange(0, WORDS).to(tl.int64)
    there = rows < references
    mine = x + query * x_row + columns * x_word
    theirs = y + rows[:, None] * y_row + columns[None, :] * y_word
    nothing = tl.zeros([GROUP, WORDS], tl.int64 if HALVES and SQUARED else tl.int32)
    total = tl.zeros([GROUP], tl.int64)
    for start in range(0, words, CHUNK):
        part = nothing
        last = tl.minimum(start + CHUNK, words)
        for at in range(start, last, WORDS):
            left = at + columns < last
            a = tl.load(mine, mask=left, other=0)[None, :]
            b = tl.load(theirs, mask=there[:, None] & left[None, :], other=0)
            if HALVES:
                part = _halves(a, b, part, SQUARED)
            else:
                if FLIPPED:  # back to what they were before 128 was taken off
                    a, b = a ^ SIGNS, b ^ SIGNS
                if SQUARED:
                    part = _squares8(a, b, part, ASM)
                else:
                    part = _differences8(a, b, part, ASM)
            mine += WORDS * x_word
            theirs += WORDS * y_word
        total += tl.sum(part.to(tl.int64), 1)
    own = tl.load(skip + query)
    total = tl.where(there & (rows != own), total, far)
    tl.store(out + pair * GROUP + tl.arange(0, GROUP), total)


def least_differences(
    x: torch.Tensor, y: torch.Tensor, skip: torch.Tensor, minima: torch.Tensor, far: int,
    **settings: Any,
) -> None:  # fmt: skip
    """Fill `minima` for images that are transposed words.

    Parameters
    ----------
    x, y
        [word, query] and [word, reference] int64, padded with zeros.
    skip
        [query] int64; the reference that is left out, or -1.
    minima
        [query, group], int32 or int64.
    far
        What stands for no distance.
    settings
        `references`, how many there are; `squared` and `halves`; or instead of `DIFFERENCES`.
    """
    references = settings.pop("references")
    squared, halves = settings.pop("squared", False), settings.pop("halves", False)
    wide = minima.dtype == torch.int64
    chosen = (_WIDE_DIFFERENCES if wide or halves else DIFFERENCES) | settings
    tiles = triton.cdiv(len(skip), chosen["QUERIES"]) * triton.cdiv(
        references, chosen["REFERENCES"]
    )
    _tile_differences[(tiles,)](
        x, y, len(y), x.stride(0), y.stride(0), len(skip), references, skip, far, minima,
        minima.shape[1], SQUARED=squared, HALVES=halves, WIDE=wide, UNROLLED=UNROLLED,
        GROUP=GROUP, BAND=_BAND, ASM=ASM, **chosen,
    )  # fmt: skip


def least_products(
    x: torch.Tensor, y: torch.Tensor, norms: tuple[torch.Tensor, torch.Tensor],
    skip: torch.Tensor, minima: torch.Tensor, far: int, **settings: Any,
) -> None:  # fmt: skip
    """Fill `minima` for images less 128.

    Parameters
    ----------
    x, y
        [query, pixel] and [reference, pixel] int8, padded with zeros both ways.
    norms
        [query] and [reference] int64; `sum x*x`, padded as these.
    skip, minima, far, settings
        As for `least_differences`.
    """
    references = settings.pop("references")
    wide = minima.dtype == torch.int64
    chosen = (_WIDE_PRODUCTS if wide else PRODUCTS) | settings
    tiles = triton.cdiv(len(skip), chosen["QUERIES"]) * triton.cdiv(
        references, chosen["REFERENCES"]
    )
    _tile_products[(tiles,)](
        x, y, x.shape[1], *norms, len(skip), references, skip, far, minima, minima.shape[1],
        WIDE=wide, DEPTH=DEPTH, GROUP=GROUP, BAND=_BAND, **chosen,
    )  # fmt: skip


def compare_pairs(
    x: torch.Tensor, y: torch.Tensor, pairs: tuple[torch.Tensor, torch.Tensor],
    skip: torch.Tensor, far: int, **settings: Any,
) -> torch.Tensor:  # fmt: skip
    """Measure queries against groups of references.

    Parameters
    ----------
    x, y
        [query, word] and [reference, word] int64, of any strides.
    pairs
        [pair] int64; the query, and the group.
    skip, far
        As for `least_differences`.
    settings
        `references`, `squared` and `halves` likewise; `flipped`, whether 128 was taken off bytes.

    Returns
    -------
    [pair, GROUP] int64.
    """
    halves = settings.pop("halves", False)
    out = torch.empty((len(pairs[0]), GROUP), dtype=torch.int64, device=x.device)
    if len(pairs[0]):
        _compare_pairs[(len(pairs[0]),)](
            x, y, min(x.shape[1], y.shape[1]), *x.stride(), *y.stride(), *pairs,
            settings["references"], skip, far, out, SQUARED=settings["squared"], HALVES=halves,
            FLIPPED=settings["flipped"], CHUNK=CHUNK // WORD, SIGNS=_SIGNS, GROUP=GROUP, ASM=ASM,
            **_PAIRS,
        )  # fmt: skip
    return out
