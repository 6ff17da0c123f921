"""A layer's dense parts in int8, compiled by Numba: what stands between products runs in passing.

Several threads may call the same function with the same arguments: each takes the next piece of
work that nobody has taken, and no one goes on to the next phase before all of one are done. So a
thread that comes late, or is put aside by the operating system, delays nobody. What a row becomes
does not depend on the rows beside it, nor on the number of threads: same bits.
"""

# A kernel's arguments are no Python values, and Numba finds their types itself.
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false
# pyright: reportCallIssue=false

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import types

from .tiles import (
    BLOCK_BYTES,
    DEPTH,
    LANES,
    THIN_ROWS,
    WIDE_BLOCKS,
    WIDE_ROWS,
    ask_for,
    count_up,
    float_of_bits,
    jit,
    read_count,
    silu,
    thin_tile,
    wide_tile,
)

PANEL_ROWS = 256  # that are computed together: each weight is read once for them
THIN_LIMIT = 64  # rows above which weights are read often enough for wide tiles
GROUP = LANES * WIDE_BLOCKS  # outputs computed together, at least
LEVELS = 127.0
ZERO_POINT = 128
SPINS = 20_000  # looks at a counter before the processor is left to others: about 0.5 ms
READY, NORM, HEADS, ATTENDED, TAKE_O, ADD_O, MLP_NORM, GATE_UP, TAKE_DOWN, ADD_DOWN = range(10)
NUM_PHASES = 10

sched_yield = types.ExternalFunction("sched_yield", types.int32())


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


class Heads(NamedTuple):
    """Where a layer's queries, keys and values go, and the angles by which they are turned."""

    q: Any  # (T, Hq, D) float32
    k: Any  # (T, Hk, D) float32
    v: Any  # (T, Hk, D) float32
    cos: Any  # (T, D / 2) float32
    sin: Any  # (T, D / 2) float32


class Work(NamedTuple):
    """Room for a panel's values, shared by the threads at it, and for each thread's own."""

    x: Any  # (PANEL_ROWS * K / DEPTH,) int32: (rows / R, K / DEPTH, R) for tiles of R rows
    scale: Any  # (PANEL_ROWS,) float32
    hidden: Any  # (PANEL_ROWS, F) float32
    counters: Any  # (2 * NUM_PHASES * layers,) int64: of each phase, pieces taken and done
    tile: Any  # own: (THIN_ROWS * outputs of a group,) float32
    floats: Any  # own: (K,) float32
    levels: Any  # own: (K / DEPTH,) int32
    eps: Any  # float32


@jit
def _next(work, phase):
    """Return the number of a piece that no thread has taken."""
    return count_up(work.counters.ctypes.data + 16 * phase)


@jit
def announce(counters, phase):
    """Count one more piece of a phase as done."""
    count_up(counters.ctypes.data + 16 * phase + 8)


@jit
def _wait(work, phase, num_pieces):
    address = work.counters.ctypes.data + 16 * phase + 8
    spins = 0
    while read_count(address) < num_pieces:
        spins += 1
        if spins > SPINS:
            sched_yield()


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
        row = _next(work, phase)
        if row >= num_rows:
            break
        work.scale[row] = _take(values[start + row], row, panel.tile_rows, work)
        announce(work.counters, phase)
    _wait(work, phase, num_rows)


@jit
def _norm_rows(residual, weight, panel, work, phase):
    """Take the RMS norm of the residual's rows."""
    num_rows, size = panel.stop - panel.start, residual.shape[1]
    normed = work.floats[:size]
    while True:
        row = _next(work, phase)
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
    _wait(work, phase, num_rows)


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
def _turn(head, weight, cos, sin, eps, floats, out):
    """Write the RMS norm of a head, turned by its position's angles."""
    size = len(weight)
    half = size // 2
    squares = np.float32(0)
    for i in range(size):
        squares += head[i] * head[i]
    inverse = np.float32(1) / np.sqrt(squares / np.float32(size) + eps)
    # Three loops, not one: LLVM compares each array that is written with each that is read, and
    # gives up vectors where these are many.
    for i in range(size):
        floats[i] = head[i] * inverse * weight[i]
    first, second = floats[:half], floats[half:size]
    lower, upper = out[:half], out[half:]
    for i in range(half):
        lower[i] = first[i] * cos[i] - second[i] * sin[i]
    for i in range(half):
        upper[i] = second[i] * cos[i] + first[i] * sin[i]


@jit
def _heads(stack, layer, heads, panel, work, phase):
    """Write queries, keys and values of the taken rows, head by head."""
    size, num_q, num_k = stack.q_norm.shape[1], heads.q.shape[1], heads.k.shape[1]
    num_blocks = size // LANES
    tile = work.tile[: panel.tile_rows * size].reshape(panel.tile_rows, size)
    while True:
        head = _next(work, phase)
        if head >= num_q + 2 * num_k:
            break
        for first in range(0, panel.stop - panel.start, panel.tile_rows):
            _multiply(stack.qkv, layer, head * num_blocks, num_blocks, first, panel, work)
            for row in range(min(panel.tile_rows, panel.stop - panel.start - first)):
                at = panel.start + first + row
                if head < num_q:
                    out, weight = heads.q[at, head], stack.q_norm[layer]
                elif head < num_q + num_k:
                    out, weight = heads.k[at, head - num_q], stack.k_norm[layer]
                else:
                    heads.v[at, head - num_q - num_k, :] = tile[row]
                    continue
                cos, sin = heads.cos[at], heads.sin[at]
                _turn(tile[row], weight, cos, sin, work.eps, work.floats, out)
        announce(work.counters, phase)
    _wait(work, phase, num_q + 2 * num_k)


@jit
def _add(matrix, layer, residual, panel, work, phase):
    """Add the products of the taken rows to the residual."""
    num_groups = residual.shape[1] // GROUP
    sums = residual.reshape(len(residual), num_groups, GROUP)
    tile = work.tile[: panel.tile_rows * GROUP].reshape(panel.tile_rows, GROUP)
    while True:
        group = _next(work, phase)
        if group >= num_groups:
            break
        for first in range(0, panel.stop - panel.start, panel.tile_rows):
            _multiply(matrix, layer, group * WIDE_BLOCKS, WIDE_BLOCKS, first, panel, work)
            for row in range(min(panel.tile_rows, panel.stop - panel.start - first)):
                for i in range(GROUP):
                    sums[panel.start + first + row, group, i] += tile[row, i]
        announce(work.counters, phase)
    _wait(work, phase, num_groups)


@jit
def _gate(stack, layer, panel, work, phase):
    """Write silu(gate) * up of the taken rows to work.hidden."""
    half = GROUP // 2
    num_groups = work.hidden.shape[1] // half
    while True:
        group = _next(work, phase)
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
    _wait(work, phase, num_groups)


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
def assist(stack, is_fused, attended, residual, heads, work):
    """Help another thread through all layers of a forward but the last one's MLP."""
    panel = panel_of(0, len(residual))
    for layer in range(len(is_fused)):
        phase = layer * NUM_PHASES
        _wait(work, phase + READY, 1)
        if is_fused[layer]:
            project(stack, layer, residual, heads, panel, work, phase)
        _wait(work, phase + ATTENDED, 1)
        if is_fused[layer] and layer + 1 < len(is_fused):
            finish(stack, layer, attended, residual, panel, work, phase)
