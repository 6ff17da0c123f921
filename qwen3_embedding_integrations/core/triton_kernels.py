"""The elementwise operations between the matrix products, each fused into one Triton kernel.

One pass over the values where the plain functions of `kernels` take several; computed in float32
and rounded once. Importing this module imports Triton, which is there with torch's CUDA builds on
Linux. Letters in the kernels: a tensor's name in capitals is the pointer to it.
"""

# A kernel's arguments are no Python values, and Triton allows them no type; on a Mac there is none.
# pyright: reportMissingParameterType=false, reportUnknownParameterType=false
# pyright: reportUntypedFunctionDecorator=false, reportMissingImports=false

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from .kernels import Projected, split_heads
from .linear import E4M3, E4M3_MAX, SMALLEST_SCALE, Rows

SWIGLU_BLOCK = 1024  # outputs that one program computes
_MAX, _SMALLEST = tl.constexpr(E4M3_MAX), tl.constexpr(SMALLEST_SCALE)


def add_norm(
    x: torch.Tensor | None,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    dtype: torch.dtype,
    factor: float = 1.0,
) -> Rows:
    """See `kernels.Operations.add_norm`."""
    num_rows, width = residual.shape
    y = _new_rows(num_rows, width, dtype, residual.device)
    added = residual if x is None else x
    _launch(
        _add_norm, (num_rows,), added, residual, weight, *y, added.stride(0), residual.stride(0),
        factor, eps, WIDTH=width, ADDS=x is not None, BLOCK=_power_of_two(width),
    )  # fmt: skip
    return y


def qk_norm_rope(
    qkv: torch.Tensor,
    angles: torch.Tensor,
    q_weight: torch.Tensor,
    k_weight: torch.Tensor,
    num_kv_heads: int,
    eps: float,
) -> Projected:
    """See `kernels.Operations.qk_norm_rope`; overwrites qkv and returns views of it."""
    heads = split_heads(qkv, len(q_weight), num_kv_heads)
    num_heads, half = heads.q.shape[1], len(q_weight) // 2
    _launch(
        _qk_norm_rope, (len(qkv),), qkv, angles, q_weight, k_weight, qkv.stride(0), eps,
        Q_HEADS=num_heads, K_HEADS=num_kv_heads, HALF=half,
        BLOCK_HEADS=_power_of_two(num_heads + num_kv_heads),
        BLOCK=_power_of_two(half),
    )  # fmt: skip
    return heads


