"""Attention in float32 with 512-bit vectors: heads turned, scores, their softmax, their values.

Functions take addresses, so that a head's rows may lie anywhere. What a row becomes depends on its
own text alone: the same bits in any batch.
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

from .tiles import EXP2, F32, FLOATS, I32, I64, INTS, LANES, add, pointer, repeat

QUERIES, KEYS = 4, 4  # of a tile of scores: their products are 16 sums, in 16 registers
COLUMNS = 4  # vectors of a tile of values
FUSED = ("contract",)
LOWEST = -127.0  # 2 to the power of it is 0 as `_exp2` writes it


@intrinsic
def turn(
    typingctx: Any, head: Any, weight: Any, cos: Any, sin: Any, half: Any, eps: Any, out: Any
) -> Any:
    """Write a head's RMS norm times `weight`, turned by its position's angles.

    All are addresses of float32 but `half`, the bytes of half a head, a multiple of a vector's.
    Numba's own loops are six times as slow: LLVM compares where five arrays lie before each.
    """

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        head, weight, cos, sin, half, eps, out = given
        size = builder.shl(half, I64(1))

        def square(offset: Any, sums: Sequence[Any]) -> list[Any]:
            values = _load(builder, add(builder, head, offset))
            return [_multiply_add(builder, values, values, sums[0])]

        [sums] = _loop(builder, size, 4 * LANES, [ir.Constant(FLOATS, [0.0] * LANES)], square)
        length = builder.sitofp(builder.lshr(size, I64(2)), F32)
        mean = builder.fdiv(_sum_lanes(builder, sums), length)
        of = ir.FunctionType(F32, [F32])
        root = cgutils.get_or_insert_function(builder.module, of, "llvm.sqrt.f32")
        norm = builder.call(root, [builder.fadd(mean, eps)])
        inverse = repeat(builder, builder.fdiv(F32(1), norm), FLOATS)

        def normed(offset: Any) -> Any:
            values, factors = (_load(builder, add(builder, at, offset)) for at in (head, weight))
            return builder.fmul(builder.fmul(values, inverse), factors)

        def rotate(low: Any, nothing: Sequence[Any]) -> list[Any]:
            high = builder.add(low, half)
            x, y = normed(low), normed(high)
            c, s = (_load(builder, add(builder, at, low)) for at in (cos, sin))
            minus = builder.fneg(y)
            for value, at in (
                (_multiply_add(builder, minus, s, builder.fmul(x, c)), low),
                (_multiply_add(builder, x, s, builder.fmul(y, c)), high),
            ):
                place = pointer(builder, add(builder, out, at), FLOATS)
                builder.store(value, place, align=4)
            return []

        _loop(builder, half, 4 * LANES, [], rotate)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 5, types.float32, types.intp), generate


@intrinsic
def score_tile(
    typingctx: Any, q: Any, num_q: Any, k: Any, num_k: Any, stride: Any, out: Any, out_stride: Any
) -> Any:
    """Write out[i, j] = q[i] . k[j] for QUERIES rows from q on and KEYS from k on.

    Rows of float32 are `stride` bytes long, and there are `num_q` and `num_k` of them: in the place
    of one that is missing the last one is read.
    """

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        q, num_q, k, num_k, stride, out, out_stride = given
        queries = _rows(builder, q, stride, num_q, QUERIES)
        keys = _rows(builder, k, stride, num_k, KEYS)

        def step(offset: Any, sums: Sequence[Any]) -> list[Any]:
            read = [_load(builder, add(builder, key, offset)) for key in keys]
            new: list[Any] = []
            for query in queries:
                own = _load(builder, add(builder, query, offset))
                for key in read:
                    before = sums[len(new)]
                    new.append(_multiply_add(builder, own, key, before))
            return new

        zero = ir.Constant(FLOATS, [0.0] * LANES)
        sums = _loop(builder, stride, 4 * LANES, [zero] * (QUERIES * KEYS), step)
        tile = _sums_of_lanes(builder, sums)
        for row in range(QUERIES):
            mask = ir.Constant(ir.VectorType(I32, KEYS), list(range(KEYS * row, KEYS * (row + 1))))
            scores = builder.shuffle_vector(tile, tile, mask)
            place = add(builder, out, builder.mul(out_stride, I64(row)))
            builder.store(scores, pointer(builder, place, scores.type), align=4)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 7), generate


@intrinsic
def value_tile(
    typingctx: Any, weights: Any, weights_stride: Any, v: Any, v_stride: Any, num_keys: Any,
    out: Any, out_stride: Any,
) -> Any:  # fmt: skip
    """Add weights[i] @ v to out[i] for QUERIES rows, and COLUMNS * LANES columns of v, float32."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        weights, weights_stride, v, v_stride, num_keys, out, out_stride = given
        rows = [add(builder, weights, builder.mul(weights_stride, I64(i))) for i in range(QUERIES)]
        outs = [
            add(builder, out, builder.mul(out_stride, I64(i)), I64(4 * LANES * n))
            for i in range(QUERIES)
            for n in range(COLUMNS)
        ]

        def step(offset: Any, sums: Sequence[Any]) -> list[Any]:
            key = add(builder, v, builder.mul(v_stride, builder.lshr(offset, I64(2))))
            read = [_load(builder, add(builder, key, I64(4 * LANES * n))) for n in range(COLUMNS)]
            new: list[Any] = []
            for row in rows:
                one = builder.load(pointer(builder, add(builder, row, offset), F32), align=4)
                weight = repeat(builder, one, FLOATS)
                for values in read:
                    new.append(_multiply_add(builder, weight, values, sums[len(new)]))
            return new

        before = [_load(builder, place) for place in outs]
        sums = _loop(builder, builder.shl(num_keys, I64(2)), 4, before, step)
        for place, total in zip(outs, sums, strict=True):
            builder.store(total, pointer(builder, place, FLOATS), align=4)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 7), generate


