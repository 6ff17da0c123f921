"""All doors give what the encoder gives, the model reads what it should, nobody gets another's.

No judge of any host checks that queries carry the instruction and documents do not: a spy at the
border of the device does, for every door, sync and async.
"""

from __future__ import annotations

import asyncio
import gc
import threading
import uuid
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import chromadb
import numpy as np
import pytest
import torch
from qdrant_client import QdrantClient

from qwen3_embedding_integrations import EncoderConfig, InputError, Qwen3Encoder, shared_encoder
from qwen3_embedding_integrations.chroma import Qwen3EmbeddingFunction
from qwen3_embedding_integrations.langchain import Qwen3Embeddings
from qwen3_embedding_integrations.llama_index import Qwen3Embedding
from qwen3_embedding_integrations.qdrant import Qwen3Collection
from tests.adapters.fake_qdrant import fake_qdrant
from tests.adapters.spy import Spied, spied_encoder

QUERY = "如何重置密码？ 🚀"
DOCUMENTS = [
    "如果忘记了账户密码，可以用手机号重置。",
    "def reverse(items: list[int]) -> list[int]:\n    return items[::-1]\n",
    "Refunds are paid within 14 days — to the card you paid with (see Appendix B). " * 3,
    "x",
]
WEB_SEARCH = "Given a web search query, retrieve relevant passages that answer the query"
FIND_HELP = "Find the help article that answers the question"


def query_text(instruction: str, query: str) -> str:
    """Return what the model must read for a query, as the model card writes it."""
    return f"Instruct: {instruction}\nQuery:{query}"


# --- bit for bit ---------------------------------------------------------------------------------


def test_chroma_returns_what_the_encoder_returns(tiny: Qwen3Encoder) -> None:
    """Documents and queries, bit for bit."""
    function = Qwen3EmbeddingFunction("tiny", dtype="float32")
    assert function.encoder is tiny
    assert (np.stack(function(DOCUMENTS)) == tiny.encode_documents(DOCUMENTS)).all()
    assert (np.stack(function.embed_query([QUERY, "x"])) == tiny.encode_queries([QUERY, "x"])).all()


async def test_langchain_returns_what_the_encoder_returns(tiny: Qwen3Encoder) -> None:
    """Documents and queries, sync and async, bit for bit."""
    embeddings = Qwen3Embeddings(encoder=tiny)
    documents, query = tiny.encode_documents(DOCUMENTS).tolist(), tiny.encode_queries([QUERY])
    assert embeddings.embed_documents(DOCUMENTS) == documents
    assert await embeddings.aembed_documents(DOCUMENTS) == documents
    assert [embeddings.embed_query(QUERY)] == query.tolist()
    assert [await embeddings.aembed_query(QUERY)] == query.tolist()


async def test_llama_index_returns_what_the_encoder_returns(tiny: Qwen3Encoder) -> None:
    """Texts and queries, alone and in batches, sync and async, bit for bit."""
    model = Qwen3Embedding(encoder=tiny)
    documents, query = tiny.encode_documents(DOCUMENTS).tolist(), tiny.encode_queries([QUERY])
    first = tiny.encode_documents(DOCUMENTS[:1]).tolist()
    assert model.get_text_embedding_batch(DOCUMENTS) == documents
    assert await model.aget_text_embedding_batch(DOCUMENTS) == documents
    assert [model.get_text_embedding(DOCUMENTS[0])] == first
    assert [await model.aget_text_embedding(DOCUMENTS[0])] == first
    assert [model.get_query_embedding(QUERY)] == query.tolist()
    assert [await model.aget_query_embedding(QUERY)] == query.tolist()


def test_qdrant_sends_what_the_encoder_returns(tiny: Qwen3Encoder) -> None:
    """Documents, bit for bit, as they arrive at a server; a query's score is the cosine."""
    with fake_qdrant() as (client, fake):
        Qwen3Collection(client, "texts", encoder=tiny).upsert(DOCUMENTS)
        assert (fake.vectors == tiny.encode_documents(DOCUMENTS)).all()


