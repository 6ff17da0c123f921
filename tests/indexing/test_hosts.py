"""Jobs whose host is away for a while, answers with errors, or never comes back."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import chromadb
import grpc
import pytest
from qdrant_client import QdrantClient

from qwen3_embedding_integrations import IndexingError, Qwen3Encoder, index_documents
from qwen3_embedding_integrations.chroma import ChromaStore, open_collection
from qwen3_embedding_integrations.documents import Document
from qwen3_embedding_integrations.qdrant import Qwen3Collection
from tests.adapters.fake_qdrant import Fault, fake_qdrant
from tests.indexing.jobs import Narrow
from tests.servers import ChromaServer, Proxy, QdrantServer, serving
from tests.stores import Counting, held_by, make_documents

NUM = 256  # of which a Narrow sink makes 8 writes
PATIENCE_S = 60
RATE_LIMIT = b'{"error": "RateLimitError", "message": "slow down"}'


@pytest.fixture(scope="module")
def chroma_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChromaServer]:
    with ChromaServer(tmp_path_factory.mktemp("chroma")) as server:
        yield server


@pytest.fixture(params=["chroma", "qdrant"])
def backend(request: pytest.FixtureRequest) -> Iterator[tuple[str, int]]:
    """Yield a server's kind and port."""
    if request.param == "chroma":
        server = request.getfixturevalue("chroma_server")
        yield "chroma", server.port
    else:
        with serving(QdrantServer()) as port:
            yield "qdrant", port


@contextmanager
def sink_at(kind: str, port: int, encoder: Any) -> Iterator[Any]:
    """Yield a fresh collection of a server, asked by REST."""
    name = f"notes-{time.monotonic_ns()}"
    if kind == "chroma":
        client = chromadb.HttpClient(port=port)
        yield ChromaStore(client, open_collection(client, name, model="tiny", dtype="float32"))
    else:
        client = QdrantClient(url=f"http://127.0.0.1:{port}", check_compatibility=False)
        try:
            yield Qwen3Collection(client, name, encoder=encoder).store
        finally:
            client.close()


def assert_whole(sink: Any, encoder: Counting, report: Any) -> None:
    """Check that every document was encoded once and stands in the store once."""
    texts = [one.text for one in make_documents(NUM)]
    assert (report.added, report.failed, len(sink)) == (NUM, 0, NUM)
    assert sorted(encoder.encoded) == sorted(texts)
    assert sorted(text for text, _, _ in held_by(sink).values()) == sorted(texts)


def test_a_server_that_crashes_and_comes_back(tmp_path: Path, tiny: Qwen3Encoder) -> None:
    """Chroma's server is killed in the middle and started again: the job ends complete."""
    encoder = Counting(tiny)
    with ChromaServer(tmp_path) as server, sink_at("chroma", server.port, encoder) as sink:

        def documents() -> Iterator[Document]:
            for index, document in enumerate(make_documents(NUM)):
                if index == NUM // 2:
                    server.kill()
                    restart.start()
                yield document

        restart = threading.Timer(2.0, server.start)
        try:
            report = index_documents(documents(), encoder, Narrow(sink), retry_s=PATIENCE_S)
        finally:
            restart.join()
        assert_whole(sink, encoder, report)


