"""Causal attention on packed sequences: the best backend the device has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

import torch
import torch.nn.functional as F

from ..errors import ConfigError

FLASH_CAPABILITY = (8, 0)  # FlashAttention 2 needs an Ampere card or newer
QUERY_BLOCK = 128  # queries whose scores are computed together on a CPU
MAX_SCORES = 2_000_000  # at a time, 8 MB in float32: of a long text a few heads, one after another
MIN_BLOCKED_KEYS = 48  # below, one call for all is faster than five small operations


@dataclass(frozen=True, slots=True)
class Segments:
    """Where each text's queries and keys lie. Text i has q_lengths[i] <= k_lengths[i] rows.

    The queries are the last ones of the text, so query j of text i sees keys 0 … k - q + j. In a
    CUDA graph, which runs for many batches, the lists are empty and the maxima are the graph's:
    CAPTURABLE backends read nothing else.
    """

    q_lengths: list[int]
    k_lengths: list[int]
    cu_q: torch.Tensor  # (B + 1,) int32, on the device
    cu_k: torch.Tensor  # (B + 1,) int32, on the device
    max_q: int = 0  # of the lists, where there are any
    max_k: int = 0
    key_rows: torch.Tensor | None = None  # see layout.Parts; None where no prefix is shared
    _masks: dict[tuple[int, int], torch.Tensor | None] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        if self.q_lengths:
            object.__setattr__(self, "max_q", max(self.q_lengths))
            object.__setattr__(self, "max_k", max(self.k_lengths))

    def mask(self, run: Run, device: torch.device) -> torch.Tensor | None:
        """Return which keys each query of the run sees, made once for all layers."""
        lengths = run.q_length, run.k_length
        if lengths not in self._masks:
            self._masks[lengths] = _mask(*lengths, device)
        return self._masks[lengths]

    def runs(self) -> Iterator[Run]:
        """Yield neighbours of equal lengths together: one call computes them without padding."""
        q_start = k_start = 0
        pairs = zip(self.q_lengths, self.k_lengths, strict=True)
        for (q_length, k_length), run in groupby(pairs):
            num_texts = sum(1 for _ in run)
            yield Run(num_texts, q_start, q_length, k_start, k_length)
            q_start, k_start = q_start + num_texts * q_length, k_start + num_texts * k_length


class Run(NamedTuple):
    """Neighbouring texts of equal lengths, and where the first one's rows begin."""

    num_texts: int
    q_start: int
    q_length: int
    k_start: int
    k_length: int


# q (Tq, Hq, D), k and v (Tk, Hk, D) -> (Tq, Hq, D)
Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Segments], torch.Tensor]
# The same with a prefix's keys and values (2, Hk, P, D), or None, before each text's own.
PrefixedAttention = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, Segments, torch.Tensor | None], torch.Tensor
]


def behind_prefix(attention: Attention) -> PrefixedAttention:
    """Return the attention over the prefix's keys and each text's own, copied end to end."""

    def attend(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        segments: Segments,
        prefix: torch.Tensor | None,
    ) -> torch.Tensor:
        if prefix is not None:
            k, v = _join(prefix[0], k, segments), _join(prefix[1], v, segments)
        return attention(q, k, v, segments)

    return attend


def _join(prefix: torch.Tensor, own: torch.Tensor, segments: Segments) -> torch.Tensor:
    """Return each text's keys (or values) with the prefix's before them, (T + B P, Hk, D)."""
    prefix = prefix.transpose(0, 1)
    if segments.k_lengths and own.device.type == "cpu":
        # Here a list of slices is copied faster than by index.
        own_of_texts = own.split([length - len(prefix) for length in segments.k_lengths])
        return torch.cat([piece for text in own_of_texts for piece in (prefix, text)])
    return torch.cat([prefix, own])[segments.key_rows]


def choose_attention(
    requested: str, device: torch.device, dtype: torch.dtype, *, has_fast_bfloat16: bool = False
) -> tuple[Attention, str]:
    """Return the attention function for this device and dtype, and why it was chosen.

    `has_fast_bfloat16` says of a CPU that it multiplies bfloat16 faster than float32. Raises
    ConfigError when the requested backend cannot run there.
    """
    if device.type != "cuda":
        if requested in {"flash", "efficient"}:
            raise ConfigError(
                f'attention="{requested}" needs a CUDA device, this is {device}; use "auto"'
            )
        is_fast = device.type == "cpu" and has_fast_bfloat16 and dtype == torch.bfloat16
        if requested == "auto" and is_fast:
            return blocked_attention, "blocked (cpu, bfloat16)"
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
    """One call of torch's attention for each run of texts with equal lengths."""
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    for run in segments.runs():
        _sdpa(q, k, v, run, segments.mask(run, q.device), out)
    return out