@intrinsic
def soften(
    typingctx: Any,
    scores: Any,
    stride: Any,
    num_seen: Any,
    num_scores: Any,
    scale: Any,
    totals: Any,
) -> Any:
    """Make weights of QUERIES rows of scores: exp(scale * (score - the row's largest)).

    The first row sees `num_seen` scores, each further one a score more; the others' weights are 0.
    Each row's sum goes to `totals`. Vectors are written whole: up to LANES - 1 scores behind
    `num_scores` as well.
    """

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        scores, stride, num_seen, num_scores, scale, totals = given
        size = builder.shl(num_scores, I64(2))
        lowest = repeat(builder, F32(float("-inf")), FLOATS)
        lanes = ir.Constant(INTS, list(range(LANES)))
        rows = [add(builder, scores, builder.mul(stride, I64(row))) for row in range(QUERIES)]
        seen = [
            repeat(builder, builder.trunc(builder.add(num_seen, I64(row)), I32), INTS)
            for row in range(QUERIES)
        ]

        def read(offset: Any) -> list[Any]:
            first = repeat(builder, builder.trunc(builder.lshr(offset, I64(2)), I32), INTS)
            numbers = builder.add(first, lanes)
            return [
                builder.select(
                    builder.icmp_signed("<", numbers, limit),
                    _load(builder, add(builder, row, offset)),
                    lowest,
                )
                for row, limit in zip(rows, seen, strict=True)
            ]

        def find(offset: Any, found: Sequence[Any]) -> list[Any]:
            pairs = zip(read(offset), found, strict=True)
            return [
                builder.select(builder.fcmp_ordered(">", new, old), new, old) for new, old in pairs
            ]

        found = _loop(builder, size, 4 * LANES, [lowest] * QUERIES, find)
        peaks = [repeat(builder, _largest_lane(builder, one), FLOATS) for one in found]
        factor = repeat(builder, builder.fmul(scale, F32(1 / math.log(2))), FLOATS)

        def exponentiate(offset: Any, sums: Sequence[Any]) -> list[Any]:
            new: list[Any] = []
            for row, values, peak, total in zip(rows, read(offset), peaks, sums, strict=True):
                power = _exp2(builder, builder.fmul(builder.fsub(values, peak), factor))
                place = pointer(builder, add(builder, row, offset), FLOATS)
                builder.store(power, place, align=4)
                new.append(builder.fadd(total, power))
            return new

        zero = ir.Constant(FLOATS, [0.0] * LANES)
        for row, sums in enumerate(_loop(builder, size, 4 * LANES, [zero] * QUERIES, exponentiate)):
            place = pointer(builder, add(builder, totals, I64(4 * row)), F32)
            builder.store(_sum_lanes(builder, sums), place, align=4)
        return context.get_dummy_value()

    signature = types.void(
        types.intp, types.intp, types.int64, types.int64, types.float32, types.intp
    )
    return signature, generate


