"""The packed Qwen3 forward: last layer pruned, instruction keys and values reused.

Follows transformers' Qwen3Model (modeling_qwen3.py, 4.51 to 5.23), which stays the oracle of the
tests, with three differences that do not change the result: no padding, one projection for all
that read the same input, and in the last layer only each text's last token goes past the keys.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from .attention import Attention, Segments
from .checkpoint import Architecture
from .dense import DenseParts
from .packing import PackedBatch
from .team import Team
from .weights import Weights

MAX_PREFIXES = 32  # instructions whose keys and values are kept
MAX_KEPT_TOKENS = 2048  # of all of them; at the 0.6B shape 230 KB each in float32


@dataclass(slots=True)
class Computed:
    """What has gone through a model so far."""

    num_tokens: int = 0  # a prefix once, not once for every text behind it


class Prefix(NamedTuple):
    """Per layer, the keys and values of tokens that every text of a batch begins with."""

    keys: list[torch.Tensor]  # each (P, Hk, D)
    values: list[torch.Tensor]  # each (P, Hk, D)


class _Plan(NamedTuple):
    """What every layer of one forward needs to know of its batch; all on the device."""

    segments: Segments
    last_segments: Segments  # of the last layer: one query per text
    angles: torch.Tensor  # (T, …) as DenseParts.angles made them
    last_rows: torch.Tensor  # (B,) int64, each text's last token
    own_rows: torch.Tensor  # (T,) int64, where a token's key lies among all keys
    prefix_rows: torch.Tensor  # (B * P,) int64, where the prefix's keys lie


class Qwen3Model:
    """Maps a packed batch to the hidden state of each text's last token, after the final norm."""

    def __init__(
        self,
        weights: Weights,
        architecture: Architecture,
        *,
        attention: Attention,
        dense: DenseParts,
        device: torch.device,
        dtype: torch.dtype,
        team: Team | None = None,
    ) -> None:
        self.architecture = architecture
        self.device = device
        self.dtype = dtype  # of the activations
        self.weights_dtype = weights.norm.dtype
        self.computed = Computed()
        self._weights = weights
        self._attention = attention
        self._dense = dense
        self._team = team
        self._prefixes: OrderedDict[tuple[int, ...], Prefix] = OrderedDict()

    def __call__(self, batch: PackedBatch) -> torch.Tensor:
        """Return (B, H) in the model's dtype."""
        prefix = self._prefix(batch.prefix_ids) if batch.prefix_ids else None
        forward = partial(self._forward, prefix=prefix, keep=None)
        return forward(batch) if self._team is None else self._team.run(forward, batch)

    def _prefix(self, ids: tuple[int, ...]) -> Prefix:
        """Return the prefix's keys and values, computed once, in a forward of its own."""
        if ids not in self._prefixes:
            kept = Prefix([], [])
            self.computed.num_tokens += len(ids)
            self._forward(PackedBatch.pack([np.array(ids, np.int32)]), None, keep=kept)
            self._prefixes[ids] = kept
            while len(self._prefixes) > MAX_PREFIXES or (
                len(self._prefixes) > 1 and sum(map(len, self._prefixes)) > MAX_KEPT_TOKENS
            ):
                self._prefixes.popitem(last=False)
        self._prefixes.move_to_end(ids)
        return self._prefixes[ids]

    @torch.inference_mode()
    def _forward(
        self, batch: PackedBatch, prefix: Prefix | None, keep: Prefix | None
    ) -> torch.Tensor:
        plan = self._plan(batch)
        input_ids = self._to_device(batch.input_ids)
        residual = F.embedding(input_ids, self._weights.embedding).to(self.dtype)  # (T, H)
        x: torch.Tensor | None = None
        last = len(self._weights.layers) - 1
        for i, layer in enumerate(self._weights.layers):
            q, k, v = self._dense.project(layer, x, residual, plan.angles)
            if keep is not None:
                keep.keys.append(k.clone())
                keep.values.append(v.clone())
            if prefix is not None:
                k, v = self._join(prefix.keys[i], k, plan), self._join(prefix.values[i], v, plan)
            segments = plan.segments
            if i == last:
                # Nothing reads the other tokens any more: their keys and values are all it takes.
                rows, segments = plan.last_rows, plan.last_segments
                q, residual = q[rows], residual[rows]
            x = self._dense.finish(layer, self._attention(q, k, v, segments), residual)
        return self._dense.norm(x, residual, self._weights.norm)  # (B, H)

    def _join(self, shared: torch.Tensor, own: torch.Tensor, plan: _Plan) -> torch.Tensor:
        """Return each text's keys (or values) with the prefix's before them, (T + B P, Hk, D)."""
        num_texts = len(plan.last_rows)
        if self.device.type == "cpu":  # here a list of slices is copied faster than by index
            own_of_texts = own.split(plan.segments.q_lengths)
            return torch.cat([piece for text in own_of_texts for piece in (shared, text)])
        joined = own.new_empty(len(own) + num_texts * len(shared), *own.shape[1:])
        joined[plan.own_rows] = own
        joined[plan.prefix_rows] = shared.repeat(num_texts, 1, 1)
        return joined

    def _to_device(self, array: npt.NDArray[np.integer]) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        if self.device.type != "cuda":  # Metal would read the array after it is gone
            return tensor.to(self.device)
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def _plan(self, batch: PackedBatch) -> _Plan:
        num_prefix, num_texts = len(batch.prefix_ids), len(batch)
        ones = np.arange(num_texts + 1)
        cu_q = batch.cu_seqlens.astype(np.int64)
        cu_k = cu_q + num_prefix * ones
        text = np.repeat(ones[:-1], batch.lengths)  # (T,) the text each token belongs to
        position_ids = batch.position_ids
        own_rows = np.arange(batch.num_tokens) + num_prefix * (text + 1)
        prefix_rows = (cu_k[:-1, None] + np.arange(num_prefix)).ravel()
        parts = [cu_q, cu_k, ones, cu_q[1:] - 1, position_ids, own_rows, prefix_rows]
        # One copy to the device for all of them.
        on_device = self._to_device(np.concatenate(parts)).split([len(part) for part in parts])
        q_lengths, k_lengths = batch.lengths.tolist(), (batch.lengths + num_prefix).tolist()
        starts_q, starts_k, starts_last = (t.int() for t in on_device[:3])
        return _Plan(
            segments=Segments(q_lengths, k_lengths, starts_q, starts_k),
            last_segments=Segments([1] * num_texts, k_lengths, starts_last, starts_k),
            angles=self._dense.angles(on_device[4]),
            last_rows=on_device[3],
            own_rows=on_device[5],
            prefix_rows=on_device[6],
        )
