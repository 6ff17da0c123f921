"""A plain float32 forward, layer by layer from the files: what the right answer is, and the wrong.

Written for reading, independent of the engine that it may be used to judge. One layer's weights
are in memory at a time, so that the 8B needs about 2 GB. Follows transformers' Qwen3Model
(modeling_qwen3.py, 4.51 to 5.23).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors import safe_open

from ..core.checkpoint import Architecture, read_architecture, weight_files


class TokenizedText(NamedTuple):
    """A text as token ids, and which tokens each of them sees."""

    ids: tuple[int, ...]
    is_causal: bool = True


class _Tensors:
    """The tensors of a folder by name, each read from its file when asked for, in float32."""

    def __init__(self, folder: Path) -> None:
        self._paths: dict[str, tuple[Path, str]] = {}
        for path in weight_files(folder):
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (a safetensors file is not a dict)
                    self._paths[name.removeprefix("model.")] = path, name

    def read(self, name: str) -> torch.Tensor:
        path, stored = self._paths[name]
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(stored).float()

    def rows(self, name: str, ids: torch.Tensor) -> torch.Tensor:
        """Return these rows of a matrix; of the rest of the table nothing is converted."""
        path, stored = self._paths[name]
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(stored)[ids].float()


@torch.inference_mode()
def hidden_states(folder: Path, texts: Sequence[TokenizedText]) -> list[torch.Tensor]:
    """Return every token's hidden state after the final norm, each (L, H) float32."""
    architecture, tensors = read_architecture(folder), _Tensors(folder)
    lengths = [len(text.ids) for text in texts]
    ids = torch.tensor([i for text in texts for i in text.ids])
    positions = torch.cat([torch.arange(length) for length in lengths])
    attend = partial(_attend, lengths=lengths, causal=[one.is_causal for one in texts])
    norm = partial(F.rms_norm, eps=architecture.rms_norm_eps)
    angles = _angles(positions, architecture)
    x = tensors.rows("embed_tokens.weight", ids)  # (T, H), all texts end to end
    width = [architecture.hidden_size]
    for i in range(architecture.num_layers):
        read = partial(_read_of_layer, tensors, i)
        normed = norm(x, width, read("input_layernorm"))
        x = x + _attention(normed, read, architecture, norm, angles, attend)
        normed = norm(x, width, read("post_attention_layernorm"))
        gate = F.silu(F.linear(normed, read("mlp.gate_proj")))
        x = x + F.linear(gate * F.linear(normed, read("mlp.up_proj")), read("mlp.down_proj"))
    return list(norm(x, width, tensors.read("norm.weight")).split(lengths))


def _read_of_layer(tensors: _Tensors, layer: int, name: str) -> torch.Tensor:
    return tensors.read(f"layers.{layer}.{name}.weight")


def _attention(
    normed: torch.Tensor,
    read: partial[torch.Tensor],
    architecture: Architecture,
    norm: partial[torch.Tensor],
    angles: torch.Tensor,
    attend: partial[torch.Tensor],
) -> torch.Tensor:
    """Return what one layer's attention adds, (T, H)."""
    head = [architecture.head_dim]

    def heads(name: str) -> torch.Tensor:
        return F.linear(normed, read(f"self_attn.{name}_proj")).unflatten(1, (-1, *head))

    q = _rotate(norm(heads("q"), head, read("self_attn.q_norm")), angles)
    k = _rotate(norm(heads("k"), head, read("self_attn.k_norm")), angles)
    return F.linear(attend(q, k, heads("v")), read("self_attn.o_proj"))


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, lengths: list[int], causal: list[bool]
) -> torch.Tensor:
    """Return the attention of each text by itself, (T, Hq * D)."""
    parts = zip(q.split(lengths), k.split(lengths), v.split(lengths), causal, strict=True)
    outputs = [
        F.scaled_dot_product_attention(
            one_q.transpose(0, 1),
            one_k.transpose(0, 1),
            one_v.transpose(0, 1),
            is_causal=is_causal,
            enable_gqa=True,
        ).transpose(0, 1)
        for one_q, one_k, one_v, is_causal in parts
    ]
    return torch.cat(outputs).flatten(1)


def _angles(positions: torch.Tensor, architecture: Architecture) -> torch.Tensor:
    """Return each position's angles, (T, 1, D / 2)."""
    exponents = torch.arange(0, architecture.head_dim, 2).float() / architecture.head_dim
    return positions.float()[:, None, None] / architecture.rope_theta**exponents


def _rotate(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Return x (T, heads, D) turned: the two halves of a head are the two coordinates."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
