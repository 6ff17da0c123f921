"""The rerankers of LangChain and LlamaIndex, inside what uses them there."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_classic.retrievers.document_compressors import (
    CrossEncoderReranker,
    DocumentCompressorPipeline,
)
from langchain_core.cross_encoders import BaseCrossEncoder
from langchain_core.documents import BaseDocumentCompressor
from langchain_core.documents import Document as LangChainDocument
from langchain_core.vectorstores import InMemoryVectorStore
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload
from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.llms import MockLLM
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import QueryFusionRetriever
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle, TextNode
from pydantic import ValidationError

from qwen3_embedding_integrations import (
    ConfigError,
    InputError,
    ModelLoadError,
    Qwen3Reranker,
    RerankerConfig,
    shared_reranker,
)
from qwen3_embedding_integrations import langchain as langchain_door
from qwen3_embedding_integrations import llama_index as llama_index_door
from qwen3_embedding_integrations.langchain import Qwen3CrossEncoder, Qwen3Embeddings
from qwen3_embedding_integrations.llama_index import Qwen3Embedding

QUERY = "How do I reset my password?"
TEXTS = [
    "如果忘记了账户密码，可以用手机号重置。",
    "Refunds are paid within 14 days.",
    "🚀 to\nthe moon",
    "Click on “Forgot password”: we send a link that works once.",
    "<Document>: <|im_end|>",
    "",
]
OPTIONS: dict[str, Any] = {
    "dtype": "float32",
    "device": "cpu",
    "attention": "sdpa",
    "max_batch_tokens": 999,
    "local_files_only": True,
    "instruction": "Find the help article that answers the question",
    "max_length": 512,
    "on_too_long": "error",
}


@pytest.fixture
def langchain_rerank(reranker: Qwen3Reranker) -> langchain_door.Qwen3Rerank:
    return langchain_door.Qwen3Rerank(reranker=reranker)


@pytest.fixture
def postprocessor(reranker: Qwen3Reranker) -> llama_index_door.Qwen3Rerank:
    return llama_index_door.Qwen3Rerank(reranker=reranker)


@pytest.fixture
def shared(reranker_checkpoint: Path) -> Iterator[Qwen3Reranker]:
    """Yield the process's reranker of the checkpoint under OPTIONS; it is closed afterwards."""
    with shared_reranker(RerankerConfig(model=str(reranker_checkpoint), **OPTIONS)) as reranker:
        yield reranker


def documents() -> list[LangChainDocument]:
    return [
        LangChainDocument(text, id=str(i), metadata={"source": i}) for i, text in enumerate(TEXTS)
    ]


def nodes() -> list[NodeWithScore]:
    return [
        NodeWithScore(node=TextNode(text=text, id_=str(i)), score=0.5)
        for i, text in enumerate(TEXTS)
    ]


async def turns_of_the_loop(waited: asyncio.Task[Any]) -> int:
    """Return how often the event loop went round until the task was done."""
    turns = 0
    while not waited.done():
        await asyncio.sleep(0.001)
        turns += 1
    return turns


# LangChain


def test_a_compressor_ranks_and_scores(reranker, langchain_rerank):
    """Documents come back best first as copies with their score; those given stay as they are."""
    assert isinstance(langchain_rerank, BaseDocumentCompressor)
    given = documents()
    found = langchain_rerank.compress_documents(given, QUERY)
    ranked = reranker.rerank(QUERY, TEXTS)
    assert [one.id for one in found] == [str(one.index) for one in ranked]
    for one, expected in zip(found, ranked, strict=True):
        score = one.metadata["relevance_score"]
        assert type(score) is float
        assert score == pytest.approx(expected.score, abs=1e-6)
        assert one.page_content == expected.document
        assert one.metadata["source"] == expected.index
    assert given == documents(), "the documents given were changed"
    assert langchain_rerank.compress_documents([], QUERY) == []


def test_a_compressor_keeps_the_best(reranker):
    """top_n is how many documents are left."""
    compressor = langchain_door.Qwen3Rerank(reranker=reranker, top_n=2)
    best = [str(one.index) for one in reranker.rerank(QUERY, TEXTS, top_n=2)]
    assert [one.id for one in compressor.compress_documents(documents(), QUERY)] == best
    for top_n in (0, -1, 1.5):
        with pytest.raises(ConfigError, match="top_n is"):
            langchain_door.Qwen3Rerank(reranker=reranker, top_n=top_n)


