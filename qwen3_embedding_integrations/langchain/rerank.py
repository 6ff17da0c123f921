"""Qwen3Rerank and Qwen3CrossEncoder: Qwen3-Reranker as LangChain's compressor and cross-encoder."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Unpack

from langchain_core.cross_encoders import BaseCrossEncoder
from langchain_core.documents import BaseDocumentCompressor, Document
from pydantic import PrivateAttr

from ..core.config import DEFAULT_RERANKER, RerankerConfig, RerankerOptions
from ..errors import ConfigError
from ..reranker import Qwen3Reranker, RankedDocument, check_top_n
from ..sharing import shared_reranker

if TYPE_CHECKING:
    from langchain_core.callbacks import Callbacks


class Qwen3Rerank(BaseDocumentCompressor):
    """Qwen3-Reranker for LangChain: retrieved documents best first, each with its score.

    Takes every option of `RerankerConfig` by name, or a ready `reranker`, and goes wherever a
    document compressor goes, such as a `ContextualCompressionRetriever`. The model loads with the
    first query and is shared by all that ask for the same one in this process.
    """

    config: RerankerConfig
    top_n: int | None = None  # None: all documents are returned

    _given: Qwen3Reranker | None = PrivateAttr(default=None)

    def __init__(
        self,
        model: str | None = None,
        *,
        top_n: int | None = None,
        reranker: Qwen3Reranker | None = None,
        **options: Unpack[RerankerOptions],
    ) -> None:
        check_top_n(top_n)
        fields: dict[str, Any] = {"config": _config(model, reranker, options), "top_n": top_n}
        super().__init__(**fields)
        self._given = reranker

    @property
    def reranker(self) -> Qwen3Reranker:
        """The reranker given, or this process's for these options, loaded on first use."""
        return self._given or shared_reranker(self.config)

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """Return copies of the best documents, best first, with `relevance_score` in metadata."""
        if not documents:
            return []
        texts = [document.page_content for document in documents]
        return _copies(documents, self.reranker.rerank(query, texts, top_n=self.top_n))

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> list[Document]:
        """Return what `compress_documents` returns, without blocking the event loop."""
        if not documents:
            return []
        texts = [document.page_content for document in documents]
        reranker = self._given or await asyncio.to_thread(shared_reranker, self.config)
        return _copies(documents, await reranker.arerank(query, texts, top_n=self.top_n))


class Qwen3CrossEncoder(BaseCrossEncoder):
    """Qwen3-Reranker as LangChain's cross-encoder, for what takes one: `CrossEncoderReranker`.

    Takes what `Qwen3Rerank` takes, which keeps the scores, as `CrossEncoderReranker` does not.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        reranker: Qwen3Reranker | None = None,
        **options: Unpack[RerankerOptions],
    ) -> None:
        self._given = reranker
        self._config = _config(model, reranker, options)

    @property
    def reranker(self) -> Qwen3Reranker:
        """The reranker given, or this process's for these options, loaded on first use."""
        return self._given or shared_reranker(self._config)

    def score(self, text_pairs: list[tuple[str, str]]) -> list[float]:
        """Return one score in [0, 1] per (query, document), in order."""
        return self.reranker.score_pairs(text_pairs).tolist() if text_pairs else []

    def __repr__(self) -> str:
        return f"Qwen3CrossEncoder({self._given or self._config!r})"


def _config(
    model: str | None, reranker: Qwen3Reranker | None, options: RerankerOptions
) -> RerankerConfig:
    if reranker is None:
        return RerankerConfig.from_options(model or DEFAULT_RERANKER, **options)
    if options or model:
        raise ConfigError("give either reranker or options, not both")
    return reranker.config


def _copies(documents: Sequence[Document], ranked: list[RankedDocument]) -> list[Document]:
    return [
        documents[one.index].model_copy(
            update={"metadata": {**documents[one.index].metadata, "relevance_score": one.score}}
        )
        for one in ranked
    ]
