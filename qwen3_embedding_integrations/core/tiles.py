"""What Numba lacks: dot products of int8 (AVX512-VNNI) and bfloat16, atomic counters.

An intrinsic is LLVM's own code, put where a compiled function calls it.
"""

# A kernel's arguments are no Python values, and Numba finds their types itself.
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false
# pyright: reportCallIssue=false

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic


class BFloat(ir.Type):
    """LLVM's bfloat16, which llvmlite has no name for."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BFloat)

    def __hash__(self) -> int:
        return hash(BFloat)


I32, I64, F32 = ir.IntType(32), ir.IntType(64), ir.FloatType()
BYTES, INTS, FLOATS = (
    ir.VectorType(ir.IntType(8), 64),
    ir.VectorType(I32, 16),
    ir.VectorType(F32, 16),
)
HALVES = ir.VectorType(BFloat(), 32)
FIRST = ir.Constant(INTS, [0] * 16)  # a shuffle that repeats the first lane
jit = numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract"})

ZERO_POINT = 128  # of uint8: what stands for 0
LANES = 16  # outputs of a block of weights
STEP_BYTES = 4  # of inputs that stand side by side, of a row as of an output
BLOCK_BYTES = LANES * STEP_BYTES

THIN_ROWS, THIN_BLOCKS = 16, 1  # a tile that reads every weight once, as few rows want it
WIDE_ROWS, WIDE_BLOCKS = 4, 4  # the fastest tile when weights come from a cache
# How far ahead weights are asked for: 1.7 times as fast as the processor's own guess at 16 rows on
# one Zen 5 core, which then reads 24 GB/s beside its products.
AHEAD_BYTES = 8192


def _make_tile(num_rows: int, num_blocks: int, ahead: int) -> Any:
    """Return a function that multiplies `num_rows` rows with `num_blocks` blocks of weights."""

    @intrinsic
    def tile(
        typingctx: Any,
        kind: Any,
        x: Any,
        weight: Any,
        stride: Any,
        depth: Any,
        out: Any,
        out_stride: Any,
        offset: Any,
        scale: Any,
        row_scale: Any,
    ) -> Any:
        """Write out[r, n] = (x[r] . weight[n] - offset[n]) * scale[n] * row_scale[r], float32.

        All are addresses but `depth`, the steps of STEP_BYTES that a row has, and strides, in
        bytes. x uint8 lies as (depth, rows, 4), a block of weights int8 as (depth, LANES, 4). Where
        `kind` is no int8 both are bfloat16, two a step, and out[r, n] = x[r] . weight[n] *
        row_scale[r].
        """

        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            is_int8 = signature.args[0] == types.int8
            _write_tile(builder, given[1:], num_rows, num_blocks, ahead, is_int8=is_int8)
            return context.get_dummy_value()

        return types.void(kind, *[types.intp] * 9), generate

    return tile


def _write_tile(
    builder: Any, given: Any, num_rows: int, num_blocks: int, ahead: int, *, is_int8: bool
) -> None:
    x, weight, stride, depth = given[:4]
    name = "avx512.vpdpbusd" if is_int8 else "avx512bf16.dpbf16ps"
    inputs, total, zero = (BYTES, INTS, 0) if is_int8 else (HALVES, FLOATS, 0.0)
    of = ir.FunctionType(total, [total, inputs, inputs])
    dot = cgutils.get_or_insert_function(builder.module, of, f"llvm.x86.{name}.512")
    before = builder.block
    loop, end = builder.append_basic_block("loop"), builder.append_basic_block("end")
    builder.branch(loop)
    builder.position_at_end(loop)
    step = builder.phi(I64)
    step.add_incoming(I64(0), before)
    cells = [(row, block) for row in range(num_rows) for block in range(num_blocks)]
    sums = {cell: builder.phi(total) for cell in cells}
    blocks = [
        add(builder, weight, builder.mul(stride, I64(n)), builder.mul(step, I64(BLOCK_BYTES)))
        for n in range(num_blocks)
    ]
    if ahead:
        for block in blocks:
            _prefetch(builder, add(builder, block, I64(ahead)))
    loaded = [builder.load(pointer(builder, block, inputs), align=64) for block in blocks]
    own = add(builder, x, builder.mul(step, I64(STEP_BYTES * num_rows)))
    new: dict[tuple[int, int], Any] = {}
    for row in range(num_rows):
        place = pointer(builder, add(builder, own, I64(STEP_BYTES * row)), I32)
        repeated = repeat(builder, builder.load(place, align=4), INTS)
        repeated = builder.bitcast(repeated, inputs)
        for block in range(num_blocks):
            new[row, block] = builder.call(dot, [sums[row, block], repeated, loaded[block]])
    following = builder.add(step, I64(1))
    step.add_incoming(following, loop)
    for cell in cells:
        sums[cell].add_incoming(ir.Constant(total, [zero] * LANES), before)
        sums[cell].add_incoming(new[cell], loop)
    builder.cbranch(builder.icmp_signed("<", following, depth), loop, end)
    builder.position_at_end(end)
    _store_tile(builder, given[4:], new, num_rows, num_blocks, is_int8=is_int8)


def _store_tile(
    builder: Any, given: Any, sums: Any, num_rows: int, num_blocks: int, *, is_int8: bool
) -> None:
    """Write what a tile's sums stand for."""
    out, out_stride, offset, scale, row_scale = given
    for block in range(num_blocks):
        at = I64(4 * LANES * block)
        values = [sums[row, block] for row in range(num_rows)]
        if is_int8:
            less = builder.load(pointer(builder, add(builder, offset, at), INTS), align=4)
            factor = builder.load(pointer(builder, add(builder, scale, at), FLOATS), align=4)
            values = [builder.sitofp(builder.sub(value, less), FLOATS) for value in values]
            values = [builder.fmul(value, factor) for value in values]
        for row, value in enumerate(values):
            of_row = pointer(builder, add(builder, row_scale, I64(4 * row)), F32)
            scaled = builder.fmul(value, repeat(builder, builder.load(of_row, align=4), FLOATS))
            place = add(builder, out, builder.mul(out_stride, I64(row)), at)
            builder.store(scaled, pointer(builder, place, FLOATS), align=4)


