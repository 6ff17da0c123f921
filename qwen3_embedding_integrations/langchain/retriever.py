"""A Qwen3Retriever as LangChain's BaseRetriever."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.callbacks import (
    AsyncCallbackManagerForRetrieverRun,
    CallbackManagerForRetrieverRun,
)
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from pydantic import ConfigDict

from ..errors import ConfigError
from ..search import Hit, Qwen3Retriever


class Qwen3SearchRetriever(BaseRetriever):
    """A Qwen3Retriever for LangChain: hybrid, in one or two stages.

    `k`, `where` and `instruction` are what `search` takes, and may be given to `invoke` as well.
    A document's metadata holds the hit's facts and its `score`.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    retriever: Qwen3Retriever
    k: int = 10  # LangChain's word for limit
    where: dict[str, Any] | None = None
    instruction: str | None = None

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **given: Any
    ) -> list[Document]:
        return _documents(self.retriever.search(query, **self._options(given)))

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **given: Any
    ) -> list[Document]:
        return _documents(await self.retriever.asearch(query, **self._options(given)))

    def _options(self, given: dict[str, Any]) -> dict[str, Any]:
        if unknown := sorted(set(given) - {"k", "where", "instruction"}):
            raise ConfigError(f"unknown options: {', '.join(unknown)}; k, where, instruction are")
        own: dict[str, Any] = {"k": self.k, "where": self.where, "instruction": self.instruction}
        options = {**own, **given}
        return {"limit": options.pop("k"), **options}


def as_retriever(
    retriever: Qwen3Retriever,
    *,
    k: int = 10,
    where: dict[str, Any] | None = None,
    instruction: str | None = None,
) -> Qwen3SearchRetriever:
    """Return the retriever as LangChain's BaseRetriever, with these options of `search`."""
    return Qwen3SearchRetriever(retriever=retriever, k=k, where=where, instruction=instruction)


def _documents(hits: Sequence[Hit]) -> list[Document]:
    return [
        Document(id=hit.id, page_content=hit.text, metadata={**hit.facts, "score": hit.score})
        for hit in hits
    ]