def blocked_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, segments: Segments
) -> torch.Tensor:
    """Attention for CPUs that are fast in bfloat16: products in it, the softmax in float32.

    torch's own kernel multiplies tiles at 44 GFLOP/s a core where oneDNN's bfloat16 products reach
    400 (Zen 5, torch 2.13). A block of queries sees the keys up to its own end alone: little of
    what the causal mask discards is computed, and memory grows with the length, not its square.
    """
    if segments.max_k < MIN_BLOCKED_KEYS:
        return sdpa_attention(q, k, v, segments)
    num_groups = q.shape[1] // k.shape[1]
    q_heads = _by_kv_head(q, num_groups)  # (Hk, Tq, groups, D)
    k_heads = _by_kv_head(k, 1, scale=q.shape[-1] ** -0.5).squeeze(2)  # (Hk, Tk, D)
    v_heads = _by_kv_head(v, 1).squeeze(2)  # (Hk, Tk, D)
    # Row i * groups + g of a block is query i: the keys of the block after the i-th are hidden.
    hidden = torch.full((QUERY_BLOCK, QUERY_BLOCK), float("-inf")).triu_(1)
    hidden = hidden.repeat_interleave(num_groups, dim=0)
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    out_heads = out.unflatten(1, (-1, num_groups)).transpose(0, 1)  # (Hk, Tq, groups, D)
    for run in segments.runs():
        if run.k_length < MIN_BLOCKED_KEYS or run.q_length == 1:
            _sdpa(q, k, v, run, segments.mask(run, q.device), out)
            continue
        for text in range(run.num_texts):
            first_row = run.q_start + text * run.q_length
            first_key = run.k_start + text * run.k_length
            rows = slice(first_row, first_row + run.q_length)
            keys = slice(first_key, first_key + run.k_length)
            size = min(QUERY_BLOCK, run.q_length) * num_groups * run.k_length
            num_heads = max(1, MAX_SCORES // size)
            for head in range(0, k.shape[1], num_heads):
                some = slice(head, head + num_heads)
                q_some, k_some, v_some = (
                    q_heads[some, rows],
                    k_heads[some, keys],
                    v_heads[some, keys],
                )
                _attend(q_some, k_some, v_some, hidden, out_heads[some, rows])
    return out


CAPTURABLE = (flash_attention, efficient_attention)


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, hidden: torch.Tensor, out: torch.Tensor
) -> None:
    """Write the attention of one text, q (heads, Lq, groups, D), k and v (heads, Lk, D)."""
    num_queries, num_groups = q.shape[1:3]
    for start in range(0, num_queries, QUERY_BLOCK):
        rows = slice(start, min(start + QUERY_BLOCK, num_queries))
        size = rows.stop - start
        num_seen = k.shape[1] - num_queries + rows.stop
        scores = torch.bmm(q[:, rows].flatten(1, 2), k[:, :num_seen].mT).float()
        scores[..., -size:] += hidden[: size * num_groups, :size]
        weights = scores.softmax(-1).bfloat16()  # (heads, size * groups, num_seen)
        out[:, rows] = torch.bmm(weights, v[:, :num_seen]).unflatten(1, (size, num_groups))


def _by_kv_head(x: torch.Tensor, num_groups: int, *, scale: float = 1.0) -> torch.Tensor:
    """Return scale * x (T, heads, D) as (heads / groups, T, groups, D) bfloat16, head by head."""
    heads = x.unflatten(1, (-1, num_groups)).transpose(0, 1)
    return torch.mul(heads, scale, out=torch.empty(heads.shape, dtype=torch.bfloat16))


def _sdpa(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    run: Run,
    mask: torch.Tensor | None,
    out: torch.Tensor,
) -> None:
    """Write the attention of one run into its rows of `out`."""
    queries = slice(run.q_start, run.q_start + run.num_texts * run.q_length)
    keys = slice(run.k_start, run.k_start + run.num_texts * run.k_length)
    part = F.scaled_dot_product_attention(
        _heads_first(q[queries], run.num_texts),
        _heads_first(k[keys], run.num_texts),
        _heads_first(v[keys], run.num_texts),
        attn_mask=mask,
        is_causal=run.q_length == run.k_length > 1 and q.device.type != "mps",
        enable_gqa=True,
    )  # (num_texts, Hq, q_length, D)
    out[queries] = part.transpose(1, 2).flatten(0, 1)


def _mask(q_length: int, k_length: int, device: torch.device) -> torch.Tensor | None:
    # A single query sees every key; is_causal would let it see the first alone (top left).
    # On Metal is_causal has let half-precision tokens see later ones (pytorch#195910).
    if q_length == 1 or (q_length == k_length and device.type != "mps"):
        return None
    seen = torch.ones(q_length, k_length, dtype=torch.bool, device=device)
    return seen.tril(k_length - q_length)


def _heads_first(x: torch.Tensor, num_texts: int) -> torch.Tensor:
    """Return (num_texts, heads, L, D) of (num_texts * L, heads, D), without a copy."""
    return x.view(num_texts, -1, *x.shape[1:]).transpose(1, 2)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