@intrinsic
def write_scaled(typingctx: Any, values: Any, size: Any, factor: Any, out: Any) -> Any:
    """Write factor * values, `size` bytes of float32."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        values, size, factor, out = given
        factors = repeat(builder, factor, FLOATS)

        def scale(offset: Any, nothing: Sequence[Any]) -> list[Any]:
            scaled = builder.fmul(_load(builder, add(builder, values, offset)), factors)
            place = pointer(builder, add(builder, out, offset), FLOATS)
            builder.store(scaled, place, align=4)
            return []

        _loop(builder, size, 4 * LANES, [], scale)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.float32, types.intp), generate


def _loop(
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


def _rows(builder: Any, first: Any, stride: Any, num_rows: Any, size: int) -> list[Any]:
    """Return the addresses of `size` rows, the last one's in the place of those that lack."""
    last = builder.sub(num_rows, I64(1))
    rows: list[Any] = []
    for row in range(size):
        is_there = builder.icmp_signed("<", I64(row), last)
        read = builder.select(is_there, I64(row), last)
        rows.append(add(builder, first, builder.mul(stride, read)))
    return rows


def _load(builder: Any, address: Any) -> Any:
    return builder.load(pointer(builder, address, FLOATS), align=4)


def _multiply_add(builder: Any, x: Any, y: Any, total: Any) -> Any:
    return builder.fadd(total, builder.fmul(x, y, flags=FUSED), flags=FUSED)


def _sums_of_lanes(builder: Any, vectors: list[Any]) -> Any:
    """Return a vector of the sums of LANES vectors."""
    width = 1
    while len(vectors) > 1:
        starts = range(0, LANES, 2 * width)
        halves = [
            [first + lane for start in starts for first in (start, LANES + start) for lane in half]
            for half in (range(width), range(width, 2 * width))
        ]
        masks = [ir.Constant(INTS, half) for half in halves]
        pairs = zip(vectors[::2], vectors[1::2], strict=True)
        vectors = [
            builder.fadd(*(builder.shuffle_vector(first, second, mask) for mask in masks))
            for first, second in pairs
        ]
        width *= 2
    return vectors[0]


def _exp2(builder: Any, t: Any) -> Any:
    """Return 2 to the power of t <= 0; exactly 0 below LOWEST."""
    lowest = repeat(builder, F32(LOWEST), FLOATS)
    t = builder.select(builder.fcmp_unordered("<", t, lowest), lowest, t)
    of = ir.FunctionType(FLOATS, [FLOATS])
    nearest = cgutils.get_or_insert_function(builder.module, of, "llvm.rint.v16f32")
    whole = builder.call(nearest, [t])
    f = builder.fsub(t, whole)
    power = repeat(builder, F32(float(EXP2[0])), FLOATS)
    for factor in EXP2[1:]:
        constant = repeat(builder, F32(float(factor)), FLOATS)
        power = builder.fadd(builder.fmul(power, f, flags=FUSED), constant, flags=FUSED)
    exponent = builder.add(builder.fptosi(whole, INTS), ir.Constant(INTS, [127] * LANES))
    bits = builder.shl(exponent, ir.Constant(INTS, [23] * LANES))
    return builder.fmul(power, builder.bitcast(bits, FLOATS))


def _sum_lanes(builder: Any, vector: Any) -> Any:
    of = ir.FunctionType(F32, [F32, FLOATS])
    total = cgutils.get_or_insert_function(builder.module, of, "llvm.vector.reduce.fadd.v16f32")
    return builder.call(total, [F32(0), vector], fastmath=("reassoc",))


def _largest_lane(builder: Any, vector: Any) -> Any:
    of = ir.FunctionType(F32, [FLOATS])
    largest = cgutils.get_or_insert_function(builder.module, of, "llvm.vector.reduce.fmax.v16f32")
    return builder.call(largest, [vector])
