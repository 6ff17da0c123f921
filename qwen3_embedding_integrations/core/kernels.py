"""The elementwise operations between the matrix products, as plain functions."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F

from .linear import E4M3, Rows, to_e4m3


class Projected(NamedTuple):
    """Queries (T, Hq, D), keys and values (T, Hk, D) of a layer: normed and turned."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor


class Operations(Protocol):
    """What this module and its twin `triton_kernels` both have.

    `dtype` is what the matrix product after the operation reads: with torch.float8_e4m3fn the rows
    come rounded, and with their scales. Rows must lie one after another, each without gaps.
    """

    def add_norm(
        self,
        x: torch.Tensor | None,
        residual: torch.Tensor,
        weight: torch.Tensor,
        eps: float,
        dtype: torch.dtype,
        factor: float = 1.0,
    ) -> Rows:
        """Add factor * x (T, H) to `residual` in place; return its RMS norm times `weight`."""
        ...

    def qk_norm_rope(
        self,
        qkv: torch.Tensor,
        angles: torch.Tensor,
        q_weight: torch.Tensor,
        k_weight: torch.Tensor,
        num_kv_heads: int,
        eps: float,
    ) -> Projected:
        """Return the heads of qkv (T, (Hq + 2 Hk) D), queries and keys normed and turned.

        `angles` holds cos and sin, (T, 2, D / 2) float32. May overwrite qkv, or return views of it.
        """
        ...

    def swiglu(self, gate_up: torch.Tensor, dtype: torch.dtype) -> Rows:
        """Return silu(gate) * up (T, F) of both side by side (T, 2 F); may overwrite them."""
        ...

    def to_rows(self, x: torch.Tensor, dtype: torch.dtype) -> Rows:
        """Return x (T, K) in `dtype`."""
        ...


def add_norm(
    x: torch.Tensor | None,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    dtype: torch.dtype,
    factor: float = 1.0,
) -> Rows:
    """See `Operations.add_norm`."""
    if x is not None:
        residual.add_(x, alpha=factor)
    wide = residual.float() if dtype == E4M3 else residual
    return to_rows(F.rms_norm(wide, weight.shape, weight.to(wide.dtype), eps), dtype)


def qk_norm_rope(
    qkv: torch.Tensor,
    angles: torch.Tensor,
    q_weight: torch.Tensor,
    k_weight: torch.Tensor,
    num_kv_heads: int,
    eps: float,
) -> Projected:
    """See `Operations.qk_norm_rope`."""
    q, k, v = split_heads(qkv, len(q_weight), num_kv_heads)
    cos, sin = angles[:, :1], angles[:, 1:]  # (T, 1, D / 2)
    q = rotate(head_norm(q, q_weight, eps), cos, sin)
    return Projected(q, rotate(head_norm(k, k_weight, eps), cos, sin), v)


def swiglu(gate_up: torch.Tensor, dtype: torch.dtype) -> Rows:
    """See `Operations.swiglu`."""
    gate, up = (gate_up.float() if dtype == E4M3 else gate_up).chunk(2, dim=-1)
    return to_rows(F.silu(gate, inplace=True).mul_(up), dtype)


def to_rows(x: torch.Tensor, dtype: torch.dtype) -> Rows:
    """See `Operations.to_rows`."""
    return to_e4m3(x) if dtype == E4M3 else Rows(x.to(dtype))


def split_heads(qkv: torch.Tensor, head_dim: int, num_kv_heads: int) -> Projected:
    """Return the heads of qkv (T, (Hq + 2 Hk) D), as views."""
    heads = qkv.unflatten(1, (-1, head_dim))
    num_heads = heads.shape[1] - 2 * num_kv_heads
    return Projected(*heads.split([num_heads, num_kv_heads, num_kv_heads], dim=1))


def head_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Return the RMS norm of each head of x (T, heads, D) times `weight` (D,)."""
    return F.rms_norm(x, weight.shape, weight.to(x.dtype), eps)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Return x (T, heads, D) turned by its positions' angles; cos, sin (T, 1, D / 2) float32.

    The two halves of a head are the two coordinates of each rotated pair (rotate_half in
    transformers).
    """
    first, second = x.chunk(2, dim=-1)
    turned = torch.empty_like(x)
    half = x.shape[-1] // 2
    turned[..., :half] = first * cos - second * sin
    turned[..., half:] = second * cos + first * sin
    return turned


def rotary_angles(
    position_ids: torch.Tensor, head_dim: int, theta: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cos and sin of each position's angles, each (T, 1, D / 2) float32."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64, device=position_ids.device).float()
    frequencies = 1.0 / theta ** (exponents / head_dim)
    angles = position_ids.float()[:, None, None] * frequencies
    return angles.cos(), angles.sin()
