"""What a row becomes between two products, 512 bits at a time: norms, levels, turned heads.

Functions take addresses, so that a row may lie anywhere, and sizes in bytes of float32, multiples
of a vector's. Numba's own loops take three to six times as long: it counts who holds each slice of
an array, and LLVM compares where the arrays lie before each loop.
"""

# A kernel's arguments are no Python values, and Numba finds their types itself.
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false
# pyright: reportCallIssue=false

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .tiles import F32, FLOATS, I32, I64, INTS, LANES, ZERO_POINT, BFloat, add, pointer, repeat

FUSED = ("contract",)
LEVELS = 127.0
HALF = ir.VectorType(BFloat(), LANES)
LOWEST = -127.0  # 2 to the power of it is 0 as `exp2` writes it
# exp2's Taylor polynomial, for at most a half.
EXP2 = tuple(math.log(2) ** n / math.factorial(n) for n in range(6, -1, -1))
ZEROS = ir.Constant(FLOATS, [0.0] * LANES)


@intrinsic
def weigh_row(typingctx: Any, values: Any, weight: Any, size: Any, out: Any) -> Any:
    """Write values times weight; return the sum of the values' squares."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        values, weight, size, out = given

        def weigh(offset: Any, sums: Sequence[Any]) -> list[Any]:
            own, factors = (load(builder, add(builder, at, offset)) for at in (values, weight))
            store(builder, builder.fmul(own, factors), add(builder, out, offset))
            return [multiply_add(builder, own, own, sums[0])]

        [sums] = loop(builder, size, 4 * LANES, [ZEROS], weigh)
        return sum_lanes(builder, sums)

    return types.float32(types.intp, types.intp, types.intp, types.intp), generate


@intrinsic
def take_row(typingctx: Any, kind: Any, values: Any, size: Any, out: Any, step: Any) -> Any:
    """Write a row as a product reads it, STEP_BYTES every `step` bytes; return its scale.

    Where `kind` is an int8: as uint8 around ZERO_POINT, and the scale, what a level stands for, is
    NaN if a value is. Otherwise as bfloat16, and the scale is 1.
    """

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        _, values, size, out, step = given
        if signature.args[0] != types.int8:
            of = ir.FunctionType(HALF, [FLOATS])
            name = "llvm.x86.avx512bf16.cvtneps2bf16.512"
            nearest = cgutils.get_or_insert_function(builder.module, of, name)
            _put(builder, values, size, out, step, lambda x: builder.call(nearest, [x]))
            return F32(1)
        peak = _peak(builder, values, size)
        factors = repeat(builder, builder.fdiv(F32(LEVELS), peak), FLOATS)
        of = ir.FunctionType(INTS, [FLOATS, INTS, ir.IntType(16), I32])
        name = "llvm.x86.avx512.mask.cvtps2dq.512"
        nearest = cgutils.get_or_insert_function(builder.module, of, name)
        none, all_ = ir.Constant(INTS, [0] * LANES), ir.Constant(ir.IntType(16), -1)
        zero_points = ir.Constant(INTS, [ZERO_POINT] * LANES)

        def levels(x: Any) -> Any:
            rounded = builder.call(nearest, [builder.fmul(x, factors), none, all_, I32(4)])
            centred = builder.add(rounded, zero_points)
            return builder.trunc(centred, ir.VectorType(ir.IntType(8), LANES))

        _put(builder, values, size, out, step, levels)
        return builder.fdiv(peak, F32(LEVELS))

    return types.float32(kind, *[types.intp] * 4), generate


def _peak(builder: Any, values: Any, size: Any) -> Any:
    """Return the largest magnitude, NaN if a value is."""
    magnitude = ir.Constant(INTS, [0x7FFFFFFF] * LANES)

    def find(offset: Any, found: Sequence[Any]) -> list[Any]:
        bits = builder.bitcast(load(builder, add(builder, values, offset)), INTS)
        bits = builder.and_(bits, magnitude)  # as integers: so NaN is the largest of all
        is_larger = builder.icmp_signed(">", bits, found[0])
        return [builder.select(is_larger, bits, found[0])]

    [found] = loop(builder, size, 4 * LANES, [ir.Constant(INTS, [0] * LANES)], find)
    of = ir.FunctionType(I32, [INTS])
    largest = cgutils.get_or_insert_function(builder.module, of, "llvm.vector.reduce.smax.v16i32")
    return builder.bitcast(builder.call(largest, [found]), F32)


def _put(
    builder: Any, values: Any, size: Any, out: Any, step: Any, narrow: Callable[[Any], Any]
) -> None:
    """Write narrow(a vector's values) for all of a row, STEP_BYTES every `step` bytes."""
    at = cgutils.alloca_once_value(builder, out)

    def put(offset: Any, nothing: Sequence[Any]) -> list[Any]:
        narrowed = narrow(load(builder, add(builder, values, offset)))
        words = 4 if narrowed.type != HALF else 8
        parts = builder.bitcast(narrowed, ir.VectorType(I32, words))
        for n in range(words):
            place = builder.load(at)
            part = builder.extract_element(parts, I32(n))
            builder.store(part, pointer(builder, place, I32), align=4)
            builder.store(builder.add(place, step), at)
        return []

    loop(builder, size, 4 * LANES, [], put)


@intrinsic
def turn(
    typingctx: Any, head: Any, weight: Any, cos: Any, sin: Any, half: Any, eps: Any, out: Any
) -> Any:
    """Write a head's RMS norm times `weight`, turned by its position's angles.

    All are addresses of float32 but `half`, the bytes of half a head, a multiple of a vector's.
    """

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        head, weight, cos, sin, half, eps, out = given
        size = builder.shl(half, I64(1))

        def square(offset: Any, sums: Sequence[Any]) -> list[Any]:
            values = load(builder, add(builder, head, offset))
            return [multiply_add(builder, values, values, sums[0])]

        [sums] = loop(builder, size, 4 * LANES, [ZEROS], square)
        length = builder.sitofp(builder.lshr(size, I64(2)), F32)
        mean = builder.fdiv(sum_lanes(builder, sums), length)
        of = ir.FunctionType(F32, [F32])
        root = cgutils.get_or_insert_function(builder.module, of, "llvm.sqrt.f32")
        norm = builder.call(root, [builder.fadd(mean, eps)])
        inverse = repeat(builder, builder.fdiv(F32(1), norm), FLOATS)

        def normed(offset: Any) -> Any:
            values, factors = (load(builder, add(builder, at, offset)) for at in (head, weight))
            return builder.fmul(builder.fmul(values, inverse), factors)

        def rotate(low: Any, nothing: Sequence[Any]) -> list[Any]:
            high = builder.add(low, half)
            x, y = normed(low), normed(high)
            c, s = (load(builder, add(builder, at, low)) for at in (cos, sin))
            minus = builder.fneg(y)
            for value, at in (
                (multiply_add(builder, minus, s, builder.fmul(x, c)), low),
                (multiply_add(builder, x, s, builder.fmul(y, c)), high),
            ):
                store(builder, value, add(builder, out, at))
            return []

        loop(builder, half, 4 * LANES, [], rotate)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 5, types.float32, types.intp), generate


