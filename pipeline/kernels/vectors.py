"""The inner loops over 8-bit pixels, in vector instructions that compilers do not find.

Two instructions carry 64 pixels each: the sum of absolute differences of unsigned bytes
(`psadbw`) and the dot product of unsigned with signed bytes into 32-bit lanes (`vpdpbusd`).
LLVM recognises neither in a loop that numba wrote (it took 4.3 ms and 5.2 ms for what takes
2.0 ms and 1.6 ms here: 10,000 images of 784 pixels, 10 prototypes, one thread), so the loops are
built of them by name where the processor has them, of AVX2's `psadbw` and `pmaddwd` where it has
those, and elsewhere of vectors that LLVM lowers as well as it can. numba's cache keeps what was
compiled apart by processor.

A step takes `ROWS` images at once, so that a prototype is loaded once for all of them. It may run
over `TILE` pixels: with bytes x <= 255 and digits |d| <= 128 every lane, and the sum of all
lanes, stays below 255 * 128 * 2**16 < 2**31.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

WIDTH = 64
"""Pixels that one step takes; rows are padded to a multiple of it."""

ROWS = 4
TILE = 2**16

_BYTE, _INT32, _INT64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_BYTES = ir.VectorType(_BYTE, WIDTH)
_LANES = ir.VectorType(_INT32, 16)
_ZERO = ir.Constant(_LANES, [0] * 16)
_SIGN = ir.Constant(_BYTES, [0x80] * WIDTH)

Builder = Any  # llvmlite is not typed
Value = Any


def call(builder: Builder, name: str, result: Any, arguments: Sequence[Value]) -> Value:
    """Call an intrinsic function of LLVM."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def parts(builder: Builder, vector: Value, size: int) -> list[Value]:
    """Cut a vector into parts of `size` elements."""
    cut = []
    for start in range(0, vector.type.count, size):
        index = ir.Constant(ir.VectorType(_INT32, size), list(range(start, start + size)))
        cut.append(builder.shuffle_vector(vector, ir.Constant(vector.type, None), index))
    return cut


def join(builder: Builder, low: Value, high: Value) -> Value:
    """Put two vectors of one kind into one."""
    size = 2 * low.type.count
    index = ir.Constant(ir.VectorType(_INT32, size), list(range(size)))
    return builder.shuffle_vector(low, high, index)


@dataclass(frozen=True)
class _Instructions:
    """What one processor offers: lanes + |a - b|, and lanes + unsigned * signed."""

    differences: Callable[[Builder, Value, Value, Value], Value]
    products: Callable[[Builder, Value, Value, Value], Value]


def _differences_avx512(builder: Builder, lanes: Value, a: Value, b: Value) -> Value:
    sums = call(builder, "llvm.x86.avx512.psad.bw.512", ir.VectorType(_INT64, 8), [a, b])
    return builder.add(lanes, builder.bitcast(sums, _LANES))


def _products_vnni(builder: Builder, lanes: Value, unsigned: Value, signed: Value) -> Value:
    return call(builder, "llvm.x86.avx512.vpdpbusd.512", _LANES, [lanes, unsigned, signed])


def _differences_avx2(builder: Builder, lanes: Value, a: Value, b: Value) -> Value:
    halves = [
        builder.bitcast(
            call(builder, "llvm.x86.avx2.psad.bw", ir.VectorType(_INT64, 4), pair),
            ir.VectorType(_INT32, 8),
        )
        for pair in zip(parts(builder, a, 32), parts(builder, b, 32), strict=True)
    ]
    return builder.add(lanes, join(builder, *halves))


def _products_avx2(builder: Builder, lanes: Value, unsigned: Value, signed: Value) -> Value:
    wide = ir.VectorType(ir.IntType(16), 16)
    pairs = [
        call(
            builder,
            "llvm.x86.avx2.pmadd.wd",
            ir.VectorType(_INT32, 8),
            [builder.zext(a, wide), builder.sext(b, wide)],
        )
        for a, b in zip(parts(builder, unsigned, 16), parts(builder, signed, 16), strict=True)
    ]
    low, high = builder.add(pairs[0], pairs[1]), builder.add(pairs[2], pairs[3])
    return builder.add(lanes, join(builder, low, high))


def _add_quarters(builder: Builder, lanes: Value, values: Value) -> Value:
    for part in parts(builder, values, 16):
        lanes = builder.add(lanes, part)
    return lanes


def _differences_anywhere(builder: Builder, lanes: Value, a: Value, b: Value) -> Value:
    larger = builder.select(builder.icmp_unsigned(">", a, b), a, b)
    smaller = builder.select(builder.icmp_unsigned(">", a, b), b, a)
    wide = ir.VectorType(_INT32, WIDTH)
    return _add_quarters(builder, lanes, builder.zext(builder.sub(larger, smaller), wide))


def _products_anywhere(builder: Builder, lanes: Value, unsigned: Value, signed: Value) -> Value:
    wide = ir.VectorType(_INT32, WIDTH)
    product = builder.mul(builder.zext(unsigned, wide), builder.sext(signed, wide))
    return _add_quarters(builder, lanes, product)


