"""The LlamaIndex door: Qwen3Embedding, Qwen3Rerank, as_retriever."""

from ..errors import needs

with needs("llama-index-core", extra="llama-index"):
    from .embedding import Qwen3Embedding
    from .rerank import Qwen3Rerank
    from .retriever import Qwen3SearchRetriever, as_retriever

__all__ = ["Qwen3Embedding", "Qwen3Rerank", "Qwen3SearchRetriever", "as_retriever"]
