"""A user's code, read by the type checker and never run: every public name, every door."""

# An ignored error that is none is an error: see the last function.
# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, assert_type

import chromadb
import numpy as np
import numpy.typing as npt
from chromadb.api.models.Collection import Collection
from chromadb.api.types import Embeddings as ChromaEmbeddings
from langchain_core.embeddings import Embeddings
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.ingestion import IngestionPipeline
from qdrant_client import QdrantClient, models

from qwen3_embedding_integrations import (
    CachedEncoder,
    CacheStats,
    Check,
    ConfigError,
    ContractMismatchError,
    DeviceOutOfMemoryError,
    Diagnosis,
    DiskStore,
    EmbeddingContract,
    Encoder,
    EncoderConfig,
    EncoderReranker,
    EncoderStats,
    EngineClosedError,
    EngineError,
    Fault,
    Hit,
    InputError,
    KeywordIndex,
    MemoryStore,
    MissingDependencyError,
    ModelError,
    ModelLoadError,
    NonFiniteOutputError,
    Qwen3EmbeddingError,
    Qwen3Encoder,
    Qwen3Reranker,
    Qwen3Retriever,
    RankedDocument,
    RedisStore,
    RemoteEncoder,
    RemoteError,
    Reranker,
    RerankerConfig,
    SearchStore,
    TextTooLongError,
    diagnose,
    shared_encoder,
    shared_reranker,
)
from qwen3_embedding_integrations.chroma import Qwen3EmbeddingFunction, open_collection
from qwen3_embedding_integrations.langchain import Qwen3CrossEncoder, Qwen3Embeddings
from qwen3_embedding_integrations.langchain import Qwen3Rerank as LangChainRerank
from qwen3_embedding_integrations.llama_index import Qwen3Embedding
from qwen3_embedding_integrations.llama_index import Qwen3Rerank as LlamaIndexRerank
from qwen3_embedding_integrations.qdrant import Qwen3Collection

Vectors = npt.NDArray[np.float32]


def an_encoder() -> None:
    config = EncoderConfig(model="tiny", dimensions=128, dtype="float32", on_too_long="chunk_mean")
    with Qwen3Encoder(config) as encoder:
        assert_type(encoder, Qwen3Encoder)
        assert_type(encoder.encode_queries(["a query"]), Vectors)
        assert_type(encoder.encode_queries(("a query",), instruction="Find the law"), Vectors)
        assert_type(encoder.encode_documents(["a document"], show_progress=False), Vectors)
        assert_type(encoder.stream_documents(text for text in ("a", "b")), Iterator[Vectors])
        assert_type(encoder.dimensions, int)
        assert_type(encoder.config, EncoderConfig)
        assert_type(encoder.is_closed, bool)
    Qwen3Encoder()
    Qwen3Encoder("tiny").close()
    assert_type(shared_encoder("tiny"), Qwen3Encoder)
    assert_type(shared_encoder(), Qwen3Encoder)


def a_remote_encoder() -> Encoder:
    with RemoteEncoder(
        ["http://a/v1", "http://b/v1"], model="m", api_key="k", dimensions=64
    ) as one:
        assert_type(one.encode_queries(["a query"], instruction="Find the law"), Vectors)
        assert_type(one.encode_documents(["a document"], show_progress=False), Vectors)
        assert_type(one.stream_documents(text for text in ("a", "b")), Iterator[Vectors])
        assert_type(one.dimensions, int)
        assert_type(one.stats(), EncoderStats)
        assert_type(one.contract, EmbeddingContract)
    try:
        return RemoteEncoder("http://a/v1", model="m", api_key_env="KEY")
    except RemoteError as error:
        assert_type((error.url, error.status), tuple[str, int | None])
        raise


async def an_encoder_awaited(encoder: Qwen3Encoder) -> None:
    assert_type(await encoder.aencode_queries(["a query"], instruction="Find the law"), Vectors)
    assert_type(await encoder.aencode_documents(["a document"]), Vectors)


def what_it_did(encoder: Qwen3Encoder) -> tuple[int, ...]:
    stats = encoder.stats()
    assert_type(stats, EncoderStats)
    return stats.texts, stats.tokens, stats.truncated, stats.forwards, stats.retries


def a_config() -> EncoderConfig:
    config = EncoderConfig.from_options("tiny", device="cpu", max_batch_tokens="auto")
    assert_type(config.to_dict(), dict[str, Any])
    assert_type({config: 1}[config], int)
    return config


