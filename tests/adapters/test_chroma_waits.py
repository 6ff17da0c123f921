"""Chroma servers that give no answer: how long they are waited for, and what is said then."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import chromadb
import httpx
import pytest

from qwen3_embedding_integrations import (
    ConfigError,
    EmbeddingContract,
    EncoderConfig,
    IndexingError,
    Qwen3Encoder,
    StoreError,
    index_documents,
)
from qwen3_embedding_integrations.chroma import (
    ChromaStore,
    connect,
    find_collection,
    make_current,
    make_version,
    open_collection,
    set_timeout,
)
from tests.servers import ChromaServer, Proxy, serving
from tests.stores import held_by, make_documents

NUM = 30
PATIENCE_S = 60


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChromaServer]:
    with ChromaServer(tmp_path_factory.mktemp("chroma")) as one:
        yield one


@pytest.fixture
def proxy(server: ChromaServer) -> Iterator[Proxy]:
    """Yield what stands before the server, and hangs when a test says so."""
    one = Proxy(server.port, "hang", every=0)
    with serving(one):
        yield one
        one.released.set()


def store_at(client: chromadb.ClientAPI) -> ChromaStore:
    name = f"notes-{time.monotonic_ns()}"
    return ChromaStore(client, open_collection(client, name, model="tiny", dtype="float32"))


def tiny_contract(store: ChromaStore) -> EmbeddingContract:
    assert store.contract is not None
    return store.contract


def timeout_of(client: chromadb.ClientAPI) -> httpx.Timeout:
    return client._server._session.timeout  # type: ignore[attr-defined]


def test_a_server_that_never_answers() -> None:
    """A port that takes connections and says nothing is named with the seconds it was given."""
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        url = f"http://127.0.0.1:{mute.getsockname()[1]}"
        with pytest.raises(StoreError, match=rf"{url} gave no answer in 0\.5 s; see whether"):
            connect(url, timeout_s=0.5)


CALLS: dict[str, Callable[[ChromaStore, chromadb.ClientAPI], object]] = {
    "count": lambda store, _: len(store),
    "hashes": lambda store, _: store.hashes(["a"]),
    "ids_beyond": lambda store, _: store.ids_beyond("a", 0),
    "rows": lambda store, _: [*store.rows()],
    "sources": lambda store, _: [*store.sources()],
    "nearest": lambda store, _: store.nearest(next(store.rows())[1], limit=1),
    "fetch": lambda store, _: store.fetch(["a"]),
    "delete": lambda store, _: store.delete(["a"]),
    "find": lambda store, client: find_collection(client, store.collection.name),
    "open": lambda store, client: open_collection(client, store.collection.name, model="tiny"),
    "swap": lambda store, client: make_current(client, store.collection.name, "x"),
    "version": lambda store, client: make_version(
        client, store.collection.name, tiny_contract(store), EncoderConfig(model="tiny")
    ),
}


def test_calls_end_and_the_next_one_works(proxy: Proxy, tiny: Qwen3Encoder) -> None:
    """Each call of ours that hangs is a StoreError with the seconds; the next one is answered."""
    client = chromadb.HttpClient(port=proxy.server_port)
    store = store_at(client)
    index_documents(make_documents(4), tiny, store)
    set_timeout(client, 0.5)
    proxy.every, proxy.fails_reads = 1, True
    for name, call in CALLS.items():
        with pytest.raises(StoreError, match=rf":{proxy.server_port} gave no answer in 0\.5 s"):
            call(store, client)
            pytest.fail(f"{name} was answered")
    with pytest.raises(httpx.TimeoutException):  # Chroma's own calls raise its own errors
        store.collection.count()
    proxy.every = 0
    set_timeout(client, PATIENCE_S)
    assert len(store) == 4


def test_a_write_that_hangs_is_made_again(proxy: Proxy, tiny: Qwen3Encoder) -> None:
    """A job whose writes hang now and then ends complete, with every row once."""
    client = connect(f"http://127.0.0.1:{proxy.server_port}")
    store = store_at(client)
    set_timeout(client, 2)  # what a write takes on a machine that is busy
    proxy.every = 2
    for first in range(0, NUM, 10):
        documents = make_documents(NUM)[first : first + 10]
        assert index_documents(documents, tiny, store, retry_s=2 * PATIENCE_S).added == 10
    assert proxy.num_faults >= 2
    texts = [text for text, _, _ in held_by(store).values()]
    assert sorted(texts) == sorted(one.text for one in make_documents(NUM))


def test_a_server_that_hangs_for_good(proxy: Proxy, tiny: Qwen3Encoder) -> None:
    """The job ends with how long the server was tried, and how long each answer was waited for."""
    client = connect(f"http://127.0.0.1:{proxy.server_port}")
    store = store_at(client)
    set_timeout(client, 2)
    proxy.every = 1
    match = r"did not recover in 1 s \(write: StoreError: .* gave no answer in 2 s; .* run again"
    with pytest.raises(IndexingError, match=match):
        index_documents(make_documents(NUM), tiny, store, retry_s=1)


def test_only_waits_without_end_are_changed(server: ChromaServer, tmp_path: Path) -> None:
    """A client that has a timeout keeps it; one without gets five minutes; a folder needs none."""
    client = chromadb.HttpClient(port=server.port)
    assert timeout_of(client) == httpx.Timeout(None), "Chroma has a timeout of its own now"
    store = store_at(client)
    assert timeout_of(client) == httpx.Timeout(300, connect=10)
    set_timeout(client, 1000)
    ChromaStore(client, store.collection)
    assert timeout_of(client) == httpx.Timeout(1000, connect=10)
    set_timeout(connect(str(tmp_path)), 5)
    with pytest.raises(ConfigError, match="timeout_s is 0"):
        set_timeout(client, 0)
