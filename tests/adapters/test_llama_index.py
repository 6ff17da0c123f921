"""The LlamaIndex door. No suite for embeddings exists there, so this is one.

What it asks is what other embeddings of LlamaIndex get wrong: settings lost by pickling, queries
answered from a cache of documents, an event loop that stands still.
"""

from __future__ import annotations

import asyncio
import json
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core import StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload
from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index.core.ingestion import IngestionCache, IngestionPipeline
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.embedding import EmbeddingEndEvent
from llama_index.core.schema import TextNode, TransformComponent
from llama_index.core.storage.kvstore import SimpleKVStore
from pydantic import ValidationError

from qwen3_embedding_integrations import (
    ConfigError,
    EncoderConfig,
    InputError,
    Qwen3Encoder,
    shared_encoder,
)
from qwen3_embedding_integrations.llama_index import Qwen3Embedding
from tests.adapters.spy import spied_encoder

QUERY = "How do I reset my password?"
TEXTS = ["如果忘记了账户密码，可以用手机号重置。", "Refunds are paid within 14 days.", QUERY]
# A value other than the default for every option that changes a vector or how it is made.
OPTIONS: dict[str, Any] = {
    "model_name": "tiny",
    "dtype": "float32",
    "device": "cpu",
    "attention": "sdpa",
    "max_batch_tokens": 999,
    "max_queue_tokens": 99_999,
    "local_files_only": True,
    "dimensions": 64,
    "instruction": "Find the help article that answers the question",
    "max_length": 48,
    "on_too_long": "chunk_mean",
    "on_empty": "embed",
}


def embedding(**fields: Any) -> Qwen3Embedding:
    """Return a model whose encoder is the `tiny` fixture's, unless told otherwise."""
    return Qwen3Embedding(**{"model_name": "tiny", "dtype": "float32", **fields})


def nodes() -> list[TextNode]:
    return [TextNode(id_=str(i), text=text) for i, text in enumerate(TEXTS)]


# --- what it is ----------------------------------------------------------------------------------


def test_it_is_an_embedding_and_a_transformation() -> None:
    """LlamaIndex takes it wherever it takes an embedding model or a step of a pipeline."""
    ancestors = Qwen3Embedding.__mro__
    assert BaseEmbedding in ancestors
    assert TransformComponent in ancestors
    assert Qwen3Embedding.class_name() == "Qwen3Embedding"


def test_every_option_is_a_field() -> None:
    """What is no field would be lost by pickling and ignored by the hash of a pipeline's cache."""
    options = set(EncoderConfig.option_names()) - {"model"} | {"model_name"}
    assert options <= set(Qwen3Embedding.model_fields)
    own = set(Qwen3Embedding.model_fields) - set(BaseEmbedding.model_fields)
    assert own == options - {"model_name"}
    for option, default in EncoderConfig().to_dict().items():
        name = "model_name" if option == "model" else option
        assert Qwen3Embedding.model_fields[name].default == default, f"default of {name}"


def test_a_call_takes_512_texts(tiny: Qwen3Encoder) -> None:
    """LlamaIndex's own default of 10 would keep the device waiting; a set size is obeyed."""
    assert Qwen3Embedding().embed_batch_size == 512
    texts = [f"text {i}" for i in range(600)]
    callbacks = Callbacks()
    model = embedding(callback_manager=CallbackManager([callbacks]))
    vectors = model.get_text_embedding_batch(texts)
    assert [len(chunks) for chunks, _ in callbacks.seen] == [512, 88]
    error = np.abs(np.subtract(vectors, tiny.encode_documents(texts))).max()
    assert error < 1e-6, f"vectors differ by {error}"


def test_unknown_fields_and_impossible_values_are_refused_at_once() -> None:
    """A misspelt option is an error when the object is made, before any model loads."""
    for fields in ({"dimension": 64}, {"query_instruction": "x"}, {"dtype": "int8"}):
        with pytest.raises(ValidationError):
            embedding(**fields)
    for dimensions in (0, 31):
        with pytest.raises(ConfigError, match=f"dimensions is {dimensions}"):
            embedding(dimensions=dimensions)
    with pytest.raises(ConfigError, match="instruction is blank"):
        embedding(instruction=" ")


