"""The LangChain door: Qwen3Embeddings, Qwen3Rerank, Qwen3CrossEncoder, as_retriever."""

from ..errors import needs

with needs("langchain-core", extra="langchain"):
    from .embeddings import Qwen3Embeddings
    from .rerank import Qwen3CrossEncoder, Qwen3Rerank
    from .retriever import Qwen3SearchRetriever, as_retriever

__all__ = [
    "Qwen3CrossEncoder",
    "Qwen3Embeddings",
    "Qwen3Rerank",
    "Qwen3SearchRetriever",
    "as_retriever",
]
