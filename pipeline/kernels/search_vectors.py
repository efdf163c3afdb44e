"""The inner loops of a search, in vector instructions: sweeps over sketches, and distances.

A sweep compares `QUERIES` sketches with `GROUP` others in one step and leaves one bit for each
pair. So that no lane needs to be added to another, sketches of references lie interleaved: a
vector holds eight bytes each of eight references for `psadbw` (the sum of absolute differences of
unsigned bytes), or four bytes each of sixteen for `vpdpbusd` (products of unsigned with signed
bytes), the lane of a reference adds up its whole sketch, and the bytes of a query are loaded into
all lanes. `vectors` says why these loops are written in instructions, and what replaces them on
processors that lack them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from pipeline.kernels.vectors import (
    Builder,
    Value,
    call,
    join,
    load,
    parts,
    pointer,
    processor_features,
)

QUERIES = 4
"""Sketches that a sweep compares at once."""

GROUP = 32
"""References that a sweep compares them with; their interleaved sketches follow each other."""

L1_STEP, L2_STEP = 8, 4
"""Bytes of a sketch that one step takes, by metric."""

_BIT, _BYTE, _WORD = ir.IntType(1), ir.IntType(8), ir.IntType(16)
_INT32, _INT64 = ir.IntType(32), ir.IntType(64)


def _vector(element: Any, count: int) -> Any:
    return ir.VectorType(element, count)


_BYTES = _vector(_BYTE, 64)


def _constant(kind: Any, value: int) -> Value:
    return ir.Constant(kind, [value] * kind.count)


def _splat(builder: Builder, value: Value, count: int) -> Value:
    kind = _vector(value.type, count)
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, _INT32(0))
    zeros = ir.Constant(_vector(_INT32, count), [0] * count)
    return builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), zeros)


def _absolute(builder: Builder, a: Value, b: Value) -> Value:
    """|a - b| of unsigned elements."""
    above = builder.icmp_unsigned(">", a, b)
    return builder.select(above, builder.sub(a, b), builder.sub(b, a))


def _differences(builder: Builder, features: set[str], a: Value, b: Value) -> Value:
    """Sum the absolute differences of 64 bytes by eights: <8 x i64>."""
    if "+avx512bw" in features:
        return call(builder, "llvm.x86.avx512.psad.bw.512", _vector(_INT64, 8), [a, b])
    if "+avx2" in features:
        halves = [
            call(builder, "llvm.x86.avx2.psad.bw", _vector(_INT64, 4), pair)
            for pair in zip(parts(builder, a, 32), parts(builder, b, 32), strict=True)
        ]
        return join(builder, *halves)
    lanes, words = _vector(_INT64, 8), _constant(_vector(_INT64, 8), 0x00FF00FF00FF00FF)
    both = builder.bitcast(_absolute(builder, a, b), lanes)
    high = builder.lshr(both, _constant(lanes, 8))
    sums = builder.add(builder.and_(both, words), builder.and_(high, words))
    product = builder.mul(sums, _constant(lanes, 0x0001000100010001))
    return builder.lshr(product, _constant(lanes, 48))


def _products(builder: Builder, features: set[str], sums: Value, a: Value, b: Value) -> Value:
    """Add to <16 x i32> the products of 64 unsigned with 64 signed bytes, by fours."""
    if {"+avx512bw", "+avx512vnni"} <= features:
        kind = _vector(_INT32, 16)
        name = "llvm.x86.avx512.vpdpbusd.512"
        return call(builder, name, kind, [sums, builder.bitcast(a, kind), builder.bitcast(b, kind)])
    words, eight = _vector(_WORD, 32), _constant(_vector(_WORD, 32), 8)
    a, b = builder.bitcast(a, words), builder.bitcast(b, words)
    even = builder.ashr(builder.shl(b, eight), eight)
    pairs = [
        (builder.and_(a, _constant(words, 255)), even),
        (builder.lshr(a, eight), builder.ashr(b, eight)),
    ]
    for unsigned, signed in pairs:
        sums = builder.add(sums, _pair_products(builder, features, unsigned, signed))
    return sums


def _pair_products(builder: Builder, features: set[str], a: Value, b: Value) -> Value:
    """Multiply <32 x i16> and add neighbours: <16 x i32>."""
    if "+avx512bw" in features:
        return call(builder, "llvm.x86.avx512.pmaddw.d.512", _vector(_INT32, 16), [a, b])
    if "+avx2" in features:
        halves = [
            call(builder, "llvm.x86.avx2.pmadd.wd", _vector(_INT32, 8), pair)
            for pair in zip(parts(builder, a, 16), parts(builder, b, 16), strict=True)
        ]
        return join(builder, *halves)
    wide = _vector(_INT32, 32)
    product = builder.mul(builder.sext(a, wide), builder.sext(b, wide))
    nothing = ir.Constant(wide, ir.Undefined)
    even, odd = (
        builder.shuffle_vector(
            product, nothing, ir.Constant(_vector(_INT32, 16), list(range(first, 32, 2)))
        )
        for first in (0, 1)
    )
    return builder.add(even, odd)


def _data(context: Any, builder: Builder, kind: Any, array: Value) -> Value:
    return context.make_array(kind)(context, builder, array).data


def _spread(builder: Builder, start: Value, offset: Value, element: Any, count: int) -> Value:
    """Load one element and put it into all lanes, as bytes."""
    address = builder.bitcast(builder.gep(start, [offset]), element.as_pointer())
    value = builder.load(address, align=1)
    return builder.bitcast(_splat(builder, value, count), _BYTES)


def _bits(builder: Builder, masks: Sequence[Value]) -> Value:
    """Put the bits of several compared vectors into one 32-bit number, the first lowest."""
    result = _INT32(0)
    shift = 0
    for mask in masks:
        bits = builder.bitcast(mask, ir.IntType(mask.type.count))
        wide = builder.zext(bits, _INT32) if bits.type.width < 32 else bits
        result = builder.or_(result, builder.shl(wide, _INT32(shift)))
        shift += mask.type.count
    return result


class _Sweep:
    """Code that runs over the groups of a tile, and for each over the steps of the sketches."""

    def __init__(self, context: Any, builder: Builder, signature: Any, arguments: Any) -> None:
        self.builder, self.features = builder, processor_features(context)
        references, queries, stride, steps, limits, norms, masks = arguments
        kinds = signature.args
        self.references = pointer(context, builder, kinds[0], references)
        self.queries = pointer(context, builder, kinds[1], queries)
        self.stride, self.steps = stride, steps
        self.limits = _data(context, builder, kinds[4], limits)
        self.norms = _data(context, builder, kinds[5], norms)
        self.masks = context.make_array(kinds[6])(context, builder, masks)

    def emit(self, lanes: Any, vectors: int, step: Any, bits: Any) -> None:
        """`step(sums, query, reference)` adds up; `bits(sums, limit, group, number)` compares."""
        builder = self.builder
        groups = builder.extract_value(self.masks.shape, 1)
        zero = _constant(lanes, 0)
        rows = [
            [cgutils.alloca_once(builder, lanes) for _ in range(vectors)] for _ in range(QUERIES)
        ]
        limits = [
            _splat(builder, builder.load(builder.gep(self.limits, [_INT64(q)])), lanes.count)
            for q in range(QUERIES)
        ]
        size = builder.mul(self.steps, _INT64(64 * vectors))
        with cgutils.for_range(builder, groups, intp=_INT64) as group:
            for sums in (sums for row in rows for sums in row):
                builder.store(zero, sums)
            first = builder.mul(group.index, size)
            with cgutils.for_range(builder, self.steps, intp=_INT64) as loop:
                at = builder.add(first, builder.mul(loop.index, _INT64(64 * vectors)))
                loaded = [
                    load(builder, self.references, builder.add(at, _INT64(64 * number)))
                    for number in range(vectors)
                ]
                for q, row in enumerate(rows):
                    offset = builder.mul(loop.index, _INT64(64 // lanes.count))
                    offset = builder.add(offset, builder.mul(self.stride, _INT64(q)))
                    query = _spread(builder, self.queries, offset, lanes.element, lanes.count)
                    for sums, reference in zip(row, loaded, strict=True):
                        builder.store(step(builder.load(sums), query, reference), sums)
            for q, row in enumerate(rows):
                compared = [
                    bits(builder.load(sums), limits[q], group.index, number)
                    for number, sums in enumerate(row)
                ]
                place = builder.add(builder.mul(groups, _INT64(q)), group.index)
                builder.store(_bits(builder, compared), builder.gep(self.masks.data, [place]))


@intrinsic
def sweep_l1(  # type: ignore[no-untyped-def]
    _context, references, queries, stride, steps, limits, norms, masks
):
    """Find which references differ from `QUERIES` queries by at most so much, by sketch.

    Parameters
    ----------
    references
        uint8, interleaved: groups of steps of 4 vectors of 8 references of `L1_STEP` bytes.
    queries, stride
        uint8, sketches in rows that are `stride` bytes apart.
    steps
        Of `L1_STEP` bytes, that make up a sketch.
    limits
        [QUERIES] int64.
    norms
        Not used.
    masks
        [QUERIES, groups] uint32; bit r is set where reference r of the group has
        `sum |q - r| <= limit`.
    """

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        sweep, lanes = _Sweep(context, builder, signature, arguments), _vector(_INT64, 8)

        def step(sums, query, reference):  # type: ignore[no-untyped-def]
            return builder.add(sums, _differences(builder, sweep.features, query, reference))

        def bits(sums, limit, _group, _number):  # type: ignore[no-untyped-def]
            return builder.icmp_signed("<=", sums, limit)

        sweep.emit(lanes, 4, step, bits)
        return context.get_dummy_value()

    return types.void(references, queries, stride, steps, limits, norms, masks), generate


@intrinsic
def sweep_l2(  # type: ignore[no-untyped-def]
    _context, references, queries, stride, steps, limits, norms, masks
):
    """Find which references lie near `QUERIES` queries, by products of their sketches.

    Parameters as for `sweep_l1`, but: references r hold the bits of r - 128, in groups of steps
    of 2 vectors of 16 references of `L2_STEP` bytes; `limits` is [QUERIES] int32; `norms`
    [reference] int32, `sum r*r`. A bit is set where `sum r*r - 2 * sum q * (r - 128) <= limit`.
    """

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        sweep, lanes = _Sweep(context, builder, signature, arguments), _vector(_INT32, 16)

        def step(sums, query, reference):  # type: ignore[no-untyped-def]
            return _products(builder, sweep.features, sums, query, reference)

        def bits(sums, limit, group, number):  # type: ignore[no-untyped-def]
            at = builder.add(builder.mul(group, _INT64(GROUP)), _INT64(16 * number))
            address = builder.bitcast(builder.gep(sweep.norms, [at]), lanes.as_pointer())
            norm = builder.load(address, align=1)
            doubled = builder.add(sums, sums)
            return builder.icmp_signed("<=", builder.sub(norm, doubled), limit)

        sweep.emit(lanes, 2, step, bits)
        return context.get_dummy_value()

    return types.void(references, queries, stride, steps, limits, norms, masks), generate


def _pairs_of(context: Any, builder: Builder, signature: Any, arguments: Any) -> Any:
    """Return a function that loads 64 bytes of each of two rows; an offset is in elements."""
    rows = []
    for number in (0, 2):
        data = _data(context, builder, signature.args[number], arguments[number])
        start = builder.gep(data, [arguments[number + 1]])
        rows.append(builder.bitcast(start, _BYTE.as_pointer()))
    return lambda offset: [load(builder, row, offset) for row in rows]


def _sum_over(builder: Builder, steps: Value, kind: Any, start: Any, term: Any) -> Value:
    """Add `term(sums, byte offset)` over the steps of 64 bytes, and all lanes at the end."""
    sums = cgutils.alloca_once(builder, kind)
    builder.store(start, sums)
    with cgutils.for_range(builder, steps, intp=_INT64) as loop:
        offset = builder.mul(loop.index, _INT64(64))
        builder.store(term(builder.load(sums), offset), sums)
    name = f"llvm.vector.reduce.add.v{kind.count}i{kind.element.width}"
    total = call(builder, name, kind.element, [builder.load(sums)])
    return total if kind.element.width == 64 else builder.sext(total, _INT64)


@intrinsic
def differences(_context, a, a_offset, b, b_offset, steps):  # type: ignore[no-untyped-def]
    """Return `sum |a - b|` over `steps` steps of 64 bytes, uint8 or uint16 alike."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        features = processor_features(context)
        load_pair = _pairs_of(context, builder, signature, arguments)
        lanes = _vector(_INT64, 8)

        def term(sums, offset):  # type: ignore[no-untyped-def]
            pair = load_pair(offset)
            if signature.args[0].dtype.bitwidth == 8:
                return builder.add(sums, _differences(builder, features, *pair))
            words = [builder.bitcast(part, _vector(_WORD, 32)) for part in pair]
            wide = builder.zext(_absolute(builder, *words), _vector(_INT32, 32))
            halves = parts(builder, wide, 16)
            quarters = parts(builder, builder.add(*halves), 8)
            for part in quarters:
                sums = builder.add(sums, builder.zext(part, lanes))
            return sums

        return _sum_over(builder, arguments[4], lanes, _constant(lanes, 0), term)

    return types.int64(a, a_offset, b, b_offset, steps), generate