def test_a_ready_encoder_is_used_and_its_options_become_the_fields(tiny: Qwen3Encoder) -> None:
    """`encoder=` gives vectors of that encoder, and the fields tell its options."""
    given = Qwen3Embedding(encoder=tiny)
    assert given.encoder is tiny
    assert given.config() == tiny.config
    assert given.get_query_embedding(QUERY) == tiny.encode_queries([QUERY])[0].tolist()
    with pytest.raises(ConfigError, match="either encoder or options"):
        Qwen3Embedding(encoder=tiny, dimensions=64)
    assert Qwen3Embedding(encoder=tiny, embed_batch_size=7).embed_batch_size == 7


def test_an_option_set_later_counts(tiny: Qwen3Encoder) -> None:
    """LlamaIndex's fields may be assigned: vectors follow, whether an encoder was given or not."""
    for model in (embedding(), Qwen3Embedding(encoder=tiny)):
        model.dimensions = 64
        assert model.to_dict()["dimensions"] == 64
        width = len(model.get_text_embedding(QUERY))
        assert width == 64, f"the fields say 64 dimensions, the vectors have {width}"


async def test_bad_texts_are_refused_and_harm_no_other_call() -> None:
    """Each bad text gets its own error, and the next call is answered as ever."""
    model = embedding()
    before = model.get_text_embedding_batch(TEXTS)
    assert model.get_text_embedding_batch([]) == []
    for bad in ("", " \n", "\ud800"):
        with pytest.raises(InputError):
            model.get_text_embedding_batch([*TEXTS, bad])
        with pytest.raises(InputError):
            await model.aget_query_embedding(bad)
    assert model.get_text_embedding_batch(TEXTS) == before


# --- settings survive ----------------------------------------------------------------------------


def all_vectors(model: Qwen3Embedding) -> list[list[float]]:
    """Return vectors that tell every option: of a query, of texts, one too long and one empty."""
    long = " ".join(f"word {i}." for i in range(60))
    return [model.get_query_embedding(QUERY), *model.get_text_embedding_batch([*TEXTS, long, ""])]


def test_pickling_keeps_every_setting() -> None:
    """The other side of a process pool computes the same bits."""
    model = embedding(**OPTIONS)
    copy = pickle.loads(pickle.dumps(model))
    assert copy.config() == model.config()
    assert all_vectors(copy) == all_vectors(model)


def test_pickling_a_model_over_a_ready_encoder_keeps_its_vectors(tiny: Qwen3Encoder) -> None:
    """Weights do not travel: the copy finds the encoder of the same options."""
    model = Qwen3Embedding(encoder=tiny)
    data = pickle.dumps(model)
    assert len(data) < 10_000, f"{len(data)} bytes"
    assert pickle.loads(data).get_text_embedding(QUERY) == model.get_text_embedding(QUERY)


def test_a_dictionary_keeps_every_setting() -> None:
    """`to_dict` and `to_json` hold all options and no weights; `from_dict` reads them."""
    model = embedding(**OPTIONS)
    stored = model.to_dict()
    assert {name: stored[name] for name in OPTIONS} == OPTIONS
    assert json.loads(model.to_json()) == stored
    for copy in (Qwen3Embedding.from_dict(stored), Qwen3Embedding.from_json(model.to_json())):
        assert copy.config() == model.config()
        assert all_vectors(copy) == all_vectors(model)


# --- caches --------------------------------------------------------------------------------------


