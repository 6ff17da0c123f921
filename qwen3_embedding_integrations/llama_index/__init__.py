"""The LlamaIndex door: Qwen3Embedding, Qwen3Rerank, as_retriever."""

from ..errors import MissingDependencyError

try:
    from .embedding import Qwen3Embedding
    from .rerank import Qwen3Rerank
    from .retriever import Qwen3SearchRetriever, as_retriever
except ImportError as error:
    raise MissingDependencyError("llama-index-core", extra="llama-index", reason=error) from error

__all__ = ["Qwen3Embedding", "Qwen3Rerank", "Qwen3SearchRetriever", "as_retriever"]
