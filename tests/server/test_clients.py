"""Other people's clients of OpenAI's API, unchanged: our vectors come out of each."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import numpy as np
import openai
import pytest

from qwen3_embedding_integrations import Qwen3Encoder
from qwen3_embedding_integrations.remote import RemoteEncoder
from tests.server.serving import Running, assert_close

TEXTS = [
    "The tower is 324 metres tall.",
    "房东要卖房，租客能优先买吗？",
    "x = [i for i in y]\n" * 9,
]


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[openai.OpenAI]:
    """The official client."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="EMPTY", max_retries=0) as client:
        yield client


def array_of(answer: openai.types.CreateEmbeddingResponse) -> np.ndarray:
    assert [one.index for one in answer.data] == list(range(len(answer.data)))
    return np.array([one.embedding for one in answer.data], np.float32)


@pytest.mark.parametrize("encoding", ["float", "base64", None])
def test_openai(client: openai.OpenAI, tiny: Qwen3Encoder, encoding) -> None:
    """The official client gets the encoder's vectors, in both encodings and by default."""
    options = {} if encoding is None else {"encoding_format": encoding}
    answer = client.embeddings.create(model="tiny", input=TEXTS, **options)
    if encoding == "base64":
        import base64

        rows = [np.frombuffer(base64.b64decode(str(one.embedding)), "<f4") for one in answer.data]
        vectors = np.array(rows)
    else:
        vectors = array_of(answer)
    assert_close(vectors, tiny.encode_documents(TEXTS))
    num_tokens = sum(tiny.count_tokens(text) for text in TEXTS)
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (num_tokens, num_tokens)
    assert answer.model == "tiny"


def test_openai_asks_for_queries_dimensions_and_one_text(
    client: openai.OpenAI, tiny: Qwen3Encoder
) -> None:
    """`extra_body` carries the role and the instruction; `dimensions` and a lone text work."""
    query, instruction = TEXTS[1], "Given a question about the law, find the article"
    fields = {"input_type": "query", "instruction": instruction}
    answer = client.embeddings.create(
        model="text-embedding-3-small", input=query, dimensions=64, user="u", extra_body=fields
    )
    whole = tiny.encode_queries([query], instruction=instruction)[:, :64]
    assert_close(array_of(answer), whole / np.linalg.norm(whole))


def test_openai_sends_token_ids(client: openai.OpenAI, tiny: Qwen3Encoder) -> None:
    """Token ids of this model's tokenizer give the vector of their text, alone and several."""
    ids = [ids.tolist() for ids in tiny._loaded.tokenizer.encode(TEXTS)]
    expected = tiny.encode_documents(TEXTS)
    assert_close(array_of(client.embeddings.create(model="tiny", input=ids)), expected)
    one = client.embeddings.create(model="tiny", input=ids[0][:-1])
    assert_close(array_of(one), expected[:1])
    assert one.usage.prompt_tokens == len(ids[0])


async def test_openai_asynchronous(server: Running, tiny: Qwen3Encoder) -> None:
    """Forty calls at once through the asynchronous client each get their own vectors."""
    texts = [f"{TEXTS[i % 3]} {i}" for i in range(40)]
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="EMPTY") as client:
        calls = [client.embeddings.create(model="tiny", input=text) for text in texts]
        answers = await asyncio.gather(*calls)
    vectors = np.concatenate([array_of(answer) for answer in answers])
    assert_close(vectors, tiny.encode_documents(texts))


@pytest.mark.parametrize(
    ("fields", "error", "says"),
    [
        ({"model": "gpt-4"}, openai.NotFoundError, "The model 'gpt-4' does not exist"),
        ({"input": ""}, openai.BadRequestError, r"documents\[0\] is empty"),
        ({"input": []}, openai.BadRequestError, "input holds 0 texts"),
        ({"dimensions": 5000}, openai.BadRequestError, "from 32 to 256"),
        ({"extra_body": {"task": "x"}}, openai.BadRequestError, "argument supplied: task"),
    ],
)
def test_openai_understands_our_errors(client: openai.OpenAI, fields, error, says) -> None:
    """A refusal is the client's own class of error for it, with our message in it."""
    with pytest.raises(error, match=says) as refused:
        client.embeddings.create(**({"model": "tiny", "input": "a"} | fields))
    assert refused.value.type == "invalid_request_error"
    assert refused.value.request_id


def test_langchain(server: Running, tiny: Qwen3Encoder) -> None:
    """LangChain's OpenAIEmbeddings embeds documents and queries."""
    from langchain_openai import OpenAIEmbeddings

    # Its own check of lengths would send the ids of OpenAI's tokenizer.
    embeddings = OpenAIEmbeddings(
        model="tiny",
        base_url=f"{server.url}/v1",
        api_key="EMPTY",
        check_embedding_ctx_length=False,
    )
    expected = tiny.encode_documents(TEXTS)
    assert_close(np.array(embeddings.embed_documents(TEXTS)), expected)
    assert_close(np.array([embeddings.embed_query(TEXTS[0])]), expected[:1])
    queries = OpenAIEmbeddings(
        model="tiny",
        base_url=f"{server.url}/v1",
        api_key="EMPTY",
        check_embedding_ctx_length=False,
        model_kwargs={"extra_body": {"input_type": "query"}},
    )
    vector = np.array([queries.embed_query(TEXTS[0])])
    assert_close(vector, tiny.encode_queries(TEXTS[:1]))
    assert np.abs(vector - expected[:1]).max() > 0.01, "a query is read as a document"


def test_llama_index(server: Running, tiny: Qwen3Encoder) -> None:
    """LlamaIndex's OpenAI-like embedding embeds texts and queries."""
    from llama_index.embeddings.openai_like import OpenAILikeEmbedding

    embedding = OpenAILikeEmbedding(
        model_name="tiny", api_base=f"{server.url}/v1", api_key="EMPTY", embed_batch_size=2
    )
    # It sends a space for each line break.
    expected = tiny.encode_documents([text.replace("\n", " ") for text in TEXTS])
    assert_close(np.array(embedding.get_text_embedding_batch(TEXTS)), expected)
    assert_close(np.array([embedding.get_query_embedding(TEXTS[0])]), expected[:1])


def test_our_own_remote_encoder(server: Running, tiny: Qwen3Encoder) -> None:
    """RemoteEncoder, which writes the instruction itself, gets the local encoder's vectors."""
    with RemoteEncoder(f"{server.url}/v1", model="tiny") as remote:
        assert_close(remote.encode_documents(TEXTS), tiny.encode_documents(TEXTS))
        assert_close(remote.encode_queries(TEXTS), tiny.encode_queries(TEXTS))


def test_chroma(server: Running, tiny: Qwen3Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chroma's OpenAI function embeds what a collection is given, and what it is asked."""
    from chromadb.utils.embedding_functions import OpenAIEmbeddingFunction

    monkeypatch.setenv("CHROMA_OPENAI_API_KEY", "EMPTY")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    base = f"{server.url}/v1"
    function = OpenAIEmbeddingFunction(model_name="tiny", api_base=base)
    assert_close(np.array(function(TEXTS)), tiny.encode_documents(TEXTS))
    # It sends `dimensions` for names like this one only: that is what an alias is for.
    name = "text-embedding-3-small"
    function = OpenAIEmbeddingFunction(model_name=name, api_base=base, dimensions=128)
    whole = tiny.encode_documents(TEXTS)[:, :128]
    expected = whole / np.linalg.norm(whole, axis=1, keepdims=True)
    assert_close(np.array(function(TEXTS)), expected)
