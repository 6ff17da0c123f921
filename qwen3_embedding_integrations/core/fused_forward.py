"""One forward of compiled int8 layers, and the threads that it runs on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from functools import cached_property, partial
from itertools import pairwise
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
import torch

from . import fused_kernels as compiled
from . import kernels
from .attention import Attention, Segments
from .checkpoint import Architecture
from .fused_attention import QUERIES, Heads, Room, Texts, attend_together
from .fused_kernels import (
    ALONE,
    ATTEND,
    GROUP,
    NUM_PHASES,
    PANEL_ROWS,
    THIN_LIMIT,
    Stack,
    Work,
)
from .kernels import Projected
from .pieces import announce
from .team import limit_threads
from .tiles import LANES, STEP_BYTES, THIN_ROWS
from .workers import Workers

MAX_THREADS = 8  # on one forward: with more, each has too little to do between two phases
ALL_DONE = 1 << 40  # more than there is of anything to count

T = TypeVar("T")
Array = np.ndarray[Any, Any]


class Crew:
    """The threads that forwards run on, and the room that each has of its own."""

    def __init__(self, architecture: Architecture, itemsize: int) -> None:
        """Of layers whose products read rows of `itemsize` bytes a value."""
        self._itemsize = itemsize
        self.num_threads = min(torch.get_num_threads(), MAX_THREADS)
        self._architecture = architecture
        self._own = threading.local()

    def lead(self) -> None:
        """Let this thread's forwards use all threads."""
        # OpenMP's threads would spin beside the helpers, two on each core.
        limit_threads(1)
        self._own.leads = True

    @property
    def leads(self) -> bool:
        """Whether this thread's forwards may use all threads."""
        return getattr(self._own, "leads", False)

    @property
    def forward(self) -> Forward:
        """The forward that this thread is at."""
        return self._own.forward

    @forward.setter
    def forward(self, forward: Forward | None) -> None:
        self._own.forward = forward

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

    def over_heads(self, attention: Attention) -> Attention:
        """Return the same attention, its heads shared out as the rows of a forward are."""

        def attend(
            q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, segments: Segments
        ) -> torch.Tensor:
            num_groups = q.shape[1] // k.shape[1]

            def attend_with(start: int, end: int) -> torch.Tensor:
                some = q[:, start * num_groups : end * num_groups]
                return attention(some, k[:, start:end], v[:, start:end], segments)

            num_parts = min(self.forward.num_parts(len(q)), k.shape[1])
            return torch.cat(self.shared(attend_with, k.shape[1], num_parts), dim=1)

        return attend

    @cached_property
    def helpers(self) -> Workers:
        """The threads beside those that call."""
        return Workers(self.num_threads - 1, "qwen3-helper", prepare=partial(limit_threads, 1))

    def work(
        self, counters: Array | None = None, shared: Work | None = None, *, num_keys: int = 0
    ) -> Work:
        """Return this thread's room; with `shared`, another's panel beside this thread's own.

        There is room for the scores of so many keys.
        """
        room: Work | None = getattr(self._own, "work", None)
        if room is None:
            room = self._own.work = self._make_work()
        if room.room.scores.shape[1] < num_keys + LANES:
            scores = np.empty((len(room.room.scores), num_keys + LANES), np.float32)
            room = self._own.work = room._replace(room=room.room._replace(scores=scores))
        if shared is not None:
            room = room._replace(x=shared.x, scale=shared.scale, hidden=shared.hidden)
        return room if counters is None else room._replace(counters=counters)

    def _make_work(self) -> Work:
        a = self._architecture
        num_groups = a.num_heads // a.num_kv_heads
        widest = max(a.hidden_size, a.num_heads * a.head_dim, a.intermediate_size)
        return Work(
            x=np.empty(PANEL_ROWS * widest * self._itemsize // STEP_BYTES, np.int32),
            scale=np.empty(PANEL_ROWS, np.float32),
            hidden=np.empty((PANEL_ROWS, a.intermediate_size), np.float32),
            counters=np.zeros(2 * NUM_PHASES, np.int64),
            tile=np.empty(THIN_ROWS * max(a.head_dim, GROUP), np.float32),
            floats=np.empty(widest, np.float32),
            room=Room(
                scores=np.empty((num_groups * QUERIES, LANES), np.float32),
                totals=np.empty((num_groups, QUERIES), np.float32),
                sums=np.empty((num_groups * QUERIES, a.head_dim), np.float32),
            ),
            eps=np.float32(a.rms_norm_eps),
        )


class Forward:
    """One forward: its angles and texts, and which threads work on it.

    Few rows: all threads take pieces of every phase of a layer. Many: each has rows of its own, and
    so with few where a layer's phases are not all of them here: where it does not attend.
    """

    def __init__(
        self,
        crew: Crew,
        stack: Stack,
        is_fused: Array,
        architecture: Architecture,
        position_ids: torch.Tensor,
        segments: Segments,
        prefix: torch.Tensor | None,
        *,
        attends: bool,
    ) -> None:
        a = architecture
        self._width = a.num_heads * a.head_dim
        self.layer = 0  # the one that is being computed
        self.segments = segments
        self._crew, self._stack, self._is_fused = crew, stack, is_fused
        self._architecture = architecture
        self._position_ids = position_ids
        self._heads = _heads(a, position_ids)
        if prefix is None:
            prefix = torch.empty(a.num_layers, 2, a.num_kv_heads, 0, a.head_dim)
        self._prefix: Array = prefix.numpy()
        self._num_threads = crew.num_threads if crew.leads else 1
        self._is_thin = attends and len(position_ids) <= THIN_LIMIT
        self._counters = np.zeros(2 * NUM_PHASES * len(is_fused), np.int64)
        self._whole = self._texts(segments)
        self._assisted: _Assisted | None = None

    @cached_property
    def plain_angles(self) -> torch.Tensor:
        """The angles as `CpuDense` takes them."""
        a = self._architecture
        angles = kernels.rotary_angles(self._position_ids, a.head_dim, a.rope_theta)
        return torch.complex(*angles)

    def __enter__(self) -> Self:
        self._crew.forward = self
        return self

    def __exit__(self, *_: object) -> None:
        self._crew.forward = None
        if self._assisted is not None:
            self._counters.fill(ALL_DONE)  # after an error they would wait for ever
            for future in self._assisted.futures:
                future.cancel()
            wait(self._assisted.futures)

    def announce(self, phase: int) -> None:
        """Tell the helpers that this layer's phase has come."""
        announce(self._counters, self._phase(phase))

    def project(self, layer: int, residual: Array) -> Projected:
        """Return what attention needs, in room that the next layer overwrites."""
        crew, stack, heads = self._crew, self._stack, self._heads
        if self._is_thin and self._num_threads > 1 and self._assisted is None:
            self._assisted = self._call_helpers(residual)
        if self._assisted is not None:
            work, stop = self._assisted.work, len(residual)
            compiled.project(stack, layer, residual, heads, 0, stop, work, self._phase(0))
        else:

            def project(start: int, stop: int) -> None:
                compiled.project(stack, layer, residual, heads, start, stop, crew.work(), ALONE)

            crew.shared(project, len(residual), self.num_parts(len(residual)))
        return Projected(*(torch.from_numpy(one).transpose(0, 1) for one in heads[:3]))

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, segments: Segments
    ) -> torch.Tensor:
        """Return the attention (T, Hq, D); the queries may be those of the last tokens alone."""
        prefix, layer = self._prefix, self.layer
        heads = self._heads._replace(q=_by_head(q), k=_by_head(k), v=_by_head(v))
        if self._assisted is not None and segments is self.segments and self._is_fused[layer]:
            room, out = self._assisted.work.room, self._assisted.attended
            attend_together(
                heads, prefix, layer, self._whole, room, out, self._counters, self._phase(ATTEND)
            )
            return torch.from_numpy(out).view(q.shape)
        out = np.empty((len(q), heads.q.shape[0] * heads.q.shape[2]), np.float32)
        texts, counters = self._texts(segments), np.zeros(2, np.int64)

        def attend_some(*_: int) -> None:
            room = self._crew.work(num_keys=segments.max_k).room
            attend_together(heads, prefix, layer, texts, room, out, counters, 0)

        num_parts = self.num_parts(len(q))
        self._crew.shared(attend_some, num_parts, num_parts)
        return torch.from_numpy(out).view(q.shape)

    def compile(self, rows: Array, attended: Array) -> None:
        """Compile all there is, by calls that have nothing to do."""
        stack, heads = self._stack, self._heads
        work = self._crew.work(np.full_like(self._counters, ALL_DONE))
        announce(work.counters, 0)
        attend_together(heads, self._prefix, 0, self._whole, work.room, attended, work.counters, 0)
        compiled.project(stack, 0, rows, heads, 0, 0, work, ALONE)
        compiled.finish(stack, 0, attended, rows, 0, 0, work, ALONE)
        compiled.assist(
            stack, self._is_fused, rows, heads, self._prefix, self._whole, attended, work
        )

    def finish(self, layer: int, attended: Array, residual: Array) -> None:
        """Add what attention and the MLP come to."""
        crew, stack = self._crew, self._stack
        if self._assisted is not None and layer + 1 < len(self._is_fused):
            work, stop = self._assisted.work, len(residual)
            compiled.finish(stack, layer, attended, residual, 0, stop, work, self._phase(0))
            return

        def finish(start: int, stop: int) -> None:
            compiled.finish(stack, layer, attended, residual, start, stop, crew.work(), ALONE)

        crew.shared(finish, len(residual), self.num_parts(len(residual)))

    def _phase(self, phase: int) -> int:
        return self.layer * NUM_PHASES + phase

    def num_parts(self, num_rows: int) -> int:
        """Return how many threads share what is not shared phase by phase."""
        return 1 if self._is_thin else min(self._num_threads, num_rows)

    def _call_helpers(self, residual: Array) -> _Assisted:
        crew, num_keys = self._crew, self.segments.max_k
        attended = np.empty((len(residual), self._width), np.float32)
        work = crew.work(self._counters, num_keys=num_keys)

        def assist() -> None:
            own = crew.work(self._counters, shared=work, num_keys=num_keys)
            compiled.assist(
                self._stack, self._is_fused, residual, self._heads, self._prefix, self._whole,
                attended, own,
            )  # fmt: skip

        futures = [crew.helpers.submit(assist) for _ in range(self._num_threads - 1)]
        return _Assisted(work, attended, futures)

    def _texts(self, segments: Segments) -> Texts:
        """Return where the texts lie: keys in `segments` are the prefix's as well."""
        q_lengths = np.array(segments.q_lengths, np.int64)
        k_lengths = np.array(segments.k_lengths, np.int64) - self._prefix.shape[3]
        starts = (np.cumsum(lengths) - lengths for lengths in (q_lengths, k_lengths))
        q_start, k_start = starts
        return Texts(q_start, q_lengths, k_start, k_lengths)


class _Assisted(NamedTuple):
    """What the threads of a thin forward share, beside the residual and the heads."""

    work: Work
    attended: Array  # (T, Hq D)
    futures: Sequence[Future[None]]


def _heads(architecture: Architecture, position_ids: torch.Tensor) -> Heads:
    a, num_rows = architecture, len(position_ids)
    angles = kernels.rotary_angles(position_ids, a.head_dim, a.rope_theta)
    cos, sin = (one[:, 0].contiguous().numpy() for one in angles)
    q = np.empty((a.num_heads, num_rows, a.head_dim), np.float32)
    k, v = (np.empty((a.num_kv_heads, num_rows, a.head_dim), np.float32) for _ in range(2))
    return Heads(q, k, v, cos, sin)


def _by_head(x: torch.Tensor) -> Array:
    """Return x (T, heads, D) head by head, without a copy where it lies so."""
    return np.ascontiguousarray(x.numpy().transpose(1, 0, 2))
