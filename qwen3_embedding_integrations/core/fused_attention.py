"""Causal attention on packed texts behind a shared prefix, compiled by Numba, in float32."""

# A kernel's arguments are no Python values, and Numba finds their types itself.
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false
# pyright: reportCallIssue=false

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .attention_tiles import COLUMNS, KEYS, QUERIES, score_tile, soften, value_tile
from .pieces import announce, take_piece, wait_for
from .row_tiles import write_scaled
from .tiles import LANES, jit

FLOAT_BYTES = 4
BLOCK_KEYS = 64  # whose values stay in a core's cache for all heads that read them
GROUP_BYTES = COLUMNS * LANES * FLOAT_BYTES  # of a row, in a tile of values


class Heads(NamedTuple):
    """A layer's queries, keys and values, head by head, and the angles they are turned by."""

    q: Any  # (Hq, T, D) float32
    k: Any  # (Hk, T, D) float32
    v: Any  # (Hk, T, D) float32
    cos: Any  # (T, D / 2) float32
    sin: Any  # (T, D / 2) float32


class Texts(NamedTuple):
    """Where the texts of a forward lie; the queries of a text are its last ones."""

    q_start: Any  # (B,) int64
    q_length: Any  # (B,) int64
    k_start: Any  # (B,) int64
    k_length: Any  # (B,) int64: its own keys, without the prefix's


class Rows(NamedTuple):
    """Queries of some heads that read the same keys."""

    num_groups: int
    num_rows: int  # of a head
    num_bytes: int  # of a row


class Room(NamedTuple):
    """A thread's own."""

    scores: Any  # (groups * QUERIES, keys + LANES) float32
    totals: Any  # (groups, QUERIES) float32
    sums: Any  # (groups * QUERIES, D) float32


@jit
def attend_together(heads, shared, layer, texts, room, out, counters, phase):
    """Write the attention (T, Hq D) of all texts, with the threads that call this as well.

    `shared` (L, 2, Hk, P, D) holds keys and values that stand before those of every text.
    """
    num_kv_heads = len(heads.k)
    num_pieces = len(texts.q_start) * num_kv_heads
    while True:
        piece = take_piece(counters, phase)
        if piece >= num_pieces:
            break
        text, kv_head = piece // num_kv_heads, piece % num_kv_heads
        _attend(heads, shared, layer, texts, text, kv_head, room, out)
        announce(counters, phase)
    wait_for(counters, phase, num_pieces)


@jit
def _attend(heads, shared, layer, texts, text, kv_head, room, out):
    num_heads, num_queries, size = heads.q.shape
    num_kv_heads, num_keys, _ = heads.k.shape
    num_shared, row_bytes = shared.shape[3], size * FLOAT_BYTES
    head_bytes = num_shared * row_bytes
    shared_k = shared.ctypes.data + (layer * 2 * num_kv_heads + kv_head) * head_bytes
    shared_v = shared_k + num_kv_heads * head_bytes
    skipped = (kv_head * num_keys + texts.k_start[text]) * row_bytes
    k, v = heads.k.ctypes.data + skipped, heads.v.ctypes.data + skipped
    scores, stride = room.scores.ctypes.data, room.scores.shape[1] * FLOAT_BYTES
    own_scores = scores + num_shared * FLOAT_BYTES
    scale = np.float32(1) / np.sqrt(np.float32(size))
    num_groups = num_heads // num_kv_heads
    for first in range(0, texts.q_length[text], QUERIES):
        num_rows = min(QUERIES, texts.q_length[text] - first)
        start = texts.q_start[text] + first
        q = heads.q.ctypes.data + (kv_head * num_groups * num_queries + start) * row_bytes
        q_bytes = num_queries * row_bytes
        # The last of these queries sees so many of the text's own keys, others fewer.
        own = texts.k_length[text] - texts.q_length[text] + first + num_rows
        rows = Rows(num_groups, num_rows, row_bytes)
        _score(q, q_bytes, rows, shared_k, num_shared, scores, stride)
        _score(q, q_bytes, rows, k, own, own_scores, stride)
        seen = num_shared + own - num_rows + 1  # by the first of them
        for group in range(num_groups):
            at, totals = scores + group * QUERIES * stride, room.totals[group].ctypes.data
            soften(at, stride, seen, num_shared + own, scale, totals)
        room.sums[:] = 0
        sums = room.sums.ctypes.data
        _weigh(scores, stride, rows, shared_v, num_shared, sums)
        _weigh(own_scores, stride, rows, v, own, sums)
        for group in range(num_groups):
            column = (kv_head * num_groups + group) * row_bytes
            for row in range(num_rows):
                at = sums + (group * QUERIES + row) * row_bytes
                to = out.ctypes.data + (start + row) * num_heads * row_bytes + column
                write_scaled(at, row_bytes, np.float32(1) / room.totals[group, row], to)


@jit
def _score(q, q_bytes, rows, k, num_keys, out, stride):
    for key in range(0, num_keys, KEYS):
        at, left = k + key * rows.num_bytes, num_keys - key
        for group in range(rows.num_groups):
            to = out + group * QUERIES * stride + key * FLOAT_BYTES
            score_tile(q + group * q_bytes, rows.num_rows, at, left, rows.num_bytes, to, stride)


@jit
def _weigh(weights, stride, rows, v, num_keys, sums):
    for key in range(0, num_keys, BLOCK_KEYS):
        size = min(BLOCK_KEYS, num_keys - key)
        for group in range(rows.num_groups):
            own = weights + group * QUERIES * stride + key * FLOAT_BYTES
            for column in range(0, rows.num_bytes, GROUP_BYTES):
                at = v + key * rows.num_bytes + column
                to = sums + group * QUERIES * rows.num_bytes + column
                value_tile(own, stride, at, rows.num_bytes, size, to, rows.num_bytes)