def swiglu(gate_up: torch.Tensor, dtype: torch.dtype) -> Rows:
    """See `kernels.Operations.swiglu`."""
    num_rows, width = len(gate_up), gate_up.shape[1] // 2
    y = _new_rows(num_rows, width, dtype, gate_up.device)
    # A row's scale needs all of the row.
    block = _power_of_two(width) if dtype == E4M3 else SWIGLU_BLOCK
    grid = (num_rows, -(-width // block))
    _launch(_swiglu, grid, gate_up, *y, gate_up.stride(0), WIDTH=width, BLOCK=block)
    return y


def to_rows(x: torch.Tensor, dtype: torch.dtype) -> Rows:
    """See `kernels.Operations.to_rows`."""
    if dtype != E4M3:
        return Rows(x.to(dtype))
    num_rows, width = x.shape
    y = _new_rows(num_rows, width, dtype, x.device)
    block = _power_of_two(width)
    _launch(_to_rows, (num_rows,), x, *y, x.stride(0), WIDTH=width, BLOCK=block)
    return y


def _new_rows(num_rows: int, width: int, dtype: torch.dtype, device: torch.device) -> Rows:
    values = torch.empty(num_rows, width, dtype=dtype, device=device)
    if dtype != E4M3:
        return Rows(values)
    return Rows(values, torch.empty(num_rows, 1, dtype=torch.float32, device=device))


def _launch(
    kernel: Any, grid: tuple[int, ...], first: torch.Tensor, *rest: Any, **constants: int
) -> None:
    assert first.stride(1) == 1, "a row's values must stand side by side"
    # Triton launches on the current card, whichever the tensors are on.
    with torch.cuda.device_of(first):
        kernel[grid](first, *rest, **constants, **options(constants))


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()


def options(constants: dict[str, int]) -> dict[str, int | bool]:
    """Return how a program of these constants is compiled: 8 values to a thread."""
    num_values = constants["BLOCK"] * constants.get("BLOCK_HEADS", 1)
    # Fusion is named since Triton 3.9 warns of a default that changes.
    return {"num_warps": min(16, max(1, num_values // 256)), "enable_fp_fusion": True}


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _store(
    Y, SCALE, y, row, i, WIDTH: tl.constexpr,
):  # fmt: skip
    """Store y as a row of Y, or with a SCALE as e4m3, its largest 448."""
    if SCALE is not None:
        # NaN must reach the scale: then all products of the row are NaN, and the head refuses them.
        scale = _larger(tl.reduce(tl.abs(y), 0, _larger) / _MAX, _SMALLEST)
        tl.store(SCALE + row, scale)
        y = y / scale
    tl.store(Y + row * WIDTH + i, y.to(Y.dtype.element_ty), i < WIDTH)


@triton.jit
def _add_norm(
    X, RESIDUAL, WEIGHT, Y, SCALE,
    x_stride, residual_stride, factor, eps,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ADDS: tl.constexpr,
):  # fmt: skip
    """One program: one row."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    inside = i < WIDTH
    at = RESIDUAL + row * residual_stride + i
    values = tl.load(at, inside, 0.0)
    if ADDS:
        x = tl.load(X + row * x_stride + i, inside, 0.0).to(tl.float32)
        values = (values.to(tl.float32) + factor * x).to(RESIDUAL.dtype.element_ty)
        tl.store(at, values, inside)
    values = values.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(values * values, 0) / WIDTH + eps)
    y = values * inverse * tl.load(WEIGHT + i, inside, 0.0).to(tl.float32)
    _store(Y, SCALE, y, row, i, WIDTH)


@triton.jit
def _qk_norm_rope(
    QKV, ANGLES, Q_WEIGHT, K_WEIGHT, stride, eps,
    Q_HEADS: tl.constexpr, K_HEADS: tl.constexpr, HALF: tl.constexpr,
    BLOCK_HEADS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: all queries and keys of one token, both halves of a head in hand at once."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, BLOCK_HEADS)[:, None]
    i = tl.arange(0, BLOCK)[None, :]
    is_query = head < Q_HEADS
    known = i < HALF
    inside = (head < Q_HEADS + K_HEADS) & known
    at = QKV + row * stride + head * (2 * HALF) + i
    a = tl.load(at, inside, 0.0).to(tl.float32)
    b = tl.load(at + HALF, inside, 0.0).to(tl.float32)
    inverse = tl.rsqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / (2 * HALF) + eps)[:, None]
    weight_a = tl.where(is_query, tl.load(Q_WEIGHT + i, known), tl.load(K_WEIGHT + i, known))
    weight_b = tl.where(
        is_query, tl.load(Q_WEIGHT + HALF + i, known), tl.load(K_WEIGHT + HALF + i, known)
    )
    a, b = a * inverse * weight_a.to(tl.float32), b * inverse * weight_b.to(tl.float32)
    cos = tl.load(ANGLES + row * (2 * HALF) + i, known)
    sin = tl.load(ANGLES + row * (2 * HALF) + HALF + i, known)
    tl.store(at, (a * cos - b * sin).to(QKV.dtype.element_ty), inside)
    tl.store(at + HALF, (b * cos + a * sin).to(QKV.dtype.element_ty), inside)


@triton.jit
def _swiglu(GATE_UP, Y, SCALE, stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """One program: BLOCK outputs of one row."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    at = GATE_UP + row * stride + i
    gate = tl.load(at, i < WIDTH, 0.0).to(tl.float32)
    up = tl.load(at + WIDTH, i < WIDTH, 0.0).to(tl.float32)
    _store(Y, SCALE, gate / (1 + tl.exp(-gate)) * up, row, i, WIDTH)


@triton.jit
def _to_rows(X, Y, SCALE, stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """One program: one row."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    x = tl.load(X + row * stride + i, i < WIDTH, 0.0).to(tl.float32)
    _store(Y, SCALE, x, row, i, WIDTH)