def add(builder: Any, *terms: Any) -> Any:
    """Return the sum of integers."""
    total = terms[0]
    for term in terms[1:]:
        total = builder.add(total, term)
    return total


def pointer(builder: Any, address: Any, to: Any) -> Any:
    """Return the address as a pointer."""
    return builder.inttoptr(address, to.as_pointer())


def repeat(builder: Any, value: Any, to: Any) -> Any:
    """Return a vector of the value."""
    undefined = ir.Constant(to, ir.Undefined)
    return builder.shuffle_vector(
        builder.insert_element(undefined, value, I32(0)), undefined, FIRST
    )


def _prefetch(builder: Any, address: Any, locality: int = 3) -> None:
    bytes_at = ir.IntType(8).as_pointer()
    of = ir.FunctionType(ir.VoidType(), [bytes_at, I32, I32, I32])
    prefetch = cgutils.get_or_insert_function(builder.module, of, "llvm.prefetch.p0")
    builder.call(prefetch, [builder.inttoptr(address, bytes_at), I32(0), I32(locality), I32(1)])


thin_tile = _make_tile(THIN_ROWS, THIN_BLOCKS, AHEAD_BYTES)
wide_tile = _make_tile(WIDE_ROWS, WIDE_BLOCKS, 0)


@intrinsic
def ask_for(typingctx: Any, address: Any, num_lines: Any) -> Any:
    """Have lines of 64 bytes brought to the second-level cache."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        first, num_lines = given
        with cgutils.for_range(builder, num_lines) as loop:
            _prefetch(builder, add(builder, first, builder.shl(loop.index, I64(6))), 2)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), generate


@intrinsic
def count_up(typingctx: Any, address: Any) -> Any:
    """Add 1 to the int64 at the address, for all threads; return what it was."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return builder.atomic_rmw("add", pointer(builder, given[0], I64), I64(1), "acq_rel")

    return types.int64(types.intp), generate


@intrinsic
def read_count(typingctx: Any, address: Any) -> Any:
    """Return the int64 at the address as another thread has it."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        pause = ir.FunctionType(ir.VoidType(), [])
        builder.call(
            cgutils.get_or_insert_function(builder.module, pause, "llvm.x86.sse2.pause"), []
        )
        return builder.load_atomic(pointer(builder, given[0], I64), "acquire", 8)

    return types.int64(types.intp), generate


@jit
def pack_blocks(weight, out):
    """Write a weight (N, depth) to `out` (N / LANES, depth, LANES), a step's inputs an int32."""
    num_blocks, depth, lanes = out.shape
    for block in range(num_blocks):
        for step in range(depth):
            for lane in range(lanes):
                out[block, step, lane] = weight[block * lanes + lane, step]


def aligned(shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Return room for int8 that begins where a cache line does."""
    size = int(np.prod(shape))
    room = np.empty(size + BLOCK_BYTES, np.int8)
    start = -room.ctypes.data % BLOCK_BYTES
    return room[start : start + size].reshape(shape)
