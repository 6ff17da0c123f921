"""Limits: who may ask, how much, what a full queue says, and what those who leave give back."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest

from qwen3_embedding_integrations import Qwen3Encoder
from qwen3_embedding_integrations.server import ServedModel, ServerConfig
from tests.adapters.spy import Spied, spied_encoder
from tests.server.serving import Answer, Running, serving, wait_until

KEYS = ("first-key", "second-key")


def asking(running: Running, texts: object, **fields: object) -> Answer:
    return running.post("/v1/embeddings", {"model": "tiny", "input": texts, **fields})


class Kept(Qwen3Encoder):
    """An encoder that outlives the server: closing it leaves the engine to the next test."""

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def spied() -> Iterator[Spied]:
    """`tiny`, whose device waits at a gate, and whose queue holds 200 tokens."""
    with spied_encoder(max_queue_tokens=200) as spied:
        yield spied


@pytest.fixture
def gated(spied: Spied) -> Iterator[Running]:
    """A server of that model with narrow limits."""
    config = ServerConfig(
        max_body_bytes=20_000, max_texts=8, max_tokens=500, max_requests=6, body_timeout_s=0.5
    )
    model = ServedModel(
        "tiny", "embedding", lambda: Kept.over(spied.encoder._loaded, spied.encoder.config)
    )
    with serving([model], config) as running:
        yield running
        spied.spy.gate.set()


def test_api_keys() -> None:
    """Without a key, or with a wrong one, everything but health and documents is a 401."""
    with spied_encoder() as spied:
        model = ServedModel("tiny", "embedding", lambda: spied.encoder)
        with serving([model], ServerConfig(api_keys=KEYS)) as running:
            for headers in (
                {},
                {"authorization": "Bearer"},
                {"authorization": "Bearer first-ke"},
                {"authorization": "Bearer first-key2"},
                {"authorization": "Basic first-key"},
                {"authorization": "Bearer \xff"},
            ):
                raw = {name: value.encode("latin-1") for name, value in headers.items()}
                answer = running.client.get("/v1/models", headers=raw)
                assert answer.status_code == 401, headers
                assert answer.headers["www-authenticate"] == "Bearer"
                assert answer.json()["error"]["type"] == "invalid_request_error"
            assert running.get("/metrics").status == 401
            assert running.get("/healthz").status == 200
            assert running.get("/readyz").status == 200
            for key in KEYS:
                body = {"model": "tiny", "input": "a"}
                answer = running.post("/v1/embeddings", body, authorization=f"Bearer {key}")
                assert answer.status == 200


@pytest.mark.parametrize(
    ("texts", "status", "says"),
    [
        ("word " * 5_000, 413, "larger than 20000 bytes"),
        (["a"] * 9, 400, "input holds 9 texts; give 1 to 8"),
        (["word " * 300] * 2, 400, "604 tokens, 500 are allowed in one call"),
    ],
)
def test_sizes(gated: Running, texts, status: int, says: str) -> None:
    """Too large a body, too many texts or tokens are refused with the limit."""
    answer = asking(gated, texts)
    assert answer.status == status
    assert says in answer.body["error"]["message"]
    assert asking(gated, ["a"] * 8).status == 200


def test_a_body_without_a_length(gated: Running) -> None:
    """A body that comes in pieces is refused when it has grown too large."""

    def pieces() -> Iterator[bytes]:
        yield b'{"model": "tiny", "input": "'
        for _ in range(30):
            yield b"word " * 200

    headers = {"content-type": "application/json"}
    answer = gated.client.post("/v1/embeddings", content=pieces(), headers=headers)
    assert answer.status_code == 413


def test_a_full_queue(gated: Running, spied: Spied) -> None:
    """What does not fit the queue is a 429 with Retry-After; what waits is answered."""
    spied.spy.gate.clear()
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(asking, gated, "the device holds this")
        assert spied.spy.wait_for(spied.ids("the device holds this"))
        second = pool.submit(asking, gated, ["word " * 150])
        wait_until(lambda: spied.encoder.engine_counts().waiting_tokens > 100)
        refused = asking(gated, ["word " * 150])
        assert refused.status == 429, refused.body
        assert refused.body["error"]["code"] == "rate_limit_exceeded"
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert gated.metric("qwen3_queue_tokens", model="tiny") > 100
        spied.spy.gate.set()
        assert (first.result(60).status, second.result(60).status) == (200, 200)


def test_too_many_requests(gated: Running, spied: Spied) -> None:
    """One more than may be under way is a 429; when they are answered, the next one is too."""
    spied.spy.gate.clear()
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(asking, gated, "a") for _ in range(6)]
        wait_until(lambda: spied.encoder.engine_counts().waiting_calls == 6)
        refused = asking(gated, "a")
        assert refused.status == 429
        assert "6 requests are under way" in refused.body["error"]["message"]
        spied.spy.gate.set()
        assert {one.result(60).status for one in waiting} == {200}
    assert asking(gated, "a").status == 200


def raw_request(port: int, body: bytes, length: int) -> socket.socket:
    """Return a connection on which a request was begun, with so much of its body."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    head = f"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n"
    connection.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
    return connection


