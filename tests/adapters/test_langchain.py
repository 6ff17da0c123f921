"""The LangChain door: LangChain's own suites, then what no suite of theirs asks."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_chroma import Chroma
from langchain_core.embeddings import Embeddings
from langchain_tests.integration_tests import (
    EmbeddingsIntegrationTests,
    VectorStoreIntegrationTests,
)
from langchain_tests.unit_tests import EmbeddingsUnitTests

from qwen3_embedding_integrations import (
    ConfigError,
    EncoderConfig,
    InputError,
    ModelLoadError,
    Qwen3Encoder,
    shared_encoder,
)
from qwen3_embedding_integrations.core.prompts import query_prompt
from qwen3_embedding_integrations.langchain import Qwen3Embeddings
from tests.adapters.spy import spied_encoder

QUERY = "How do I reset my password?"
DOCUMENTS = [
    "如果忘记了账户密码，可以用手机号重置。",
    "Refunds are paid within 14 days.",
    "🚀 to\nthe moon",
]


class TestEmbeddingsUnit(EmbeddingsUnitTests):
    """LangChain's unit tests of an embeddings class."""

    @property
    def embeddings_class(self) -> type[Embeddings]:
        return Qwen3Embeddings

    @property
    def embedding_model_params(self) -> dict[str, object]:
        return {"model": "tiny", "dtype": "float32", "dimensions": 64}


class TestEmbeddingsIntegration(EmbeddingsIntegrationTests):
    """LangChain's integration tests of an embeddings class."""

    @property
    def embeddings_class(self) -> type[Embeddings]:
        return Qwen3Embeddings

    @property
    def embedding_model_params(self) -> dict[str, object]:
        return {"model": "tiny", "dtype": "float32"}


class TestChromaStore(VectorStoreIntegrationTests):
    """LangChain's tests of a vector store: langchain-chroma, filled with our vectors."""

    @staticmethod
    def get_embeddings() -> Embeddings:
        return Qwen3Embeddings("tiny", dtype="float32")

    @pytest.fixture
    def vectorstore(self) -> Iterator[Chroma]:
        store = Chroma(
            collection_name=f"langchain-{uuid.uuid4().hex}",
            embedding_function=self.get_embeddings(),
        )
        yield store
        store.delete_collection()


@pytest.fixture(scope="module")
def embeddings() -> Qwen3Embeddings:
    return Qwen3Embeddings("tiny", dtype="float32")


def test_vectors_are_lists_of_python_floats(embeddings: Qwen3Embeddings) -> None:
    """Every number is a plain float: the JSON of LangChain's stores takes no other."""
    rows = [embeddings.embed_query(QUERY), *embeddings.embed_documents(DOCUMENTS)]
    assert {type(rows), *map(type, rows)} == {list}
    assert {type(number) for row in rows for number in row} == {float}


async def test_the_async_twins_return_what_the_sync_methods_return(
    embeddings: Qwen3Embeddings,
) -> None:
    """Awaiting gives the same bits as calling."""
    assert await embeddings.aembed_query(QUERY) == embeddings.embed_query(QUERY)
    assert await embeddings.aembed_documents(DOCUMENTS) == embeddings.embed_documents(DOCUMENTS)


def test_a_text_is_read_as_it_stands(embeddings: Qwen3Embeddings) -> None:
    r"""Newlines reach the model: "a\nb" and "a b" are two texts with two vectors."""
    broken, flat = embeddings.embed_documents(["def f():\n    return 1", "def f():     return 1"])
    distance = np.abs(np.subtract(broken, flat)).max()
    assert distance > 1e-3, f"vectors differ by {distance} only"


