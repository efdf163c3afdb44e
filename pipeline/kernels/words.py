"""Distances in words of 16 bits to prototypes over at most 128: medians, and means of few images.

With c = 255 * n // 2 all of n*x - c, P - c and x - 128 are words, so that neither a remainder nor
its digits are needed:

    sum |n*x - P| = 2 * sum max(n*x - c, P - c) + 2*c*D - n * sum x - sum P
    sum x*P       = sum (x - 128) * (P - c) + c * sum x + 128 * sum P - 128*c*D

64 pixels of a pair take six vector instructions: two `vpmaxsw`, a `vpaddw` and a `vpdpwssd` by
l1, and two `vpdpwssd` by l2. Zen 4 takes two of them a cycle, of which one `vpdpwssd`: 3.0, where
the digits of `cpu_distances` take eight, of which five share two pipes: 5.0. Measured, with
the sums of lanes: 3.65 and 5.6. Four images are compared with two prototypes at once, whose words
start at multiples of 64 bytes: else each load takes two, and it is 3.9.

`vpsubusb`, `vpsubusw`, `psadbw` and `vpcmpub` share the two pipes of the products: `vpmaxsw` does
not. Of 1,000 means of 60 images, one thread: l1 and l2 of a pair take 15.6 ns (in digits 22.4), of
which the division takes 1.3. Three prototypes at once, or more images while two are in the cache,
did not pay.

n*x - c is made anew for each n, so prototypes are sorted by it, and there must be several of each.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from pipeline.core.exact import Float64Array, Int64Array
from pipeline.kernels import vectors
from pipeline.kernels.vectors import L1, L2, ROWS, WIDTH, Builder, Shape, Value

_LARGEST = 128  # the largest n: 2 * (255 * n - c) is below 2**15
_TILE = 1024  # pixels of one call: 128 * (255 * _LARGEST - c) * _TILE is below 2**31
_ABREAST = 2
_OF_EACH = 8  # prototypes, on average, that n*x - c is made for
_LEAST = 64  # prototypes: of fewer it takes longer than digits

_WORD, _INT32, _INT64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
_WORDS = ir.VectorType(_WORD, WIDTH // 2)
_LANES = ir.VectorType(_INT32, WIDTH // 4)
_ZERO, _ONE = ir.Constant(_LANES, [0] * 16), ir.Constant(_WORDS, [1] * 32)


class Words(NamedTuple):
    """Prototypes as words, sorted by n, an even number of each n.

    Attributes
    ----------
    planes
        [place, width] int16; P - c, rows padded to whole vectors.
    order
        [place]; which class is there, -1 for none.
    classes, in_order
        How many there are, and whether each is at the place of its number.
    n, middle
        [place]; n and c.
    rests
        [2, place]; what l1 and l2 have besides of the class alone: `2*c*D - sum P`, and
        `sum P*P - 256*n * (sum P - c*D)`.
    """

    planes: npt.NDArray[np.int16]
    order: Int64Array
    classes: int
    in_order: bool
    n: Int64Array
    middle: Int64Array
    rests: Int64Array


def make_aligned(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return zeros that start at a multiple of 64 bytes, so that no vector is in two lines."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    room = np.zeros(size + WIDTH, np.uint8)
    start = -room.ctypes.data % WIDTH
    return room[start : start + size].view(dtype).reshape(shape)


def make_words(numerators: Int64Array, denominators: Int64Array) -> Words | None:
    """Bring prototypes, [class, pixel] over [class], into words; None where that does not pay."""
    over, pixels = np.maximum(denominators, 1), numerators.shape[1]
    kinds, sizes = np.unique(over, return_counts=True)
    if (
        not numerators.size
        or kinds[-1] > _LARGEST
        or len(over) < max(_LEAST, _OF_EACH * len(kinds))
    ):
        return None
    width = -(-pixels // WIDTH) * WIDTH
    even = -(-sizes // _ABREAST) * _ABREAST
    n = np.repeat(kinds, even)
    order, middle, starts = np.full(len(n), -1), 255 * n // 2, np.cumsum(even) - even
    for kind, start in zip(kinds.tolist(), starts.tolist(), strict=True):
        mine = np.flatnonzero(over == kind)
        order[start : start + len(mine)] = mine
    images = np.where(order[:, None] < 0, 0, numerators[order])
    planes = make_aligned((len(n), width), np.int16)
    planes[:] = -middle[:, None]
    planes[:, :pixels] += images.astype(np.int16)
    sums, squares = images.sum(1), np.array([np.dot(image, image) for image in images])
    rests = [2 * middle * width - sums, squares - 256 * n * (sums - middle * width)]
    in_order = np.array_equal(order[: len(over)], np.arange(len(over)))
    return Words(planes, order, len(over), in_order, n, middle, np.stack(rests))


def _add_products(context: Any, builder: Builder, target: Value, a: Value, b: Value) -> None:
    """Add products of words to lanes, two to each."""
    known, lanes = vectors.processor_features(context), builder.load(target)
    if {"+avx512bw", "+avx512vnni"} <= known:
        operands = [builder.bitcast(each, _LANES) for each in (a, b)]  # what any LLVM takes
        name = "llvm.x86.avx512.vpdpwssd.512"
        builder.store(vectors.call(builder, name, _LANES, [lanes, *operands]), target)
        return
    if "+avx2" in known:
        halves = zip(vectors.parts(builder, a, 16), vectors.parts(builder, b, 16), strict=True)
        name, half = "llvm.x86.avx2.pmadd.wd", ir.VectorType(_INT32, 8)
        sums = [vectors.call(builder, name, half, pair) for pair in halves]
        builder.store(builder.add(lanes, vectors.join(builder, *sums)), target)
        return
    wide = ir.VectorType(_INT32, WIDTH // 2)
    product = builder.mul(builder.sext(a, wide), builder.sext(b, wide))
    for part in vectors.parts(builder, product, 16):
        lanes = builder.add(lanes, part)
    builder.store(lanes, target)


def _load(builder: Builder, start: Value, offset: Value) -> list[Value]:
    """Load two vectors of words."""
    halves = (offset, builder.add(offset, _INT64(WIDTH // 2)))
    kind = _WORDS.as_pointer()
    return [builder.load(builder.bitcast(builder.gep(start, [at]), kind), align=2) for at in halves]


def _larger(builder: Builder, a: Value, b: Value) -> Value:
    return builder.select(builder.icmp_signed(">", a, b), a, b)


def _rows(context: Any, builder: Builder, kind: Any, array: Value, size: int) -> list[Value]:
    """Return the addresses of the first rows of an array."""
    made = context.make_array(kind)(context, builder, array)
    stride = builder.sdiv(builder.extract_value(made.strides, 0), _INT64(kind.dtype.bitwidth // 8))
    return [builder.gep(made.data, [builder.mul(stride, _INT64(row))]) for row in range(size)]


@intrinsic
def measure(  # type: ignore[no-untyped-def]
    _context, images, planes, steps, shape, more, out
):
    """Compare `ROWS` images with two prototypes over `steps` steps of `WIDTH` pixels.

    Parameters
    ----------
    images
        x - 128 and n*x - c, [image, pixel] int16 both.
    planes
        [prototype, pixel] int16; P - c.
    steps
        At most `_TILE / WIDTH`.
    shape
        As `vectors.shape_of` returns, of no digits.
    more, out
        Whether to add to it; [image, prototype] int64 both: by l1 `sum max(n*x - c, P - c)`; by l2
        `sum (x - 128) * (P - c)`.
    """

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        (tiles, prototypes, count, _, again, results), kinds = arguments, signature.args
        rows, abreast, _, metrics = (kind.count for kind in kinds[3].types)
        plain, scaled = (
            _rows(context, builder, kinds[0].types[k], builder.extract_value(tiles, k), rows)
            for k in (0, 1)
        )
        starts = _rows(context, builder, kinds[1], prototypes, abreast)
        sums = {
            metric: [cgutils.alloca_once_value(builder, _ZERO) for _ in range(rows * abreast)]
            for metric in (L1, L2)
            if metrics & metric
        }
        with cgutils.for_range(builder, count, intp=_INT64) as loop:
            offset = builder.mul(loop.index, _INT64(WIDTH))
            loaded = [_load(builder, start, offset) for start in starts]
            for row in range(rows):
                # products of both metrics in turn, so that none waits for the one before it
                pixels = _load(builder, plain[row], offset)
                others = _load(builder, scaled[row], offset)
                for half in (0, 1):
                    for k, words in enumerate(loaded):
                        at = row * abreast + k
                        if metrics & L2:
                            _add_products(context, builder, sums[L2][at], pixels[half], words[half])
                        if metrics & L1 and half:
                            both = [_larger(builder, others[h], words[h]) for h in (0, 1)]
                            one = builder.add(*both)
                            _add_products(context, builder, sums[L1][at], one, _ONE)
        for metric, lanes in sums.items():
            target, kind = builder.extract_value(results, metric - 1), kinds[5].types[metric - 1]
            total = vectors.totals(builder, [builder.load(lane) for lane in lanes])[0]
            for row, at in enumerate(_rows(context, builder, kind, target, rows)):
                adds = builder.bitcast(again, ir.IntType(1))
                vectors.store(builder, total, (row * abreast, abreast), adds, at)
        return context.get_dummy_value()

    return types.void(images, planes, steps, shape, more, out), generate


@njit(nogil=True, cache=True, _nrt=False)
def _widen(
    images: npt.NDArray[np.uint8], start: int, plain: npt.NDArray[np.int16], norms: Int64Array
) -> None:
    """Make x - 128 of a tile of a few images, and add to [image, 2] `sum x` and `sum x*x`."""
    for row in range(len(images)):
        source, target = images[row, start : start + plain.shape[1]], plain[row]
        total, squares = np.int32(0), np.int32(0)
        for pixel in range(len(source)):
            value = np.int32(source[pixel])
            total = np.int32(total + value)
            squares = np.int32(squares + np.int32(value * value))
            target[pixel] = np.int16(value - np.int32(128))
        target[len(source) :] = -128
        norms[row, 0] += total
        norms[row, 1] += squares


@njit(nogil=True, cache=True, _nrt=False)
def _multiply(plain: npt.NDArray[np.int16], n: int, scaled: npt.NDArray[np.int16]) -> None:
    """Make n*x - c of x - 128."""
    factor, rest = np.int16(n), np.int16(128 * n - 255 * n // 2)  # n itself has 64 bits
    for row in range(len(plain)):
        source, target = plain[row], scaled[row]
        for pixel in range(len(source)):
            target[pixel] = np.int16(np.int16(source[pixel] * factor) + rest)


@njit(nogil=True, cache=True, _nrt=False, error_model="numpy")
def _finish(
    sums: Int64Array, norms: Int64Array, words: Words, scales: Float64Array, metric: int,
    target: Float64Array,
) -> None:  # fmt: skip
    """Make distances of one image: the bits of `exact.finish_l1` and `exact.finish_l2`."""
    n, middle, rests, scale = words.n, words.middle, words.rests[metric], scales[metric]
    total, squares = norms[0], norms[1]
    if metric == 0:
        for at in range(len(target)):
            target[at] = (2 * sums[at] - n[at] * total + rests[at]) / scale[at]
        return
    for at in range(len(target)):
        products = sums[at] + middle[at] * total
        value = n[at] * (n[at] * squares - 2 * products) + rests[at]
        target[at] = np.sqrt(value / scale[at])


@njit(nogil=True, cache=True, _nrt=False)
def _put(values: Float64Array, order: Int64Array, target: Float64Array) -> None:
    """Write values of places to those of classes."""
    for place in range(len(order)):
        if order[place] >= 0:
            target[order[place]] = values[place]


@njit(nogil=True, cache=True, _nrt=False)
def _measure_in_words(
    images: npt.NDArray[np.uint8], words: Words, scales: Float64Array, shape: Shape,
    tiles: tuple[npt.NDArray[np.int16], npt.NDArray[np.int16]],
    counted: tuple[Int64Array, Int64Array, Float64Array], floats: tuple[Float64Array, Float64Array],
) -> None:  # fmt: skip
    """Measure `ROWS` images at a time, a tile of pixels at a time.

    `counted` is room for the sums, [metric, image, place], for `sum x` and `sum x*x` of each image,
    and for distances in the order of places.
    """
    classes = words.classes
    (plain, scaled), metrics, (places, width) = tiles, len(shape[3]), words.planes.shape
    tile, (sums, norms, room) = plain.shape[1], counted
    for first in range(0, len(images), ROWS):
        some = images[first : first + ROWS]
        norms[:] = 0
        for start in range(0, width, tile):
            _widen(some, start, plain, norms)
            steps, n = min(tile, width - start) // WIDTH, 0
            for at in range(0, places, _ABREAST):
                if words.n[at] != n and metrics != L2:
                    n = words.n[at]
                    _multiply(plain, n, scaled)
                measure(
                    (plain, scaled), words.planes[at:, start:], steps, shape, start > 0,
                    (sums[0, :, at:], sums[1, :, at:]),
                )  # fmt: skip
        for row in range(len(some)):
            here = slice((first + row) * classes, (first + row + 1) * classes)
            for metric in range(2):
                if metrics & (metric + 1):
                    target = floats[metric][here]
                    found = target if words.in_order else room
                    _finish(sums[metric, row], norms[row], words, scales, metric, found)
                    if not words.in_order:
                        _put(found, words.order, target)


def distances(
    images: npt.NDArray[np.uint8],
    words: Words,
    scales: Float64Array,
    metrics: int,
    floats: tuple[Float64Array, Float64Array],
) -> None:
    """Write distances of images, divided by scales, [2, class], into [sample * class] both."""
    places, width = words.planes.shape
    of_places = np.ascontiguousarray(np.where(words.order < 0, 1.0, scales[:, words.order]))
    shape, tile = vectors.shape_of(ROWS, _ABREAST, 0, metrics), min(width, _TILE)
    tiles = (make_aligned((ROWS, tile), np.int16), make_aligned((ROWS, tile), np.int16))
    counted = np.empty((2, ROWS, places), np.int64), np.empty((ROWS, 2), np.int64), np.empty(places)
    _measure_in_words(images, words, of_places, shape, tiles, counted, floats)