@pytest.mark.parametrize("dimensions", [32, 64, 255])
def test_every_door_cuts_to_the_same_width(dimensions: int) -> None:
    """Shorter vectors too are the encoder's own, whichever door they leave by."""
    options: dict[str, Any] = {"dtype": "float32", "dimensions": dimensions}
    encoder = shared_encoder(EncoderConfig(model="tiny", **options))
    rows = encoder.encode_documents(DOCUMENTS)
    assert rows.shape == (len(DOCUMENTS), dimensions)
    assert (np.stack(Qwen3EmbeddingFunction("tiny", **options)(DOCUMENTS)) == rows).all()
    assert Qwen3Embeddings("tiny", **options).embed_documents(DOCUMENTS) == rows.tolist()
    model = Qwen3Embedding(model_name="tiny", **options)
    assert model.get_text_embedding_batch(DOCUMENTS) == rows.tolist()
    with fake_qdrant() as (client, fake):
        Qwen3Collection(client, "texts", model="tiny", **options).upsert(DOCUMENTS)
        assert (fake.vectors == rows).all()


# --- what the model reads ------------------------------------------------------------------------


class Door(NamedTuple):
    """One road through one door; what it is given is what its user gives."""

    index: Callable[[], Awaitable[object]]
    search: Callable[[], Awaitable[object]]


class Doors:
    """Every road through every door, over one spied encoder and real hosts."""

    def __init__(self, spied: Spied) -> None:
        self._spied = spied
        self._client = QdrantClient(":memory:")

    def close(self) -> None:
        self._client.close()

    def chroma(self) -> Door:
        client = chromadb.EphemeralClient()
        # Not a subclass's: Chroma would register that under our name, for all tests after this.
        function = Qwen3EmbeddingFunction.over(self._spied.encoder)
        collection = client.create_collection(
            f"spied-{uuid.uuid4().hex}", embedding_function=function
        )
        ids = [str(i) for i in range(len(DOCUMENTS))]
        return Door(
            in_a_thread(lambda: collection.add(ids=ids, documents=DOCUMENTS)),
            in_a_thread(lambda: collection.query(query_texts=[QUERY], n_results=1)),
        )

    def langchain(self) -> Door:
        embeddings = Qwen3Embeddings(encoder=self._spied.encoder)
        return Door(
            in_a_thread(lambda: embeddings.embed_documents(DOCUMENTS)),
            in_a_thread(lambda: embeddings.embed_query(QUERY)),
        )

    def langchain_async(self) -> Door:
        embeddings = Qwen3Embeddings(encoder=self._spied.encoder)
        return Door(
            lambda: embeddings.aembed_documents(DOCUMENTS), lambda: embeddings.aembed_query(QUERY)
        )

    def llama_index(self) -> Door:
        model = Qwen3Embedding(encoder=self._spied.encoder)
        return Door(
            in_a_thread(lambda: model.get_text_embedding_batch(DOCUMENTS)),
            in_a_thread(lambda: model.get_query_embedding(QUERY)),
        )

    def llama_index_async(self) -> Door:
        model = Qwen3Embedding(encoder=self._spied.encoder)
        return Door(
            lambda: model.aget_text_embedding_batch(DOCUMENTS),
            lambda: model.aget_query_embedding(QUERY),
        )

    def llama_index_one_by_one(self) -> Door:
        model = Qwen3Embedding(encoder=self._spied.encoder)
        return Door(
            in_a_thread(lambda: [model.get_text_embedding(text) for text in DOCUMENTS]),
            in_a_thread(lambda: model.get_agg_embedding_from_queries([QUERY])),
        )

    def llama_index_one_by_one_async(self) -> Door:
        model = Qwen3Embedding(encoder=self._spied.encoder)
        return Door(
            lambda: asyncio.gather(*map(model.aget_text_embedding, DOCUMENTS)),
            lambda: model.aget_agg_embedding_from_queries([QUERY]),
        )

    def qdrant(self) -> Door:
        collection = Qwen3Collection(self._client, "sync", encoder=self._spied.encoder)
        return Door(
            in_a_thread(lambda: collection.upsert(DOCUMENTS)),
            in_a_thread(lambda: collection.query(QUERY)),
        )

    def qdrant_async(self) -> Door:
        collection = Qwen3Collection(self._client, "async", encoder=self._spied.encoder)
        return Door(
            in_a_thread(lambda: collection.upsert(DOCUMENTS)), lambda: collection.aquery(QUERY)
        )


def in_a_thread(call: Callable[[], object]) -> Callable[[], Awaitable[object]]:
    return lambda: asyncio.to_thread(call)