_VNNI = _Instructions(_differences_avx512, _products_vnni)
_AVX2 = _Instructions(_differences_avx2, _products_avx2)
_ANYWHERE = _Instructions(_differences_anywhere, _products_anywhere)


def processor_features(context: Any) -> set[str]:
    """Return the features of the processor that numba compiles for, as LLVM names them."""
    _, _, features = context.codegen().magic_tuple()
    return set(features.split(","))


def _instructions(context: Any) -> _Instructions:
    known = processor_features(context)
    if {"+avx512bw", "+avx512vnni"} <= known:
        return _VNNI
    return _AVX2 if "+avx2" in known else _ANYWHERE


def pointer(context: Any, builder: Builder, kind: Any, array: Value) -> Value:
    """Return the address of an array's first byte."""
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(data, _BYTE.as_pointer())


def load(builder: Builder, start: Value, offset: Value) -> Value:
    """Load `WIDTH` bytes."""
    address = builder.bitcast(builder.gep(start, [offset]), _BYTES.as_pointer())
    return builder.load(address, align=1)


def _total(builder: Builder, lanes: Value) -> Value:
    total = call(builder, "llvm.vector.reduce.add.v16i32", _INT32, [lanes])
    return builder.sext(total, _INT64)


def _each(builder: Builder, count: int, stride: Value, offset: Value) -> list[Value]:
    """Return the offsets of one step in each of `count` rows, `stride` bytes apart."""
    return [builder.add(offset, builder.mul(stride, _INT64(row))) for row in range(count)]


def _add_to(builder: Builder, target: Value, function: Any, a: Value, b: Value) -> None:
    builder.store(function(builder, builder.load(target), a, b), target)


def _sweep(context: Any, builder: Builder, signature: Any, arguments: Any, step: Any) -> Value:
    """Run `step(use, pixels, planes, sums)` for each row at each step, and store the totals.

    `sums` are the addresses of the row's lanes, one for each plane; LLVM keeps them in registers.
    """
    images, stride, planes, plane_stride, steps, _, out = arguments
    kinds, count = signature.args, 1 + signature.args[5].count
    use = _instructions(context)
    image = pointer(context, builder, kinds[0], images)
    plane = pointer(context, builder, kinds[2], planes)
    sums = [[cgutils.alloca_once(builder, _LANES) for _ in range(count)] for _ in range(ROWS)]
    for lanes in (lanes for row in sums for lanes in row):
        builder.store(_ZERO, lanes)
    with cgutils.for_range(builder, steps, intp=_INT64) as loop:
        offset = builder.mul(loop.index, _INT64(WIDTH))
        loaded = [load(builder, plane, at) for at in _each(builder, count, plane_stride, offset)]
        for row, at in zip(sums, _each(builder, ROWS, stride, offset), strict=True):
            step(use, load(builder, image, at), loaded, row)
    results = context.make_array(kinds[6])(context, builder, out).data
    for number, lanes in enumerate(lanes for row in sums for lanes in row):
        total = _total(builder, builder.load(lanes))
        builder.store(total, builder.gep(results, [_INT64(number)]))
    return context.get_dummy_value()


@intrinsic
def add_differences(  # type: ignore[no-untyped-def]
    _context, images, stride, planes, plane_stride, steps, digits, out
):
    """Compare `ROWS` images with one prototype over `steps` steps of `WIDTH` pixels.

    Parameters
    ----------
    images, stride
        uint8, the rows `stride` bytes apart.
    planes, plane_stride
        uint8: the quotients m, then a plane for each digit d_k of the remainders (the bits of
        an int8), `plane_stride` bytes apart.
    steps
        At most `TILE / WIDTH`.
    digits
        A tuple with as many elements as there are digits; its values do not matter.
    out
        [ROWS, 1 + digits] int64; `sum |x - m|`, and for each digit `sum d_k where x > m`.
    """

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        def step(use, pixels, planes, sums):  # type: ignore[no-untyped-def]
            quotient, *digits = planes
            _add_to(builder, sums[0], use.differences, pixels, quotient)
            above = builder.zext(builder.icmp_unsigned(">", pixels, quotient), _BYTES)
            for lanes, digit in zip(sums[1:], digits, strict=True):
                _add_to(builder, lanes, use.products, above, digit)

        return _sweep(context, builder, signature, arguments, step)

    return types.void(images, stride, planes, plane_stride, steps, digits, out), generate


@intrinsic
def add_products(  # type: ignore[no-untyped-def]
    _context, images, stride, planes, plane_stride, steps, digits, out
):
    """Multiply `ROWS` images with one prototype over `steps` steps of `WIDTH` pixels.

    Parameters as for `add_differences`; `out` is [ROWS, 1 + digits] int64: `sum x * (m - 128)`,
    and for each digit `sum x * d_k`.
    """

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        def step(use, pixels, planes, sums):  # type: ignore[no-untyped-def]
            signed = [builder.xor(planes[0], _SIGN), *planes[1:]]
            for lanes, digit in zip(sums, signed, strict=True):
                _add_to(builder, lanes, use.products, pixels, digit)

        return _sweep(context, builder, signature, arguments, step)

    return types.void(images, stride, planes, plane_stride, steps, digits, out), generate
