"""A layer's dense parts at a CPU's best, as far as torch goes: block by block, in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from . import kernels
from .attention import Attention, PrefixedAttention, Segments, behind_prefix
from .checkpoint import Architecture
from .kernels import Projected
from .linear import Linear, Rows, Weight, select_outputs
from .team import limit_threads
from .weights import Layer

# On a CPU a product reads its weights once for each panel of rows, and what stands between two
# products runs block by block, on values that are still in a core's cache. Measured on one Zen 5
# core (1 MB): panels of 256 rows in blocks of 128 are 5 % faster than either size for both.
PANEL_ROWS = 256
BLOCK_ROWS = 128


@dataclass(frozen=True, slots=True)
class CpuLayer:
    """One decoder layer on a CPU."""

    qkv: Linear
    o: Linear
    gate_up: Linear
    down: Linear
    input_norm: torch.Tensor  # (H,) float32
    post_attention_norm: torch.Tensor  # (H,) float32
    qk_norm: torch.Tensor  # (Hq + Hk, D) float32


class CpuDense:
    """The dense parts on a CPU: block by block, elementwise in float32, passes saved.

    A block's values are still in the cache when the next operation reads them. Factors of whole
    rows, a norm's and int8's, go along as `Rows.scale`. The two coordinates that a rotary angle
    turns stand side by side, so that turning is one complex product: queries and keys change
    places alike, which leaves their dot products as they are.
    """

    max_imbalance = 1.3  # all cores on one operation wait for the slowest some 60 times a layer

    def __init__(self, architecture: Architecture, make_linear: Callable[[Weight], Linear]) -> None:
        self._architecture = architecture
        self._make_linear = make_linear
        self._num_threads = torch.get_num_threads()
        self._num_turned = architecture.num_heads + architecture.num_kv_heads
        sizes = (architecture.hidden_size, architecture.head_dim)
        self._floors = {n: torch.tensor(n * architecture.rms_norm_eps).sqrt() for n in sizes}
        half = architecture.head_dim // 2
        self._pairs = torch.arange(architecture.head_dim).view(2, half).t().flatten()
        width = (self._num_turned + architecture.num_kv_heads) * architecture.head_dim
        rows = torch.arange(width).view(-1, architecture.head_dim)
        rows[: self._num_turned] = rows[: self._num_turned, self._pairs]
        self._qkv_rows = rows.flatten()  # where each output of qkv stands in a checkpoint

    def pack(self, layers: Iterable[Layer]) -> list[CpuLayer]:
        return [self._packed(layer) for layer in layers]

    def _packed(self, layer: Layer) -> CpuLayer:
        a = self._architecture
        qk_norm = [layer.q_norm.expand(a.num_heads, -1), layer.k_norm.expand(a.num_kv_heads, -1)]
        return CpuLayer(
            qkv=self._make_linear(select_outputs(layer.qkv, self._qkv_rows)),
            o=self._make_linear(layer.o),
            gate_up=self._make_linear(layer.gate_up),
            down=self._make_linear(layer.down),
            input_norm=self._norm_weight(layer.input_norm),
            post_attention_norm=self._norm_weight(layer.post_attention_norm),
            qk_norm=self._norm_weight(torch.cat(qk_norm)[:, self._pairs]),
        )

    def lead(self) -> None:
        limit_threads(self._num_threads)

    def begin(
        self, position_ids: torch.Tensor, segments: Segments, prefix: torch.Tensor | None
    ) -> AbstractContextManager[torch.Tensor]:
        del segments, prefix
        return nullcontext(self.angles(position_ids))

    def angles(self, position_ids: torch.Tensor) -> torch.Tensor:
        """Return the positions' angles as complex numbers, (T, 1, D / 2)."""
        a = self._architecture
        return torch.complex(*kernels.rotary_angles(position_ids, a.head_dim, a.rope_theta))

    def project(
        self, layer: CpuLayer, x: torch.Tensor | None, residual: torch.Tensor, state: torch.Tensor
    ) -> Projected:
        del x  # added by `finish`
        a, num_turned = self._architecture, self._num_turned
        linear = layer.qkv.opened()
        turned = residual.new_empty(len(residual), num_turned, a.head_dim)
        v = residual.new_empty(len(residual), a.num_kv_heads, a.head_dim)
        for panel in _blocks(0, len(residual), PANEL_ROWS):
            blocks = list(_blocks(panel.start, panel.stop, BLOCK_ROWS))
            taken = [linear.take(self._normed(residual[rows], layer.input_norm)) for rows in blocks]
            y = linear(Rows.join(taken))
            for rows in blocks:
                values, scale = y.part(slice(rows.start - panel.start, rows.stop - panel.start))
                heads = values.view(len(values), -1, a.head_dim)
                scale = None if scale is None else scale[:, :, None]
                own, block = heads[:, :num_turned], turned[rows]
                torch.mul(own, self._inverse_norm(own, scale), out=block).mul_(layer.qk_norm)
                torch.view_as_complex(block.view(*own.shape[:2], -1, 2)).mul_(state[rows])
                if scale is None:
                    v[rows] = heads[:, num_turned:]
                else:
                    torch.mul(heads[:, num_turned:], scale, out=v[rows])
        return Projected(turned[:, : a.num_heads], turned[:, a.num_heads :], v)

    def finish(
        self, layer: CpuLayer, attended: torch.Tensor, residual: torch.Tensor, state: torch.Tensor
    ) -> None:
        del state
        o, gate_up, down = layer.o.opened(), layer.gate_up.opened(), layer.down.opened()
        attended = attended.flatten(1)
        for panel in _blocks(0, len(residual), PANEL_ROWS):
            own, read = residual[panel], attended[panel]
            blocks = list(_blocks(0, len(own), BLOCK_ROWS))
            y = o(Rows.join([o.take(Rows(read[rows])) for rows in blocks]))
            normed: list[Rows] = []
            for rows in blocks:
                _add(own[rows], y.part(rows))
                normed.append(gate_up.take(self._normed(own[rows], layer.post_attention_norm)))
            hidden = gate_up(Rows.join(normed))
            y = down(Rows.join([down.take(_swiglu(hidden.part(rows))) for rows in blocks]))
            for rows in blocks:
                _add(own[rows], y.part(rows))

    def norm(
        self, x: torch.Tensor | None, residual: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        del x
        values, scale = self._normed(residual, self._norm_weight(weight))
        return values if scale is None else values.mul_(scale)

    def spread(self, attention: Attention, *, may_replace: bool = True) -> PrefixedAttention:
        del may_replace
        return behind_prefix(attention)

    def _norm_weight(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the weight of a norm over its last dimension, to multiply by `_inverse_norm`."""
        return weight.float() * weight.shape[-1] ** 0.5

    def _normed(self, x: torch.Tensor, weight: torch.Tensor) -> Rows:
        """Return the RMS norm of x (T, H) times the norm's weight, as new values."""
        return Rows(x * weight, self._inverse_norm(x, None))

    def _inverse_norm(self, x: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
        """Return 1 / sqrt(sum(x²) + size * eps / scale²) of the last dimension, kept with size 1.

        That is 1 / sqrt(mean(x²) + eps / scale²) but for the root of the size, which is in the
        norm's weight.
        """
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        floor = self._floors[x.shape[-1]]
        return torch.hypot(norm, floor if scale is None else floor / scale).reciprocal_()


def _swiglu(hidden: Rows) -> Rows:
    """Return silu(gate) * up of gate and up side by side (T, 2 F), as new values (T, F)."""
    gate, up = hidden.values.chunk(2, dim=1)
    if hidden.scale is not None:
        gate = gate.mul_(hidden.scale)
    return Rows(F.silu(gate).mul_(up), hidden.scale)


def _add(residual: torch.Tensor, x: Rows) -> None:
    if x.scale is None:
        residual.add_(x.values)
    else:
        residual.addcmul_(x.values, x.scale)


def _blocks(start: int, stop: int, max_rows: int) -> Iterator[slice]:
    """Yield blocks of nearly equal size, none above `max_rows`."""
    num_blocks = -(-(stop - start) // max_rows)
    size = -(-(stop - start) // num_blocks)
    for first in range(start, stop, size):
        yield slice(first, min(first + size, stop))
