"""Every door takes `base_url`: the vectors are the server's, the address is kept, the key never."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import pytest
from llama_index.core.storage.kvstore import SimpleKVStore

from qwen3_embedding_integrations import (
    ConfigError,
    ContractMismatchError,
    Qwen3Encoder,
    RemoteEncoder,
    index_documents,
)
from qwen3_embedding_integrations.chroma import Qwen3EmbeddingFunction, open_collection
from qwen3_embedding_integrations.documents import Document
from qwen3_embedding_integrations.langchain import Qwen3Embeddings
from qwen3_embedding_integrations.llama_index import Qwen3Embedding
from qwen3_embedding_integrations.qdrant import Qwen3Collection
from qwen3_embedding_integrations.stores import open_store
from tests.remote.servers import MODEL, TEI, VLLM, Server, serving

KEY = "sesame"
TEXTS = ["The capital of France is Paris.", "水在一百摄氏度沸腾。", "Refunds take 14 days."]
QUERY = "法国的首都是哪里？"
CLOSE = 1e-6


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Yield a server that wants a key, which the environment holds."""
    monkeypatch.setenv("EMBEDDING_KEY", KEY)
    with serving(VLLM, key=KEY) as one:
        yield one


def options(server: Server) -> dict[str, Any]:
    return {"base_url": server.url, "api_key_env": "EMBEDDING_KEY"}


def far(one: Any, other: Any) -> float:
    return float(np.abs(np.subtract(one, other)).max())


def test_chroma(server: Server, tiny: Qwen3Encoder) -> None:
    """A collection made over a server is filled, searched and rebuilt from what Chroma keeps."""
    client = chromadb.EphemeralClient()
    name = "remote-articles"
    articles = open_collection(client, name, model=MODEL, dimensions=64, **options(server))
    articles.add(ids=["0", "1", "2"], documents=TEXTS)
    kept = articles.configuration_json["embedding_function"]["config"]
    assert kept["base_url"] == server.url
    assert KEY not in json.dumps(articles.configuration_json) + json.dumps(articles.metadata)
    again = client.get_collection(name)  # Chroma's own way: the function rebuilt from its config
    server.take()
    found = again.query(query_texts=[QUERY], n_results=3, include=["distances"])
    (request,) = server.take()
    assert request.input == [
        "Instruct: Given a web search query, retrieve relevant passages that answer the query\n"
        f"Query:{QUERY}"
    ]
    vectors, query = tiny.encode_documents(TEXTS)[:, :64], tiny.encode_queries([QUERY])[0, :64]
    cosines = vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
    assert found["ids"][0] == [str(i) for i in np.argsort(-cosines)]
    distances = found["distances"] or [[]]
    assert far(sorted(1 - cosines), distances[0]) < 1e-5
    with pytest.raises(ContractMismatchError, match="revision"):
        open_collection(client, name, model="tiny", dtype="float32", dimensions=64)
    function = Qwen3EmbeddingFunction(
        MODEL, revision=tiny.contract.revision, dimensions=256, **options(server)
    )
    open_collection(client, "local-articles", model="tiny", dtype="float32")
    assert open_collection(client, "local-articles", function).count() == 0
    client.delete_collection(name)
    client.delete_collection("local-articles")


async def test_langchain(server: Server, tiny: Qwen3Encoder) -> None:
    """Sync and async, by options or by a ready encoder."""
    embeddings = Qwen3Embeddings(MODEL, **options(server))
    documents, query = tiny.encode_documents(TEXTS), tiny.encode_queries([QUERY])[0]
    assert far(embeddings.embed_documents(TEXTS), documents) < CLOSE
    assert far(embeddings.embed_query(QUERY), query) < CLOSE
    assert far(await embeddings.aembed_documents(TEXTS), documents) < CLOSE
    assert far(await embeddings.aembed_query(QUERY), query) < CLOSE
    assert KEY not in repr(embeddings)
    with RemoteEncoder(server.url, model=MODEL, api_key=KEY) as encoder:
        ready = Qwen3Embeddings(encoder=encoder)
        assert far(ready.embed_query(QUERY), query) < CLOSE
        assert KEY not in repr(ready)


