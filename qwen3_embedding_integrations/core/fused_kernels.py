"""A layer in int8 or bfloat16, compiled by Numba: what stands between products runs in passing.

Several threads may call the same function with the same arguments: they share its pieces. What a
row becomes does not depend on the rows beside it, nor on the number of threads: same bits.
"""

# A kernel's arguments are no Python values, and Numba finds their types itself.
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false
# pyright: reportCallIssue=false

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .fused_attention import FLOAT_BYTES, Room, attend_together
from .pieces import announce, take_piece, wait_for
from .row_tiles import add_row, gate_row, take_row, turn, weigh_row, write_scaled
from .tiles import (
    BLOCK_BYTES,
    LANES,
    STEP_BYTES,
    THIN_ROWS,
    WIDE_BLOCKS,
    WIDE_ROWS,
    ask_for,
    jit,
    thin_tile,
    wide_tile,
)

PANEL_ROWS = 256  # that are computed together: each weight is read once for them
THIN_LIMIT = 64  # rows above which weights are read often enough for wide tiles
GROUP = LANES * WIDE_BLOCKS  # outputs computed together, at least
READY, NORM, HEADS, ATTEND, TAKE_O, ADD_O, MLP_NORM, GATE_UP, TAKE_DOWN, ADD_DOWN = range(10)
NUM_PHASES = 10
ALONE = -1  # instead of a phase: no other thread has a part in these rows


class Matrix(NamedTuple):
    """A projection of every layer."""

    kind: Any  # a number of the weights' type: int8, or uint16 for the bits of bfloat16
    values: Any  # (L, N / LANES, depth, BLOCK_BYTES) int8: the bytes, see `pack_blocks`
    offset: Any  # (L, N) int32: what the zero point adds to each output; of int8 alone
    scale: Any  # (L, N) float32; of int8 alone


class Stack(NamedTuple):
    """All layers."""

    qkv: Matrix
    o: Matrix
    gate_up: Matrix  # blocks of gate and up in turns
    down: Matrix
    input_norm: Any  # (L, H) float32
    mlp_norm: Any  # (L, H) float32
    q_norm: Any  # (L, D) float32
    k_norm: Any  # (L, D) float32


class Panel(NamedTuple):
    """Rows that are computed together, at most PANEL_ROWS."""

    start: int
    stop: int
    tile_rows: int  # rows of a tile


class Work(NamedTuple):
    """Room for a panel's values, shared by the threads at it, and for each thread's own."""

    x: Any  # (PANEL_ROWS * depth,) int32: (rows / R, depth, R) for tiles of R rows
    scale: Any  # (PANEL_ROWS,) float32
    hidden: Any  # (PANEL_ROWS, F) float32
    counters: Any  # (2 * NUM_PHASES * layers,) int64: of each phase, pieces taken and done
    tile: Any  # own: (THIN_ROWS * outputs of a group,) float32
    floats: Any  # own: (K,) float32
    room: Room  # own
    eps: Any  # float32


@jit
def _take(matrix, values, size, row, tile_rows, work):
    """Make a row of `size` bytes what the matrix is multiplied with; return the row's scale."""
    depth = matrix.values.shape[2]
    start = row // tile_rows * tile_rows * depth + row % tile_rows
    to = work.x.ctypes.data + start * STEP_BYTES
    return take_row(matrix.kind, values, size, to, tile_rows * STEP_BYTES)


@jit
def _take_rows(matrix, values, start, panel, work, phase):
    """Take the panel's rows, the first of which is values[start]."""
    num_rows, size = panel.stop - panel.start, values.shape[1] * FLOAT_BYTES
    first = values.ctypes.data + start * size
    while True:
        row = take_piece(work.counters, phase)
        if row >= num_rows:
            break
        work.scale[row] = _take(matrix, first + row * size, size, row, panel.tile_rows, work)
        announce(work.counters, phase)
    wait_for(work.counters, phase, num_rows)


@jit
def _norm_rows(matrix, residual, weight, panel, work, phase):
    """Take the RMS norm of the residual's rows."""
    num_rows, width = panel.stop - panel.start, residual.shape[1]
    size, normed = width * FLOAT_BYTES, work.floats.ctypes.data
    first, factors = residual.ctypes.data + panel.start * size, weight.ctypes.data
    while True:
        row = take_piece(work.counters, phase)
        if row >= num_rows:
            break
        squares = weigh_row(first + row * size, factors, size, normed)
        scale = _take(matrix, normed, size, row, panel.tile_rows, work)
        work.scale[row] = scale / np.sqrt(squares / np.float32(width) + work.eps)
        announce(work.counters, phase)
    wait_for(work.counters, phase, num_rows)