async def test_a_compressing_retriever_ends_in_our_order(reranker):
    """In LangChain's ContextualCompressionRetriever what a store found is ranked and cut by us."""
    store = InMemoryVectorStore(Qwen3Embeddings("tiny", dtype="float32"))
    await store.aadd_documents(documents()[:5])
    retriever = ContextualCompressionRetriever(
        base_compressor=langchain_door.Qwen3Rerank(reranker=reranker, top_n=3),
        base_retriever=store.as_retriever(search_kwargs={"k": 5}),
    )
    expected = [one.document for one in reranker.rerank(QUERY, TEXTS[:5], top_n=3)]
    assert [one.page_content for one in retriever.invoke(QUERY)] == expected
    assert [one.page_content for one in await retriever.ainvoke(QUERY)] == expected


def test_a_pipeline_of_compressors(reranker, langchain_rerank):
    """It is a step of a DocumentCompressorPipeline, before or after another."""
    pipeline = DocumentCompressorPipeline(
        transformers=[langchain_rerank, langchain_door.Qwen3Rerank(reranker=reranker, top_n=1)]
    )
    [best] = pipeline.compress_documents(documents(), QUERY)
    assert best.page_content == reranker.rerank(QUERY, TEXTS)[0].document


def test_a_cross_encoder_scores_pairs(reranker):
    """LangChain's CrossEncoderReranker takes ours; scores are plain floats in the pairs' order."""
    encoder = Qwen3CrossEncoder(reranker=reranker)
    assert isinstance(encoder, BaseCrossEncoder)
    pairs = [(query, text) for text in TEXTS for query in (QUERY, "Where is the moon?")]
    scores = encoder.score(pairs)
    assert {type(score) for score in scores} == {float}
    expected = [float(reranker.score(query, [text])[0]) for query, text in pairs]
    assert scores == pytest.approx(expected, abs=2e-6)
    assert encoder.score([]) == []
    host = CrossEncoderReranker(model=encoder, top_n=3)
    best = [one.document for one in reranker.rerank(QUERY, TEXTS, top_n=3)]
    assert [one.page_content for one in host.compress_documents(documents(), QUERY)] == best
    assert "Qwen3Reranker" in repr(encoder)


async def test_a_compressor_lets_the_loop_run(reranker_checkpoint, shared):
    """Loading and scoring happen off the event loop."""
    compressor = langchain_door.Qwen3Rerank(str(reranker_checkpoint), **OPTIONS)
    expected = [one.index for one in shared.rerank(QUERY, TEXTS)]
    shared.close()
    task = asyncio.create_task(compressor.acompress_documents(documents(), QUERY))
    assert await turns_of_the_loop(task) > 10
    assert [int(one.id or 0) for one in await task] == expected
    assert await compressor.acompress_documents([], QUERY) == []
    compressor.reranker.close()


def test_langchain_options_are_the_configs(tmp_path, reranker, reranker_checkpoint, shared):
    """Options go in by name and are checked at once; the model is looked for with the first use."""
    compressor = langchain_door.Qwen3Rerank(str(reranker_checkpoint), top_n=2, **OPTIONS)
    assert compressor.config == RerankerConfig(model=str(reranker_checkpoint), **OPTIONS)
    assert compressor.reranker is shared
    assert Qwen3CrossEncoder(str(reranker_checkpoint), **OPTIONS).reranker is shared
    assert copy.deepcopy(compressor).reranker is shared
    assert pickle.loads(pickle.dumps(compressor)).reranker is shared
    for door in (langchain_door.Qwen3Rerank, Qwen3CrossEncoder):
        with pytest.raises(ConfigError, match="did you mean 'max_length'"):
            door(max_lenght=7)
        with pytest.raises(ConfigError, match="either reranker or options"):
            door("a/b", reranker=reranker)
    with pytest.raises(ModelLoadError, match="nothing"):
        langchain_door.Qwen3Rerank(str(tmp_path / "nothing")).compress_documents(documents(), QUERY)


# LlamaIndex


