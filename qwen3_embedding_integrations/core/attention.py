"""Causal attention on packed sequences: the best backend the device has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import groupby

import torch
import torch.nn.functional as F

from ..errors import ConfigError

FLASH_CAPABILITY = (8, 0)  # FlashAttention 2 needs an Ampere card or newer


@dataclass(frozen=True, slots=True)
class Segments:
    """Where each text's queries and keys lie. Text i has q_lengths[i] <= k_lengths[i] rows.

    The queries are the last ones of the text, so query j of text i sees keys 0 … k - q + j.
    """

    q_lengths: list[int]
    k_lengths: list[int]
    cu_q: torch.Tensor  # (B + 1,) int32, on the device
    cu_k: torch.Tensor  # (B + 1,) int32, on the device
    max_q: int = field(init=False)
    max_k: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_q", max(self.q_lengths))
        object.__setattr__(self, "max_k", max(self.k_lengths))


# q (Tq, Hq, D), k and v (Tk, Hk, D) -> (Tq, Hq, D)
Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Segments], torch.Tensor]


def choose_attention(
    requested: str, device: torch.device, dtype: torch.dtype
) -> tuple[Attention, str]:
    """Return the attention function for this device and dtype, and why it was chosen.

    Raises ConfigError when the requested backend cannot run there.
    """
    if device.type != "cuda":
        if requested in {"flash", "efficient"}:
            raise ConfigError(
                f'attention="{requested}" needs a CUDA device, this is {device}; use "auto"'
            )
        return sdpa_attention, f"sdpa ({device.type}, {_name(dtype)})"
    capability = torch.cuda.get_device_capability(device)
    card = f"sm_{capability[0]}{capability[1]}, {_name(dtype)}"
    can_flash = capability >= FLASH_CAPABILITY and dtype in {torch.float16, torch.bfloat16}
    if requested == "flash" and not can_flash:
        raise ConfigError(
            f'attention="flash" needs sm_80 or newer and bfloat16 or float16, this is {card}; '
            'use "auto"'
        )
    if requested in {"auto", "flash"} and can_flash:
        return flash_attention, f"flash ({card})"
    if requested in {"auto", "efficient"}:
        return efficient_attention, f"efficient ({card})"
    return sdpa_attention, f"sdpa ({card})"


def flash_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, segments: Segments
) -> torch.Tensor:
    """Packed FlashAttention; the mask is aligned bottom right, as the last queries need it."""
    # The private operator kept this positional call from torch 2.6 to 2.15; the public
    # varlen_attn changed with every release.
    return torch.ops.aten._flash_attention_forward(
        q, k, v, segments.cu_q, segments.cu_k, segments.max_q, segments.max_k, 0.0, True, False
    )[0]


def efficient_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, segments: Segments
) -> torch.Tensor:
    """Packed memory-efficient attention, for float32 and for cards before Ampere."""
    # It knows no grouped heads: one call per head of a group, on strided views.
    num_groups = q.shape[1] // k.shape[1]
    out = torch.empty_like(q)
    for group in range(num_groups):
        out[:, group::num_groups] = torch.ops.aten._efficient_attention_forward(
            q[None, :, group::num_groups],
            k[None],
            v[None],
            None,
            segments.cu_q,
            segments.cu_k,
            segments.max_q,
            segments.max_k,
            0.0,
            2,  # causal, aligned bottom right
        )[0][0]
    return out


def sdpa_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, segments: Segments
) -> torch.Tensor:
    """One call for each run of neighbours with equal lengths, which need no padding."""
    out = torch.empty_like(q)
    q_start = k_start = 0
    pairs = zip(segments.q_lengths, segments.k_lengths, strict=True)
    for (q_length, k_length), run in groupby(pairs):
        num_texts = sum(1 for _ in run)
        q_stop, k_stop = q_start + num_texts * q_length, k_start + num_texts * k_length
        part = F.scaled_dot_product_attention(
            _heads_first(q[q_start:q_stop], num_texts),
            _heads_first(k[k_start:k_stop], num_texts),
            _heads_first(v[k_start:k_stop], num_texts),
            attn_mask=_mask(q_length, k_length, q.device),
            is_causal=q_length == k_length > 1 and q.device.type != "mps",
            enable_gqa=True,
        )  # (num_texts, Hq, q_length, D)
        out[q_start:q_stop] = part.transpose(1, 2).flatten(0, 1)
        q_start, k_start = q_stop, k_stop
    return out


def _mask(q_length: int, k_length: int, device: torch.device) -> torch.Tensor | None:
    # A single query sees every key; is_causal would let it see the first alone (top left).
    # On Metal is_causal has let half-precision tokens see later ones (pytorch#195910).
    if q_length == 1 or (q_length == k_length and device.type != "mps"):
        return None
    seen = torch.ones(q_length, k_length, dtype=torch.bool, device=device)
    return seen.tril(k_length - q_length)


def _heads_first(x: torch.Tensor, num_texts: int) -> torch.Tensor:
    """Return (num_texts, heads, L, D) of (num_texts * L, heads, D), without a copy."""
    return x.unflatten(0, (num_texts, -1)).transpose(1, 2)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
