"""The routes: what is asked, what is answered, and what every refusal looks like."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from qwen3_embedding_integrations import Qwen3Encoder, Qwen3Reranker
from tests.server.serving import Running, assert_close

TEXTS = ["The tower is 324 metres tall.", "房东要卖房，租客能优先买吗？"]


@pytest.mark.parametrize("word", ["query", "search_query"])
def test_queries_are_read_as_queries(server: Running, tiny: Qwen3Encoder, word: str) -> None:
    """Every word for a query puts the instruction before it: other vectors than a document's."""
    queries = server.vectors(TEXTS, input_type=word)
    assert_close(queries, tiny.encode_queries(TEXTS))
    assert np.abs(queries - tiny.encode_documents(TEXTS)).max() > 0.01


@pytest.mark.parametrize("word", ["document", "search_document", "passage", None])
def test_documents_are_read_as_they_are(server: Running, tiny: Qwen3Encoder, word) -> None:
    """Every word for a document, and none, reads texts as they stand."""
    assert_close(server.vectors(TEXTS, input_type=word), tiny.encode_documents(TEXTS))


@pytest.mark.parametrize("num_texts", [1, 64, 65, 300])
@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_many_rows(server: Running, tiny: Qwen3Encoder, num_texts: int, encoding: str) -> None:
    """Answers written in one piece and in blocks hold every row at its index, of unit length."""
    texts = [f"{number} bottles of beer" for number in range(num_texts)]
    body = {"model": "tiny", "input": texts, "encoding_format": encoding, "dimensions": 40}
    answer = server.post("/v1/embeddings", body)
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert [one["index"] for one in answer.body["data"]] == list(range(num_texts))
    assert {one["object"] for one in answer.body["data"]} == {"embedding"}
    rows = [one["embedding"] for one in answer.body["data"]]
    if encoding == "base64":
        rows = [np.frombuffer(base64.b64decode(row), "<f4") for row in rows]
    whole = tiny.encode_documents(texts)[:, :40]
    expected = whole / np.linalg.norm(whole, axis=1, keepdims=True)
    assert_close(np.array(rows, np.float32), expected)
    assert {**answer.body, "data": 0} == {
        "object": "list",
        "data": 0,
        "model": "tiny",
        "usage": dict.fromkeys(
            ("prompt_tokens", "total_tokens"), sum(map(tiny.count_tokens, texts))
        ),
    }


def test_usage_of_a_query_counts_its_instruction(server: Running, tiny: Qwen3Encoder) -> None:
    """`usage` holds what the model read: the instruction and the end token too."""
    body = {"model": "tiny", "input": "a", "input_type": "query", "instruction": "Find the law"}
    answer = server.post("/v1/embeddings", body)
    expected = tiny.count_tokens("Instruct: Find the law\nQuery:a")
    assert answer.body["usage"]["prompt_tokens"] == expected


def test_truncate(server: Running, tiny: Qwen3Encoder) -> None:
    """A text that is too long is cut with END, refused with NONE, and its usage is what is left."""
    long = "word " * (tiny.max_length + 10)
    for truncate in ("END", True, None):
        body = {"model": "tiny", "input": [long], "truncate": truncate}
        answer = server.post("/v1/embeddings", body)
        assert answer.body["usage"]["prompt_tokens"] == tiny.max_length, truncate
    for truncate in ("NONE", False):
        body = {"model": "tiny", "input": ["short", long], "truncate": truncate}
        answer = server.post("/v1/embeddings", body)
        assert answer.status == 400
        assert answer.body["error"]["code"] == "context_length_exceeded"
        assert f"max_length is {tiny.max_length}" in answer.body["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank"])
def test_rerank(server: Running, reranker: Qwen3Reranker, path: str) -> None:
    """Documents come back best first, with the reranker's scores and their places."""
    documents = ["Paris", "Water boils at 100 °C.", "", "The capital of France is Paris.", "Rome"]
    query = "capital of France"
    expected = reranker.score(query, documents)
    body = {"model": "reranker", "query": query, "documents": documents}
    answer = server.post(path, body)
    assert answer.status == 200, answer.body
    results = answer.body["results"]
    assert [one["index"] for one in results] == np.argsort(-expected, kind="stable").tolist()
    found = np.array([one["relevance_score"] for one in results], np.float32)
    assert_close(found, np.sort(expected)[::-1], 1e-5)
    assert all("document" not in one for one in results)
    assert answer.body["usage"]["total_tokens"] > 5 * 48, "the frame counts for each document"

    objects = [{"text": document} for document in documents]
    body |= {"documents": objects, "top_n": 2, "return_documents": True, "instruction": "Find"}
    best = server.post(path, body).body["results"]
    expected = reranker.score(query, documents, instruction="Find")
    assert [one["index"] for one in best] == np.argsort(-expected, kind="stable")[:2].tolist()
    assert [one["document"]["text"] for one in best] == [documents[one["index"]] for one in best]