def a_contract(stored: EmbeddingContract, encoder: Encoder) -> bool:
    contract = encoder.contract
    assert_type(contract.fingerprint, str)
    for difference in contract.difference(stored):
        assert_type(difference.field, str)
        assert_type(difference.is_hard, bool)
    contract.require_match(stored, index="my index", allow_mismatch=False)
    return EmbeddingContract.from_dict(contract.to_dict()) == contract


def errors(encoder: Encoder) -> None:
    try:
        encoder.encode_documents(["a document"])
    except TextTooLongError as error:
        assert_type(error.num_tokens, int)
    except InputError as error:
        assert_type(error.index, int | None)
    except ContractMismatchError as error:
        assert_type(error.differences, tuple[tuple[str, object, object], ...])
    except DeviceOutOfMemoryError as error:
        assert_type((error.num_tokens, error.device), tuple[int, str])
    except MissingDependencyError as error:
        assert_type((error.package, error.extra), tuple[str, str])
    except (ModelLoadError, NonFiniteOutputError, EngineClosedError) as error:
        raise RuntimeError from error
    except (ConfigError, ModelError, EngineError, Qwen3EmbeddingError) as error:
        raise RuntimeError from error


def my_encoder_is_an_encoder(encoder: Qwen3Encoder) -> Encoder:
    return encoder


def a_cache(encoder: Encoder) -> Encoder:
    stores = MemoryStore(2**20), DiskStore("vectors.cache"), RedisStore(ttl_s=60)
    with CachedEncoder(encoder, *stores, storage="float16") as cached:
        assert_type(cached.encode_queries(["a query"], instruction="Find the law"), Vectors)
        assert_type(cached.stats(), CacheStats)
        assert_type(cached.stats().stores[0].stored_bytes, int | None)
        Qwen3EmbeddingFunction.over(cached)
        Qwen3Embedding(encoder=cached)
        Qwen3Embeddings(encoder=cached)
        return cached


def chroma() -> Collection:
    function = Qwen3EmbeddingFunction("tiny", dimensions=128, instruction="Find the law")
    assert_type(function(["a document"]), ChromaEmbeddings)
    assert_type(function.embed_query(["a query"]), ChromaEmbeddings)
    assert_type(function.encoder, Qwen3Encoder | RemoteEncoder | CachedEncoder)
    client = chromadb.EphemeralClient()
    open_collection(client, "articles", function, metadata={"owner": "me"}, allow_mismatch=True)
    articles = open_collection(client, "articles", model="tiny", dimensions=128)
    articles.add(ids=["a"], documents=["a document"])
    articles.query(query_texts=["a query"], n_results=1)
    return assert_type(articles, Collection)


def langchain(encoder: Encoder) -> Embeddings:
    Qwen3Embeddings(encoder=encoder)
    embeddings = Qwen3Embeddings("tiny", dimensions=128)
    assert_type(embeddings.embed_query("a query"), list[float])
    assert_type(embeddings.embed_documents(["a document"]), list[list[float]])
    return embeddings


async def langchain_awaited(embeddings: Qwen3Embeddings) -> None:
    assert_type(await embeddings.aembed_query("a query"), list[float])
    assert_type(await embeddings.aembed_documents(["a document"]), list[list[float]])


def llama_index(encoder: Qwen3Encoder) -> BaseEmbedding:
    Qwen3Embedding(encoder=encoder)
    model = Qwen3Embedding(model_name="tiny", dimensions=128, embed_batch_size=64)
    assert_type(model.get_query_embedding("a query"), list[float])
    assert_type(model.get_text_embedding("a text"), list[float])
    assert_type(model.dimensions, int | None)
    assert_type(model.config(), EncoderConfig)
    IngestionPipeline(transformations=[model])
    return model


async def llama_index_awaited(model: Qwen3Embedding) -> None:
    assert_type(await model.aget_query_embedding("a query"), list[float])
    assert_type(await model.aget_text_embedding("a text"), list[float])


def qdrant(encoder: Encoder) -> list[models.ScoredPoint]:
    Qwen3Collection(QdrantClient(":memory:"), "articles", encoder=encoder, allow_mismatch=True)
    with Qwen3Collection(":memory:", "articles", model="tiny", dimensions=128) as articles:
        ids = articles.upsert(["a document"], ids=["my id"], payloads=[{"n": 1}])
        assert_type(ids, list[int | str])
        assert_type(len(articles), int)
        condition = models.FieldCondition(key="n", match=models.MatchValue(value=1))
        found = articles.query(
            "a query",
            limit=3,
            query_filter=models.Filter(must=[condition]),
            instruction="Find the law",
        )
        return assert_type(found, list[models.ScoredPoint])


async def qdrant_awaited(articles: Qwen3Collection) -> None:
    assert_type(await articles.aquery("a query", limit=3), list[models.ScoredPoint])