def test_a_cache_never_answers_a_query_with_a_document() -> None:
    """One text in both roles, on every sync road and in both orders, is embedded twice."""
    query, text = embedding().get_query_embedding(QUERY), embedding().get_text_embedding(QUERY)
    assert query != text
    for first in ("query", "text"):
        cached = embedding(embeddings_cache=SimpleKVStore())
        for _ in range(2):  # the second round is answered from the cache
            if first == "query":
                assert cached.get_query_embedding(QUERY) == query
            assert cached.get_text_embedding(QUERY) == text
            assert cached.get_text_embedding_batch([QUERY]) == [text]
            assert cached.get_query_embedding(QUERY) == query


async def test_an_async_cache_never_answers_a_query_with_a_document() -> None:
    """The same on the async roads, over a store that the sync roads have filled."""
    query, text = embedding().get_query_embedding(QUERY), embedding().get_text_embedding(QUERY)
    cached = embedding(embeddings_cache=SimpleKVStore())
    for _ in range(2):
        assert await cached.aget_text_embedding(QUERY) == text
        assert await cached.aget_query_embedding(QUERY) == query
        assert await cached.aget_text_embedding_batch([QUERY]) == [text]
        assert cached.get_text_embedding_batch([QUERY]) == [text]
        assert cached.get_query_embedding(QUERY) == query


async def test_a_cache_saves_the_work() -> None:
    """What was embedded once, by whichever road, is not embedded again."""
    cached = embedding(embeddings_cache=SimpleKVStore(), dimensions=96)
    first = cached.get_text_embedding_batch(TEXTS), cached.get_query_embedding(QUERY)
    num_texts = cached.encoder.stats().texts
    again = cached.get_text_embedding_batch(TEXTS), cached.get_query_embedding(QUERY)
    later = await cached.aget_text_embedding_batch(TEXTS), await cached.aget_query_embedding(QUERY)
    assert first == again == later
    assert [cached.get_text_embedding(text) for text in TEXTS] == first[0]
    assert cached.encoder.stats().texts == num_texts


@pytest.mark.parametrize(
    "other",
    [
        {"dimensions": 64},
        {"instruction": "Find the law"},
        {"max_length": 32},
        {"max_length": 32, "on_too_long": "chunk_mean"},
        {"dtype": "bfloat16"},
        {"model_name": "small_checkpoint"},
    ],
    ids="-".join,
)
def test_models_that_share_a_store_keep_their_vectors_apart(
    other: dict[str, Any], small_checkpoint: Path
) -> None:
    """A store may serve several models and options: none gets another's vector."""
    if "model_name" in other:
        # The same max_length, so that the weights alone tell the two apart.
        other = {"model_name": str(small_checkpoint), "max_length": 2048}
    store, text = SimpleKVStore(), " ".join([QUERY] * 8)
    for fields in ({}, other, {}):
        cached, plain = embedding(embeddings_cache=store, **fields), embedding(**fields)
        for method in ("get_query_embedding", "get_text_embedding"):
            difference = np.subtract(getattr(cached, method)(text), getattr(plain, method)(text))
            assert np.abs(difference).max() == 0, f"{method} under {fields}"
    if "model_name" in other:
        embedding(**other).encoder.close()


def test_a_persisted_cache_serves_the_next_process(tmp_path: Path) -> None:
    """LlamaIndex writes its store as JSON: vectors read back are the same bits."""
    store = SimpleKVStore()
    first = embedding(embeddings_cache=store).get_text_embedding(QUERY)
    store.persist(str(tmp_path / "cache.json"))
    read = SimpleKVStore.from_persist_path(str(tmp_path / "cache.json"))
    cached = embedding(embeddings_cache=read, max_batch_tokens=998)
    num_forwards = cached.encoder.stats().forwards
    assert cached.get_text_embedding(QUERY) == first
    assert cached.encoder.stats().forwards == num_forwards
    cached.encoder.close()


# --- pipelines and indexes -----------------------------------------------------------------------