async def test_llama_index(server: Server, tiny: Qwen3Encoder) -> None:
    """Sync, async, pickled and cached; no serialised form has the key."""
    model = Qwen3Embedding(
        model_name=MODEL, embeddings_cache=SimpleKVStore(), dimensions=128, **options(server)
    )
    documents = tiny.encode_documents(TEXTS)[:, :128]
    documents /= np.linalg.norm(documents, axis=1, keepdims=True)
    assert far(model.get_text_embedding_batch(TEXTS), documents) < CLOSE
    assert far(await model.aget_text_embedding_batch(TEXTS), documents) < CLOSE
    query = await model.aget_query_embedding(TEXTS[0])
    assert far(query, documents[0]) > 1e-3, "the cache answered a query with a document's vector"
    plain = Qwen3Embedding(model_name=MODEL, **options(server))
    data = pickle.dumps(plain)
    assert KEY.encode() not in data
    assert KEY not in plain.to_json()
    expected = tiny.encode_queries([QUERY])[0]
    assert far(pickle.loads(data).get_query_embedding(QUERY), expected) < CLOSE
    with RemoteEncoder(server.url, model=MODEL, api_key=KEY, dimensions=64) as encoder:
        ready = Qwen3Embedding(encoder=encoder)
        assert ready.encoder is encoder
        assert (ready.base_url, ready.dimensions) == (server.url, 64)
        assert KEY not in ready.to_json()


async def test_qdrant(server: Server, tiny: Qwen3Encoder) -> None:
    """Filled and searched, by options or by a ready encoder; the options are kept, not the key."""
    with Qwen3Collection(":memory:", "articles", model=MODEL, **options(server)) as articles:
        articles.upsert(TEXTS)
        scores = [point.score for point in articles.query(QUERY)]
        expected = tiny.encode_documents(TEXTS) @ tiny.encode_queries([QUERY])[0]
        assert far(scores, sorted(expected, reverse=True)) < 1e-5
        assert len(await articles.aquery(QUERY, limit=2)) == 2
        kept = json.dumps(articles.client.get_collection("articles").config.metadata)
        assert server.url in kept
        assert KEY not in kept
        with pytest.raises(ContractMismatchError, match="revision"):
            Qwen3Collection(articles.client, "articles", encoder=tiny)
    with RemoteEncoder(server.url, model=MODEL, api_key=KEY) as encoder:
        ready = Qwen3Collection(":memory:", "articles", encoder=encoder)
        ready.upsert(TEXTS)
        kept = json.dumps(ready.client.get_collection("articles").config.metadata)
        assert encoder.config.base_url in kept
        assert KEY not in kept
        ready.close()


def test_the_command_opens_what_a_door_made(server: Server, tmp_path: Path) -> None:
    """`search` and `index` find the server by what the collection keeps."""
    location = str(tmp_path / "vectors")
    with Qwen3Collection(location, "articles", model=MODEL, **options(server)) as articles:
        articles.upsert(TEXTS)
    opened = open_store("qdrant", location, "articles", {}, create=False)
    assert isinstance(opened.encoder, RemoteEncoder)
    hits = opened.store.nearest(opened.encoder.encode_documents(TEXTS[1:2])[0], limit=1)
    assert hits[0].score > 0.999
    opened.store.close()


def test_a_job_reports_the_text_that_a_server_refuses() -> None:
    """One document too long for the server is named; the others are in the collection."""
    documents = [Document(f"document {i}", source="a", position=i) for i in range(20)]
    documents[7] = Document("so on " * 100, source="a", position=7)
    with (
        serving(TEI, max_input_length=60, auto_truncate=False) as server,
        RemoteEncoder(server.url, model=MODEL) as encoder,
        Qwen3Collection(":memory:", "articles", encoder=encoder) as articles,
    ):
        report = index_documents(documents, encoder, articles.store)
        assert report.added == 19
        (failure,) = report.failures
        assert failure.name.endswith("7")
        assert "must have less than 60 tokens" in failure.reason


def test_an_encoder_and_an_address_are_refused_together(server: Server) -> None:
    """Both would contradict each other."""
    with RemoteEncoder(server.url, model=MODEL, api_key=KEY) as encoder:
        for make in (
            lambda: Qwen3Embeddings(encoder=encoder, base_url=server.url),
            lambda: Qwen3Embedding(encoder=encoder, base_url=server.url),
            lambda: Qwen3Collection(":memory:", "a", encoder=encoder, base_url=server.url),
        ):
            with pytest.raises(ConfigError, match="either encoder or options"):
                make()