@pytest.fixture(scope="module", params=[WEB_SEARCH, FIND_HELP], ids=["default", "own"])
def doors(request: pytest.FixtureRequest) -> Iterator[tuple[Doors, Spied, str]]:
    """Yield the doors, the spy behind them and the instruction they should put before queries."""
    options = {} if request.param == WEB_SEARCH else {"instruction": request.param}
    with spied_encoder(**options) as spied:
        doors = Doors(spied)
        yield doors, spied, request.param
        doors.close()


@pytest.mark.parametrize(
    "name", [name for name in vars(Doors) if name[0] != "_" and name != "close"]
)
async def test_the_model_reads_documents_bare_and_queries_behind_the_instruction(
    doors: tuple[Doors, Spied, str], name: str
) -> None:
    """The ids that reach the device are the tokenizer's of the text, and of prompt + query."""
    every_door, spied, instruction = doors
    door: Door = getattr(every_door, name)()
    spied.spy.take()
    await door.index()
    read = spied.spy.take()
    assert sorted(read) == sorted(map(spied.ids, DOCUMENTS)), "documents"
    await door.search()
    assert spied.spy.take() == [spied.ids(query_text(instruction, QUERY))], "query"


async def test_an_instruction_of_one_query_is_its_alone(doors: tuple[Doors, Spied, str]) -> None:
    """Qdrant's `query(instruction=...)` reaches the model with that call and no other."""
    _, spied, instruction = doors
    client = QdrantClient(":memory:")
    collection = Qwen3Collection(client, "texts", encoder=spied.encoder)
    spied.spy.take()
    collection.query(QUERY, instruction="Find a law")
    await collection.aquery(QUERY, instruction="Find a judgement")
    collection.query(QUERY)
    client.close()
    instructions = ["Find a law", "Find a judgement", instruction]
    assert spied.spy.take() == [spied.ids(query_text(one, QUERY)) for one in instructions]


def test_a_query_and_a_document_of_one_text_differ_at_every_door(tiny: Qwen3Encoder) -> None:
    """The two sides of a search are never one function."""
    function = Qwen3EmbeddingFunction("tiny", dtype="float32")
    embeddings, model = Qwen3Embeddings(encoder=tiny), Qwen3Embedding(encoder=tiny)
    sides = {
        "chroma": (function.embed_query([QUERY])[0], function([QUERY])[0]),
        "langchain": (embeddings.embed_query(QUERY), embeddings.embed_documents([QUERY])[0]),
        "llama_index": (model.get_query_embedding(QUERY), model.get_text_embedding(QUERY)),
    }
    for door, (query, document) in sides.items():
        distance = np.abs(np.subtract(query, document)).max()
        assert distance > 1e-3, f"{door}: query and document differ by {distance}"


# --- many callers --------------------------------------------------------------------------------

NUM_THREADS = NUM_COROUTINES = 64
ROUNDS = 3


