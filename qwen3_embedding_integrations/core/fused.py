"""The dense parts of an int8 or bfloat16 model in compiled form, all cores on one forward.

Rows beside each other do not change a bit of a vector here, nor does the number of threads.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable

import numpy as np
import torch
from llvmlite import binding

from .attention import Attention, PrefixedAttention, Segments, behind_prefix
from .checkpoint import Architecture
from .cpu_dense import CpuDense, CpuLayer
from .fused_forward import Array, Crew, Forward
from .fused_kernels import GROUP, READY, Matrix, Stack
from .kernels import Projected
from .linear import QuantizedWeight
from .tiles import BLOCK_BYTES, LANES, STEP_BYTES, ZERO_POINT, aligned, pack_blocks
from .weights import Layer

logger = logging.getLogger(__name__)

LLVM = 22  # Numba 0.68; before, the dot product took other types
# Of each type: what the processor must have, and what it must not, as oneDNN has much faster
# products for it there (by arithmetic, eight and sixteen times; not measured).
FEATURES = {
    torch.int8: (("avx512f", "avx512bw", "avx512vnni"), "amx-int8"),
    torch.bfloat16: (("avx512f", "avx512bw", "avx512bf16"), "amx-bf16"),
}
FusedLayer = int | CpuLayer  # a number is the layer's place in the stack


def obstacle(architecture: Architecture, dtype: torch.dtype) -> str | None:
    """Return why these kernels are not for this processor, or for weights of this shape."""
    if sys.platform == "win32":  # LLVM ends the process where a symbol is missing
        return "Windows has no sched_yield"
    if binding.llvm_version_info[0] < LLVM:
        return f"Numba with LLVM {binding.llvm_version_info[0]} is too old; install 0.68 or newer"
    features = binding.get_host_cpu_features()
    needed, better = FEATURES[dtype]
    if lacking := [name for name in needed if not features.get(name)]:
        return f"the processor lacks {', '.join(lacking)}"
    if features.get(better):
        return f"the processor has {better}, which oneDNN's products use and these do not"
    if architecture.hidden_size % GROUP or architecture.head_dim % GROUP:
        return f"hidden and head sizes are no multiples of {GROUP}"
    return "the MLP's size is no multiple of 32" if architecture.intermediate_size % 32 else None


class FusedDense:
    """What `CpuDense` is, for layers whose four projections have this dtype: int8 or bfloat16.

    The others are left to it.

    Where Numba cannot compile, or keep what it compiles, the constructor raises what Numba does.
    """

    max_imbalance = 1.05  # all threads on one forward wait for each other four times a layer

    def __init__(self, architecture: Architecture, plain: CpuDense, dtype: torch.dtype) -> None:
        a = self.architecture = architecture
        self.dtype = dtype
        self.plain = plain
        self.width = a.num_heads * a.head_dim  # of all queries of a token
        self.stack = Stack(
            qkv=self._matrix(self.width + 2 * a.num_kv_heads * a.head_dim, a.hidden_size),
            o=self._matrix(a.hidden_size, self.width),
            gate_up=self._matrix(2 * a.intermediate_size, a.hidden_size),
            down=self._matrix(a.hidden_size, a.intermediate_size),
            input_norm=np.empty((a.num_layers, a.hidden_size), np.float32),
            mlp_norm=np.empty((a.num_layers, a.hidden_size), np.float32),
            q_norm=np.empty((a.num_layers, a.head_dim), np.float32),
            k_norm=np.empty((a.num_layers, a.head_dim), np.float32),
        )
        self.is_fused = np.zeros(a.num_layers, np.bool_)
        self._crew = Crew(a, dtype.itemsize)
        self._attends = True
        blocks = torch.arange(2 * a.intermediate_size).view(2, -1, LANES)
        self._gate_and_up = blocks.transpose(0, 1).flatten()
        self._compile()

    def pack(self, layers: Iterable[Layer]) -> list[FusedLayer]:
        return [self._packed(index, layer) for index, layer in enumerate(layers)]

    def _packed(self, index: int, layer: Layer) -> FusedLayer:
        stack = self.stack
        for matrix, weight in (
            (stack.qkv, layer.qkv),
            (stack.o, layer.o),
            (stack.gate_up, layer.gate_up),
            (stack.down, layer.down),
        ):
            values = weight.values if isinstance(weight, QuantizedWeight) else weight
            if values.dtype != self.dtype:  # rounding would have harmed it
                return self.plain.pack([layer])[0]
            if matrix is stack.gate_up:
                values = values[self._gate_and_up]
            bits = values.view(torch.int8).numpy()
            words = np.require(bits, requirements=["C", "A"]).view(np.int32)
            blocks = matrix.values[index].view(np.int32)

            def pack(start: int, stop: int, words: Array = words, blocks: Array = blocks) -> None:
                pack_blocks(words[start * LANES : stop * LANES], blocks[start:stop])

            self._crew.shared(pack, len(blocks), self._crew.num_threads)
            if isinstance(weight, QuantizedWeight):
                scale = weight.scale
                if matrix is stack.gate_up:
                    scale = scale[self._gate_and_up]
                sums = values.sum(1, dtype=torch.int32)
                matrix.offset[index] = sums.mul_(ZERO_POINT).numpy()
                matrix.scale[index] = scale.numpy()
        stack.input_norm[index] = layer.input_norm.float().numpy()
        stack.mlp_norm[index] = layer.post_attention_norm.float().numpy()
        stack.q_norm[index] = layer.q_norm.float().numpy()
        stack.k_norm[index] = layer.k_norm.float().numpy()
        self.is_fused[index] = True
        return index

    def _compile(self) -> None:
        """Compile what this machine has not compiled yet, by calls that have nothing to do."""
        logger.info("kernels for %s: compiled once, then kept", binding.get_host_cpu_name())
        a = self.architecture
        empty = torch.empty(0, dtype=torch.int64)
        forward = self.begin(empty, Segments([], [], empty, empty), None)
        rows, attended = (np.empty((0, n), np.float32) for n in (a.hidden_size, self.width))
        pack_blocks(np.empty((0, 1), np.int32), np.empty((0, 1, LANES), np.int32))
        forward.compile(rows, attended)

    def begin(
        self, position_ids: torch.Tensor, segments: Segments, prefix: torch.Tensor | None
    ) -> Forward:
        return Forward(
            self._crew, self.stack, self.is_fused, self.architecture,
            position_ids, segments, prefix, attends=self._attends,
        )  # fmt: skip

    def project(
        self, layer: FusedLayer, x: torch.Tensor | None, residual: torch.Tensor, state: Forward
    ) -> Projected:
        state.announce(READY)
        if isinstance(layer, CpuLayer):
            return self.plain.project(layer, x, residual, state.plain_angles)
        return state.project(layer, residual.numpy())

    def finish(
        self, layer: FusedLayer, attended: torch.Tensor, residual: torch.Tensor, state: Forward
    ) -> None:
        if isinstance(layer, CpuLayer):
            self.plain.finish(layer, attended, residual, state.plain_angles)
        else:
            state.finish(layer, attended.flatten(1).numpy(), residual.numpy())
        state.layer += 1

    def norm(
        self, x: torch.Tensor | None, residual: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        return self.plain.norm(x, residual, weight)

    def lead(self) -> None:
        self._crew.lead()

    def spread(self, attention: Attention, *, may_replace: bool = True) -> PrefixedAttention:
        self._attends = may_replace
        if not may_replace:
            return behind_prefix(self._crew.over_heads(attention))

        # The prefix is known to the forward.
        return lambda q, k, v, segments, _: self._crew.forward.attend(q, k, v, segments)

    def _matrix(self, num_outputs: int, num_inputs: int) -> Matrix:
        num_layers, is_int8 = self.architecture.num_layers, self.dtype == torch.int8
        depth = num_inputs * self.dtype.itemsize // STEP_BYTES
        blocks = aligned((num_layers, num_outputs // LANES, depth, BLOCK_BYTES))
        outputs = (num_layers, num_outputs) if is_int8 else (0, 0)
        kind = np.int8(0) if is_int8 else np.uint16(0)
        return Matrix(kind, blocks, np.empty(outputs, np.int32), np.empty(outputs, np.float32))
