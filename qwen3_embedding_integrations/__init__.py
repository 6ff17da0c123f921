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
    from .export.command import ExportedModel, export_model
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
    "ExportedModel",
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
    "export_model",
    "index_documents",
    "merge_lora",
    "quantize_model",
    "shared_encoder",
    "shared_reranker",
]

_HOMES = {
    "cache": {"CacheStats", "CachedEncoder", "DiskStore", "MemoryStore", "RedisStore"},
    "contract": {"EmbeddingContract", "Encoder", "EncoderStats"},
    "core.config": {"EncoderConfig", "RerankerConfig"},
    "doctor.diagnosis": {"diagnose"},
    "doctor.report": {"Check", "Diagnosis", "Fault"},
    "encoder": {"Qwen3Encoder"},
    "evaluation": {"Comparison", "Evaluation", "compare", "evaluate"},
    "export.command": {"ExportedModel", "export_model"},
    "hybrid": {"HybridStore"},
    "indexing": {"IndexReport", "index_documents"},
    "keywords": {"KeywordIndex"},
    "merge": {"merge_lora"},
    "quantize": {"QuantizedModel", "quantize_model"},
    "remote": {"RemoteEncoder"},
    "reranker": {"Qwen3Reranker", "RankedDocument", "RerankerStats"},
    "rows": {"Hit", "SearchStore"},
    "search": {"EncoderReranker", "Qwen3Retriever", "Reranker"},
    "sharing": {"shared_encoder", "shared_reranker"},
}  # the rest are errors


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = next((home for home, names in _HOMES.items() if name in names), "errors")
    return getattr(import_module(f".{home}", __name__), name)


def __dir__() -> list[str]:
    return __all__