@intrinsic
def write_scaled(typingctx: Any, values: Any, size: Any, factor: Any, out: Any) -> Any:
    """Write factor * values, `size` bytes of float32."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        values, size, factor, out = given
        factors = repeat(builder, factor, FLOATS)

        def scale(offset: Any) -> Any:
            return builder.fmul(load(builder, add(builder, values, offset)), factors)

        write(builder, size, scale, out)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.float32, types.intp), generate


@intrinsic
def add_row(typingctx: Any, values: Any, size: Any, out: Any) -> Any:
    """Add values to `out`, `size` bytes of float32."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        values, size, out = given

        def total(offset: Any) -> Any:
            return builder.fadd(*(load(builder, add(builder, at, offset)) for at in (out, values)))

        write(builder, size, total, out)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), generate


@intrinsic
def gate_row(typingctx: Any, values: Any, size: Any, out: Any) -> Any:
    """Write silu(gate) * up, `size` bytes of float32; vectors of gate and up stand in turns."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        values, size, out = given

        def gated(offset: Any) -> Any:
            pair = add(builder, values, builder.shl(offset, I64(1)))
            gate, up = load(builder, pair), load(builder, add(builder, pair, I64(4 * LANES)))
            t = builder.fmul(gate, repeat(builder, F32(-1 / math.log(2)), FLOATS))
            limit = repeat(builder, F32(128.0), FLOATS)  # whose power is inf
            t = builder.select(builder.fcmp_ordered(">", t, limit), limit, t)
            power = builder.fadd(exp2(builder, t), repeat(builder, F32(1.0), FLOATS))
            return builder.fmul(builder.fdiv(gate, power), up)

        write(builder, size, gated, out)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), generate


def write(builder: Any, size: Any, values: Callable[[Any], Any], out: Any) -> None:
    """Write values(offset) to `out`, `size` bytes of float32."""

    def step(offset: Any, nothing: Sequence[Any]) -> list[Any]:
        store(builder, values(offset), add(builder, out, offset))
        return []

    loop(builder, size, 4 * LANES, [], step)


def loop(
    builder: Any,
    stop: Any,
    step: int,
    first: Sequence[Any],
    body: Callable[[Any, Sequence[Any]], list[Any]],
) -> list[Any]:
    """Return what `body(offset, values)` makes of the values, for 0, step, … below `stop`."""
    before = builder.block
    head, inside, end = (builder.append_basic_block(name) for name in ("head", "inside", "end"))
    builder.branch(head)
    builder.position_at_end(head)
    offset = builder.phi(I64)
    offset.add_incoming(I64(0), before)
    values = [builder.phi(value.type) for value in first]
    for phi, value in zip(values, first, strict=True):
        phi.add_incoming(value, before)
    builder.cbranch(builder.icmp_signed("<", offset, stop), inside, end)
    builder.position_at_end(inside)
    new = body(offset, values)
    offset.add_incoming(builder.add(offset, I64(step)), builder.block)
    for phi, value in zip(values, new, strict=True):
        phi.add_incoming(value, builder.block)
    builder.branch(head)
    builder.position_at_end(end)
    return values


def load(builder: Any, address: Any) -> Any:
    """Return the vector of float32 at the address."""
    return builder.load(pointer(builder, address, FLOATS), align=4)


def store(builder: Any, vector: Any, address: Any) -> None:
    """Write a vector of float32 to the address."""
    builder.store(vector, pointer(builder, address, FLOATS), align=4)


def multiply_add(builder: Any, x: Any, y: Any, total: Any) -> Any:
    """Return x * y + total."""
    return builder.fadd(total, builder.fmul(x, y, flags=FUSED), flags=FUSED)


def exp2(builder: Any, t: Any) -> Any:
    """Return 2 to the power of t, at most 128, which is inf; exactly 0 at LOWEST and below."""
    lowest = repeat(builder, F32(LOWEST), FLOATS)
    t = builder.select(builder.fcmp_unordered("<", t, lowest), lowest, t)
    of = ir.FunctionType(FLOATS, [FLOATS])
    nearest = cgutils.get_or_insert_function(builder.module, of, "llvm.rint.v16f32")
    whole = builder.call(nearest, [t])
    f = builder.fsub(t, whole)
    power = repeat(builder, F32(EXP2[0]), FLOATS)
    for factor in EXP2[1:]:
        constant = repeat(builder, F32(factor), FLOATS)
        power = builder.fadd(builder.fmul(power, f, flags=FUSED), constant, flags=FUSED)
    exponent = builder.add(builder.fptosi(whole, INTS), ir.Constant(INTS, [127] * LANES))
    bits = builder.shl(exponent, ir.Constant(INTS, [23] * LANES))
    return builder.fmul(power, builder.bitcast(bits, FLOATS))


def sum_lanes(builder: Any, vector: Any) -> Any:
    """Return the sum of a vector's values."""
    of = ir.FunctionType(F32, [F32, FLOATS])
    total = cgutils.get_or_insert_function(builder.module, of, "llvm.vector.reduce.fadd.v16f32")
    return builder.call(total, [F32(0), vector], fastmath=("reassoc",))
