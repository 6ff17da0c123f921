"""Qwen3-Embedding in your vector stack: one encoder behind Chroma, LangChain, LlamaIndex, Qdrant.

The public names load on first use (PEP 562): importing the package imports neither torch nor a
host. The doors are modules of their own: `qwen3_embedding_integrations.chroma`, `.langchain`,
`.llama_index`, `.qdrant`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .contract import EmbeddingContract, Encoder, EncoderStats
    from .core.config import EncoderConfig
    from .doctor.diagnosis import diagnose
    from .doctor.faults import Check, Diagnosis, Fault
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
        Qwen3EmbeddingError,
        RemoteError,
        StoreError,
        TextTooLongError,
    )
    from .indexing import IndexReport, index_documents
    from .quantize import QuantizedModel, quantize_model
    from .remote import RemoteEncoder
    from .sharing import shared_encoder

__all__ = [
    "Check",
    "ConfigError",
    "ContractMismatchError",
    "DeviceOutOfMemoryError",
    "Diagnosis",
    "EmbeddingContract",
    "Encoder",
    "EncoderConfig",
    "EncoderStats",
    "EngineClosedError",
    "EngineError",
    "Fault",
    "IndexReport",
    "IndexingError",
    "InputError",
    "MissingDependencyError",
    "ModelError",
    "ModelLoadError",
    "NonFiniteOutputError",
    "QuantizedModel",
    "Qwen3EmbeddingError",
    "Qwen3Encoder",
    "RemoteEncoder",
    "RemoteError",
    "StoreError",
    "TextTooLongError",
    "diagnose",
    "index_documents",
    "quantize_model",
    "shared_encoder",
]

_HOMES = {
    "Check": "doctor.faults",
    "Diagnosis": "doctor.faults",
    "EmbeddingContract": "contract",
    "Encoder": "contract",
    "EncoderConfig": "core.config",
    "EncoderStats": "contract",
    "Fault": "doctor.faults",
    "IndexReport": "indexing",
    "QuantizedModel": "quantize",
    "Qwen3Encoder": "encoder",
    "RemoteEncoder": "remote",
    "diagnose": "doctor.diagnosis",
    "index_documents": "indexing",
    "quantize_model": "quantize",
    "shared_encoder": "sharing",
}  # the rest are errors


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES.get(name, 'errors')}", __name__), name)


def __dir__() -> list[str]:
    return __all__
