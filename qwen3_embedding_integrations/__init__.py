"""Qwen3-Embedding in your vector stack: one encoder behind Chroma, LangChain, LlamaIndex, Qdrant.

The public names load on first use (PEP 562): importing the package imports neither torch nor a
host. The doors are modules of their own: `qwen3_embedding_integrations.chroma`, `.langchain`,
`.llama_index`, `.qdrant`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cache import CachedEncoder, CacheStats, DiskStore, MemoryStore, RedisStore
    from .contract import EmbeddingContract, Encoder, EncoderStats
    from .core.config import EncoderConfig, RerankerConfig
    from .doctor.diagnosis import diagnose
    from .doctor.report import Check, Diagnosis, Fault
    from .encoder import Qwen3Encoder
    from .errors import (
        ConfigError,
        ContractMismatchError,
        DeviceOutOfMemoryError,
        EngineClosedError,
        EngineError,
        IndexingError,
        InputError,
        MissingDependencyError,
        ModelError,
        ModelLoadError,
        NonFiniteOutputError,
        QueueFullError,
        Qwen3EmbeddingError,
        RemoteError,
        StoreError,
        TextTooLongError,
    )
    from .evaluation import Comparison, Evaluation, compare, evaluate
    from .hybrid import HybridStore
    from .indexing import IndexReport, index_documents
    from .keywords import KeywordIndex
    from .merge import merge_lora
    from .quantize import QuantizedModel, quantize_model
    from .remote import RemoteEncoder
    from .reranker import Qwen3Reranker, RankedDocument, RerankerStats
    from .rows import Hit, SearchStore
    from .search import EncoderReranker, Qwen3Retriever, Reranker
    from .sharing import shared_encoder, shared_reranker

__all__ = [
    "CacheStats",
    "CachedEncoder",
    "Check",
    "Comparison",
    "ConfigError",
    "ContractMismatchError",
    "DeviceOutOfMemoryError",
    "Diagnosis",
    "DiskStore",
    "EmbeddingContract",
    "Encoder",
    "EncoderConfig",
    "EncoderReranker",
    "EncoderStats",
    "EngineClosedError",
    "EngineError",
    "Evaluation",
    "Fault",
    "Hit",
    "HybridStore",
    "IndexReport",
    "IndexingError",
    "InputError",
    "KeywordIndex",
    "MemoryStore",
    "MissingDependencyError",
    "ModelError",
    "ModelLoadError",
    "NonFiniteOutputError",
    "QuantizedModel",
    "QueueFullError",
    "Qwen3EmbeddingError",
    "Qwen3Encoder",
    "Qwen3Reranker",
    "Qwen3Retriever",
    "RankedDocument",
    "RedisStore",
    "RemoteEncoder",
    "RemoteError",
    "Reranker",
    "RerankerConfig",
    "RerankerStats",
    "SearchStore",
    "StoreError",
    "TextTooLongError",
    "compare",
    "diagnose",
    "evaluate",
    "index_documents",
    "merge_lora",
    "quantize_model",
    "shared_encoder",
    "shared_reranker",
]

_HOMES = {
    "CacheStats": "cache",
    "CachedEncoder": "cache",
    "Check": "doctor.report",
    "Comparison": "evaluation",
    "Diagnosis": "doctor.report",
    "DiskStore": "cache",
    "EmbeddingContract": "contract",
    "Encoder": "contract",
    "EncoderConfig": "core.config",
    "EncoderReranker": "search",
    "EncoderStats": "contract",
    "Evaluation": "evaluation",
    "Fault": "doctor.report",
    "Hit": "rows",
    "HybridStore": "hybrid",
    "IndexReport": "indexing",
    "KeywordIndex": "keywords",
    "MemoryStore": "cache",
    "QuantizedModel": "quantize",
    "Qwen3Encoder": "encoder",
    "Qwen3Reranker": "reranker",
    "Qwen3Retriever": "search",
    "RankedDocument": "reranker",
    "RedisStore": "cache",
    "RemoteEncoder": "remote",
    "Reranker": "search",
    "RerankerConfig": "core.config",
    "RerankerStats": "reranker",
    "SearchStore": "rows",
    "compare": "evaluation",
    "diagnose": "doctor.diagnosis",
    "evaluate": "evaluation",
    "index_documents": "indexing",
    "merge_lora": "merge",
    "quantize_model": "quantize",
    "shared_encoder": "sharing",
    "shared_reranker": "sharing",
}  # the rest are errors


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES.get(name, 'errors')}", __name__), name)


def __dir__() -> list[str]:
    return __all__
