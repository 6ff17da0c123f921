"""The Qdrant door: Qwen3Collection, and QdrantStore for indexing."""

from ..errors import MissingDependencyError

try:
    from .client import (
        CONTRACT_KEY,
        connect,
        current_name,
        make_current,
        make_version,
        stored_config,
        stored_contract,
    )
    from .collection import Qwen3Collection
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
    "current_name",
    "make_current",
    "make_version",
    "stored_config",
    "stored_contract",
]