def test_a_client_that_stalls(gated: Running) -> None:
    """A body that stops in the middle ends in a 408; others are answered meanwhile."""
    with raw_request(gated.port, b'{"model"', 100) as stalled:
        assert asking(gated, "a").status == 200
        answer = stalled.recv(10_000)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"connection: close" in answer.lower()


def test_clients_that_hang_up_free_their_place(gated: Running, spied: Spied) -> None:
    """Who leaves while waiting waits no more: neither tokens nor a place are held for them."""
    spied.spy.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        first: Future[Answer] = pool.submit(asking, gated, "the device holds this too")
        assert spied.spy.wait_for(spied.ids("the device holds this too"))
        body = json.dumps({"model": "tiny", "input": ["gone " * 30]}).encode()
        leaving = [raw_request(gated.port, body, len(body)) for _ in range(5)]
        wait_until(lambda: spied.encoder.engine_counts().waiting_tokens > 5 * 30)
        for connection in leaving:
            connection.close()
        wait_until(lambda: spied.encoder.engine_counts().waiting_tokens == 0)
        spied.spy.gate.set()
        assert first.result(60).status == 200
    read = spied.spy.take()
    assert spied.ids("gone " * 30) not in read, "a text was computed for nobody"
    wait_until(lambda: gated.metric("qwen3_requests_under_way") == 1)


def test_a_thousand_connects(gated: Running) -> None:
    """A thousand clients that connect and leave, before or amid a body, leave nothing behind."""
    for number in range(500):
        socket.create_connection(("127.0.0.1", gated.port), timeout=60).close()
        raw_request(gated.port, b'{"model"' * (number % 2), 100).close()
    assert asking(gated, "still here").status == 200
    wait_until(lambda: gated.metric("qwen3_requests_under_way") == 1)


def test_a_poisoned_request_harms_no_other(gated: Running) -> None:
    """Wrong requests beside right ones: each gets its own answer."""
    with ThreadPoolExecutor(4) as pool:
        texts = ["a", " ", ["b"], [-1], "c", [99_999_999], ["d", ""], [5, 6]]
        statuses = [one.status for one in pool.map(lambda text: asking(gated, text), texts * 10)]
    assert statuses == [200, 400, 200, 400, 200, 400, 400, 200] * 10


def test_the_log_holds_no_text(gated: Running, caplog: pytest.LogCaptureFixture) -> None:
    """A request is one line: id, model, role, texts, tokens, status, time; never what was sent."""
    caplog.set_level(logging.DEBUG, "qwen3_embedding_integrations")
    secret = "zanzibar"
    asking(gated, [f"{secret} one", f"{secret} two"], input_type="query")
    asking(gated, [secret, ""])
    asking(gated, secret, unknown=secret)
    asking(gated, secret, dimensions=secret)
    wait_until(lambda: len([r for r in caplog.records if r.message == "request"]) >= 4)
    facts = [r.__dict__["facts"] for r in caplog.records if r.message == "request"]
    assert [one["status"] for one in facts] == [200, 400, 400, 400]
    assert {**facts[0], "id": 0, "ms": 0} == {
        "id": 0, "method": "POST", "path": "/v1/embeddings", "status": 200, "ms": 0,
        "model": "tiny", "role": "queries", "texts": 2, "tokens": facts[0]["tokens"],
    }  # fmt: skip
    from qwen3_embedding_integrations.server.observe import JsonLines

    lines = [JsonLines().format(record) for record in caplog.records]
    assert secret not in "".join(lines)
    assert json.loads(lines[-1])["message"] == "request"


def test_texts_stay_out_of_the_log_of_a_failure() -> None:
    """An unforeseen error is logged by its type and frames, without its message."""
    from qwen3_embedding_integrations.server.observe import JsonLines

    try:
        raise KeyError("zanzibar")
    except KeyError as error:
        record = logging.LogRecord(
            "x", logging.ERROR, "f", 1, "failed", (), (KeyError, error, error.__traceback__)
        )
    line = json.loads(JsonLines().format(record))
    assert line["error"] == "KeyError"
    assert "test_limits.py" in line["frames"]
    assert "zanzibar" not in line.values()


def test_sixty_four_threads(server: Running, tiny: Qwen3Encoder) -> None:
    """Queries and bulk of 64 threads at once: every row is the text's own, none is lost."""
    queries = [f"how many bottles on wall {number}?" for number in range(40)]
    documents = [f"{number} bottles of beer stand on the wall. " * 4 for number in range(200)]
    expected = tiny.encode_queries(queries), tiny.encode_documents(documents)
    failures: list[object] = []
    until = time.monotonic() + 4

    def ask(thread: int) -> None:
        turn = thread
        while time.monotonic() < until and not failures:
            turn += 7
            if thread % 4:
                row = turn % len(queries)
                found = server.vectors([queries[row]], input_type="query")
                right = expected[0][row : row + 1]
            else:
                rows = [(turn + i) % len(documents) for i in range(50)]
                found = server.vectors([documents[row] for row in rows])
                right = expected[1][rows]
            if np.abs(found - right).max() > 1e-5:
                failures.append((thread, turn))

    threads = [threading.Thread(target=ask, args=(i,), daemon=True) for i in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert not any(thread.is_alive() for thread in threads)
