"""Attention in float32, 512 bits at a time: tiles of scores, their softmax, tiles of values.

Functions take addresses. What a row becomes depends on its own text alone: the same bits in any
batch.
"""

# A kernel's arguments are no Python values, and Numba finds their types itself.
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false
# pyright: reportCallIssue=false

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .row_tiles import ZEROS, exp2, load, loop, multiply_add, store, sum_lanes
from .tiles import F32, FLOATS, I32, I64, INTS, LANES, add, pointer, repeat

QUERIES, KEYS = 4, 4  # of a tile of scores: their products are 16 sums, in 16 registers
COLUMNS = 4  # vectors of a tile of values


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
            read = [load(builder, add(builder, key, offset)) for key in keys]
            new: list[Any] = []
            for query in queries:
                own = load(builder, add(builder, query, offset))
                for key in read:
                    before = sums[len(new)]
                    new.append(multiply_add(builder, own, key, before))
            return new

        sums = loop(builder, stride, 4 * LANES, [ZEROS] * (QUERIES * KEYS), step)
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
            read = [load(builder, add(builder, key, I64(4 * LANES * n))) for n in range(COLUMNS)]
            new: list[Any] = []
            for row in rows:
                one = builder.load(pointer(builder, add(builder, row, offset), F32), align=4)
                weight = repeat(builder, one, FLOATS)
                for values in read:
                    new.append(multiply_add(builder, weight, values, sums[len(new)]))
            return new

        before = [load(builder, place) for place in outs]
        sums = loop(builder, builder.shl(num_keys, I64(2)), 4, before, step)
        for place, total in zip(outs, sums, strict=True):
            store(builder, total, place)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 7), generate


@intrinsic
def soften(
    typingctx: Any, scores: Any, stride: Any, num_seen: Any, num_scores: Any, scale: Any,
    totals: Any,
) -> Any:  # fmt: skip
    """Make weights of QUERIES rows of scores: exp(scale * (score - the row's largest)).

    The first row sees `num_seen` scores, each further one a score more; the others' weights are 0.
    Each row's sum goes to `totals`. Vectors are written whole: up to LANES - 1 scores behind
    `num_scores` as well.
    """

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        scores, stride, num_seen, num_scores, scale, totals = given
        size = builder.shl(num_scores, I64(2))
        rows = [add(builder, scores, builder.mul(stride, I64(row))) for row in range(QUERIES)]
        seen = [_ints(builder, builder.add(num_seen, I64(row))) for row in range(QUERIES)]
        factor = repeat(builder, builder.fmul(scale, F32(1 / math.log(2))), FLOATS)

        def find(offset: Any, found: Sequence[Any]) -> list[Any]:
            pairs = zip(_read_seen(builder, rows, seen, offset), found, strict=True)
            return [builder.select(builder.fcmp_ordered(">", x, y), x, y) for x, y in pairs]

        found = loop(builder, size, 4 * LANES, [_lowest(builder)] * QUERIES, find)
        peaks = [repeat(builder, _largest_lane(builder, one), FLOATS) for one in found]

        def exponentiate(offset: Any, sums: Sequence[Any]) -> list[Any]:
            new: list[Any] = []
            read = _read_seen(builder, rows, seen, offset)
            for row, values, peak, total in zip(rows, read, peaks, sums, strict=True):
                power = exp2(builder, builder.fmul(builder.fsub(values, peak), factor))
                store(builder, power, add(builder, row, offset))
                new.append(builder.fadd(total, power))
            return new

        for row, sums in enumerate(loop(builder, size, 4 * LANES, [ZEROS] * QUERIES, exponentiate)):
            place = pointer(builder, add(builder, totals, I64(4 * row)), F32)
            builder.store(sum_lanes(builder, sums), place, align=4)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 4, types.float32, types.intp), generate


def _read_seen(builder: Any, rows: list[Any], seen: list[Any], offset: Any) -> list[Any]:
    """Return a vector of each row's scores, those that it does not see the lowest there is."""
    lanes = ir.Constant(INTS, list(range(LANES)))
    numbers = builder.add(_ints(builder, builder.lshr(offset, I64(2))), lanes)
    read: list[Any] = []
    for row, limit in zip(rows, seen, strict=True):
        is_seen = builder.icmp_signed("<", numbers, limit)
        values = load(builder, add(builder, row, offset))
        read.append(builder.select(is_seen, values, _lowest(builder)))
    return read


def _lowest(builder: Any) -> Any:
    return repeat(builder, F32(float("-inf")), FLOATS)


def _ints(builder: Any, number: Any) -> Any:
    """Return a vector of an int64 that is an int32."""
    return repeat(builder, builder.trunc(number, I32), INTS)


def _rows(builder: Any, first: Any, stride: Any, num_rows: Any, size: int) -> list[Any]:
    """Return the addresses of `size` rows, the last one's in the place of those that lack."""
    last = builder.sub(num_rows, I64(1))
    rows: list[Any] = []
    for row in range(size):
        is_there = builder.icmp_signed("<", I64(row), last)
        read = builder.select(is_there, I64(row), last)
        rows.append(add(builder, first, builder.mul(stride, read)))
    return rows


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


def _largest_lane(builder: Any, vector: Any) -> Any:
    of = ir.FunctionType(F32, [FLOATS])
    largest = cgutils.get_or_insert_function(builder.module, of, "llvm.vector.reduce.fmax.v16f32")
    return builder.call(largest, [vector])
