"""The LlamaIndex door: Qwen3Embedding, Qwen3Rerank."""

from ..errors import MissingDependencyError

try:
    from .embedding import Qwen3Embedding
    from .rerank import Qwen3Rerank
except ImportError as error:
    raise MissingDependencyError("llama-index-core", extra="llama-index", reason=error) from error

__all__ = ["Qwen3Embedding", "Qwen3Rerank"]