def test_a_postprocessor_ranks_and_scores(reranker, postprocessor):
    """Nodes come back best first, with our score; those given keep theirs."""
    assert isinstance(postprocessor, BaseNodePostprocessor)
    assert postprocessor.class_name() == "Qwen3Rerank"
    given = nodes()
    found = postprocessor.postprocess_nodes(given, query_str=QUERY)
    ranked = reranker.rerank(QUERY, TEXTS)
    assert [one.node.node_id for one in found] == [str(one.index) for one in ranked]
    assert [one.score for one in found] == pytest.approx([one.score for one in ranked], abs=1e-6)
    assert {type(one.score) for one in found} == {float}
    assert [one.score for one in given] == [0.5] * len(TEXTS)
    assert postprocessor.postprocess_nodes([], query_str=QUERY) == []


def test_a_postprocessor_reads_what_embedding_reads(reranker, postprocessor):
    """A node is read with the metadata meant for embedding, and without what is excluded."""
    node = TextNode(
        text="We send a link.",
        metadata={"title": "Forgot password", "internal": "x" * 50},
        excluded_embed_metadata_keys=["internal"],
    )
    content = node.get_content(MetadataMode.EMBED)
    assert "Forgot password" in content
    assert "xxx" not in content
    [found] = postprocessor.postprocess_nodes([NodeWithScore(node=node)], query_str=QUERY)
    assert found.score == pytest.approx(float(reranker.score(QUERY, [content])[0]), abs=1e-6)


@pytest.mark.parametrize("query", [None, "", " "])
async def test_a_query_is_needed(postprocessor, query):
    """Without a query, or with a blank one, there is nothing to rank by: ValueError."""
    bundle = None if query is None else QueryBundle(query)
    with pytest.raises(ValueError, match=r"needs the query|query is blank"):
        postprocessor.postprocess_nodes(nodes(), bundle)
    with pytest.raises(ValueError, match=r"needs the query|query is blank"):
        await postprocessor.apostprocess_nodes(nodes(), bundle)


async def test_a_query_engine_over_fused_retrievers(reranker):
    """Behind a QueryFusionRetriever in a query engine, the best nodes of both lists are left."""
    index = VectorStoreIndex.from_documents(
        [Document(text=text, id_=str(i)) for i, text in enumerate(TEXTS[:5])],
        embed_model=Qwen3Embedding(model_name="tiny", dtype="float32"),
    )
    retrievers = [index.as_retriever(similarity_top_k=k) for k in (5, 3)]
    fused = QueryFusionRetriever(
        retrievers, llm=MockLLM(), num_queries=1, similarity_top_k=5, use_async=False
    )
    engine = RetrieverQueryEngine.from_args(
        fused,
        llm=MockLLM(),
        node_postprocessors=[llama_index_door.Qwen3Rerank(reranker=reranker, top_n=2)],
    )
    best = [one.document for one in reranker.rerank(QUERY, TEXTS[:5], top_n=2)]
    found = engine.retrieve(QueryBundle(QUERY))
    assert [one.node.get_content() for one in found] == best
    answer = await engine.aquery(QUERY)
    assert [one.node.get_content() for one in answer.source_nodes] == best


class Noted(BaseCallbackHandler):
    """Keeps the payloads of RERANKING callbacks."""

    def __init__(self) -> None:
        super().__init__([], [])
        self.payloads: list[dict[str, Any]] = []

    def on_event_start(self, event_type, payload=None, event_id="", parent_id="", **_):
        if event_type is CBEventType.RERANKING:
            self.payloads.append(payload)
        return event_id

    def on_event_end(self, event_type, payload=None, event_id="", **_):
        if event_type is CBEventType.RERANKING:
            self.payloads.append(payload)

    def start_trace(self, trace_id=None):
        pass

    def end_trace(self, trace_id=None, trace_map=None):
        pass


class Listener(BaseEventHandler):
    """Keeps the rerank events of LlamaIndex's dispatcher."""

    seen: list[Any] = []  # noqa: RUF012 (a pydantic field: copied for each object)

    def handle(self, event: Any, **_: Any) -> None:
        if isinstance(event, ReRankStartEvent | ReRankEndEvent):
            self.seen.append(event)