def diagnosed(encoder: Qwen3Encoder, remote: RemoteEncoder) -> tuple[Fault, ...]:
    diagnosis = assert_type(diagnose(encoder, reference=None, max_tokens=600), Diagnosis)
    diagnose(remote)
    diagnose("http://localhost:8000/v1", model="tiny", reference="tiny", api_key_env="KEY")
    assert_type(diagnosis.is_right, bool)
    assert_type(diagnosis.checks, tuple[Check, ...])
    assert_type(diagnosis.to_dict(), dict[str, Any])
    return assert_type(diagnosis.faults, tuple[Fault, ...])


def a_reranker() -> None:
    config = RerankerConfig(model="a/b", max_length=512, on_too_long="error")
    with Qwen3Reranker(config) as reranker:
        assert_type(reranker, Qwen3Reranker)
        assert_type(reranker.score("a query", ["a document"], instruction="Find the law"), Vectors)
        assert_type(reranker.score_pairs([("a query", "a document")]), Vectors)
        ranked = reranker.rerank("a query", ("a document",), top_n=3)
        assert_type(ranked, list[RankedDocument])
        assert_type((ranked[0].index, ranked[0].score, ranked[0].document), tuple[int, float, str])
        assert_type(reranker.stats().computed, int)
    assert_type(shared_reranker(), Qwen3Reranker)


async def a_reranker_awaited(reranker: Qwen3Reranker) -> None:
    assert_type(await reranker.ascore("a query", ["a document"]), Vectors)
    assert_type(await reranker.ascore_pairs([("a query", "a document")]), Vectors)
    assert_type(await reranker.arerank("a query", ["a document"]), list[RankedDocument])


def rerankers_of_hosts(reranker: Qwen3Reranker) -> None:
    assert_type(LangChainRerank("a/b", top_n=3, max_length=512).reranker, Qwen3Reranker)
    assert_type(Qwen3CrossEncoder(reranker=reranker).score([("a", "b")]), list[float])
    assert_type(LlamaIndexRerank(model_name="a/b", top_n=3).config(), RerankerConfig)


def what_the_checker_refuses_of_rerankers(reranker: Qwen3Reranker) -> None:
    RerankerConfig("a/b")  # pyright: ignore[reportCallIssue]
    RerankerConfig(on_too_long="chunk_mean")  # pyright: ignore[reportArgumentType]
    LangChainRerank("a/b", dimensions=64)  # pyright: ignore[reportCallIssue]
    reranker.score(["a query"], ["a document"])  # pyright: ignore[reportArgumentType]


def what_the_checker_refuses(encoder: Qwen3Encoder) -> None:
    EncoderConfig("tiny")  # pyright: ignore[reportCallIssue]
    EncoderConfig(dimension=64)  # pyright: ignore[reportCallIssue]
    EncoderConfig(dtype="int8")  # pyright: ignore[reportArgumentType]
    EncoderConfig(quantization="int4")  # pyright: ignore[reportArgumentType]
    EncoderConfig().dimensions = 64  # pyright: ignore[reportAttributeAccessIssue]
    encoder.encode_documents([1])  # pyright: ignore[reportArgumentType]
    encoder.encode_documents(None)  # pyright: ignore[reportArgumentType]
    CachedEncoder(encoder, "redis://localhost")  # pyright: ignore[reportArgumentType]
    Qwen3EmbeddingFunction("tiny", dimension=64)  # pyright: ignore[reportCallIssue]
    Qwen3EmbeddingFunction(encoder=encoder)  # pyright: ignore[reportCallIssue]
    Qwen3Embeddings("tiny", on_empty="skip")  # pyright: ignore[reportArgumentType]
    Qwen3Collection(":memory:")  # pyright: ignore[reportCallIssue]


async def a_retriever(store: SearchStore, encoder: Encoder, reranker: Reranker) -> None:
    with KeywordIndex("keywords.db") as keywords:
        keywords.write(["1"], ["a text"])
        assert_type(keywords.search("a", 5, offset=5), list[tuple[str, float]])
        retriever = Qwen3Retriever(store, encoder, keywords=keywords, reranker=reranker)
        assert_type(retriever.search("a", limit=5, where={"year": [2020]}), list[Hit])
        assert_type(await retriever.asearch("a", instruction="Find the law"), list[Hit])
    Qwen3Retriever(store, encoder, reranker=encoder, fusion="ranks", dense_weight=0.5)
    Qwen3Retriever(store, encoder, reranker=EncoderReranker(encoder))
    Qwen3Retriever(store, encoder, fusion="best")  # pyright: ignore[reportArgumentType]
