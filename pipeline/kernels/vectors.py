"""The inner loops over 8-bit pixels, in vector instructions that compilers do not find.

Two instructions carry 64 pixels each: the sum of absolute differences of unsigned bytes
(`psadbw`) and the dot product of unsigned with signed bytes into 32-bit lanes (`vpdpbusd`).
LLVM recognises neither in a loop that numba wrote (which took more than twice as long), so the
loops are built of them by name where the processor has them, of AVX2's `psadbw` and `pmaddwd` where
it has those, and elsewhere of vectors that LLVM lowers as well as it can.

With K digits a pair of 64 pixels and a prototype takes 4 + K instructions by l1 and 1 + K by l2. On
Zen 4, which multiplies one vector of 64 bytes a cycle (0.28 ns), l2 takes 0.90 ns at two digits, 93
% of that limit; l1 and l2 take 2.09 ns where the 5 products and `psadbw` would be 1.67: 80 %. What
did not pay: `vpsubusb` and `vpminub` to compare, products for `psadbw`, two or three images.

A call may take `TILE` pixels: each lane, and the sum of all, stays below 255 * 128 * 2**16 < 2**31.
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
ROWS, TILE = 4, 2**16
L1, L2, BOTH = 1, 2, 3
"""What `measure` adds up."""
Shape = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]

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
    operands = [builder.bitcast(each, _LANES) for each in (unsigned, signed)]  # what any LLVM takes
    return call(builder, "llvm.x86.avx512.vpdpbusd.512", _LANES, [lanes, *operands])


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


def _halves(size: int, kept: int) -> tuple[list[int], list[int]]:
    """Return which elements of two vectors are the low, and the high, halves of each `kept`.

    They go side by side within 128 bits where they are that small, which takes one instruction.
    """
    half = kept // 2
    starts = [[start + side for start in range(0, size, kept)] for side in (0, size)]
    pairs = zip(*starts, strict=True) if kept <= 4 else [starts[0], starts[1]]
    order = [start for pair in pairs for start in pair]
    low, high = (
        [start + shift + at for start in order for at in range(half)] for shift in (0, half)
    )
    return low, high


def totals(builder: Builder, lanes: Sequence[Value]) -> list[Value]:
    """Add up the lanes of each vector: vectors of 16 sums, in the order of the vectors.

    Two by two the halves of vectors are added to each other, so that none is added up by itself:
    three instructions a vector, where adding up the lanes of one takes nine.
    """
    size, sums = _LANES.count, []
    for start in range(0, len(lanes), size):
        level = list(lanes[start : start + size])
        names = [[start + at] for at in range(len(level))]
        kept = size
        while kept > 1:
            if len(level) % 2:
                level.append(_ZERO)
                names.append([-1] * len(names[0]))
            low, high = (ir.Constant(_LANES, index) for index in _halves(size, kept))
            level = [
                builder.add(builder.shuffle_vector(a, b, low), builder.shuffle_vector(a, b, high))
                for a, b in zip(level[::2], level[1::2], strict=True)
            ]
            names = [
                [name for pair in zip(a, b, strict=True) for name in pair] if kept <= 4 else a + b
                for a, b in zip(names[::2], names[1::2], strict=True)
            ]
            kept //= 2
        # of an odd number of vectors some sums are of nothing
        at = [names[0].index(start + n) if start + n in names[0] else 0 for n in range(size)]
        sums.append(builder.shuffle_vector(level[0], _ZERO, ir.Constant(_LANES, at)))
    return sums


def _each(builder: Builder, count: int, stride: Value, offset: Value) -> list[Value]:
    """Return the offsets of one step in each of `count` rows, `stride` bytes apart."""
    return [builder.add(offset, builder.mul(stride, _INT64(row))) for row in range(count)]


def _add_to(builder: Builder, target: Value, function: Any, a: Value, b: Value) -> None:
    builder.store(function(builder, builder.load(target), a, b), target)


def _add_l1(use: _Instructions, builder: Builder, pixels: Value, planes: Any, sums: Any) -> None:
    quotient, *digits = planes
    _add_to(builder, sums[0], use.differences, pixels, quotient)
    if not digits:
        return
    above = builder.zext(builder.icmp_unsigned(">", pixels, quotient), _BYTES)
    for lanes, digit in zip(sums[1:], digits, strict=True):
        _add_to(builder, lanes, use.products, above, digit)


def _add_l2(use: _Instructions, builder: Builder, pixels: Value, planes: Any, sums: Any) -> None:
    signed = [builder.xor(planes[0], _SIGN), *planes[1:]]
    for lanes, digit in zip(sums, signed, strict=True):
        _add_to(builder, lanes, use.products, pixels, digit)


_ADDED = {L1: (_add_l1,), L2: (_add_l2,), BOTH: (_add_l1, _add_l2)}


def shape_of(rows: int, prototypes: int, digits: int, metrics: int) -> Shape:
    """Return what `measure` is compiled for, as tuples of these lengths."""
    return (0,) * rows, (0,) * prototypes, (0,) * digits, (0,) * metrics


@intrinsic
def measure(  # type: ignore[no-untyped-def]
    _context, images, planes, strides, steps, shape, more, out
):
    """Compare some images with some prototypes over `steps` steps of `WIDTH` pixels.

    Parameters
    ----------
    images, planes, steps
        uint8; of each prototype the quotients m, then a plane for each digit d_k of the remainders
        (the bits of an int8). At most `TILE / WIDTH` steps.
    strides
        Bytes between images, between prototypes, and between planes.
    shape
        As `shape_of` returns: how many images, prototypes and digits; `L1`, `L2` or `BOTH`.
    more, out
        Whether to add to it; int64: for each prototype, and for each image: by l1 `sum |x - m|`,
        then `sum d_k where x > m`; by l2 `sum x * (m - 128)`, then `sum x * d_k`.
    """

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        image_array, plane_array, bytes_between, count, _, again, results = arguments
        rows, prototypes, digits, metrics = (kind.count for kind in signature.args[4].types)
        use, adds, columns = _instructions(context), _ADDED[metrics], 1 + digits
        image = pointer(context, builder, signature.args[0], image_array)
        plane = pointer(context, builder, signature.args[1], plane_array)
        strides = [builder.extract_value(bytes_between, at) for at in range(3)]
        sums = [
            cgutils.alloca_once_value(builder, _ZERO)
            for _ in range(rows * prototypes * len(adds) * columns)
        ]
        with cgutils.for_range(builder, count, intp=_INT64) as loop:
            offset = builder.mul(loop.index, _INT64(WIDTH))
            loaded = [
                [load(builder, plane, at) for at in _each(builder, columns, strides[2], start)]
                for start in _each(builder, prototypes, strides[1], offset)
            ]
            each = len(adds) * columns
            for row, at in enumerate(_each(builder, rows, strides[0], offset)):
                pixels = load(builder, image, at)
                for number, of_prototype in enumerate(loaded):
                    mine = [sums[(number * each + at) * rows + row] for at in range(each)]
                    for add in adds:
                        add(use, builder, pixels, of_prototype, mine[:columns])
                        mine = mine[columns:]
        target = context.make_array(signature.args[6])(context, builder, results).data
        for number, values in enumerate(totals(builder, [builder.load(at) for at in sums])):
            left = min(_LANES.count, len(sums) - number * _LANES.count)
            for start in range(0, left, 4):
                size = min(4, left - start)
                at = builder.gep(target, [_INT64(number * _LANES.count + start)])
                store(builder, values, (start, size), builder.bitcast(again, ir.IntType(1)), at)
        return context.get_dummy_value()

    return types.void(images, planes, strides, steps, shape, more, out), generate


def store(builder: Builder, sums: Value, part: tuple[int, int], more: Value, at: Value) -> None:
    """Store some of 16 sums as 64 bits; or add them to what is there."""
    index = ir.Constant(ir.VectorType(_INT32, part[1]), [part[0] + n for n in range(part[1])])
    wide = ir.VectorType(_INT64, part[1])
    values = builder.sext(builder.shuffle_vector(sums, sums, index), wide)
    address = builder.bitcast(at, wide.as_pointer())
    with builder.if_else(more) as (adds, stores):
        with adds:
            total = builder.add(builder.load(address, align=8), values)
            builder.store(total, address, align=8)
        with stores:
            builder.store(values, address, align=8)


def _broadcast(builder: Builder, value: Value) -> Value:
    kind = ir.VectorType(value.type, ROWS)
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, _INT32(0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(_INT32, ROWS), [0] * ROWS))


def _weigh(builder: Builder, digits: Sequence[Value]) -> Value:
    """Put sums over digits together, the lowest first: `sum digits[k] * 256**k`."""
    total = digits[-1]
    for lower in digits[-2::-1]:
        total = builder.add(builder.shl(total, _splat_constant(8)), lower)
    return total


def _splat_constant(value: int) -> Value:
    return ir.Constant(ir.VectorType(_INT64, ROWS), [value] * ROWS)


def _divided(builder: Builder, numbers: Value, scale: Value, root: int) -> Value:
    floats = builder.sitofp(numbers, ir.VectorType(ir.DoubleType(), ROWS))
    floats = builder.fdiv(floats, _broadcast(builder, scale))
    return call(builder, "llvm.sqrt.v4f64", floats.type, [floats]) if root else floats


def _write(builder: Builder, floats: Value, where: Sequence[Value], target: Value) -> None:
    count, first, stride = where
    for row in range(ROWS):
        with builder.if_then(builder.icmp_signed(">", count, _INT64(row))):
            at = builder.add(first, builder.mul(stride, _INT64(row)))
            builder.store(builder.extract_element(floats, _INT32(row)), builder.gep(target, [at]))


@intrinsic
def finish(  # type: ignore[no-untyped-def]
    _context, sums, of_images, of_class, scales, shape, where, targets
):
    """Make distances of what `measure` counted of `ROWS` images and one prototype.

    The bits of `exact.finish_l1` and `exact.finish_l2`: the same operations in the same order.

    Parameters
    ----------
    sums, shape, of_images, of_class
        What `measure` wrote, and its shape; `128 * sum x` of `ROWS` images, then `sum x*x`; n,
        `sum r`, and `sum P*P` modulo 2**64, where what follows must be below 2**63.
    scales
        What l1 and l2 are divided by.
    where
        How many images are written, at most `ROWS`; to which element, and elements between them.
    targets
        float64; where l1, and where l2 is written.
    """

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        kinds = signature.args
        digits, metrics = (kinds[4].types[at].count for at in (2, 3))
        arrays = [(kinds[number], arguments[number]) for number in range(3)]
        for number, kind in enumerate(kinds[6].types):
            arrays.append((kind, builder.extract_value(arguments[6], number)))
        data = [context.make_array(kind)(context, builder, array).data for kind, array in arrays]
        where = [builder.extract_value(arguments[5], at) for at in range(3)]
        wide = ir.VectorType(_INT64, ROWS)

        def column(start: Value, number: int) -> Value:
            address = builder.gep(start, [_INT64(ROWS * number)])
            return builder.load(builder.bitcast(address, wide.as_pointer()), align=8)

        def of_class(number: int) -> Value:
            return _broadcast(builder, builder.load(builder.gep(data[2], [_INT64(number)])))

        def write(numbers: Value, metric: int) -> None:
            scale = builder.extract_value(arguments[3], metric)
            _write(builder, _divided(builder, numbers, scale, metric), where, data[3 + metric])

        columns = [column(data[0], k) for k in range((1 + digits) * (metrics // 3 + 1))]
        n, two = of_class(0), _splat_constant(2)
        if metrics != L2:
            rest = builder.mul(two, _weigh(builder, columns[1 : 1 + digits]))
            total = builder.add(of_class(1), builder.mul(n, columns[0]))
            write(builder.sub(total, rest), 0)
        if metrics != L1:
            products = columns[-1 - digits :]
            both = [column(data[1], number) for number in (0, 1)]
            whole = builder.add(products[0], both[0])
            rest = builder.mul(two, _weigh(builder, products[1:]))
            total = builder.sub(both[1], builder.mul(two, whole))
            total = builder.sub(builder.mul(n, total), rest)
            write(builder.add(of_class(2), builder.mul(n, total)), 1)
        return context.get_dummy_value()

    return types.void(sums, of_images, of_class, scales, shape, where, targets), generate
