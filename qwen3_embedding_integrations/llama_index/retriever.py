"""A Qwen3Retriever as LlamaIndex's BaseRetriever."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks.base import CallbackManager
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

from ..search import Hit, Qwen3Retriever


class Qwen3SearchRetriever(BaseRetriever):
    """A Qwen3Retriever for LlamaIndex: hybrid, in one or two stages.

    `similarity_top_k`, `where` and `instruction` are what `search` takes. A node's metadata holds
    the hit's facts.
    """

    def __init__(
        self,
        retriever: Qwen3Retriever,
        *,
        similarity_top_k: int = 10,  # LlamaIndex's word for limit
        where: dict[str, Any] | None = None,
        instruction: str | None = None,
        callback_manager: CallbackManager | None = None,
    ) -> None:
        self._retriever = retriever
        self._options: dict[str, Any] = {
            "limit": similarity_top_k,
            "where": where,
            "instruction": instruction,
        }
        super().__init__(callback_manager=callback_manager)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return _nodes(self._retriever.search(query_bundle.query_str, **self._options))

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return _nodes(await self._retriever.asearch(query_bundle.query_str, **self._options))


as_retriever = Qwen3SearchRetriever  # as in the LangChain door


def _nodes(hits: Sequence[Hit]) -> list[NodeWithScore]:
    return [
        NodeWithScore(node=TextNode(id_=hit.id, text=hit.text, metadata=hit.facts), score=hit.score)
        for hit in hits
    ]
