"""Distances to prototypes in Triton: l1 numerators, dot products and squares in one sweep.

Pixels of 8 bits are taken four at a time, as words of 32 bits, in instructions that a GPU has for
words of bytes: the sum of absolute differences (`vabsdiff4`) and the dot product (`dp4a`), both of
unsigned bytes into 32 bits. With P = n*m + r and r = sum b_k * 256**k in bytes,

    sum |n*x - P| = n * sum |x - m| + sum r - 2 * sum_k 256**k * sum (b_k where x > m)

x > m is the ninth bit of x + (255 - m), two pixels a word; four such bits are put into the bytes of
a word, whose dot product with b_k is the last sum. With two bytes of remainders, up to 65,536
images of a class, it takes nine operations for four pixels and a prototype, four of them on the
integer units and five on those of products, so that about half of the bandwidth of an H100's memory
can be used with ten prototypes. A program has some images and a chunk of their pixels; it reads
them once from memory and for each prototype again from the first-level cache.

Other pixels, and denominators beyond 2**32, are counted in integers of 64 bits, far slower.

Under `TRITON_INTERPRET=1` the same kernels run on a CPU, with words taken apart in plain
arithmetic. None of this has been measured on a GPU yet, nor have the block sizes been tuned;
`require_usable` compares a small block with NumPy before a device is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import triton
import triton.language as tl

from pipeline.core.accumulators import CHUNK, byte_planes, fits_int32
from pipeline.core.exact import Arithmetic, Int64Array, split_prototypes
from pipeline.kernels.transfers import as_tensor, for_each_batch, memory_of, results

Counts = npt.NDArray[Any]
"""[sample, class] int64, or int32 where no sum exceeds it."""

INTERPRETED = bool(triton.knobs.runtime.interpret)
"""Whether kernels run on a CPU, one program after the other."""

ASM: bool = not INTERPRETED
VERSION: str = triton.__version__

# Words, of four pixels, of a chunk; a row of 784 pixels is one.
_CHUNK_WORDS = 512
# Elements of a chunk of the wide kernel.
_WIDE_CHUNK = 4096
# Rows of words are padded to that, 16 bytes, so that a thread can load as much at once.
_ALIGN = 16
BYTES = {"ROWS": 32, "COLUMNS": 32, "num_warps": 4}
"""Images and words of a tile, and warps of a program."""
_WIDE = {"ROWS": 8, "COLUMNS": 64, "num_warps": 4}


@triton.jit
def dot4(a, b, total, ASM: tl.constexpr):
    """Add the dot product of the four unsigned bytes of words."""
    if ASM:
        return tl.inline_asm_elementwise(
            "dp4a.u32.u32 $0, $1, $2, $3;", "=r,r,r,r", [a, b, total], tl.int32, True, 1
        )
    for byte in tl.static_range(0, 32, 8):
        total += ((a >> byte) & 255) * ((b >> byte) & 255)
    return total


@triton.jit
def differences4(a, b, total, ASM: tl.constexpr):
    """Add the absolute differences of the four unsigned bytes of words."""
    if ASM:
        return tl.inline_asm_elementwise(
            "vabsdiff4.u32.u32.u32.add $0, $1, $2, $3;", "=r,r,r,r", [a, b, total],
            tl.int32, True, 1,
        )  # fmt: skip
    for byte in tl.static_range(0, 32, 8):
        total += tl.abs(((a >> byte) & 255) - ((b >> byte) & 255))
    return total


@triton.jit
def _above4(x, m, ASM: tl.constexpr):
    """Return a word whose bytes are 1 where those of x are above those of m, else 0."""
    even = (x & 0x00FF00FF) + (~m & 0x00FF00FF)
    odd = ((x >> 8) & 0x00FF00FF) + ((~m >> 8) & 0x00FF00FF)
    if ASM:
        return tl.inline_asm_elementwise(
            "prmt.b32 $0, $1, $2, 0x7351;", "=r,r,r", [even, odd], tl.int32, True, 1
        )
    return ((even >> 8) & 0x00010001) | (odd & 0x01000100)


@triton.jit
def _put(target, value, inside, ONE: tl.constexpr):
    """Store the sums of one chunk, or add those of several."""
    value = value.to(target.dtype.element_ty)
    if ONE:
        tl.store(target, value, mask=inside)
    else:
        tl.atomic_add(target, value, mask=inside, sem="relaxed")


@triton.jit
def _square(mine, columns, there, first, last, total, ASM: tl.constexpr, COLUMNS: tl.constexpr):
    """Return `sum x*x` of a chunk of some images."""
    for at in range(first, last, COLUMNS):
        inside = there[:, None] & (at + columns < last)[None, :]
        x = tl.load(mine + at, mask=inside, other=0)
        total = dot4(x, x, total, ASM)
    return tl.sum(total.to(tl.int64), 1)


@triton.jit
def _measure_bytes(
    images, planes, denominators, samples, words, classes, plane_words, chunk, out, squares,
    kind_step,
    L1: tl.constexpr, L2: tl.constexpr, PAIRS: tl.constexpr, ONE: tl.constexpr, ASM: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    first = tl.program_id(1) * chunk
    last = tl.minimum(first + chunk, words)
    columns = tl.arange(0, COLUMNS)
    there = rows < samples
    mine = images + rows[:, None] * words + columns[None, :]
    nothing = tl.zeros([ROWS, COLUMNS], tl.int32)
    if L2:
        square = _square(mine, columns, there, first, last, nothing, ASM, COLUMNS)
        _put(squares + rows, square, there, ONE)
    # out is [kind, class, sample], kinds l1, x*m, x*r
    row, target = planes + columns, out + rows
    for position in range(classes):
        wholes = target + kind_step
        rests = wholes + kind_step
        for pair in tl.static_range(PAIRS):
            low_row = row + (1 + 2 * pair) * plane_words
            apart, whole = nothing, nothing
            above_low, above_high, rest_low, rest_high = nothing, nothing, nothing, nothing
            for at in range(first, last, COLUMNS):
                inside = there[:, None] & (at + columns < last)[None, :]
                x = tl.load(mine + at, mask=inside, other=0)
                m = tl.load(row + at)[None, :]
                low = tl.load(low_row + at)[None, :]
                high = tl.load(low_row + plane_words + at)[None, :]
                if L1:
                    above = _above4(x, m, ASM)
                    above_low = dot4(above, low, above_low, ASM)
                    above_high = dot4(above, high, above_high, ASM)
                    if pair == 0:
                        apart = differences4(x, m, apart, ASM)
                if L2:
                    rest_low = dot4(x, low, rest_low, ASM)
                    rest_high = dot4(x, high, rest_high, ASM)
                    if pair == 0:
                        whole = dot4(x, m, whole, ASM)
            if L1:
                value = tl.sum(above_low, 1).to(tl.int64) + 256 * tl.sum(above_high, 1).to(tl.int64)
                value = -2 * 65536**pair * value
                if pair == 0:
                    value += tl.load(denominators + position) * tl.sum(apart, 1)
                    if tl.program_id(1) == 0:
                        value += tl.load(denominators + classes + position)
                _put(target, value, there, ONE)
            if L2:
                value = tl.sum(rest_low, 1).to(tl.int64) + 256 * tl.sum(rest_high, 1).to(tl.int64)
                _put(rests, 65536**pair * value, there, ONE)
                if pair == 0:
                    _put(wholes, tl.sum(whole, 1), there, ONE)
        row += plane_words * (1 + 2 * PAIRS)  # so that no number is beyond 32 bits
        target += samples


@triton.jit
def _measure_wide(
    images, limbs, denominators, samples, pixels, classes, chunk, out, squares, kind_step,
    L1: tl.constexpr, L2: tl.constexpr, ONE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    first = tl.program_id(1) * chunk
    last = tl.minimum(first + chunk, pixels)
    columns = tl.arange(0, COLUMNS)
    there = rows < samples
    mine = images + rows[:, None] * pixels + columns[None, :]
    nothing = tl.zeros([ROWS, COLUMNS], tl.int64)
    if L2:
        square = nothing
        for at in range(first, last, COLUMNS):
            inside = there[:, None] & (at + columns < last)[None, :]
            x = tl.load(mine + at, mask=inside, other=0).to(tl.int64)
            square += x * x
        _put(squares + rows, tl.sum(square, 1), there, ONE)
    row, target = limbs + columns, out + rows
    for position in range(classes):
        n = tl.load(denominators + position)
        apart, whole, rest = nothing, nothing, nothing
        for at in range(first, last, COLUMNS):
            left = at + columns < last
            x = tl.load(mine + at, mask=there[:, None] & left[None, :], other=0).to(tl.int64)
            m = tl.load(row + at, mask=left, other=0)[None, :]
            r = tl.load(row + pixels + at, mask=left, other=0)[None, :]
            if L1:
                apart += tl.abs(n * (x - m) - r)
            if L2:
                whole += x * m
                rest += x * r
        if L1:
            _put(target, tl.sum(apart, 1), there, ONE)
        if L2:
            _put(target + kind_step, tl.sum(whole, 1), there, ONE)
            _put(target + kind_step + kind_step, tl.sum(rest, 1), there, ONE)
        row += 2 * pixels
        target += samples


@dataclass(frozen=True)
class OnDevice:
    """Prototypes on a device.

    Attributes
    ----------
    planes
        [class, 1 + 2 * pair, word] int32: m, and the bytes of r two by two, rows padded to tiles.
        Or, for the wide kernel, [class, 2, pixel] int64: m and r.
    denominators
        [2, class] int64: n, and `sum r`.
    pixels
        D, the values of one image.
    pairs
        Pairs of bytes of a remainder; 0 for the wide kernel.
    narrow
        Whether no sum exceeds 32 bits.
    """

    planes: torch.Tensor
    denominators: torch.Tensor
    pixels: int
    pairs: int
    narrow: bool

    @property
    def device(self) -> str:
        return str(self.planes.device)

    @property
    def classes(self) -> int:
        return self.denominators.shape[1]


def padded_words(images: torch.Tensor, align: int = _ALIGN) -> torch.Tensor:
    """Return rows of bytes as words of 32 bits, [row, word], padded with zeros where need be."""
    rows = images if images.dtype == torch.uint8 else images.view(torch.uint8)
    if rows.shape[1] % align:
        rows = torch.nn.functional.pad(rows, (0, -rows.shape[1] % align))
    return rows.view(torch.int32)


def prepare(
    numerators: Int64Array, denominators: Int64Array, arithmetic: Arithmetic, *, device: str
) -> OnDevice:
    """Bring prototypes to the device; see `protocols.Prepare`."""
    classes, pixels = numerators.shape
    over = np.maximum(denominators, 1)
    largest = int(over.max(initial=1))
    in_bytes = arithmetic.name == "digits" and byte_planes(largest) <= 4
    pairs = -(-byte_planes(largest) // 2) if in_bytes else 0
    narrow = in_bytes and fits_int32(max(largest, 255) * 255 * pixels)
    tile = 4 * BYTES["COLUMNS"]
    width = -(-pixels // tile) * tile
    size = classes * (width * (1 + 2 * pairs) if in_bytes else 16 * pixels)
    with memory_of(f"{classes:,} prototypes of {pixels:,} pixels", size, device):
        sums = np.zeros((2, classes), np.int64)
        sums[0] = over
        if in_bytes:
            planes = torch.zeros((classes, 1 + 2 * pairs, width), dtype=torch.uint8, device=device)
        else:
            planes = torch.zeros((classes, 2, pixels), dtype=torch.int64, device=device)
        for position in range(classes):  # one at a time, to save memory
            one = slice(position, position + 1)
            limbs = split_prototypes(numerators[one], denominators[one])
            sums[1, position] = limbs[1].sum()
            if in_bytes:
                bytes_of = limbs[1].astype("<u4").view(np.uint8).reshape(pixels, 4)
                mine = np.concatenate([limbs[0].astype(np.uint8), bytes_of.T[: 2 * pairs]])
                planes[position, :, :pixels] = as_tensor(mine).to(device)
            else:
                planes[position] = as_tensor(np.concatenate(limbs)).to(device)
        return OnDevice(
            planes.view(torch.int32) if in_bytes else planes, as_tensor(sums).to(device),
            pixels, pairs, narrow,
        )  # fmt: skip


def measure_batch(
    batch: torch.Tensor, prototypes: OnDevice, l1: bool = True, l2: bool = True, **settings: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Measure images that lie on the device.

    Parameters
    ----------
    batch
        [sample, pixel] uint8 or uint16.
    prototypes
        As `prepare` returns.
    l1, l2
        What is asked for.
    settings
        Instead of `BYTES`; `COLUMNS` may only be less than there.

    Returns
    -------
    [3, class, sample] int32 or int64, `sum |n*x - P|`, `sum x*m` and `sum x*r`; and [sample] int64,
    `sum x*x`. What is not asked for is undefined.
    """
    samples, classes = len(batch), prototypes.classes
    wide = not prototypes.pairs
    kind = torch.int32 if prototypes.narrow else torch.int64
    rows = batch if wide else padded_words(batch, 4)
    length, chunk = rows.shape[1], _WIDE_CHUNK if wide else min(_CHUNK_WORDS, CHUNK // 4)
    chunks = max(1, triton.cdiv(length, chunk))
    make = torch.empty if chunks == 1 and prototypes.pairs < 2 else torch.zeros
    out = make((3, classes, samples), dtype=kind, device=batch.device)
    squares = make(samples, dtype=torch.int64, device=batch.device)
    chosen = (_WIDE if wide else BYTES) | settings
    grid = triton.cdiv(samples, chosen["ROWS"]), chunks
    flags = {"L1": l1, "L2": l2, "ONE": make is torch.empty, **chosen}
    if wide:
        _measure_wide[grid](
            rows, prototypes.planes, prototypes.denominators, samples, length, classes, chunk,
            out, squares, classes * samples, **flags,
        )  # fmt: skip
    else:
        _measure_bytes[grid](
            rows, prototypes.planes, prototypes.denominators, samples, length, classes,
            prototypes.planes.shape[2], chunk, out, squares, classes * samples,
            PAIRS=prototypes.pairs, ASM=ASM, **flags,
        )  # fmt: skip
    return out, squares


def measure(
    images: npt.NDArray[Any], prototypes: OnDevice, *, l1: bool = True, l2: bool = True
) -> tuple[Counts, Counts, Counts, Int64Array]:
    """Count all that distances need in one sweep; see `protocols.Measure`."""
    classes = prototypes.classes
    kind = torch.int32 if prototypes.narrow else torch.int64
    found = results((len(images), 3, classes), kind, prototypes.device)
    squares = results((len(images),), torch.int64, prototypes.device)
    row_bytes = 3 * images.itemsize * images.shape[1] + 48 * classes + 16

    def work(part: slice, batch: torch.Tensor) -> None:
        out, norms = measure_batch(batch, prototypes, l1, l2)
        found[part].copy_(out.permute(2, 0, 1).contiguous(), non_blocking=True)
        squares[part].copy_(norms, non_blocking=True)

    for_each_batch(images, prototypes.device, row_bytes, work)
    table: npt.NDArray[Any] = found.numpy()
    return table[:, 0], table[:, 1], table[:, 2], np.asarray(squares.numpy())


def l1_numerators(images: npt.NDArray[Any], prototypes: OnDevice) -> Int64Array:
    """Sum absolute differences to each prototype; see `protocols.L1Numerators`."""
    return np.ascontiguousarray(measure(images, prototypes, l2=False)[0], np.int64)


def dot_products(images: npt.NDArray[Any], prototypes: OnDevice) -> tuple[Int64Array, Int64Array]:
    """Multiply with each prototype's two limbs; see `protocols.DotProducts`."""
    _, wholes, rests, _ = measure(images, prototypes, l1=False)
    return np.ascontiguousarray(wholes, np.int64), np.ascontiguousarray(rests, np.int64)


def squared_norms(images: npt.NDArray[Any], *, device: str) -> Int64Array:
    """Sum the squares of each image's pixels; see `protocols.SquaredNorms`."""
    nothing = np.zeros((0, images.shape[1]), np.int64)
    eight = images.dtype == np.uint8
    arithmetic = Arithmetic("digits" if eight else "int64", 0)
    prototypes = prepare(nothing, np.zeros(0, np.int64), arithmetic, device=device)
    return measure(images, prototypes, l1=False)[3]


def require_usable(device: str) -> None:
    """Compare a small block on the device with NumPy; raise whatever is wrong with it."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (67, 84), np.uint8)
    n = np.array([300, 1, 7])
    numerators = rng.integers(0, 255 * n[:, None] + 1, (3, 84))
    prepared = prepare(numerators, n, Arithmetic("digits", 2**40, 2), device=device)
    x = images.astype(np.int64)
    l1, wholes, rests, squares = measure(images, prepared)
    quotients, remainders = split_prototypes(numerators, n)
    differences = np.abs(n[:, None] * x[:, None] - numerators).sum(2)
    expected = differences, x @ quotients.T, x @ remainders.T, (x * x).sum(1)
    found = l1, wholes, rests, squares
    if not all(np.array_equal(*pair) for pair in zip(found, expected, strict=True)):
        raise ArithmeticError("a small block is counted wrong")
