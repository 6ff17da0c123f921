"""Every door takes a CachedEncoder: the encoder's vectors, each text encoded once."""

from __future__ import annotations

import copy
import pickle
import uuid
from collections.abc import Callable
from pathlib import Path

import chromadb
import numpy as np
import pytest

from qwen3_embedding_integrations import CachedEncoder, DiskStore, Qwen3Encoder, index_documents
from qwen3_embedding_integrations.chroma import Qwen3EmbeddingFunction, open_collection
from qwen3_embedding_integrations.documents import Document
from qwen3_embedding_integrations.langchain import Qwen3Embeddings
from qwen3_embedding_integrations.llama_index import Qwen3Embedding
from qwen3_embedding_integrations.qdrant import Qwen3Collection, stored_config

TEXTS = ["如何重置密码？", "How do I reset my password?"]

Door = Callable[[CachedEncoder, str], tuple[list[float], list[list[float]]]]


def through_chroma(encoder: CachedEncoder, text: str) -> tuple:
    function = Qwen3EmbeddingFunction.over(encoder)
    return function.embed_query([text])[0], function(TEXTS)


def through_langchain(encoder: CachedEncoder, text: str) -> tuple:
    embeddings = Qwen3Embeddings(encoder=encoder)
    return embeddings.embed_query(text), embeddings.embed_documents(TEXTS)


def through_llama_index(encoder: CachedEncoder, text: str) -> tuple:
    model = Qwen3Embedding(encoder=encoder)
    return model.get_query_embedding(text), model.get_text_embedding_batch(TEXTS)


@pytest.mark.parametrize("door", [through_chroma, through_langchain, through_llama_index])
def test_a_door_with_a_cache_gives_what_the_encoder_gives(tiny: Qwen3Encoder, door: Door) -> None:
    """Twice the same vectors, encoded once; the query that is a document's text is another."""
    cached = CachedEncoder(tiny)
    for _ in range(2):
        query, documents = door(cached, TEXTS[0])
        assert np.abs(np.asarray(query) - tiny.encode_queries(TEXTS[:1])[0]).max() < 2e-5
        assert np.abs(np.asarray(documents) - tiny.encode_documents(TEXTS)).max() < 2e-5
    stats = cached.stats()
    assert (stats.texts, stats.encoded, stats.hits) == (6, 3, 3)


def test_a_chroma_collection_uses_the_cache_and_opens_without_it(tiny: Qwen3Encoder) -> None:
    """The collection keeps the options: opened by Chroma alone, the plain encoder answers."""
    cached = CachedEncoder(tiny)
    client, name = chromadb.EphemeralClient(), f"c{uuid.uuid4().hex}"
    articles = open_collection(client, name, Qwen3EmbeddingFunction.over(cached))
    articles.add(ids=["0", "1"], documents=TEXTS)
    articles.upsert(ids=["0", "1"], documents=TEXTS)
    assert (cached.stats().encoded, cached.stats().hits) == (2, 2)
    first = articles.query(query_texts=TEXTS[:1], n_results=2)
    assert cached.stats().encoded == 3
    plain = client.get_collection(name).query(query_texts=TEXTS[:1], n_results=2)
    assert plain["ids"] == first["ids"]
    assert np.abs(np.subtract(plain["distances"], first["distances"])).max() < 1e-5
    assert cached.stats().texts == 5


def test_a_qdrant_collection_uses_the_cache_and_keeps_the_options(tiny: Qwen3Encoder) -> None:
    """A repeated upsert encodes nothing; the collection opens by its options as any other."""
    cached = CachedEncoder(tiny)
    articles = Qwen3Collection(":memory:", "articles", encoder=cached)
    articles.upsert(TEXTS)
    articles.upsert(TEXTS)
    assert cached.stats().encoded == 2
    assert articles.query(TEXTS[0], limit=1)[0].payload["document"] == TEXTS[0]
    config = stored_config(articles.client, "articles")
    assert config is not None
    assert config.portable() == tiny.config.portable()
    articles.client.close()


def test_llama_index_copies_and_pickles_the_cache(tiny: Qwen3Encoder, tmp_path: Path) -> None:
    """A copy shares the cache; what comes back from a pickle goes on with the same file."""
    cached = CachedEncoder(tiny, DiskStore(tmp_path / "cache"))
    model = Qwen3Embedding(encoder=cached)
    vector = model.get_text_embedding("x")
    assert copy.deepcopy(model).get_text_embedding("x") == vector
    assert cached.stats().hits == 1
    again = pickle.loads(pickle.dumps(model))
    assert again.get_text_embedding("x") == vector
    assert again.encoder.stats().hits == 1


def test_an_index_made_again_elsewhere_encodes_nothing(tiny: Qwen3Encoder) -> None:
    """Two collections of the same documents through one cache: each document is encoded once."""
    cached = CachedEncoder(tiny)
    documents = [Document(text, source=f"{i}", position=0) for i, text in enumerate(TEXTS)]
    for name in ("one", "two"):
        with Qwen3Collection(":memory:", name, encoder=cached) as collection:
            assert index_documents(documents, cached, collection.store).added == 2
    assert (cached.stats().encoded, cached.stats().hits) == (2, 2)