@intrinsic
def squares(_context, a, a_offset, b, b_offset, steps):  # type: ignore[no-untyped-def]
    """Return `sum (a - b)**2` over `steps` steps of 64 bytes, uint8 or uint16 alike.

    At most 2**9 steps of 8-bit pixels, whose lanes hold, and add up to, 32 bits.
    """

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        features = processor_features(context)
        load_pair = _pairs_of(context, builder, signature, arguments)
        narrow = signature.args[0].dtype.bitwidth == 8
        lanes = _vector(_INT32, 16) if narrow else _vector(_INT64, 8)

        def term(sums, offset):  # type: ignore[no-untyped-def]
            pair = load_pair(offset)
            if narrow:
                between = _absolute(builder, *pair)
                for half in parts(builder, between, 32):
                    words = builder.zext(half, _vector(_WORD, 32))
                    sums = builder.add(sums, _pair_products(builder, features, words, words))
                return sums
            words = [builder.bitcast(part, _vector(_WORD, 32)) for part in pair]
            wide = builder.zext(_absolute(builder, *words), _vector(_INT32, 32))
            for part in parts(builder, builder.mul(wide, wide), 8):
                sums = builder.add(sums, builder.zext(part, lanes))
            return sums

        return _sum_over(builder, arguments[4], lanes, _constant(lanes, 0), term)

    return types.int64(a, a_offset, b, b_offset, steps), generate


@intrinsic
def lowest_bit(_context, _bits):  # type: ignore[no-untyped-def]
    """Return the number of the lowest bit that is set, of a uint32 that is not 0."""

    def generate(_context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        value = call(builder, "llvm.cttz.i32", _INT32, [arguments[0], _BIT(1)])
        return builder.zext(value, _INT64)

    return types.int64(types.uint32), generate
