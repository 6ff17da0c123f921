"""A layer in int8, compiled by Numba: what stands between products runs in passing.

Several threads may call the same function with the same arguments: they share its pieces. What a
row becomes does not depend on the rows beside it, nor on the number of threads: same bits.
"""

# A kernel's arguments are no Python values, and Numba finds their types itself.
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false
# pyright: reportCallIssue=false

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .attention_tiles import turn
from .fused_attention import FLOAT_BYTES, Room, attend_together
from .pieces import announce, take_piece, wait_for
from .tiles import (
    BLOCK_BYTES,
    DEPTH,
    LANES,
    THIN_ROWS,
    WIDE_BLOCKS,
    WIDE_ROWS,
    ask_for,
    float_of_bits,
    jit,
    silu,
    thin_tile,
    wide_tile,
)

PANEL_ROWS = 256  # that are computed together: each weight is read once for them
THIN_LIMIT = 64  # rows above which weights are read often enough for wide tiles
GROUP = LANES * WIDE_BLOCKS  # outputs computed together, at least
LEVELS = 127.0
ZERO_POINT = 128
READY, NORM, HEADS, ATTEND, TAKE_O, ADD_O, MLP_NORM, GATE_UP, TAKE_DOWN, ADD_DOWN = range(10)
NUM_PHASES = 10


class Matrix(NamedTuple):
    """A projection of every layer."""

    values: Any  # (L, N / LANES, K / DEPTH, LANES * DEPTH) int8, see `pack_blocks`
    offset: Any  # (L, N) int32: what the zero point adds to each output
    scale: Any  # (L, N) float32


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

    x: Any  # (PANEL_ROWS * K / DEPTH,) int32: (rows / R, K / DEPTH, R) for tiles of R rows
    scale: Any  # (PANEL_ROWS,) float32
    hidden: Any  # (PANEL_ROWS, F) float32
    counters: Any  # (2 * NUM_PHASES * layers,) int64: of each phase, pieces taken and done
    tile: Any  # own: (THIN_ROWS * outputs of a group,) float32
    floats: Any  # own: (K,) float32
    levels: Any  # own: (K / DEPTH,) int32
    room: Room  # own
    eps: Any  # float32


