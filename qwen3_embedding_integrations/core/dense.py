"""A layer's dense parts, everything but attention: on an accelerator, and at a CPU's best."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, cast

import torch

from . import kernels
from .attention import Attention, PrefixedAttention, Segments, behind_prefix
from .checkpoint import Architecture
from .cpu_dense import CpuDense
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
)
from .weights import Layer

FLOAT16_FACTOR = 64.0  # a power of two: weights above 0.004 keep every bit, smaller ones to 2e-6


class DenseParts(Protocol):
    """What a layer does to each token by itself. The residual (T, H) is updated in place.

    `max_imbalance` is `Team`'s: how uneven parts may be before all cores on one are faster.
    """

    max_imbalance: float

    def pack(self, layers: Iterable[Layer]) -> Iterable[Any]:
        """Return the layers in the form the other methods take."""
        ...

    def lead(self) -> None:
        """Let forwards on this thread use all cores of a CPU."""
        ...

    def begin(
        self, position_ids: torch.Tensor, segments: Segments, prefix: torch.Tensor | None
    ) -> AbstractContextManager[Any]:
        """Return a forward over positions (T,); what it gives is `state` below.

        `prefix` (layers, 2, Hk, P, D) holds keys and values that stand before every text's.
        """
        ...

    def project(
        self, layer: Any, x: torch.Tensor | None, residual: torch.Tensor, state: Any
    ) -> Projected:
        """Add x (T, H), the layer before's output, and return what attention needs."""
        ...

    def finish(
        self, layer: Any, attended: torch.Tensor, residual: torch.Tensor, state: Any
    ) -> torch.Tensor | None:
        """Add the attention's output; return the MLP's (T, H), or None where it is added too."""
        ...

    def norm(
        self, x: torch.Tensor | None, residual: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        """Add x (T, H) and return the norm of the sum, (T, H)."""
        ...

    def spread(self, attention: Attention, *, may_replace: bool = True) -> PrefixedAttention:
        """Return this attention, on the threads that these parts run on, or a faster one."""
        ...


def choose_dense(
    architecture: Architecture,
    device: torch.device,
    dtype: torch.dtype,
    *,
    has_fast_bfloat16: bool = False,
    is_int8: bool = False,
) -> tuple[DenseParts, str]:
    """Return the dense parts in the device's best form, and what their kernels are.

    `has_fast_bfloat16` says of a CPU that it multiplies bfloat16 faster than float32; `is_int8`
    says of the layers that most are int8.
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

    plain = CpuDense(architecture, make_linear)
    if not is_int8 and not (dtype == torch.bfloat16 and has_fast_bfloat16):
        return plain, "plain, in blocks (cpu)"
    weights = torch.int8 if is_int8 else torch.bfloat16
    try:
        from . import fused

        if (reason := fused.obstacle(architecture, weights)) is None:
            return fused.FusedDense(architecture, plain, weights), "fused (Numba)"
    except Exception as error:
        # No Numba, or one without a folder for what it compiles: oneDNN computes the same.
        reason = f"no Numba: {type(error).__name__}: {error}; install the extra cpu"
    return plain, f"plain, in blocks ({reason})"


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

    max_imbalance = 1.3

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

    def lead(self) -> None:
        pass

    def begin(
        self, position_ids: torch.Tensor, segments: Segments, prefix: torch.Tensor | None
    ) -> AbstractContextManager[torch.Tensor]:
        del segments, prefix
        a = self._architecture
        angles = kernels.rotary_angles(position_ids, a.head_dim, a.rope_theta)
        return nullcontext(torch.cat(angles, dim=1))  # (T, 2, D / 2)

    def project(
        self, layer: Layer, x: torch.Tensor | None, residual: torch.Tensor, state: torch.Tensor
    ) -> Projected:
        qkv = self._normed(x, residual, layer.input_norm, layer.qkv, self._mlp_factor)
        return self._operations.qk_norm_rope(
            qkv, state, layer.q_norm, layer.k_norm, self._num_kv_heads, self._eps
        )

    def finish(
        self, layer: Layer, attended: torch.Tensor, residual: torch.Tensor, state: torch.Tensor
    ) -> torch.Tensor:
        del state
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

    def spread(self, attention: Attention, *, may_replace: bool = True) -> PrefixedAttention:
        del may_replace
        return behind_prefix(attention)

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


def _reads(weight: Weight) -> torch.dtype:
    """Return the dtype of the rows that the weight is multiplied with."""
    return weight.dtype if isinstance(weight, torch.Tensor) else weight.values.dtype
