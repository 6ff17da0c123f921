"""The packed Qwen3 forward: last layer pruned, instruction keys and values reused.

Follows transformers' Qwen3Model (modeling_qwen3.py, 4.51 to 5.23), which stays the oracle of the
tests, with three differences that do not change the result: no padding, one projection for all
that read the same input, and in the last layer only each text's last token goes past the keys.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from .attention import PrefixedAttention, Segments
from .checkpoint import Architecture
from .dense import DenseParts
from .layout import Int64Array, Shape, lay_out
from .memory import KEPT_PREFIX_TOKENS
from .packing import PackedBatch
from .team import Team
from .weights import Weights

MAX_PREFIXES = 32  # instructions whose keys and values are kept


@dataclass(slots=True)
class Computed:
    """What has gone through a model so far."""

    num_tokens: int = 0  # a prefix once, not once for every text behind it
    _lock: threading.Lock = field(default_factory=threading.Lock)  # two threads may be at it

    def add(self, num_tokens: int) -> None:
        """Count tokens."""
        with self._lock:
            self.num_tokens += num_tokens


class Texts(NamedTuple):
    """The lengths of a forward's texts as far as the host must know them.

    A graph is captured for many batches: for it only the maxima hold, and the lists are empty.
    """

    q_lengths: list[int]
    k_lengths: list[int]
    max_q: int = 0
    max_k: int = 0

    @classmethod
    def of_batch(cls, batch: PackedBatch) -> Texts:
        """Return the lengths of a batch."""
        lengths = batch.lengths
        return cls(lengths.tolist(), (lengths + len(batch.prefix_ids)).tolist())


class Plan(NamedTuple):
    """What every layer of one forward needs to know of its batch; tensors on the device, int64."""

    input_ids: torch.Tensor  # (T,)
    position_ids: torch.Tensor  # (T,)
    segments: Segments
    last_segments: Segments  # of the last layer: one query per text
    last_rows: torch.Tensor  # (B,) each text's last token

    @classmethod
    def of_words(cls, words: torch.Tensor, shape: Shape, texts: Texts) -> Plan:
        """Return the plan that `Layout.words`, on the device, stand for."""
        parts = shape.split(words)
        starts_q, starts_k, starts_last = parts.cu_q.int(), parts.cu_k.int(), parts.cu_last.int()
        segments = Segments(
            texts.q_lengths,
            texts.k_lengths,
            starts_q,
            starts_k,
            texts.max_q,
            texts.max_k,
            key_rows=parts.key_rows,
        )
        return cls(
            input_ids=parts.input_ids,
            position_ids=parts.position_ids,
            segments=segments,
            last_segments=replace(
                segments, q_lengths=[1] * len(texts.q_lengths), cu_q=starts_last, max_q=1
            ),
            last_rows=parts.last_rows,
        )


class Qwen3Model:
    """Maps a packed batch to the hidden state of each text's last token, after the final norm."""

    def __init__(
        self,
        weights: Weights,
        architecture: Architecture,
        *,
        attention: PrefixedAttention,
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
        self.lead = dense.lead  # to be called on the thread whose forwards may use all cores
        self._weights = weights
        self._attention = attention
        self._dense = dense
        self._team = team
        self._prefixes: OrderedDict[tuple[int, ...], torch.Tensor] = OrderedDict()
        self._prefixes_lock = threading.Lock()

    @torch.inference_mode()
    def __call__(self, batch: PackedBatch) -> torch.Tensor:
        """Return (B, H) in the model's dtype."""
        prefix = self.prefix(batch.prefix_ids) if batch.prefix_ids else None

        def forward(part: PackedBatch) -> torch.Tensor:
            return self._run(part, prefix, None)

        return forward(batch) if self._team is None else self._team.run(forward, batch)

    @torch.inference_mode()
    def prefix(self, ids: tuple[int, ...]) -> torch.Tensor:
        """Return the prefix's keys and values of each layer, (layers, 2, Hk, P, D).

        Computed once, in a forward of its own; the last ones asked for are kept, MAX_PREFIXES and
        KEPT_PREFIX_TOKENS in all, and the very last however long.
        """
        with self._prefixes_lock:
            if ids not in self._prefixes:
                self.computed.add(len(ids))
                kept: list[torch.Tensor] = []
                self._run(PackedBatch.pack([np.array(ids, np.int32)]), None, kept)
                self._prefixes[ids] = torch.stack(kept)
                while len(self._prefixes) > 1 and (
                    len(self._prefixes) > MAX_PREFIXES or self.num_kept_tokens > KEPT_PREFIX_TOKENS
                ):
                    self._prefixes.popitem(last=False)
            self._prefixes.move_to_end(ids)
            return self._prefixes[ids]

    @property
    def num_kept_tokens(self) -> int:
        """Tokens of all prefixes that are kept."""
        return sum(map(len, self._prefixes))

    def _run(
        self, batch: PackedBatch, prefix: torch.Tensor | None, keep: list[torch.Tensor] | None
    ) -> torch.Tensor:
        layout = lay_out(batch)
        words = self.to_device(layout.words)
        return self.forward(Plan.of_words(words, layout.shape, Texts.of_batch(batch)), prefix, keep)

    @torch.inference_mode()
    def forward(
        self,
        plan: Plan,
        prefix: torch.Tensor | None = None,
        keep: list[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Return (B, H) in the model's dtype; add each layer's (2, Hk, T, D) to `keep`.

        `prefix` (layers, 2, Hk, P, D) holds the keys and values that stand before each text's own.
        """
        residual = F.embedding(plan.input_ids, self._weights.embedding).to(self.dtype)  # (T, H)
        x: torch.Tensor | None = None
        last = len(self._weights.layers) - 1
        with self._dense.begin(plan.position_ids, plan.segments, prefix) as state:
            for i, layer in enumerate(self._weights.layers):
                q, k, v = self._dense.project(layer, x, residual, state)
                x = None  # here and below: what is not needed must not stand beside what is
                if keep is not None:
                    keep.append(torch.stack([k.transpose(0, 1), v.transpose(0, 1)]))
                segments = plan.segments
                if i == last:
                    # Nothing reads the other tokens: their keys and values are all it takes.
                    rows, segments = plan.last_rows, plan.last_segments
                    q, residual = q[rows], residual[rows]
                shared = None if prefix is None else prefix[i]
                attended = self._attention(q, k, v, segments, shared)
                del q, k, v
                x = self._dense.finish(layer, attended, residual, state)
                del attended
        return self._dense.norm(x, residual, self._weights.norm)  # (B, H)

    def to_device(self, words: Int64Array) -> torch.Tensor:
        """Return the words on the device, without waiting for the copy."""
        tensor = self.on_host(words)
        # Metal would read the array after it is gone.
        return tensor.to(self.device, non_blocking=tensor.is_pinned())

    def on_host(self, words: Int64Array) -> torch.Tensor:
        """Return the words as the device copies them best: for CUDA in pinned memory.

        It is not given to another before the copies that read it are done.
        """
        tensor = torch.from_numpy(words)
        return tensor.pin_memory() if self.device.type == "cuda" else tensor
