"""Last hidden state to result: unit vectors, checked, on the host."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from ..errors import NonFiniteOutputError
from .devices import on_device
from .graphs import Capture, Graphs
from .model import Qwen3Model
from .packing import PackedBatch

Vectors = npt.NDArray[np.float32]


class EmbeddingHead:
    """Starts a forward and hands back what waits for its vectors."""

    def __init__(self, model: Qwen3Model, capture: Capture | None = None) -> None:
        self._model = model
        self.graphs = Graphs(model, unit_vectors, capture) if capture else None

    @torch.inference_mode()
    def __call__(self, batch: PackedBatch) -> Callable[[], Vectors]:
        """Launch the batch; the returned function waits for its unit vectors, (B, H) float32."""
        with on_device(self._model.device):
            vectors = self.graphs(batch) if self.graphs else None
            if vectors is None:
                vectors = unit_vectors(self._model(batch))
            if not vectors.is_cuda:
                if self.graphs:
                    vectors = vectors.clone()  # a graph's own tensor is the next call's too
                return lambda: self._checked(vectors.cpu().numpy())
            return self._copied(vectors)

    def _copied(self, vectors: torch.Tensor) -> Callable[[], Vectors]:
        """Start the copy to the host; the returned function waits for it."""
        on_host = torch.empty(vectors.shape, dtype=torch.float32, pin_memory=True)
        on_host.copy_(vectors, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record(torch.cuda.current_stream(vectors.device))

        def wait() -> Vectors:
            copied.synchronize()
            return self._checked(on_host.numpy())

        return wait

    def _checked(self, vectors: Vectors) -> Vectors:
        if np.isfinite(vectors).all():
            return vectors
        num_bad = int((~np.isfinite(vectors).all(axis=1)).sum())
        name = str(self._model.weights_dtype).removeprefix("torch.")
        remedy = {
            "float16": 'use dtype="bfloat16", or "float32" where the device lacks it',
            "bfloat16": 'try dtype="float32"; if that fails too, the weights are damaged',
            "float32": "the weights are damaged: download them again",
        }[name]
        raise NonFiniteOutputError(
            f"{num_bad} of {len(vectors)} vectors hold NaN or inf in {name}; {remedy}"
        )


def unit_vectors(hidden: torch.Tensor) -> torch.Tensor:
    """Return each row (B, H) at unit length, float32."""
    return F.normalize(hidden.float(), dim=-1)
