"""A layer's dense parts, everything but attention: on an accelerator, and at a CPU's best."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F

from . import kernels
from .checkpoint import Architecture
from .kernels import Operations, Projected
from .linear import (
    Int8Linear,
    Linear,
    PackedLinear,
    QuantizedWeight,
    Rows,
    Weight,
    WidenedLinear,
    has_packed_products,
    product,
    select_outputs,
)
from .weights import Layer

# On a CPU a product reads its weights once for each panel of rows, and what stands between two
# products runs block by block, on values that are still in a core's cache. Measured on one Zen 5
# core (1 MB): panels of 256 rows in blocks of 128 are 5 % faster than either size for both.
PANEL_ROWS = 256
BLOCK_ROWS = 128
FLOAT16_FACTOR = 64.0  # a power of two: weights above 0.004 keep every bit, smaller ones to 2e-6


class DenseParts(Protocol):
    """What a layer does to each token by itself. The residual (T, H) is updated in place."""

    def pack(self, layers: Iterable[Layer]) -> Iterable[Any]:
        """Return the layers in the form the other methods take."""
        ...

    def angles(self, position_ids: torch.Tensor) -> torch.Tensor:
        """Return the angles of the positions (T,) in the form `project` takes."""
        ...

    def project(
        self, layer: Any, x: torch.Tensor | None, residual: torch.Tensor, angles: torch.Tensor
    ) -> Projected:
        """Add x (T, H), the layer before's output, and return what attention needs."""
        ...

    def finish(
        self, layer: Any, attended: torch.Tensor, residual: torch.Tensor
    ) -> torch.Tensor | None:
        """Add the attention's output; return the MLP's (T, H), or None where it is added too."""
        ...

    def norm(
        self, x: torch.Tensor | None, residual: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        """Add x (T, H) and return the norm of the sum, (T, H)."""
        ...


def choose_dense(
    architecture: Architecture,
    device: torch.device,
    dtype: torch.dtype,
    *,
    has_fast_bfloat16: bool = False,
) -> tuple[DenseParts, str]:
    """Return the dense parts in the device's best form, and what their kernels are.

    `has_fast_bfloat16` says of a CPU that it multiplies bfloat16 faster than float32.
    """
    if device.type != "cpu":
        operations, reason = choose_operations(device)
        return Dense(architecture, dtype, operations), reason
    can_pack = has_packed_products()
    packed = {torch.float32: can_pack, torch.bfloat16: can_pack and has_fast_bfloat16}

    def make_linear(weight: Weight) -> Linear:
        if isinstance(weight, QuantizedWeight):
            return Int8Linear(weight)
        return (PackedLinear if packed.get(weight.dtype) else WidenedLinear)(weight)

    return CpuDense(architecture, make_linear), "plain, in blocks (cpu)"


def choose_operations(device: torch.device) -> tuple[Operations, str]:
    """Return the elementwise operations for an accelerator, and why these."""
    if device.type != "cuda":
        return kernels, f"plain ({device.type})"
    try:
        from . import triton_kernels

        ones = torch.ones(1, 16, device=device)
        triton_kernels.add_norm(None, ones, ones[0], 1e-6, torch.float32)
    except Exception as error:
        # Triton is not in every build of torch, and compiles with a C compiler that not every image
        # has. Whatever it is that it lacks, the plain functions compute the same.
        return kernels, f"plain (Triton does not run: {type(error).__name__}: {error})"
    return triton_kernels, "fused (Triton)"


class Dense:
    """The dense parts on any device; `operations` has what stands between the products.

    `dtype` is that of the products, the residual's may be wider. float16 ends at 65,504, which the
    MLP of a large model exceeds: there the up projection is a 64th of its size, and what comes out
    of the MLP is multiplied back as it is added to a float32 residual.
    """

    def __init__(
        self, architecture: Architecture, dtype: torch.dtype, operations: Operations = kernels
    ) -> None:
        self._architecture = architecture
        self._dtype = dtype
        self._operations = operations
        self._num_kv_heads = architecture.num_kv_heads
        self._eps = architecture.rms_norm_eps
        self._mlp_factor = FLOAT16_FACTOR if dtype == torch.float16 else 1.0

    def pack(self, layers: Iterable[Layer]) -> Iterator[Layer]:
        for layer in layers:
            if self._mlp_factor != 1.0:
                gate_up = cast(torch.Tensor, layer.gate_up)  # float16: nothing is quantised
                gate_up[len(gate_up) // 2 :] /= self._mlp_factor
            yield layer

    def angles(self, position_ids: torch.Tensor) -> torch.Tensor:
        return torch.cat(_angles(position_ids, self._architecture), dim=1)  # (T, 2, D / 2)

    def project(
        self, layer: Layer, x: torch.Tensor | None, residual: torch.Tensor, angles: torch.Tensor
    ) -> Projected:
        qkv = self._normed(x, residual, layer.input_norm, layer.qkv, self._mlp_factor)
        return self._operations.qk_norm_rope(
            qkv, angles, layer.q_norm, layer.k_norm, self._num_kv_heads, self._eps
        )

    def finish(self, layer: Layer, attended: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        attended = attended.flatten(1)
        x = self._product(self._operations.to_rows(attended, _reads(layer.o)), layer.o)
        gate_up = self._normed(x, residual, layer.post_attention_norm, layer.gate_up)
        hidden = self._operations.swiglu(gate_up, _reads(layer.down))
        return self._product(hidden, layer.down)

    def norm(
        self, x: torch.Tensor | None, residual: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        return self._operations.add_norm(
            x, residual, weight, self._eps, residual.dtype, self._mlp_factor
        ).values

    def _normed(
        self,
        x: torch.Tensor | None,
        residual: torch.Tensor,
        norm: torch.Tensor,
        weight: Weight,
        factor: float = 1.0,
    ) -> torch.Tensor:
        """Add factor * x to the residual and return the product of its norm with `weight`."""
        rows = self._operations.add_norm(x, residual, norm, self._eps, _reads(weight), factor)
        return self._product(rows, weight)

    def _product(self, rows: Rows, weight: Weight) -> torch.Tensor:
        return product(rows, weight, self._dtype)


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

    def __init__(self, architecture: Architecture, make_linear: Callable[[Weight], Linear]) -> None:
        self._architecture = architecture
        self._make_linear = make_linear
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

    def angles(self, position_ids: torch.Tensor) -> torch.Tensor:
        return torch.complex(*_angles(position_ids, self._architecture))  # (T, 1, D / 2)

    def project(
        self, layer: CpuLayer, x: torch.Tensor | None, residual: torch.Tensor, angles: torch.Tensor
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
                torch.view_as_complex(block.view(*own.shape[:2], -1, 2)).mul_(angles[rows])
                if scale is None:
                    v[rows] = heads[:, num_turned:]
                else:
                    torch.mul(heads[:, num_turned:], scale, out=v[rows])
        return Projected(turned[:, : a.num_heads], turned[:, a.num_heads :], v)

    def finish(self, layer: CpuLayer, attended: torch.Tensor, residual: torch.Tensor) -> None:
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


def _reads(weight: Weight) -> torch.dtype:
    """Return the dtype of the rows that the weight is multiplied with."""
    return weight.dtype if isinstance(weight, torch.Tensor) else weight.values.dtype


def _angles(
    position_ids: torch.Tensor, architecture: Architecture
) -> tuple[torch.Tensor, torch.Tensor]:
    return kernels.rotary_angles(position_ids, architecture.head_dim, architecture.rope_theta)


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