class Crowd:
    """64 threads and 64 coroutines, each at one of the doors with texts of its own."""

    def __init__(self, config: EncoderConfig) -> None:
        options = config.to_dict()
        self._function = Qwen3EmbeddingFunction(**options)
        self._embeddings = Qwen3Embeddings(**options)
        self._model = Qwen3Embedding(model_name=options.pop("model"), **options)
        self._config = config
        self._start = threading.Barrier(NUM_THREADS)

    def texts(self, caller: str, turn: int) -> list[str]:
        """Return 1 to 4 texts nobody else has."""
        number = sum(map(ord, caller)) + turn
        return [f"{caller} {turn} {i} " + "so " * (number % 17) for i in range(1 + number % 4)]

    def thread(self, number: int) -> list[tuple[str, list[str], Any]]:
        """Return (role, texts, rows) of each call of a thread."""
        caller, answers = f"thread {number}", []
        self._start.wait()
        for turn in range(ROUNDS):
            texts = self.texts(caller, turn)
            door = (number + turn) % 4
            if door == 0:
                answers.append(("document", texts, self._function(texts)))
                answers.append(("query", texts, self._function.embed_query(texts)))
            elif door == 1:
                answers.append(("document", texts, self._embeddings.embed_documents(texts)))
                answers.append(("query", texts[:1], [self._embeddings.embed_query(texts[0])]))
            elif door == 2:
                answers.append(("document", texts, self._model.get_text_embedding_batch(texts)))
                answers.append(("query", texts[:1], [self._model.get_query_embedding(texts[0])]))
            else:
                answers.append(("document", texts, self.through_qdrant(caller, texts)))
            if number % 8 == 0:  # among good calls, bad ones, which must harm nobody
                with pytest.raises(InputError):
                    self._embeddings.embed_documents([*texts, ""])
        return answers

    async def coroutine(self, number: int) -> list[tuple[str, list[str], Any]]:
        """Return (role, texts, rows) of each call of a coroutine."""
        caller, answers = f"coroutine {number}", []
        for turn in range(ROUNDS):
            texts = self.texts(caller, turn)
            if (number + turn) % 2:
                rows = await self._embeddings.aembed_documents(texts)
                query = await self._embeddings.aembed_query(texts[0])
            else:
                rows = await self._model.aget_text_embedding_batch(texts)
                query = await self._model.aget_query_embedding(texts[0])
            answers += [("document", texts, rows), ("query", texts[:1], [query])]
        return answers

    def through_qdrant(self, caller: str, texts: list[str]) -> list[Any]:
        """Write the texts to a collection of the caller's own and return the stored vectors."""
        client = QdrantClient(":memory:")  # its local mode is not made for threads
        collection = Qwen3Collection(client, caller, **self._config.to_dict())
        ids = collection.upsert(texts, ids=list(range(len(texts))))
        points = client.retrieve(caller, ids, with_vectors=True)
        client.close()
        return [point.vector for point in sorted(points, key=lambda point: point.id)]


def engine_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "qwen3-engine"}


def vocabulary_tables() -> int:
    """Return how many embedding tables of "tiny" (24,000 rows) live in this process."""
    gc.collect()
    # By type(): isinstance asks lazy objects of other libraries, which warn or import.
    tensors = [one for one in gc.get_objects() if issubclass(type(one), torch.Tensor)]
    return len({one.data_ptr() for one in tensors if one.dim() == 2 and one.shape[0] == 24_000})


async def test_a_crowd_at_all_doors_gets_its_own_rows_from_one_model(tiny: Qwen3Encoder) -> None:
    """64 threads and 64 coroutines, starting cold: one engine, one copy of the weights."""
    # A budget nobody else has: the model of this configuration is not loaded yet.
    config = EncoderConfig(model="tiny", dtype="float32", max_batch_tokens=777)
    crowd = Crowd(config)
    engines, tables = engine_threads(), vocabulary_tables()
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        loop = asyncio.get_running_loop()
        threads = [loop.run_in_executor(pool, crowd.thread, i) for i in range(NUM_THREADS)]
        answers = await asyncio.gather(*threads, *map(crowd.coroutine, range(NUM_COROUTINES)))
    assert len(engine_threads() - engines) == 1
    assert vocabulary_tables() - tables == 1
    encoder = shared_encoder(config)
    stats = encoder.stats()

    calls = [call for caller in answers for call in caller]
    expected = {
        "document": by_text(tiny.encode_documents, calls, "document"),
        "query": by_text(tiny.encode_queries, calls, "query"),
    }
    for role, texts, rows in calls:
        assert len(rows) == len(texts)
        for text, row in zip(texts, rows, strict=True):
            error = np.abs(np.subtract(row, expected[role][text])).max()
            assert error < 2e-5, f"the {role} {text!r} differs by {error}"
    num_texts = sum(len(texts) for _, texts, _ in calls)
    assert stats.texts == num_texts
    assert stats.forwards < num_texts / 2, f"{stats.forwards} forwards for {num_texts} texts"
    nearest = min_distance(np.stack(list(expected["document"].values())))
    assert nearest > 2e-4, f"two texts are {nearest} apart: swapped rows would not be seen"
    encoder.close()


def by_text(
    encode: Callable[[list[str]], np.ndarray], calls: list[tuple[str, list[str], Any]], role: str
) -> dict[str, np.ndarray]:
    """Return each text's row when nobody else asks."""
    texts = list(dict.fromkeys(text for one, texts, _ in calls if one == role for text in texts))
    return dict(zip(texts, encode(texts), strict=True))


def min_distance(rows: np.ndarray) -> float:
    """Return the largest coordinate difference of the two rows that differ least."""
    return min(
        float(np.abs(rows[i + 1 :] - row).max(axis=1).min()) for i, row in enumerate(rows[:-1])
    )