@pytest.mark.parametrize("disable_cache", [True, False])
def test_a_pipeline_embeds_its_nodes(disable_cache: bool) -> None:
    """Nodes come out in order with the vectors the encoder gives."""
    model = embedding()
    pipeline = IngestionPipeline(transformations=[model], disable_cache=disable_cache)
    out = pipeline.run(nodes=nodes())
    assert [node.get_content() for node in out] == TEXTS
    assert [node.embedding for node in out] == model.encoder.encode_documents(TEXTS).tolist()


async def test_an_async_pipeline_embeds_its_nodes() -> None:
    """`arun` gives what `run` gives."""
    model = embedding()
    out = await IngestionPipeline(transformations=[model]).arun(nodes=nodes())
    assert [node.embedding for node in out] == model.get_text_embedding_batch(TEXTS)


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="LlamaIndex warns of more workers than CPUs")
def test_a_pipelines_workers_compute_with_every_setting() -> None:
    """Spawned workers get the options by pickling and load the model themselves."""
    model = embedding(**OPTIONS)
    pipeline = IngestionPipeline(transformations=[model], disable_cache=True)
    out = pipeline.run(nodes=nodes(), num_workers=1)
    spread = pipeline.run(nodes=nodes(), num_workers=2)
    error = np.abs(np.subtract([n.embedding for n in spread], [n.embedding for n in out])).max()
    assert error < 1e-6, f"vectors of the workers differ by {error}"


def test_a_pipelines_cache_knows_every_option() -> None:
    """The same step is answered from the cache; one with any other option is computed anew."""
    cache = IngestionCache()

    def run(**fields: Any) -> tuple[list[Any], int]:
        model = embedding(**fields)
        before = model.encoder.stats().texts
        out = IngestionPipeline(transformations=[model], cache=cache).run(nodes=nodes())
        return [node.embedding for node in out], model.encoder.stats().texts - before

    first, num_texts = run()
    assert num_texts == len(TEXTS)
    assert run() == (first, 0)
    for name in set(OPTIONS) - {"model_name", "dtype", "device"}:
        _, num_texts = run(**{name: OPTIONS[name]})
        assert num_texts == len(TEXTS), f"another {name} was answered from the cache"
    assert np.shape(run(dimensions=64)[0]) == (len(TEXTS), 64)


def test_an_index_finds_what_was_put_in(tmp_path: Path) -> None:
    """Built, persisted, loaded and asked: the scores are those of the encoder."""
    model = embedding()
    VectorStoreIndex(nodes(), embed_model=model).storage_context.persist(str(tmp_path))
    context = StorageContext.from_defaults(persist_dir=str(tmp_path))
    index = load_index_from_storage(context, embed_model=model)
    found = index.as_retriever(similarity_top_k=3).retrieve(QUERY)
    scores = model.encoder.encode_documents(TEXTS) @ model.encoder.encode_queries([QUERY])[0]
    order = np.argsort(-scores)
    assert [one.node.get_content() for one in found] == [TEXTS[i] for i in order]
    error = np.abs([one.score for one in found] - scores[order]).max()
    assert error < 1e-6, f"scores differ by {error}"


async def test_an_index_answers_an_async_retriever() -> None:
    """`aretrieve` gives what `retrieve` gives."""
    retriever = VectorStoreIndex(nodes(), embed_model=embedding()).as_retriever(similarity_top_k=3)
    expected = [(one.node_id, one.score) for one in retriever.retrieve(QUERY)]
    assert [(one.node_id, one.score) for one in await retriever.aretrieve(QUERY)] == expected


# --- events --------------------------------------------------------------------------------------


class Events(BaseEventHandler):
    """Keeps the ends of embeddings."""

    seen: list[EmbeddingEndEvent] = []  # noqa: RUF012  # pydantic copies it per object

    def handle(self, event: Any, **_: Any) -> None:
        if isinstance(event, EmbeddingEndEvent):
            self.seen.append(event)


