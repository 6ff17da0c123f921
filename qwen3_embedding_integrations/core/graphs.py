"""CUDA graphs for small batches and single queries, by bucket.

Launching a forward's several hundred kernels one by one takes longer than computing a short query.
A graph launches them all at once, for a fixed shape at fixed addresses: so a batch is padded to a
bucket (see `layout`), its words are copied to where the bucket's graph reads them, and the
instruction's keys and values to where all graphs with room for them do. Everything happens in the
order of one stream, so a copy never overtakes the graph before it.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch

from .layout import Bucket, choose_bucket, pad_out
from .model import Plan, Qwen3Model, Texts
from .packing import PackedBatch

logger = logging.getLogger(__name__)

MAX_GRAPHS = 64  # the least recently used one goes

_capturing = threading.Lock()  # one capture at a time in a process (torch.cuda.graph's source)

# Makes of a forward without arguments one that runs the same operations at the same addresses and
# returns the same tensor, with other values.
Capture = Callable[[Callable[[], torch.Tensor]], Callable[[], torch.Tensor]]


@dataclass(frozen=True, slots=True, eq=False)
class _Graph:
    """A captured forward and the words it reads."""

    words: torch.Tensor  # Layout.words of whatever batch runs, on the device
    replay: Callable[[], torch.Tensor]


@dataclass(slots=True, eq=False)
class _PrefixSlot:
    """Where graphs with room for so many prefix tokens read them, and whose they are now."""

    tensor: torch.Tensor  # (layers, 2, room, Hk, D)
    ids: tuple[int, ...] = ()


class Graphs:
    """Runs batches that fit a bucket by its graph, captured at the first of them."""

    def __init__(
        self, model: Qwen3Model, head: Callable[[torch.Tensor], torch.Tensor], capture: Capture
    ) -> None:
        self.num_captured = 0
        self._model = model
        self._head = head
        self._capture: Capture | None = capture
        self._graphs: OrderedDict[Bucket, _Graph] = OrderedDict()
        self._prefixes: dict[int, _PrefixSlot] = {}

    @torch.inference_mode()
    def __call__(self, batch: PackedBatch) -> torch.Tensor | None:
        """Return head(hidden) of the batch, (B, W), or None where it must run without a graph.

        What is returned holds until the next call: copy it in the order of the stream.
        """
        bucket = choose_bucket(batch)
        if bucket is None or self._capture is None:
            return None
        words = pad_out(batch, bucket).words
        if bucket.prefix_rows:
            self._place(batch.prefix_ids, bucket.prefix_rows)
        graph = self._graphs.get(bucket)
        if graph is None:
            graph = self._make(bucket, self._model.to_device(words), self._capture)
            if graph is None:
                return None
        else:
            graph.words.copy_(self._model.on_host(words), non_blocking=True)
        self._graphs.move_to_end(bucket)
        return graph.replay()[: len(batch)]

    def _place(self, prefix_ids: tuple[int, ...], room: int) -> None:
        """Copy a prefix's keys and values to where graphs read them, unless they are there."""
        prefix = self._model.prefix(prefix_ids)  # (layers, 2, Hk, P, D)
        slot = self._prefixes.get(room)
        if slot is None:
            shape = (*prefix.shape[:3], room, prefix.shape[4])
            slot = self._prefixes[room] = _PrefixSlot(prefix.new_zeros(shape))
        if slot.ids != prefix_ids:
            slot.tensor[:, :, :, : len(prefix_ids)].copy_(prefix)
            slot.ids = prefix_ids

    def _make(self, bucket: Bucket, words: torch.Tensor, capture: Capture) -> _Graph | None:
        """Capture the bucket's graph, reading `words`; None, for good, where that fails."""
        texts = Texts([], [], bucket.longest, bucket.longest + bucket.prefix_rows)
        prefix = self._prefixes[bucket.prefix_rows].tensor if bucket.prefix_rows else None

        def forward() -> torch.Tensor:
            plan = Plan.of_words(words, bucket.shape, texts)
            return self._head(self._model.forward(plan, prefix))

        try:
            graph = _Graph(words, capture(forward))
        except Exception as error:  # whatever it is, the batch can still run as it is
            logger.warning("CUDA graphs are off, short batches take longer: %s", error)
            self._capture = None
            self._graphs.clear()
            return None
        self.num_captured += 1
        self._graphs[bucket] = graph
        if len(self._graphs) > MAX_GRAPHS:
            self._graphs.popitem(last=False)
        return graph


class CudaCapture:
    """Captures forwards of one device as CUDA graphs that share their memory.

    Sharing is safe because graphs run one after another on one stream, and what one leaves is
    copied away before the next.
    """

    def __init__(self, device: torch.device) -> None:
        # A stream of its own: torch's default one for captures belongs to the first device used.
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, forward: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        """Return the graph's replay; the first run, before the capture, is an ordinary one."""
        current = torch.cuda.current_stream(self._stream.device)
        # What an operation sets up at its first call (workspaces, compiled kernels) is no part of
        # a graph.
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            forward()
        current.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        with (
            _capturing,
            torch.cuda.stream(current),  # a failed capture would leave its own as the current one
            torch.cuda.graph(
                graph,
                pool=self._pool,
                stream=self._stream,
                # Other threads may allocate meanwhile, other engines on their own devices.
                capture_error_mode="thread_local",
            ),
        ):
            output = forward()

        def replay() -> torch.Tensor:
            graph.replay()
            return output

        return replay
