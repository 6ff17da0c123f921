"""The LangChain door: Qwen3Embeddings, Qwen3Rerank, Qwen3CrossEncoder, as_retriever."""

from ..errors import MissingDependencyError

try:
    from .embeddings import Qwen3Embeddings
    from .rerank import Qwen3CrossEncoder, Qwen3Rerank
    from .retriever import Qwen3SearchRetriever, as_retriever
except ImportError as error:
    raise MissingDependencyError("langchain-core", extra="langchain", reason=error) from error

__all__ = [
    "Qwen3CrossEncoder",
    "Qwen3Embeddings",
    "Qwen3Rerank",
    "Qwen3SearchRetriever",
    "as_retriever",
]