WRONG = [
    ({"input": "a"}, 400, "model", "you must provide a model parameter"),
    ({"model": "tiny"}, 400, "input", "you must provide a input parameter"),
    ({"model": "tiny", "input": 3}, 400, "input", "input must be a text"),
    ({"model": "tiny", "input": ["a", 3]}, 400, "input", "input must be a text"),
    ({"model": "tiny", "input": [1.5]}, 400, "input", "input must be a text"),
    ({"model": "tiny", "input": [True]}, 400, "input", "input must be a text"),
    ({"model": "tiny", "input": [-1]}, 400, "input", "input must be a text"),
    ({"model": "tiny", "input": [2**40]}, 400, "input", "input must be a text"),
    ({"model": "tiny", "input": [23_999_999]}, 400, "input", "the model knows 0 to"),
    ({"model": "tiny", "input": [[]]}, 400, "input", "no token ids"),
    ({"model": "tiny", "input": [[1], "a"]}, 400, "input", "input must be a text"),
    ({"model": "tiny", "input": ["a", " \n"]}, 400, "input", "documents[1] is blank"),
    ({"model": "tiny", "input": "a", "dimensions": 0}, 400, "dimensions", "greater than or"),
    ({"model": "tiny", "input": "a", "dimensions": 31}, 400, None, "from 32 to 256"),
    ({"model": "tiny", "input": "a", "dimensions": "64"}, 400, "dimensions", "valid integer"),
    ({"model": "tiny", "input": "a", "encoding_format": "hex"}, 400, "encoding_format", "'float'"),
    ({"model": "tiny", "input": "a", "input_type": "image"}, 400, "input_type", "'query'"),
    ({"model": "tiny", "input": "a", "truncate": "START"}, 400, "truncate", "NONE"),
    ({"model": "tiny", "input": "a", "instruction": "x"}, 400, "instruction", "input_type"),
    (
        {"model": "tiny", "input": "a", "input_type": "query", "instruction": " "},
        400,
        None,
        "instruction is blank",
    ),
    ({"model": "tiny", "input": [1, 2], "input_type": "query"}, 400, "input", "send the query as"),
    ({"model": "tiny", "input": "a", "prompt": "x"}, 400, "prompt", "Unrecognized request"),
    ({"model": "reranker", "input": "a"}, 400, "model", "cannot make vectors; served for that"),
    ({"model": "none", "input": "a"}, 404, "model", "does not exist; served: tiny"),
    (b"", 400, None, "the body is not JSON"),
    (b"{", 400, None, "the body is not JSON"),
    (b"[]", 400, None, "must be a JSON object"),
    (b'{"model": "tiny", "input": "\\ud800"}', 400, None, "the body is not JSON"),
    (b'{"model": "tiny", "input": "\xff"}', 400, None, "the body is not JSON"),
    (b"[" * 100_000, 400, None, "the body is not JSON"),
]


@pytest.mark.parametrize(("body", "status", "param", "says"), WRONG)
def test_what_is_wrong_is_said(server: Running, body, status, param, says) -> None:
    """Each mistake gets its status, in OpenAI's shape, with the field and what is allowed."""
    answer = server.post("/v1/embeddings", body)
    assert answer.status == status, answer.body
    error = answer.body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert says in error["message"]


@pytest.mark.parametrize(
    ("fields", "status", "says"),
    [
        ({"documents": []}, 400, "documents holds 0 texts"),
        ({"documents": "a"}, 400, "documents: "),
        ({"documents": [{"title": "a"}]}, 400, "documents"),
        ({"query": " "}, 400, "query is blank"),
        ({"top_n": 0}, 400, "top_n"),
        ({"model": "tiny"}, 400, "cannot rerank; served for that: reranker"),
        ({"max_chunks_per_doc": 1}, 400, "Unrecognized request argument supplied: max_chunks"),
    ],
)
def test_what_is_wrong_with_a_rerank_is_said(server: Running, fields, status, says) -> None:
    """A mistake in a rerank request gets the same shape."""
    body = {"model": "reranker", "query": "q", "documents": ["a"]} | fields
    answer = server.post("/v1/rerank", body)
    assert answer.status == status, answer.body
    assert says in answer.body["error"]["message"]


def test_other_paths_methods_and_types(server: Running) -> None:
    """The router's refusals have the shape of all others."""
    for answer, status in (
        (server.get("/v1/nothing"), 404),
        (server.get("/v1/embeddings"), 405),
        (server.get("/v1/models/nothing"), 404),
        (server.post("/v1/embeddings", {}, **{"content-type": "text/plain"}), 415),
    ):
        assert answer.status == status
        assert set(answer.body["error"]) == {"message", "type", "param", "code"}
    assert server.get("/v1/embeddings").headers["allow"] == "POST"


def test_models(server: Running) -> None:
    """/v1/models lists every name and alias, with what a client must know of it."""
    answer = server.get("/v1/models").body
    assert answer["object"] == "list"
    by_name = {one["id"]: one for one in answer["data"]}
    assert set(by_name) == {"tiny", "text-embedding-3-small", "reranker"}
    assert by_name["tiny"]["dimensions"] == 256
    assert by_name["reranker"]["kind"] == "reranking"
    assert server.get("/v1/models/tiny").body == by_name["tiny"]


def test_health_and_documents(server: Running) -> None:
    """The health routes answer, and the OpenAPI document describes both bodies."""
    assert server.get("/healthz").body == {"status": "ok"}
    ready = server.get("/readyz")
    assert ready.body["models"] == {"tiny": "loaded", "reranker": "loaded"}
    document = server.get("/openapi.json").body
    schemas = document["components"]["schemas"]
    assert {"input", "dimensions", "input_type"} <= set(schemas["EmbeddingRequest"]["properties"])
    assert {"query", "documents", "top_n"} <= set(schemas["RerankRequest"]["properties"])
    assert "swagger" in server.client.get("/docs").text.lower()


def test_request_ids(server: Running) -> None:
    """A client's id for its request comes back; one that could break a log does not."""
    assert server.get("/healthz", **{"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    made = server.get("/healthz", **{"x-request-id": "a b;"}).headers["x-request-id"]
    assert len(made) == 32
