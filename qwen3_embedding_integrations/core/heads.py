"""Last hidden state to result, checked, on the host: unit vectors, or the probability of "yes"."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

from ..errors import NonFiniteOutputError
from .devices import on_device
from .graphs import Capture, Graphs
from .model import Qwen3Model
from .packing import PackedBatch
from .streaming import Vectors

Read = Callable[[torch.Tensor], torch.Tensor]  # last hidden states (B, H) to results (B, R)


class Head:
    """Starts a forward and hands back what waits for its results.

    `width` is the numbers of a result, R; `results` is what they are called in a message.
    """

    def __init__(
        self,
        model: Qwen3Model,
        read: Read,
        *,
        width: int,
        results: str,
        capture: Capture | None = None,
    ) -> None:
        self.computed = model.computed
        self.width = width
        self.results = results
        self._model = model
        # A function, no method: graphs that held this head would keep the weights on the card
        # until Python's collector of cycles comes by.
        self._read = read
        self.graphs = Graphs(model, read, capture) if capture else None

    @torch.inference_mode()
    def __call__(self, batch: PackedBatch) -> Callable[[], Vectors]:
        """Launch the batch; the returned function waits for its results, (B, R) float32."""
        self.computed.add(batch.num_tokens)
        with on_device(self._model.device):
            vectors = self.graphs(batch) if self.graphs else None
            if vectors is None:
                vectors = self._read(self._model(batch))
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
            f"{num_bad} of {len(vectors)} {self.results} hold NaN or inf in {name}; {remedy}"
        )


def embedding_head(model: Qwen3Model, capture: Capture | None = None) -> Head:
    """Return what gives each text's unit vector, (B, H)."""
    width = model.architecture.hidden_size
    return Head(model, unit_vectors, width=width, results="vectors", capture=capture)


def reranking_head(
    model: Qwen3Model, answers: torch.Tensor, capture: Capture | None = None
) -> Head:
    """Return what gives the probability that the next token is "yes" and not "no", (B, 1).

    `answers` are the output layer's rows of "yes" and "no", (2, H).
    """
    yes, no = answers.to(model.device, torch.float32)
    read = partial(_probability, yes - no)
    return Head(model, read, width=1, results="scores", capture=capture)


def unit_vectors(hidden: torch.Tensor) -> torch.Tensor:
    """Return each row (B, H) at unit length, float32."""
    return F.normalize(hidden.float(), dim=-1)


def _probability(direction: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    # The softmax over two logits is the sigmoid of their difference.
    return torch.sigmoid(hidden.float() @ direction)[:, None]
