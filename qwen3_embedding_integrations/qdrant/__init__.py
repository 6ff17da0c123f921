"""The Qdrant door: Qwen3Collection, and QdrantStore for indexing."""

from ..errors import needs

with needs("qdrant-client", extra="qdrant"):
    from .client import (
        CONTRACT_KEY,
        connect,
        current_name,
        make_current,
        stored_config,
        stored_contract,
    )
    from .collection import Qwen3Collection
    from .points import DOCUMENT_KEY
    from .storage import Storage, make_version, stored_storage
    from .store import QdrantStore

__all__ = [
    "CONTRACT_KEY",
    "DOCUMENT_KEY",
    "QdrantStore",
    "Qwen3Collection",
    "Storage",
    "connect",
    "current_name",
    "make_current",
    "make_version",
    "stored_config",
    "stored_contract",
    "stored_storage",
]
