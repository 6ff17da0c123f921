"""The Qdrant door: Qwen3Collection, and QdrantStore for indexing."""

from ..errors import MissingDependencyError

try:
    from .collection import (
        CONTRACT_KEY,
        Qwen3Collection,
        connect,
        stored_config,
        stored_contract,
    )
    from .points import DOCUMENT_KEY
    from .store import QdrantStore
except ImportError as error:
    raise MissingDependencyError("qdrant-client", extra="qdrant", reason=error) from error

__all__ = [
    "CONTRACT_KEY",
    "DOCUMENT_KEY",
    "QdrantStore",
    "Qwen3Collection",
    "connect",
    "stored_config",
    "stored_contract",
]
