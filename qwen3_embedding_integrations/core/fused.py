"""The dense parts of an int8 model in compiled form, all of a machine's cores on one forward.

Rows beside each other do not change a bit of a vector here, nor does the number of threads.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, wait
from functools import cached_property, partial
from itertools import pairwise
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
import torch
from llvmlite import binding

from . import fused_kernels as compiled
from . import kernels
from .attention import Attention, Segments
from .checkpoint import Architecture
from .cpu_dense import CpuDense, CpuLayer
from .fused_kernels import (
    ATTENDED,
    GROUP,
    NUM_PHASES,
    PANEL_ROWS,
    READY,
    THIN_LIMIT,
    ZERO_POINT,
    Heads,
    Matrix,
    Panel,
    Stack,
    Work,
)
from .kernels import Projected
from .linear import QuantizedWeight
from .team import limit_threads
from .tiles import BLOCK_BYTES, DEPTH, LANES, THIN_ROWS, aligned, pack_blocks
from .weights import Layer
from .workers import Workers

logger = logging.getLogger(__name__)

LLVM = 22  # Numba 0.68; before, the dot product took other types
NEEDED = ("avx512f", "avx512bw", "avx512vnni")
MAX_THREADS = 8  # on one forward: with more, each has too little to do between two phases
ALL_DONE = 1 << 40  # more than there is of anything to count

T = TypeVar("T")
Array = np.ndarray[Any, Any]
FusedLayer = int | CpuLayer  # a number is the layer's place in the stack


def obstacle(architecture: Architecture) -> str | None:
    """Return why these kernels are not for this processor, or for a model of this shape."""
    if sys.platform == "win32":  # LLVM ends the process where a symbol is missing
        return "Windows has no sched_yield"
    if binding.llvm_version_info[0] < LLVM:
        return f"Numba with LLVM {binding.llvm_version_info[0]} is too old; install 0.68 or newer"
    features = binding.get_host_cpu_features()
    if lacking := [name for name in NEEDED if not features.get(name)]:
        return f"the processor lacks {', '.join(lacking)}"
    if architecture.hidden_size % GROUP or architecture.head_dim % GROUP:
        return f"hidden and head sizes are no multiples of {GROUP}"
    return "the MLP's size is no multiple of 32" if architecture.intermediate_size % 32 else None


class FusedDense:
    """What `CpuDense` is, for layers whose four projections are int8; the others are left to it.

    Where Numba cannot compile, or keep what it compiles, the constructor raises what Numba does.
    """

    def __init__(self, architecture: Architecture, plain: CpuDense) -> None:
        a = self.architecture = architecture
        self.plain = plain
        self.eps = np.float32(a.rms_norm_eps)
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
        self.num_threads = min(torch.get_num_threads(), MAX_THREADS)
        blocks = torch.arange(2 * a.intermediate_size).view(2, -1, LANES)
        self._gate_and_up = blocks.transpose(0, 1).flatten()
        self._own = threading.local()
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
            if not isinstance(weight, QuantizedWeight):  # rounding would have harmed it
                return self.plain.pack([layer])[0]
            values, scale = weight
            if matrix is stack.gate_up:
                values, scale = values[self._gate_and_up], scale[self._gate_and_up]
            words = np.require(values.numpy(), requirements=["C", "A"]).view(np.int32)
            pack_blocks(words, matrix.values[index].view(np.int32))
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
        logger.info("int8 kernels for %s: compiled once, then kept", binding.get_host_cpu_name())
        a = self.architecture
        heads = _heads(a, torch.empty(0, dtype=torch.int64))
        rows, attended = (
            np.empty((0, a.hidden_size), np.float32),
            np.empty((0, self.width), np.float32),
        )
        work = self.work(np.full(2 * NUM_PHASES * a.num_layers, ALL_DONE, np.int64))
        panel = compiled.panel_of(0, 0)
        compiled.announce(work.counters, 0)
        pack_blocks(np.empty((0, 1), np.int32), np.empty((0, 1, LANES), np.int32))
        compiled.project(self.stack, 0, rows, heads, panel, work, 0)
        compiled.project_rows(self.stack, 0, rows, heads, 0, 0, work)
        compiled.finish(self.stack, 0, attended, rows, panel, work, 0)
        compiled.finish_rows(self.stack, 0, attended, rows, 0, 0, work)
        compiled.assist(self.stack, self.is_fused, attended, rows, heads, work)

    def begin(self, position_ids: torch.Tensor) -> Forward:
        return Forward(self, position_ids)

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
            state.announce(ATTENDED)
            self.plain.finish(layer, attended, residual, state.plain_angles)
        else:
            state.finish(layer, attended.flatten(1).numpy(), residual.numpy())
        state.layer += 1

    def norm(
        self, x: torch.Tensor | None, residual: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        return self.plain.norm(x, residual, weight)

    def lead(self) -> None:
        # OpenMP's threads would spin beside the helpers, two on each core.
        limit_threads(1)
        self._own.leads = True

    @property
    def leads(self) -> bool:
        """Whether this thread's forwards may use all threads."""
        return getattr(self._own, "leads", False)

    def spread(self, attention: Attention) -> Attention:
        def attend(
            q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, segments: Segments
        ) -> torch.Tensor:
            num_groups = q.shape[1] // k.shape[1]
            num_parts = min(getattr(self._own, "num_parts", 1), k.shape[1])
            if num_parts == 1:
                return attention(q, k, v, segments)

            def attend_with(start: int, end: int) -> torch.Tensor:
                some = q[:, start * num_groups : end * num_groups]
                return attention(some, k[:, start:end], v[:, start:end], segments)

            return torch.cat(self.shared(attend_with, k.shape[1], num_parts), dim=1)

        return attend

    def shared(self, work: Callable[[int, int], T], size: int, num_parts: int) -> list[T]:
        """Return work(start, stop) of each part of `size`, the first one's on this thread."""
        ends = [size * n // num_parts for n in range(num_parts + 1)]
        parts = [partial(work, start, end) for start, end in pairwise(ends)]
        futures = [self.helpers.submit(part) for part in parts[1:]]
        try:
            first = parts[0]()
        finally:
            wait(futures)  # or they would write on, into tensors that are given up
        return [first, *(future.result() for future in futures)]

    def set_parts(self, number: int) -> None:
        """Share wide work of this thread's forward out in so many parts."""
        self._own.num_parts = number

    @cached_property
    def helpers(self) -> Workers:
        """The threads beside those that call."""
        return Workers(self.num_threads - 1, "qwen3-helper", prepare=partial(limit_threads, 1))

    def work(self, counters: Array | None = None, shared: Work | None = None) -> Work:
        """Return this thread's room; with `shared`, another's panel beside this thread's own."""
        if not hasattr(self._own, "room"):
            a = self.architecture
            widest = max(a.hidden_size, self.width, a.intermediate_size)
            self._own.room = Work(
                x=np.empty(PANEL_ROWS * widest // DEPTH, np.int32),
                scale=np.empty(PANEL_ROWS, np.float32),
                hidden=np.empty((PANEL_ROWS, a.intermediate_size), np.float32),
                counters=np.zeros(2 * NUM_PHASES, np.int64),
                tile=np.empty(THIN_ROWS * max(a.head_dim, GROUP), np.float32),
                floats=np.empty(widest, np.float32),
                levels=np.empty(widest // DEPTH, np.int32),
                eps=self.eps,
            )
        room: Work = self._own.room
        if shared is not None:
            room = room._replace(x=shared.x, scale=shared.scale, hidden=shared.hidden)
        return room if counters is None else room._replace(counters=counters)

    def _matrix(self, num_outputs: int, num_inputs: int) -> Matrix:
        num_layers = self.architecture.num_layers
        blocks = (num_layers, num_outputs // LANES, num_inputs // DEPTH, BLOCK_BYTES)
        outputs = (num_layers, num_outputs)
        return Matrix(aligned(blocks), np.empty(outputs, np.int32), np.empty(outputs, np.float32))


class Forward:
    """One forward: its angles, and the threads that work on it.

    Few rows: all threads take pieces of every phase of a layer. Many: each has rows of its own.
    """

    def __init__(self, dense: FusedDense, position_ids: torch.Tensor) -> None:
        self.layer = 0  # the one that is being computed
        self._dense = dense
        self._position_ids = position_ids
        self._heads = _heads(dense.architecture, position_ids)
        self._num_threads = dense.num_threads if dense.leads else 1
        self._is_thin = len(position_ids) <= THIN_LIMIT
        self._counters = np.zeros(2 * NUM_PHASES * len(dense.is_fused), np.int64)
        self._assisted: _Assisted | None = None

    @cached_property
    def plain_angles(self) -> torch.Tensor:
        """The angles as `CpuDense` takes them."""
        return self._dense.plain.angles(self._position_ids)

    def __enter__(self) -> Self:
        self._dense.set_parts(1 if self._is_thin else self._num_threads)
        return self

    def __exit__(self, *_: object) -> None:
        self._dense.set_parts(1)
        if self._assisted is not None:
            self._counters.fill(ALL_DONE)  # after an error they would wait for ever
            for future in self._assisted.futures:
                future.cancel()
            wait(self._assisted.futures)

    def announce(self, phase: int) -> None:
        """Tell the helpers that this layer's phase has come."""
        compiled.announce(self._counters, self.layer * NUM_PHASES + phase)

    def project(self, layer: int, residual: Array) -> Projected:
        """Return what attention needs, in room that the next layer overwrites."""
        dense, heads = self._dense, self._heads
        if self._is_thin and self._num_threads > 1 and self._assisted is None:
            self._assisted = self._call_helpers(residual)
        if self._assisted is not None:
            panel, work = self._assisted.panel, self._assisted.work
            compiled.project(dense.stack, layer, residual, heads, panel, work, layer * NUM_PHASES)
        else:

            def project_rows(start: int, stop: int) -> None:
                compiled.project_rows(
                    dense.stack, layer, residual, heads, start, stop, dense.work()
                )

            dense.shared(project_rows, len(residual), self._num_parts(residual))
        return Projected(*(torch.from_numpy(one) for one in heads[:3]))

    def finish(self, layer: int, attended: Array, residual: Array) -> None:
        """Add what attention and the MLP come to."""
        dense = self._dense
        if self._assisted is not None and layer + 1 < len(dense.is_fused):
            work, panel, copied, _ = self._assisted
            copied[:] = attended
            self.announce(ATTENDED)
            compiled.finish(dense.stack, layer, copied, residual, panel, work, layer * NUM_PHASES)
            return
        self.announce(ATTENDED)

        def finish_rows(start: int, stop: int) -> None:
            compiled.finish_rows(dense.stack, layer, attended, residual, start, stop, dense.work())

        dense.shared(finish_rows, len(residual), self._num_parts(residual))

    def _num_parts(self, residual: Array) -> int:
        return 1 if self._is_thin else min(self._num_threads, len(residual))

    def _call_helpers(self, residual: Array) -> _Assisted:
        dense, heads = self._dense, self._heads
        attended = np.empty((len(residual), dense.width), np.float32)
        work = dense.work(self._counters)

        def assist() -> None:
            own = dense.work(self._counters, shared=work)
            compiled.assist(dense.stack, dense.is_fused, attended, residual, heads, own)

        futures = [dense.helpers.submit(assist) for _ in range(self._num_threads - 1)]
        return _Assisted(work, compiled.panel_of(0, len(residual)), attended, futures)


class _Assisted(NamedTuple):
    """What the threads of a thin forward share, beside the residual and the heads."""

    work: Work
    panel: Panel
    attended: Array  # (T, Hq D)
    futures: Sequence[Future[None]]


def _heads(architecture: Architecture, position_ids: torch.Tensor) -> Heads:
    a, num_rows = architecture, len(position_ids)
    angles = kernels.rotary_angles(position_ids, a.head_dim, a.rope_theta)
    cos, sin = (one[:, 0].contiguous().numpy() for one in angles)
    q = np.empty((num_rows, a.num_heads, a.head_dim), np.float32)
    k, v = (np.empty((num_rows, a.num_kv_heads, a.head_dim), np.float32) for _ in range(2))
    return Heads(q, k, v, cos, sin)
