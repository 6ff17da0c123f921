"""Qwen3Rerank: a node postprocessor of LlamaIndex."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Literal

from llama_index.core.bridge.pydantic import ConfigDict, Field, PrivateAttr
from llama_index.core.callbacks import CBEventType, EventPayload
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle
from llama_index_instrumentation import get_dispatcher

from ..core.config import DEFAULT_RERANKER, MAX_LENGTH, RerankerConfig
from ..core.prompts import WEB_SEARCH
from ..reranker import Qwen3Reranker, RankedDocument, check_top_n
from ..sharing import shared_reranker
from .fields import EngineFields, fields_of

dispatcher = get_dispatcher(__name__)


class Qwen3Rerank(EngineFields, BaseNodePostprocessor):
    """Qwen3-Reranker for LlamaIndex: retrieved nodes best first, scores from 0 to 1.

    The options are `RerankerConfig`'s, by name, but for `model_name`, LlamaIndex's word for the
    model; or give a ready `reranker`. Of a node the reranker reads what an embedding model would:
    its text and the metadata meant for embedding. The nodes given stay as they are.
    """

    model_config = ConfigDict(extra="forbid")

    model_name: str = Field(default=DEFAULT_RERANKER, description="Hub id or folder.")
    top_n: int | None = Field(default=None, description="Nodes returned; None returns all.")
    instruction: str = Field(default=WEB_SEARCH, description="What makes a node right.")
    max_length: int = Field(default=MAX_LENGTH, description="Tokens of query and node together.")
    on_too_long: Literal["truncate", "error"] = Field(
        default="truncate", description="What to do with nodes beyond max_length."
    )

    _given: Qwen3Reranker | None = PrivateAttr(default=None)

    def __init__(self, *, reranker: Qwen3Reranker | None = None, **fields: Any) -> None:
        if reranker is not None:
            fields = fields_of("reranker", reranker.config, fields)
        super().__init__(**fields)
        self._given = reranker
        self.config()  # a value no reranker can have is refused now
        check_top_n(self.top_n)

    @classmethod
    def class_name(cls) -> str:
        """Return the name LlamaIndex serialises this class under."""
        return "Qwen3Rerank"

    def config(self) -> RerankerConfig:
        """Return these options as a RerankerConfig."""
        options = {name: getattr(self, name) for name in RerankerConfig.option_names()[1:]}
        return RerankerConfig(model=self.model_name, **options)

    @property
    def reranker(self) -> Qwen3Reranker:
        """The reranker given, or this process's for these options, loaded on first use."""
        given, config = self._given, self.config()
        # A field assigned later counts: what is serialised is what makes the scores.
        return given if given is not None and given.config == config else shared_reranker(config)

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query, texts = _read(nodes, query_bundle)
        if not nodes:
            return []
        with self._reported(nodes, query) as answer:
            return answer(self.reranker.rerank(query, texts, top_n=self.top_n))

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query, texts = _read(nodes, query_bundle)
        if not nodes:
            return []
        with self._reported(nodes, query) as answer:
            reranker = await asyncio.to_thread(lambda: self.reranker)
            return answer(await reranker.arerank(query, texts, top_n=self.top_n))

    @contextmanager
    def _reported(
        self, nodes: list[NodeWithScore], query: str
    ) -> Generator[Callable[[list[RankedDocument]], list[NodeWithScore]]]:
        """Report the start, then, with the nodes that the yielded function makes, the end."""
        top_n = self.top_n or len(nodes)
        payload: dict[str, Any] = {
            EventPayload.NODES: nodes,
            EventPayload.MODEL_NAME: self.model_name,
            EventPayload.QUERY_STR: query,
            EventPayload.TOP_K: top_n,
        }
        with self.callback_manager.event(CBEventType.RERANKING, payload=payload) as event:
            dispatcher.event(
                ReRankStartEvent(query=query, nodes=nodes, top_n=top_n, model_name=self.model_name)
            )

            def answer(ranked: list[RankedDocument]) -> list[NodeWithScore]:
                best = [
                    NodeWithScore(node=nodes[one.index].node, score=one.score) for one in ranked
                ]
                event.on_end(payload={EventPayload.NODES: best})
                dispatcher.event(ReRankEndEvent(nodes=best))
                return best

            yield answer


def _read(nodes: list[NodeWithScore], query_bundle: QueryBundle | None) -> tuple[str, list[str]]:
    """Return the query and each node's text. Raises ValueError without a query."""
    if query_bundle is None:
        raise ValueError("reranking needs the query: pass query_str or query_bundle")
    texts = [node.node.get_content(metadata_mode=MetadataMode.EMBED) for node in nodes]
    return query_bundle.query_str, texts