async def test_the_event_loop_runs_while_the_device_works() -> None:
    """A coroutine of the same loop opens the device's gate: it could not if embedding blocked."""
    with spied_encoder() as spied:
        embeddings = Qwen3Embeddings(encoder=spied.encoder)
        spied.spy.gate.clear()
        documents = asyncio.create_task(embeddings.aembed_documents(DOCUMENTS))
        query = asyncio.create_task(embeddings.aembed_query(QUERY))
        texts = [*DOCUMENTS, query_prompt(spied.encoder.config.instruction) + QUERY]
        assert await asyncio.to_thread(spied.spy.wait_for, *map(spied.ids, texts))
        assert not documents.done()
        assert not query.done()
        spied.spy.gate.set()
        assert len(await documents) == len(DOCUMENTS)
        assert len(await query) == spied.encoder.dimensions


async def test_the_event_loop_runs_while_the_model_loads(small_checkpoint: Path) -> None:
    """The first awaited text loads the model in a thread: the loop goes round meanwhile."""
    embeddings = Qwen3Embeddings(str(small_checkpoint), dtype="float32", max_batch_tokens=2048)
    first = asyncio.create_task(embeddings.aembed_query(QUERY))
    rounds = 0
    while not first.done():
        await asyncio.sleep(0.001)
        rounds += 1
    assert len(await first) == 256
    assert rounds > 10, f"the loop went round {rounds} times only"
    shared_encoder(
        EncoderConfig(model=str(small_checkpoint), dtype="float32", max_batch_tokens=2048)
    ).close()


def test_making_one_loads_nothing(tmp_path: Path) -> None:
    """The model is looked for with the first text, so a missing folder is an error only then."""
    embeddings = Qwen3Embeddings(str(tmp_path / "nothing"))
    with pytest.raises(ModelLoadError, match="nothing"):
        embeddings.embed_query(QUERY)


def test_equal_options_share_one_encoder(tiny: Qwen3Encoder) -> None:
    """Options resolve to the process's encoder; a given encoder is used itself."""
    assert Qwen3Embeddings("tiny", dtype="float32").encoder is tiny
    assert Qwen3Embeddings(encoder=tiny).encoder is tiny


@pytest.mark.parametrize("options", [{"model": "tiny"}, {"dimensions": 64}, {"revision": None}])
def test_encoder_and_options_together_are_refused(
    tiny: Qwen3Encoder, options: dict[str, Any]
) -> None:
    """A ready encoder has its options: others beside it would be ignored, so they are refused."""
    with pytest.raises(ConfigError, match="either encoder or options"):
        Qwen3Embeddings(encoder=tiny, **options)


def test_options_are_checked_when_the_object_is_made() -> None:
    """An unknown name or an impossible value fails at once and says what is allowed."""
    with pytest.raises(ConfigError, match="did you mean 'dimensions'"):
        Qwen3Embeddings("tiny", dimension=64)  # pyright: ignore[reportCallIssue]
    with pytest.raises(ConfigError, match="model_name"):
        Qwen3Embeddings(model_name="tiny")  # pyright: ignore[reportCallIssue]
    for dimensions in (0, 31):
        with pytest.raises(ConfigError, match=f"dimensions is {dimensions}; choose .* 32"):
            Qwen3Embeddings("tiny", dimensions=dimensions)
    with pytest.raises(ConfigError, match="dimensions is 4097, tiny makes 256"):
        Qwen3Embeddings("tiny", dtype="float32", dimensions=4097).embed_query(QUERY)


async def test_bad_texts_are_refused_and_harm_no_other_call(embeddings: Qwen3Embeddings) -> None:
    """Each bad text gets its own error, and the next call is answered as ever."""
    before = embeddings.embed_documents(DOCUMENTS)
    assert embeddings.embed_documents([]) == []
    for bad in ("", " \n", None, 7, b"bytes", "\ud800"):
        with pytest.raises(InputError):
            embeddings.embed_documents([*DOCUMENTS, bad])  # pyright: ignore[reportArgumentType]
        with pytest.raises(InputError):
            await embeddings.aembed_query(bad)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="documents is a str"):
        embeddings.embed_documents("a text")  # pyright: ignore[reportArgumentType]
    assert embeddings.embed_documents(DOCUMENTS) == before
