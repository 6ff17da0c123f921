"""The engines that the GPU benchmark compares, each from token ids to vectors on the host."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.gpu_workload import TokenIds
from qwen3_embedding_integrations import EncoderConfig, Qwen3Encoder
from qwen3_embedding_integrations.core.loading import load_model
from qwen3_embedding_integrations.core.prompts import WEB_SEARCH, format_queries

Vectors = np.ndarray[Any, np.dtype[np.float32]]

MAX_PADDED_TOKENS = 262_144  # of another engine's batch; more would not fit any card's memory


class Engine(Protocol):
    """What is asked of every engine."""

    name: str

    def embed(self, texts: Sequence[TokenIds], batch_size: int) -> Vectors:
        """Return unit vectors (N, H), in order; ours makes its own batches."""
        ...

    def query(self, queries: list[str]) -> Vectors:
        """Return unit vectors of queries behind the default instruction, from their strings."""
        ...

    def documents(self, documents: list[str], batch_size: int) -> Vectors:
        """Return unit vectors of documents, from their strings."""
        ...

    def close(self) -> None:
        """Free the device's memory."""
        ...


class Ours:
    """This package, loaded as its users load it."""

    def __init__(self, folder: Path, device: str, **options: Any) -> None:
        self.name = "ours " + str(options.get("quantization") or options["dtype"])
        config = EncoderConfig.from_options(str(folder), device=device, **options)
        self.loaded = load_model(config.engine)
        self.encoder = Qwen3Encoder.over(self.loaded, config)

    def embed(self, texts: Sequence[TokenIds], batch_size: int) -> Vectors:
        del batch_size
        return self.loaded.engine.submit(texts).future.result()

    def embed_behind(self, prefix_ids: tuple[int, ...], texts: Sequence[TokenIds]) -> Vectors:
        """Return the vectors of texts read behind a prefix whose keys and values are kept."""
        return self.loaded.engine.submit(texts, prefix_ids).future.result()

    def query(self, queries: list[str]) -> Vectors:
        return self.encoder.encode_queries(queries)

    def documents(self, documents: list[str], batch_size: int) -> Vectors:
        del batch_size
        return self.encoder.encode_documents(documents, show_progress=False)

    def close(self) -> None:
        self.encoder.close()
        del self.encoder, self.loaded
        _free()


class Transformers:
    """transformers' Qwen3Model on batches of neighbours in length, padded on the left."""

    def __init__(self, folder: Path, device: str, dtype: str) -> None:
        from transformers import AutoTokenizer, Qwen3Model

        self.name = f"transformers {dtype}"
        self.device = device
        self.model = Qwen3Model.from_pretrained(
            folder, dtype=getattr(torch, dtype), attn_implementation="sdpa"
        )
        self.model = self.model.eval().to(device)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    @torch.inference_mode()
    def embed(self, texts: Sequence[TokenIds], batch_size: int) -> Vectors:
        def forward(ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
            hidden = self.model(ids, attention_mask=mask, use_cache=False).last_hidden_state
            return F.normalize(hidden[:, -1].float(), dim=-1)

        return _in_batches(texts, batch_size, self.device, forward)

    def query(self, queries: list[str]) -> Vectors:
        return self.documents(format_queries(queries, WEB_SEARCH), len(queries))

    def documents(self, documents: list[str], batch_size: int) -> Vectors:
        rows = self.tokenizer(documents)["input_ids"]
        return self.embed([np.array(ids, np.int32) for ids in rows], batch_size)

    def close(self) -> None:
        del self.model
        _free()


class SentenceTransformers:
    """sentence-transformers with the same weights in the same dtype."""

    def __init__(self, folder: Path, device: str, dtype: str) -> None:
        from sentence_transformers import SentenceTransformer

        self.name = f"sentence-transformers {dtype}"
        self.device = device
        self.model = SentenceTransformer(
            str(folder),
            device=device,
            model_kwargs={"dtype": getattr(torch, dtype)},
            config_kwargs={"use_cache": False},
            local_files_only=True,
        )
        self.lock = threading.Lock()  # its tokenizer is one caller's at a time

    @torch.inference_mode()
    def embed(self, texts: Sequence[TokenIds], batch_size: int) -> Vectors:
        def forward(ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
            mask = torch.ones_like(ids) if mask is None else mask
            features = self.model({"input_ids": ids, "attention_mask": mask})
            return F.normalize(features["sentence_embedding"].float(), dim=-1)

        return _in_batches(texts, batch_size, self.device, forward)

    def query(self, queries: list[str]) -> Vectors:
        return self.documents(format_queries(queries, WEB_SEARCH), len(queries))

    def documents(self, documents: list[str], batch_size: int) -> Vectors:
        with self.lock:
            return self.model.encode(
                documents,
                batch_size=batch_size,
                normalize_embeddings=True,
                show_progress_bar=False,
            )

    def close(self) -> None:
        del self.model
        _free()


def _in_batches(
    texts: Sequence[TokenIds],
    batch_size: int,
    device: str,
    forward: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor],
) -> Vectors:
    """Return forward's vectors of all texts: longest first, padded on the left, few at a time."""
    order = sorted(range(len(texts)), key=lambda row: -len(texts[row]))
    vectors: list[Vectors] = []
    start = 0
    while start < len(order):
        longest = len(texts[order[start]])
        stop = start + max(1, min(batch_size, MAX_PADDED_TOKENS // longest))
        some = [texts[row] for row in order[start:stop]]
        ids = np.zeros((len(some), longest), np.int64)
        mask = np.zeros_like(ids)
        for row, text in enumerate(some):
            ids[row, longest - len(text) :] = text
            mask[row, longest - len(text) :] = 1
        is_even = bool(mask.all())
        on_device = torch.from_numpy(ids).to(device)
        seen = None if is_even else torch.from_numpy(mask).to(device)
        vectors.append(forward(on_device, seen).cpu().numpy())
        start = stop
    result = np.empty((len(texts), vectors[0].shape[1]), np.float32)
    result[order] = np.concatenate(vectors)
    return result


def _free() -> None:
    import gc

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
