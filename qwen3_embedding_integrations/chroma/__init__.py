"""The Chroma door: Qwen3EmbeddingFunction, open_collection, and ChromaStore for indexing."""

from ..errors import needs

with needs("chromadb", extra="chroma"):
    from .client import connect, set_timeout
    from .collection import (
        CONTRACT_KEY,
        find_collection,
        make_current,
        make_version,
        open_collection,
        stored_config,
        stored_contract,
    )
    from .function import NAME, Qwen3EmbeddingFunction
    from .store import ChromaStore

__all__ = [
    "CONTRACT_KEY",
    "NAME",
    "ChromaStore",
    "Qwen3EmbeddingFunction",
    "connect",
    "find_collection",
    "make_current",
    "make_version",
    "open_collection",
    "set_timeout",
    "stored_config",
    "stored_contract",
]