@jit
def _take(values, row, tile_rows, work):
    """Round the values (K,) to levels; return what a level stands for, NaN if a value is."""
    bits = values.view(np.int32)
    largest = np.int32(0)
    for i in range(len(bits)):  # as integers: so NaN is the largest of all
        largest = max(largest, bits[i] & np.int32(0x7FFFFFFF))
    peak = float_of_bits(largest)
    factor = np.float32(LEVELS) / peak
    levels = work.levels[: len(values) // DEPTH]
    bytes_ = levels.view(np.uint8)
    for i in range(len(values)):
        bytes_[i] = np.int32(np.rint(values[i] * factor)) + ZERO_POINT
    start = (row // tile_rows) * tile_rows * len(levels) + row % tile_rows
    for i in range(len(levels)):
        work.x[start + i * tile_rows] = levels[i]
    return peak / np.float32(LEVELS)


@jit
def _take_rows(values, start, panel, work, phase):
    """Take the panel's rows, the first of which is values[start]."""
    num_rows = panel.stop - panel.start
    while True:
        row = take_piece(work.counters, phase)
        if row >= num_rows:
            break
        work.scale[row] = _take(values[start + row], row, panel.tile_rows, work)
        announce(work.counters, phase)
    wait_for(work.counters, phase, num_rows)


@jit
def _norm_rows(residual, weight, panel, work, phase):
    """Take the RMS norm of the residual's rows."""
    num_rows, size = panel.stop - panel.start, residual.shape[1]
    normed = work.floats[:size]
    while True:
        row = take_piece(work.counters, phase)
        if row >= num_rows:
            break
        values = residual[panel.start + row]
        squares = np.float32(0)
        for i in range(size):
            squares += values[i] * values[i]
            normed[i] = values[i] * weight[i]
        level = _take(normed, row, panel.tile_rows, work)
        work.scale[row] = level / np.sqrt(squares / np.float32(size) + work.eps)
        announce(work.counters, phase)
    wait_for(work.counters, phase, num_rows)


@jit
def _multiply(matrix, layer, block, num_blocks, row, panel, work):
    """Write the products of a tile's rows, from `row` on, with some blocks to work.tile."""
    values, tile_rows = matrix.values[layer], panel.tile_rows
    depth = values.shape[1]
    stride = depth * BLOCK_BYTES
    x = work.x.ctypes.data + row * depth * DEPTH
    weight = values.ctypes.data + block * stride
    out, out_stride = work.tile.ctypes.data, 4 * LANES * num_blocks
    offset = matrix.offset[layer].ctypes.data + 4 * LANES * block
    scale = matrix.scale[layer].ctypes.data + 4 * LANES * block
    of_row = work.scale.ctypes.data + 4 * row
    if tile_rows == THIN_ROWS:
        for n in range(num_blocks):
            own, at = weight + n * stride, 4 * LANES * n
            thin_tile(x, own, stride, depth, out + at, out_stride, offset + at, scale + at, of_row)
    else:
        # While rows pass by these blocks, each tile asks for its share of the next ones.
        num_tiles = -(-(panel.stop - panel.start) // tile_rows)
        lines = -(-num_blocks * depth // num_tiles)
        ask_for(weight + num_blocks * stride + (row // tile_rows) * lines * BLOCK_BYTES, lines)
        for n in range(0, num_blocks, WIDE_BLOCKS):
            own, at = weight + n * stride, 4 * LANES * n
            wide_tile(x, own, stride, depth, out + at, out_stride, offset + at, scale + at, of_row)


@jit
def _heads(stack, layer, heads, panel, work, phase):
    """Write queries, keys and values of the taken rows, head by head."""
    num_q, num_rows, size = heads.q.shape
    num_k, num_blocks, row_bytes = len(heads.k), size // LANES, size * FLOAT_BYTES
    while True:
        head = take_piece(work.counters, phase)
        if head >= num_q + 2 * num_k:
            break
        weight, is_value = stack.q_norm[layer].ctypes.data, head >= num_q + num_k
        out = heads.q.ctypes.data + (head * num_rows + panel.start) * row_bytes
        if head >= num_q:
            weight = stack.k_norm[layer].ctypes.data
            out = heads.k.ctypes.data + ((head - num_q) * num_rows + panel.start) * row_bytes
        for first in range(0, panel.stop - panel.start, panel.tile_rows):
            _multiply(stack.qkv, layer, head * num_blocks, num_blocks, first, panel, work)
            rows = min(panel.tile_rows, panel.stop - panel.start - first)
            if is_value:
                start = panel.start + first
                values = heads.v[head - num_q - num_k, start : start + rows].reshape(rows * size)
                values[:] = work.tile[: rows * size]
                continue
            for row in range(rows):
                at = first + row
                angle = (panel.start + at) * (row_bytes // 2)
                cos, sin = heads.cos.ctypes.data + angle, heads.sin.ctypes.data + angle
                own = work.tile.ctypes.data + row * row_bytes
                turn(own, weight, cos, sin, row_bytes // 2, work.eps, out + at * row_bytes)
        announce(work.counters, phase)
    wait_for(work.counters, phase, num_q + 2 * num_k)


@jit
def _add(matrix, layer, residual, panel, work, phase):
    """Add the products of the taken rows to the residual."""
    num_groups = residual.shape[1] // GROUP
    sums = residual.reshape(len(residual), num_groups, GROUP)
    tile = work.tile[: panel.tile_rows * GROUP].reshape(panel.tile_rows, GROUP)
    while True:
        group = take_piece(work.counters, phase)
        if group >= num_groups:
            break
        for first in range(0, panel.stop - panel.start, panel.tile_rows):
            _multiply(matrix, layer, group * WIDE_BLOCKS, WIDE_BLOCKS, first, panel, work)
            for row in range(min(panel.tile_rows, panel.stop - panel.start - first)):
                for i in range(GROUP):
                    sums[panel.start + first + row, group, i] += tile[row, i]
        announce(work.counters, phase)
    wait_for(work.counters, phase, num_groups)


@jit
def _gate(stack, layer, panel, work, phase):
    """Write silu(gate) * up of the taken rows to work.hidden."""
    half = GROUP // 2
    num_groups = work.hidden.shape[1] // half
    while True:
        group = take_piece(work.counters, phase)
        if group >= num_groups:
            break
        for first in range(0, panel.stop - panel.start, panel.tile_rows):
            _multiply(stack.gate_up, layer, group * WIDE_BLOCKS, WIDE_BLOCKS, first, panel, work)
            for row in range(min(panel.tile_rows, panel.stop - panel.start - first)):
                out = work.hidden[first + row, group * half : (group + 1) * half]
                for pair in range(half // LANES):
                    gate = row * GROUP + 2 * pair * LANES
                    for i in range(LANES):
                        value = silu(work.tile[gate + i]) * work.tile[gate + LANES + i]
                        out[pair * LANES + i] = value
        announce(work.counters, phase)
    wait_for(work.counters, phase, num_groups)


@jit
def project(stack, layer, residual, heads, panel, work, phase):
    """Write queries, keys and values of a panel of the residual (T, H)."""
    _norm_rows(residual, stack.input_norm[layer], panel, work, phase + NORM)
    _heads(stack, layer, heads, panel, work, phase + HEADS)


@jit
def finish(stack, layer, attended, residual, panel, work, phase):
    """Add to a panel what attention (T, Hq D) and the MLP come to."""
    _take_rows(attended, panel.start, panel, work, phase + TAKE_O)
    _add(stack.o, layer, residual, panel, work, phase + ADD_O)
    _norm_rows(residual, stack.mlp_norm[layer], panel, work, phase + MLP_NORM)
    _gate(stack, layer, panel, work, phase + GATE_UP)
    _take_rows(work.hidden, 0, panel, work, phase + TAKE_DOWN)
    _add(stack.down, layer, residual, panel, work, phase + ADD_DOWN)


@jit
def panel_of(start, stop):
    """Return a panel with the tiles that are best for so many rows."""
    is_thin = WIDE_ROWS < stop - start < THIN_LIMIT
    return Panel(start, stop, THIN_ROWS if is_thin else WIDE_ROWS)


@jit
def project_rows(stack, layer, residual, heads, start, stop, work):
    """Do what `project` does for any number of rows, alone."""
    for first in range(start, stop, PANEL_ROWS):
        work.counters[:] = 0
        panel = panel_of(first, min(first + PANEL_ROWS, stop))
        project(stack, layer, residual, heads, panel, work, 0)


@jit
def finish_rows(stack, layer, attended, residual, start, stop, work):
    """Do what `finish` does for any number of rows, alone."""
    for first in range(start, stop, PANEL_ROWS):
        work.counters[:] = 0
        panel = panel_of(first, min(first + PANEL_ROWS, stop))
        finish(stack, layer, attended, residual, panel, work, 0)


@jit
def assist(stack, is_fused, residual, heads, shared, texts, attended, work):
    """Help another thread through all layers of a forward, as far as they take all rows."""
    panel = panel_of(0, len(residual))
    for layer in range(len(is_fused)):
        phase = layer * NUM_PHASES
        wait_for(work.counters, phase + READY, 1)
        if is_fused[layer]:
            project(stack, layer, residual, heads, panel, work, phase)
            if layer + 1 < len(is_fused):
                attend_together(
                    heads, shared, layer, texts, work.room, attended, work.counters, phase + ATTEND
                )
                finish(stack, layer, attended, residual, panel, work, phase)