class Product(NamedTuple):
    """Some blocks of weights, and where a panel's rows lie: addresses, once for all its tiles."""

    kind: Any
    weight: int
    offset: int
    scale: int
    x: int
    row_scale: int
    tile: int
    stride: int  # bytes of a block of weights
    num_blocks: int
    num_tiles: int


@jit
def _product(matrix, layer, block, num_blocks, panel, work):
    first = layer * matrix.values.shape[1] + block
    stride = matrix.values.shape[2] * BLOCK_BYTES
    skipped = FLOAT_BYTES * LANES * first
    return Product(
        matrix.kind,
        matrix.values.ctypes.data + first * stride,
        matrix.offset.ctypes.data + skipped,
        matrix.scale.ctypes.data + skipped,
        work.x.ctypes.data,
        work.scale.ctypes.data,
        work.tile.ctypes.data,
        stride,
        num_blocks,
        -(-(panel.stop - panel.start) // panel.tile_rows),
    )


@jit
def _multiply(p, row, tile_rows):
    """Write the products of a tile's rows, from `row` on, to the tile."""
    depth, out_stride = p.stride // BLOCK_BYTES, FLOAT_BYTES * LANES * p.num_blocks
    x, of_row = p.x + row * depth * STEP_BYTES, p.row_scale + FLOAT_BYTES * row
    if tile_rows == THIN_ROWS:
        for n in range(p.num_blocks):
            at = FLOAT_BYTES * LANES * n
            thin_tile(
                p.kind, x, p.weight + n * p.stride, p.stride, depth, p.tile + at, out_stride,
                p.offset + at, p.scale + at, of_row,
            )  # fmt: skip
    else:
        # While rows pass by these blocks, each tile asks for its share of the next ones.
        lines = -(-p.num_blocks * depth // p.num_tiles)
        skipped = p.num_blocks * p.stride + row // tile_rows * lines * BLOCK_BYTES
        ask_for(p.weight + skipped, lines)
        for n in range(0, p.num_blocks, WIDE_BLOCKS):
            at = FLOAT_BYTES * LANES * n
            wide_tile(
                p.kind, x, p.weight + n * p.stride, p.stride, depth, p.tile + at, out_stride,
                p.offset + at, p.scale + at, of_row,
            )  # fmt: skip


@jit
def _heads(stack, layer, heads, panel, work, phase):
    """Write queries, keys and values of the taken rows, head by head."""
    num_q, num_rows, size = heads.q.shape
    num_k, row_bytes = len(heads.k), size * FLOAT_BYTES
    half, skipped = row_bytes // 2, layer * row_bytes
    q_norm, k_norm = stack.q_norm.ctypes.data + skipped, stack.k_norm.ctypes.data + skipped
    q, k, v = heads.q.ctypes.data, heads.k.ctypes.data, heads.v.ctypes.data
    cos, sin, num_blocks = heads.cos.ctypes.data, heads.sin.ctypes.data, size // LANES
    while True:
        head = take_piece(work.counters, phase)
        if head >= num_q + 2 * num_k:
            break
        product = _product(stack.qkv, layer, head * num_blocks, num_blocks, panel, work)
        out, weight = q + head * num_rows * row_bytes, q_norm
        if head >= num_q:
            out, weight = k + (head - num_q) * num_rows * row_bytes, k_norm
        if head >= num_q + num_k:
            out = v + (head - num_q - num_k) * num_rows * row_bytes
        for first in range(panel.start, panel.stop, panel.tile_rows):
            _multiply(product, first - panel.start, panel.tile_rows)
            for row in range(first, min(first + panel.tile_rows, panel.stop)):
                own, to = product.tile + (row - first) * row_bytes, out + row * row_bytes
                if head < num_q + num_k:
                    turn(own, weight, cos + row * half, sin + row * half, half, work.eps, to)
                else:
                    write_scaled(own, row_bytes, np.float32(1), to)
        announce(work.counters, phase)
    wait_for(work.counters, phase, num_q + 2 * num_k)


@jit
def _add(matrix, layer, residual, panel, work, phase):
    """Add the products of the taken rows to the residual."""
    group_bytes, row_bytes = GROUP * FLOAT_BYTES, residual.shape[1] * FLOAT_BYTES
    num_groups, sums = residual.shape[1] // GROUP, residual.ctypes.data
    while True:
        group = take_piece(work.counters, phase)
        if group >= num_groups:
            break
        product = _product(matrix, layer, group * WIDE_BLOCKS, WIDE_BLOCKS, panel, work)
        for first in range(panel.start, panel.stop, panel.tile_rows):
            _multiply(product, first - panel.start, panel.tile_rows)
            for row in range(first, min(first + panel.tile_rows, panel.stop)):
                to = sums + row * row_bytes + group * group_bytes
                add_row(product.tile + (row - first) * group_bytes, group_bytes, to)
        announce(work.counters, phase)
    wait_for(work.counters, phase, num_groups)


@jit
def _gate(stack, layer, panel, work, phase):
    """Write silu(gate) * up of the taken rows to work.hidden."""
    group_bytes, row_bytes = GROUP * FLOAT_BYTES, work.hidden.shape[1] * FLOAT_BYTES
    num_groups, hidden = 2 * work.hidden.shape[1] // GROUP, work.hidden.ctypes.data
    while True:
        group = take_piece(work.counters, phase)
        if group >= num_groups:
            break
        product = _product(stack.gate_up, layer, group * WIDE_BLOCKS, WIDE_BLOCKS, panel, work)
        for first in range(0, panel.stop - panel.start, panel.tile_rows):
            _multiply(product, first, panel.tile_rows)
            for row in range(first, min(first + panel.tile_rows, panel.stop - panel.start)):
                to = hidden + row * row_bytes + group * (group_bytes // 2)
                gate_row(product.tile + (row - first) * group_bytes, group_bytes // 2, to)
        announce(work.counters, phase)
    wait_for(work.counters, phase, num_groups)


@jit
def project(stack, layer, residual, heads, start, stop, work, phase):
    """Write queries, keys and values of rows start to stop - 1 of the residual (T, H).

    With a `phase` they are one panel, which is shared with the threads that have the same counters.
    With `ALONE` they are any number of rows, this thread's own.
    """
    for first in range(start, stop, PANEL_ROWS):
        panel, at = _panel(first, stop, work, phase)
        _norm_rows(stack.qkv, residual, stack.input_norm[layer], panel, work, at + NORM)
        _heads(stack, layer, heads, panel, work, at + HEADS)


@jit
def finish(stack, layer, attended, residual, start, stop, work, phase):
    """Add to rows of the residual what attention (T, Hq D) and the MLP come to; see `project`."""
    for first in range(start, stop, PANEL_ROWS):
        panel, at = _panel(first, stop, work, phase)
        _take_rows(stack.o, attended, first, panel, work, at + TAKE_O)
        _add(stack.o, layer, residual, panel, work, at + ADD_O)
        _norm_rows(stack.gate_up, residual, stack.mlp_norm[layer], panel, work, at + MLP_NORM)
        _gate(stack, layer, panel, work, at + GATE_UP)
        _take_rows(stack.down, work.hidden, 0, panel, work, at + TAKE_DOWN)
        _add(stack.down, layer, residual, panel, work, at + ADD_DOWN)


@jit
def _panel(first, stop, work, phase):
    """Return the panel that begins with a row, and where its phases are counted."""
    if phase == ALONE:
        work.counters[:] = 0
        phase = 0
    last = min(first + PANEL_ROWS, stop)
    is_thin = WIDE_ROWS < last - first < THIN_LIMIT
    return Panel(first, last, THIN_ROWS if is_thin else WIDE_ROWS), phase


@jit
def assist(stack, is_fused, residual, heads, shared, texts, attended, work):
    """Help another thread through all layers of a forward, as far as they take all rows."""
    stop = len(residual)
    for layer in range(len(is_fused)):
        phase = layer * NUM_PHASES
        wait_for(work.counters, phase + READY, 1)
        if is_fused[layer]:
            project(stack, layer, residual, heads, 0, stop, work, phase)
            if layer + 1 < len(is_fused):
                attend_together(
                    heads, shared, layer, texts, work.room, attended, work.counters, phase + ATTEND
                )
                finish(stack, layer, attended, residual, 0, stop, work, phase)
