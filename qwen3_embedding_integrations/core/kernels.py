"""The elementwise operations between the matrix products, as plain functions."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def add_norm(
    x: torch.Tensor | None, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> torch.Tensor:
    """Add x (T, H) to `residual` in place and return its RMS norm times `weight`, (T, H)."""
    if x is not None:
        residual += x
    return F.rms_norm(residual, weight.shape, weight.to(residual.dtype), eps)


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


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """Return silu(gate) * up, (T, F), of gate and up side by side, (T, 2 F); overwrites both."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate, inplace=True).mul_(up)


def rotary_angles(
    position_ids: torch.Tensor, head_dim: int, theta: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cos and sin of each position's angles, each (T, 1, D / 2) float32."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64, device=position_ids.device).float()
    frequencies = 1.0 / theta ** (exponents / head_dim)
    angles = position_ids.float()[:, None, None] * frequencies
    return angles.cos(), angles.sin()