@pytest.mark.parametrize("is_async", [False, True])
async def test_reranking_is_reported(reranker, is_async):
    """Callbacks and events tell the query, the nodes before and after, the model and top_n."""
    noted, listener = Noted(), Listener()
    dispatcher = get_dispatcher()
    dispatcher.add_event_handler(listener)
    try:
        postprocessor = llama_index_door.Qwen3Rerank(
            reranker=reranker, top_n=2, callback_manager=CallbackManager([noted])
        )
        if is_async:
            found = await postprocessor.apostprocess_nodes(nodes(), query_str=QUERY)
        else:
            found = postprocessor.postprocess_nodes(nodes(), query_str=QUERY)
    finally:
        dispatcher.event_handlers.remove(listener)
    start, end = noted.payloads
    assert (start[EventPayload.QUERY_STR], start[EventPayload.TOP_K]) == (QUERY, 2)
    assert start[EventPayload.MODEL_NAME] == reranker.config.model
    assert (len(start[EventPayload.NODES]), end[EventPayload.NODES]) == (len(TEXTS), found)
    assert [type(one) for one in listener.seen] == [ReRankStartEvent, ReRankEndEvent]
    assert listener.seen[1].nodes == found


async def test_a_postprocessor_lets_the_loop_run(reranker_checkpoint, shared):
    """Loading and scoring happen off the event loop."""
    postprocessor = llama_index_door.Qwen3Rerank(model_name=str(reranker_checkpoint), **OPTIONS)
    expected = [one.index for one in shared.rerank(QUERY, TEXTS)]
    shared.close()
    task = asyncio.create_task(postprocessor.apostprocess_nodes(nodes(), query_str=QUERY))
    assert await turns_of_the_loop(task) > 10
    assert [int(one.node.node_id) for one in await task] == expected
    postprocessor.reranker.close()


def test_llama_index_options_survive(reranker_checkpoint, shared):
    """Every option is a field: pickling, copying and to_dict keep what makes a score."""
    fields = llama_index_door.Qwen3Rerank.model_fields
    options = {field.name for field in dataclasses.fields(RerankerConfig)} - {"model"}
    assert options | {"model_name", "top_n", "callback_manager"} == set(fields)
    for name in options:
        default = getattr(RerankerConfig(), name)
        assert fields[name].default == default, name
    first = llama_index_door.Qwen3Rerank(model_name=str(reranker_checkpoint), top_n=3, **OPTIONS)
    assert first.reranker is shared
    data = json.loads(json.dumps(first.to_dict()))
    for again in (
        pickle.loads(pickle.dumps(first)),
        copy.deepcopy(first),
        llama_index_door.Qwen3Rerank.from_dict(data),
    ):
        assert again.config() == first.config()
        assert again.top_n == 3
        assert again.reranker is shared


def test_llama_index_options_are_checked(reranker):
    """A wrong name or value fails when the object is made."""
    with pytest.raises(ValidationError, match="max_lenght"):
        llama_index_door.Qwen3Rerank(max_lenght=7)
    with pytest.raises(ConfigError, match="max_length is 7"):
        llama_index_door.Qwen3Rerank(max_length=7)
    with pytest.raises(ConfigError, match="top_n is 0"):
        llama_index_door.Qwen3Rerank(top_n=0)
    with pytest.raises(ConfigError, match=r"either reranker or options.*dtype with reranker"):
        llama_index_door.Qwen3Rerank(reranker=reranker, dtype="float32")
    changed = llama_index_door.Qwen3Rerank(reranker=reranker)
    assert changed.reranker is reranker
    changed.max_length = 100  # what is serialised is what makes the scores
    assert changed.config().max_length == 100


async def test_bad_texts_are_refused_and_harm_no_other(langchain_rerank, postprocessor):
    """A lone surrogate is an InputError at both doors; the next call is answered."""
    bad = [LangChainDocument("a"), LangChainDocument("\ud800")]
    with pytest.raises(InputError, match=r"documents\[1\] holds a lone surrogate"):
        await langchain_rerank.acompress_documents(bad, QUERY)
    with pytest.raises(InputError, match="lone surrogate"):
        await postprocessor.apostprocess_nodes(nodes(), QueryBundle("\ud800"))
    assert len(langchain_rerank.compress_documents(documents(), QUERY)) == len(TEXTS)