FAULTS: dict[str, tuple[int | str, dict[str, Any]]] = {
    "too many requests": (429, {}),
    "too many requests, wait 1 s": (429, {"headers": {"Retry-After": "1"}}),
    "too many requests, Chroma's words": (429, {"body": RATE_LIMIT}),
    "internal error": (500, {}),
    "bad gateway": (502, {"body": b"<html>bad gateway</html>"}),
    "connection closed before": ("cut", {}),
    "answer lost": ("cut after", {}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_that_pass(backend: tuple[str, int], tiny: Qwen3Encoder, fault: str) -> None:
    """Every fourth write fails: all is written, once, and no text is encoded again."""
    kind, port = backend
    what, more = FAULTS[fault]
    encoder = Counting(tiny)
    with (
        serving(proxy := Proxy(port, what, every=4, **more)) as front,
        sink_at(kind, front, encoder) as sink,
    ):
        report = index_documents(make_documents(NUM), encoder, Narrow(sink), retry_s=PATIENCE_S)
        assert proxy.num_faults >= 2
        assert_whole(sink, encoder, report)


@pytest.mark.parametrize("headers", [{}, {"Retry-After": "1"}], ids=["", "retry after"])
@pytest.mark.parametrize("status", [429, 500])
def test_faults_that_stay(
    backend: tuple[str, int], tiny: Qwen3Encoder, status: int, headers: dict[str, str]
) -> None:
    """A host that fails for good ends the job with what failed and how long it was tried."""
    kind, port = backend
    with (
        serving(proxy := Proxy(port, status, every=1, headers=headers)) as front,
        sink_at(kind, front, tiny) as sink,
    ):
        with pytest.raises(IndexingError, match=r"did not recover in 1 s \(write: ") as raised:
            index_documents(make_documents(NUM), tiny, Narrow(sink), retry_s=1)
        assert sink.name in str(raised.value)
        assert proxy.num_writes > 1
        num_writes = proxy.num_writes
        time.sleep(0.3)
        assert proxy.num_writes == num_writes, "a job that has ended still writes"

        with pytest.raises(IndexingError, match=r"did not recover in 0 s \(write: "):
            index_documents(make_documents(NUM), tiny, Narrow(sink), retry_s=0)


def test_refusals_are_not_repeated(backend: tuple[str, int], tiny: Qwen3Encoder) -> None:
    """What the host refuses for a reason that stays is asked once."""
    kind, port = backend
    with (
        serving(proxy := Proxy(port, 403, every=1, body=b"not yours")) as front,
        sink_at(kind, front, tiny) as sink,
    ):
        with pytest.raises(IndexingError, match=r"failed \(write: .*not yours"):
            index_documents(make_documents(20), tiny, sink)
        assert proxy.num_writes == 1


def test_a_host_that_is_not_there(tiny: Qwen3Encoder, tmp_path: Path) -> None:
    """A server that has gone before the job began is named with how long it was tried."""
    with ExitStack() as stack:
        server = stack.enter_context(ChromaServer(tmp_path))
        sink = stack.enter_context(sink_at("chroma", server.port, tiny))
    with pytest.raises(IndexingError, match="did not recover in 1 s"):
        index_documents(make_documents(20), tiny, sink, retry_s=1)


class TestGrpc:
    """Qdrant's own protocol."""

    @pytest.mark.parametrize(
        "fault",
        [
            Fault(grpc.StatusCode.UNAVAILABLE),
            Fault(grpc.StatusCode.RESOURCE_EXHAUSTED),
            Fault(grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after_s=1),
            Fault(grpc.StatusCode.DEADLINE_EXCEEDED),
            Fault(grpc.StatusCode.ABORTED),
            Fault(grpc.StatusCode.INTERNAL),
        ],
        ids=lambda fault: f"{fault.code.name} {fault.retry_after_s or ''}",
    )
    def test_faults_that_pass(self, tiny: Qwen3Encoder, fault: Fault) -> None:
        """Faults of the next two writes are outlasted: all is written once, encoded once."""
        encoder = Counting(tiny)
        with fake_qdrant() as (client, fake):
            sink = Qwen3Collection(client, "notes", encoder=tiny).store
            fake.faults = [fault] * 2
            report = index_documents(make_documents(NUM), encoder, Narrow(sink), retry_s=PATIENCE_S)
            assert not fake.faults
            assert (report.added, len(fake.points), len(set(fake.ids))) == (NUM, NUM, NUM)
            assert len(encoder.encoded) == NUM
            assert all(fake.waits)

    @pytest.mark.parametrize("retry_after_s", [None, 1])
    def test_a_host_at_its_limits_for_good(
        self, tiny: Qwen3Encoder, retry_after_s: int | None
    ) -> None:
        """A host that says to come back later is not asked for longer than `retry_s`."""
        with fake_qdrant() as (client, fake):
            sink = Qwen3Collection(client, "notes", encoder=tiny).store
            fake.faults = [Fault(grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after_s)] * 1000
            with pytest.raises(IndexingError, match=r"did not recover in 2 s \(write: "):
                index_documents(make_documents(20), tiny, sink, retry_s=2)

    def test_refusals_are_not_repeated(self, tiny: Qwen3Encoder) -> None:
        """A request that the host calls wrong is made once."""
        with fake_qdrant() as (client, fake):
            sink = Qwen3Collection(client, "notes", encoder=tiny).store
            fake.faults = [Fault(grpc.StatusCode.INVALID_ARGUMENT)] * 9
            with pytest.raises(IndexingError, match=r"failed \(write: "):
                index_documents(make_documents(20), tiny, sink)
            assert len(fake.faults) == 8
