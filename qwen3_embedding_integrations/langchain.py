"""The LangChain door: Qwen3Embeddings, Qwen3SearchRetriever."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Unpack

from .contract import Encoder
from .core.config import DEFAULT_MODEL, EncoderConfig, EncoderOptions
from .errors import ConfigError, MissingDependencyError
from .search import Hit, Qwen3Retriever
from .sharing import shared_encoder

try:
    from langchain_core.callbacks import (
        AsyncCallbackManagerForRetrieverRun,
        CallbackManagerForRetrieverRun,
    )
    from langchain_core.documents import Document
    from langchain_core.embeddings import Embeddings
    from langchain_core.retrievers import BaseRetriever
    from pydantic import ConfigDict
except ImportError as error:
    raise MissingDependencyError("langchain-core", extra="langchain", reason=error) from error


class Qwen3Embeddings(Embeddings):
    """Qwen3-Embedding for LangChain: documents bare, queries behind the instruction.

    Takes every option of `EncoderConfig` by name, or a ready `encoder`. The model loads with the
    first text and is shared by all that ask for the same one in this process; concurrent calls,
    from threads or coroutines, run together on the device.

    >>> from qwen3_embedding_integrations.langchain import Qwen3Embeddings
    >>> embeddings = Qwen3Embeddings("tiny", dimensions=128)
    >>> len(embeddings.embed_query("How do I reset my password?"))
    128
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        encoder: Encoder | None = None,
        **options: Unpack[EncoderOptions],
    ) -> None:
        if encoder is not None and (options or model):
            raise ConfigError("give either encoder or options, not both")
        self._given = encoder
        self._config = EncoderConfig.from_options(model or DEFAULT_MODEL, **options)

    @property
    def encoder(self) -> Encoder:
        """The encoder given, or this process's for these options, loaded on first use."""
        return self._given or shared_encoder(self._config)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return one unit vector per text, in order."""
        return self.encoder.encode_documents(texts).tolist()

    def embed_query(self, text: str) -> list[float]:
        """Return the query's unit vector."""
        return self.encoder.encode_queries([text])[0].tolist()

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return what `embed_documents` returns, without blocking the event loop."""
        encoder = await self._aencoder()
        return (await encoder.aencode_documents(texts)).tolist()

    async def aembed_query(self, text: str) -> list[float]:
        """Return what `embed_query` returns, without blocking the event loop."""
        encoder = await self._aencoder()
        return (await encoder.aencode_queries([text]))[0].tolist()

    async def _aencoder(self) -> Encoder:
        return self._given or await asyncio.to_thread(shared_encoder, self._config)

    def __repr__(self) -> str:
        return f"Qwen3Embeddings({self._given or self._config!r})"


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
