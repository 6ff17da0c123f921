"""A server of the tests' own: the application under uvicorn on a free port, in a thread."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import httpx
import numpy as np
import uvicorn

from qwen3_embedding_integrations.server import ServedModel, ServerConfig, create_app

PATIENCE_S = 60


class Answer(NamedTuple):
    """A status, headers in lower case, and the JSON of the body."""

    status: int
    headers: dict[str, str]
    body: Any


class Running:
    """A server that answers at `url`."""

    def __init__(self, server: uvicorn.Server, port: int) -> None:
        self.server = server
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.client = httpx.Client(base_url=self.url, timeout=PATIENCE_S)

    def post(self, path: str, body: Any, **headers: str) -> Answer:
        """Return the answer to a JSON body, or to bytes as they are."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"content-type": "application/json"} | headers
        return answer_of(self.client.post(path, content=content, headers=sent))

    def get(self, path: str, **headers: str) -> Answer:
        """Return the answer to a GET."""
        return answer_of(self.client.get(path, headers=headers))

    def vectors(self, texts: Any, **fields: Any) -> np.ndarray:
        """Return the vectors of texts as floats, (N, W) float32."""
        answer = self.post("/v1/embeddings", {"model": "tiny", "input": texts, **fields})
        assert answer.status == 200, answer.body
        data = answer.body["data"]
        assert [one["index"] for one in data] == list(range(len(data)))
        return np.array([one["embedding"] for one in data], np.float32)

    def metric(self, name: str, **labels: str) -> float:
        """Return one number of /metrics."""
        from prometheus_client.parser import text_string_to_metric_families

        text = self.client.get("/metrics").text
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    return sample.value
        raise AssertionError(f"no {name} {labels} in /metrics")


def answer_of(response: httpx.Response) -> Answer:
    """Return a response's parts; a body that is not JSON as text."""
    is_json = response.headers.get("content-type", "") == "application/json"
    body = json.loads(response.content) if is_json else response.text
    return Answer(response.status_code, dict(response.headers), body)


@contextmanager
def serving(
    models: Sequence[ServedModel], config: ServerConfig | None = None, *, drain_s: int = 5
) -> Iterator[Running]:
    """Yield a server that is ready."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        bound.listen(1024)
        app = create_app(models, config)
        server = uvicorn.Server(
            uvicorn.Config(
                app, log_config=None, access_log=False, timeout_graceful_shutdown=drain_s
            )
        )
        thread = threading.Thread(target=server.run, args=([bound],), daemon=True)
        thread.start()
        running = Running(server, bound.getsockname()[1])
        try:
            wait_until(lambda: running.get("/readyz").status == 200)
            yield running
        finally:
            running.client.close()
            server.should_exit = True
            thread.join(PATIENCE_S)
            assert not thread.is_alive(), "the server does not end"


def wait_until(is_so: Callable[[], object]) -> None:
    """Return when it is so; fail when it never is."""
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def assert_close(found: np.ndarray, expected: np.ndarray, limit: float = 1e-6) -> None:
    """Assert that vectors are equal up to a rounding in float32."""
    assert found.shape == expected.shape
    difference = float(np.abs(found - expected).max())
    assert difference < limit, f"vectors differ by {difference}"