class Callbacks(BaseCallbackHandler):
    """Keeps the ends of embeddings, the older way."""

    def __init__(self) -> None:
        super().__init__([], [])
        self.seen: list[tuple[list[str], list[list[float]]]] = []

    def on_event_start(self, *_: Any, **__: Any) -> str:
        return ""

    def on_event_end(
        self, event_type: CBEventType, payload: dict[str, Any] | None = None, *_: Any, **__: Any
    ) -> None:
        if event_type == CBEventType.EMBEDDING and payload:
            self.seen.append((payload[EventPayload.CHUNKS], payload[EventPayload.EMBEDDINGS]))

    def start_trace(self, trace_id: str | None = None) -> None:
        pass

    def end_trace(self, *_: Any, **__: Any) -> None:
        pass


@pytest.fixture
def events() -> Iterator[Events]:
    handler, dispatcher = Events(), get_dispatcher()
    dispatcher.add_event_handler(handler)
    yield handler
    dispatcher.event_handlers.remove(handler)


@pytest.mark.parametrize("store", [None, SimpleKVStore], ids=["no cache", "cache"])
async def test_events_carry_lists_of_python_floats(
    events: Events, store: Callable[[], SimpleKVStore] | None
) -> None:
    """Every road tells LlamaIndex's observers each text once, with a vector they can serialise."""
    callbacks = Callbacks()
    model = embedding(
        callback_manager=CallbackManager([callbacks]), embeddings_cache=store() if store else None
    )
    model.get_query_embedding(QUERY)
    await model.aget_query_embedding(QUERY)
    model.get_text_embedding(TEXTS[0])
    await model.aget_text_embedding(TEXTS[0])
    model.get_text_embedding_batch(TEXTS)
    await model.aget_text_embedding_batch(TEXTS)
    assert [event.chunks for event in events.seen] == [[QUERY]] * 2 + [TEXTS[:1]] * 2 + [TEXTS] * 2
    assert [chunks for chunks, _ in callbacks.seen] == [event.chunks for event in events.seen]
    for event, (_, told) in zip(events.seen, callbacks.seen, strict=True):
        assert told == event.embeddings
        assert {type(told), *map(type, told)} == {list}
        assert {type(number) for vector in told for number in vector} == {float}


# --- asynchronous --------------------------------------------------------------------------------


@pytest.mark.parametrize("store", [None, SimpleKVStore], ids=["no cache", "cache"])
async def test_the_event_loop_runs_while_the_device_works(
    store: Callable[[], SimpleKVStore] | None,
) -> None:
    """A coroutine of the same loop opens the device's gate: it could not if a method blocked."""
    with spied_encoder() as spied:
        model = Qwen3Embedding(encoder=spied.encoder, embeddings_cache=store() if store else None)
        spied.spy.gate.clear()
        tasks = [
            asyncio.create_task(one)
            for one in (
                model.aget_query_embedding(QUERY),
                model.aget_text_embedding(TEXTS[0]),
                model.aget_text_embedding_batch(TEXTS),
                model.acall(nodes()),
            )
        ]
        texts = [spied.ids(text) for text in TEXTS]
        prompt = f"Instruct: {model.instruction}\nQuery:"
        assert await asyncio.to_thread(spied.spy.wait_for, *texts, spied.ids(prompt + QUERY))
        assert not any(task.done() for task in tasks)
        spied.spy.gate.set()
        await asyncio.gather(*tasks)


async def test_the_event_loop_runs_while_the_model_loads(small_checkpoint: Path) -> None:
    """The first awaited text loads the model in a thread, with a cache and without."""
    for store in (None, SimpleKVStore()):
        options: dict[str, Any] = {"dtype": "float32", "max_batch_tokens": 2047}
        model = Qwen3Embedding(model_name=str(small_checkpoint), embeddings_cache=store, **options)
        first = asyncio.create_task(model.aget_query_embedding(QUERY))
        rounds = 0
        while not first.done():
            await asyncio.sleep(0.001)
            rounds += 1
        assert len(await first) == 256
        assert rounds > 10, f"the loop went round {rounds} times only"
        shared_encoder(EncoderConfig(model=str(small_checkpoint), **options)).close()
